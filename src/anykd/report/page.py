"""One page from many runs: everything is worked out here, and the template lays it out."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .arms import Experiment, sort_runs
from .asked import Asked, asked, run_table, training_table
from .by_class import Classes, class_changes
from .calibration import calibration_figure, calibration_table
from .curves import curve_figures, term_figures
from .examples import Budget, Examples, disagreements
from .figures.svg import line_colour, line_dashes
from .findings import Topic, plan_findings, signs, topics
from .headline import Headline, headline, overview
from .likeness import HeatMap, heat_maps, rank_table
from .parts import Figure, Table
from .record import RunRecord

__all__ = ["Chapter", "render"]

_FILES = Path(__file__).parent / "page"


@dataclass(frozen=True)
class Chapter:
    """Everything that the page says of one experiment. What is empty is left out.

    Attributes:
        key: Begins the ids of its sections.
        experiment: The runs.
        headline: What was found.
        signs: Whether it is working.
        plan_findings: What was amiss before training.
        curves: Charts over training that compare the arms.
        terms: And of the terms of each arm's loss.
        training: What training took.
        heat_maps: For each arm and teacher, likeness before and after.
        ranks: Effective ranks.
        reliability: Calibration as a chart.
        calibration: And as a table.
        classes: Changes by class.
        examples: Images on which student and teacher disagree.
        asked: Recipe, plan and commands of each arm.
        runs: Every run with its environment.
    """

    key: str
    experiment: Experiment
    headline: Headline
    signs: tuple[Topic, ...]
    plan_findings: tuple[Topic, ...]
    curves: tuple[Figure, ...]
    terms: tuple[Figure, ...]
    training: Table | None
    heat_maps: tuple[tuple[HeatMap, ...], ...]
    ranks: Table | None
    reliability: Figure | None
    calibration: Table | None
    classes: Classes | None
    examples: tuple[Examples, ...]
    asked: tuple[Asked, ...]
    runs: Table

    @property
    def title(self) -> str:
        """Who was trained on what."""
        return f"{self.experiment.student} on {self.experiment.data_name}"


def render(runs: Sequence[RunRecord]) -> str:
    """Lay runs out as one page of HTML.

    Args:
        runs: At least one.
    """
    budget = Budget()
    chapters = [
        _chapter(experiment, f"e{number}", budget)
        for number, experiment in enumerate(sort_runs(runs), start=1)
    ]
    pages = Environment(
        loader=FileSystemLoader(_FILES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    pages.globals |= {"colour": line_colour, "dashes": line_dashes}
    pages.filters["signed"] = lambda number: f"{number:+.1f}".replace("-", "−")
    return pages.get_template("report.html").render(
        title=_title(chapters),
        chapters=chapters,
        overview=overview([c.experiment for c in chapters], [c.title for c in chapters]),
        num_runs=len(runs),
        style=Markup((_FILES / "style.css").read_text(encoding="utf-8")),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _title(chapters: Sequence[Chapter]) -> str:
    first = chapters[0]
    if len(chapters) > 1:
        return f"{len(chapters)} students compared"
    return first.title


def _chapter(experiment: Experiment, key: str, budget: Budget) -> Chapter:
    examples = disagreements(experiment, budget)
    names = _class_names(experiment)
    return Chapter(
        key=key,
        experiment=experiment,
        headline=headline(experiment),
        signs=topics(signs(experiment)),
        plan_findings=topics(plan_findings(experiment)),
        curves=tuple(curve_figures(experiment)),
        terms=tuple(term_figures(experiment)),
        training=training_table(experiment),
        heat_maps=tuple(heat_maps(experiment)),
        ranks=rank_table(experiment),
        reliability=calibration_figure(experiment),
        calibration=calibration_table(experiment),
        classes=class_changes(experiment, names, examples[0].images if examples else ()),
        examples=tuple(examples),
        asked=tuple(asked(arm) for arm in experiment.arms),
        runs=run_table(experiment),
    )


def _class_names(experiment: Experiment) -> list[str]:
    found = (run.analysis.get("classes") for run in experiment.runs)
    return next((names for names in found if names), [])
