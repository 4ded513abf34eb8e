"""An index on disk and exact search in it: against a plain sort, in parts, filtered, fused, and refused."""

import json

import numpy as np
import pytest

from hilum.errors import OutputError, UsageError, WeightsError
from hilum.io.lock import output_lock
from hilum.io.vector_index import IndexModel, open_index, writing
from hilum.read import search
from hilum.read.search import allowed_rows, fused, nearest

MODEL = IndexModel("tiny", "a" * 64, {"report": 12, "disease": 8})


def unit(count, width, seed=0):
    rows = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def filled(folder, counts=(5, 1, 9)):
    first = 0
    with writing(folder, MODEL) as writer:
        for part, count in enumerate(counts):
            keys = [f"s{first + i}" for i in range(count)]
            vectors = {"report": unit(count, 12, part), "disease": unit(count, 8, 100 + part)}
            writer.add(
                keys, vectors, {"patient": [f"p{i % 3}" for i in range(count)], "age": list(range(count))}
            )
            first += count
    return open_index(folder)


def test_what_was_added_comes_back(tmp_path):
    index = filled(tmp_path / "a")
    assert len(index) == 15 and index.keys() == [f"s{i}" for i in range(15)] and index.model == MODEL
    found = np.concatenate(list(index.vectors("disease")))
    assert np.array_equal(found, np.concatenate([unit(n, 8, 100 + p) for p, n in enumerate((5, 1, 9))]))
    assert index.rows().column("patient").to_pylist()[:4] == ["p0", "p1", "p2", "p0"]
    index.verify()
    assert [row["key"] for row in index.picked([14, 5, 0, 5, 6])] == ["s14", "s5", "s0", "s5", "s6"]
    assert index.picked([6])[0] == {"key": "s6", "patient": "p0", "age": 0} and index.picked([]) == []
    with writing(tmp_path / "a", MODEL) as writer:
        assert writer.known("s3") and not writer.known("s15")
        writer.add([], {}, {})
    assert open_index(tmp_path / "a").parts == index.parts


@pytest.mark.parametrize("block_bytes", [1, 200, 2**26])
@pytest.mark.parametrize("count", [1, 4, 40])
def test_search_is_a_sort_of_all_cosines(tmp_path, monkeypatch, block_bytes, count):
    monkeypatch.setattr(search, "BLOCK_BYTES", block_bytes)
    index, asked = filled(tmp_path / "a"), unit(3, 12, 7)
    allowed = np.arange(15) % 2 == 1
    for only in (None, allowed):
        hits = nearest(index, "report", asked, count, only)
        cosines = asked @ np.concatenate(list(index.vectors("report"))).T
        if only is not None:
            cosines[:, ~only] = -np.inf
        order = np.argsort(-cosines, axis=1)[:, :count]
        best = np.take_along_axis(cosines, order, axis=1)
        kept = min(count, 15)
        assert np.allclose(hits.scores[:, :kept], best, atol=1e-6)
        assert np.array_equal(hits.rows[:, :kept], np.where(np.isfinite(best), order, -1))
        assert (hits.rows[:, kept:] == -1).all()


def test_filters_are_columns(tmp_path):
    index = filled(tmp_path / "a")
    assert allowed_rows(index, {}) is None
    held = allowed_rows(index, {"patient": "p1", "age": "1"})
    assert np.flatnonzero(held).tolist() == [1, 7]
    with pytest.raises(UsageError, match=r"COLUMN_MISSING.*sex"):
        allowed_rows(index, {"sex": "f"})


def test_rankings_are_fused_by_rank():
    told = fused([["a", "b", "c"], ["b", "d"]])
    assert [item for item, _ in told] == ["b", "a", "d", "c"]
    assert dict(told)["b"] == pytest.approx(1 / 62 + 1 / 61)
    assert fused([["a", "b"], ["b", "a"]], [1.0, 3.0])[0][0] == "b" and fused([]) == []
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        fused([["a"]], [1.0, 2.0])


def test_another_models_questions_are_refused(tmp_path):
    index = filled(tmp_path / "a")
    index.require_model("tiny", "a" * 64)
    with pytest.raises(WeightsError, match=r"CACHE_STALE.*other"):
        index.require_model("other", "b" * 64)
    with (
        pytest.raises(WeightsError, match="CACHE_STALE"),
        writing(tmp_path / "a", IndexModel("o", "b" * 64, {})),
    ):
        pass
    for asked, count, space, code in (
        (unit(1, 11), 3, "report", "CONFIG_VALUE"),
        (unit(1, 12), 0, "report", "CONFIG_VALUE"),
        (unit(1, 12), 3, "lobes", "OPTION_UNKNOWN"),
    ):
        with pytest.raises(UsageError, match=code):
            nearest(index, space, asked, count)


def test_rows_that_do_not_fit_are_refused_and_leave_nothing(tmp_path):
    index = filled(tmp_path / "a")
    good = {"report": unit(2, 12), "disease": unit(2, 8)}
    with writing(tmp_path / "a", MODEL) as writer:
        for keys, vectors in (
            (["x", "x"], good),
            (["x", "s3"], good),
            (["x"], good),
            (["x", "y"], {"report": good["report"]}),
            (["x", "y"], good | {"report": 2 * good["report"]}),
            (["x", "y"], good | {"report": good["report"].astype(np.float64)}),
            (["x", "y"], good | {"lobes": good["report"]}),
        ):
            with pytest.raises(UsageError, match="CONFIG_VALUE"):
                writer.add(keys, vectors, {})
    assert open_index(tmp_path / "a").parts == index.parts
    assert sorted(p.name for p in (tmp_path / "a").iterdir() if p.name.startswith("part")) == [
        "part-000000", "part-000001", "part-000002"
    ]  # fmt: skip


def test_readers_hold_what_they_opened_and_there_is_one_writer(tmp_path):
    before = filled(tmp_path / "a")
    with writing(tmp_path / "a", MODEL) as writer:
        with pytest.raises(OutputError, match="OUTPUT_LOCKED"), output_lock(tmp_path / "a"):
            pass
        writer.add(["new"], {"report": unit(1, 12, 50), "disease": unit(1, 8)}, {})
        during = open_index(tmp_path / "a")
        assert nearest(during, "report", unit(1, 12, 50), 1).rows[0, 0] == 15
    assert len(before) == 15 and nearest(before, "report", unit(1, 12, 50), 1).scores[0, 0] < 0.99
    # rows without a column that others have hold nothing there
    assert during.rows().column("patient").to_pylist()[-1] is None
    assert np.flatnonzero(allowed_rows(during, {"patient": "p2"})).tolist() == [2, 8, 11, 14]
    assert during.rows(["age", "none"]).column_names == ["age"]


def change(path, at, byte):
    raw = bytearray(path.read_bytes())
    raw[at] = byte
    path.write_bytes(bytes(raw))


def test_damage_is_named(tmp_path):
    folder = tmp_path / "a"
    filled(folder)
    vectors = folder / "part-000001" / "vectors.safetensors"
    whole = vectors.read_bytes()
    change(vectors, len(whole) - 3, 77)
    with pytest.raises(WeightsError, match="WEIGHTS_HASH"):
        open_index(folder).verify()
    vectors.write_bytes(whole[:-5])
    with pytest.raises(WeightsError, match="WEIGHTS_TRUNCATED"):
        list(open_index(folder).vectors("report"))
    vectors.unlink()
    with pytest.raises(WeightsError, match="WEIGHTS_TRUNCATED"):
        open_index(folder)
    facts = json.loads((folder / "index.json").read_text())
    for told, code in (
        ("no json", "CONFIG_FILE"),
        ("[]", "CONFIG_FILE"),
        (json.dumps(facts | {"kind": "other"}), "CONFIG_FILE"),
        (json.dumps(facts | {"format": 3}), "FORMAT_NEWER"),
        (json.dumps(facts | {"parts": [{"name": "../x", "rows": 1, "sha256": {}}]}), "CONFIG_FILE"),
    ):
        (folder / "index.json").write_text(told)
        with pytest.raises(WeightsError, match=code):
            open_index(folder)
    with pytest.raises(WeightsError, match="CONFIG_FILE"):
        open_index(tmp_path / "none")


def test_a_folder_of_something_else_stays_as_it_is(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(OutputError, match="OUTPUT_EXISTS"), writing(tmp_path / "notes", MODEL):
        pass
    assert [p.name for p in (tmp_path / "notes").iterdir()] == ["a.txt"]
