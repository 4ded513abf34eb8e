"""Pages that are made, not written: docs/cli.md from the commands' help, docs/codes.md from the catalogue.

python tools/docs.py            write them
python tools/docs.py --check    exit 1 if a page is out of date
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import click

ROOT = Path(__file__).resolve().parent.parent
MADE = "<!-- Made by tools/docs.py; change the source instead. -->"


def cli_page() -> str:
    """docs/cli.md."""
    parts = [
        f"# Commands\n\n{MADE}\n\nExit codes: 0 ok · 2 usage · 3 input refused · 4 partial · 5 internal.\n"
    ]
    for name, command in sorted(_tool("surface").commands().items()):
        context = click.Context(command, info_name=name, terminal_width=100, max_content_width=100)
        parts.append(f"## {name}\n\n```text\n{command.get_help(context).rstrip()}\n```\n")
    return "\n".join(parts)


def codes_page() -> str:
    """docs/codes.md."""
    from hilum import catalogue

    rows = [_cells(entry) for entry in _entries(catalogue)]
    head = (
        f"# Codes\n\n{MADE}\n\nEvery error and every finding about an input carries one of these codes. "
        "Codes are stable; the words of a message are not.\n\n"
        "- **refuse**: nothing is read or written, exit code 3.\n"
        "- **ask**: refused until an option answers.\n"
        "- **repair**: a unique, lossless fix is applied and recorded; `--strict` refuses.\n"
        "- **note**: recorded.\n\n"
    )
    table = ["| code | row | what to do with it | rule | next step |", "|---|---|---|---|---|"]
    return head + "\n".join(table + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def pages() -> dict[Path, str]:
    """Every made page and its text."""
    return {ROOT / "docs" / "cli.md": cli_page(), ROOT / "docs" / "codes.md": codes_page()}


def _entries(catalogue: ModuleType) -> Iterable[object]:
    known = getattr(catalogue, "CATALOGUE", None) or catalogue.CODES
    return known.values() if hasattr(known, "values") else known


def _cells(entry: object) -> list[str]:
    def text(*names: str) -> str:
        for name in names:
            value = getattr(entry, name, None)
            if value is not None:
                word = getattr(value, "name", str(value))
                return word.lower() if name in ("level", "policy") else word
        return ""

    cells = [f"`{text('code')}`", text("row"), text("level", "policy"), text("rule", "title"), text("hint")]
    return [cell.replace("|", "\\|").replace("\n", " ") for cell in cells]


def _tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "tools" / f"{name}.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"tools/{name}.py is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> int:
    """Write the pages, or say which are out of date."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is out of date")
    check = parser.parse_args().check
    stale = [p for p, text in pages().items() if not p.is_file() or p.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{'out of date' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(pages()[path], encoding="utf-8")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
