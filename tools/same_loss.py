"""Do two revisions train the same? The losses of a few steps on the CPU, compared bit for bit.

    python tools/same_loss.py main HEAD                     a small recipe of phantoms, 20 steps
    python tools/same_loss.py main . --recipe recipes/flexict-nano-2d.toml steps=5
                                                            any recipe; "." is the working tree as it is

Each revision is checked out beside and trained by its own code, from its own data, on one thread in float32.
Exit codes: 0 equal, 1 different, 2 one of them does not train.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

RECIPE = """
name = "same-loss"
method = "exact_small"
preset = "phantom-small"
checkpoint_every = 1000
[data]
train = 2
siblings = 2
organ_patients = 1
validation = 1
work_mm = 6.0
spacing_mm = [6.0, 6.0, 6.0]
workers = 1
[optim]
steps = 20
organ_steps = 8
scans = 2
"""
EXACT = ("threads=1", 'device="cpu"', 'precision="fp32"')
"""Said last, whatever a recipe says: several threads add up in an order of their own."""

NO_LOSSES = {"step", "seconds", "lr"}
NOTHING = "nothing"

Log = Mapping[int, Mapping[str, str]]
"""Step -> loss -> the number as it was written."""


class Difference(NamedTuple):
    """Where two runs part: the first step, its first loss, and both numbers as they were written."""

    step: int
    loss: str
    a: str
    b: str


class DoesNotTrain(Exception):
    """A revision that ends without a log."""


def read_log(text: str) -> Log:
    """`log.jsonl`; of a step that ran twice, before and after a stop, the last one counts."""
    rows = [
        json.loads(line, parse_float=str, parse_int=str, parse_constant=str) for line in text.splitlines()
    ]
    return {int(row["step"]): {k: v for k, v in row.items() if k not in NO_LOSSES} for row in rows}


def first_difference(a: Log, b: Log) -> Difference | None:
    """None when every step has the same losses with the same digits. A step or loss of one alone differs."""
    for step in sorted(a.keys() | b.keys()):
        one, other = a.get(step, {}), b.get(step, {})
        for loss in dict.fromkeys([*one, *other]) or ["every loss"]:
            if one.get(loss, NOTHING) != other.get(loss, NOTHING):
                return Difference(step, loss, one.get(loss, NOTHING), other.get(loss, NOTHING))
    return None


@contextmanager
def checked_out(revision: str, folder: Path) -> Iterator[Path]:
    """The tree of a revision below `folder`; "." is the working tree itself."""
    if revision == ".":
        yield ROOT
        return
    add = ["git", "-C", str(ROOT), "worktree", "add", "--quiet", "--detach", str(folder), revision]
    done = subprocess.run(add, capture_output=True, text=True)
    if done.returncode:
        raise DoesNotTrain(f"{revision}: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(folder)], check=True)


def losses_of(revision: str, recipe: Path, changes: Sequence[str], folder: Path) -> Log:
    """Trains a revision by its own code and reads its log."""
    folder.mkdir()
    with checked_out(revision, folder / "tree") as tree:
        command = [sys.executable, "-c", "from hilum.cli import main; main()", "train", str(recipe)]
        command += [*changes, *EXACT, "--out", str(folder / "out")]
        there = {"PYTHONPATH": str(tree / "src"), "HILUM_CACHE": str(folder / "cache")}
        alone = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, env={**os.environ, **there, **alone}, cwd=folder)
    log = folder / "out" / "log.jsonl"
    if done.returncode or not log.is_file():
        raise DoesNotTrain(f"{revision}: exit {done.returncode}")
    return read_log(log.read_text(encoding="utf-8"))


def compare(a: str, b: str, recipe: Path | None, changes: Sequence[str]) -> int:
    """Prints what two revisions say; the exit code."""
    with tempfile.TemporaryDirectory(prefix="same-loss-") as name:
        folder = Path(name)
        if recipe is None:
            recipe = folder / "same-loss.toml"
            recipe.write_text(RECIPE, encoding="utf-8")
        try:
            logs = [losses_of(r, recipe.resolve(), changes, folder / n) for r, n in ((a, "a"), (b, "b"))]
        except DoesNotTrain as error:
            print(error, file=sys.stderr)
            return 2
    found = first_difference(*logs)
    if found is None:
        names = ", ".join(dict.fromkeys(loss for row in logs[0].values() for loss in row))
        print(f"equal bit for bit: {len(logs[0])} steps of {names}")
        return 0
    print(f"different from step {found.step}, {found.loss}: {a} {found.a}, {b} {found.b}")
    return 1


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", help="a git revision, or . for the working tree")
    parser.add_argument("b", help="another")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="changes of the recipe")
    parser.add_argument("--recipe", type=Path, help="a recipe of `hilum train`")
    options = parser.parse_intermixed_args()
    return compare(options.a, options.b, options.recipe, options.changes)


if __name__ == "__main__":
    sys.exit(main())
