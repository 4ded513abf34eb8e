"""Imports point one way: a room may import only rooms before it, at a file's top or inside a function."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "hilum"

ORDER = (
    ("errors", "heap", "types", "tensors", "geometry", "volume", "catalogue"),
    ("io",),
    ("text",),
    ("phantom",),
    ("cohort",),
    ("model",),
    ("convert",),
    ("objective",),
    ("train",),
    ("read",),
    ("exam",),
    ("show",),
    ("cli", "__main__"),
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
WITHOUT_TORCH = ("io", "text", "errors", "heap", "types", "geometry", "volume", "catalogue")

# `Reading.save` is a convenience; it finds its writer, one room further down, when it is called.
ALLOWED = {("read/reading.py", "hilum.show.save")}


def _type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _imports(tree: ast.AST, package: str) -> list[str]:
    """Every module a file imports, `importlib.import_module("...")` included, except under TYPE_CHECKING."""
    found: list[str] = []
    for node in ast.iter_child_nodes(tree):
        if _type_checking(node):
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: -(node.level - 1) or None]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found += [f"{module}.{alias.name}" for alias in node.names] if module == "hilum" else [module]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            target = node.args[0]
            if isinstance(target, ast.Constant) and isinstance(target.value, str):
                found.append(target.value)
        found += _imports(node, package)
    return found


def _room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def violations(source: Path = SOURCE) -> list[str]:
    wrong = []
    for path in sorted(source.rglob("*.py")):
        name = path.relative_to(source).as_posix()
        room = name.split("/")[0].removesuffix(".py")
        if room == "__init__":
            continue
        package = ".".join(["hilum", *path.relative_to(source).parent.parts])
        for module in _imports(ast.parse(path.read_text(encoding="utf-8")), package):
            parts = module.split(".")
            if parts[0] != "hilum" or len(parts) < 2 or parts[1] == "__version__":
                continue
            if RANK.get(parts[1], 99) > RANK[room] and (name, module) not in ALLOWED:
                wrong.append(f"{name} imports {module}")
    return wrong


def test_every_room_has_a_rank() -> None:
    rooms = {_room(path) for path in SOURCE.rglob("*.py")} - {"__init__"}
    assert rooms <= set(RANK), f"unknown rooms: {rooms - set(RANK)}"


def test_imports_point_one_way() -> None:
    assert violations() == []


@pytest.mark.parametrize(
    "text",
    [
        "from hilum.cli import main",
        "def f():\n    import hilum.show.page",
        "import importlib\ndef f():\n    return importlib.import_module('hilum.read.reader')",
        "from hilum import read",
        "from ..train import loop",
    ],
)
def test_the_layer_test_can_fail(tmp_path: Path, text: str) -> None:
    (tmp_path / "io").mkdir()
    (tmp_path / "io" / "bad.py").write_text(text)
    assert len(violations(tmp_path)) == 1


def test_type_checking_imports_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "io").mkdir()
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import hilum.read.reader\n"
    (tmp_path / "io" / "fine.py").write_text(text)
    assert violations(tmp_path) == []


def test_io_and_text_never_name_torch() -> None:
    named = [
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if _room(path) in WITHOUT_TORCH
        and any(m.split(".")[0] == "torch" for m in _imports(ast.parse(path.read_text("utf-8")), "hilum"))
    ]
    assert named == []


@pytest.mark.parametrize("room", ["io", "text"])
def test_rooms_without_torch_load_none_at_run_time(room: str) -> None:
    modules = sorted(
        ".".join(["hilum", *p.relative_to(SOURCE).with_suffix("").parts])
        for p in (SOURCE / room).rglob("*.py")
    )
    modules = [m.removesuffix(".__init__") for m in modules]
    load = f"for m in {modules!r}: importlib.import_module(m)"
    code = f"import sys, importlib\n{load}\nsys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:] or f"hilum.{room} loads torch"
