"""bfloat16 where a device has it, float32 where it would only be slow."""

import pytest
import torch

from hilum.objective import precision

CPU = torch.device("cpu")


def product_type(name: str) -> torch.dtype:
    x = torch.ones(2, 2)
    with precision.in_precision(CPU, name):
        return (x @ x).dtype


def test_float32_is_float32():
    assert product_type("fp32") == torch.float32


@pytest.mark.parametrize(("has", "wanted"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_is_used_where_the_processor_has_it(monkeypatch, has, wanted):
    monkeypatch.setattr(precision, "native_bf16", lambda device: has)
    assert product_type("bf16") == wanted


def test_a_gpu_is_believed_and_a_cpu_is_asked():
    assert precision.native_bf16(torch.device("cuda"))
    assert precision.native_bf16(CPU) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
