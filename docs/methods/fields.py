"""Write the tables of the methods' pages from the code, so that they cannot be wrong.

::

    python docs/methods/fields.py [--check]

The fields of a method stand between ``<!-- fields NAME -->`` and ``<!-- end -->``, the table of all
methods between ``<!-- methods -->`` and ``<!-- end -->``. With ``--check`` nothing is written; a
table that does not follow from the code is an error.
"""

import argparse
import inspect
import re
import sys
from pathlib import Path

from anykd.methods import METHODS, Method, build_method, published_values
from anykd.methods.registry import as_toml, choices
from anykd.models import FrozenTeacher, create_staged

HERE = Path(__file__).parent
FIELDS = re.compile(r"(<!-- fields (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
TABLE = re.compile(r"(<!-- methods -->\n).*?(<!-- end -->)", re.DOTALL)
STUDENT, TEACHER = "resnet18", "swin_tiny_patch4_window7_224"
"""The pair that the table of all methods counts parameters for."""


def fields_table(name: str) -> str:
    """A line for each field of a method's config."""
    published = published_values(name)
    lines = ["| field | default | published | meaning |", "|---|---|---|---|"]
    for key, field in METHODS[name].Config.model_fields.items():
        meaning = " ".join(f"{field.description} {choices(field.annotation)}".split())
        value = published.get(key, "not given")
        lines.append(f"| `{key}` | `{as_toml(field.default)}` | {value} | {meaning} |")
    return "\n".join(lines) + "\n"


def methods_table() -> str:
    """A line for each method: what it does, what it needs and what it keeps."""
    lines = [
        "| method | what it does | needs labels | same classes | from a cache | trains beside it "
        "| keeps |",
        "|---|---|---|---|---|---|---|",
    ]
    student = create_staged(STUDENT, num_classes=100, image_size=224)
    teacher = FrozenTeacher(create_staged(TEACHER, num_classes=100, image_size=224))
    for name, method in METHODS.items():
        options = {"num_samples": 50_000} if "num_samples" in method.Config.model_fields else {}
        built = build_method(name, student, teacher, **options)
        summary = (inspect.getdoc(method) or "").splitlines()[0]
        cells = (
            f"[{name}]({name}.md)",
            summary,
            _needs_labels(method),
            _same_classes(method),
            _from_a_cache(built),
            _trained(built),
            ", ".join(f"`{key}`" for key, _ in built.named_buffers(recurse=False)),
        )
        lines.append(f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|")
    return "\n".join(lines) + "\n"


def _needs_labels(method: type[Method]) -> str:
    if not method.needs_teacher or method.Config(task_weight=0).needs_labels:
        return "yes"
    return "not with `task_weight = 0`"


def _same_classes(method: type[Method]) -> str:
    if not method.needs_teacher:
        return "no teacher"
    if not method.Config().reads_logits:
        return "no"
    for key in method.Config.model_fields:
        if key.endswith("_weight") and not _reads_logits_without(method, key):
            return f"not with `{key} = 0`"
    return "yes"


def _reads_logits_without(method: type[Method], key: str) -> bool:
    return method.Config(**{key: 0.0}).reads_logits


def _from_a_cache(method: Method) -> str:
    """What of the teacher has to be stored, so that it need not run."""
    if not method.needs_teacher:
        return ""
    if "stages" in method.reads:
        return "no"
    words = {"logits": "class scores", "pooled": "vectors"}
    stored = ", ".join(word for part, word in words.items() if part in method.reads)
    return f"{stored}; the tail runs" if method.runs_tail else stored


def _trained(method: Method) -> str:
    """How many parameters each part has that trains with the student."""
    counts: dict[str, int] = {}
    for path, parameter in method.named_parameters():
        part = path.split(".")[0]
        if part != "student":
            counts[part] = counts.get(part, 0) + parameter.numel()
    return ", ".join(f"`{part}` {_rounded(count)}" for part, count in counts.items())


def _rounded(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 10_000 else str(count)


def render(*, check: bool) -> int:
    """Write every table, or count the pages that are stale."""
    stale = 0
    for page in sorted(HERE.glob("*.md")):
        old = page.read_text()
        new = FIELDS.sub(lambda found: found[1] + fields_table(found["name"]) + found[3], old)
        new = TABLE.sub(lambda found: found[1] + methods_table() + found[2], new)
        if new != old:
            stale += 1
            print(f"{page}: {'stale' if check else 'written'}", file=sys.stderr)
            if not check:
                page.write_text(new)
    return stale if check else 0


def main() -> int:
    """Read the arguments and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="write nothing, say what is stale")
    return min(render(check=parser.parse_args().check), 1)


if __name__ == "__main__":
    sys.exit(main())
