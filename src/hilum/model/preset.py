"""A preset is data: which network, of which size; for one that reads scans also on which grid, pooled how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import torch

from hilum.cohort.prep import Prep
from hilum.cohort.prep_presets import Pipeline, pipeline
from hilum.errors import WeightsError
from hilum.model.align import AlignConfig
from hilum.model.cam import CamNet
from hilum.model.clip_global import ClipNet
from hilum.model.exact_vit import ExactViT, ExactViTConfig
from hilum.model.organ_clip import OrganClipNet
from hilum.model.primus import Primus, PrimusConfig
from hilum.model.radfinder import JointNumbers, RadFinder
from hilum.model.vit import ViT
from hilum.model.vit_config import ViTConfig
from hilum.model.ymamba import YMamba, YMambaConfig
from hilum.model.ynet import YNet, YNetConfig
from hilum.text.vocabulary import SLUGS

READS_REPORTS = ("clip_global", "organ_clip")
"""Networks that are aligned with texts."""


@dataclass(frozen=True)
class Preset:
    """One model that reads scans, described.

    Args:
        network: ``ynet``, ``cam``, ``clip_global`` or ``organ_clip``. net: its numbers. prep: its grid.
        pool_ml: volume averaged into the scan probability, per finding, ml.
    """

    name: str
    network: str
    net: YNetConfig
    prep: Prep
    pool_ml: tuple[float, ...]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preset:
        """Checked against the fields that exist.

        Raises:
            WeightsError: `CONFIG_VALUE` for a network of another kind, `CONFIG_KEY` for an unknown or missing
                key.
        """
        _known_network(data.get("network"), cls)
        _same_keys(data, {f.name for f in fields(cls)}, "preset")
        _same_keys(data["pool_ml"], set(SLUGS), "preset.pool_ml")
        kind = AlignConfig if data["network"] in READS_REPORTS else YNetConfig
        pool = tuple(float(data["pool_ml"][slug]) for slug in SLUGS)
        net = kind(**_numbers(data["net"], kind))
        return cls(data["name"], data["network"], net, Prep(**data["prep"]), pool)

    @property
    def voxel_ml(self) -> float:
        """Volume of a grid voxel in ml."""
        return self.prep.spacing_mm**3 / 1000.0


@dataclass(frozen=True)
class BackbonePreset:
    """One backbone, described: features for others to read.

    Args:
        network: ``vit``. net: its numbers.
    """

    name: str
    network: str
    net: ViTConfig

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BackbonePreset:
        """Checked against the fields that exist.

        Raises:
            WeightsError: `CONFIG_KEY` for an unknown or missing key, `CONFIG_VALUE` for a number that makes
                no network.
        """
        return cls(*_named_net(data, cls, ViTConfig))


@dataclass(frozen=True)
class PrimusPreset:
    """One backbone of volumes that is read with and not trained here.

    Args:
        network: ``primus``. net: its numbers.
    """

    name: str
    network: str
    net: PrimusConfig

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PrimusPreset:
        """Checked against the fields that exist.

        Raises:
            WeightsError: `CONFIG_KEY` for an unknown or missing key, `CONFIG_VALUE` for a number that makes
                no network.
        """
        return cls(*_named_net(data, cls, PrimusConfig))


@dataclass(frozen=True)
class PoolVox:
    """Voxels of a gated map whose mean is the scan's probability (EXACT §1.7, 1.8).

    Args:
        low, high: in training, of the maps at half and at full resolution. inference: of the full one.
    """

    low: int
    high: int
    inference: int


@dataclass(frozen=True)
class ExactPreset:
    """One model of EXACT's kind: whole scans on a published grid, described.

    Args:
        network: ``ymamba`` or ``exact-vit``. net: its numbers. prep, convention: name of a `Pipeline`, and
            whose. pool_vox: counts in voxels, since a squashed grid has no one size of voxel.
    """

    name: str
    network: str
    net: YMambaConfig | ExactViTConfig
    prep: str
    convention: Literal["hilum", "paper"]
    pool_vox: PoolVox

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ExactPreset:
        """Checked against the fields that exist.

        Raises:
            WeightsError: `CONFIG_VALUE` for a network of another kind or a number that makes none,
                `CONFIG_KEY` for an unknown or missing key. UsageError: `PRESET_UNKNOWN` for a preparation.
        """
        _known_network(data.get("network"), cls)
        _same_keys(data, {f.name for f in fields(cls)}, "preset")
        _same_keys(data["pool_vox"], {f.name for f in fields(PoolVox)}, "preset.pool_vox")
        if data["convention"] not in ("hilum", "paper"):
            raise WeightsError(
                "CONFIG_VALUE", "preset.convention is known", expected="hilum, paper", got=data["convention"]
            )
        counts = data["pool_vox"]
        if wrong := {
            k: n for k, n in counts.items() if not isinstance(n, int) or isinstance(n, bool) or n < 1
        }:
            raise WeightsError("CONFIG_VALUE", "preset.pool_vox counts voxels", expected="from 1", got=wrong)
        net = _exact_net(data["network"], data["net"])
        pipeline(data["prep"])
        return cls(data["name"], data["network"], net, data["prep"], data["convention"], PoolVox(**counts))

    @property
    def pipeline(self) -> Pipeline:
        """How a scan is prepared for it."""
        return pipeline(self.prep, convention=self.convention)


@dataclass(frozen=True)
class JointPreset:
    """What puts scans, read window by window, into one space with texts.

    Args:
        network: ``radfinder``. net: its numbers.
    """

    name: str
    network: str
    net: JointNumbers

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> JointPreset:
        """Checked against the fields that exist.

        Raises:
            WeightsError: `CONFIG_KEY` for an unknown or missing key, `CONFIG_VALUE` for a network of another
                kind.
        """
        return cls(*_named_net(data, cls, JointNumbers))


AnyPreset = Preset | BackbonePreset | PrimusPreset | ExactPreset | JointPreset
AnyKind = type[Preset] | type[BackbonePreset] | type[PrimusPreset] | type[ExactPreset] | type[JointPreset]

NETWORKS: Mapping[str, AnyKind] = MappingProxyType(
    {
        "ynet": Preset,
        "cam": Preset,
        "clip_global": Preset,
        "organ_clip": Preset,
        "vit": BackbonePreset,
        "primus": PrimusPreset,
        "ymamba": ExactPreset,
        "exact-vit": ExactPreset,
        "radfinder": JointPreset,
    }
)
"""Every network that a preset can name, and how it is described."""


def preset_from(data: Mapping[str, Any]) -> AnyPreset:
    """A preset of whichever kind its network needs.

    Raises:
        WeightsError: `CONFIG_KEY`, `CONFIG_VALUE` as of the kinds.
    """
    if data.get("network") not in NETWORKS:
        _known_network(data.get("network"), None)
    return NETWORKS[data["network"]].from_dict(data)


def _known_network(name: object, kind: AnyKind | None) -> None:
    known = [n for n, k in NETWORKS.items() if kind in (None, k)]
    if name not in known:
        raise WeightsError("CONFIG_VALUE", "preset.network is known", expected=", ".join(known), got=name)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _exact_net(network: str, data: Mapping[str, Any]) -> YMambaConfig | ExactViTConfig:
    if network == "ymamba":
        return YMambaConfig(**_numbers(data, YMambaConfig))
    if "backbone" not in data:
        raise WeightsError("CONFIG_KEY", "preset.net has a backbone", expected="backbone", got=sorted(data))
    numbers = {**_numbers(data, ExactViTConfig), "backbone": _numbers(data["backbone"], ViTConfig)}
    return ExactViTConfig.read(numbers)


NetKind = (
    type[YNetConfig]
    | type[ViTConfig]
    | type[PrimusConfig]
    | type[YMambaConfig]
    | type[ExactViTConfig]
    | type[JointNumbers]
)


NetT = TypeVar("NetT", ViTConfig, PrimusConfig, JointNumbers)


def _named_net(data: Mapping[str, Any], preset: AnyKind, kind: type[NetT]) -> tuple[str, str, NetT]:
    """Name, network and numbers of a preset that has no more."""
    _known_network(data.get("network"), preset)
    _same_keys(data, {f.name for f in fields(preset)}, "preset")
    return data["name"], data["network"], kind(**_numbers(data["net"], kind))


def _numbers(data: Mapping[str, Any], kind: NetKind) -> dict[str, Any]:
    """A network's numbers under names that its configuration has."""
    known = sorted(f.name for f in fields(kind))
    if wrong := sorted(set(data) - set(known)):
        near = get_close_matches(wrong[0], known, n=1)
        hint = f"Did you mean {near[0]}?" if near else None
        raise WeightsError("CONFIG_KEY", "preset.net has known keys", expected=known, got=wrong, hint=hint)
    return {key: _tuples(value) for key, value in data.items()}


def _same_keys(data: Mapping[str, Any], known: set[str], where: str) -> None:
    if wrong := sorted(set(data) ^ known):
        raise WeightsError("CONFIG_KEY", f"{where} has exactly its keys", expected=sorted(known), got=wrong)


def build_network(preset: Preset) -> YNet | CamNet | ClipNet:
    """The preset's network with fresh weights."""
    if isinstance(preset.net, AlignConfig):
        return OrganClipNet(preset.net) if preset.network == "organ_clip" else ClipNet(preset.net)
    return CamNet(preset.net) if preset.network == "cam" else YNet(preset.net)


def build_backbone(preset: BackbonePreset | PrimusPreset) -> ViT | Primus:
    """The preset's backbone with fresh weights."""
    return Primus(preset.net) if isinstance(preset, PrimusPreset) else ViT(preset.net)


def backbone_from(data: Mapping[str, Any]) -> BackbonePreset | PrimusPreset:
    """The backbone that an encoder describes.

    Raises:
        WeightsError: `CONFIG_KEY`, `CONFIG_VALUE` as of the kinds, and for a network that is no backbone.
    """
    kind = PrimusPreset if data.get("network") == "primus" else BackbonePreset
    return kind.from_dict(data)


def build_exact(preset: ExactPreset) -> YMamba | ExactViT:
    """The preset's network with fresh weights."""
    net = preset.net
    return YMamba(net) if isinstance(net, YMambaConfig) else ExactViT(net)


def build(preset: AnyPreset) -> YNet | CamNet | ClipNet | ViT | Primus | YMamba | ExactViT | RadFinder:
    """Whichever the preset describes."""
    if isinstance(preset, JointPreset):
        return RadFinder(preset.net.config())
    if isinstance(preset, ExactPreset):
        return build_exact(preset)
    return build_network(preset) if isinstance(preset, Preset) else build_backbone(preset)


def load_state(network: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Strict: every tensor accounted for.

    Raises:
        WeightsError: `WEIGHTS_KEYS` with the first missing, unexpected and misshapen names.
    """
    own = network.state_dict()
    missing, extra = sorted(set(own) - set(tensors))[:5], sorted(set(tensors) - set(own))[:5]
    shapes = [n for n in own if n in tensors and own[n].shape != tensors[n].shape][:5]
    if missing or extra or shapes:
        raise WeightsError(
            "WEIGHTS_KEYS",
            "weights fit the network exactly",
            expected=f"{len(own)} tensors",
            got=f"missing {missing}, unexpected {extra}, other shape {shapes}",
        )
    network.load_state_dict({k: v.float() for k, v in tensors.items()})
