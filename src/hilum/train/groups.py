"""Which parameter is trained how: groups for AdamW, made from the modules that own the parameters.

* layer-wise decay (Bao et al., BEiT, ICLR 2022): the last norm of a backbone and all that follows it have the
  whole learning rate, each block below a share of the one above, tokens and patch embeddings one more;
* patch embeddings are slowed once more (DINOv2, TMLR 2024; FlexiCT §2: 0.9 and 0.2);
* no weight decay for what is no map: biases, norms, LayerScale, tokens, the temperature;
* the last map of a head is marked, so that it can rest at first (`schedule.Schedules.last_frozen`).

Which module owns a parameter decides, not the word that a model has for it: a renamed part keeps its group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import nn

from hilum.errors import UsageError
from hilum.model.dino_head import DinoHead
from hilum.model.patch import PatchEmbed
from hilum.model.text_tower import TextTower
from hilum.model.vit import ViT
from hilum.train.recipe import Strict
from hilum.train.schedule import Rates

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
TOKENS = ("cls", "registers", "mask_token")
"""Parameters that a backbone owns itself."""


class GroupRecipe(Strict):
    """How learning rates differ within a model."""

    layer_decay: float = Field(0.9, gt=0, le=1, description="share of the learning rate kept per block down")
    patch_factor: float = Field(0.2, gt=0, le=1, description="of the learning rate of patch embeddings")
    text_factor: float = Field(1.0, gt=0, description="of the learning rate of a text tower")


class Treatment(NamedTuple):
    """How a parameter is trained.

    Args:
        lr_factor: of the step's learning rate. decays: with weight decay. last: the last map of a head.
    """

    lr_factor: float
    decays: bool
    last: bool


@dataclass(frozen=True)
class Group:
    """Parameters of one treatment, under their names in the model."""

    how: Treatment
    parameters: Mapping[str, nn.Parameter]

    @property
    def count(self) -> int:
        """Numbers in it, of all ranks."""
        return sum(p.numel() for p in self.parameters.values())


def parameter_groups(model: nn.Module, recipe: GroupRecipe) -> list[Group]:
    """Every trained parameter of a model in exactly one group; frozen ones (`requires_grad` off) in none.

    The model may be wrapped (DDP, FSDP2, `torch.compile`). Groups come slowest first, and are the same on
    every rank. A parameter that two modules share is taken once.

    Raises:
        UsageError: `CONFIG_VALUE` for a parameter that its owners would train differently, or a model
            without any.
    """
    treatments = dict(_treatments(model, recipe))
    found: dict[nn.Parameter, tuple[str, Treatment]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            continue
        first, how = found.setdefault(parameter, (name, treatments[name]))
        if how != treatments[name]:
            raise UsageError(
                "CONFIG_VALUE",
                "a shared parameter is trained one way",
                expected=f"{how} as {first}",
                got=f"{treatments[name]} as {name}",
            )
    sorted_in: dict[Treatment, dict[str, nn.Parameter]] = {}
    for parameter, (name, how) in found.items():
        sorted_in.setdefault(how, {})[name] = parameter
    groups = [Group(how, sorted_in[how]) for how in sorted(sorted_in)]
    check_groups(model, [list(group.parameters.values()) for group in groups])
    return groups


def check_groups(model: nn.Module, groups: Iterable[Sequence[torch.Tensor]]) -> None:
    """Parameters of groups, an optimiser's for instance, are the model's trained ones, each exactly once.

    Raises:
        UsageError: `CONFIG_VALUE` with the first names left out, taken twice or frozen, or for parameters of
            another model, or none at all.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    seen = Counter(id(p) for group in groups for p in group)
    missing = sorted(names[i] for i in trained - seen.keys())
    twice = sorted(names.get(i, "?") for i, times in seen.items() if times > 1)
    frozen = sorted(names[i] for i in seen if i in names and i not in trained)
    foreign = sum(i not in names for i in seen)
    if missing or twice or frozen or foreign or not trained:
        raise UsageError(
            "CONFIG_VALUE",
            "every trained parameter is in exactly one group",
            expected=f"{len(trained)} parameters, one at least",
            got=f"missing {missing[:5]}, twice {twice[:5]}, frozen {frozen[:5]}, of another model {foreign}",
        )


def adamw_groups(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The groups as `torch.optim.AdamW` takes them; `set_rates` fills in rates before every step."""
    return [{"params": list(group.parameters.values()), **group.how._asdict()} for group in groups]


def set_rates(optim: torch.optim.Optimizer, rates: Rates) -> None:
    """Learning rate and weight decay of this step, for an optimiser over `adamw_groups`."""
    for group in optim.param_groups:
        group["lr"], group["weight_decay"] = _rates_of(group, rates)


class GroupRow(NamedTuple):
    """A group as a person sees it before a run.

    Args:
        lr, weight_decay: at the rates asked for. lr_factor: of the step's learning rate. tensors, parameters:
            how many. first: name of its first parameter.
    """

    lr: float
    lr_factor: float
    weight_decay: float
    tensors: int
    parameters: int
    first: str


def group_rows(groups: Sequence[Group], rates: Rates) -> list[GroupRow]:
    """A row per group at given rates, for `--dry-run`."""
    rows = []
    for group in groups:
        lr, weight_decay = _rates_of(group.how._asdict(), rates)
        first = next(iter(group.parameters))
        rows.append(
            GroupRow(lr, group.how.lr_factor, weight_decay, len(group.parameters), group.count, first)
        )
    return rows


def _rates_of(how: Mapping[str, Any], rates: Rates) -> tuple[float, float]:
    lr = (rates.last_lr if how["last"] else rates.lr) * how["lr_factor"]
    return lr, rates.weight_decay if how["decays"] else 0.0


def _treatments(model: nn.Module, recipe: GroupRecipe) -> Iterator[tuple[str, Treatment]]:
    """Name and treatment of every parameter, once for every module that owns it."""
    modules = dict(model.named_modules(remove_duplicate=False))
    backbones = {name: module for name, module in modules.items() if isinstance(module, ViT)}
    towers = [name for name, module in modules.items() if isinstance(module, TextTower)]
    heads = {_joined(name, "last") for name, module in modules.items() if isinstance(module, DinoHead)}
    for owner, module in modules.items():
        slowed = recipe.patch_factor if isinstance(module, PatchEmbed) else 1.0
        if any(owner == tower or owner.startswith(_joined(tower, "")) for tower in towers):
            slowed = recipe.text_factor
        for own, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            factor = slowed * recipe.layer_decay ** _blocks_above(owner, backbones)
            decays = _decays(module, own, parameter)
            yield _joined(owner, own), Treatment(factor, decays, owner in heads)


def _decays(owner: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    if isinstance(owner, NORMS) or (isinstance(owner, ViT) and name in TOKENS):
        return False
    # one axis: biases, scales, temperatures and norms of other people's making. Shapes of DTensors are whole
    # a logarithm of decay rates (Mamba) is pulled towards no rate in particular
    return parameter.dim() > 1 and name != "bias" and not name.endswith("_log")


def _blocks_above(owner: str, backbones: Mapping[str, ViT]) -> int:
    """How often the decay applies to what `owner` holds: 0 after the blocks, depth + 1 before them."""
    inside = [name for name in backbones if owner == name or owner.startswith(_joined(name, ""))]
    if not inside:
        return 0
    backbone = max(inside, key=len)
    depth = backbones[backbone].config.depth
    within = owner[len(backbone) :].lstrip(".").split(".")
    if within[0] == "norm":
        return 0
    return depth - int(within[1]) if within[0] == "blocks" else depth + 1


def _joined(owner: str, name: str) -> str:
    return f"{owner}.{name}" if owner else name
