"""The command line: exit codes, JSON, one line per error."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "hostile"))
from fixtures_files import patched, save_nifti

import hilum.cli
from hilum.cli import COMMANDS, run
from hilum.cli.common import input_options, json_option
from hilum.errors import OutputError
from hilum.io.limits import Answers


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return save_nifti(tmp_path / "chest.nii.gz")


def test_check_says_yes_and_no(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", str(scan)]) == 0
    shown = capsys.readouterr().out
    assert "would be read" in shown and "48 × 40 × 32 voxels" in shown and "reorder stored axes LAS" in shown
    patched(scan, qoffset=(230.0, -150.0, -300.0))
    assert run(["check", str(scan)]) == 3
    shown = capsys.readouterr().out
    assert "refused" in shown and "AFFINE_DISAGREE" in shown and "--affine" in shown
    assert run(["check", str(scan), "--affine", "qform"]) == 0
    assert run(["check", str(scan), "--mode", "report-only"]) == 0


def test_check_json(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", str(scan), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["refused"] is False and said["geometry"]["shape"] == [48, 40, 32] and said["kind"] == "nifti"
    patched(scan, bitpix=99)
    assert run(["check", str(scan), "--json"]) == 3
    said = json.loads(capsys.readouterr().out)
    assert said["refused"] is True and said["stopping"] == ["DTYPE"]


def test_text_from_a_file_cannot_format_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "[red]\x1b[31m.nii"
    path.write_bytes(b"<html>")
    assert run(["check", str(path)]) == 3
    shown = capsys.readouterr().out
    assert "[red]" in shown and "\x1b" not in shown


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["check"], ["check", "x", "--frame", "-1"], ["check", "x", "--rescale", "1"]]
)
def test_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    assert "Error" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], [], ["check", "--help"]])
def test_help_is_0(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 0
    assert capsys.readouterr().out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    run(["--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    @json_option
    def check(as_json: bool) -> None:
        raise error

    monkeypatch.setattr(hilum.cli.LazyGroup, "get_command", lambda self, ctx, name: check)


def test_an_unexpected_error_is_one_line_and_5(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HILUM_DEBUG", raising=False)
    fail_with(KeyError("a\nb"), monkeypatch)
    assert run(["check"]) == 5
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and "[INTERNAL]" in shown and "KeyError" in shown
    assert run(["check", "--json"]) == 5
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "INTERNAL"
    monkeypatch.setenv("HILUM_DEBUG", "1")
    with pytest.raises(KeyError):
        run(["check"])


def test_errors_of_the_tree_keep_their_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(OutputError("OUTPUT_EXISTS", "results never replace other files unasked"), monkeypatch)
    assert run(["check"]) == 2
    assert "[OUTPUT_EXISTS]" in capsys.readouterr().err
    fail_with(KeyboardInterrupt(), monkeypatch)
    assert run(["check"]) == 130


def test_every_ask_flag_becomes_an_answer() -> None:
    seen: list[tuple[str, Answers]] = []

    @click.command()
    @input_options
    def probe(mode: str, answers: Answers) -> None:
        seen.append((mode, answers))

    line = "--strict --affine qform --assume ras --frame 2 --series 7 --rescale 1.5,-1024 --rectify --split"
    line += " --fill 3 --regrid --allow-mip --accept-fov"
    probe.main(line.split(), standalone_mode=False)
    probe.main(["--series", "1.2.840.1"], standalone_mode=False)
    assert seen[0] == (
        "refuse",
        Answers("qform", "ras", 2, True, True, 3, True, (1.5, -1024.0), 7, True, True),
    )
    assert seen[1] == ("repair", Answers(series="1.2.840.1"))
