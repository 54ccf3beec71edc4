"""Keep measured numbers: collect them from run directories, and write the tables from them.

::

    python docs/results/results.py collect NAME RUN...   # RUNs -> docs/results/NAME.json
    python docs/results/results.py render [--check]      # *.json -> tables in docs and README

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``. With ``--check`` nothing is
written; a table that does not follow from its JSON is an error.
"""

import argparse
import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGES = [HERE.parents[1] / "README.md", *sorted(HERE.glob("*.md"))]
FACTS = ("command", "started", "commit", "python", "packages", "platform", "device", "threads")
TABLE = re.compile(r"(<!-- table (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def collect(name: str, runs: list[Path]) -> None:
    """Write what the runs found, and with what, into one JSON file."""
    entries = []
    for run in runs:
        environment = json.loads((run / "environment.json").read_text())
        summary = json.loads((run / "summary.json").read_text())
        entries.append({"environment": {key: environment[key] for key in FACTS}} | summary)
    (HERE / f"{name}.json").write_text(json.dumps(entries, indent=1) + "\n")


def table(entries: list[dict[str, Any]]) -> str:
    """A line for each method: mean ± standard deviation over seeds, and the gain over control."""
    teacher = next(entry["teachers"][0] for entry in entries if entry["teachers"])
    by_method = defaultdict(dict)
    for entry in entries:
        by_method[entry["method"]][entry["seed"]] = entry
    control = by_method["control"]
    lines = [
        "| method | top-1 (%) | n | gain over control | fusion (%) | seconds a run |",
        "|---|---|---|---|---|---|",
        f"| teacher {teacher['name']} | {teacher['top1']:.2f} | 1 | | | |",
    ]
    for method, runs in by_method.items():
        seeds = sorted(runs)
        both = [seed for seed in seeds if seed in control and method != "control"]
        gain = spread([runs[seed]["top1"] - control[seed]["top1"] for seed in both], "+.2f")
        fusion = spread([runs[s]["fusion_top1"] for s in seeds if "fusion_top1" in runs[s]])
        seconds = statistics.mean(runs[seed]["seconds"] for seed in seeds)
        top1 = spread([runs[seed]["top1"] for seed in seeds])
        lines.append(f"| {method} | {top1} | {len(seeds)} | {gain} | {fusion} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


def cache_table(entries: list[dict[str, Any]]) -> str:
    """A line for each student: what its three arms took and reached, and what the cache saved."""
    teacher = next(entry["teachers"][0] for entry in entries if entry["teachers"])
    arms = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        stored = any("cache" in teacher for teacher in entry["teachers"])
        arm = "control" if entry["method"] == "control" else "cache" if stored else "live"
        arms[entry["student"]][arm].append(entry)
    lines = [
        f"Teacher {teacher['name']}, {teacher['top1']:.2f} %.",
        "",
        "| student | control (%) | KD, live (%) | KD, cache (%) | control (s) | live ÷ control | "
        "cache ÷ control | n |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for student, by_arm in arms.items():
        seconds = {arm: sum(run["seconds"] for run in runs) for arm, runs in by_arm.items()}
        scores = [spread([run["top1"] for run in by_arm[a]]) for a in ("control", "live", "cache")]
        runs = len(by_arm["control"])
        ratios = [f"{seconds[arm] / seconds['control']:.2f}" for arm in ("live", "cache")]
        cells = [student, *scores, f"{seconds['control'] / runs:.0f}", *ratios, str(runs)]
        lines.append(f"| {' | '.join(cells)} |")
    sums = {
        arm: sum(run["seconds"] for by_arm in arms.values() for run in by_arm[arm])
        for arm in ("control", "live", "cache")
    }
    lines += [
        "",
        f"All students together: {sums['control']:.0f} s with labels alone, {sums['live']:.0f} s "
        f"with the live teacher, {sums['cache']:.0f} s from the cache, so "
        f"{sums['live'] - sums['cache']:.0f} s were saved, less the seconds of the build.",
    ]
    return "\n".join(lines) + "\n"


def spread(values: list[float], form: str = ".2f") -> str:
    """Mean ± standard deviation; one value by itself; nothing for none."""
    if not values:
        return ""
    mean = format(statistics.mean(values), form)
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


TABLES = {"cache-study": cache_table}
"""Tables of another form."""


def render(*, check: bool) -> int:
    """Write every table, or count those that are stale."""
    stale = 0
    for page in PAGES:
        old = page.read_text()
        new = TABLE.sub(
            lambda found: (
                found[1]
                + TABLES.get(found["name"], table)(
                    json.loads((HERE / f"{found['name']}.json").read_text())
                )
                + found[3]
            ),
            old,
        )
        if new != old:
            stale += 1
            print(f"{page}: {'stale' if check else 'written'}", file=sys.stderr)
            if not check:
                page.write_text(new)
    return stale if check else 0


def main() -> int:
    """Read the arguments and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    commands = parser.add_subparsers(dest="verb", required=True)
    collecting = commands.add_parser("collect")
    collecting.add_argument("name")
    collecting.add_argument("runs", nargs="+", type=Path)
    commands.add_parser("render").add_argument("--check", action="store_true")
    given = parser.parse_args()
    if given.verb == "render":
        return min(render(check=given.check), 1)
    collect(given.name, given.runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
