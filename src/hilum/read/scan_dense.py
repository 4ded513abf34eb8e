"""Networks that give whole maps on a published grid: EXACT (EXACT §1.8). Prepared and pooled as in training,
both of which the model's card has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from hilum.cohort.prep_presets import Pipeline
from hilum.errors import UsageError
from hilum.geometry import Geometry
from hilum.model.map_heads import MapHeads, map_features
from hilum.model.preset import ExactPreset
from hilum.model.ymamba import YMamba
from hilum.objective.dense_read import pool_gated, read_maps
from hilum.objective.dense_rule import DenseRule
from hilum.read.scan_output import FindingMaps, FindingProbabilities, Found, Inference
from hilum.tensors import ScanBatch
from hilum.volume import CTVolume


class DenseWay:
    """See `scan_output.Way`.

    Args:
        network: gives `YNetOutput` of whole maps. pipeline: of its scans. rule: between maps and answer.
        shape_vox: crop and padding about the middle that it was trained with, or None.
        heads: a classifier of its maps (EXACT §2.1b): probabilities are then what the heads say of the gated
            maps at full resolution, and can be computed again from them.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        pipeline: Pipeline,
        rule: DenseRule,
        shape_vox: tuple[int, int, int] | None = None,
        heads: MapHeads | None = None,
    ) -> None:
        self.network, self.pipeline, self.rule, self.shape_vox = network, pipeline, rule, shape_vox
        self.gates, self.heads = rule.gates, heads

    @classmethod
    def of_card(
        cls,
        preset: ExactPreset,
        network: torch.nn.Module,
        card: Mapping[str, Any],
        heads: MapHeads | None = None,
    ) -> DenseWay:
        """As the card says; what it leaves out is the preset's.

        Raises:
            WeightsError: `CONFIG_KEY`, `CONFIG_VALUE` for a preparation or a rule that is none.
        """
        pool = preset.pool_vox
        paper = preset.convention == "paper"
        published = DenseRule(
            opened_by="paper" if paper else "hilum",
            guard=not paper,
            k_low=pool.low,
            k_high=pool.high,
            k_read=pool.inference,
        )
        rule = DenseRule.from_facts(card["rule"]) if "rule" in card else published
        pipeline = Pipeline.from_facts(card["prep"]) if "prep" in card else preset.pipeline
        shape = card.get("shape_vox")
        return cls(network, pipeline, rule, None if shape is None else (shape[0], shape[1], shape[2]), heads)

    def run(self, volume: CTVolume, outlines: bool = True) -> Found:
        """See `Way`."""
        tensor, trace = self.pipeline.apply(volume)
        whole = tensor.shape[2:]
        found = self.infer(tensor, None, trace.grid)
        assert found.coarse is not None, "networks of whole maps have two resolutions"
        organs, maps, gate, coarse = (
            replaced(x, whole).numpy() for x in (found.organs, found.maps, found.gate.float(), found.coarse)
        )
        return Found(
            trace.grid,
            organs,
            maps * gate,
            maps,
            found.pooled,
            trace,
            organs,
            trace,
            coarse * gate,
            tensor[0, 0].numpy(),
        )

    def infer(
        self, scan: ScanBatch, fine: torch.Tensor | None = None, grid: Geometry | None = None
    ) -> Inference:
        """See `Way`; on the shape that the network was trained with. `grid` is the scan's, for rules in
        ml."""
        if self.shape_vox is not None:
            scan = placed(scan, self.shape_vox, float(scan.min()))
        out = self.network(scan)
        found = read_maps(out.organs, out.low, out.high, self.rule, self._voxel_ml(grid))
        gated = (found.high * found.gates)[0]
        pooled = found.pooled[0].numpy() if self.heads is None else self._answer(gated, self.heads)
        return Inference(found.organs[0], found.high[0], found.gates[0], pooled, None, found.low[0])

    def pool(self, maps: torch.Tensor | FindingMaps, grid: Geometry | None = None) -> FindingProbabilities:
        """See `Way`: the full resolution alone, as published."""
        gated = torch.as_tensor(maps)
        if self.heads is not None:
            return self._answer(
                gated if self.shape_vox is None else placed(gated, self.shape_vox), self.heads
            )
        return pool_gated(gated[None], self.rule, self._voxel_ml(grid))[0].numpy()

    def _answer(self, gated: torch.Tensor, heads: MapHeads) -> FindingProbabilities:
        assert isinstance(self.network, YMamba), "a classifier of maps is one of EXACT's network"
        logits = heads(map_features(self.network, gated[None]).float())
        return torch.sigmoid(logits)[0].detach().numpy()

    def _voxel_ml(self, grid: Geometry | None) -> torch.Tensor:
        if grid is None and self.rule.pool == "volume":
            raise UsageError(
                "CONFIG_VALUE", "volumes in ml are pooled on a grid", expected="a grid", got=None
            )
        return torch.tensor([1.0 if grid is None else grid.voxel_ml])


def placed(values: torch.Tensor, shape: Sequence[int], fill: float = 0.0) -> torch.Tensor:
    """[..., U, V, W] cropped and padded about its middle, as training crops and pads (`exact_data`)."""
    return _boxed(values, [(n - m) // 2 for n, m in zip(values.shape[-3:], shape, strict=True)], shape, fill)


def replaced(values: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The way back: maps of what `placed` gave -> on the grid of `shape` that it was given; 0 beyond."""
    return _boxed(
        values, [-((n - m) // 2) for n, m in zip(shape, values.shape[-3:], strict=True)], shape, 0.0
    )


def _boxed(values: torch.Tensor, start: Sequence[int], shape: Sequence[int], fill: float) -> torch.Tensor:
    pads: list[int] = []
    for n, low, wanted in reversed(list(zip(values.shape[-3:], start, shape, strict=True))):
        # a pad that is negative crops
        pads += [-low, low + wanted - n]
    return F.pad(values, pads, value=fill) if any(pads) else values
