"""Any encoder folder as a teacher: an export of Hilum's stages, or public weights through `hilum import`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hilum.errors import UsageError
from hilum.io.encoder_file import EncoderConfig, load_encoder
from hilum.model.encoder import build_encoder, load_tensors, vit_of
from hilum.model.patch import patch_sizes
from hilum.model.vit import ViT
from hilum.train.teachers import AFFINE, Features, Shown, check_hu, resized, turn_between


class EncoderTeacher:
    """The backbone of an encoder, with its CLS token as summary.

    What it sees: the student's values as they are where both take z-scores of the same window (of the scan,
    or of the slice), else its own values made of HU. A field larger than the one that it was trained on it
    sees in windows of that.

    Args:
        name: for people. vision: the backbone. config: of its folder. sha256: of its weights, hex.
        student: facts of the student's preparation (`Pipeline.facts`, `Store.prep`).
        patch: None takes the encoder's own, which may be another along the last axis. vox: voxels along its
            own axes that it sees; None as many as its own voxel size gives, in whole patches.

    Raises:
        UsageError: `CONFIG_VALUE` for values that the student's do not hold.
    """

    def __init__(
        self,
        name: str,
        vision: ViT,
        config: EncoderConfig,
        sha256: str,
        student: Mapping[str, Any],
        *,
        patch: int | None = None,
        vox: Sequence[int] | None = None,
    ) -> None:
        self.name, self.sha256, self.config = name, sha256, config
        self.vision = vision.eval().requires_grad_(False)
        self.width = vision.config.width
        self.summary_width: int | None = self.width
        self.patch = config.patch if patch is None else patch
        self.vox = None if vox is None else tuple(vox)
        self.student = dict(student)
        slices = student["values"] == "zscore-slice"
        prep = config.prep if config.kind == "2d" or not slices else config.prep_2d
        if prep is None or (config.kind == "2d") > slices:
            got = f"kind {config.kind} for {student['values']}"
            raise _unlike(name, "an encoder of what the student sees, slices or volumes", got)
        self.prep: dict[str, Any] = dict(prep)
        self.reads_hu = prep["values"] in AFFINE and prep["values"] != "zscore-scan"
        self._check_values()

    @torch.no_grad()
    def features(self, shown: Shown) -> Features:
        """See `Teacher`. Slices keep their axes, volumes are turned to the encoder's.

        Raises:
            InputRefused: `MODEL_INPUT` where HU are needed and their scale is not there.
        """
        images = self._values(shown)
        self.vision.to(images.device)
        if images.dim() == 4:
            return self._flat(images)
        turn = turn_between(self.student["axes"], self.prep["axes"])
        spacing_mm = [shown.spacing_mm[axis] for axis in turn.order]
        turned = turn.there(images)
        to, counts = self._windows(self.vox or self._wanted(turned.shape[2:], spacing_mm))
        seen_mm = [mm * n / m for mm, n, m in zip(spacing_mm, turned.shape[2:], to, strict=True)]
        summary, maps = self._in_windows(resized(turned, to), counts, seen_mm)
        patches, grid = turn.back(maps.flatten(2).transpose(1, 2), tuple(maps.shape[2:]))
        return Features(summary, patches, grid)

    def _in_windows(
        self, images: torch.Tensor, counts: Sequence[int], seen_mm: Sequence[float]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean CLS of the windows, and their patches put together: (B, W, *grid). One window at a time."""
        rows, total = [], torch.zeros(len(images), self.width, device=images.device)
        for slab in images.chunk(counts[0], 2):
            columns = []
            for column in slab.chunk(counts[1], 3):
                cells = []
                for window in column.chunk(counts[2], 4):
                    out = self.vision(window.contiguous(), patch=self._sizes(3), spacing_mm=seen_mm)
                    total += out.cls.float()
                    cells.append(out.maps().float())
                columns.append(torch.cat(cells, 4))
            rows.append(torch.cat(columns, 3))
        return total / (counts[0] * counts[1] * counts[2]), torch.cat(rows, 2)

    def _windows(self, to: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Voxels in whole windows of the field that it was trained on, and windows per axis."""
        field = self.config.field_vox or tuple(to)
        counts = [max(1, round(n / f)) for n, f in zip(to, field, strict=True)]
        if self.vox is not None:  # what was asked for is not changed
            counts = [n // f if n > f and n % f == 0 else 1 for n, f in zip(to, field, strict=True)]
        sides = [f * count if count > 1 else n for n, f, count in zip(to, field, counts, strict=True)]
        return tuple(sides), tuple(counts)

    def _flat(self, slices: torch.Tensor) -> Features:
        sizes = self._sizes(2)
        to = [max(1, round(n / size)) * size for n, size in zip(slices.shape[2:], sizes, strict=True)]
        out = self.vision(resized(slices, to), patch=sizes)
        return Features(out.cls.float(), out.patches.float(), out.grid)

    def _values(self, shown: Shown) -> torch.Tensor:
        kind, clip = self.prep["values"], self.prep["clip_hu"]
        if not self.reads_hu:
            return shown.images.float()
        hu = shown.hu() if clip is None else shown.hu().clamp(*clip)
        if kind == "unit":
            return (hu - clip[0]) / (clip[1] - clip[0])
        return hu / 1000.0 if kind == "thousandth" else hu

    def _wanted(self, shape: Sequence[int], spacing_mm: Sequence[float]) -> tuple[int, ...]:
        """Voxels of its own size over the same field, in whole patches."""
        own, sizes = self.prep["spacing_mm"] or spacing_mm, self._sizes(3)
        counts = [n * mm / to / size for n, mm, to, size in zip(shape, spacing_mm, own, sizes, strict=True)]
        return tuple(max(1, round(count)) * size for count, size in zip(counts, sizes, strict=True))

    def _sizes(self, axes: int) -> tuple[int, ...]:
        return patch_sizes(self.patch if isinstance(self.patch, int) else self.patch[:axes], axes)

    def _check_values(self) -> None:
        kind, own = self.prep["values"], self.student
        if self.reads_hu:
            check_hu(own, self.prep["clip_hu"], self.name)
            return
        same = kind == own["values"] and list(self.prep["clip_hu"] or ()) == list(own["clip_hu"] or ())
        flat = kind != "zscore-slice" or self.prep["axes"] == own["axes"]
        if not kind.startswith("zscore") or not same or not flat:
            got = f"{own['values']} of {own['clip_hu']} on {own['axes']}"
            wanted = f"{kind} of {self.prep['clip_hu']} on {self.prep['axes']}"
            raise _unlike(self.name, wanted, got)


def encoder_teacher(
    folder: Path,
    student: Mapping[str, Any],
    *,
    patch: int | None = None,
    vox: Sequence[int] | None = None,
) -> EncoderTeacher:
    """The teacher in a folder.

    Args:
        folder: of an encoder (`io.encoder_file`). student: facts of the student's preparation.
        patch, vox: as of `EncoderTeacher`.

    Raises:
        UsageError: `CONFIG_VALUE` for values that the student's do not hold, `MODEL_INPUT` for another
            network than a vit.
        WeightsError: as of `io.encoder_file.load_encoder` and `model.encoder.load_tensors`.
    """
    file = load_encoder(folder)
    encoder = build_encoder(file.config)
    load_tensors(encoder, {name: torch.from_numpy(array) for name, array in file.tensors.items()})
    sha256 = str(file.card["sha256"])
    return EncoderTeacher(folder.name, vit_of(encoder), file.config, sha256, student, patch=patch, vox=vox)


def _unlike(name: str, expected: str, got: object) -> UsageError:
    return UsageError(
        "CONFIG_VALUE",
        f"a student is shown what its teacher {name} can read",
        expected=expected,
        got=got,
        hint="Prepare the student's store another way, or take another teacher.",
    )
