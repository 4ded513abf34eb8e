"""What the papers say is so: commands exist, blocks compile, files are there, made pages are fresh."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from types import ModuleType

import click
import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAPERS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def _tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"papers_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def _shell_lines() -> list[list[str]]:
    lines = [line for block in _blocks("bash") for line in block.splitlines() if line.strip()]
    return [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]


def test_the_two_commands_stand_on_the_first_screen() -> None:
    first = README[: README.index("## Use")]
    assert "python3 tools/install.py && .venv/bin/hilum demo" in first
    assert "python3 tools/install.py --dev && .venv/bin/python -m pytest" in first
    assert len(first.splitlines()) < 35


@pytest.mark.parametrize("line", _shell_lines(), ids=" ".join)
def test_every_command_of_the_readme_exists(line: list[str]) -> None:
    program, *arguments = line
    if program == "python3":
        assert (ROOT / arguments[0]).is_file()
        known = (ROOT / arguments[0]).read_text(encoding="utf-8")
        assert all(f'"{option}"' in known for option in arguments[1:] if option.startswith("--"))
    elif program == ".venv/bin/python":
        assert importlib.util.find_spec(arguments[arguments.index("-m") + 1]) is not None
    else:
        assert program in ("hilum", ".venv/bin/hilum")
        commands = _tool("surface").commands()
        # a command, or one of a group
        name = next(
            n for n in (" ".join(["hilum", *arguments[:2]]), f"hilum {arguments[0]}") if n in commands
        )
        command = commands[name]
        known = {name for p in command.params if isinstance(p, click.Option) for name in p.opts}
        assert {option for option in arguments if option.startswith("--")} <= known


@pytest.mark.parametrize("block", _blocks("python"))
def test_python_blocks_compile_and_name_what_exists(block: str) -> None:
    import hilum

    compile(block, "README.md", "exec")
    for name in re.findall(r"\bhilum\.(\w+)", block):
        assert hasattr(hilum, name)


def test_the_python_block_uses_fields_a_reading_has() -> None:
    from hilum.read.reading import FindingReading, Reading

    block = "\n".join(_blocks("python"))
    assert all(hasattr(Reading, name) for name in re.findall(r"\breading\.(\w+)", block))
    assert set(re.findall(r"\bfinding\.(\w+)", block)) <= set(FindingReading.model_fields)


@pytest.mark.parametrize("paper", PAPERS, ids=lambda p: p.name)
def test_links_lead_somewhere(paper: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", paper.read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not (paper.parent / t).exists()]
    # The picture of a real page is taken when there is a model.
    assert [t for t in missing if t != "docs/page.png"] == []


def test_every_command_loads_and_is_documented() -> None:
    import hilum.cli

    documented = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    known = _tool("surface").commands()
    for name in hilum.cli.COMMANDS:
        assert f"hilum {name}" in known
        assert f"## hilum {name}\n" in documented


def test_made_pages_are_fresh() -> None:
    stale = [p.name for p, text in _tool("docs").pages().items() if p.read_text(encoding="utf-8") != text]
    assert stale == [], "run `python tools/docs.py`"


def test_every_dependency_is_justified_and_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(d for extra in project["optional-dependencies"].values() for d in extra),
    ]
    names = {re.split(r"[<>=!\[; ]", d)[0].lower() for d in wanted}
    reasons = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").lower()
    pinned = set(re.findall(r"^([\w-]+)==\S+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert {n for n in names if n not in reasons} == set()
    assert names - pinned == set()
    assert "torchvision" not in pinned


def test_architecture_fits_on_its_pages_and_names_every_room() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    rooms = [p.name for p in (ROOT / "src" / "hilum").iterdir() if p.is_dir() and p.name != "__pycache__"]
    assert [room for room in rooms if f"├── {room}/" not in text and f"└── {room}/" not in text] == []


def test_every_sample_stands_in_the_papers_with_its_licence() -> None:
    from hilum.read.samples import SAMPLES

    text = (ROOT / "docs" / "samples.md").read_text(encoding="utf-8")
    for sample in SAMPLES.values():
        assert sample.slug in text and sample.licence in text
        assert f"{sample.volume.archive.package} {sample.volume.archive.version}" in text
