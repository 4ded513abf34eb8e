"""Public names, arguments, commands and options are frozen in tests/surface.json."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _tool(name: str):
    spec = importlib.util.spec_from_file_location(f"house_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_surface_is_the_frozen_one() -> None:
    frozen = json.loads((ROOT / "tests" / "surface.json").read_text(encoding="utf-8"))
    now = _tool("surface").surface()
    flat = [
        {
            f"{part} {group}: {name}"
            for part, groups in known.items()
            for group, names in groups.items()
            for name in names
        }
        for known in (frozen, now)
    ]
    removed, added = sorted(flat[0] - flat[1]), sorted(flat[1] - flat[0])
    assert (removed, added) == ([], []), (
        "the public surface changed. If that is meant, run `python tools/surface.py --write`; "
        "a removal also needs a line in CHANGELOG.md"
    )


def test_every_command_documents_every_option() -> None:
    import click

    for name, command in _tool("surface").commands().items():
        assert command.help, f"{name} has no help"
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.opts[0]} has no help"
