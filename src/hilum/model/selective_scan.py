"""The selective scan of Mamba (S6), and who computes it.

Per channel e and state n, over time t (Gu & Dao 2023, algorithm 2; discretised as the authors' code does it):

    step  = softplus(delta_t[e] + bias[e])
    h_t   = exp(step * a[e, n]) * h_{t-1} + step * b_t[n] * x_t[e]
    out_t = (sum over n of c_t[n] * h_t + d[e] * x_t[e]) * silu(z_t[e])

Five ways to the same numbers: `sequential`, a loop over tokens that is slow and plain; `chunked`, for CPU
cores with nothing but torch; `numba`, compiled for them where Numba is installed (the extra `fast`);
`triton`, kernels for GPUs; `mamba_ssm`, the authors' kernels where they are installed.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hilum.errors import UsageError
from hilum.model.selective_scan_chunked import Inputs, scan_chunked
from hilum.tensors import ChannelValues, StateDecays, StateTokens, Tokens

Backend = Literal["auto", "sequential", "chunked", "numba", "triton", "mamba_ssm"]


def scan_sequential(inputs: Inputs) -> Tensor:
    """The definition, token by token, differentiated by torch: (B, T, E)."""
    step = inputs.raw()
    step = F.softplus(step) if inputs.softplus else step
    state = inputs.x.new_zeros((len(inputs.x), *inputs.a.shape))
    read = []
    # taken apart once: the gradient of an index is as long as the sequence
    parts = (part.unbind(1) for part in (step, inputs.x, inputs.b, inputs.c))
    for one, x, b, c in zip(*parts, strict=True):
        decay = torch.exp(one[:, None] * inputs.a)
        state = decay * state + (one * x)[:, None] * b[..., None]
        read.append((state * c[..., None]).sum(1))
    out = torch.stack(read, dim=1)
    if inputs.d is not None:
        out = out + inputs.d * inputs.x
    return out if inputs.z is None else out * F.silu(inputs.z)


def selective_scan(
    x: Tokens,
    delta: Tokens,
    a: StateDecays,
    b: StateTokens,
    c: StateTokens,
    d: ChannelValues | None = None,
    z: Tokens | None = None,
    bias: ChannelValues | None = None,
    *,
    softplus: bool = True,
    backend: Backend = "auto",
) -> Tokens:
    """The scan; see the module's docstring.

    Computes in float32 (float64 for x in float64), inside autocast too, and answers in the type of x.

    Args:
        x, delta, z: (B, T, E). a: (E, N), negative. b, c: (B, T, N). d, bias: (E).
        softplus: of delta + bias. backend: ``auto`` takes `mamba_ssm`, else `triton`, for CUDA tensors where
            they are installed, `numba` for those of the CPU where it is, and `chunked` otherwise.

    Raises:
        UsageError: `EXTRA_MISSING` for a backend that is not installed.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    chosen = choose(x) if backend == "auto" else backend
    with torch.autocast(x.device.type, enabled=False):
        x_, delta_, a_, b_, c_ = (t.to(dtype) for t in (x, delta, a.t(), b, c))
        d_, z_, bias_ = (None if t is None else t.to(dtype) for t in (d, z, bias))
        inputs = Inputs(x_, delta_, a_.contiguous(), b_, c_, d_, z_, bias_, softplus)
        return _scan(inputs, chosen).to(x.dtype)


def choose(x: Tensor) -> Backend:
    """What `auto` takes for a tensor like x. Float64 on a GPU is nobody's but torch's."""
    if not x.is_cuda:
        return "numba" if _has_numbers(x) and compiles() else "chunked"
    if x.dtype == torch.float64:
        return "chunked"
    return "mamba_ssm" if installed("mamba_ssm") else "triton" if installed("triton") else "chunked"


def _has_numbers(x: Tensor) -> bool:
    """In the CPU's memory, for others than torch to read: not so while torch traces a graph."""
    return x.device.type == "cpu" and type(x) in (Tensor, nn.Parameter) and not torch.compiler.is_compiling()


@cache
def installed(package: str) -> bool:
    """Whether a package is there; it is not imported."""
    return find_spec(package) is not None


@cache
def compiles() -> bool:
    """Whether Numba is there and can be imported: it refuses a numpy that is newer than it knows."""
    if not installed("numba"):
        return False
    try:
        import_module("hilum.model.selective_scan_numba")
    except (ImportError, OSError):  # the latter where LLVM's library cannot be loaded
        return False
    return True


def _scan(inputs: Inputs, backend: Backend) -> Tensor:
    if backend == "sequential":
        return scan_sequential(inputs)
    if backend == "chunked":
        return scan_chunked(inputs)
    if not (compiles() if backend == "numba" else installed(backend)):
        raise UsageError(
            "EXTRA_MISSING", "a scan's backend is installed", expected=backend, got="nothing of that name",
            hint='backend="auto" takes what there is.',
        )  # fmt: skip
    if backend == "mamba_ssm":
        return _scan_mamba_ssm(inputs)
    if backend == "numba":
        from hilum.model.selective_scan_numba import scan_numba

        return scan_numba(inputs)
    from hilum.model.selective_scan_triton import scan_triton

    return scan_triton(inputs)


def _scan_mamba_ssm(i: Inputs) -> Tensor:
    """The authors' kernel, whose arrays are (B, E, T) and (B, N, T)."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    x, delta, b, c = (t.mT.contiguous() for t in (i.x, i.delta, i.b, i.c))
    z = None if i.z is None else i.z.mT.contiguous()
    a = i.a.t().contiguous()
    out: Tensor = selective_scan_fn(
        x, delta, a, b, c, D=i.d, z=z, delta_bias=i.bias, delta_softplus=i.softplus
    )
    return out.mT
