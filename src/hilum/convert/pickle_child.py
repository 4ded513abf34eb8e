"""The one place where a pickle is opened: a process that reads a torch archive and writes safetensors.

Run as a file by `convert.foreign`, isolated (``python -I``), with nothing of Hilum loaded. Only tensors and
plain containers are unpickled (`weights_only`); whatever else an archive asks for is refused before it runs.
Behind that stand limits of memory, time and output, and a hook that ends every attempt to reach the network,
another program or a file to write. The answer is one line of JSON.

Source: trust catalogue row F01.
"""

from __future__ import annotations

import json
import os
import re
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

MIB = 2**20
DEPTH = 8
"""Containers in containers; public checkpoints have two."""

CODES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Types that safetensors know as well."""

BARRED = (
    "socket.", "subprocess.", "urllib.", "ctypes.", "shutil.", "pty.", "webbrowser.", "ftplib.", "os.system",
    "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.kill", "os.remove", "os.rename", "os.rmdir",
    "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.truncate", "os.putenv",
)  # fmt: skip
"""Audit events that reading tensors has no need of."""


class Refused(Exception):
    """What the archive holds is not accepted: a code and what was found."""

    def __init__(self, code: str, got: str) -> None:
        super().__init__(got)
        self.code, self.got = code, got


def confine(size: int) -> None:
    """Limits for an archive of `size` bytes: address space, processor time, output, open files, no core."""
    try:
        import resource
    except ImportError:  # Windows has none; `weights_only` and the hook remain
        return
    wanted = {
        resource.RLIMIT_CPU: 300 + size // (4 * MIB),
        resource.RLIMIT_FSIZE: 2 * size + 16 * MIB,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    mapped = Path("/proc/self/statm")
    if mapped.exists():
        now = int(mapped.read_text().split()[0]) * resource.getpagesize()
        wanted[resource.RLIMIT_AS] = now + 3 * size + 1024 * MIB
    for kind, most in wanted.items():
        hard = resource.getrlimit(kind)[1]
        bounded = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (bounded, bounded))


def bar_the_doors() -> None:
    """From here on no network, no other program, no file opened for writing. It cannot be undone."""

    def hook(event: str, values: tuple[Any, ...]) -> None:
        if event.startswith(BARRED) or (event == "open" and _writes(values[1], values[2])):
            raise Refused("WEIGHTS_PICKLE", f"an attempt at {event}")

    sys.addaudithook(hook)


def _writes(mode: object, flags: object) -> bool:
    asked = isinstance(mode, str) and bool(set(mode) & set("wax+"))
    return asked or (isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)))


def arrays_too() -> None:
    """From here on NumPy arrays of numbers are plain values, too: training scripts keep figures in them.

    What the unpickler may call is the constructors of arrays, of their types and of single numbers.
    """
    import numpy as np
    from numpy._core.multiarray import _reconstruct, scalar

    kinds = [type(np.dtype(kind)) for kind in "?bhilBHILefd"]
    named = [(f, f"{m}.{f.__name__}") for m in ("numpy.core.multiarray", "numpy._core.multiarray")
             for f in (_reconstruct, scalar)]  # fmt: skip
    torch.serialization.add_safe_globals([*named, np.ndarray, np.dtype, *kinds])


def plain(name: str, value: Any) -> Any:
    """A NumPy array of numbers as a tensor, a number of NumPy's as Python's, all else as it is."""
    if type(value).__module__ != "numpy":
        return value
    if value.dtype.kind not in "biuf":
        raise Refused("WEIGHTS_PICKLE", f"an array of {value.dtype} at {name}")
    return torch.from_numpy(value) if value.ndim else value.item()


def load(path: str) -> Any:
    """The archive's content, tensors mapped and not read yet.

    Raises:
        Refused: `WEIGHTS_PICKLE` for anything but tensors and plain containers, `WEIGHTS_TRUNCATED`.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Refused:
        raise
    except MemoryError:
        raise Refused("WEIGHTS_HEADER", "more than the archive can hold") from None
    except Exception as error:
        text = " ".join(str(error).split())
        asked = re.search(r"GLOBAL ([\w.]+)", text)
        if asked or "weights_only" in text or "Weights only" in text:
            raise Refused("WEIGHTS_PICKLE", asked.group(1) if asked else _last(text)) from None
        raise Refused("WEIGHTS_TRUNCATED", text[:300]) from None


def _last(text: str) -> str:
    return text.rsplit("WeightsUnpickler error:", 1)[-1].strip()[:300]


def walk(value: Any, name: str = "", depth: int = 0, skip: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """Tensors and plain values of nested mappings, under names joined by dots.

    Args:
        skip: names at the top whose content is not looked at.

    Raises:
        Refused: `WEIGHTS_PICKLE` for another kind of value, key or depth.
    """
    value = plain(name, value)
    if name in skip:
        yield name, "left out"
    elif isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        if depth == DEPTH:
            raise Refused("WEIGHTS_PICKLE", f"more than {DEPTH} containers in each other at {name}")
        for key, inner in value.items():
            if not isinstance(key, str):
                raise Refused(
                    "WEIGHTS_PICKLE", f"a key of type {type(key).__name__} in {name or 'the archive'}"
                )
            yield from walk(inner, f"{name}.{key}" if name else key, depth + 1, () if name else skip)
    elif value is None or isinstance(value, str | int | float):
        yield name, value
    else:
        raise Refused("WEIGHTS_PICKLE", f"a {type(value).__name__} at {name or 'the top'}")


def accept(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A plain tensor no larger than what is stored for it.

    Raises:
        Refused: `WEIGHTS_KEYS` for a kind that weights have not, `WEIGHTS_HEADER` for one that claims more.
    """
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in CODES:
        kind = f"{name}: {tensor.layout}, {tensor.dtype}, {tensor.device}"
        raise Refused("WEIGHTS_KEYS", kind)
    claimed, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if claimed > stored:
        raise Refused("WEIGHTS_HEADER", f"{name}: {claimed} bytes of {stored} stored")
    return tensor.detach()


def collect(
    content: Any, size: int, skip: Sequence[str] = ()
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and plain values by name; all tensors together within twice the archive.

    Args:
        content: of the archive. size: of its file, bytes. skip: as of `walk`.

    Raises:
        Refused: as of `walk` and `accept`; `WEIGHTS_KEYS` for a name twice, `WEIGHTS_HEADER` for the sum.
    """
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}
    total = 0
    for name, value in walk(content, skip=skip):
        if name in tensors or name in values:
            raise Refused("WEIGHTS_KEYS", f"{name} twice")
        if not isinstance(value, torch.Tensor):
            values[name] = value
            continue
        tensors[name] = accept(name, value)
        total += value.numel() * value.element_size()
        if total > 2 * size:
            raise Refused("WEIGHTS_HEADER", f"tensors of more than {2 * size} bytes in an archive of {size}")
    return tensors, values


def write(file: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """The safetensors layout, tensor by tensor: never all of them in memory."""
    header, start = {}, 0
    for name, tensor in tensors.items():
        end = start + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]
        }  # fmt: skip
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for tensor in tensors.values():
        if tensor.numel():
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def main(source: str, target: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert; what came of it, for the parent.

    Args:
        source, target: files. options: ``arrays``, whether NumPy's are read (`arrays_too`); ``skip``, as of
            `walk`.
    """
    size = Path(source).stat().st_size
    try:
        with Path(target).open("xb") as file:
            if options["arrays"]:
                arrays_too()
            confine(size)
            bar_the_doors()
            tensors, values = collect(load(source), size, options["skip"])
            write(file, tensors)
    except Refused as refused:
        return {"code": refused.code, "got": refused.got[:500]}
    except MemoryError:
        return {"code": "WEIGHTS_HEADER", "got": "more than the archive can hold"}
    return {"plain": {name: value if value is None else str(value)[:200] for name, value in values.items()}}


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))) + "\n")
