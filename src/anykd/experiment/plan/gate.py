"""What a run does with its plan: it stops at errors, unless it is forced, and keeps the rest."""

from dataclasses import asdict
from typing import Any

from anykd.distributed import from_first_rank
from anykd.errors import AnykdError
from anykd.experiment.assemble import Parts
from anykd.progress import Progress
from anykd.rundir import RunDir

from .finding import Finding
from .make import preview
from .plan import Plan

__all__ = ["kept_findings", "plan_again", "plan_first"]


def plan_first(parts: Parts, progress: Progress, *, force: bool, brief: bool) -> Plan:
    """Plan a run, show the plan's first lines and stop where it has errors.

    The first rank looks and all decide alike.

    Args:
        parts: The run; nothing in it changes.
        progress: Where to show it.
        force: Go on in spite of errors, but for those at which training would break off.
        brief: Show errors and warnings alone.

    Raises:
        AnykdError: With the first of the errors.
    """
    with parts.gathered():
        plan = from_first_rank(lambda: preview(parts))
    _show(plan, progress, brief=brief)
    stopping = [error for error in plan.errors if error.is_hopeless or not force]
    if stopping:
        first, *others = sorted(stopping, key=lambda error: not error.is_hopeless)
        more = f" (and {len(others)} more)" if others else ""
        way_out = "" if first.is_hopeless else "; or go on all the same by --force"
        raise AnykdError(f"{first.message}{more}", hint=f"{first.remedy}{way_out}")
    return plan


def plan_again(parts: Parts, directory: RunDir, progress: Progress, *, brief: bool) -> Plan:
    """The plan of a run that goes on: what was found when it began still stands.

    Args:
        parts: The run.
        directory: Where it is.
        progress: Where to show it.
        brief: Show errors and warnings alone.
    """
    known: tuple[Finding, ...] = ()
    if directory.plan.is_file():
        values = directory.read_json(directory.plan)["findings"]
        known = tuple(Finding(**finding) for finding in values)
    with parts.gathered():
        plan = from_first_rank(lambda: preview(parts, findings=known))
    _show(plan, progress, brief=brief)
    return plan


def kept_findings(plan: Plan) -> list[dict[str, Any]]:
    """The errors that a run was forced through, and the warnings, for its summary."""
    return [asdict(finding) for finding in plan.findings if finding.severity != "note"]


def _show(plan: Plan, progress: Progress, *, brief: bool) -> None:
    if not brief:
        progress.say(plan.short_text(width=min(progress.console.width, 100)))
    for finding in plan.findings:
        if not (brief and finding.severity == "note"):
            progress.say(f"{finding.severity}: {finding.message}")
            progress.say(f"  hint: {finding.remedy}")
