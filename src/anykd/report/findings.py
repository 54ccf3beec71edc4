"""What the numbers of all runs say, each sentence once with the runs that it holds for."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .arms import Arm, Experiment
from .working import judge, judge_group

__all__ = ["Finding", "Topic", "plan_findings", "signs", "topics"]

_ORDER = ("error", "warning", "note", "good")


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        severity: ``error``, ``warning``, ``note`` or ``good``.
        code: Its short name.
        arm: Of which arm; None for all.
        message: With the numbers of one run.
        remedy: What would mend it, or an empty string.
        seeds: For which runs it holds, in words.
        others: The messages of the other seeds, where their numbers differ.
    """

    severity: str
    code: str
    arm: Arm | None
    message: str
    remedy: str
    seeds: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Topic:
    """The same thing, found of one arm or of several.

    Attributes:
        severity: As of its findings.
        code: As well.
        remedy: What would mend it; empty where its findings name different ones.
        seeds: For which runs it holds; empty where its findings name different ones.
        findings: One for each arm.
    """

    severity: str
    code: str
    remedy: str
    seeds: str
    findings: tuple[Finding, ...]

    @property
    def others(self) -> tuple[str, ...]:
        """The messages of all other seeds."""
        return tuple(
            f"{one.arm.label}, {other}" if one.arm and len(self.findings) > 1 else other
            for one in self.findings
            for other in one.others
        )


def topics(findings: Iterable[Finding]) -> tuple[Topic, ...]:
    """Put together what says the same of several arms, in the order of the first of each."""
    by_code: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        by_code.setdefault((finding.severity, finding.code), []).append(finding)
    found = []
    for (severity, code), same in by_code.items():
        remedy, seeds = (_shared(same, key) for key in ("remedy", "seeds"))
        found.append(Topic(severity, code, remedy, seeds, tuple(same)))
    return tuple(found)


def _shared(findings: Iterable[Finding], key: str) -> str:
    values = {getattr(one, key) for one in findings}
    return values.pop() if len(values) == 1 else ""


def signs(experiment: Experiment) -> list[Finding]:
    """Whether it is working, arm by arm, the most pressing first."""
    control = experiment.control
    found = []
    for arm in experiment.arms:
        if control is not None and arm is not control:
            for sign in judge_group(arm.finished, control.finished):
                found.append(Finding(sign.severity, sign.code, arm, sign.message, sign.remedy, ""))
        said = [
            (run.seed, sign.severity, sign.code, sign.message, sign.remedy)
            for run in arm.finished
            for sign in judge(run)
        ]
        found += _gathered(arm, said, len(arm.finished))
    return sorted(found, key=lambda finding: _ORDER.index(finding.severity))


def plan_findings(experiment: Experiment) -> list[Finding]:
    """What the plans found amiss before training; what all arms share stands once."""
    found: list[Finding] = []
    for arm in experiment.arms:
        said = [
            (run.seed, one["severity"], one["code"], one["message"], one.get("remedy", ""))
            for run in arm.runs
            for one in run.summary.get("findings") or run.plan.get("findings") or []
        ]
        found += _gathered(arm, said, len(arm.runs))
    shared: dict[tuple[str, str], list[Finding]] = {}
    for one in found:
        shared.setdefault((one.code, one.message), []).append(one)
    kept = [
        same[0]
        if len(same) < len(experiment.arms) or len(same) == 1
        else Finding(same[0].severity, same[0].code, None, same[0].message, same[0].remedy, "")
        for same in shared.values()
    ]
    return sorted(kept, key=lambda finding: _ORDER.index(finding.severity))


def _gathered(
    arm: Arm, said: Iterable[tuple[int, str, str, str, str]], num_runs: int
) -> list[Finding]:
    by_code: dict[tuple[str, str], list[tuple[int, Any]]] = {}
    for seed, severity, code, message, remedy in said:
        by_code.setdefault((severity, code), []).append((seed, (message, remedy)))
    found = []
    for (severity, code), entries in by_code.items():
        message, remedy = entries[0][1]
        numbers = list(dict.fromkeys(seed for seed, _ in entries))
        others = tuple(
            f"seed {seed}: {other}" for seed, (other, _) in entries[1:] if other != message
        )
        found.append(
            Finding(severity, code, arm, message, remedy, _whose(numbers, num_runs), others)
        )
    return found


def _whose(seeds: list[int], num_runs: int) -> str:
    if num_runs == 1:
        return ""
    if len(seeds) == num_runs:
        return f"all {num_runs} seeds; the numbers are those of seed {seeds[0]}"
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))} of {num_runs} runs"
