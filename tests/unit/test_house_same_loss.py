"""`tools/same_loss.py`: two logs bit for bit, and the whole way with a repository that trains at once."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "same_loss.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("same_loss", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ROWS = [
    '{"step": 0, "seconds": 0.5, "lr": 0.001, "dino": 1.25, "ibot": 0.1}',
    '{"step": 1, "seconds": 0.6, "lr": 0.002, "dino": 1.2000000000000002, "ibot": 0.1}',
    '{"step": 2, "seconds": 0.7, "lr": 0.003, "dino": NaN, "ibot": 0.1}',
]


def log(tool, *rows):
    return tool.read_log("\n".join(rows))


def test_equal_losses_are_equal_whatever_the_time(tool):
    other = [row.replace('"seconds": 0', '"seconds": 9') for row in ROWS]
    assert tool.first_difference(log(tool, *ROWS), log(tool, *other)) is None


@pytest.mark.parametrize(
    ("row", "old", "new", "expected"),
    [
        (1, "1.2000000000000002", "1.2", (1, "dino", "1.2000000000000002", "1.2")),
        (2, "NaN", "0.0", (2, "dino", "NaN", "0.0")),
        (0, '"ibot": 0.1', '"ibot": -0.1', (0, "ibot", "0.1", "-0.1")),
        (0, ', "ibot": 0.1', "", (0, "ibot", "0.1", "nothing")),
        (1, '"ibot"', '"gram"', (1, "ibot", "0.1", "nothing")),
    ],
)
def test_the_first_difference_is_named(tool, row, old, new, expected):
    rows = [*ROWS]
    rows[row] = rows[row].replace(old, new)
    assert rows != ROWS
    assert tool.first_difference(log(tool, *ROWS), log(tool, *rows)) == expected


def test_a_run_that_ends_early_differs(tool):
    found = tool.first_difference(log(tool, *ROWS), log(tool, *ROWS[:2]))
    assert found == (2, "dino", "NaN", "nothing")
    assert tool.first_difference(log(tool, '{"step": 0}'), log(tool)) is None


def test_of_a_step_that_ran_twice_the_last_counts(tool):
    again = [ROWS[0], ROWS[1].replace("1.2000000000000002", "7.5"), ROWS[1], ROWS[2]]
    assert tool.first_difference(log(tool, *ROWS), log(tool, *again)) is None


FAKE = """
import json, os, sys
from pathlib import Path
def main():
    assert sys.argv[1] == "train" and Path(sys.argv[2]).is_file() and "threads=1" in sys.argv
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    out = Path(sys.argv[sys.argv.index("--out") + 1])
    steps = next(int(a.removeprefix("steps=")) for a in sys.argv if a.startswith("steps="))
    out.mkdir()
    rows = [{"step": k, "dino": LOSS} for k in range(steps)]
    (out / "log.jsonl").write_text("\\n".join(map(json.dumps, rows)))
"""


@pytest.fixture
def repository(tool, tmp_path, monkeypatch):
    """Three revisions: a loss, another in its last digit at step 2, and one that cannot be imported."""
    root = tmp_path / "repository"
    (root / "src" / "hilum").mkdir(parents=True)
    (root / "src" / "hilum" / "__init__.py").touch()

    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "core.hooksPath="]
        subprocess.run(["git", *who, "-C", str(root), *words], check=True, capture_output=True)

    git("init", "--quiet")
    for name, loss in (("one", "0.1 * k"), ("two", "0.1 * k + (1e-16 if k == 2 else 0)"), ("bad", "(")):
        (root / "src" / "hilum" / "cli.py").write_text(FAKE.replace("LOSS", loss))
        git("add", ".")
        git("commit", "--quiet", "-m", name)
        git("tag", name)
    monkeypatch.setattr(tool, "ROOT", root)
    return root


def said(tool, capfd, *words):
    code = tool.compare(*words[:2], None, words[2:])
    printed = capfd.readouterr()
    return code, printed.out.strip(), printed.err


def test_two_revisions_are_trained_and_compared(tool, repository, capfd):
    assert said(tool, capfd, "one", "one", "steps=4")[:2] == (0, "equal bit for bit: 4 steps of dino")
    code, out, _ = said(tool, capfd, "one", "two", "steps=4")
    assert code == 1 and out == "different from step 2, dino: one 0.2, two 0.20000000000000012"
    assert said(tool, capfd, "one", "two", "steps=2")[0] == 0
    (repository / "src" / "hilum" / "cli.py").write_text(FAKE.replace("LOSS", "0.1 * k"))
    assert said(tool, capfd, "one", ".", "steps=4")[0] == 0
    for a, b, named in (("one", "bad", "bad"), ("nowhere", "one", "nowhere")):
        code, out, err = said(tool, capfd, a, b, "steps=4")
        assert code == 2 and out == "" and named in err
    trees = subprocess.run(["git", "-C", str(repository), "worktree", "list"], capture_output=True, text=True)
    assert len(trees.stdout.splitlines()) == 1, "no tree is left behind"


def test_the_small_recipe_is_one(tool, tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(tool.RECIPE)
    done = subprocess.run([sys.executable, str(TOOL), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "bit for bit" in done.stdout
    from hilum.train.recipe import load_recipe

    recipe = load_recipe(path, tool.EXACT)
    assert (recipe.threads, recipe.device, recipe.precision, recipe.optim.steps) == (1, "cpu", "fp32", 20)
