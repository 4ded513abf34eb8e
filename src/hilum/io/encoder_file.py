"""An encoder as a folder: config.json, model.safetensors, card.json and, where it reads text, tokenizer.json.

What the stages of pretraining export, `hilum import` writes and `hilum.load` reads. Data only: no code, no
pickle, weights in float32 or float16. Whether tensors fit the network is `model.encoder`'s to say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open

from hilum.errors import WeightsError
from hilum.io.atomic import atomic_folder
from hilum.io.weights import load_weights, save_weights

FORMAT = 1
CONFIG, WEIGHTS, TOKENIZER, CARD = "config.json", "model.safetensors", "tokenizer.json", "card.json"
MOST_BYTES = {CONFIG: 2**20, CARD: 2**22, TOKENIZER: 2**26}
"""Budgets of the files that are read as text."""

DTYPES = ("float32", "float16")
CARD_KEYS: Mapping[str, type] = {"name": str, "synthetic": bool, "trained_on": str, "licence": str}
"""What a card says at least."""

Kind = Literal["2d", "3d", "3d-vlm", "3d-joint"]
READS_TEXT: tuple[Kind, ...] = ("3d-vlm", "3d-joint")
"""Kinds that were trained with texts."""

PatchVox = Annotated[int, Field(ge=1, le=256)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TextConfig(_Strict):
    """The text tower of a kind that reads texts.

    Attributes:
        config: of the Hugging Face module. pooling: of its tokens. max_tokens: a text is cut there.
        prefix: stands before every text. lower: texts are lower-cased first, as in training.
        encoder: name of the tower whose weights are not in the folder (`io.hub.FETCHED`); None: they are.
        heads: of the pooling ``mean-query``, which has some (`model.mean_query`).
    """

    config: dict[str, Any]
    pooling: Literal["mean", "last", "attention", "cls", "mean-query"]
    max_tokens: int = Field(256, ge=2, le=32768)
    prefix: str = ""
    lower: bool = False
    encoder: str | None = None
    heads: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _whole(self) -> TextConfig:
        if (self.heads is not None) != (self.pooling == "mean-query"):
            raise ValueError("heads belong to the pooling mean-query, which has some")
        return self


class PooledConfig(_Strict):
    """Patches that are mapped into the space of texts one by one and pooled there (`model.mean_query`), in
    the stead of a linear map of CLS and mean patch.

    Attributes:
        heads: of the pooling.
    """

    heads: int = Field(12, ge=1)


class ReaderRef(_Strict):
    """A model that reads scans, in the stead of a backbone: not in the folder, known by name and hash."""

    name: str = Field(min_length=1)
    sha256: str = Field(pattern="[0-9a-f]{64}")


class JointConfig(_Strict):
    """What puts the windows of a scan, and its depths, into one space with texts (`model.radfinder`).

    Attributes:
        width, depth, heads: of the combiner. frame: where depths lie (`model.combiner`). hidden, bottleneck:
            of the heads.
    """

    width: int = Field(1080, ge=1)
    depth: int = Field(4, ge=1)
    heads: int = Field(12, ge=1)
    frame: Literal["published", "shared"] = "published"
    hidden: int = Field(2048, ge=1)
    bottleneck: int = Field(256, ge=1)


class EncoderConfig(_Strict):
    """config.json.

    Attributes:
        kind: what was trained: slices, volumes, volumes with reports, windows of volumes with reports and
            with sentences about their depths.
        backbone: a preset as in `model/presets/`. prep: facts of the pipeline of its volumes (kind 2d: of its
            slices). prep_2d: of slices, where a model of volumes was trained on them as well.
        patch: of a call that names none, voxels: one number, or one per axis of a volume. text: None without
            reports. embedding: numbers of the common space. field_vox: voxels per axis that a model of
            volumes saw at once, on the axes of `prep`; None takes what `prep` pads to. view_vox: voxels that
            it was shown with; None: as many. joint: of a `3d-joint`. reader: what reads its windows where no
            backbone does; then there is no prep either. depth_mm: of the depths that it was trained on; None
            takes the patch. pooled: how a 3d-vlm pools; None takes CLS and mean patch.
    """

    format: int = Field(FORMAT, ge=1)
    model_type: Literal["hilum-encoder"] = "hilum-encoder"
    kind: Kind
    backbone: dict[str, Any] = {}
    prep: dict[str, Any] = {}
    prep_2d: dict[str, Any] | None = None
    patch: PatchVox | tuple[PatchVox, PatchVox, PatchVox] = 8
    text: TextConfig | None = None
    embedding: int | None = Field(None, ge=1, le=65536)
    field_vox: tuple[int, int, int] | None = None
    view_vox: tuple[int, int, int] | None = None
    joint: JointConfig | None = None
    reader: ReaderRef | None = None
    depth_mm: float | None = Field(None, gt=0)
    pooled: PooledConfig | None = None

    @model_validator(mode="after")
    def _whole(self) -> EncoderConfig:
        reads = self.kind in READS_TEXT
        if (self.text is not None) != reads or (self.embedding is not None) != reads:
            raise ValueError("text and embedding belong to kinds 3d-vlm and 3d-joint, which have both")
        if (self.joint is not None) != (self.kind == "3d-joint"):
            raise ValueError("joint belongs to kind 3d-joint, which has it")
        if self.pooled is not None and self.kind != "3d-vlm":
            raise ValueError("pooled belongs to kind 3d-vlm")
        if self.reader is not None and self.joint is None:
            raise ValueError("a reader reads the windows of a 3d-joint")
        if (self.reader is None) != bool(self.backbone) or (self.reader is None) != bool(self.prep):
            raise ValueError("an encoder has backbone and prep, or a reader")
        if self.joint is not None and self.field_vox is None and self.reader is None:
            raise ValueError("field_vox of a 3d-joint is its window")
        for name in ("field_vox", "view_vox"):
            if min(getattr(self, name) or (1,)) < 1:
                raise ValueError(f"{name} is 1 or more along every axis")
        return self

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], path: Path | None = None) -> EncoderConfig:
        """Checked.

        Raises:
            WeightsError: `CONFIG_KEY` with the nearest name, `CONFIG_VALUE`, `FORMAT_NEWER`.
        """
        newer = data.get("format")
        if isinstance(newer, int) and newer > FORMAT:
            raise WeightsError(
                "FORMAT_NEWER", "an encoder's format is known", expected=FORMAT, got=newer, path=path
            )
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise _explain(error, path) from None

    def as_dict(self) -> dict[str, Any]:
        """JSON types, keys in their order."""
        return self.model_dump(mode="json")


@dataclass(frozen=True)
class EncoderFile:
    """One encoder, whole.

    Args:
        config: see `EncoderConfig`. tensors: by name, float32 or float16: ``vision.*``, and for 3d-vlm
            ``projection.weight`` (or ``pooled.*``), ``temperature.log_scale``, ``text.*``; for 3d-joint
            ``joint.*``, ``text.*``.
        tokenizer: text of a `tokenizers` file, where texts are read. card: see `CARD_KEYS`; `sha256` of the
            weights is set when it is saved.

    Raises:
        WeightsError: `CONFIG_VALUE` for a card or tokenizer that does not fit, `WEIGHTS_KEYS` for a tensor of
            another type.
    """

    config: EncoderConfig
    tensors: Mapping[str, np.ndarray]
    tokenizer: str | None
    card: Mapping[str, Any]

    def __post_init__(self) -> None:
        _check_card(self.card)
        _check_tokenizer(self.config, self.tokenizer is not None)
        _check_types({name: str(tensor.dtype) for name, tensor in self.tensors.items()})


def save_encoder(folder: Path, file: EncoderFile, *, overwrite: bool = False) -> str:
    """Writes beside, flushes, renames; returns the sha256 of the weights. Equal contents are equal bytes.

    Args:
        folder: appears when it is whole; its parent must exist. overwrite: replace an older one.

    Raises:
        OutputError: `OUTPUT_EXISTS`, `OUTPUT_UNWRITABLE`.
        WeightsError: `CONFIG_VALUE` for a card that is no JSON.
    """
    facts = {"kind": file.config.kind, "name": str(file.card["name"])}
    with atomic_folder(folder, overwrite=overwrite) as beside:
        sha256 = save_weights(beside / WEIGHTS, file.tensors, facts)
        _write(beside / CONFIG, _json(file.config.as_dict(), CONFIG))
        _write(beside / CARD, _json({**file.card, "sha256": sha256}, CARD))
        if file.tokenizer is not None:
            _write(beside / TOKENIZER, file.tokenizer)
    return sha256


def load_encoder(folder: Path) -> EncoderFile:
    """Reads and verifies a folder.

    Raises:
        WeightsError: `CONFIG_FILE`, `CONFIG_KEY`, `CONFIG_VALUE`, `FORMAT_NEWER`; `WEIGHTS_HASH` for other
            bytes than the card's; `WEIGHTS_TRUNCATED`, `WEIGHTS_NONFINITE`, `WEIGHTS_KEYS` for a type.
    """
    config, card = load_config(folder), load_card(folder)
    has_tokenizer = (folder / TOKENIZER).is_file()
    _check_tokenizer(config, has_tokenizer, folder / TOKENIZER)
    weights = folder / WEIGHTS
    _check_types({name: kind for name, (kind, _) in tensor_table(weights).items()}, weights)
    tensors, _ = load_weights(weights, sha256=str(card.get("sha256")))
    return EncoderFile(config, tensors, _read(folder / TOKENIZER) if has_tokenizer else None, card)


def load_config(folder: Path) -> EncoderConfig:
    """config.json alone.

    Raises:
        WeightsError: as of `load_encoder`.
    """
    return EncoderConfig.from_dict(_object(folder / CONFIG), folder / CONFIG)


def load_card(folder: Path) -> dict[str, Any]:
    """card.json alone.

    Raises:
        WeightsError: as of `load_encoder`.
    """
    card = _object(folder / CARD)
    _check_card(card, folder / CARD)
    return card


def is_encoder(folder: Path) -> bool:
    """Whether a folder says that it is one; nothing else is checked."""
    try:
        return _object(folder / CONFIG).get("model_type") == "hilum-encoder"
    except WeightsError:
        return False


def tensor_table(weights: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every tensor, from the header alone.

    Raises:
        WeightsError: `WEIGHTS_TRUNCATED`.
    """
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    try:
        with safe_open(weights, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return {
                name: (names.get(s.get_dtype(), s.get_dtype()), tuple(s.get_shape()))
                for name, s in slices.items()
            }
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            "WEIGHTS_TRUNCATED", "weights are a whole safetensors file", got=error, path=weights
        ) from None


def _explain(error: ValidationError, path: Path | None) -> WeightsError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "config"
    if first["type"] != "extra_forbidden":
        got = {name: value for name, value in [("got", first.get("input"))] if not isinstance(value, dict)}
        return WeightsError("CONFIG_VALUE", f"{where} of an encoder: {first['msg']}", path=path, **got)
    sections: dict[str, type[BaseModel]] = {
        "text": TextConfig,
        "joint": JointConfig,
        "pooled": PooledConfig,
    }
    section = sections.get(str(first["loc"][0]), EncoderConfig)
    near = get_close_matches(str(first["loc"][-1]), section.model_fields, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Known keys: {', '.join(section.model_fields)}."
    return WeightsError("CONFIG_KEY", "an encoder's config has known keys", got=where, path=path, hint=hint)


def _check_card(card: Mapping[str, Any], path: Path | None = None) -> None:
    wrong = [name for name, kind in CARD_KEYS.items() if not isinstance(card.get(name), kind)]
    if wrong:
        expected = ", ".join(f"{name}: {kind.__name__}" for name, kind in CARD_KEYS.items())
        got = f"{wrong[0]} = {card.get(wrong[0])!r}"
        raise WeightsError(
            "CONFIG_VALUE", "a card says what a model is", expected=expected, got=got, path=path
        )


def _check_tokenizer(config: EncoderConfig, there: bool, path: Path | None = None) -> None:
    if there != (config.kind in READS_TEXT):
        raise WeightsError(
            "CONFIG_VALUE",
            "a model of reports has a tokenizer, another has none",
            expected=f"{'a' if not there else 'no'} {TOKENIZER} for kind {config.kind}",
            got="one" if there else "none",
            path=path,
        )


def _check_types(types: Mapping[str, str], path: Path | None = None) -> None:
    wrong = [f"{name}: {kind}" for name, kind in types.items() if kind not in DTYPES]
    if wrong or not types:
        raise WeightsError(
            "WEIGHTS_KEYS",
            "an encoder's tensors are floating point of one of two kinds",
            expected=" or ".join(DTYPES),
            got=wrong[:5] or "no tensors",
            path=path,
        )


def _object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise WeightsError("CONFIG_FILE", f"{path.name} is JSON", got=error, path=path) from None
    if not isinstance(data, dict):
        raise WeightsError("CONFIG_FILE", f"{path.name} is a JSON object", got=type(data).__name__, path=path)
    return data


def _read(path: Path) -> str:
    most = MOST_BYTES[path.name]
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise WeightsError(
                "CONFIG_FILE", f"{path.name} is small", expected=f"<= {most} bytes", got="more", path=path
            )
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        got = getattr(error, "strerror", None) or error
        raise WeightsError(
            "CONFIG_FILE",
            "an encoder is a folder of files that can be read",
            expected=", ".join((CONFIG, WEIGHTS, CARD)),
            got=f"{path.name}: {got}",
            path=path,
        ) from None


def _json(data: Mapping[str, Any], name: str) -> str:
    try:
        return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise WeightsError("CONFIG_VALUE", f"{name} is JSON", got=error) from None


def _write(path: Path, text: str) -> None:
    # the folder itself is flushed and renamed by `atomic_folder`
    path.write_bytes(text.encode("utf-8"))
