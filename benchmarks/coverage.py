"""Every model family of timm as student, as teacher, and at both ends of FBT's fusion.

    python benchmarks/coverage.py                  # all families; writes results and the table
    python benchmarks/coverage.py resnet vit       # some families; prints them
    python benchmarks/coverage.py --table          # the table anew, from the results

A family is one module of ``timm.models``; its smallest member stands for it, with random weights,
at the smallest of a few sizes that it takes. A claim holds where one step of the method gives a
finite loss and gradients to the student; a tail, where it reproduces the model's own logits.
"""

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import timm
import torch

from anykd.errors import ModelError, first_line
from anykd.methods import build_methods, read_tables
from anykd.models import FrozenTeacher, StagedModel, create_staged
from anykd.models.branches import MapBranch, TokenBranch
from anykd.types import Batch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "coverage.json"
TABLE = ROOT / "docs" / "reference" / "models.md"
SIZES = (64, 56, 96, 128, 224)
"""Image sizes that are tried, in pixels, before the model's own."""
CLASSES = 5
ROLES = ("ofa", "fitnet", "rsd")
_COLUMNS = ["family", "model", "px", "kind", "branch", "prefix", "stages"]
_COLUMNS += ["student", "teacher", "front", "tail"]


@dataclass
class Row:
    """What was found of a family.

    Attributes:
        family: Module of ``timm.models``.
        model: Its smallest member.
        size: Pixels at which it was tried.
        shapes: (chan, height, width) of the four stages.
        student: Methods that teach it.
        teacher: Methods by which it teaches.
        front: Whether FBT's fusion may begin with its stages 1 to 3.
        tail: Whether FBT's fusion may end in its stage 4 and head.
        reasons: What was refused, in words, by what it was for.
    """

    family: str
    model: str
    parameters: int = 0
    size: int = 0
    kind: str = ""
    branch: str = ""
    prefix_tokens: int = 0
    stem_stage: bool = False
    shapes: list[list[int]] = field(default_factory=list)
    student: list[str] = field(default_factory=list)
    teacher: list[str] = field(default_factory=list)
    front: bool = False
    tail: bool = False
    reasons: dict[str, str] = field(default_factory=dict)


def families() -> list[str]:
    """The modules of ``timm.models`` that hold models; anykd registers some of its own beside."""
    return [name for name in timm.list_modules() if find_spec(f"timm.models.{name}")]


def members(family: str) -> list[tuple[int, str]]:
    """The members of a family with their numbers of parameters, smallest first."""
    counted = []
    for name in timm.list_models(module=family):
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = timm.create_model(name)
        counted.append((sum(p.numel() for p in model.parameters()), name))
    return sorted(counted)


def cover(family: str, model: str | None = None) -> Row:
    """Try everything with a family.

    Args:
        family: Module of ``timm.models``.
        model: The member that stands for it; None takes the smallest.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    row = Row(family, model or members(family)[0][1])
    try:
        staged = _build(row)
    except ModelError as error:
        row.reasons["stages"] = str(error)
        return row
    row.parameters = sum(p.numel() for p in staged.parameters())
    row.kind, row.branch = staged.kind, staged.branch_design
    row.prefix_tokens, row.stem_stage = staged.num_prefix_tokens, staged._stem is not None
    row.shapes = [list(shape) for shape in staged.shapes]

    def attempt(claim: str, check: Callable[[], None]) -> bool:
        try:
            check()
        except Exception as error:
            said = first_line(error)
            row.reasons[claim] = said.partition("has no tail: ")[2] or said
            return False
        return True

    vit = create_staged("test_vit", num_classes=CLASSES, image_size=64)
    resnet = create_staged("test_resnet", num_classes=CLASSES, image_size=64)
    partner = resnet if staged.kind != "conv" else vit

    def roles(side: str, student: StagedModel, teacher: StagedModel) -> list[str]:
        # All in one step, which is one pass of each model; one by one where that fails.
        try:
            _step("+".join(ROLES), student, teacher)
        except Exception:
            tried = {name: lambda name=name: _step(name, student, teacher) for name in ROLES}
            return [name for name, check in tried.items() if attempt(f"{side} {name}", check)]
        return [*ROLES]

    row.student = roles("student", staged, partner)
    row.front = attempt("front", lambda: _step("fbt", staged, vit, order="student_first"))
    row.tail = attempt("tail", lambda: _check_tail(staged)) and attempt(
        "tail step", lambda: _step("fbt", staged, resnet, order="teacher_first")
    )
    staged.zero_grad(set_to_none=True)
    row.teacher = roles("teacher", partner, staged)
    return row


def _build(row: Row) -> StagedModel:
    config = timm.get_pretrained_cfg(row.model)
    own = config.input_size[-1] if config else SIZES[-1]
    error: ModelError | None = None
    for row.size in (*(size for size in SIZES if size < own), own):
        try:
            return create_staged(row.model, num_classes=CLASSES, image_size=row.size)
        except ModelError as refusal:
            error = refusal
    assert error is not None
    raise error


def _step(name: str, student: StagedModel, teacher: StagedModel, **options: str) -> None:
    """One step of a method; raises where the loss or a gradient is not what it should be."""
    tables = read_tables([{"name": part, **options} for part in name.split("+")])
    method = build_methods(tables, student.train(), [(FrozenTeacher(teacher), 1.0)])
    for branch in method.modules():
        if isinstance(branch, MapBranch | TokenBranch):
            design = "map" if isinstance(branch, MapBranch) else "token"
            assert design == student.branch_design, "the wrong branch design"
    images = torch.rand(2, 3, *student.image_size, generator=torch.Generator().manual_seed(0))
    output = method(Batch(images=images, labels=torch.eye(CLASSES)[:2]))
    output.loss.backward()
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert torch.isfinite(output.loss), "the loss is not finite"
    assert gradients, "no gradient reaches the student"
    assert all(torch.isfinite(g).all() for g in gradients), "a gradient is not finite"
    assert all(p.grad is None for p in teacher.parameters()), "a gradient reaches the teacher"
    teacher.requires_grad_(True)
    student.zero_grad(set_to_none=True)


@torch.no_grad()
def _check_tail(staged: StagedModel) -> None:
    """Compare both ways to the logits on images of their own; refuses a model without a tail."""
    staged.require_tail()
    staged.eval()
    images = torch.rand(2, 3, *staged.image_size, generator=torch.Generator().manual_seed(3))
    features = staged(images)
    own = staged.tail(features.stages[2], features.prefixes[2])
    scale = max(1.0, features.logits.abs().max().item())
    assert (own.logits - features.logits).abs().max() <= 1e-5 * scale, "the tail gives other logits"


def render(results: dict) -> str:
    """The reference page, from the results."""
    rows = [Row(**row) for row in results["families"]]
    staged = [row for row in rows if row.shapes]
    complete = [r for r in staged if [*ROLES] == r.student == r.teacher and r.front]
    tails = [row for row in staged if row.tail]
    lines = [
        "# Model families",
        "",
        f"Made by `python benchmarks/coverage.py` with timm {results['timm']} and torch "
        f"{results['torch']}; edit that, not this.",
        "",
        "A family is one module of `timm.models`; its smallest member stands for it, with random "
        "weights, at the size given. Every entry was run: one step of OFA, FitNet and RSD with the "
        "model as student and as teacher, of FBT with its stages 1 to 3 in front of another "
        "model's tail (*front*), and with its own stage 4 and head behind another model's stages "
        "(*tail*), which must also reproduce the model's own logits to 1e-5.",
        "",
        f"- {len(rows)} families, {len(staged)} of them as four stages",
        f"- {len(complete)} as student and teacher of OFA, FitNet and RSD, and as FBT's front",
        f"- {len(tails)} as FBT's tail",
        "",
        "*Kind* is what mixes positions: convolution, attention (matrix products of features), "
        "both, or neither (MLP). *Branch* is OFA's design for it as a student. *Prefix* counts "
        "class, distillation and register tokens beside the map. A star at the stages marks a "
        "family of three levels, whose stage 1 is the output of its stem.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|" + "---|" * len(_COLUMNS),
    ]
    for row in rows:
        stages = " ".join(f"{c}@{_grid(h, w)}" for c, h, w in row.shapes)
        cells = [
            row.family,
            row.model,
            str(row.size),
            row.kind,
            row.branch,
            str(row.prefix_tokens or ""),
            stages + (" *" if row.stem_stage else ""),
            _methods(row.student),
            _methods(row.teacher),
            "yes" if row.front else "–",
            "yes" if row.tail else "–",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    refused = [(row.family, c, reason) for row in rows for c, reason in row.reasons.items()]
    lines += ["", "## What is refused, and why", ""]
    lines += [f"- {family}, {claim}: {reason}" for family, claim, reason in refused]
    return "\n".join(lines) + "\n"


def _grid(height: int, width: int) -> str:
    return str(height) if height == width else f"{height}x{width}"


def _methods(names: Sequence[str]) -> str:
    return "all" if [*names] == [*ROLES] else ", ".join(names) or "–"


def _timed(family: str) -> tuple[Row, float]:
    began = time.perf_counter()
    row = cover(family)
    return row, time.perf_counter() - began


def main() -> None:
    """Cover the families that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("families", nargs="*", help="modules of timm.models; all by default")
    parser.add_argument("--table", action="store_true", help="write the table anew, run nothing")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    unknown = set(asked.families) - set(families())
    if unknown:
        parser.error(f"timm has no module called {', '.join(sorted(unknown))}")
    if not asked.table:
        chosen = asked.families or families()
        began = time.perf_counter()
        context = get_context("spawn")
        rows = []
        with context.Pool(asked.workers, maxtasksperchild=8) as pool:  # so memory is given back
            for row, seconds in pool.imap(_timed, chosen):
                rows.append(row)
                tail = "tail" if row.tail else "no tail"
                print(f"{row.family:28} {row.model:40} {row.kind:9} {tail:8} {seconds:5.1f} s")
                for claim, reason in row.reasons.items():
                    print(f"    {claim}: {reason}")
        print(f"{len(rows)} families in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        if asked.families:
            return
        results = {
            "timm": timm.__version__,
            "torch": torch.__version__.partition("+")[0],
            "families": [asdict(row) for row in rows],
        }
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(render(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
