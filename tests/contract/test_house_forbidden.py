"""What may not stand in the library (code from data, unpacking by foreign names, prints), and what must."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "hilum"
FILES = sorted(SOURCE.rglob("*.py"))

FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "torchvision",
    "yaml",
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "print", "breakpoint", "input"}
FORBIDDEN_ATTRIBUTES = {"extractall", "read_pickle", "to_pickle"}
FORBIDDEN_DOTTED = {
    "torch.load",
    "torch.save",
    "yaml.load",
    "pickle.load",
    "pickle.loads",
    "os.system",
    "np.memmap.dump",
}

# The process that opens other people's checkpoints, and only with `weights_only`.
ALLOWED = ["convert/pickle_child.py: torch.load"]

Function = ast.FunctionDef | ast.AsyncFunctionDef


def forbidden(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in FORBIDDEN_CALLS | FORBIDDEN_DOTTED or name.rsplit(".", 1)[-1] in FORBIDDEN_ATTRIBUTES:
                yield name
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if (keyword.arg, value) in (("allow_pickle", True), ("shell", True)):
                    yield f"{keyword.arg}=True"


def unannotated(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, Function):
            if node.returns is None:
                yield f"{node.name} -> ?"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            arguments += [a for a in (node.args.vararg, node.args.kwarg) if a is not None]
            for argument in arguments:
                if argument.annotation is None and argument.arg not in ("self", "cls"):
                    yield f"{node.name}({argument.arg})"


def undocumented(tree: ast.Module) -> Iterator[str]:
    if ast.get_docstring(tree) is None:
        yield "the module"
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            if ast.get_docstring(node) is None:
                yield node.name
            for child in node.body if isinstance(node, ast.ClassDef) else []:
                public = isinstance(child, Function) and not child.name.startswith("_")
                if public and ast.get_docstring(child) is None:  # type: ignore[arg-type]
                    yield f"{node.name}.{child.name}"  # type: ignore[attr-defined]


@pytest.mark.parametrize("rule", [forbidden, unannotated, undocumented])
def test_the_library_keeps_the_rule(rule) -> None:
    wrong = [
        f"{path.relative_to(SOURCE).as_posix()}: {what}"
        for path in FILES
        for what in rule(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert wrong == (ALLOWED if rule is forbidden else [])


def test_the_one_unpickling_process_takes_tensors_only() -> None:
    tree = ast.parse((SOURCE / "convert" / "pickle_child.py").read_text(encoding="utf-8"))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "torch.load"]
    assert [ast.unparse(k.value) for c in calls for k in c.keywords if k.arg == "weights_only"] == ["True"]


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from yaml import load",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import torch\ntorch.load('x')",
        "eval('1')",
        "print('x')",
        "tar.extractall()",
    ],
)
def test_forbidden_things_are_seen(text: str) -> None:
    assert list(forbidden(ast.parse(text)))


def test_missing_annotations_and_docstrings_are_seen() -> None:
    tree = ast.parse("class A:\n    'd'\n    def f(self, x): ...\ndef g() -> None: ...\n")
    assert list(unannotated(tree)) == ["f -> ?", "f(x)"]
    assert list(undocumented(tree)) == ["the module", "A.f", "g"]


def test_no_registry_or_machine_names_in_committed_text() -> None:
    root = SOURCE.parents[1]
    # Spelled in pieces, so that this file does not hold what it looks for.
    words = [
        "py" + "pi.org",
        "files.python" + "hosted.org",
        "pytorch" + ".org/whl",
        "/wo" + "rk/",
        "/opt/" + "wheels",
    ]
    paths = [*FILES, *root.glob("*.md"), *root.glob("*.txt"), *root.glob("*.toml"), root / "Makefile"]
    for folder in ("tools", "docs", "benchmarks", "recipes", "tests", ".ci"):
        paths += [p for p in (root / folder).rglob("*") if p.suffix in {".py", ".md", ".json", ".toml", ""}]
    found = [
        f"{path.relative_to(root)}: {word}"
        for path in paths
        if path.is_file()
        for word in words
        if word in path.read_text(encoding="utf-8", errors="replace")
    ]
    assert found == []
