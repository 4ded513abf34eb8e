"""A cohort's recipe: `hilum prepare COHORT.toml` says in a file what options say on the command line.

Keys are `root` and the names of the options; what stands on the command line wins. Paths are relative to the
recipe's folder.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from hilum.errors import UsageError

NOT_IN_RECIPES = frozenset({"json", "verify", "help"})


def apply_recipe(context: click.Context, path: Path) -> dict[str, Any]:
    """Parameters of the command, with those of the recipe where the command line says nothing.

    Args:
        context: of the call. path: the recipe.

    Raises:
        UsageError: `CONFIG_FILE`, `CONFIG_KEY` with the nearest name, `CONFIG_VALUE`.
    """
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError("CONFIG_FILE", "a recipe is a readable TOML file", got=error, path=path) from error
    if not isinstance(told.get("root"), str):
        raise UsageError(
            "CONFIG_KEY", "a cohort's recipe names its root", expected="root", got=list(told), path=path
        )
    known = {_key(p): p for p in context.command.params if _key(p) not in NOT_IN_RECIPES}
    merged = dict(context.params)
    for key, value in told.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise UsageError(
                "CONFIG_KEY", "a recipe has only known keys", expected=", ".join(sorted(known)), got=key,
                path=path, hint=f"Did you mean {near[0]}?" if near else None,
            )  # fmt: skip
        parameter = known[key]
        name = parameter.name or key
        given = context.get_parameter_source(name) not in (
            ParameterSource.DEFAULT,
            ParameterSource.DEFAULT_MAP,
        )
        if key == "root" or not given:
            merged[name] = _value(context, parameter, value, path)
    return merged


def _key(parameter: click.Parameter) -> str:
    return "root" if parameter.name == "root" else max(parameter.opts, key=len).lstrip("-")


def _value(context: click.Context, parameter: click.Parameter, value: Any, path: Path) -> Any:
    if isinstance(parameter.type, click.Path):
        several = [value] if isinstance(value, str) else value
        if not isinstance(several, list) or not all(isinstance(v, str) for v in several):
            raise _bad(parameter, value, "text", path)
        placed = [str(path.parent / v) for v in several]
        value = placed if parameter.multiple else placed[0]
    try:
        return parameter.type_cast_value(context, value)
    except click.BadParameter as error:
        raise _bad(parameter, value, error.message, path) from error


def _bad(parameter: click.Parameter, value: Any, expected: str, path: Path) -> UsageError:
    return UsageError(
        "CONFIG_VALUE", "a recipe's value has its type and range", expected=expected,
        got=f"{_key(parameter)} = {value!r}", path=path,
    )  # fmt: skip
