"""Every way to compute the selective scan equals the plain loop over tokens, forward and gradient."""

import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from hilum.errors import UsageError
from hilum.model import selective_scan as dispatch
from hilum.model import selective_scan_chunked
from hilum.model.selective_scan import scan_sequential, selective_scan
from hilum.model.selective_scan_chunked import Inputs

NUMBA = pytest.mark.skipif(
    not dispatch.installed("numba"), reason="Numba is not installed (the extra `fast`)"
)
ON_CPUS = ["chunked", pytest.param("numba", marks=NUMBA)]
SHAPES = [(1, 1, 3, 2), (2, 7, 5, 3), (1, 8, 4, 16), (2, 67, 6, 5), (1, 203, 33, 16)]
LANE_SHAPES = [(2, 130, 35, 16), (3, 65, 1, 3), (1, 64, 16, 1), (1, 129, 48, 7)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}


def scan_inputs(batch, time, channels, states, dtype, seed=0):
    """x, delta, a, b, c, d, z, bias."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    tokens, read = (batch, time, channels), (batch, time, states)
    a = -torch.exp(normal(channels, states))
    return [normal(*tokens), normal(*tokens), a, normal(*read), normal(*read), normal(channels),
            normal(*tokens), normal(channels)]  # fmt: skip


def answers(values, backend, *, softplus=True):
    """Output and the gradient of every input, for one fixed gradient of the output."""
    leaves = [None if v is None else v.clone().requires_grad_() for v in values]
    out = selective_scan(*leaves, softplus=softplus, backend=backend)
    (out * torch.cos(torch.arange(out.numel(), dtype=out.dtype).view_as(out))).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


def close(ours, plain, tolerance):
    for n, (a, b) in enumerate(zip(ours, plain, strict=True)):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1), n


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block_bytes", [1, 20_000, selective_scan_chunked.BLOCK_BYTES])
def test_chunked_is_sequential(shape, dtype, block_bytes, monkeypatch):
    monkeypatch.setattr(selective_scan_chunked, "BLOCK_BYTES", block_bytes)
    values = scan_inputs(*shape, dtype)
    close(answers(values, "chunked"), answers(values, "sequential"), TOLERANCE[dtype])


@NUMBA
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [*SHAPES, *LANE_SHAPES])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_numba_is_sequential(shape, dtype, threads, monkeypatch):
    from hilum.model import selective_scan_numba

    monkeypatch.setattr(selective_scan_numba, "WORTH", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    values = scan_inputs(*shape, dtype)
    close(answers(values, "numba"), answers(values, "sequential"), TOLERANCE[dtype])


@NUMBA
def test_no_sequence_at_all():
    found = answers(scan_inputs(0, 3, 4, 2, torch.float32), "numba")
    assert found[0].shape == (0, 3, 4) and found[3].abs().sum() == 0


@pytest.mark.parametrize("backend", ON_CPUS)
def test_parts_that_are_optional(backend):
    values = scan_inputs(2, 19, 4, 3, torch.float64)
    for missing in ((5,), (6,), (7,), (5, 6, 7)):
        some = [None if n in missing else v for n, v in enumerate(values)]
        close(answers(some, backend), answers(some, "sequential"), 1e-12)
    values[1] = values[1].abs()
    close(answers(values, backend, softplus=False), answers(values, "sequential", softplus=False), 1e-12)


@pytest.mark.parametrize("backend", ON_CPUS)
def test_nothing_overflows_where_everything_is_forgotten(backend):
    values = scan_inputs(1, 40, 6, 4, torch.float32)
    values[1], values[2] = values[1] + 30, values[2] * 50
    ours, plain = answers(values, backend), answers(values, "sequential")
    assert all(torch.isfinite(value).all() for value in ours)
    close(ours, plain, 1e-4)


@pytest.mark.parametrize("backend", ON_CPUS)
def test_large_steps_are_torch_s_softplus(backend):
    values = scan_inputs(1, 70, 5, 3, torch.float64)
    values[1] = values[1] * 15 + 15  # on both sides of 20, where torch ends the softplus
    values[2] = values[2] / 100
    close(answers(values, backend)[:1], answers(values, "sequential")[:1], 1e-12)


@pytest.mark.parametrize("backend", ON_CPUS)
def test_rows_with_other_things_between_them(backend):
    batch, time, channels, states = 2, 131, 18, 5
    plain = scan_inputs(batch, time, channels, states, torch.float64)
    wide = torch.cat([plain[0], plain[6], plain[3], plain[4]], dim=2)
    x, z, b, c = wide.split([channels, channels, states, states], dim=2)
    delta = plain[1].mT.contiguous().mT
    values = [x, delta, plain[2].t().contiguous().t(), b, c, plain[5], z, plain[7]]
    assert not any(v.is_contiguous() for v in (x, delta, b, c, z))
    out = selective_scan(*values, backend=backend)
    close([out], [selective_scan(*plain, backend="sequential")], 1e-12)
    values[1] = plain[1][:, :1].expand_as(delta)
    plain[1] = values[1].contiguous()
    close([selective_scan(*values, backend=backend)], [selective_scan(*plain, backend="sequential")], 1e-12)
    close([selective_scan(*plain, backend=backend).sum(1)], [selective_scan(*values).sum(1)], 1e-12)


@pytest.mark.parametrize("backend", ON_CPUS)
def test_a_sequence_cut_short_is_the_start_of_the_whole(backend):
    values = scan_inputs(1, 200, 20, 4, torch.float64)
    whole = selective_scan(*values, backend=backend)
    for time in (1, 63, 64, 65, 128, 129):
        cut = [v[:, :time] if v.dim() == 3 else v for v in values]
        close([selective_scan(*cut, backend=backend)], [whole[:, :time]], 1e-12)


@pytest.mark.parametrize("backend", ON_CPUS)
def test_gradients_are_those_of_differences(backend):
    values = [v.requires_grad_() for v in scan_inputs(2, 6, 3, 2, torch.float64)]
    assert torch.autograd.gradcheck(lambda *some: selective_scan(*some, backend=backend), values)


@pytest.mark.parametrize("backend", ON_CPUS)
def test_what_is_no_number_is_seen(backend):
    values = scan_inputs(1, 90, 5, 3, torch.float32)
    for which in (0, 1):
        broken = [v.clone() for v in values]
        broken[which][0, 70, 2] = float("nan")
        nan = selective_scan(*broken, backend=backend).isnan()
        assert nan[0, 70:, 2].all() and nan.sum() == 20


@NUMBA
def test_powers_of_two_to_the_last_digits():
    import numba

    from hilum.model.selective_scan_kernels import LANES, exp2, load, store

    @numba.njit
    def every(values, out):
        for at in range(0, len(values), LANES):
            store(out, at, exp2(load(values, at)))

    for dtype, least, wrong in ((np.float32, -126, 2e-7), (np.float64, -1022, 4e-16)):
        values = np.linspace(least, -least, 2**16).astype(dtype)
        out, true = np.empty_like(values), np.exp2(values.astype(np.longdouble))
        every(values, out)
        assert np.abs(out / true - 1).max() < wrong
        ends = np.full(LANES, np.nan, dtype)
        ends[:7] = 0, -2, 3, least - 2, 1 - least + 2, -np.inf, np.inf
        found = np.empty_like(ends)
        every(ends, found)
        assert found[:7].tolist() == [1, 0.25, 8, 0, np.inf, 0, np.inf] and np.isnan(found[7:]).all()


@NUMBA
def test_where_numba_may_keep_nothing_it_compiles_all_the_same(monkeypatch):
    from numba.core import caching

    from hilum.model import selective_scan_kernels

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    twice = selective_scan_kernels._compiled(lambda value: 2 * value)
    assert twice(21) == 42


def test_it_computes_in_float32_and_answers_in_the_type_of_x():
    values = scan_inputs(1, 33, 4, 3, torch.float32)
    half = [value.bfloat16() for value in values]
    plain = selective_scan(*(value.float() for value in half))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = selective_scan(*half)
    assert found.dtype == torch.bfloat16 and torch.equal(found, plain.bfloat16())


@pytest.mark.parametrize("backend", ON_CPUS)
def test_only_a_block_is_ever_held(backend):
    time, channels, states = 4096, 24, 16
    values = scan_inputs(1, time, channels, states, torch.float32)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        answers(values, backend)
    whole = time * channels * states * 4
    kept = channels * states * 4 * (time // 64)
    most = max(event.self_cpu_memory_usage for event in record.key_averages() if event.count == 1)
    assert most < max(whole // 2, kept), "one operation made an array of (time, state, channel)"


def test_the_gpu_kernels_by_triton_s_interpreter():
    """Triton chooses its interpreter when it is imported, so this runs in a process of its own."""
    pytest.importorskip("triton")
    code = (
        "import torch\n"
        "from tests.parity.test_model_selective_scan import answers, close, scan_inputs\n"
        "from hilum.model import selective_scan_triton as kernels\n"
        "kernels.TIME, kernels.CHANNELS = 4, 4\n"
        "for shape in ((1, 3, 2, 2), (2, 9, 5, 2)):\n"
        "    values = scan_inputs(*shape, torch.float32)\n"
        "    close(answers(values, 'triton'), answers(values, 'sequential'), 2e-5)\n"
        "some = [None if n in (5, 6, 7) else v for n, v in enumerate(values)]\n"
        "close(answers(some, 'triton'), answers(some, 'sequential'), 2e-5)\n"
    )
    there(code, TRITON_INTERPRET="1")


def test_the_gpu_kernels_compile_for_a_gpu_that_is_not_here():
    pytest.importorskip("triton")
    code = (
        "import triton\n"
        "from triton.backends.compiler import GPUTarget\n"
        "from triton.compiler import ASTSource\n"
        "from hilum.model import selective_scan_triton as kernels\n"
        "block = {'TB': kernels.TIME, 'EB': kernels.CHANNELS, 'N': 2}\n"
        "both = {'REVERSE': True, **block}, {'REVERSE': False, 'WB': 128}\n"
        "for kernel, fixed in ((kernels._ends, both[0]), (kernels._carry, both[1]),\n"
        "                      (kernels._outputs, block), (kernels._gradients, block)):\n"
        "    kinds = {name: 'constexpr' if name in fixed else 'i32' if name in ('T', 'E', 'W', 'chunks')\n"
        "             else '*fp32' for name in kernel.arg_names}\n"
        "    source = ASTSource(fn=kernel, signature=kinds, constexprs=fixed)\n"
        "    assert triton.compile(source, target=GPUTarget('cuda', 90, 32)).asm['ptx']\n"
    )
    there(code)


def there(code, **env):
    """Runs in a process of its own, which must end well."""
    root = Path(__file__).resolve().parents[2]
    path = [str(root), str(root / "src"), *sys.path]
    env = {**os.environ, **env, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_authors_kernels_where_they_are_installed(monkeypatch):
    """`mamba_ssm` needs a GPU: a stand-in with its signature and its axes, (B, E, T) and (B, N, T)."""
    called = []

    def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
        called.append((u.shape, A.shape, B.shape, z.is_contiguous()))
        x, delta, B, C, z = (t.mT for t in (u, delta, B, C, z))
        return scan_sequential(Inputs(x, delta, A.mT, B, C, D, z, delta_bias, delta_softplus)).mT

    stand_in = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    stand_in.selective_scan_fn = selective_scan_fn
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    monkeypatch.setattr(dispatch, "installed", lambda package: package == "mamba_ssm")
    values = scan_inputs(2, 11, 5, 3, torch.float32)
    close(answers(values, "mamba_ssm"), answers(values, "sequential"), 2e-5)
    assert called == [((2, 5, 11), (5, 3), (2, 3, 11), True)]


class OnTheGpu:
    """What `choose` looks at, of a tensor on a GPU."""

    is_cuda, dtype = True, torch.float32


def test_who_is_asked(monkeypatch):
    there = set()
    monkeypatch.setattr(dispatch, "installed", there.__contains__)
    monkeypatch.setattr(dispatch, "compiles", lambda: "numba" in there)
    choose = dispatch.choose.__wrapped__ if hasattr(dispatch.choose, "__wrapped__") else dispatch.choose
    assert choose(OnTheGpu()) == "chunked"
    there.add("triton")
    assert choose(OnTheGpu()) == "triton"
    there.add("mamba_ssm")
    assert choose(OnTheGpu()) == "mamba_ssm"
    assert choose(torch.ones(1)) == "chunked"
    there.add("numba")
    assert choose(torch.ones(1)) == "numba" and choose(torch.ones(1, device="meta")) == "chunked"
    assert choose(OnTheGpu()) == "mamba_ssm"
    there.clear()
    for backend in ("triton", "numba"):
        with pytest.raises(UsageError, match="EXTRA_MISSING"):
            selective_scan(*scan_inputs(1, 2, 2, 2, torch.float32), backend=backend)


def test_a_graph_is_traced_through_torch_s_own_operations():
    class Scan(torch.nn.Module):
        def forward(self, *values):
            return selective_scan(*values)

    values = scan_inputs(1, 20, 3, 2, torch.float32)
    traced = torch.export.export(Scan(), tuple(values)).module()
    close([traced(*values)], [selective_scan(*values, backend="sequential")], 2e-5)


def test_a_numba_that_cannot_be_imported_is_none(monkeypatch):
    monkeypatch.setattr(dispatch, "installed", lambda package: True)
    monkeypatch.setitem(sys.modules, "hilum.model.selective_scan_numba", None)
    dispatch.compiles.cache_clear()
    assert not dispatch.compiles()
    dispatch.compiles.cache_clear()
