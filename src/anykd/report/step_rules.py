"""What the logged steps of a run say: its terms, their gradients, and the time."""

from statistics import median

from .metrics import FEWEST, curve, ends, term_names
from .record import RunRecord
from .sign import Sign

__all__ = [
    "steps_were_bad",
    "teacher_takes_the_time",
    "terms_fall",
    "terms_outweigh_the_task",
    "terms_weigh_little",
    "waits_for_data",
]

_TASK = "task"
_STAYS = 0.02
"""Part of its first value; a term that falls by less has not fallen."""
_FALLS = 0.2
"""Part of its first value; a term that falls by more is worth a good word."""
_ENOUGH = 20
"""Logged values of a term before one that did not fall is complained of: single ones are noise."""
_FOLLOWS = 90.0
"""Agreement with the teacher, in percent, from which on there is not much left to fall."""
_OUTWEIGHS = 10.0
"""Times the task's gradient that a term may weigh."""
_LITTLE = 0.01
"""Share of the gradient below which a term does hardly anything."""
_TRAINS_THE_FUSION = "teacher_fusion"
"""FBT's terms of this link are there for the fusion, whatever they do to the student."""
_MOST_OF_THE_TIME = 0.5
_WAITS = 0.3
_LOOKS = 3
"""Looks before anything is said of the wait for images."""
_MANY_BAD = 0.01
"""Share of the steps that may be skipped without more than a note."""
_SHOWN = 4
"""Terms that a sentence names."""


def steps_were_bad(record: RunRecord) -> list[Sign]:
    """Count the steps that were skipped."""
    bad = record.summary.get("bad_steps") or max(curve(record.steps, "bad_steps"), default=0)
    if not bad or not record.steps:
        return []
    per_epoch = 1 + max(line["step"] for line in record.steps)
    steps = per_epoch * (1 + record.steps[-1]["epoch"])
    return [
        Sign(
            "warning" if bad > _MANY_BAD * steps else "note",
            "bad-steps",
            f"{bad} of {steps} steps had no finite loss and gradient, and were skipped",
            "lower train.peak_lr, set train.clip_grad = 5, or train.precision = 'float32'",
        )
    ]


def terms_fall(record: RunRecord) -> list[Sign]:
    """Compare the ends of each term of distillation."""
    fell, stayed = [], []
    for name in term_names(record):
        values = curve(record.steps, name)
        if name == _TASK or len(values) < FEWEST:
            continue
        first, last = ends(values)
        said = f"{name} from {first:.3g} to {last:.3g}"
        if first - last > _FALLS * abs(first):
            fell.append(said)
        elif first - last <= _STAYS * abs(first) and first and len(values) >= _ENOUGH:
            stayed.append(said)
    if stayed and (record.summary.get("agreement") or 0.0) < _FOLLOWS:
        said = (
            f"{_terms(len(stayed))} did not fall between the first and the last tenth of training"
        )
        remedy = "raise its weight or train longer; where it still does not fall, leave it out"
        return [Sign("warning", "term-did-not-fall", f"{said}: {_listed(stayed)}", remedy)]
    if fell:
        said = f"{_terms(len(fell))} of distillation fell: {_listed(fell)}"
        return [Sign("good", "terms-fell", said)]
    return []


def terms_outweigh_the_task(record: RunRecord) -> list[Sign]:
    """Compare the gradients of terms with the task's."""
    norms = _typical(record, "grad_norms")
    task = norms.pop(_TASK, 0.0)
    heavy = [
        f"{name} weighs {norm / task:.0f} times"
        for name, norm in norms.items()
        if task and norm > _OUTWEIGHS * task
    ]
    if not heavy:
        return []
    share = 100 * _typical(record, "grad_shares").get(_TASK, 0.0)
    said = (
        f"against the task's gradient, {_terms(len(heavy))} {_listed(heavy)} as much "
        f"(median of {_looks(record)}): the labels have {share:.2g} % of the sum of all norms"
    )
    return [Sign("warning", "term-outweighs-task", said, "lower the weight in [method]")]


def terms_weigh_little(record: RunRecord) -> list[Sign]:
    """Find terms with hardly a share of the gradient."""
    light = [
        f"{name} {100 * share:.2g} %"
        for name, share in _typical(record, "grad_shares").items()
        # At 0 it trains something else than the student, or has no weight.
        if name != _TASK and not name.startswith(_TRAINS_THE_FUSION) and 0 < share < _LITTLE
    ]
    if not light:
        return []
    said = (
        f"hardly any of the student's gradient comes from {_terms(len(light))} "
        f"{_listed(light)} (median of {_looks(record)})"
    )
    remedy = "raise the weight in [method], or leave it out and save its time"
    return [Sign("note", "term-weighs-little", said, remedy)]


def teacher_takes_the_time(record: RunRecord) -> list[Sign]:
    """Look at the teachers' share of the time."""
    shares = curve(record.diagnoses, "teacher_share")
    if not shares or median(shares) <= _MOST_OF_THE_TIME:
        return []
    return [
        Sign(
            "note",
            "teacher-takes-the-time",
            f"teachers take {100 * median(shares):.0f} % of a step's time (median of {len(shares)} "
            "looks)",
            "store their outputs once: anykd cache build; docs/guides/cache.md says for which "
            "methods",
        )
    ]


def waits_for_data(record: RunRecord) -> list[Sign]:
    """Look at the share of the time that passes without images."""
    shares = curve(record.diagnoses, "data_share")
    # In short epochs most of the wait is that for the first images.
    steps = 1 + max((line["step"] for line in record.steps), default=0)
    if len(shares) < _LOOKS or steps < _ENOUGH or median(shares) <= _WAITS:
        return []
    return [
        Sign(
            "note",
            "waits-for-data",
            f"training waits for images {100 * median(shares):.0f} % of its time (median of "
            f"{len(shares)} looks)",
            "raise data.workers; docs/guides/speed.md says what else",
        )
    ]


def _typical(record: RunRecord, table: str) -> dict[str, float]:
    """Medians over the diagnoses of the numbers in one of their tables."""
    names = dict.fromkeys(name for line in record.diagnoses for name in line.get(table) or {})
    tables = [line.get(table) or {} for line in record.diagnoses]
    curves = {name: curve(tables, name) for name in names}
    return {name: median(values) for name, values in curves.items() if values}


def _terms(count: int) -> str:
    return "the term" if count == 1 else f"{count} terms"


def _listed(said: list[str]) -> str:
    more = len(said) - _SHOWN
    return ", ".join(said[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _looks(record: RunRecord) -> str:
    return "1 look" if len(record.diagnoses) == 1 else f"{len(record.diagnoses)} looks"
