"""What there is: presets, models that ship, folders of the user's; how large, trained on what, under which
licence. Weights are counted from the header of their file and not read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal

import torch

from hilum.errors import UsageError
from hilum.io.encoder_file import CARD, WEIGHTS, is_encoder, load_card, load_config, tensor_table
from hilum.io.weights import preset_data, preset_names
from hilum.model.preset import build, preset_from


@dataclass(frozen=True)
class ModelRow:
    """One preset or model.

    Args:
        name: to build, read or load it with. what: a ``preset`` has no weights; a ``reader`` reads scans
            (`hilum.read`), an ``encoder`` gives features (`hilum.load`). kind: network of a preset or reader;
            2d, 3d or 3d-vlm of an encoder.
        parameters: numbers that were, or would be, learned.
        synthetic, trained_on, licence: as the card says; None for a preset.
        folder: None for what ships.
    """

    name: str
    what: Literal["preset", "reader", "encoder"]
    kind: str
    parameters: int
    synthetic: bool | None = None
    trained_on: str | None = None
    licence: str | None = None
    folder: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


def known_models(folders: Iterable[Path] = ()) -> list[ModelRow]:
    """Presets, then what ships, then `folders`: each a model, or a folder of models.

    Raises:
        UsageError: `MODEL_UNKNOWN` for a folder without any. WeightsError: as of
            `io.encoder_file.load_config`.
    """
    rows = [_preset(name) for name in preset_names()]
    with as_file(files("hilum") / "weights") as shipped:
        rows += [_model(folder, None) for folder in sorted(shipped.iterdir()) if _is_model(folder)]
    for folder in folders:
        rows += list(_below(folder))
    return rows


def _preset(name: str) -> ModelRow:
    data = preset_data(name)
    return ModelRow(name, "preset", data["network"], _size(name))


def _size(preset: str) -> int:
    with torch.device("meta"):
        network = build(preset_from(preset_data(preset)))
    return sum(parameter.numel() for parameter in network.parameters())


def _below(folder: Path) -> Iterator[ModelRow]:
    inner = [folder] if _is_model(folder) else []
    if not inner and folder.is_dir():
        inner = [path for path in sorted(folder.iterdir()) if _is_model(path)]
    if not inner:
        raise UsageError(
            "MODEL_UNKNOWN",
            "a folder is a model, or holds some",
            expected=f"{WEIGHTS} and {CARD}",
            got="neither there nor one folder below",
            path=folder,
        )
    for path in inner:
        yield _model(path, str(path))


def _is_model(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() and (folder / CARD).is_file()


def _model(folder: Path, shown: str | None) -> ModelRow:
    card = load_card(folder)
    facts = (card["synthetic"], card["trained_on"], card["licence"], shown)
    if not is_encoder(folder):
        preset = str(card.get("preset"))
        return ModelRow(card["name"], "reader", preset_data(preset)["network"], _size(preset), *facts)
    shapes = [shape for _, shape in tensor_table(folder / WEIGHTS).values()]
    kind = load_config(folder).kind
    return ModelRow(card["name"], "encoder", kind, sum(math.prod(shape) for shape in shapes), *facts)
