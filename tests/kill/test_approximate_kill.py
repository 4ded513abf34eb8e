"""`kill -9` while lists of an index are made: those of before stay, and the next run makes its own."""

from pathlib import Path

import numpy as np
import pytest
from _killed import killed

from hilum.io.inverted_lists import FILE, open_lists
from hilum.io.vector_index import LEFTOVERS, IndexModel, open_index, writing
from hilum.read import approximate
from hilum.read.search import nearest

SCRIPT = """
import sys
import numpy as np
from hilum.io.vector_index import IndexModel, writing
from hilum.read import approximate
approximate.LEAST_ROWS = approximate.HELD_OUT = 500
approximate.ROUNDS = 2
for _ in range(200):
    with writing(sys.argv[1], IndexModel("m", "a" * 64, {"report": 64})) as writer:
        part = len(writer.index.parts)
        rows = np.random.default_rng(part).normal(size=(2000, 64)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        writer.add([f"{part}-{i}" for i in range(2000)], {"report": rows}, {"part": [part] * 2000})
    approximate.build_lists(sys.argv[1], "report")
    if part == 0:
        print("begun", flush=True)
"""


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.13, 0.3, 0.55])
def test_lists_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after_s: float) -> None:
    folder = tmp_path / "index"
    killed(SCRIPT, folder, after_s)
    index = open_index(folder)
    index.verify()
    lists = open_lists(index, "report")
    assert lists is not None and lists.facts.rows >= 2000
    lists.verify()
    # what came after the lists is found all the same
    asked = np.concatenate([np.array(part[-1:]) for part in index.vectors("report")])
    last = nearest(index, "report", asked, 1, lists=lists).rows[:, 0]
    assert last[lists.facts.parts :].tolist() == [
        2000 * (n + 1) - 1 for n in range(lists.facts.parts, len(index.parts))
    ]
    monkeypatch.setattr(approximate, "LEAST_ROWS", 500)
    monkeypatch.setattr(approximate, "HELD_OUT", 500)
    made = approximate.build_lists(folder, "report")
    assert made is not None and made.rows == len(index)
    assert [path.name for path in folder.iterdir() if FILE.fullmatch(path.name)] == [made.file]
    assert not list(folder.glob(LEFTOVERS))
    with writing(folder, IndexModel("m", "a" * 64, {"report": 64})) as writer:
        assert len(writer.index) == made.rows
