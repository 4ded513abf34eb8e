"""Y-Mamba beside the public EXACT code: same random weights in, same maps out.

    python benchmarks/exact_peer.py --public DIR [--shape 32 32 32]

DIR is a clone of the public repository, which has no licence: it is imported from where it lies and nothing
of it is kept. It brings its own copy of MONAI; `mamba_ssm`, which needs a GPU, is replaced by a plain one
written here from the definition. The weights go through `hilum import exact`: a checkpoint as public training
saves it, its table of names, the model folder. Writes benchmarks/results/exact_peer.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from hilum.convert.exact import import_exact
from hilum.io.weights import load_weights, preset_data
from hilum.model.preset import build_exact, load_state, preset_from

RESULTS = Path(__file__).parent / "results" / "exact_peer.json"
TOLERANCE = 1e-4


class PlainMamba(nn.Module):
    """`mamba_ssm.Mamba` by its definition: parameters of its names, a loop over tokens."""

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        inner, self.rank, self.states = expand * d_model, math.ceil(d_model / 16), d_state
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(inner, self.rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, L, d_model) -> the same shape."""
        x, z = self.in_proj(tokens).transpose(1, 2).chunk(2, dim=1)
        x = F.silu(self.conv1d(x)[:, :, : tokens.shape[1]])
        small = self.x_proj(x.transpose(1, 2))
        dt, b, c = small.split([self.rank, self.states, self.states], dim=-1)
        step, a = F.softplus(self.dt_proj(dt)), -torch.exp(self.A_log)
        state, out = x.new_zeros(len(x), *a.shape), []
        for t in range(tokens.shape[1]):
            gain = (step[:, t] * x[:, :, t])[..., None] * b[:, t, None]
            state = torch.exp(step[:, t, :, None] * a) * state + gain
            out.append((state * c[:, t, None]).sum(-1) + self.D * x[:, :, t])
        return self.out_proj(torch.stack(out, dim=1) * F.silu(z.transpose(1, 2)))


def public_model(clone: Path) -> nn.Module:
    """The public Y-Mamba with random weights."""
    stub: Any = types.ModuleType("mamba_ssm")
    stub.Mamba = PlainMamba
    sys.modules["mamba_ssm"] = stub
    sys.path.insert(0, str(clone / "EXACT_Pretrain"))
    from models.ymamba.ymamba import YMamba  # type: ignore[import-not-found]

    return YMamba()


def main(clone: Path, shape: tuple[int, int, int], seed: int) -> dict[str, Any]:
    """Both models on one random scan; the largest difference of every output, after the sigmoid."""
    torch.manual_seed(seed)
    theirs = public_model(clone).eval()
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "best.pth", Path(folder) / "model"
        torch.save({"model_state_dict": theirs.state_dict(), "epoch": 0}, path)
        report = import_exact(path, out)
        card = json.loads((out / "card.json").read_text())
        tensors, _ = load_weights(out / "model.safetensors", sha256=report.sha256)
    ours = build_exact(preset_from(preset_data(card["preset"]))).eval()
    load_state(ours, {name: torch.from_numpy(array) for name, array in tensors.items()})
    scan = torch.rand(1, 1, *shape)
    with torch.inference_mode():
        start = time.process_time()
        organs, (low, high) = theirs(scan)
        theirs_s, start = time.process_time() - start, time.process_time()
        found = ours(scan)
        ours_s = time.process_time() - start
    pairs = {"organs": (organs, found.organs), "low": (low, found.low), "high": (high, found.high)}
    differences = {name: float((a - torch.sigmoid(b)).abs().max()) for name, (a, b) in pairs.items()}
    return {
        "shape": list(shape),
        "seed": seed,
        "parameters": {
            "public": sum(p.numel() for p in theirs.parameters()),
            "ours": sum(p.numel() for p in ours.parameters()),
        },
        "largest_difference": differences,
        "spread_of_public_outputs": {name: float(a.std()) for name, (a, _) in pairs.items()},
        "tolerance": TOLERANCE,
        "equal": max(differences.values()) <= TOLERANCE,
        "processor_s": {"public, plain scan": round(theirs_s, 2), "ours": round(ours_s, 2)},
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--public", type=Path, required=True, help="clone of the public repository")
    parser.add_argument("--shape", type=int, nargs=3, default=(32, 32, 32))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    result = main(given.public, tuple(given.shape), given.seed)
    print(json.dumps(result, indent=2))
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if result["equal"] else 1)
