"""The tensors of a run by name, and their way to and from files through PyTorch's distributed checkpoint.

The names are the model's own, the same in one process, under DDP, FSDP2 and `torch.compile`; so a run goes on
with other ranks or shards than it began with. The optimiser's state goes by the names of its parameters:
groups may be cut otherwise, and a parameter that never had a gradient has no moments.

The files are safetensors, whole tensors or shards with their offsets; nothing in them is code. PyTorch's own
helper for optimisers is not used: to have moments to load into, it takes a step.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor

from hilum.errors import UsageError, WeightsError
from hilum.train.checkpoint_files import Manifest, partial
from hilum.train.ema import Average, unwrapped

Tensors = dict[str, torch.Tensor]


def run_tensors(model: nn.Module, average: Average, optim: torch.optim.Optimizer) -> Tensors:
    """Everything that a step changes, under `model/`, `average/` and `optim/`; nothing is copied.

    Raises:
        UsageError: `CONFIG_VALUE` for an optimiser of another model, or with a state that is neither a number
            nor shaped as its parameter.
    """
    found = weights(model, average)
    for name, parameter in owned(model, optim):
        # `state` makes an entry for whatever it is asked with []
        for key, value in optim.state.get(parameter, {}).items():
            if not isinstance(value, torch.Tensor) or value.shape not in (parameter.shape, ()):
                raise UsageError(
                    "CONFIG_VALUE",
                    "an optimiser's state is numbers and tensors shaped as the parameter",
                    expected=f"a tensor {tuple(parameter.shape)} or ()",
                    got=f"{key} of {name}: {getattr(value, 'shape', type(value).__name__)}",
                )
            found[f"optim/{name}/{key}"] = value
    return found


def weights(model: nn.Module, average: Average) -> Tensors:
    """The model's state and that of its average."""
    parts = {"model": unwrapped(model), "average": average.module}
    return {
        f"{part}/{_plain(n)}": v for part, module in parts.items() for n, v in module.state_dict().items()
    }


def owned(model: nn.Module, optim: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    """Parameters of an optimiser in its own order, with their names in the model."""
    names = {id(p): _plain(name) for name, p in unwrapped(model).named_parameters()}
    parameters = [p for group in optim.param_groups for p in group["params"]]
    if foreign := sum(id(p) not in names for p in parameters):
        raise UsageError(
            "CONFIG_VALUE",
            "an optimiser steps parameters of the model",
            expected=f"all {len(parameters)} of the model",
            got=f"{foreign} of another",
        )
    return [(names[id(p)], p) for p in parameters]


def table(tensors: Mapping[str, torch.Tensor]) -> dict[str, list]:
    """Name -> [dtype, size of every axis], whole."""
    return {name: [_dtype(value), *value.shape] for name, value in tensors.items()}


def write(tensors: Tensors, folder: Path) -> None:
    """Every rank writes its shards, and its share of what all have, to a file of its own.

    Raises:
        OSError: on every rank when one of them could not write.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        with _one_process_is_fine():
            dcp.save(_packed(tensors), storage_writer=writer, no_dist=not dist.is_initialized())
    except CheckpointException as error:
        # it is no `Exception`, and would pass by everything that expects one
        raise _first(error) from error


def _packed(tensors: Tensors) -> Tensors:
    """Tensors as safetensors takes them: rows in their order, no two in the same memory."""
    found, seen = {}, set()
    for name, value in tensors.items():
        own = value.to_local() if isinstance(value, DTensor) else value
        if own.numel() and own.data_ptr() in seen:
            # a parameter of two modules has two names
            value = value.clone(memory_format=torch.contiguous_format)
        elif not isinstance(value, DTensor):
            # convolutions may keep their channels last; shards are always packed
            value = value.contiguous()
        seen.add(own.data_ptr())
        found[name] = value
    return found


def read(
    folder: Path, manifest: Manifest, model: nn.Module, average: Average, optim: torch.optim.Optimizer
) -> None:
    """Restores a run from a checkpoint that was verified. A refusal comes before anything is changed.

    Raises:
        WeightsError: `WEIGHTS_KEYS` for other names, shapes or dtypes; `CHECKPOINT_PARTIAL` when a file could
            not be read after all: the run is not usable then.
    """
    state, parameters = weights(model, average), owned(model, optim)
    wanted = {name: facts for name, facts in manifest.tensors.items() if name.startswith("optim/")}
    _same(folder, {n: f for n, f in manifest.tensors.items() if n not in wanted}, table(state))
    moments = _moments(folder, wanted, dict(parameters))
    try:
        with _one_process_is_fine():
            reader = HuggingFaceStorageReader(str(folder))
            dcp.load(state | moments, storage_reader=reader, no_dist=not dist.is_initialized())
    except CheckpointException as error:
        raise partial(folder, str(_first(error))) from error
    packed: dict[int, dict[str, torch.Tensor]] = {}
    places = {name: place for place, (name, _) in enumerate(parameters)}
    for full, value in moments.items():
        name, _, key = full.removeprefix("optim/").rpartition("/")
        packed.setdefault(places[name], {})[key] = value
    # its own groups: rates are set at every step, what else they hold is the recipe's
    optim.load_state_dict({"state": packed, "param_groups": optim.state_dict()["param_groups"]})


def _moments(folder: Path, wanted: Mapping[str, list], parameters: Mapping[str, nn.Parameter]) -> Tensors:
    """Empty tensors for an optimiser's state, sharded as the parameters are."""
    found = {}
    for full, (dtype, *shape) in wanted.items():
        name, _, key = full.removeprefix("optim/").rpartition("/")
        parameter = parameters.get(name)
        if parameter is None:
            raise _other(folder, f"{name} in the optimiser", "no such parameter")
        if key != "step" and tuple(shape) == parameter.shape:
            found[full] = torch.empty_like(parameter, dtype=getattr(torch, dtype), requires_grad=False)
        elif not shape:
            found[full] = torch.empty((), dtype=getattr(torch, dtype))
        else:
            raise _other(folder, f"{key} of {name}: {shape}", list(parameter.shape))
    return found


def _same(folder: Path, kept: Mapping[str, list], own: Mapping[str, list]) -> None:
    names = sorted(name for name in kept.keys() | own.keys() if kept.get(name) != own.get(name))
    if names:
        there = {name: kept.get(name, "nothing") for name in names[:3]}
        raise _other(folder, there, {name: own.get(name, "nothing") for name in there})


def _other(folder: Path, kept: object, own: object) -> WeightsError:
    return WeightsError(
        "WEIGHTS_KEYS",
        "a checkpoint fits the run name by name, shape by shape",
        expected=kept,
        got=own,
        path=folder,
    )


def _plain(name: str) -> str:
    # a part that was compiled inside the model has another name there
    return name.replace("_orig_mod.", "")


def _dtype(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _first(error: CheckpointException) -> BaseException:
    return next(iter(error.failures.values()))[0]


@contextmanager
def _one_process_is_fine() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield
