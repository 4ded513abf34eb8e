"""SigLIP beside open_clip's on the same tensors: value, and gradient of images, texts, scale and bias.

    python benchmarks/siglip_peer.py --public DIR [--pairs 12] [--width 32]

DIR is a clone of open_clip; its one file of losses is imported from where it lies. In one process, and on two
gloo ranks that hold half of the pairs each: there its text features travel from rank to rank, once per way
that it knows. Float64, three biases: at -10 nearly all pairs are silent. Writes
benchmarks/results/siglip_peer.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from hilum.objective.siglip import siglip_loss

RESULTS = Path(__file__).parent / "results" / "siglip_peer.json"
TOLERANCE, RANKS = 1e-10, 2
BIASES, WAYS = (-10.0, -2.0, 0.0), ("bidir", "shift", "reduce", "gather")
NAMES = ("images", "texts", "log_scale", "bias")


def public_loss(clone: Path) -> Any:
    """The class, from its file: the package around it wants libraries that are not needed here."""
    spec = importlib.util.spec_from_file_location("public_loss", clone / "src" / "open_clip" / "loss.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SigLipLoss


def inputs(pairs: int, width: int, bias: float) -> list[torch.Tensor]:
    """Raw rows of images and texts, log scale and bias."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(pairs, width, generator=generator, dtype=torch.float64) for _ in range(2)]
    return [*rows, torch.tensor(math.log(10), dtype=torch.float64), torch.tensor(bias, dtype=torch.float64)]


def judged(loss: Any, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Value and gradients."""
    own = [t.clone().requires_grad_() for t in tensors]
    images, texts, log_scale, bias = own
    value = loss(F.normalize(images, dim=1), F.normalize(texts, dim=1), log_scale.exp(), bias)
    value.backward()
    return [value.detach(), *(t.grad for t in own)]


def _ranks(rank: int, folder: str, clone: Path, pairs: int, width: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    public = public_loss(clone)
    part = slice(rank * pairs // RANKS, (rank + 1) * pairs // RANKS)
    found: dict[str, list[torch.Tensor]] = {}
    for bias in BIASES:
        images, texts, *rest = inputs(pairs, width, bias)
        mine = [images[part], texts[part], *rest]
        found[f"ours {bias}"] = judged(siglip_loss, mine)
        for way in WAYS:
            loss = public(rank=rank, world_size=RANKS, dist_impl=way)
            found[f"{way} {bias}"] = judged(loss, mine)
    flat = {f"{name}/{i}": tensor for name, tensors in found.items() for i, tensor in enumerate(tensors)}
    save_file(flat, Path(folder) / f"{rank}.safetensors")
    dist.destroy_process_group()


def on_ranks(clone: Path, pairs: int, width: int) -> dict[str, list[torch.Tensor]]:
    """What DDP makes of both ranks: means of values and of gradients of shared parameters; a row's gradient
    is half of what its rank gives it, since DDP's mean stands behind it."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_ranks, (folder, clone, pairs, width), nprocs=RANKS)
        parts = [load_file(Path(folder) / f"{rank}.safetensors") for rank in range(RANKS)]
    whole: dict[str, list[torch.Tensor]] = {}
    for name in {key.rpartition("/")[0] for key in parts[0]}:
        pairs_of = [[part[f"{name}/{i}"] for part in parts] for i in range(1 + len(NAMES))]
        value, images, texts, scale, bias = pairs_of
        rows = [torch.cat(images) / RANKS, torch.cat(texts) / RANKS]
        whole[name] = [_mean(value), *rows, _mean(scale), _mean(bias)]
    return whole


def _mean(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(parts).mean(0)


def apart(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> dict[str, float]:
    """Largest difference of the value and of each gradient."""
    pairs = zip(("value", *NAMES), found, wanted, strict=True)
    return {name: float((a - b).abs().max()) for name, a, b in pairs}


def main(clone: Path, pairs: int, width: int) -> dict[str, Any]:
    """Everything against open_clip in one process."""
    public = public_loss(clone)()
    alone = {bias: judged(public, inputs(pairs, width, bias)) for bias in BIASES}
    rows: list[dict[str, Any]] = [
        {
            "what": "ours, 1 process",
            "start": bias,
            **apart(judged(siglip_loss, inputs(pairs, width, bias)), wanted),
        }
        for bias, wanted in alone.items()
    ]
    spread = on_ranks(clone, pairs, width)
    for way in ("ours", *WAYS):
        for bias, wanted in alone.items():
            what = "ours, 2 ranks" if way == "ours" else f"open_clip, 2 ranks, {way}"
            rows.append({"what": what, "start": bias, **apart(spread[f"{way} {bias}"], wanted)})
    ours = [row for row in rows if row["what"].startswith("ours")]
    worst = max(row[name] for row in ours for name in ("value", *NAMES))
    return {
        "pairs": pairs, "width": width, "reference": "open_clip, 1 process", "rows": rows,
        "largest_difference_of_ours": worst, "tolerance": TOLERANCE, "equal": worst <= TOLERANCE,
        "torch": torch.__version__,
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--public", type=Path, required=True, help="clone of open_clip")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--width", type=int, default=32)
    given = parser.parse_args()
    result = main(given.public, given.pairs, given.width)
    print(json.dumps(result, indent=2))
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if result["equal"] else 1)
