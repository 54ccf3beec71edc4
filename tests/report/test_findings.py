"""What is said of several arms, put together."""

from anykd.report.findings import signs, topics
from tests.report.small_runs import write_run
from tests.report.test_arms import experiment


def test_the_same_of_several_arms_stands_once(tmp_path):
    for method, gain in (("control", 0.0), ("kd", 1.0), ("ofa", 3.0)):
        write_run(tmp_path / method, method=method, gain=gain)
    found = signs(experiment(tmp_path))
    put_together = topics(found)
    assert [one.code for one in put_together] == list(dict.fromkeys(one.code for one in found))
    (gains,) = (one for one in put_together if one.code == "gain-unproven")
    assert [one.arm.label for one in gains.findings if one.arm] == ["ofa", "kd"]
    assert gains.remedy == gains.findings[0].remedy != ""
    assert sum(len(one.findings) for one in put_together) == len(found)
