"""`hilum import`: a public checkpoint -> an encoder folder, or a refusal that leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import torch

from hilum.convert import colipri, flexict, radfinder, spectre
from hilum.convert.foreign import Foreign, open_foreign
from hilum.convert.names import Row, Rule, account
from hilum.errors import OutputError, UsageError, WeightsError
from hilum.io.encoder_file import EncoderConfig, EncoderFile, save_encoder
from hilum.model.encoder import build_encoder

Family = Literal["colipri", "flexict", "radfinder", "spectre"]
TEXT_FILES = ("config.json", "tokenizer.json")
TEXT_BYTES = 64 * 2**20


class Recipe(NamedTuple):
    """What a family of checkpoints makes of one.

    Args:
        config: config.json of the folder. rules: the table of names. filled: tensors of ours that the public
            model has none of, as constants.
    """

    config: dict[str, Any]
    rules: Sequence[Rule]
    filled: Mapping[str, float]


class Reading(Protocol):
    """How a family looks at a checkpoint."""

    def __call__(self, foreign: Foreign, kind: str | None, text: Mapping[str, Any] | None) -> Recipe:
        """The recipe for it."""
        ...


class Published(NamedTuple):
    """A family: how it is read, its licence, what that means, what it was trained on."""

    read: Reading
    licence: str
    terms: str
    trained_on: str


@dataclass(frozen=True)
class ImportReport:
    """What went where.

    Args:
        folder: what was written. kind, parameters: of the encoder. rows: the account of every tensor of the
            checkpoint. filled: ours that it has none of. licence, terms: of the weights. sha256: of the
            weights that were written.
    """

    folder: Path
    kind: str
    parameters: int
    rows: tuple[Row, ...]
    filled: tuple[str, ...]
    licence: str
    terms: str
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "folder": str(self.folder),
            "kind": self.kind,
            "parameters": self.parameters,
            "licence": self.licence,
            "terms": self.terms,
            "sha256": self.sha256,
            "tensors": [row.as_dict() for row in self.rows],
            "filled": list(self.filled),
        }


def import_encoder(
    family: Family, source: Path, folder: Path, *, kind: str | None = None, text: Path | None = None
) -> ImportReport:
    """A public checkpoint as an encoder folder. Strict: every tensor of it has its place or a stated reason
    why not, and every tensor of the encoder is filled.

    Args:
        family: whose checkpoint. source: a torch archive, a safetensors file, or a folder with
            `model.safetensors`. folder: appears when it is whole; its parent must exist.
        kind: ``2d`` or ``3d`` where the checkpoint does not say. text: folder with config.json and
            tokenizer.json of the text tower, for a model of reports.

    Raises:
        OutputError: `OUTPUT_EXISTS`, `OUTPUT_UNWRITABLE`. UsageError: `CONFIG_VALUE` for a kind or text that
            is missing or does not fit, `EXTRA_MISSING` without the library of text towers.
        WeightsError: `WEIGHTS_KEYS` naming the tensors; `NOT_FOUND`, `WEIGHTS_PICKLE`, `WEIGHTS_TRUNCATED`,
            `WEIGHTS_HEADER`, `WEIGHTS_NONFINITE`, `CONFIG_FILE`.
    """
    if folder.exists() or folder.is_symlink():
        raise OutputError("OUTPUT_EXISTS", "results do not replace other files", got="something", path=folder)
    published = FAMILIES[family]
    tower, tokenizer = (None, None) if text is None else _text_of(text)
    with open_foreign(source) as foreign:
        recipe = published.read(foreign, kind, tower)
        config = EncoderConfig.from_dict(recipe.config)
        if text is not None and config.text is None:
            raise UsageError(
                "CONFIG_VALUE", "a text tower belongs to a model of reports", expected="no --text", got=text
            )
        with torch.device("meta"):
            network = build_encoder(config)
        own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        table = account(foreign, recipe.rules)
        wanted = {name: shape for name, shape in own.items() if name not in recipe.filled}
        tensors = table.tensors(foreign, wanted)
        tensors |= {name: torch.full(own[name], value).numpy() for name, value in recipe.filled.items()}
        card = {
            "name": folder.name,
            "synthetic": False,
            "trained_on": published.trained_on,
            "licence": published.licence,
            "terms": published.terms,
            "stage": f"imported from {family}",
            "source": {"form": foreign.form, "sha256": foreign.sha256, "values": dict(foreign.plain)},
        }
        sha256 = save_encoder(folder, EncoderFile(config, tensors, tokenizer, card))
    return ImportReport(
        folder, config.kind, sum(t.size for t in tensors.values()), table.rows, tuple(recipe.filled),
        published.licence, published.terms, sha256,
    )  # fmt: skip


def _text_of(folder: Path) -> tuple[dict[str, Any], str]:
    """Configuration and tokenizer of a text tower, from a Hugging Face folder."""
    texts = []
    for name in TEXT_FILES:
        try:
            with (folder / name).open("rb") as file:
                data = file.read(TEXT_BYTES + 1)
            texts.append(data[:TEXT_BYTES].decode("utf-8"))
            value = json.loads(texts[-1])
            if not isinstance(value, dict):
                raise ValueError(f"a {type(value).__name__}")
        except (OSError, ValueError, RecursionError) as error:
            raise WeightsError(
                "CONFIG_FILE", "a text tower is described by JSON objects", expected=", ".join(TEXT_FILES),
                got=f"{name}: {str(error)[:200]}", path=folder,
            ) from None  # fmt: skip
    return json.loads(texts[0]), texts[1]


def _colipri(foreign: Foreign, kind: str | None, text: Mapping[str, Any] | None) -> Recipe:
    config = colipri.encoder_config(foreign, kind, text)
    return Recipe(config, colipri.rules_of(foreign), colipri.filled_of(foreign))


def _flexict(foreign: Foreign, kind: str | None, text: Mapping[str, Any] | None) -> Recipe:
    prefix = flexict.prefix_of(foreign)
    config = flexict.encoder_config(foreign, prefix, flexict.kind_of(foreign, prefix, kind), text)
    return Recipe(config, flexict.rules_of(prefix), {})


def _radfinder(foreign: Foreign, kind: str | None, text: Mapping[str, Any] | None) -> Recipe:
    prefix = radfinder.prefix_of(foreign)
    config = radfinder.encoder_config(foreign, prefix, text)
    filled = spectre.filled_of(foreign, f"{prefix}backbone_image.")
    return Recipe(config, radfinder.rules_of(prefix), filled)


def _spectre(foreign: Foreign, kind: str | None, text: Mapping[str, Any] | None) -> Recipe:
    prefix = spectre.prefix_of(foreign)
    config = spectre.encoder_config(foreign, prefix, kind)
    return Recipe(config, spectre.rules_of(prefix), spectre.filled_of(foreign, prefix))


FAMILIES: Mapping[Family, Published] = MappingProxyType(
    {
        "colipri": Published(
            _colipri,
            colipri.LICENCE,
            colipri.TERMS,
            "tens of thousands of chest CT volumes of Turkey and the USA with reports (arXiv:2510.15042)",
        ),
        "flexict": Published(
            _flexict,
            flexict.LICENCE,
            flexict.TERMS,
            "266,227 CT volumes of 56 public data sets (arXiv:2605.21906)",
        ),
        "radfinder": Published(
            _radfinder,
            spectre.LICENCE,
            spectre.TERMS,
            "159 thousand CT volumes with reports, most of them of one hospital (arXiv:2603.02026)",
        ),
        "spectre": Published(
            _spectre,
            spectre.LICENCE,
            spectre.TERMS,
            "CT volumes of 8 public data sets, some with reports (arXiv:2511.17209)",
        ),
    }
)
"""Whose checkpoints are known."""
