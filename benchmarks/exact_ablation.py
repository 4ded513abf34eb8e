"""What each choice of EXACT's objective does: one run per option, equal steps, one cohort.

    python benchmarks/exact_ablation.py --cohort PREPARED [--recipe recipes/exact-nano.toml] [--steps 400]
        [--option NAME ...] [--split test] [--out benchmarks/results/exact_ablation.json]

PREPARED is what `hilum prepare --prep PRESET --masks SOURCE` left. Every run starts from the same weights and
sees the same scans in the same order; what is different is one key of the recipe. Each is judged on the split
that no run saw, by macro AUROC with a 95 % interval over patients, and by the paired difference to the base
on the same draws. Results go to JSON and, beside it, Markdown; a second call goes on where the first stopped
(`--runs` keeps the folders).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from hilum.exam.bootstrap import Interval, auroc_draws, interval, macro_draws, patient_draws
from hilum.io.atomic import atomic_write
from hilum.objective.dense_rule import DenseRule
from hilum.objective.roc import auroc
from hilum.read.scan_model import ScanModel
from hilum.text.vocabulary import SLUGS
from hilum.train.exact_data import ExactScans
from hilum.train.exact_recipe import ExactRecipe
from hilum.train.exact_run import run_exact
from hilum.train.exact_scans import scans_of
from hilum.train.exact_valid import scan_probabilities
from hilum.train.recipe import load_recipe

RESULTS = Path(__file__).parent / "results" / "exact_ablation.json"
OPTIONS: dict[str, tuple[str, ...]] = {
    "base": (),
    "soft gate": ("rule.gate=soft",),
    "given gate": ("rule.gate=given",),
    "either gate": ("rule.gate=either",),
    "no guard": ("rule.guard=false",),
    "one organ per finding": ("rule.opened_by=paper",),
    "log-mean-exp": ("rule.pool=lse",),
    "volume in ml": ("rule.pool=volume",),
    "read with 3 voxels": ("rule.k_read=3",),
    "organ prior": ("losses.prior=0.5",),
    "published prevalence": ("losses.prevalence=paper",),
    "organ loss that stays": ("losses.organs_floor=2.0",),
    "augmented less": ("augment.gain=0.0", "augment.offset=0.0", "augment.shift_vox=0"),
}
"""One key of the recipe each (a family of keys where they belong together)."""


def answers_of(folder: Path, recipe: ExactRecipe, scans: ExactScans) -> np.ndarray:
    """Probabilities of every scan, [N, 18]."""
    import torch

    model = ScanModel.load(str(folder))
    rule = DenseRule.from_facts(model.card["rule"])
    return scan_probabilities(model.network, scans, rule, torch.device("cpu"), recipe.shape_vox)


def macro_of(answers: np.ndarray, scans: ExactScans, draws: np.ndarray) -> tuple[float, np.ndarray]:
    """Macro AUROC over the findings with both classes, and in every draw."""
    truth = scans.labels.numpy()
    values, drawn = [], []
    for d in range(len(SLUGS)):
        known = ~np.isnan(truth[:, d])
        present = truth[known, d] > 0.5
        scores = answers[known, d].astype(np.float64)
        values.append(auroc(scores, present))
        drawn.append(auroc_draws(scores, present, draws[:, known]))
    known_values = [v for v in values if not math.isnan(v)]
    return float(np.mean(known_values)), macro_draws(np.stack(drawn, axis=1))


def as_list(found: Interval) -> list[float]:
    """Value and interval, rounded."""
    return [round(float(x), 4) for x in found]


def markdown(facts: dict[str, Any]) -> str:
    """The table."""
    lines = [
        "# Ablation of EXACT's objective", "", f"{facts['what']}. `{facts['command']}`, {facts['date']}.", "",
        "| option | changed | macro AUROC (95 %) | minus base (95 %) |", "|---|---|---|---|",
    ]  # fmt: skip
    for row in facts["rows"]:
        told = [" to ".join(f"{x:.3f}" for x in row[k][1:]) for k in ("macro_auroc", "difference")]
        changed = ", ".join(row["changed"]) or "-"
        lines.append(
            f"| {row['option']} | {changed} | {row['macro_auroc'][0]:.3f} ({told[0]}) | "
            f"{row['difference'][0]:+.3f} ({told[1]}) |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--prep", default="exact-6mm")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/exact-nano.toml"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--option", nargs="+", default=list(OPTIONS), choices=list(OPTIONS))
    parser.add_argument("--split", default="test")
    parser.add_argument("--runs", type=Path, default=Path("runs/exact-ablation"))
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    wanted = ["base", *(name for name in options.option if name != "base")]
    data = f'data=[{{cohort="{options.cohort}", prep="{options.prep}"}}]'
    rows: list[dict[str, Any]] = []
    base: tuple[float, np.ndarray] | None = None
    for name in wanted:
        keys = (data, f"steps={options.steps}", f"name=exact-{name.replace(' ', '-')}", *OPTIONS[name])
        recipe = load_recipe(options.recipe, keys)
        assert isinstance(recipe, ExactRecipe), "the ablation is one of EXACT"
        began = time.monotonic()
        folder = run_exact(recipe, options.runs / name.replace(" ", "-"))
        scans = scans_of(recipe.data, options.split)
        draws = patient_draws(scans.patients, options.draws, seed=0)
        value, drawn = macro_of(answers_of(folder, recipe, scans), scans, draws)
        base = base or (value, drawn)
        rows.append(
            {
                "option": name,
                "changed": list(OPTIONS[name]),
                "macro_auroc": as_list(interval(value, drawn)),
                "difference": as_list(interval(value - base[0], drawn - base[1])),
                "minutes": round((time.monotonic() - began) / 60, 1),
            }
        )
    facts = {
        "what": (
            f"{len(scans)} scans of {len(set(scans.patients))} patients that no run saw, "
            f"{options.steps} steps each"
        ),
        "command": f"python benchmarks/exact_ablation.py --cohort PREPARED --steps {options.steps}",
        "date": time.strftime("%Y-%m-%d"),
        "synthetic": all(p.startswith("phantom:") for p in scans.patients),
        "seed": recipe.seed,
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for path, body in (
        (options.out, json.dumps(facts, indent=1) + "\n"),
        (options.out.with_suffix(".md"), markdown(facts)),
    ):
        with atomic_write(path) as file:
            file.write(body.encode("utf-8"))
    print(markdown(facts))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
