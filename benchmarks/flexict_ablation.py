"""What each stage of FlexiCT's pretraining adds: frozen features of every stage on one cohort, in one run.

    python benchmarks/flexict_ablation.py --cohort PREPARED --encoder "2D only=DIR"
        --encoder "3D from scratch=DIR" --encoder "2D to 3D=DIR" --encoder "2D to 3D, text=DIR"
        [--fraction 0.1 0.25 1] [--patch 8] [--every 4] [--bf16] [--device cpu]

PREPARED is what `hilum prepare --prep PRESET` left, DIR an encoder folder that a stage exported. Beside them
stand the same network with fresh weights, densities alone and no information (docs/exam-frozen.md).

Writes benchmarks/results/flexict_ablation.json and .md. The claims of the method are judged by the paired
interval of a difference of macro AUROC: a claim "holds" when all of it is above 0, "is refuted" when all of
it is below, and "is open" otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from hilum.cli.exam_frozen import progress_bars
from hilum.exam.frozen import FrozenResult, examine_frozen
from hilum.exam.frozen_measure import FRACTIONS, Difference
from hilum.exam.frozen_models import Looking
from hilum.exam.frozen_table import as_markdown
from hilum.io.atomic import atomic_write
from hilum.io.fetch import cache_folder

RESULTS = Path(__file__).parent / "results"
CLAIMS = (
    ("2D to 3D", "3D from scratch"),
    ("2D to 3D, text", "3D from scratch"),
    ("2D to 3D, text", "2D to 3D"),
)
"""What FlexiCT's stages promise: the first is better than the second."""


def verdicts(result: FrozenResult) -> list[dict[str, Any]]:
    """Each claim under each probe with all training patients."""
    found = []
    for better, worse in CLAIMS:
        for row in result.differences:
            names = {row.first: 1, row.second: -1}
            wanted = (f"{better}: volume", f"{worse}: volume")
            if row.fraction == 1 and set(names) == set(wanted):
                found.append(_verdict(better, worse, row, names[wanted[0]]))
    return found


def _verdict(better: str, worse: str, row: Difference, sign: int) -> dict[str, Any]:
    value = sign * row.value.value
    low, high = sorted((sign * row.value.low, sign * row.value.high))
    says = "holds" if low > 0 else "is refuted" if high < 0 else "is open"
    return {
        "claim": f"{better} is better than {worse}",
        "probe": row.probe,
        "difference": [round(x, 4) for x in (value, low, high)],
        "verdict": says,
    }


def also(folders: list[Path], names: list[str], cohort: Path, looking: Looking) -> list[dict[str, Any]]:
    """Macro figures with the maximum over patches beside CLS and mean."""
    more = Looking(**{**vars(looking), "pooling": "cls+mean+max"})
    result = examine_frozen(folders, cohort, names=names, looking=more, fractions=(1.0,))
    keys = ("features", "probe", "macro_auroc", "macro_average_precision")
    return [{key: row.as_dict()[key] for key in keys} for row in result.rows]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--encoder", action="append", required=True, metavar="NAME=DIR")
    parser.add_argument("--fraction", type=float, nargs="+", default=list(FRACTIONS))
    parser.add_argument("--patch", type=int, default=None, help="voxels; each encoder's own when not given")
    parser.add_argument(
        "--every", type=int, default=4, help="one axial slice in so many, for models of slices"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="the encoders' matrix products in bfloat16")
    parser.add_argument("--out", type=Path, default=RESULTS / "flexict_ablation.json")
    options = parser.parse_args()
    pairs = [told.partition("=") for told in options.encoder]
    names, folders = [name for name, _, _ in pairs], [Path(folder) for _, _, folder in pairs]
    cache = cache_folder() / "features"
    looking = Looking(
        patch=options.patch, every=options.every, bf16=options.bf16, device=options.device, cache=cache
    )
    with progress_bars() as steps:
        result = examine_frozen(
            folders, options.cohort, names=names, looking=looking, fractions=options.fraction, steps=steps
        )
    claims = verdicts(result)
    facts = {
        "what": "frozen features of every stage of FlexiCT's pretraining, probed on one cohort in one run",
        "command": "python benchmarks/flexict_ablation.py --cohort PREPARED "
        + " ".join(f'--encoder "{name}=DIR"' for name in names)
        + f" --fraction {' '.join(map(str, options.fraction))} --every {options.every}"
        + (f" --patch {options.patch}" if options.patch else "")
        + (" --bf16" if options.bf16 else ""),
        "date": time.strftime("%Y-%m-%d"),
        "claims": claims,
        **result.as_dict(),
        "with_maximum": also(folders, names, options.cohort, looking),
    }
    lines = [f"- {row['claim']} ({row['probe']}): {row['verdict']}, {row['difference']}" for row in claims]
    text = "\n".join(["# Ablation of the stages", "", *lines, "", as_markdown(result)])
    for path, body in (
        (options.out, json.dumps(facts, indent=1, allow_nan=False) + "\n"),
        (options.out.with_suffix(".md"), text),
    ):
        with atomic_write(path) as file:
            file.write(body.encode("utf-8"))
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
