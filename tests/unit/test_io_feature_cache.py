"""Features on disk: theirs is the model, the preparation and the scan, or they are refused."""

import numpy as np
import pytest

from hilum.errors import WeightsError
from hilum.io.feature_cache import open_cache
from hilum.io.weights import load_weights, save_weights

FACTS = {"model": "a" * 64, "prep": {"spacing_mm": [4.0]}, "depth_mm": 12.0}
TENSORS = {
    "both": np.linspace(-3, 3, 24, dtype=np.float32).reshape(1, 2, 3, 4),
    "there": np.array([True, False, True]),
}


def test_what_was_put_comes_back_at_half_precision(tmp_path):
    cache = open_cache(tmp_path, FACTS)
    assert not cache.has("a/b: ü")
    cache.put("a/b: ü", "s1", TENSORS)
    found = open_cache(tmp_path, dict(reversed(FACTS.items()))).get("a/b: ü", "s1")
    assert found["both"].dtype == np.float16 and np.allclose(found["both"], TENSORS["both"], atol=2e-3)
    assert found["there"].tolist() == [True, False, True] and cache.has("a/b: ü")
    first = cache.path("a/b: ü").read_bytes()
    cache.put("a/b: ü", "s1", TENSORS)
    assert cache.path("a/b: ü").read_bytes() == first


def test_another_model_has_another_cache(tmp_path):
    open_cache(tmp_path, FACTS).put("k", "s", TENSORS)
    assert not open_cache(tmp_path, FACTS | {"model": "b" * 64}).has("k")
    cache = open_cache(tmp_path, FACTS)
    (cache.folder / "facts.json").write_text("{}")
    with pytest.raises(WeightsError, match="CACHE_STALE"):
        open_cache(tmp_path, FACTS)


def test_what_is_not_this_scans_or_was_changed_is_refused(tmp_path):
    cache = open_cache(tmp_path, FACTS)
    cache.put("k", "s", TENSORS)
    with pytest.raises(WeightsError, match="CACHE_STALE"):
        cache.get("k", "other")
    cache.path("k").rename(cache.path("m"))
    with pytest.raises(WeightsError, match="CACHE_STALE"):
        cache.get("m")
    tensors, told = load_weights(cache.path("m"))
    tensors["both"][0, 0, 0, 0] += 1
    save_weights(cache.path("m"), tensors, told)
    with pytest.raises(WeightsError, match="WEIGHTS_HASH"):
        cache.get("m")
    cache.path("m").write_bytes(cache.path("m").read_bytes()[:-9])
    with pytest.raises(WeightsError, match="WEIGHTS_TRUNCATED"):
        cache.get("m")
