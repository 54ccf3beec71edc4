"""What a person types to measure."""

import argparse
import sys

import torch

from anykd.engine import choose_device

from .measure import CACHE, Bench, on_device
from .page import PAGE, README, about, check, render, with_table
from .pairs import METHODS, PAIRS, Setting
from .results import every_device, keep, path_of, read


def measure(asked: argparse.Namespace) -> None:
    """Measure what is asked for, and keep it row by row."""
    device = choose_device(0, asked.device)
    path = path_of(on_device(device))
    for precision in asked.precision:
        for name in asked.pairs:
            known = {
                row["method"]
                for row in read(path)
                if (row["pair"], row["precision"], row["compile"])
                == (name, precision, asked.compile)
            }
            methods = [m for m in asked.methods if asked.again or m not in known]
            if not methods:
                continue
            batch = asked.batch or PAIRS[name].batch["cpu" if device.type == "cpu" else "cuda"]
            setting = Setting(device, batch, precision, asked.compile)
            with Bench.temporary(PAIRS[name], setting) as bench:
                for method in methods:
                    row = {"pair": name} | bench.measure(method, asked.rounds)
                    keep(path, row)
                    print(about(row, on_device(device)), flush=True)


def main() -> int:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(prog="benchmarks.speed", description=__doc__)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    every = (*METHODS, CACHE)
    parser.add_argument("--methods", nargs="+", choices=every, default=list(every))
    parser.add_argument("--precision", nargs="+", choices=("float32", "bf16"), default=["float32"])
    parser.add_argument(
        "--compile",
        nargs="?",
        const=True,
        default=False,
        choices=("partial", "cuda_graphs"),
        help="compile models and method, as train.compile does",
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, help="images a step, instead of each pair's own")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--again", action="store_true", help="also what was measured before")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if not asked.page:
        measure(asked)
    results = every_device()
    PAGE.write_text(render(results))
    README.write_text(with_table(README.read_text(), results))
    print(check(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
