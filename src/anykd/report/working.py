"""Is it working? Sentences that follow from the numbers of a run."""

from collections.abc import Callable, Sequence

from .gain import Gain, measure_gain
from .record import RunRecord
from .score_rules import (
    agreement_does_not_rise,
    agrees_less_with_the_teacher,
    fusion_is_worse,
    got_worse,
    still_improves,
    student_is_broken,
    teacher_is_worse,
)
from .sign import Sign
from .step_rules import (
    steps_were_bad,
    teacher_takes_the_time,
    terms_fall,
    terms_outweigh_the_task,
    terms_weigh_little,
    waits_for_data,
)

__all__ = ["Sign", "judge", "judge_group"]


Rule = Callable[[RunRecord], list[Sign]]

_RULES: tuple[Rule, ...] = (
    student_is_broken,
    steps_were_bad,
    terms_fall,
    terms_outweigh_the_task,
    agreement_does_not_rise,
    got_worse,
    fusion_is_worse,
    agrees_less_with_the_teacher,
    teacher_is_worse,
    still_improves,
    terms_weigh_little,
    teacher_takes_the_time,
    waits_for_data,
)


def judge(record: RunRecord, *, controls: Sequence[RunRecord] = ()) -> tuple[Sign, ...]:
    """Say what the numbers of a run mean, the most pressing first.

    A difference of held-out accuracies counts where it is above two standard errors of a
    difference of two shares of so many images.

    Args:
        record: A run, finished or not; what it has not measured is passed over.
        controls: Runs of the control arm on the same data; without them nothing is said of a gain.
    """
    found = [sign for rule in _RULES for sign in rule(record)]
    return _sorted([*found, *judge_group([record], controls)])


def judge_group(records: Sequence[RunRecord], controls: Sequence[RunRecord]) -> tuple[Sign, ...]:
    """Say what the runs of one method gave over those of the control arm.

    Runs of the same seed are compared with each other where there are such pairs. A gain is called
    one where its 95 % confidence interval (Student's t) leaves out 0.

    Args:
        records: Runs of one recipe, each of another seed.
        controls: The same without distillation.
    """
    gain = measure_gain(records, controls)
    return () if gain is None else (_about_gain(gain),)


def _sorted(signs: Sequence[Sign]) -> tuple[Sign, ...]:
    order = ("warning", "note", "good")
    return tuple(sorted(signs, key=lambda sign: order.index(sign.severity)))


def _about_gain(gain: Gain) -> Sign:
    points = f"{gain.mean:+.2f}".replace("-", "−")
    said = f"top-1 is {points} points against the control"
    how = f"{gain.n} pairs of the same seed" if gain.paired else f"n = {gain.n}, seeds not paired"
    if gain.half_width is None:
        return Sign(
            "note",
            "gain-unproven",
            f"{said} (n = {gain.n}): "
            + (
                "one seed proves nothing, another may differ by as much"
                if gain.n == 1
                else "too few seeds to say how sure that is"
            ),
            "train both with three seeds or more: --seed 1, --seed 2",
        )
    said = f"{said} ± {gain.std:.2f} ({how}; 95 % interval ± {gain.half_width:.2f})"
    if abs(gain.mean) <= gain.half_width:
        remedy = "train more seeds before you count on it"
        return Sign("note", "gain-within-noise", f"{said}: within the noise", remedy)
    if gain.mean < 0:
        remedy = "lower the weights of the method's terms, or take another method or teacher"
        return Sign("warning", "worse-than-control", said, remedy)
    return Sign("good", "gain", said)
