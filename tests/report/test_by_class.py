"""What distillation changed for single classes."""

import json

from anykd.report.by_class import class_changes
from anykd.report.examples import Budget, disagreements
from tests.report.small_runs import write_run
from tests.report.test_arms import experiment

CRANE = ["crane", "heron", "crane"]
"""As in ImageNet, two classes have one name: the bird and the machine."""


def test_classes_of_one_name_are_told_apart(tmp_path):
    for method, right in (("control", 0), ("kd", 9)):
        run = write_run(tmp_path / method, method=method, classes=CRANE)
        path = run / "analysis" / "analysis.json"
        values = json.loads(path.read_text())
        values["student"]["per_class"] = [50.0, 50.0, 10.0 * right]
        values["confusion"] = [[0, 0, 5], [0, 1, 5], [2, 2, right], [2, 1, 10 - right]]
        for example in values["examples"]:
            example["label"] = 2
        path.write_text(json.dumps(values))
    found = experiment(tmp_path)
    images = [image for one in disagreements(found, Budget()) for image in one.images]
    changed = class_changes(found, CRANE, tuple(images))
    assert changed is not None
    (confused,) = changed.confused
    assert (confused.name, confused.points) == ("crane", 90.0)
    assert [said for _, _, said in confused.told] == [
        "0 of 10 right; taken for heron (10×)",
        "9 of 10 right; taken for heron (1×)",
    ]
    assert len(confused.examples) == 3
