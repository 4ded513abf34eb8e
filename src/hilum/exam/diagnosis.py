"""The diagnosis suite: are the 18 findings told apart, called rightly, and with right probabilities?

A model's thresholds and calibration come from its card, or with `choosing` from the cohort's validation part,
and are then kept in the card; a table of anybody's probabilities is judged by thresholds from its own
validation rows. The test part decides nothing, but where a published convention that fits on it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64

from hilum.cohort.manifest import Manifest
from hilum.cohort.sources.base import Calcification
from hilum.errors import InputRefused
from hilum.exam.bootstrap import Interval, interval, known, listed, patient_draws
from hilum.exam.calibrate import apply, choose_kind, fit
from hilum.exam.choose import choose_presence, thresholds
from hilum.exam.diagnosis_answers import Answers
from hilum.exam.diagnosis_measure import (
    F1_OF,
    NOTES,
    Called,
    Column,
    Convention,
    Figures,
    call,
    figures,
    fit_on_test,
)
from hilum.exam.label_sets import LABEL_SETS, LabelSet
from hilum.exam.reliability import Reliability, calibration_facts, ece_draws, pooled, reliability
from hilum.exam.thresholds import CARD_KEYS
from hilum.text.vocabulary import INDEX, SLUGS

Table = Float64[np.ndarray, "N D"]


@dataclass(frozen=True)
class Asked:
    """What the exam is to say.

    Args:
        convention: whose thresholds and F1. rule: of `thresholds.RULES`, for the default convention.
        labels: the findings. calcification: how RAD-ChestCT's one label is scored. draws, seed: of intervals.
    """

    convention: Convention = "default"
    rule: str = "youden"
    labels: LabelSet = field(default_factory=lambda: LABEL_SETS["ct-rate"])
    calcification: Calcification = "arterial"
    draws: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Diagnosis:
    """Everything the suite found.

    Args:
        facts: model, cohort, conventions, who was left out. figures: see `Figures`. ece: pooled, quoted.
        calibration: raw and calibrated, see `calibration_facts`. diagrams: the same, to be drawn.
    """

    facts: Mapping[str, Any]
    figures: Figures
    ece: Interval
    calibration: Mapping[str, Any]
    diagrams: Mapping[str, Reliability]

    @property
    def excluded(self) -> tuple[Column, ...]:
        """Findings that are in no mean."""
        return tuple(c for c in self.figures.columns if c.excluded)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; what was not measured is None. `f1` is the one that the convention quotes."""
        macro = {f"macro_{name}": listed(value) for name, value in self.figures.macro.items()}
        quoted = F1_OF[self.facts["convention"]]
        return {
            "suite": "diagnosis",
            **self.facts,
            "summary": {
                **macro, "macro_f1": listed(self.figures.macro[quoted]), "ece": listed(self.ece),
            },
            "excluded": {c.slug: c.excluded for c in self.excluded},
            "findings": [c.as_dict() | {"f1": listed(c.values[quoted])} for c in self.figures.columns],
            "calibration": _plain(self.calibration),
            "reliability": {name: d.as_dict() for name, d in self.diagrams.items()},
        }  # fmt: skip


def chosen_for_card(answers: Answers, part: Manifest) -> dict[str, Any]:
    """What validation answers decide, as keys of a model's card.

    Args:
        answers: of the validation part. part: that part.
    """
    p, labels = answers.raw, _labels(answers, LABEL_SETS["ct-rate"], "arterial")
    told = choose_presence(p, labels, answers.patients)
    source = part.source or "cohort"
    whom = f"{len(answers)} scans of {len(set(answers.patients))} patients of {source}, validation part"
    return told | {"validated_on": whom}


def examine_model(
    card: Mapping[str, Any], test: Answers, asked: Asked, facts: Mapping[str, Any]
) -> Diagnosis:
    """The suite for a model whose card holds thresholds and calibration.

    Args:
        card: of the model. test: its answers. facts: of model and cohort, for the result.
    """
    table = card.get(CARD_KEYS[asked.rule]) or {}
    at_18 = [float(table.get(slug, "nan")) for slug in SLUGS]
    called_18 = call(test.probabilities, at_18)
    # a union of two calls needs no threshold of its own
    called = asked.labels.scores(called_18, asked.calcification)
    at = _of_set(asked.labels, at_18)
    origin = f"the model's card ({asked.rule}), chosen on {card.get('validated_on', 'validation data')}"
    return _examined(test, called, at, origin, asked, facts, None)


def examine_table(val: Answers | None, test: Answers, asked: Asked, facts: Mapping[str, Any]) -> Diagnosis:
    """The suite for a table of probabilities.

    Args:
        val: its answers on validation scans, None or empty without. test: its answers.
        facts: of table and cohort, for the result.
    """
    at, origin = [float("nan")] * len(asked.labels.slugs), "none: no validation scan was answered"
    if val is not None and len(val):
        p, labels = _scores(val.probabilities, asked), _labels(val, asked.labels, asked.calcification)
        at = thresholds(p, labels, asked.rule)
        origin = f"{len(val)} validation scans ({asked.rule})"
    called = call(_scores(test.probabilities, asked), at)
    return _examined(test, called, at, origin, asked, facts, val)


def _examined(
    test: Answers,
    called: Called,
    at: list[float],
    origin: str,
    asked: Asked,
    facts: Mapping[str, Any],
    val: Answers | None,
) -> Diagnosis:
    if not len(test):
        raise InputRefused(
            "MODEL_OUTPUT", "some scan of the test part is answered", expected="at least one", got="none",
            hint="Are the keys of the table those of the cohort?",
        )  # fmt: skip
    raw, told = _scores(test.raw, asked), _scores(test.probabilities, asked)
    labels = _labels(test, asked.labels, asked.calcification)
    if asked.convention != "default":
        called, at = fit_on_test(told, labels, asked.convention)
        origin = "THE TEST SCANS THEMSELVES"
    draws = patient_draws(test.patients, asked.draws, asked.seed)
    found = figures(asked.labels.slugs, raw, labels, called, at, draws)
    shown = {"raw": raw, "calibrated": told}
    kind = "as the card says"
    if val is not None:
        shown["calibrated"], kind = _recalibrated(val, told, asked)
    answered = {name: np.where(np.isfinite(p), labels, np.nan) for name, p in shown.items()}
    quoted = ece_draws(
        np.nan_to_num(shown["calibrated"]), answered["calibrated"],
        np.concatenate([np.ones((1, len(test))), draws]),
    )  # fmt: skip
    return Diagnosis(
        {
            **facts,
            "label_set": asked.labels.name,
            "calcification": asked.calcification if asked.labels.joined else None,
            "convention": asked.convention,
            "convention_note": NOTES[asked.convention],
            "thresholds_from": origin,
            "scans": len(test),
            "patients": len(set(test.patients)),
            "unanswered": dict(test.unanswered),
            "intervals": {"draws": asked.draws, "seed": asked.seed, "by": "patient"},
        },
        found,
        interval(float(quoted[0]), quoted[1:]),
        {n: calibration_facts(p, answered[n]) for n, p in shown.items()} | {"kind": kind},
        {n: reliability(*pooled(p, answered[n])) for n, p in shown.items()},
    )


def _recalibrated(val: Answers, told: Table, asked: Asked) -> tuple[Table, str]:
    """A table's test probabilities, calibrated on its validation rows."""
    if not len(val):
        return told, "none"
    p, labels = _scores(val.probabilities, asked), _labels(val, asked.labels, asked.calcification)
    labels = np.where(np.isfinite(p), labels, np.nan)
    kind, _ = choose_kind(np.nan_to_num(p), labels, val.patients)
    entries = fit(np.nan_to_num(p), labels, kind)
    return np.where(np.isfinite(told), apply(np.nan_to_num(told), entries), np.nan), f"{kind}, on validation"


def _scores(p: Table, asked: Asked) -> np.ndarray:
    return asked.labels.scores(p, asked.calcification)


def _labels(answers: Answers, chosen: LabelSet, rule: Calcification) -> Table:
    table = np.array([chosen.truth(labels, rule) for labels in answers.labels], dtype=np.float64)
    return table.reshape(len(answers), len(chosen.slugs))


def _of_set(chosen: LabelSet, at_18: list[float]) -> list[float]:
    return [at_18[INDEX[slug]] for slug in chosen.slugs]


def _plain(value: Any) -> Any:
    """NaN as None, all the way down."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return known(value) if isinstance(value, float) else value
