"""The catalogue is complete, well formed, and the source uses no code that it lacks."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path

import hilum
from hilum.catalogue import CATALOGUE
from hilum.errors import HeaderError

ROOT = Path(hilum.__file__).parent
ROWS = {"A": 22, "B": 18, "C": 21, "D": 15, "E": 12, "F": 12, "G": 12}
RAISED = re.compile(r"(?:Finding|Error|Refused)\(\s*\"([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*)\"")


def test_every_row_of_the_catalogue_is_there_once() -> None:
    numbered = [e.row for e in CATALOGUE.values() if e.row != "+"]
    assert numbered == [f"{letter}{k:02d}" for letter, count in ROWS.items() for k in range(1, count + 1)]


def test_entries_are_well_formed() -> None:
    for code, entry in CATALOGUE.items():
        assert re.fullmatch(r"[A-Z0-9]+(_[A-Z0-9]+)*", code) and entry.code == code
        assert entry.policy in ("refuse", "repair", "note", "ask")
        assert entry.rule.endswith(".") and entry.rule[0].isupper() and "  " not in entry.rule


def test_every_code_in_io_and_cli_is_in_the_catalogue() -> None:
    for path in [*ROOT.joinpath("io").glob("*.py"), *ROOT.joinpath("cli").glob("*.py"), ROOT / "geometry.py"]:
        codes = set(RAISED.findall(path.read_text()))
        assert codes <= set(CATALOGUE), (path.name, sorted(codes - set(CATALOGUE)))


def test_codes_in_capitals_anywhere_in_io_are_known() -> None:
    # Also those that reach an error through a variable: every quoted CAPITAL_WORD that looks like a code.
    known = set(CATALOGUE)
    for path in ROOT.joinpath("io").glob("[!d]*.py"):
        words = set(re.findall(r'"(?!HILUM_|XDG_|HF_)([A-Z][A-Z0-9]+_[A-Z0-9_]+)"', path.read_text()))
        assert words <= known, (path.name, sorted(words - known))


def test_the_catalogue_needs_the_standard_library_only() -> None:
    source = (ROOT / "catalogue.py").read_text()
    for name in re.findall(r"^(?:from|import) (\w+)", source, flags=re.MULTILINE):
        assert name in sys.stdlib_module_names, name


def test_check_loads_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from hilum.cli import run; code = run(['check', sys.argv[1]]);"
        "assert code == 3, code; assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "gone")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_an_error_crosses_processes_whole() -> None:
    error = HeaderError(
        "NAN_IN_DATA", "values are numbers", expected="numbers", got=3, path="a.nii", hint="Look."
    )
    back = pickle.loads(pickle.dumps(error))  # noqa: S301 - what multiprocessing does
    assert type(back) is HeaderError and str(back) == str(error) and back.as_dict() == error.as_dict()
