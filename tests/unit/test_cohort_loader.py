"""The loader: sample k is a function of seed and k, whoever asks for it and whenever."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from _store_scans import write_scans
from torch.utils.data import DataLoader

from hilum.cohort.loader import Crop, CropLoader, Part
from hilum.cohort.prep_presets import Pipeline, pipeline
from hilum.cohort.store import Store, open_store
from hilum.cohort.store_write import StoreJob, prepare_store
from hilum.errors import ContainerError, RunError, UsageError


def store_of(folder: Path, name: str, count: int, prep: Pipeline | str = "native") -> Store:
    paths = write_scans(folder / f"{name}-scans", count)
    jobs = [StoreJob(f"{name}{i}", str(path)) for i, path in enumerate(paths)]
    assert not prepare_store(jobs, folder / name, prep, where="here").refused
    return open_store(folder / name)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    folder = tmp_path_factory.mktemp("stores")
    return store_of(folder, "a", 3), store_of(folder, "b", 1)


def loader_of(stores: tuple[Store, Store], **more: object) -> CropLoader:
    parts = [Part(stores[0], 3.0), Part(stores[1], 1.0)]
    return CropLoader(parts, **{"shape_vox": (24, 16, 20), "seed": 5, **more})  # type: ignore[arg-type]


def same(first: Crop, second: Crop) -> bool:
    return (
        first[1:4] == second[1:4]
        and torch.equal(first.image, second.image)
        and torch.equal(first.start_vox, second.start_vox)
    )


def test_a_crop_is_cut_out_of_its_scan(stores: tuple[Store, Store]) -> None:
    loader = loader_of(stores)
    places = set()
    for k in range(60):
        crop = loader.sample(k)
        assert crop.k == k and crop.image.shape == (1, 24, 16, 20)
        store = stores[crop.part]
        row, (x, y, z) = store.row(crop.key), crop.start_vox.tolist()
        whole = store.read(crop.key)[x : x + 24, y : y + 16, z : z + 20]
        assert np.allclose(crop.image[0].numpy(), whole * row.slope + row.intercept, atol=1e-6)
        places.add((crop.key, x, y, z))
    assert len(places) > 55


def test_sample_k_does_not_depend_on_what_was_drawn_before(stores: tuple[Store, Store]) -> None:
    loader, other = loader_of(stores), loader_of(stores)
    for k in (17, 3, 900, 3, 2**40):
        assert same(loader.sample(k), other.sample(k))
    assert not same(loader.sample(3), loader_of(stores, seed=6).sample(3))


def test_ranks_share_the_stream(stores: tuple[Store, Store]) -> None:
    whole = [crop.k for crop in loader_of(stores, stop=23)]
    assert whole == list(range(23))
    shares = [[crop.k for crop in loader_of(stores, stop=23, rank=r, ranks=3)] for r in range(3)]
    assert shares == [list(range(r, 23, 3)) for r in range(3)]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores are meant
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("workers", [0, 3])
def test_batches_do_not_depend_on_workers(stores: tuple[Store, Store], ranks: int, workers: int) -> None:
    data = loader_of(stores, stop=24, block=4, ranks=ranks)
    batches = DataLoader(
        data, batch_size=4, num_workers=workers, multiprocessing_context="fork" if workers else None
    )
    seen = [batch.k.tolist() for batch in batches]
    mine = list(range(0, 24, ranks))
    assert seen == [mine[i : i + 4] for i in range(0, len(mine), 4)]


def test_workers_read_what_the_parent_reads(stores: tuple[Store, Store]) -> None:
    # forked after the parent decoded chunks: Blosc2's thread pool would hang here
    data = loader_of(stores, stop=8, block=2)
    parent = [data.sample(k) for k in range(8)]
    batches = list(DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context="fork"))
    images = torch.cat([batch.image for batch in batches])
    assert torch.equal(images, torch.stack([crop.image for crop in parent]))
    assert [key for batch in batches for key in batch.key] == [crop.key for crop in parent]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stopped_stream_goes_on(stores: tuple[Store, Store], ranks: int) -> None:
    straight = list(loader_of(stores, stop=20, ranks=ranks))
    first = loader_of(stores, stop=20, ranks=ranks)
    taken = [crop for crop, _ in zip(first, range(7), strict=False)]
    second = loader_of(stores, stop=20, ranks=ranks)
    second.load_state_dict(first.state_dict(len(taken)))
    joined = taken + list(second)
    assert len(joined) == len(straight) and all(map(same, joined, straight))
    with pytest.raises(RunError, match="RESUME_CHANGED"):
        loader_of(stores, seed=6).load_state_dict(first.state_dict(1))


def test_cohorts_come_by_weight_and_scans_evenly(stores: tuple[Store, Store]) -> None:
    loader = loader_of(stores, shape_vox=(1, 1, 1))
    drawn = Counter(loader.sample(k).key for k in range(2000))
    for key, share in {"a0": 0.25, "a1": 0.25, "a2": 0.25, "b0": 0.25}.items():
        assert abs(drawn[key] / 2000 - share) < 4 * math.sqrt(share * (1 - share) / 2000)
    none_of_b = CropLoader([Part(stores[0]), Part(stores[1], 0.0)], shape_vox=(1, 1, 1), seed=0)
    assert {none_of_b.sample(k).part for k in range(200)} == {0}
    one_key = CropLoader([Part(stores[0], keys=("a1",))], shape_vox=(1, 1, 1), seed=0)
    assert {one_key.sample(k).key for k in range(50)} == {"a1"}


def test_crops_reach_every_border_and_no_further(stores: tuple[Store, Store]) -> None:
    loader = loader_of(stores, shape_vox=(69, 49, 40))
    starts = torch.stack([loader.sample(k).start_vox for k in range(40)])
    assert starts.min(0).values.tolist() == [0, 0, 0] and starts.max(0).values.tolist() == [1, 1, 0]


def test_a_short_scan_lies_in_the_middle_of_padding(stores: tuple[Store, Store]) -> None:
    crop = loader_of(stores, shape_vox=(80, 16, 50)).sample(0)
    store = stores[crop.part]
    row = store.row(crop.key)
    assert crop.start_vox[0] == -5 and crop.start_vox[2] == -5
    y = int(crop.start_vox[1])
    inner = store.read(crop.key)[:, y : y + 16] * row.slope + row.intercept
    assert np.allclose(crop.image[0, 5:75, :, 5:45].numpy(), inner, atol=1e-6)
    low = store.read(crop.key).min() * row.slope + row.intercept
    assert np.allclose(crop.image[0, :5].numpy(), low) and np.allclose(crop.image[0, :, :, 45:].numpy(), low)


def test_slices_are_axial_and_scaled_one_by_one(tmp_path: Path) -> None:
    prep = Pipeline("flat", axes="SLP", spacing_mm=None, values="zscore-slice")
    store = store_of(tmp_path, "s", 1, prep)
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        CropLoader([Part(store)], shape_vox=(8, 8, 8), seed=0)
    loader = CropLoader([Part(store)], shape_vox=(99, 30, 60), seed=0, slices=True)
    depths = set()
    for k in range(30):
        crop = loader.sample(k)
        assert crop.image.shape == (1, 30, 60)
        z, x, y = crop.start_vox.tolist()
        depths.add(z)
        assert y == -5
        whole = store.read(crop.key)[z].astype(np.float64)
        scaled = (whole - whole.mean()) / whole.std()
        assert np.allclose(crop.image[0, :, 5:55].numpy(), scaled[x : x + 30], atol=1e-4)
        assert np.allclose(crop.image[0, :, :5].numpy(), scaled.min(), atol=1e-4)
    assert len(depths) > 10


def test_damage_is_refused_where_it_is_read(tmp_path: Path) -> None:
    store = store_of(tmp_path, "d", 2)
    row = store.row("d1")
    data = bytearray(store.path_of(row).read_bytes())
    data[row.first + 40] ^= 1
    store.path_of(row).write_bytes(data)
    loader = CropLoader([Part(store)], shape_vox=(8, 8, 8), seed=0)
    refused = 0
    for k in range(200):
        try:
            crop = loader.sample(k)
        except ContainerError as error:
            refused += 1
            assert error.code == "STORE_DAMAGED" and "'d1', chunk 0 " in error.message
        else:
            assert crop.key == "d0" or max(crop.start_vox.tolist()) >= 32
    assert refused > 10


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape_vox": (0, 1, 1)},
        {"rank": 2, "ranks": 2},
        {"start": 3, "ranks": 2},
        {"start": -2},
        {"block": 0},
    ],
)
def test_settings_that_make_no_sense(stores: tuple[Store, Store], wrong: dict) -> None:
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        loader_of(stores, **wrong)


def test_parts_that_make_no_sense(stores: tuple[Store, Store]) -> None:
    for parts in ([], [Part(stores[0], -1.0)], [Part(stores[0], 0.0)], [Part(stores[0], math.nan)]):
        with pytest.raises(UsageError, match="CONFIG_VALUE"):
            CropLoader(parts, shape_vox=(1, 1, 1), seed=0)
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        CropLoader([Part(stores[0], keys=())], shape_vox=(1, 1, 1), seed=0)
    with pytest.raises(ContainerError, match="NOT_FOUND"):
        CropLoader([Part(stores[0], keys=("zz",))], shape_vox=(1, 1, 1), seed=0)


def test_presets_load(tmp_path: Path) -> None:
    store = store_of(tmp_path, "p", 1, pipeline("flexict-2d"))
    crop = CropLoader([Part(store)], shape_vox=(256, 256, 1), seed=0, slices=True).sample(0)
    assert crop.image.shape == (1, 256, 256) and abs(float(crop.image.mean())) < 2
