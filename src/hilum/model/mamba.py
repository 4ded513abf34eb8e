"""A Mamba layer: a short causal convolution, a selective scan and a gate, over tokens in one order or three.

Parameters bear the names of the authors' code (`mamba_ssm`), so that weights go in as they are. Two mixers:

* ``mamba``: one scan, in the order of the tokens (Gu & Dao 2023; EXACT §1.2: what the published model has);
* ``tri``: three scans with weights of their own, forwards, backwards and across slices, added before the last
  linear map (SegMamba, arXiv:2401.13560; its code's ``v3``). Across slices: tokens are in slices of the
  volume's first axis, and the scan takes the first token of every slice, then the second of every slice.

The convolution's weights stay as `nn.Conv1d` keeps them; it is computed on channels last, as the rest is.
"""

from __future__ import annotations

import math
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hilum.errors import InputRefused
from hilum.model.selective_scan import Backend, selective_scan
from hilum.tensors import Tokens

Mixer = Literal["mamba", "tri"]
MIXERS: tuple[Mixer, ...] = get_args(Mixer)
STEP_MIN, STEP_MAX, STEP_FLOOR = 0.001, 0.1, 1e-4
"""First step sizes, spread evenly over their logarithm (Gu & Dao 2023, appendix E)."""


class Mamba(nn.Module):
    """Tokens (B, T, width) -> the same shape.

    Args:
        width: channels of a token. d_state: states per channel. d_conv: tokens that the convolution sees.
        expand: channels inside, in widths. mixer: see the module's docstring.
    """

    backend: Backend = "auto"

    def __init__(
        self, width: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, mixer: Mixer = "mamba"
    ) -> None:
        super().__init__()
        self.inner, self.d_state, self.rank = expand * width, d_state, math.ceil(width / 16)
        self.in_proj = nn.Linear(width, 2 * self.inner, bias=False)
        self.tails = ("", "_b", "_s") if mixer == "tri" else ("",)
        for tail in self.tails:
            self._add_scan(tail, d_conv)
        self.out_proj = nn.Linear(self.inner, width, bias=False)

    def _add_scan(self, tail: str, d_conv: int) -> None:
        """Parameters of one scan; they are named as the authors' are."""
        inner, states = self.inner, self.d_state
        conv = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1)
        x_proj = nn.Linear(inner, self.rank + 2 * states, bias=False)
        dt_proj = nn.Linear(self.rank, inner)
        if not dt_proj.weight.is_meta:
            _start_steps(dt_proj)
        decay = torch.log(torch.arange(1.0, states + 1.0)).expand(inner, states)
        for name, module in (("conv1d", conv), ("x_proj", x_proj), ("dt_proj", dt_proj)):
            self.add_module(name + tail, module)
        self.register_parameter(f"A{tail}_log", nn.Parameter(decay.clone()))
        self.register_parameter(f"D{tail}", nn.Parameter(torch.ones(inner)))

    def forward(self, tokens: Tokens, slices: int = 1) -> Tokens:
        """See the class.

        Args:
            slices: of the volume whose tokens they are, for the ``tri`` mixer.

        Raises:
            InputRefused: `MODEL_INPUT` for tokens that are not whole slices.
        """
        if len(self.tails) == 3 and tokens.shape[1] % slices:
            raise InputRefused(
                "MODEL_INPUT", "tokens are whole slices", expected=f"a multiple of {slices}",
                got=tokens.shape[1],
            )  # fmt: skip
        both = self.in_proj(tokens)
        out = self._scan("", both)
        if len(self.tails) == 3:
            out = out + self._scan("_b", both.flip(1)).flip(1)
            across = both.unflatten(1, (slices, -1)).transpose(1, 2).flatten(1, 2)
            back = self._scan("_s", across).unflatten(1, (-1, slices))
            out = out + back.transpose(1, 2).flatten(1, 2)
        return cast(Tensor, self.out_proj(out))

    def _scan(self, tail: str, both: Tensor) -> Tensor:
        """Convolution, scan and gate in the order of the tokens given: (B, T, 2 inner) -> (B, T, inner)."""
        conv = cast(nn.Conv1d, getattr(self, f"conv1d{tail}"))
        x, z = both.chunk(2, dim=-1)
        x = F.silu(causal_conv(x, conv.weight, cast(Tensor, conv.bias)))
        sizes = [self.rank, self.d_state, self.d_state]
        step, b, c = getattr(self, f"x_proj{tail}")(x).split(sizes, dim=-1)
        project = cast(nn.Linear, getattr(self, f"dt_proj{tail}"))
        delta = F.linear(step, project.weight)
        # decays and skips stay in full precision, whatever autocast says
        a = -torch.exp(getattr(self, f"A{tail}_log").float())
        d = getattr(self, f"D{tail}").float()
        return selective_scan(x, delta, a, b, c, d, z, project.bias.float(), backend=self.backend)


def causal_conv(x: Tokens, weight: Tensor, bias: Tensor) -> Tokens:
    """Each channel's own convolution over a token and those before it.

    Args:
        x: (B, T, E). weight: (E, 1, K), oldest first. bias: (E).
    """
    reach = weight.shape[2]
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    padded = F.pad(x, (0, 0, reach - 1, 0))
    out = bias + padded[:, : x.shape[1]] * weight[:, 0, 0]
    for k in range(1, reach):
        out = torch.addcmul(out, padded[:, k : k + x.shape[1]], weight[:, 0, k])
    return out


@torch.no_grad()
def _start_steps(project: nn.Linear) -> None:
    """First weights of the step sizes, and the bias whose softplus is between `STEP_MIN` and `STEP_MAX`."""
    bound = project.in_features**-0.5
    nn.init.uniform_(project.weight, -bound, bound)
    low, high = math.log(STEP_MIN), math.log(STEP_MAX)
    step = torch.exp(torch.rand(project.out_features) * (high - low) + low).clamp(min=STEP_FLOOR)
    # the inverse of the softplus
    project.bias.copy_(step + torch.log(-torch.expm1(-step)))


class MambaLayer(nn.Module):
    """Voxels (B, C, U, V, W) as tokens, last axis fastest, through a norm and a `Mamba`, beside a skip."""

    def __init__(self, width: int, d_state: int, d_conv: int, expand: int, mixer: Mixer) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mamba = Mamba(width, d_state, d_conv, expand, mixer)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        tokens = self.norm(x.flatten(2).mT)
        mixed = self.mamba(tokens, slices=x.shape[2])
        return x + mixed.mT.unflatten(2, x.shape[2:])
