"""Features -> figures: probes trained on shares of the training patients, chosen on validation, measured once
on the test split, on the same draws of patients for everybody."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64

from hilum.exam.bootstrap import (
    Interval,
    auroc_draws,
    interval,
    known,
    listed,
    macro_draws,
    patient_draws,
    precision_draws,
)
from hilum.exam.frozen_cohort import FrozenCohort
from hilum.exam.probe_linear import fit_linear
from hilum.exam.probe_neighbours import fit_neighbours
from hilum.exam.probes import Fitted, learnable
from hilum.text.vocabulary import SLUGS

FRACTIONS = (0.1, 0.25, 1.0)
REPEATS = 3
"""Shares below 1 are drawn so often; figures are means over them."""

Rows = Int64[np.ndarray, "R"]
Draws = Float64[np.ndarray, "B S"]
AllFeatures = Float[np.ndarray, "N F"]
Scores = Float64[np.ndarray, "S D"]
Labels = Float[np.ndarray, "N D"]

Probe = Callable[[tuple[AllFeatures, Labels], tuple[AllFeatures, Labels]], Fitted]
PROBES: Mapping[str, Probe] = MappingProxyType({"linear": fit_linear, "neighbours": fit_neighbours})
"""Name -> training and validation features with labels -> probe."""


@dataclass(frozen=True)
class Seeds:
    """Everything random in the exam.

    Args:
        bootstrap: of the draws of test patients. fraction: of shares of training patients. untrained: of the
            networks that saw nothing. draws: how many.
    """

    bootstrap: int = 0
    fraction: int = 0
    untrained: int = 0
    draws: int = 1000


@dataclass(frozen=True)
class Measured:
    """One set of features under one probe.

    Args:
        name: of the features. probe: of `PROBES`, or another way to scores. fraction: of training patients.
        auroc, precision: per finding. macro, macro_precision: over the findings that were measured.
        chosen: what validation decided, per repeat. validation: macro AUROC there, mean over repeats.
        drawn: the macro AUROC in every draw.
    """

    name: str
    probe: str
    fraction: float
    auroc: tuple[Interval, ...]
    precision: tuple[Interval, ...]
    macro: Interval
    macro_precision: Interval
    chosen: tuple[dict[str, Any], ...] = ()
    validation: float = float("nan")
    drawn: Float64[np.ndarray, "B"] = field(default_factory=lambda: np.zeros(0), repr=False)

    @property
    def findings(self) -> int:
        """How many were measured."""
        return sum(bool(np.isfinite(row.value)) for row in self.auroc)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; what was not measured is None."""
        return {
            "features": self.name,
            "probe": self.probe,
            "fraction": self.fraction,
            "findings_measured": self.findings,
            "macro_auroc": listed(self.macro),
            "macro_average_precision": listed(self.macro_precision),
            "validation_macro_auroc": known(self.validation),
            "chosen": list(self.chosen),
            "auroc": {slug: listed(row) for slug, row in zip(SLUGS, self.auroc, strict=True)},
            "average_precision": {slug: listed(row) for slug, row in zip(SLUGS, self.precision, strict=True)},
        }


@dataclass(frozen=True)
class Difference:
    """Macro AUROC of one minus another's, on the same draws."""

    first: str
    second: str
    probe: str
    fraction: float
    value: Interval

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "features": [self.first, self.second],
            "probe": self.probe,
            "fraction": self.fraction,
            "macro_auroc": listed(self.value),
        }


@dataclass(frozen=True)
class Bench:
    """A cohort, ready to measure any features of its scans.

    Args:
        cohort: see `FrozenCohort`. seeds: see `Seeds`. draws: counts per draw and test scan.
    """

    cohort: FrozenCohort
    seeds: Seeds
    draws: Draws

    @classmethod
    def of(cls, cohort: FrozenCohort, seeds: Seeds) -> Bench:
        """Draws are made once."""
        patients = cohort.patients_of(cohort.rows("test"))
        return cls(cohort, seeds, patient_draws(patients, seeds.draws, seeds.bootstrap))

    def probed(
        self, name: str, features: AllFeatures, fractions: Sequence[float] = FRACTIONS
    ) -> Iterator[Measured]:
        """Both probes on every share.

        Args:
            name: of the features. features: of the cohort's scans, in its order. fractions: of the training
                patients.
        """
        labels = self.cohort.labels
        val, test = self.cohort.rows("val"), self.cohort.rows("test")
        for (probe, fit), fraction in itertools.product(PROBES.items(), fractions):
            scores, chosen, reached = [], [], []
            for rows in self.shares(fraction):
                fitted = fit((features[rows], labels[rows]), (features[val], labels[val]))
                scores.append(fitted.scores(features[test]))
                chosen.append(fitted.chosen)
                reached.append(fitted.validation)
            yield self.measured(name, probe, fraction, scores, chosen, float(np.mean(reached)))

    def shares(self, fraction: float) -> list[Rows]:
        """Training scans of a share of the patients; smaller shares of a repeat lie in its larger ones."""
        rows = self.cohort.rows("train")
        if fraction >= 1:
            return [rows]
        patients = self.cohort.patients_of(rows)
        names = sorted(set(patients))
        count = max(1, round(fraction * len(names)))
        found = []
        for repeat in range(REPEATS):
            order = np.random.default_rng([self.seeds.fraction, repeat]).permutation(len(names))
            taken = {names[n] for n in order[:count]}
            found.append(rows[[p in taken for p in patients]])
        return found

    def measured(
        self,
        name: str,
        probe: str,
        fraction: float,
        scores: Sequence[Scores],
        chosen: Sequence[Mapping[str, Any]] = (),
        validation: float = float("nan"),
    ) -> Measured:
        """Figures of scores on the test scans, means over repeats; a finding is measured where every repeat
        could learn it and the test split has both classes.

        Args:
            scores: one array per repeat. Others as of `Measured`.
        """
        labels = self.cohort.labels[self.cohort.rows("test")]
        columns = [[self._column(s[:, d], labels[:, d]) for s in scores] for d in range(labels.shape[1])]
        areas, precisions = (np.array([[one[i] for one in col] for col in columns]).mean(1).T for i in (0, 1))
        # the first row is the test split itself, the others are its draws
        (auroc, macro), (precision, macro_precision) = (_with_macro(table) for table in (areas, precisions))
        drawn = macro_draws(areas[1:])
        return Measured(
            name, probe, fraction, auroc, precision, macro, macro_precision, tuple(map(dict, chosen)),
            validation, drawn,
        )  # fmt: skip

    def learnable(self) -> Float64[np.ndarray, "D"]:
        """0 for a finding whose training labels have both classes, else NaN: added to scores that need no
        training, so that all are measured on the same findings."""
        return np.where(learnable(self.cohort.labels[self.cohort.rows("train")]), 0.0, np.nan)

    def _column(
        self, scores: Float64[np.ndarray, "S"], labels: Float64[np.ndarray, "S"]
    ) -> tuple[np.ndarray, np.ndarray]:
        """AUROC and average precision on the test split, then in every draw."""
        seen = np.isfinite(labels)
        truth = labels[seen] > 0.5
        draws = np.concatenate([np.ones((1, int(seen.sum()))), self.draws[:, seen]])
        if not np.isfinite(scores[seen]).all() or not truth.any() or truth.all():
            return np.full(len(draws), np.nan), np.full(len(draws), np.nan)
        return auroc_draws(scores[seen], truth, draws), precision_draws(scores[seen], truth, draws)


def differences(rows: Sequence[Measured]) -> list[Difference]:
    """Every two sets of features under the same probe and share, the later minus the earlier."""
    found = []
    for a, b in itertools.combinations(rows, 2):
        if (a.probe, a.fraction) != (b.probe, b.fraction):
            continue
        value = interval(b.macro.value - a.macro.value, b.drawn - a.drawn)
        found.append(Difference(b.name, a.name, a.probe, a.fraction, value))
    return found


def _with_macro(table: Float64[np.ndarray, "B D"]) -> tuple[tuple[Interval, ...], Interval]:
    rows = tuple(interval(float(column[0]), column[1:]) for column in table.T)
    macro = macro_draws(table)
    return rows, interval(float(macro[0]), macro[1:])
