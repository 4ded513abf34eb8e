"""EXACT in small against its baselines: equal parameters, equal training time, one run, the same unseen
phantoms.

    python benchmarks/exact_compare.py [--minutes M] [--models exact clip_global organ_clip cam] [--cases 60]
        [--organs-from MODEL] [--given NAME=DIR] [--runs DIR] [--cache DIR] [--workers 2] [--jobs 1] [--smoke]

The models (docs/first-model.md, "The baselines"):

exact        organ-gated voxel maps from scan labels (recipes/phantom-small.toml)
clip_global  one globally pooled embedding per scan against whole reports, similarity maps (CLIP, CT-CLIP)
organ_clip   one embedding per organ against its sentences, similarity maps within the organ (fVLM)
cam          a globally pooled classifier with class-activation maps

All learn from the same phantoms with the same augmentation and seed on as many threads; with --jobs N, N at a
time. How long a step of each takes is measured in turns; every recipe's phases are then stretched by one
factor so that its steps take MINUTES (by default what EXACT's recipe takes as it is, or what a given EXACT
took). Thresholds, calibration and, where a model has two kinds of similarity map, the kind come from the same
validation phantoms. With --organs-from, all begin with what they have of that model's organ half (its
encoder at least), learn no organs, and spend all of their minutes on findings. What a killed run has done is
kept: the same command goes on there. A model that is already trained can be given if its card says that it is
comparable.

Writes benchmarks/results/exact_compare.json and .md (with --smoke into the folder of the runs).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hilum.cli.common import counted_bars
from hilum.cli.exam import EXAM_SEED
from hilum.errors import UsageError
from hilum.exam.choose import choose
from hilum.exam.compare import compare, goals
from hilum.exam.compare_table import as_json, as_markdown
from hilum.exam.metrics import nanmean
from hilum.exam.phantom_cases import CaseScore, Localisation, Protocol, score_seeds
from hilum.exam.unseen import require_unseen
from hilum.io.atomic import atomic_write
from hilum.io.fetch import cache_folder
from hilum.io.hashing import sha256_of
from hilum.io.weights import preset_data
from hilum.model.preset import READS_REPORTS, Preset, build_network
from hilum.read.scan_model import ScanModel
from hilum.train.budget import fill, minutes_apart, planned_minutes, step_seconds
from hilum.train.recipe import Recipe, load_recipe
from hilum.train.run import prepared, run_recipe, write_card

ROOT = Path(__file__).resolve().parent.parent
RECIPES = {
    "exact": "phantom-small",
    "clip_global": "phantom-small-clip",
    "organ_clip": "phantom-small-organ-clip",
    "cam": "phantom-small-cam",
}
SHARED = ("data", "augment", "seed", "threads", "precision")
"""Sections of EXACT's recipe that all recipes take over."""
APART = 0.1
"""Most that training times may differ, as a share of the longest."""
SMOKE = ("data.train=4", "data.siblings=2", "data.organ_patients=1", "data.validation=2", "data.work_mm=6.0",
         "data.workers=1", "data.spacing_mm=[6.0, 6.0, 6.0]", "optim.warmup=1", "threads=1")  # fmt: skip
COSINE = "cosine"


def recipes_of(models: Sequence[str], smoke: bool, organs_from: str | None = None) -> dict[str, Recipe]:
    """Each model's recipe, with what must be equal taken from EXACT's."""
    loaded = {}
    for name in dict.fromkeys(["exact", *models]):
        recipe = load_recipe(ROOT / "recipes" / f"{RECIPES[name]}.toml", SMOKE if smoke else ())
        assert isinstance(recipe, Recipe), "recipes of phantoms"
        recipe = shortened(recipe) if smoke else recipe
        loaded[name] = findings_alone(recipe, organs_from) if organs_from else recipe
    same = {key: getattr(loaded["exact"], key) for key in SHARED}
    return {name: loaded[name].model_copy(update=same) for name in models}


def shortened(recipe: Recipe) -> Recipe:
    """Every phase that it has, for a step or two."""
    optim = recipe.optim
    counts = {"organ_steps": 2, "box_steps": 1, "outline_steps": 1}
    short = {key: min(count, getattr(optim, key)) for key, count in counts.items()}
    return recipe.model_copy(
        update={"optim": optim.model_copy(update={**short, "steps": sum(short.values()) + 2})}
    )


def findings_alone(recipe: Recipe, organs_from: str) -> Recipe:
    """The same without steps and patients for organs: they are those of another model."""
    optim = recipe.optim
    steps = optim.steps - optim.organ_steps - optim.outline_steps
    alone = {"steps": steps, "organ_steps": 0, "outline_steps": 0, "organs_from": organs_from}
    return recipe.model_copy(
        update={
            "optim": optim.model_copy(update=alone),
            "data": recipe.data.model_copy(update={"organ_patients": 0}),
        }
    )


def require_comparable(name: str, folder: Path, recipe: Recipe, minutes: float | None) -> float:
    """Minutes that a given model was trained for.

    Raises:
        UsageError: `CONFIG_VALUE`, its card says that it learnt otherwise than the others will.
    """
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    told, wanted = card["recipe"], recipe.model_dump(mode="json")
    keys = ("method", "preset", *SHARED)
    wrong = [key for key in keys if _without_workers(told[key]) != _without_workers(wanted[key])]
    took = float(card["training_minutes"])
    if minutes is not None and minutes_apart([took, minutes]) > APART:
        wrong.append("training_minutes")
    if wrong:
        raise UsageError(
            "CONFIG_VALUE",
            f"a given {name} learnt from the same phantoms, with the same augmentation, for as long",
            expected={key: wanted.get(key, minutes) for key in wrong},
            got={key: told.get(key, took) for key in wrong},
            path=folder,
            hint="Leave it out to train it here, or say --minutes.",
        )
    return took


def _without_workers(value: Any) -> Any:
    return {k: v for k, v in value.items() if k != "workers"} if isinstance(value, dict) else value


def planned(
    recipes: dict[str, Recipe], minutes: float | None, patients: list[list[Path]], runs: Path, rounds: int
) -> dict[str, Any]:
    """Steps of every recipe for equal minutes; measured once per run folder."""
    path = runs / "plan.json"
    asked = {name: recipe.model_dump(mode="json") for name, recipe in recipes.items()}
    if path.is_file():
        plan = json.loads(path.read_text(encoding="utf-8"))
        if plan["asked"] == asked and plan["minutes_asked"] == minutes:
            return plan
        raise UsageError(
            "CONFIG_VALUE", "a run goes on with the recipes that it began with", got="others", path=path,
            hint="Choose another --runs folder.",
        )  # fmt: skip
    jobs = {name: (recipe, Preset.from_dict(preset_data(recipe.preset))) for name, recipe in recipes.items()}
    seconds = step_seconds(jobs, patients, rounds=rounds)
    own = "exact" if "exact" in recipes else next(iter(recipes))
    budget = minutes or planned_minutes(recipes[own].optim, seconds[own])
    filled = {name: fill(recipe, seconds[name], budget) for name, recipe in recipes.items()}
    plan = {
        "asked": asked,
        "minutes_asked": minutes,
        "minutes": budget,
        "seconds": seconds,
        "recipes": {name: recipe.model_dump(mode="json") for name, recipe in filled.items()},
    }
    write_json(path, plan)
    return plan


def trained(
    recipes: dict[str, Recipe], runs: Path, patients: list[list[Path]], cache: Path, jobs: int
) -> dict[str, Path]:
    """Each model's folder, trained or gone on with; `jobs` at a time, each in a process of its own."""
    folders = {name: runs / name for name in recipes}
    todo = [name for name in recipes if not _is_trained(folders[name], recipes[name])]
    # spawn: fork and torch's thread pool do not mix
    context = multiprocessing.get_context("spawn")
    with counted_bars() as bars, ProcessPoolExecutor(jobs, mp_context=context) as pool:
        rows = {name: bars.add_task(f"training {name}", total=recipes[name].optim.steps) for name in todo}
        running = {
            name: pool.submit(run_recipe, recipes[name], folders[name], cache, patients=patients)
            for name in todo
        }
        while running:
            wait(running.values(), timeout=2, return_when=FIRST_COMPLETED)
            for name, row in rows.items():
                bars.update(row, completed=_steps_done(folders[name]))
            for name in [name for name, future in running.items() if future.done()]:
                running.pop(name).result()
    return folders


def _is_trained(folder: Path, recipe: Recipe) -> bool:
    card = folder / "card.json"
    if not card.is_file():
        return False
    return json.loads(card.read_text(encoding="utf-8"))["recipe"] == recipe.model_dump(mode="json")


def _steps_done(folder: Path) -> int:
    log = folder / "log.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    # the last line may be half written
    return max((json.loads(line)["step"] + 1 for line in lines if line.endswith("}")), default=0)


def candidates(name: str, folder: Path, recipe: Recipe) -> list[Path]:
    """The folder, and beside it the same weights with the other kind of similarity map."""
    if recipe.method not in READS_REPORTS:
        return [folder]
    other = folder.with_name(f"{folder.name}-{COSINE}")
    other.mkdir(exist_ok=True)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    write_card(other, card | {"similarity": COSINE})
    target = other / "model.safetensors"
    if not target.is_file() or sha256_of(target) != card["sha256"]:
        with atomic_write(target) as file:
            file.write((folder / "model.safetensors").read_bytes())
    return [folder, other]


def scored(
    seeds: range, folders: Sequence[Path], protocol: Protocol, store: Path, workers: int, what: str
) -> list[list[CaseScore]]:
    """Cases of every folder, per phantom; those of an earlier, cut run are read back."""
    asked = {"folders": [_identity(folder) for folder in folders], "protocol": asdict(protocol)}
    done: dict[int, list[CaseScore]] = {}
    if store.is_file():
        head, *rows = store.read_text(encoding="utf-8").splitlines()
        if json.loads(head) == json.loads(json.dumps(asked)):
            done = {row[0]["seed"]: [case_from(one) for one in row] for row in map(json.loads, rows)}
    left = [seed for seed in seeds if seed not in done]
    lines = [json.dumps(asked)] + [json.dumps([c.as_dict() for c in row]) for row in done.values()]
    with counted_bars() as bars:
        task = bars.add_task(what, total=len(seeds), completed=len(done))
        for row in score_seeds(left, [str(f) for f in folders], protocol=protocol, workers=workers):
            done[row[0].seed] = row
            lines.append(json.dumps([c.as_dict() for c in row]))
            with atomic_write(store) as file:
                file.write(("\n".join(lines) + "\n").encode())
            bars.advance(task)
    return [done[seed] for seed in seeds]


def _identity(folder: Path) -> list[Any]:
    """What scores depend on; thresholds are applied later."""
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    return [card["sha256"], card.get("similarity")]


def case_from(data: dict[str, Any]) -> CaseScore:
    """The inverse of `CaseScore.as_dict`."""
    found = {slug: Localisation(**one) for slug, one in data["findings"].items()}
    return CaseScore(**{**data, "findings": found})


def best_dice(cases: Sequence[CaseScore], chosen: dict[str, Any]) -> float:
    """Mean over findings of the Dice at the chosen thresholds."""
    found = compare({"one": cases}, {"one": chosen["map_thresholds"]}, draws=1)
    return nanmean([row.value for row in found.findings["one"]["dice"]])


def chosen_folders(
    folders: dict[str, Path], recipes: dict[str, Recipe], runs: Path, workers: int
) -> dict[str, Path]:
    """Thresholds, calibration and kind of map from the validation phantoms, written into the cards."""
    data = next(iter(recipes.values())).data
    protocol = Protocol(data.work_mm, data.spacing_mm)
    seeds = range(data.validation_seed, data.validation_seed + data.validation)
    tried = {name: candidates(name, folder, recipes[name]) for name, folder in folders.items()}
    flat = [folder for group in tried.values() for folder in group]
    rows = scored(seeds, flat, protocol, runs / "validation.jsonl", workers, "validation phantoms")
    picked: dict[str, Path] = {}
    for name, group in tried.items():
        columns = [[row[flat.index(folder)] for row in rows] for folder in group]
        choices = [choose(cases) for cases in columns]
        dices = [best_dice(cases, choice) for cases, choice in zip(columns, choices, strict=True)]
        best = max(range(len(group)), key=lambda i: (dices[i], -i))
        card = json.loads((group[best] / "card.json").read_text(encoding="utf-8"))
        told = {folder.name: round(dice, 4) for folder, dice in zip(group, dices, strict=True)}
        write_card(group[best], card | choices[best] | {"validation_dice": told})
        picked[name] = group[best]
    return picked


def write_json(path: Path, data: Any) -> None:
    """Written beside and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write((json.dumps(data, indent=1) + "\n").encode())


def facts_of(name: str, folder: Path, recipe: Recipe, given: bool) -> dict[str, Any]:
    """What the table says of a model besides its scores."""
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    network = build_network(Preset.from_dict(preset_data(card["preset"])))
    return {
        "model": name,
        "preset": card["preset"],
        "parameters": sum(p.numel() for p in network.parameters()),
        "steps": card["recipe"]["optim"]["steps"],
        "lr": [card["recipe"]["optim"][key] for key in ("lr", "box_lr", "finding_lr")],
        "organs_from": card["recipe"]["optim"]["organs_from"],
        "training_minutes": card["training_minutes"],
        "given": given,
        "map": card.get("similarity", "share") if recipe.method in READS_REPORTS else None,
        "validation_dice": card["validation_dice"],
        "sha256": card["sha256"],
    }


def notes_of(facts: Sequence[dict[str, Any]], command: str, cases: int) -> list[str]:
    """The head of the page."""
    apart = minutes_apart([row["training_minutes"] for row in facts])
    lines = [
        f"`{command}`",
        "",
        f"{cases} unseen synthetic phantoms (seeds {EXAM_SEED} to {EXAM_SEED + cases - 1}); intervals are "
        "95 % bootstraps by patient, 1000 draws, seed 0, the same draws for all models. Thresholds come from "
        f"validation phantoms. {platform.processor() or platform.machine()}, {os.cpu_count()} CPU cores. "
        f"Training times lie {100 * apart:.0f} % apart.{_begun(facts)}",
        "",
        "| model | parameters | steps | training, minutes | learning rate | map |",
        "|---|---|---|---|---|---|",
    ]
    for row in facts:
        rates = ", ".join(f"{rate:g}" for rate in row["lr"] if rate is not None)
        name = row["model"] + (" (given)" if row["given"] else "")
        told = (
            name,
            f"{row['parameters']:,}",
            row["steps"],
            row["training_minutes"],
            rates,
            row["map"] or "–",
        )
        lines.append("| " + " | ".join(map(str, told)) + " |")
    return lines


def _begun(facts: Sequence[dict[str, Any]]) -> str:
    begun = {row["organs_from"] for row in facts} - {None}
    if not begun:
        return ""
    return (
        f" All begin with what they have of the organ half of {', '.join(sorted(begun))}, at least its "
        "encoder; the minutes of its training are not counted."
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=None)
    parser.add_argument("--models", nargs="+", choices=sorted(RECIPES), default=list(RECIPES))
    parser.add_argument(
        "--organs-from", default=None, metavar="MODEL", help="whose organ half all begin with"
    )
    parser.add_argument("--given", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="models trained at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/exact_compare"))
    parser.add_argument("--cache", type=Path, default=None, help="of prepared phantoms")
    parser.add_argument("--smoke", action="store_true", help="tiny phantoms and a few steps: does it run?")
    return parser.parse_args()


def made_ready(
    options: argparse.Namespace, models: Sequence[str], recipes: dict[str, Recipe]
) -> tuple[dict[str, Path], frozenset[str]]:
    """Every model's folder, trained or given, and which were given."""
    given = {name: Path(folder) for name, _, folder in (told.partition("=") for told in options.given)}
    if unknown := sorted(set(given) - set(models)):
        raise UsageError(
            "OPTION_UNKNOWN", "a given model is one of those compared", expected=models, got=unknown
        )
    minutes = options.minutes
    if minutes is None and "exact" in given:
        minutes = require_comparable("exact", given["exact"], recipes["exact"], None)
    for name, folder in given.items():
        require_comparable(name, folder, recipes[name], minutes)
    folders = {name: adopted(name, folder, options.runs) for name, folder in given.items()}
    todo = {name: recipe for name, recipe in recipes.items() if name not in given}
    if todo:
        cache = options.cache or cache_folder()
        own = recipes_of(["exact"], options.smoke, options.organs_from)["exact"]
        patients = phantoms(own, cache)
        plan = planned(todo, minutes, patients, options.runs, 1 if options.smoke else 3)
        filled = {name: Recipe.model_validate(plan["recipes"][name]) for name in todo}
        folders |= trained(filled, options.runs, patients, cache, options.jobs)
    return {name: folders[name] for name in models}, frozenset(given)


def phantoms(recipe: Recipe, cache: Path) -> list[list[Path]]:
    """The training phantoms that all models share."""
    with counted_bars() as bars:

        def track(items: Any, total: int, what: str) -> Any:
            row = bars.add_task(what, total=total)
            for item in items:
                bars.advance(row)
                yield item

        return prepared(recipe, cache, track=track)


def adopted(name: str, folder: Path, runs: Path) -> Path:
    """A copy of a given model: its thresholds will be chosen anew, and its folder stays as it is."""
    ours = runs / f"{name}-given"
    ours.mkdir(parents=True, exist_ok=True)
    for file_name in ("model.safetensors", "card.json"):
        with atomic_write(ours / file_name) as file:
            file.write((folder / file_name).read_bytes())
    return ours


def main() -> int:
    """The command."""
    options = arguments()
    cases = min(options.cases, 4) if options.smoke else options.cases
    models = [name for name in RECIPES if name in options.models]
    recipes = recipes_of(models, options.smoke, options.organs_from)
    folders, given = made_ready(options, models, recipes)
    for folder in folders.values():
        require_unseen(ScanModel.load(str(folder)).card, EXAM_SEED, cases)
    picked = chosen_folders(folders, recipes, options.runs, options.workers)
    protocol = Protocol(6.0, (6.0, 6.0, 6.0)) if options.smoke else Protocol()
    seeds = range(EXAM_SEED, EXAM_SEED + cases)
    store = options.runs / "exam.jsonl"
    rows = scored(seeds, list(picked.values()), protocol, store, options.workers, "exam phantoms")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(picked)}
    thresholds = {name: ScanModel.load(str(folder)).map_thresholds for name, folder in picked.items()}
    found = compare(columns, thresholds)
    listed = goals(found, "clip_global" if "clip_global" in models else None)
    facts = [facts_of(name, picked[name], recipes[name], name in given) for name in models]
    command = " ".join(["python benchmarks/exact_compare.py", *sys.argv[1:]])
    page = as_markdown(found, listed, notes_of(facts, command, cases))
    results = options.runs if options.smoke else ROOT / "benchmarks" / "results"
    body = {
        "what": "EXACT in small and its baselines on unseen synthetic phantoms, one run",
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "seeds": [seeds.start, seeds.stop - 1],
        "facts": facts,
        **as_json(found, listed),
    }
    write_json(results / "exact_compare.json", body)
    with atomic_write(results / "exact_compare.md") as file:
        file.write(page.encode())
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
