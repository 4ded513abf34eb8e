"""The average of weights and clipped gradients, on one device; on ranks: parity/test_train_distributed.py."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from hilum.errors import RunError, UsageError
from hilum.objective.clip import Temperature
from hilum.train.clipping import clip_by_part, gradient_norm
from hilum.train.ema import Average


class Student(nn.Module):
    """Parts, a parameter and buffers of its own, one of them outside the state."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.vision = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
        self.projection = nn.Linear(6, 2, bias=False)
        self.temperature = Temperature()
        self.token = nn.Parameter(torch.randn(1, 6))
        self.register_buffer("centre", torch.randn(2))
        self.register_buffer("scratch", torch.randn(2), persistent=False)

    def forward(self, x):
        return self.projection(self.vision(x) + self.token) * self.temperature() + self.centre


def moved(model, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=g))
            else:
                value.fill_(seed)


def test_every_parameter_and_buffer_is_averaged():
    model = Student()
    average = Average(model)
    expected = {n: v.detach().clone() for n, v in (*model.named_parameters(), *model.named_buffers())}
    for step, momentum in enumerate((0.9, 0.5, 1.0, 0.0, 0.99)):
        moved(model, step)
        average.update(momentum)
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if value.is_floating_point():
                expected[name] = momentum * expected[name] + (1 - momentum) * value.detach()
            else:
                expected[name] = value.clone()
    found = dict((*average.module.named_parameters(), *average.module.named_buffers()))
    assert found.keys() == expected.keys() and {"centre", "scratch", "token"} < found.keys()
    for name in expected:
        assert torch.allclose(found[name], expected[name], atol=1e-6), name
    assert int(found["vision.1.num_batches_tracked"]) == 4


def test_what_is_exported_is_the_models_state_and_apart_from_it():
    model = Student()
    average = Average(model)
    exported = average.tensors()
    assert exported.keys() == model.state_dict().keys() and "scratch" not in exported
    moved(model, 1)
    average.update(0.5)
    assert not torch.equal(exported["token"], average.tensors()["token"])
    Student().load_state_dict(exported)


def test_the_average_learns_nothing_by_itself():
    model = Student()
    model(torch.randn(5, 4)).sum().backward()
    average = Average(model)
    assert all(p.grad is None and not p.requires_grad for p in average.module.parameters())
    assert not average.module.training and model.training and model.token.requires_grad


def test_a_bfloat16_model_has_a_float32_average_that_moves():
    model = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.ones_(model.weight)
    average, coarse = Average(model), model.weight.detach().clone()
    model.weight.data.fill_(1.5)
    for _ in range(100):
        average.update(0.999)
        coarse.lerp_(model.weight.detach(), 0.001)
    assert coarse.item() == 1.0, "why it is not kept in bfloat16"
    assert average.tensors()["weight"].dtype == torch.float32
    assert average.tensors()["weight"].item() == pytest.approx(1.5 - 0.5 * 0.999**100, rel=1e-5)


def test_a_given_module_becomes_the_average_whatever_it_held():
    model, module = Student(), Student()
    for parameter in module.parameters():
        parameter.data.fill_(float("nan"))
    average = Average(model, module)
    assert average.module is module
    assert all(torch.equal(v, model.state_dict()[n]) for n, v in average.tensors().items())


def without_temperature():
    module = Student()
    del module.temperature
    return module


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (without_temperature, "temperature.log_scale in one alone"),
        (lambda: Student().bfloat16(), "bfloat16"),
        (lambda: Student().to("meta"), "meta"),
    ],
)
def test_a_module_that_is_no_twin_is_refused(module, named):
    with pytest.raises(UsageError, match=named):
        Average(Student(), module())


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_a_momentum_is_a_share(momentum):
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        Average(Student()).update(momentum)


def backward(model, scale=1.0):
    model(torch.randn((5, 4), generator=torch.Generator().manual_seed(0))).square().sum().mul(
        scale
    ).backward()
    return model


def test_each_part_is_cut_alone_and_none_escapes():
    model, twin = backward(Student()), backward(Student())
    norms = clip_by_part(model, 0.5)
    assert norms.keys() == {"vision", "projection", "temperature", "token"}
    parts = [
        twin.vision.parameters(),
        twin.projection.parameters(),
        twin.temperature.parameters(),
        [twin.token],
    ]
    for part, parameters in zip(norms, [parts[3], *parts[:3]], strict=True):
        assert clip_grad_norm_(list(parameters), 0.5).item() == pytest.approx(norms[part].item(), rel=1e-5)
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-5), name
    cut = [gradient_norm([p.grad for p in part.parameters()]).item() for part in model.children()]
    assert cut == pytest.approx([0.5] * 3, rel=1e-4), "all were larger"


def test_a_small_gradient_stays_bit_for_bit():
    model = backward(Student(), 1e-4)
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    clip_by_part(model, 3.0)
    assert all(torch.equal(p.grad, before[name]) for name, p in model.named_parameters())


def test_a_part_without_a_gradient_is_left_out():
    model = backward(Student())
    model.projection.zero_grad()
    assert "projection" not in clip_by_part(model, 1.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_stops_and_touches_nothing(bad):
    model = backward(Student())
    model.projection.weight.grad[0, 0] = bad
    before = copy.deepcopy({name: p.grad for name, p in model.named_parameters()})
    with pytest.raises(RunError, match=r"GRADIENT_NONFINITE.*projection") as caught:
        clip_by_part(model, 1.0)
    assert "vision" not in str(caught.value)
    for name, p in model.named_parameters():
        assert torch.equal(p.grad.nan_to_num(), before[name].nan_to_num()), name


@pytest.mark.parametrize("largest", [0.0, -1.0, float("nan")])
def test_a_largest_norm_is_positive(largest):
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        clip_by_part(backward(Student()), largest)


def test_the_norm_of_bfloat16_gradients_is_exact_to_float32():
    gradients = [torch.full((100,), 0.1).bfloat16() for _ in range(1000)]
    exact = (100_000 * gradients[0][0].double().square()).sqrt()
    assert gradient_norm(gradients).item() == pytest.approx(exact.item(), rel=1e-5)
