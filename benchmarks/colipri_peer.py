"""COLIPRI beside its public package: same random weights in, same embeddings out; and its preparation.

    python benchmarks/colipri_peer.py --public DIR

DIR is the site-packages folder of an environment with colipri 0.1.3, dynamic-network-architectures, timm,
torchio, hydra-core, omegaconf and what those import: it is put behind this environment's own, so that torch
and NumPy are these. torchvision, which timm names and this does not need, is replaced by an empty one.

The published weights are not used: the package builds its own configuration with random weights (CXR-BERT's
numbers instead of CXR-BERT) and saves them itself; they go through `hilum import colipri` and `hilum.load`. A
scan goes through the package's processor, and both models read that tensor; then Hilum reads the scan with
its own preparation. Scans of real sizes go through both preparations. Writes
benchmarks/results/colipri_peer.json.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import json
import sys
import tempfile
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import tokenizers
import torch
from torch.nn import functional as F

from hilum.cohort.prep_presets import pipeline
from hilum.convert.run import import_encoder
from hilum.io.open import open_volume
from hilum.read.encoder import LoadedEncoder, load

RESULTS = Path(__file__).parent / "results" / "colipri_peer.json"
TOLERANCE = 1e-4
PUBLISHED = 258_367_104
"""Parameters that the hub counts in the published file."""
TEXT = {
    "model_type": "cxr-bert", "projection_size": 128, "hidden_size": 768, "num_hidden_layers": 12,
    "num_attention_heads": 12, "intermediate_size": 3072, "vocab_size": 30522,
    "max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 0,
}  # fmt: skip
WORDS = [
    "no", "there", "is", "a", "lung", "nodule", "pleural", "effusion", "in", "the", "left", "right", "upper",
    "lower", "lobe", ".", "heart", "normal", "size",
]  # fmt: skip
REPORTS = (
    "There is a nodule in the left upper lobe .",
    "No pleural effusion .",
    " ".join(WORDS * 40),
    "Heart normal in size , lung normal .",
)
SCANS: dict[str, tuple[tuple[int, int, int], tuple[float, float, float], str]] = {
    "0.70 x 0.70 x 1.00 mm, float": ((512, 512, 331), (0.7, 0.7, 1.0), "float32"),
    "0.70 x 0.70 x 1.00 mm, int16": ((512, 512, 331), (0.7, 0.7, 1.0), "int16"),
    "0.78 x 0.78 x 5.00 mm, int16": ((512, 512, 63), (0.78125, 0.78125, 5.0), "int16"),
    "0.98 x 0.98 x 1.25 mm, int16": ((512, 512, 361), (0.9765625, 0.9765625, 1.25), "int16"),
}
"""Voxels, their size in mm, type on disk; between them they are cropped and padded by odd numbers."""
READ = "0.70 x 0.70 x 1.00 mm, float"
"""What the models read."""


class _Names(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Empty(types.ModuleType):
    """A module in which every name is there."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Names(name, (), {"__init__": lambda self, *args, **kwargs: None})


class _NoVision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """torchvision and all that is in it, empty."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = _Empty(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: types.ModuleType) -> None: ...


def public_code(folder: Path) -> None:
    """Make the public package importable."""
    sys.path.append(str(folder))
    sys.meta_path.append(_NoVision())


def public_model() -> Any:
    """As its own configuration builds it, with random weights everywhere."""
    from colipri.checkpoint import load_model_config  # type: ignore[import-not-found]
    from hydra.utils import instantiate  # type: ignore[import-not-found]
    from omegaconf import OmegaConf  # type: ignore[import-not-found]

    numbers = {key: TEXT[key] for key in TEXT if key not in ("model_type", "projection_size")}
    tower = {"_target_": "transformers.BertConfig", **numbers}
    config = load_model_config()
    config.text_encoder.backbone = OmegaConf.create(
        {"_target_": "transformers.BertForMaskedLM", "config": tower}
    )
    model = instantiate(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # norms begin at 1 and 0, biases at 0: nothing would be told apart
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def public_processor() -> Any:
    """Its preparation of images alone."""
    from colipri import get_processor

    return get_processor(image_only=True)


def tokenizer() -> tokenizers.Tokenizer:
    """Words of some reports, cased as CXR-BERT's."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({name: n for n, name in enumerate(names)}, unk_token="[UNK]")
    )
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


def imported(theirs: Any, folder: Path) -> LoadedEncoder:
    """Ours, through the importer; the weights as the package saves them."""
    (folder / "hub").mkdir()
    theirs.save_weights(folder / "hub" / "model.safetensors")
    (folder / "text").mkdir()
    (folder / "text" / "config.json").write_text(json.dumps(TEXT))
    (folder / "text" / "tokenizer.json").write_text(tokenizer().to_str())
    import_encoder("colipri", folder / "hub", folder / "ours", text=folder / "text")
    return load(folder / "ours")


def scan(path: Path, name: str, seed: int) -> Path:
    """A smooth random scan with noise, HU, on LPS axes as CT files mostly have them."""
    shape, spacing, kind = SCANS[name]
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 1, 20, 20, 16, generator=generator)
    smooth = F.interpolate(coarse, shape, mode="trilinear")[0, 0]
    hu = 700 * smooth - 300 + 30 * torch.randn(shape, generator=generator)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = [180.0, 175.0, -420.0]
    array = hu.numpy().round() if kind == "int16" else hu.numpy()
    image = nibabel.Nifti1Image(array.astype(kind), affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def preparations(folder: Path, seed: int) -> tuple[dict[str, Any], torch.Tensor]:
    """Differences of the two preparations, in prepared values (1 is 1000 HU); the tensor that is read."""
    processor, found, kept = public_processor(), {}, torch.empty(0)
    for n, name in enumerate(SCANS):
        path = scan(folder / f"{n}.nii", name, seed)
        theirs = processor.to_images_batch(processor.process_images(path)).float()
        volume = open_volume(path)
        ours, trace = pipeline("colipri").apply(volume)
        apart = (ours - theirs).abs()
        found[name] = {
            "largest": float(apart.max()),
            "mean": float(apart.mean(dtype=torch.float64)),
            "share_above_1e-3": float((apart > 1e-3).double().mean()),
            "voxels_of_the_scan": [int(n) for n in volume.shape],
            "grid": list(trace.grid.shape),
        }
        if name == READ:
            kept = theirs
    return found, kept


def theirs_says(model: Any, image: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
    """Embeddings by the public package; one pass through its backbone serves the pooled and the dense."""
    encoder, tokens = model.image_encoder, model.image_encoder.encode(image)
    encoder.encode = lambda images: tokens
    pooled = model.encode_image(image, project=True, pool=True, normalize=True)
    dense = model.encode_image(image, project=True, pool=False, normalize=True)
    return {
        "patches": tokens.flatten(2)[0].T,
        "scan": pooled,
        "dense": dense.flatten(2)[0].T,
        "texts": model.encode_text(ids, mask),
    }


def ours_says(model: LoadedEncoder, image: torch.Tensor) -> dict[str, Any]:
    """The same by ours."""
    out = model.encoder.vision(image)
    return {
        "patches": out.patches[0],
        "scan": model.encoder.image_embedding(out),
        "dense": model.encoder.patch_embeddings(out.patches)[0],
        "texts": torch.from_numpy(model.encode_text(REPORTS)),
    }


def padded(reports: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask as the package's processor has them: cut and padded to 512."""
    made = tokenizer()
    made.enable_truncation(512)
    made.enable_padding(length=512)
    found = made.encode_batch(list(reports))
    return torch.tensor([one.ids for one in found]), torch.tensor([one.attention_mask for one in found])


def main(public: Path, seed: int) -> dict[str, Any]:
    """Both on one scan and some texts; the largest difference of every kind of embedding."""
    public_code(public)
    torch.manual_seed(seed)
    theirs = public_model()
    ids, mask = padded(REPORTS)
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        prepared, image = preparations(folder, seed)
        ours = imported(theirs, folder)
        stored = {key: tensor.numel() for key, tensor in theirs.state_dict().items()}
        own = sum(p.numel() for p in ours.encoder.parameters())
        started = time.perf_counter()
        wanted = theirs_says(theirs, image, ids, mask)
        their_s = time.perf_counter() - started
        started = time.perf_counter()
        found = ours_says(ours, image)
        our_s = time.perf_counter() - started
        whole = ours.encode_volume(folder / f"{list(SCANS).index(READ)}.nii")
    assert whole.embedding is not None
    apart = {kind: float((found[kind] - wanted[kind]).abs().max()) for kind in wanted}
    return {
        "public": "colipri 0.1.3",
        "seed": seed,
        "parameters": {
            "published": PUBLISHED,
            "public_tensors_but_the_temperature": sum(stored.values()) - stored["softmax_temperature"],
            "ours": own,
            "ours_that_are_not_public": ["temperature.log_scale"],
            "public_that_are_not_ours": ["image_encoder.backbone.mask_token", "softmax_temperature"],
        },
        "largest_difference": apart,
        "rows": {kind: len(rows) for kind, rows in wanted.items()},
        "largest_value": {kind: float(rows.abs().max()) for kind, rows in wanted.items()},
        "texts_apart": float(torch.pdist(wanted["texts"]).min()),
        "from_the_file_with_our_preparation": {
            "scan": float((torch.from_numpy(whole.embedding) - wanted["scan"][0]).abs().max()),
            "cosine": float(torch.from_numpy(whole.embedding) @ wanted["scan"][0]),
        },
        "preparation": prepared,
        "seconds": {"public": round(their_s, 1), "ours": round(our_s, 1), "threads": torch.get_num_threads()},
        "tolerance": TOLERANCE,
        "equal": all(apart[kind] <= TOLERANCE for kind in ("scan", "dense", "texts")),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--public", type=Path, required=True, help="site-packages with the public package")
    parser.add_argument("--seed", type=int, default=0)
    given_arguments = parser.parse_args()
    result = main(given_arguments.public, given_arguments.seed)
    print(json.dumps(result, indent=2))
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if result["equal"] else 1)
