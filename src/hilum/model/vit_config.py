"""The numbers of a backbone, checked before anything is built."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hilum.errors import WeightsError


@dataclass(frozen=True)
class ViTConfig:
    """A backbone's numbers (FlexiCT §1).

    Args:
        width: channels of a token. depth: blocks. heads: of attention; width / heads is a multiple of 12, so
            that two and three axes share a head evenly (of 6 without slices). mlp: width of the perceptron,
            in widths.
        patch: base size of a patch, in voxels. patch_z: along the last axis of a volume; None: the same.
        channels: of the picture. slices: there is a patch embedding for slices. registers: tokens without a
            place.
        qkv_bias: queries, keys and values have a bias.
        layer_scale: first value of every branch's scale. norm_eps: of the layer norms.
        drop_path: share of a batch that each branch leaves out in training.
        rope_base: of the periods. rope_full: the periods of every axis go up to it, in 3D too (see
            `model.rope`). rope_reversed: the last axis has the first channels of a head, as in weights that
            were trained on [Z, Y, X]. rescale: in training all coordinates are multiplied by a factor between
            1 / rescale and rescale.
        extent_mm: None: coordinates are relative to the crop. A width: they are millimetres over half of it.
        rope_bf16: coordinates and rotation in bfloat16, as the published weights were trained.
        checkpoint: activations of a block are computed again in the backward pass instead of kept.

    Raises:
        WeightsError: `CONFIG_VALUE` for a number that makes no network, NaN included.
    """

    width: int = 864
    depth: int = 16
    heads: int = 12
    mlp: int = 4
    patch: int = 8
    patch_z: int | None = None
    channels: int = 1
    slices: bool = True
    registers: int = 4
    qkv_bias: bool = False
    layer_scale: float = 1e-5
    norm_eps: float = 1e-6
    drop_path: float = 0.2
    rope_base: float = 100.0
    rope_full: bool = False
    rope_reversed: bool = False
    rescale: float = 2.0
    extent_mm: float | None = None
    rope_bf16: bool = False
    checkpoint: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "mlp", "patch", "channels", "registers"):
            least = 0 if name == "registers" else 1
            self._must(name, _whole(getattr(self, name), least), f"a whole number from {least}")
        self._must(
            "patch_z", self.patch_z is None or _whole(self.patch_z, 1), "null, or a whole number from 1"
        )
        for name in ("slices", "qkv_bias", "rope_full", "rope_reversed", "rope_bf16", "checkpoint"):
            self._must(name, isinstance(getattr(self, name), bool), "true or false")
        share = 12 if self.slices else 6
        self._must(
            "heads",
            self.width % (share * self.heads) == 0,
            f"{share} · heads divides a width of {self.width}",
        )
        self._must("layer_scale", _number(self.layer_scale) > 0, "a finite number above 0")
        self._must("norm_eps", 0 < _number(self.norm_eps) < 1, "between 0 and 1")
        self._must("drop_path", 0 <= _number(self.drop_path) < 1, "0 or more and below 1")
        self._must("rope_base", _number(self.rope_base) > 1, "a finite number above 1")
        self._must("rescale", _number(self.rescale) >= 1, "a finite number from 1")
        extent_mm = 1.0 if self.extent_mm is None else _number(self.extent_mm)
        self._must("extent_mm", extent_mm > 0, "null, or millimetres above 0")

    @property
    def head(self) -> int:
        """Channels of a head."""
        return self.width // self.heads

    @property
    def prefix(self) -> int:
        """Tokens before the patches."""
        return 1 + self.registers

    def patch_base(self, axes: int) -> tuple[int, ...]:
        """Base size of a patch along each of 2 or 3 axes, in voxels."""
        last = self.patch if self.patch_z is None else self.patch_z
        return (self.patch, self.patch) if axes == 2 else (self.patch, self.patch, last)

    def _must(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            got = repr(getattr(self, name))
            raise WeightsError(
                "CONFIG_VALUE", f"preset.net.{name} makes a network", expected=expected, got=got
            )


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: object) -> float:
    """NaN, which fails every comparison, for whatever is no finite number."""
    fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if fine else math.nan  # type: ignore[arg-type]
