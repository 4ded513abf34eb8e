"""`kill -9` while an index is written: it holds whole parts, and the next writer goes on."""

from pathlib import Path

import numpy as np
import pytest
from _killed import killed

from hilum.io.vector_index import IndexModel, open_index, writing

SCRIPT = """
import sys
import numpy as np
from hilum.io.vector_index import IndexModel, writing
model = IndexModel("m", "a" * 64, {"report": 64})
with writing(sys.argv[1], model) as writer:
    print("begun", flush=True)
    for part in range(len(writer.index.parts), 400):
        rows = np.random.default_rng(part).normal(size=(500, 64)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        writer.add([f"{part}-{i}" for i in range(500)], {"report": rows}, {"part": [part] * 500})
"""


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.05, 0.11, 0.2, 0.33])
def test_an_index_survives(tmp_path: Path, after_s: float) -> None:
    folder = tmp_path / "index"
    for _ in range(2):
        killed(SCRIPT, folder, after_s)
    index = open_index(folder)
    index.verify()
    assert len(index) == 500 * len(index.parts) < 200_000
    for part, rows in enumerate(index.vectors("report")):
        fresh = np.random.default_rng(part).normal(size=(500, 64)).astype(np.float32)
        assert np.allclose(rows, fresh / np.linalg.norm(fresh, axis=1, keepdims=True), atol=1e-6)
    rows = np.eye(64, dtype=np.float32)[:1]
    with writing(folder, IndexModel("m", "a" * 64, {"report": 64})) as writer:
        writer.add(["last"], {"report": rows}, {"part": [-1]})
    assert open_index(folder).keys()[-1] == "last"
    names = {p.name for p in folder.iterdir() if not p.name.startswith(".hilum.")}
    assert names == {"index.json", *(p.name for p in open_index(folder).parts)}, "no leftovers"
