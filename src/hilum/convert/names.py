"""Whose tensor becomes which of ours: a table of rules, and an account in which no tensor is left over.

The first rule whose pattern fits a name whole decides. A tensor that no rule knows, a tensor of ours that
none fills, and a shape that is not the network's are refused, by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hilum.convert.foreign import Facts, Foreign
from hilum.errors import UsageError, WeightsError

FLOATS = ("F32", "F16", "BF16", "F64")
SHOWN = 8
WB = r"\.(weight|bias)"

Change = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Rule:
    """What happens to tensors of some names.

    Args:
        pattern: regular expression of the whole name. target: our name, groups of the pattern as ``\\1``;
            None leaves it out. note: why it is left out, or what `change` does. change: on the way.
        needs: further names that are taken at the same time, joined to the first along axis 0; they are
            patterns in which ``\\1`` may stand.
    """

    pattern: str
    target: str | None
    note: str = "renamed"
    change: Change | None = None
    needs: tuple[str, ...] = ()


def block_rules(at: str, to: str = "vision") -> list[Rule]:
    """What blocks of DINOv3 and timm share, and the last norm; queries, keys and values are not in it.

    Args:
        at: what stands before the blocks' names, as a pattern. to: what stands before ours.
    """
    block, ours = rf"{at}blocks\.(\d+)", rf"{to}.blocks.\1"
    return [
        Rule(rf"{at}norm{WB}", rf"{to}.norm.\1"),
        Rule(rf"{block}\.norm1{WB}", rf"{ours}.norm_attention.\2"),
        Rule(rf"{block}\.attn\.proj{WB}", rf"{ours}.attention.proj.\2"),
        Rule(rf"{block}\.ls1\.gamma", rf"{ours}.scale_attention"),
        Rule(rf"{block}\.norm2{WB}", rf"{ours}.norm_mlp.\2"),
        Rule(rf"{block}\.mlp\.fc1{WB}", rf"{ours}.mlp.up.\2"),
        Rule(rf"{block}\.mlp\.fc2{WB}", rf"{ours}.mlp.down.\2"),
        Rule(rf"{block}\.ls2\.gamma", rf"{ours}.scale_mlp"),
    ]


def split_attention_rule(prefix: str, to: str = "vision") -> Rule:
    """Queries apart from keys and values, as SPECTRE has them.

    Args:
        prefix: what stands before the blocks' names. to: what stands before ours.
    """
    return Rule(
        rf"{re.escape(prefix)}blocks\.(\d+)\.attn\.q{WB}",
        rf"{to}.blocks.\1.attention.qkv.\2",
        "joined, queries before keys and values",
        needs=(rf"{prefix}blocks.\1.attn.kv.\2",),
    )


@dataclass(frozen=True)
class Row:
    """One line of the account: whose tensors, of which shape, became what.

    Args:
        sources: their names. target: ours; None for left out. shape: of the first source. note: as of the
            rule.
    """

    sources: tuple[str, ...]
    target: str | None
    shape: tuple[int, ...]
    note: str

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "sources": list(self.sources),
            "target": self.target,
            "shape": list(self.shape),
            "note": self.note,
        }


@dataclass(frozen=True)
class Account:
    """Every tensor of a checkpoint, with what becomes of it; made by `account`."""

    rows: tuple[Row, ...]
    _changes: Mapping[str, Change | None]

    def tensors(self, foreign: Foreign, own: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """Ours, in float32.

        Args:
            foreign: the checkpoint. own: name and shape of every tensor of the network.

        Raises:
            WeightsError: `WEIGHTS_KEYS` naming what is missing, strange or of another shape;
                `WEIGHTS_NONFINITE`.
        """
        filled = {row.target: row for row in self.rows if row.target is not None}
        missing = sorted(set(own) - set(filled))
        strange = [", ".join(row.sources) for name, row in filled.items() if name not in own]
        if missing or strange:
            raise unfit(foreign, missing=missing, strange=strange)
        made = {name: self._make(foreign, name, filled[name]) for name in own}
        shapes = [
            f"{', '.join(filled[name].sources)} {made[name].shape} for {shape}"
            for name, shape in own.items()
            if made[name].shape != shape
        ]
        if shapes:
            raise unfit(foreign, shapes=shapes)
        return made

    def _make(self, foreign: Foreign, name: str, row: Row) -> np.ndarray:
        parts = [foreign.get(source) for source in row.sources]
        change = self._changes[name]
        try:
            tensor = (parts[0] if len(parts) == 1 else torch.cat(parts)).float()
            array = (tensor if change is None else change(tensor)).contiguous().numpy()
        except (RuntimeError, IndexError):
            found = [f"{source} {tuple(part.shape)}" for source, part in zip(row.sources, parts, strict=True)]
            raise unfit(foreign, shapes=found) from None
        if not np.isfinite(array).all():
            raise WeightsError(
                "WEIGHTS_NONFINITE",
                "weights are finite",
                expected="finite",
                got=", ".join(row.sources),
                path=foreign.path,
            )
        return array


def account(foreign: Foreign, rules: Sequence[Rule]) -> Account:
    """Every tensor of the checkpoint put to one rule.

    Raises:
        WeightsError: `WEIGHTS_KEYS` naming tensors that no rule knows, that are no floating point, or whose
            place another one has.
    """
    rows: list[Row] = []
    changes: dict[str, Change | None] = {}
    joined = {source for rule in rules for name in foreign.table for source in _needs(rule, name)}
    strange: list[str] = []
    for name in sorted(set(foreign.table) - joined):
        rule, match = _rule(rules, name)
        others = () if rule is None else _needs(rule, name)
        if rule is None or match is None or any(other not in foreign.table for other in others):
            strange.append(name)
            continue
        target = None if rule.target is None else match.expand(rule.target)
        if target is not None and (target in changes or foreign.table[name].kind not in FLOATS):
            strange.append(name)
            continue
        if target is not None:
            changes[target] = rule.change
        rows.append(Row((name, *others), target, foreign.table[name].shape, rule.note))
    strange += sorted(joined & set(foreign.table) - {source for row in rows for source in row.sources})
    if strange:
        raise unfit(foreign, strange=strange)
    return Account(tuple(rows), changes)


def unfit(
    foreign: Foreign,
    *,
    missing: Sequence[str] = (),
    strange: Sequence[str] = (),
    shapes: Sequence[str] = (),
) -> WeightsError:
    """The refusal of a checkpoint that is not what its table says, naming tensors."""
    kinds = (("missing", missing), ("not known", strange), ("of another shape", shapes))
    got = "; ".join(
        f"{kind}: {', '.join(names[:SHOWN])}{f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''}"
        for kind, names in kinds
        if names
    )
    return WeightsError(
        "WEIGHTS_KEYS",
        "every tensor of a checkpoint has its place, and every place its tensor",
        expected="the published layout",
        got=got,
        path=foreign.path,
        hint="Nothing was written.",
    )


def without_tower(name: str = "Qwen3-Embedding-0.6B") -> UsageError:
    """The refusal to make a model of reports from a checkpoint alone; `name` is the tower's."""
    return UsageError(
        "CONFIG_VALUE",
        "a model of reports has a text tower",
        expected="its configuration and tokenizer",
        got="none",
        hint=f"--text FOLDER with config.json and tokenizer.json of {name}.",
    )


def facts_of(foreign: Foreign, name: str) -> Facts:
    """Type and shape of a tensor that has to be there.

    Raises:
        WeightsError: `WEIGHTS_KEYS`.
    """
    if name not in foreign.table:
        raise unfit(foreign, missing=[name])
    return foreign.table[name]


def shape_of(foreign: Foreign, name: str, axes: int) -> tuple[int, ...]:
    """Shape of a tensor that has to be there with so many axes.

    Raises:
        WeightsError: `WEIGHTS_KEYS`.
    """
    shape = facts_of(foreign, name).shape
    if len(shape) != axes or 0 in shape:
        raise unfit(foreign, shapes=[f"{name} {shape} for {axes} axes"])
    return shape


def count_blocks(foreign: Foreign, prefix: str) -> int:
    """Blocks of a transformer whose tensors start with `prefix` and a number; holes are found later, as
    missing."""
    found = [re.match(rf"{re.escape(prefix)}(\d{{1,4}})\.", name) for name in foreign.table]
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _rule(rules: Sequence[Rule], name: str) -> tuple[Rule | None, re.Match[str] | None]:
    for rule in rules:
        if match := re.fullmatch(rule.pattern, name):
            return rule, match
    return None, None


def _needs(rule: Rule, name: str) -> tuple[str, ...]:
    match = re.fullmatch(rule.pattern, name) if rule.needs else None
    return () if match is None else tuple(match.expand(needed) for needed in rule.needs)
