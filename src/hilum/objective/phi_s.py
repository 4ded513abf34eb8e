"""PHI standardisation: a teacher's features with mean 0 and the same variance along every axis, by one
rotation and one scale.

Source: Ranzinger et al., "PHI-S: Distribution Balancing for Label-Free Multi-Teacher Distillation", ICLR
2025. Teachers differ by orders of magnitude in how far their features spread, and within one a few axes hold
most of it: a squared error listens to these alone. Features are turned onto their principal axes, then by a
Hadamard matrix, which mixes all principal axes with equal shares, so that every axis has the mean variance;
then they are divided by its root. Distances keep their proportions, and it can be undone.

y = R Uᵀ (x - mean) / φ, with U the eigenvectors of the covariance, φ² the mean of its eigenvalues λ, and R
orthogonal with an even diagonal of R diag(λ) Rᵀ. R is a Hadamard matrix over the root of its order where one
is made here (by doubling, by Paley's two constructions over primes, by products of these: all widths of the
models that Hilum names). For other widths, such as those that are no multiple of 4, no such matrix does it
for every λ, but one exists for each λ (Schur and Horn): a chain of plane rotations, each of which gives one
axis its mean variance. It mixes less, and the variances are as equal.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from hilum.errors import RunError
from hilum.objective.gather import sum_over_ranks, world
from hilum.objective.precision import full, without_autocast
from hilum.tensors import DoubleMatrix, DoubleScalar, DoubleVector, FeatureRows, PatchTokens


class Standard(NamedTuple):
    """How features are standardised: ``matrix @ (x - mean)``, float64.

    Args:
        mean: of the features, (D,). matrix: rotation over scale, (D, D). scale: φ.
    """

    mean: torch.Tensor
    matrix: torch.Tensor
    scale: float


class Moments:
    """Count, sum and products of features, in float64, added up batch by batch.

    Args:
        width: numbers of a feature. device: where they are added up.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.total = torch.zeros(width, dtype=torch.float64, device=device)
        self.products = torch.zeros(width, width, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, features: FeatureRows) -> None:
        """More features, one per row."""
        rows = features.detach().to(self.total)
        self.count += len(rows)
        self.total += rows.sum(0)
        self.products += rows.T @ rows

    @torch.no_grad()
    def standard(self) -> Standard:
        """The standardisation of what all ranks have added: enter it on every rank; every rank gets the same.

        Raises:
            RunError: `MODEL_OUTPUT` for fewer than two features, or features that do not vary or are not
                finite.
        """
        count, total, products = (sum_over_ranks(x).cpu() for x in (self.count, self.total, self.products))
        mean = total / count
        covariance = products / count - torch.outer(mean, mean)
        even = covariance.diagonal().mean().item()
        # what is left of rounding is no variance
        least = 1e-12 * (products.diagonal() / count).mean().item()
        if count < 2 or not least < even < math.inf:
            raise RunError(
                "MODEL_OUTPUT",
                "a teacher's features vary and are finite",
                expected="two features at least, a variance above 0",
                got=f"{int(count)} features, mean variance {even:.3g}",
            )
        matrix, device = _turned(covariance) / math.sqrt(even), self.total.device
        return Standard(_of_first(mean.to(device)), _of_first(matrix.to(device)), math.sqrt(even))


@torch.no_grad()
def mean_of_all(total: DoubleVector, count: DoubleScalar) -> DoubleVector:
    """Total over count of all ranks, the same on each of them: enter it on every rank."""
    return _of_first(sum_over_ranks(total) / sum_over_ranks(count))


def hadamard(order: int) -> DoubleMatrix | None:
    """A matrix of 1 and -1 whose rows are at right angles, or None where none is made here.

    Sources: Sylvester, 1867; Paley, "On orthogonal matrices", 1933.
    """
    if order in (1, 2):
        return torch.tensor([[1.0]] if order == 1 else [[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    if order % 4:
        return None
    paley = _paley_first(order - 1) if order & (order - 1) else None
    paley = _paley_second(order // 2 - 1) if paley is None and order & (order - 1) else paley
    if paley is not None:
        return paley
    for factor in (2, *range(4, math.isqrt(order) + 1, 4)):
        if order % factor:
            continue
        small, large = hadamard(factor), hadamard(order // factor)
        if small is not None and large is not None:
            return torch.kron(small, large)
    return None


def even_rotation(variances: DoubleVector) -> DoubleMatrix:
    """R, orthogonal, so that features with these variances along their axes have the mean of them along every
    axis after it: the diagonal of R diag(variances) Rᵀ is constant."""
    order = len(variances)
    signs = hadamard(order)
    if signs is not None:
        return signs / math.sqrt(order)
    return _plane_rotations(variances)


def _turned(covariance: torch.Tensor) -> torch.Tensor:
    """R Uᵀ of a covariance."""
    variances, axes = torch.linalg.eigh(covariance)
    # an eigenvector's sign is anybody's choice: its largest number is positive
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    axes = axes * torch.where(largest < 0, -1.0, 1.0)
    return even_rotation(variances.clamp_min(0.0)) @ axes.T


def _of_first(values: torch.Tensor) -> torch.Tensor:
    """The first rank's: eigenvectors of other machines differ in the last digits."""
    if world() > 1:
        values = values.contiguous()
        dist.broadcast(values, 0)
    return values


def _plane_rotations(variances: torch.Tensor) -> torch.Tensor:
    """Axes that have their mean are left alone; of the others one below and one above it are turned in their
    plane until one has it. No pair was turned together before, so their covariance is 0."""
    rotation, now = torch.eye(len(variances), dtype=torch.float64), variances.tolist()
    mean, open_axes = sum(now) / len(now), list(range(len(now)))
    while len(open_axes) > 1:
        low, high = min(open_axes, key=now.__getitem__), max(open_axes, key=now.__getitem__)
        spread = now[high] - now[low]
        if spread <= 0:
            break
        share = min(1.0, max(0.0, (mean - now[low]) / spread))
        cos, sin = math.sqrt(1 - share), math.sqrt(share)
        rotation[[low, high]] = torch.stack(
            (cos * rotation[low] + sin * rotation[high], cos * rotation[high] - sin * rotation[low])
        )
        now[low], now[high] = mean, now[high] + now[low] - mean
        open_axes.remove(low)
    return rotation


def _paley_first(q: int) -> torch.Tensor | None:
    """Order q + 1 for a prime q that is 3 modulo 4."""
    if q % 4 != 3 or not _prime(q):
        return None
    skew = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1.0, -1.0, _residues(q)
    return skew + torch.eye(q + 1, dtype=torch.float64)


def _paley_second(q: int) -> torch.Tensor | None:
    """Order 2 (q + 1) for a prime q that is 1 modulo 4."""
    if q % 4 != 1 or not _prime(q):
        return None
    even = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    even[0, 1:], even[1:, 0], even[1:, 1:] = 1.0, 1.0, _residues(q)
    both = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    own = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    return torch.kron(even, both) + torch.kron(torch.eye(q + 1, dtype=torch.float64), own)


def _residues(q: int) -> torch.Tensor:
    """Whether i - j is a square modulo q: 1, or -1, 0 on the diagonal."""
    kind = torch.full((q,), -1.0, dtype=torch.float64)
    kind[torch.arange(1, q).square() % q] = 1.0
    kind[0] = 0.0
    places = torch.arange(q)
    return kind[(places[:, None] - places[None]) % q]


def _prime(n: int) -> bool:
    return n > 1 and all(n % k for k in range(2, math.isqrt(n) + 1))


class Standardise(nn.Module):
    """Holds a `Standard` and the teacher it is of, as buffers: they are saved with a run, and a run that is
    resumed goes on with them.

    Args:
        width: numbers of a feature. summary_width: of a summary that is centred, else 0.
    """

    mean: torch.Tensor
    matrix: torch.Tensor
    centre: torch.Tensor
    teacher: torch.Tensor

    def __init__(self, width: int, summary_width: int = 0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("matrix", torch.zeros(width, width))
        self.register_buffer("centre", torch.zeros(summary_width))
        self.register_buffer("teacher", torch.zeros(32, dtype=torch.uint8))

    @torch.no_grad()
    def hold(self, standard: Standard, sha256: str, centre: torch.Tensor | None = None) -> None:
        """Takes what was estimated.

        Args:
            standard: of features of the teacher. sha256: of its weights, hex. centre: mean of its summaries.
        """
        if centre is not None:
            self.centre.copy_(centre)
        self.mean.copy_(standard.mean)
        self.matrix.copy_(standard.matrix)
        self.teacher.copy_(torch.tensor(list(bytes.fromhex(sha256)), dtype=torch.uint8))

    @property
    def sha256(self) -> str | None:
        """Of the teacher's weights, hex; None before anything was estimated."""
        digest = bytes(self.teacher.tolist())
        return digest.hex() if any(digest) else None

    def forward(self, features: PatchTokens) -> PatchTokens:
        """Features of a teacher, standardised, in float32 or better."""
        with without_autocast(features):
            values = full(features)
            return (values - self.mean.to(values)) @ self.matrix.to(values).T
