"""The phantom suite's table: scan-level AUROC, organ Dice, weakly supervised localisation, each with its
interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hilum.exam.metrics import MAP_THRESHOLDS, auroc, bootstrap, nanmean
from hilum.exam.phantom_cases import CaseScore, Localisation
from hilum.text.vocabulary import FINDINGS, ORGAN_CHANNELS, SLUGS


@dataclass(frozen=True)
class FindingRow:
    """One finding: how many phantoms have it, AUROC, mean Dice at the validation threshold, share of peaks
    inside."""

    name: str
    positives: int
    auroc: float
    dice: float
    peak_inside: float
    median_ml: float


@dataclass(frozen=True)
class PhantomTable:
    """All rows of one model and the means that the card quotes; intervals are 95 % bootstraps over
    phantoms."""

    model: str
    cases: int
    rows: tuple[FindingRow, ...]
    organs: dict[str, float]
    summary: dict[str, tuple[float, float, float]]

    def as_dict(self) -> dict:
        """JSON-ready."""
        return {
            "model": self.model,
            "cases": self.cases,
            "organs": self.organs,
            "summary": {k: list(v) for k, v in self.summary.items()},
            "findings": [vars(row) for row in self.rows],
        }


def tabulate(cases: Sequence[CaseScore], map_thresholds: dict[str, float]) -> PhantomTable:
    """Cases of one model -> its table."""
    pooled = np.array([c.pooled for c in cases])
    labels = np.array([c.labels for c in cases]) > 0.5
    at = {slug: int(np.abs(MAP_THRESHOLDS - map_thresholds[slug]).argmin()) for slug in SLUGS}
    rows = tuple(_row(d, cases, pooled, labels, at) for d in range(len(SLUGS)))
    organs = {o: nanmean([c.organs[o] for c in cases if o in c.organs]) for o in ORGAN_CHANNELS}

    def macro(index: np.ndarray) -> float:
        return nanmean([auroc(pooled[index, d], labels[index, d]) for d in range(len(SLUGS))])

    def over_findings(index: np.ndarray, value: Callable[[str, Localisation], float]) -> float:
        return nanmean([value(s, f) for i in index for s, f in cases[i].findings.items()])

    everything = np.arange(len(cases))
    measures: dict[str, Callable[[np.ndarray], float]] = {
        "macro_auroc": macro,
        "organ_dice": lambda i: nanmean([v for j in i for v in cases[j].organs.values()]),
        "localisation_dice": lambda i: over_findings(i, lambda s, f: f.curve[at[s]]),
        "peak_inside": lambda i: over_findings(i, lambda s, f: float(f.peak_inside)),
    }
    summary = {name: (m(everything), *bootstrap(m, len(cases))) for name, m in measures.items()}
    return PhantomTable(cases[0].model, len(cases), rows, organs, summary)


def _row(
    d: int, cases: Sequence[CaseScore], pooled: np.ndarray, labels: np.ndarray, at: dict[str, int]
) -> FindingRow:
    slug = SLUGS[d]
    found = [c.findings[slug] for c in cases if slug in c.findings]
    return FindingRow(
        FINDINGS[d].name,
        len(found),
        auroc(pooled[:, d], labels[:, d]),
        nanmean([f.curve[at[slug]] for f in found]),
        nanmean([float(f.peak_inside) for f in found]),
        float(np.median([f.volume_ml for f in found])) if found else float("nan"),
    )


def as_text(tables: Sequence[PhantomTable]) -> str:
    """Plain text: one line per finding, the models side by side, then the means with their intervals."""
    head = f"{'finding':36s} {'n':>3s} {'ml':>7s}" + "".join(
        f" | {t.model:>20s} AUROC  Dice  peak" for t in tables
    )
    lines = [head]
    for position, row in enumerate(tables[0].rows):
        line = f"{row.name:36s} {row.positives:3d} {row.median_ml:7.1f}"
        for table in tables:
            r = table.rows[position]
            line += f" | {'':20s} {r.auroc:5.2f} {r.dice:5.2f} {r.peak_inside:5.2f}"
        lines.append(line)
    for name in tables[0].summary:
        values = "".join(
            f" | {v:.3f} [{low:.3f}, {high:.3f}]" for v, low, high in (t.summary[name] for t in tables)
        )
        lines.append(f"{name:47s}{values}")
    for table in tables:
        organs = ", ".join(f"{k} {v:.3f}" for k, v in table.organs.items())
        lines.append(f"organ Dice of {table.model}: {organs}")
    return "\n".join(lines)
