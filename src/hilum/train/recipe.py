"""A recipe is data: TOML in, checked values out; an unknown key is refused with the nearest name."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hilum.errors import UsageError


class Strict(BaseModel):
    """No unknown keys, no changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataRecipe(Strict):
    """Phantoms to train and validate on. Seeds never overlap: train, validation and exam count from
    different bases."""

    train: int = Field(300, ge=1, description="phantoms to train on (scans)")
    siblings: int = Field(1, ge=1, description="scans per training patient: one anatomy, other findings")
    changes: int | None = Field(
        None, ge=1, description="findings that came or went between siblings; None draws each scan's anew"
    )
    organ_patients: int = Field(
        0, ge=0, description="more training patients, one scan each, for steps that learn no findings"
    )
    validation: int = Field(40, ge=1, description="phantoms to choose thresholds on")
    seed: int = Field(1_000_000, description="seed of the first training phantom")
    validation_seed: int = Field(5_000_000, description="seed of the first validation phantom")
    work_mm: float = Field(2.5, gt=0, description="voxel of the phantom's working world, mm")
    spacing_mm: tuple[float, float, float] | None = Field(
        (1.6, 1.6, 2.5),
        description="written spacing of training scans, mm; None keeps each plan's own (slower)",
    )
    prevalence: float | None = Field(
        None, gt=0, lt=1, description="chance of each finding in training phantoms; None draws as usual"
    )
    workers: int = Field(2, ge=1, description="processes that make phantoms")

    @property
    def families(self) -> int:
        """Training patients that have siblings."""
        return self.train // self.siblings

    @property
    def patients(self) -> int:
        """All training patients; their seeds count from `seed`."""
        return self.families + self.organ_patients


class AugmentRecipe(Strict):
    """How far appearance and shape are varied at every step."""

    rotate_deg: float = 8.0
    scale: float = 0.12
    shift_mm: float = 12.0
    gain: float = 0.08
    offset_hu: float = 30.0
    organ_offset_hu: float = 150.0
    noise_hu: float = 40.0
    blur_chance: float = 0.25
    fat_chance: float = Field(0.0, ge=0, le=1, description="of fat in the heart's outer mm, in organ_steps")
    fat_mm: float = Field(16.0, ge=0, description="its largest depth")


class OptimRecipe(Strict):
    """AdamW with warm-up and cosine in each phase, gradients clipped, an average of the weights kept."""

    steps: int = Field(2400, ge=1)
    organ_steps: int = Field(
        0, ge=0, description="first steps: organs alone, then findings alone; 0 trains both at once"
    )
    box_steps: int = Field(
        0, ge=0, description="after organ_steps: findings in boxes of siblings; then findings in whole scans"
    )
    box_scans: int = Field(2, ge=2, description="scans of one patient per step of box_steps")
    box_lr: float | None = Field(None, gt=0, description="of box_steps; None is lr")
    organs_from: str | None = Field(
        None, description="a model whose organs and outlines to begin with; those of EXACT then rest"
    )
    outline_steps: int = Field(0, ge=0, description="last steps: organ borders at half the voxel, alone")
    lr: float = Field(2e-3, gt=0)
    finding_lr: float | None = Field(None, gt=0, description="after organ_steps; None is lr")
    outline_lr: float | None = Field(None, gt=0, description="of outline_steps; None is lr")
    weight_decay: float = 1e-2
    beta2: float = Field(0.99, ge=0, lt=1, description="AdamW's memory of squared gradients")
    scans: int = Field(1, ge=1, description="scans of one patient per step")
    warmup: int = 40
    clip: float = Field(1.0, description="largest gradient norm of each clipped group")
    clip_by_module: bool = Field(
        False, description="clip encoder, decoders and heads apart, so that one loss cannot silence the other"
    )
    ema: float = Field(0.99, ge=0, lt=1)


class ObjectiveRecipe(Strict):
    """Weights of the losses; see `objective/`."""

    tversky_fp: float = 0.3
    tversky_fn: float = 0.7
    focal_alpha: float = 0.9
    anomaly_weight: float = Field(1.0, ge=0, description="weight of the scan labels' cross-entropy")
    rank_prob_weight: float = Field(
        0.0, ge=0, description="weight of ranking a patient's scans by probability; needs optim.scans > 1"
    )
    rank_weight: float = Field(0.0, ge=0, description="weight of ranking them by log-sum-exp of all voxels")
    boxes: int = Field(6, ge=1, description="boxes per step of optim.box_steps, each of another patient")
    explain: bool = Field(True, description="findings of a scan share each voxel's vote (objective.siblings)")
    votes_for: float = Field(1.0, gt=0, description="weight of a voxel's vote for a finding; against: 1")
    coarse_weight: float = Field(0.5, ge=0, description="weight of the coarse organ heads of a deep network")
    gate: Literal["predicted", "given", "either"] = "either"
    pool: Literal["volume", "paper"] = "volume"


class RunRecipe(Strict):
    """What every training run has, whatever its method."""

    name: str
    seed: int = 0
    threads: int | None = Field(None, description="CPU threads; None leaves torch's choice")
    precision: Literal["fp32", "bf16"] = Field(
        "bf16", description="of matrix products; a CPU without bfloat16 computes in fp32 all the same"
    )
    device: str = "auto"
    parallel: Literal["ddp", "fsdp"] = Field("ddp", description="how several processes share the work")
    checkpoint_every: int = Field(100, ge=1, description="steps")
    track: tuple[Literal["tensorboard", "mlflow"], ...] = Field((), description="besides log.jsonl")


class Recipe(RunRecipe):
    """A run on phantoms.

    `method` names a file of `train/methods/`; `preset` one of `model/presets/`.
    """

    method: Literal["exact_small", "cam", "clip_global", "organ_clip"]
    preset: str
    data: DataRecipe = Field(default_factory=lambda: DataRecipe.model_validate({}))
    augment: AugmentRecipe = Field(default_factory=lambda: AugmentRecipe.model_validate({}))
    optim: OptimRecipe = Field(default_factory=lambda: OptimRecipe.model_validate({}))
    objective: ObjectiveRecipe = Field(default_factory=lambda: ObjectiveRecipe.model_validate({}))


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> RunRecipe:
    """Read a recipe of any method and apply `key.sub=value` overrides.

    Paths in the file are relative to it, those of overrides to the working directory.

    Raises:
        UsageError: `CONFIG_KEY` for an unknown key, `CONFIG_VALUE` for a bad value, `CONFIG_FILE` for a file
            that cannot be read.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError("CONFIG_FILE", "a recipe is a readable TOML file", got=error, path=path) from None
    # a stage needs torch, which a recipe of phantoms and its tests need not wait for
    from hilum.train.stage_recipe import beside_recipe

    beside_recipe(data, path.parent)
    for text in overrides:
        _override(data, text)
    kind = kind_of(str(data.get("method", "")))
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _explain(error, kind, path) from None


def kind_of(method: str) -> type[RunRecipe]:
    """Which recipe a method has."""
    if method == "radfinder":
        from hilum.train.joint_recipe import JointRecipe

        return JointRecipe
    if method == "exact-chat":
        from hilum.train.chat_recipe import ChatRecipe

        return ChatRecipe
    if method == "exact":
        from hilum.train.exact_recipe import ExactRecipe

        return ExactRecipe
    if method in ("exact-classify", "exact-seg"):
        from hilum.train.adapt_recipe import ClassifyRecipe, SegmentRecipe

        return ClassifyRecipe if method == "exact-classify" else SegmentRecipe
    if method.startswith("flexict"):
        from hilum.train.stage_recipe import StageRecipe

        return StageRecipe
    return Recipe


def _override(data: dict, text: str) -> None:
    key, sign, value = text.partition("=")
    if not sign:
        raise UsageError("CONFIG_KEY", "an override reads key=value", expected="optim.steps=10", got=text)
    *parents, last = key.strip().split(".")
    for name in parents:
        data = data.setdefault(name, {})
    try:
        data[last] = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        data[last] = value.strip()


def _explain(error: ValidationError, kind: type[BaseModel], path: Path) -> UsageError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] not in ("extra_forbidden", "unexpected_keyword_argument"):
        return UsageError(
            "CONFIG_VALUE", f"recipe key {where}: {first['msg']}", got=repr(first.get("input")), path=path
        )
    known = _keys_beside(kind, first["loc"][:-1])
    near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Known keys: {', '.join(known)}."
    return UsageError(
        "CONFIG_KEY", "a recipe has only known keys", expected="a known key", got=where, path=path, hint=hint
    )


def _keys_beside(kind: type[BaseModel], parents: tuple[int | str, ...]) -> list[str]:
    """Keys of the section that `parents` lead to; numbers count the entries of a list."""
    section: Any = kind
    for part in parents:
        if isinstance(part, str):
            section = _model_in(section.model_fields[part].annotation)
    if dataclasses.is_dataclass(section):
        return [f.name for f in dataclasses.fields(section)]
    return list(section.model_fields)


def _model_in(annotation: Any) -> Any:
    """The section within `Section | None`, `tuple[Section, ...]` and the like."""
    inner = [part for part in get_args(annotation) if part not in (type(None), Ellipsis)]
    return _model_in(inner[0]) if inner else annotation
