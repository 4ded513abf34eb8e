"""A trained encoder in use: a scan or its path in, features in millimetres out; texts, and what fits what.

`hilum.load("runs/flexict-text")` opens a folder of `io.encoder_file`. Preparation is the one of its training,
rebuilt from the folder; the model is in evaluation mode and stays there. Nothing is written but by `save`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hilum.cohort.prep_presets import Pipeline
from hilum.errors import UsageError, WeightsError
from hilum.io.encoder_file import (
    CONFIG,
    EncoderConfig,
    EncoderFile,
    ReaderRef,
    is_encoder,
    load_encoder,
    save_encoder,
)
from hilum.model.encoder import Encoder, build_encoder, load_tensors, tensors_of, without_text
from hilum.model.patch import patch_sizes
from hilum.read.encoder_run import Precision, Progress, Runner
from hilum.read.encoder_windows import OVERLAP, cover, covered, field_of, middle, uncropped
from hilum.read.features import SliceFeatures, VolumeFeatures
from hilum.read.maps import finite
from hilum.read.reader_windows import reader_width
from hilum.read.scan_model import ScanModel
from hilum.types import EmbeddingRows, Probabilities, ScanEmbeddings, Similarities
from hilum.volume import CTVolume

Scan = str | Path | CTVolume
Patch = int | Sequence[int]
TEXTS = 64
"""Texts that go through the tower at once."""


class LoadedEncoder:
    """An encoder, ready. Made by `load`.

    Attributes:
        config, card: of its folder. encoder: the modules, in evaluation mode. prep: of volumes. field:
            voxels of it that the model sees at once, 0 for all. runner: what runs the modules.
        reader: what reads windows in the stead of a backbone; then there is neither prep nor field.
    """

    prep: Pipeline
    field: tuple[int, ...]

    def __init__(self, file: EncoderFile, device: str = "cpu", precision: Precision = "fp32") -> None:
        if precision not in ("fp32", "bf16"):
            raise UsageError("OPTION_UNKNOWN", "a precision is known", expected="fp32 | bf16", got=precision)
        self.config: EncoderConfig = file.config
        self.card: dict[str, Any] = dict(file.card)
        self._tokenizer = file.tokenizer
        self._types = {name: tensor.dtype for name, tensor in file.tensors.items()}
        self.reader = None if self.config.reader is None else _reader(self.config.reader)
        if self.reader is None:
            self.prep = Pipeline.from_facts(self.config.prep)
            self.field = field_of(self.prep, self.config.field_vox)
        self._prep_2d = self._slices_prep()
        self._tokens = None if file.tokenizer is None else _tokens(file.tokenizer)
        on = _device(device)
        self.encoder = _built(file, self.reader).eval().to(on)
        self.runner = Runner(self.encoder, on, precision)

    def __repr__(self) -> str:
        millions = sum(p.numel() for p in self.encoder.parameters()) / 1e6
        return f"LoadedEncoder({self.card['name']} · {self.config.kind} · {millions:.1f} M parameters)"

    def encode_volume(self, scan: Scan, *, patch: Patch | None = None) -> VolumeFeatures:
        """The field in the middle of a scan, as the model saw whole fields in training.

        Args:
            scan: a volume, or the path of a DICOM folder or zip, NIfTI, NRRD or NPZ.
            patch: voxels of a patch, one number or one per axis; None takes the config's.

        Raises:
            InputRefused: the input cannot be trusted; `PATCH_GRID` for patches larger than the field.
            UsageError: `MODEL_INPUT` for a model of slices. RunError: `OUTPUT_NONFINITE`.
        """
        self._require_volumes()
        sizes = self._sizes(patch, 3)
        covers = covered(sizes, self.field, self.config.view_vox)
        tensor, trace = self.prep.apply(opened(scan))
        return self.runner.volume(tensor, trace, middle(trace.grid.shape, self.field, covers), sizes)

    def encode_scan(
        self,
        scan: Scan,
        *,
        patch: Patch | None = None,
        overlap: float = OVERLAP,
        batch: int = 1,
        progress: Progress | None = None,
    ) -> VolumeFeatures:
        """All of a scan. One larger than the field is seen in windows of the field; patches are averaged
        where windows overlap, CLS and what the embedding is made of over all windows.

        Args:
            scan, patch: as of `encode_volume`. overlap: least share of a window that the next sees again.
            batch: windows at once. progress: called after each batch.

        Raises:
            As of `encode_volume`; UsageError: `CONFIG_VALUE` for an overlap or batch that is none.
        """
        self._require_volumes()
        sizes = self._sizes(patch, 3)
        covers = covered(sizes, self.field, self.config.view_vox)
        tensor, trace = uncropped(self.prep).apply(opened(scan))
        windows = cover(trace.grid.shape, self.field, covers, overlap)
        return self.runner.volume(tensor, trace, windows, sizes, batch, progress)

    def encode_slices(
        self,
        scan: Scan,
        every: int = 1,
        indices: Sequence[int] | None = None,
        *,
        patch: Patch | None = None,
        batch: int = 8,
        progress: Progress | None = None,
    ) -> SliceFeatures:
        """Axial slices of a prepared scan, each alone.

        Args:
            scan: as of `encode_volume`. every: one in so many, from half as many on.
            indices: which slices of the prepared scan instead; they need not be in order.
            patch: voxels of a patch, one number or one per axis. batch: slices at once.

        Raises:
            UsageError: `MODEL_INPUT` for a model that never saw slices, `CONFIG_VALUE` for a slice that is
                not there. Others as of `encode_volume`.
        """
        prep = self._prep_2d
        if prep is None:
            raise UsageError(
                "MODEL_INPUT",
                "slices need a model that was trained on some",
                expected="kind 2d, or a prep_2d in config.json",
                got=f"kind {self.config.kind} without",
                hint="Use encode_volume or encode_scan.",
            )
        sizes = self._sizes(patch, 2)
        tensor, trace = prep.apply(opened(scan))

        def choose(there: np.ndarray, count: int) -> list[int]:
            return _chosen(there, count, every, indices)

        return self.runner.slices(tensor, trace, sizes, choose, batch, progress)

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str], *, snippets: bool = False) -> EmbeddingRows:
        """Texts in the space of scans, one row each, of length 1 (of a 3d-vlm zeros for a text without a
        token).

        Args:
            texts: reports or prompts. snippets: of a 3d-joint, sentences to be compared with depths.

        Raises:
            UsageError: `MODEL_INPUT` for a model without reports, for snippets of another model than a
                3d-joint, or for one text that is not in a list.
            ReportError: `TEXT_ENCODING`.
        """
        text, tokens = self.config.text, self._tokens
        if self.encoder.text is None or text is None or tokens is None:
            raise without_text("a text")
        if isinstance(texts, str):
            raise UsageError("MODEL_INPUT", "texts are a list", expected="a list of str", got="one str")
        if snippets and self.encoder.joint is None:
            raise UsageError(
                "MODEL_INPUT", "snippets need a model of depths", expected="kind 3d-joint",
                got=f"kind {self.config.kind}",
            )  # fmt: skip
        given = [text.prefix + (one.lower() if text.lower else one) for one in texts]
        rows = [np.zeros((0, int(self.config.embedding or 0)), dtype=np.float32)]
        for start in range(0, len(given), TEXTS):
            ids, mask = tokens(given[start : start + TEXTS], text.max_tokens)
            with self.runner.autocast():
                pooled = self.encoder.text(
                    torch.from_numpy(ids).to(self.runner.device),
                    torch.from_numpy(mask).to(self.runner.device),
                )
                found = self.encoder.text_embedding(pooled, snippets=snippets)
            rows.append(found.float().cpu().numpy())
        return finite(np.concatenate(rows), "the embeddings of texts")

    @torch.inference_mode()
    def encode_patches(self, features: VolumeFeatures) -> EmbeddingRows:
        """Patches of a scan in the space of texts, one row each as in `VolumeFeatures.patches`, of length 1:
        with `similarity` and `VolumeFeatures.on_scan`, where in a scan a text fits.

        Raises:
            UsageError: `MODEL_INPUT` for a model whose patches are in no space of texts.
        """
        patches = torch.from_numpy(features.patches)[None].to(self.runner.device)
        with self.runner.autocast():
            found = self.encoder.patch_embeddings(patches)
        return finite(found[0].float().cpu().numpy(), "the embeddings of patches")

    @torch.inference_mode()
    def similarity(self, scans: ScanEmbeddings, texts: EmbeddingRows) -> Similarities:
        """Cosine times the learned scale (1 to 100): logits over texts for each scan.

        Args:
            scans: `VolumeFeatures.embedding`, or several, one per row. texts: of `encode_text`.

        Raises:
            UsageError: `MODEL_INPUT` for a model without reports, or embeddings of another space.
        """
        if self.encoder.temperature is None:
            raise without_text("a similarity of scans and texts")
        wrong = [array.shape for array in (scans, texts) if array.shape[-1] != self.config.embedding]
        if wrong:
            raise UsageError(
                "MODEL_INPUT",
                "scans and texts lie in the model's space",
                expected=f"{self.config.embedding} numbers each",
                got=wrong[0],
            )
        return np.asarray(float(self.encoder.temperature()) * (scans @ texts.T), dtype=np.float32)

    def zero_shot(
        self, scan: Scan | VolumeFeatures, positives: Sequence[str], negatives: Sequence[str]
    ) -> Probabilities:
        """How much more a scan is like each positive than like its negative: softmax over the two.

        Args:
            scan: as of `encode_volume`, which is used, or features that are there already.
            positives, negatives: as many of each; `prompts` makes FlexiCT's.

        Raises:
            UsageError: `CONFIG_VALUE` for lists of different length. Others as of `encode_volume` and
                `encode_text`.
        """
        if len(positives) != len(negatives):
            raise UsageError(
                "CONFIG_VALUE",
                "every positive has its negative",
                expected=f"{len(positives)} negatives",
                got=len(negatives),
            )
        texts = self.encode_text([*positives, *negatives])
        features = scan if isinstance(scan, VolumeFeatures) else self.encode_volume(scan)
        if features.embedding is None:
            raise without_text("a question to a scan")
        logits = self.similarity(features.embedding, texts).reshape(2, -1).astype(np.float64)
        return (1 / (1 + np.exp(logits[1] - logits[0]))).astype(np.float32)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> str:
        """The folder again, bit for bit where nothing was changed; returns the sha256 of its weights.

        Raises:
            OutputError: `OUTPUT_EXISTS`, `OUTPUT_UNWRITABLE`.
        """
        whole = tensors_of(self.encoder)
        tensors = {name: whole[name].astype(kind) for name, kind in self._types.items()}
        file = EncoderFile(self.config, tensors, self._tokenizer, self.card)
        return save_encoder(Path(folder), file, overwrite=overwrite)

    def _sizes(self, patch: Patch | None, axes: int) -> tuple[int, ...]:
        """Voxels of a patch; slices take the first two of three."""
        own = self.config.patch if isinstance(self.config.patch, int) else self.config.patch[:axes]
        return patch_sizes(own if patch is None else patch, axes)

    def _slices_prep(self) -> Pipeline | None:
        if self.config.prep_2d is not None:
            return Pipeline.from_facts(self.config.prep_2d)
        return self.prep if self.config.kind == "2d" else None

    def _require_volumes(self) -> None:
        if self.reader is not None:
            raise UsageError(
                "MODEL_INPUT", "features of patches need a backbone", expected="an encoder with one",
                got="a model whose windows are read by " + self.reader.name,
                hint="Use hilum locate, hilum index and hilum search.",
            )  # fmt: skip
        if self.config.kind == "2d":
            raise UsageError(
                "MODEL_INPUT",
                "volumes need a model that was trained on some",
                expected="kind 3d or 3d-vlm",
                got="kind 2d",
                hint="Use encode_slices.",
            )


def load(name: str | Path, device: str = "cpu", *, precision: Precision = "fp32") -> LoadedEncoder:
    """An encoder out of its folder.

    Args:
        name: a folder that training or `hilum import` wrote, or the name of one that ships.
        device: ``cpu``, ``cuda``, ``cuda:1``, or ``auto`` for a GPU where there is one.
        precision: ``bf16`` for matrix products in bfloat16.

    Raises:
        UsageError: `MODEL_UNKNOWN`, `OPTION_UNKNOWN`. WeightsError: the folder cannot be trusted, or lacks a
            part: as of `io.encoder_file.load_encoder` and `model.encoder.load_tensors`.
    """
    folder = Path(name)
    if folder.is_dir():
        _require_encoder(folder)
        return LoadedEncoder(load_encoder(folder), device, precision)
    shipped = files("hilum") / "weights"
    with as_file(shipped) as root:
        known = sorted(path.name for path in root.iterdir() if is_encoder(path))
        if str(name) not in known:
            raise UsageError(
                "MODEL_UNKNOWN",
                "an encoder is a folder, or ships with Hilum",
                expected=", ".join(["a folder", *known]),
                got=name,
            )
        return LoadedEncoder(load_encoder(root / str(name)), device, precision)


def prompts(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """FlexiCT's questions about abnormalities (spec §4): positives and negatives."""
    return [f"{name} ." for name in names], [f"No {name}." for name in names]


def _require_encoder(folder: Path) -> None:
    """A folder of another kind is told apart from a damaged one."""
    if not (folder / CONFIG).exists() and (folder / "card.json").is_file():
        raise UsageError(
            "MODEL_UNKNOWN",
            "an encoder's folder has a config.json",
            got="a model that reads scans",
            path=folder,
            hint="Use hilum.read with model=.",
        )


def _built(file: EncoderFile, reader: ScanModel | None) -> Encoder:
    text, width = file.config.text, None if reader is None else reader_width(reader)
    tensors = {name: torch.from_numpy(array) for name, array in file.tensors.items()}
    # fresh weights are drawn and then replaced: the caller's random numbers stay where they were
    with torch.random.fork_rng(devices=[]):
        encoder = build_encoder(file.config, width)
        if text is not None and text.encoder is not None:
            tensors |= _named_tower(text.encoder, text.pooling)
    load_tensors(encoder, tensors)
    return encoder


def _named_tower(name: str, pooling: str) -> dict[str, torch.Tensor]:
    """Weights of a text tower that the folder only names."""
    from hilum.train.text_source import load_text_tower  # the language models' library is heavy

    tower, _, _ = load_text_tower(name, pooling)
    return {f"text.{key}": value for key, value in tower.state_dict().items()}


def _reader(wanted: ReaderRef) -> ScanModel:
    """The model that reads windows, the same bytes as in training."""
    found = ScanModel.load(wanted.name)
    if found.sha256 != wanted.sha256:
        raise WeightsError(
            "CACHE_STALE", "windows are read by the model of the training", expected=wanted.sha256,
            got=found.sha256, hint=f"Train again on features of this {wanted.name}.",
        )  # fmt: skip
    return found


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            "OPTION_UNKNOWN",
            "a device is there",
            expected="cpu, cuda, auto",
            got=f"{name}: {str(error).splitlines()[0]}",
        ) from None
    return device


def opened(scan: Scan) -> CTVolume:
    """A scan as a volume, from its path if need be.

    Raises:
        InputRefused: the input cannot be trusted.
    """
    if isinstance(scan, CTVolume):
        return scan
    from hilum.io.open import open_volume  # the decoders are heavy and not needed for a volume in memory

    return open_volume(scan)


def _tokens(text: str) -> Any:
    # the tokenizers' library is an extra, and only models of reports need it
    from hilum.text.tokens import Tokens

    return Tokens(text)


def _chosen(there: np.ndarray, count: int, every: int, indices: Sequence[int] | None) -> list[int]:
    """Numbers of slices; without `indices` of those that the scan has and padding has not."""
    if indices is None:
        if every < 1:
            raise UsageError("CONFIG_VALUE", "every is a number of slices", expected=">= 1", got=every)
        return [int(k) for k in there[min(every // 2, len(there) - 1) :: every]]
    wrong = [k for k in indices if not 0 <= k < count]
    if wrong or not len(indices):
        raise UsageError(
            "CONFIG_VALUE",
            "slices are those of the prepared scan",
            expected=f"0 to {count - 1}, one at least",
            got=wrong[:5] or "none",
        )
    return [int(k) for k in indices]
