"""The house in figures: a report to look at, not a gate. `python tools/house.py [--json]`

Measured on src/hilum by the syntax tree: lines per file and function, comments, docstrings, annotations,
arguments, share of raises whose message carries the offending value, prints, asserts, import cycles between
rooms, test/source.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import statistics
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "hilum"

Function = ast.FunctionDef | ast.AsyncFunctionDef

TARGETS = {
    "lines per file, median": 150,
    "lines per file, p95": 400,
    "lines per function, median": 12,
    "lines per function, p95": 45,
    "lines per function, max": 80,
    "arguments, p95": 5,
    "annotations %": 100,
    "public docstrings %": 100,
    "raises with a value %": 90,
    "prints": 0,
    "largest import cycle": 0,
    "test / source lines": 0.8,
}


def measure(source: Path = SOURCE, tests: Path = ROOT / "tests") -> dict[str, float]:
    """Every figure by name."""
    files = sorted(source.rglob("*.py"))
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    lines = [text.count("\n") for text in texts.values()]
    functions = [f for tree in trees.values() for f in ast.walk(tree) if isinstance(f, Function)]
    lengths = [(f.end_lineno or f.lineno) - f.lineno + 1 for f in functions]
    filled = sum(1 for text in texts.values() for line in text.splitlines() if line.strip())
    test_lines = sum(path.read_text(encoding="utf-8").count("\n") for path in tests.rglob("*.py"))
    public = [node for tree in trees.values() for node in _public(tree)]
    given, slots = _annotations(functions)
    formatted, raised = _raises(trees.values())
    return {
        "files": len(files),
        "lines": sum(lines),
        "lines per file, median": _percentile(lines, 50),
        "lines per file, p95": _percentile(lines, 95),
        "functions": len(functions),
        "lines per function, median": _percentile(lengths, 50),
        "lines per function, p95": _percentile(lengths, 95),
        "lines per function, max": max(lengths, default=0),
        "comments per 100 lines": round(100 * sum(_comments(t) for t in texts.values()) / max(filled, 1), 1),
        "public docstrings %": _share(sum(bool(ast.get_docstring(n)) for n in public), len(public)),
        "annotations %": _share(given, slots),
        "arguments, p95": _percentile([len(_arguments(f)) for f in functions], 95),
        "raises with a value %": _share(formatted, raised),
        "prints": sum(_calls(tree, "print") for tree in trees.values()),
        "asserts": sum(isinstance(n, ast.Assert) for tree in trees.values() for n in ast.walk(tree)),
        "largest import cycle": _largest_cycle(_room_graph(source, trees)),
        "test / source lines": round(test_lines / max(sum(lines), 1), 2),
    }


def longest(source: Path = SOURCE, count: int = 5) -> list[tuple[int, str]]:
    """The longest functions: lines and where."""
    found = [
        ((node.end_lineno or 0) - node.lineno + 1, f"{path.relative_to(source)}:{node.lineno} {node.name}")
        for path in sorted(source.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, Function)
    ]
    return sorted(found, reverse=True)[:count]


def _percentile(values: Sequence[int], percent: int) -> int:
    if len(values) < 2:
        return values[0] if values else 0
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1])


def _share(part: int, whole: int) -> float:
    return round(100 * part / whole, 1) if whole else 100.0


def _comments(text: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(token.type == tokenize.COMMENT for token in tokens)


def _public(tree: ast.Module) -> Iterator[Function | ast.ClassDef | ast.Module]:
    yield tree
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (n for n in node.body if isinstance(n, Function) and not n.name.startswith("_"))


def _arguments(function: Function) -> list[ast.arg]:
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    every += [extra for extra in (given.vararg, given.kwarg) if extra is not None]
    return [a for a in every if a.arg not in ("self", "cls")]


def _annotations(functions: Sequence[Function]) -> tuple[int, int]:
    given = sum(f.returns is not None for f in functions)
    arguments = [a for f in functions for a in _arguments(f)]
    return given + sum(a.annotation is not None for a in arguments), len(functions) + len(arguments)


def _raises(trees: Sequence[ast.Module] | object) -> tuple[int, int]:
    """Raises of a new error: those that carry a value (formatted, computed or named), and all."""
    formatted = total = 0
    for tree in trees:  # type: ignore[attr-defined]
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                total += 1
                values = [*node.exc.args, *(k.value for k in node.exc.keywords)]
                formatted += any(not isinstance(v, ast.Constant) for v in values)
    return formatted, total


def _calls(tree: ast.Module, name: str) -> int:
    return sum(
        isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == name for n in ast.walk(tree)
    )


def _room_graph(source: Path, trees: dict[Path, ast.Module]) -> dict[str, set[str]]:
    """Room -> rooms it imports. A room is a folder of the package or a file beside them."""
    graph: dict[str, set[str]] = {}
    for path, tree in trees.items():
        room = path.relative_to(source).parts[0].removesuffix(".py")
        names = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        names += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
        rooms = {name.split(".")[1] for name in names if name.startswith("hilum.")}
        graph.setdefault(room, set()).update(rooms - {room})
    return graph


def _largest_cycle(graph: dict[str, set[str]]) -> int:
    """Size of the largest set of rooms that reach each other; 0 when there is none."""
    reach = {room: _reachable(graph, room) for room in graph}
    groups = [{b for b in reach[a] if a in reach.get(b, set())} for a in graph]
    return max((len(g) for g in groups if len(g) > 1), default=0)


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        for other in graph.get(todo.pop(), set()) - seen:
            seen.add(other)
            todo.append(other)
    return seen


def main() -> int:
    """Print the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    figures = measure()
    if parser.parse_args().json:
        print(json.dumps(figures, indent=1))
        return 0
    for name, value in figures.items():
        aim = f"   (aim {TARGETS[name]})" if name in TARGETS else ""
        print(f"{name:28} {value:>9g}{aim}")
    print("longest functions:", *(f"\n  {lines:4} {where}" for lines, where in longest()), sep="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
