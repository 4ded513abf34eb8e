"""The public surface: names and arguments of the public modules, and every command and option.

    python tools/surface.py            show
    python tools/surface.py --write    freeze it in tests/surface.json

Removing or renaming something public needs a line in CHANGELOG.md.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
FROZEN = ROOT / "tests" / "surface.json"

PUBLIC = (
    "catalogue",
    "cohort/prep",
    "errors",
    "exam/samples",
    "geometry",
    "io/encoder_file",
    "io/limits",
    "io/nifti",
    "io/open",
    "phantom/draw",
    "phantom/make",
    "phantom/plan",
    "read/encoder",
    "read/features",
    "read/reader",
    "read/reading",
    "read/samples",
    "read/scan_model",
    "tensors",
    "text/label_file",
    "text/labels",
    "text/sections",
    "text/vocabulary",
    "types",
    "volume",
)


def surface() -> dict[str, dict[str, list[str]]]:
    """``{"python": {module: names}, "cli": {command: options}}``, sorted."""
    modules = {name: ROOT / "src" / "hilum" / f"{name}.py" for name in PUBLIC}
    python = {
        f"hilum.{name.replace('/', '.')}": sorted(_names(ast.parse(path.read_text(encoding="utf-8"))))
        for name, path in modules.items()
        if path.is_file()
    }
    return {
        "python": python,
        "cli": {name: _options(command) for name, command in sorted(commands().items())},
    }


def commands() -> dict[str, click.Command]:
    """Every command by its full name, ``hilum`` itself included."""
    import hilum.cli

    groups = [value for value in vars(hilum.cli).values() if isinstance(value, click.Group)]
    if not groups:
        return {}
    found: dict[str, click.Command] = {}
    _walk("hilum", groups[0], found)
    return found


def _walk(name: str, command: click.Command, found: dict[str, click.Command]) -> None:
    found[name] = command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for child in command.list_commands(context):
            try:
                known = command.get_command(context, child)
            except ModuleNotFoundError as error:
                print(f"{name} {child} cannot be loaded: {error}", file=sys.stderr)
                continue
            if known is not None:
                _walk(f"{name} {child}", known, found)


def _options(command: click.Command) -> list[str]:
    texts = []
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            texts.append("/".join([*parameter.opts, *parameter.secondary_opts]))
        else:
            texts.append((parameter.name or "").upper())
    return sorted(texts)


def _names(tree: ast.Module) -> list[str]:
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found += [_signature(node)]
        elif isinstance(node, ast.ClassDef):
            found += [node.name]
            found += [f"{node.name}.{name}" for name in _members(node)]
        elif isinstance(node, ast.Assign):
            found += [t.id for t in node.targets if isinstance(t, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found += [node.target.id]
    return [name for name in found if not name.startswith("_") and "._" not in name]


def _members(node: ast.ClassDef) -> list[str]:
    functions = [_signature(n) for n in node.body if isinstance(n, ast.FunctionDef)]
    fields = [
        n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    ]
    return functions + fields


def _signature(node: ast.FunctionDef) -> str:
    given = node.args
    names = [a.arg for a in [*given.posonlyargs, *given.args]] + [f"{a.arg}=" for a in given.kwonlyargs]
    return f"{node.name}({', '.join(n for n in names if n not in ('self', 'cls'))})"


def main() -> int:
    """Show or freeze the surface."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="freeze it in tests/surface.json")
    text = json.dumps(surface(), indent=1) + "\n"
    if parser.parse_args().write:
        FROZEN.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
