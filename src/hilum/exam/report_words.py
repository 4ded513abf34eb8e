"""How alike the words of two reports are: BLEU-1..4, ROUGE-L, METEOR (exact and stem), CIDEr.

None of them knows what a finding is; `report_efficacy` does. Each figure is one of these, and no other:

- `bleu_1` .. `bleu_4`: corpus BLEU by sacrebleu's counts, its tokenizer 13a, lower case, no smoothing; over a
  draw of patients, the counts are added up anew.
- `rouge_l`: F-measure of the longest common subsequence by rouge-score, without stemming; mean.
- `meteor_exact_stem`: METEOR (alpha 0.9, beta 3, gamma 0.5) by nltk with its stages exact and Porter stem;
  the WordNet stage finds nothing, since no WordNet is shipped. METEOR 1.5 of Java is another figure. Mean.
- `cider`: `report_cider`, whose document frequencies are those of all references; mean.

Words of METEOR and CIDEr are runs of letters and digits, lower case; ROUGE's are rouge-score's own.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from hilum.errors import UsageError
from hilum.exam.bootstrap import Interval, interval, patient_draws
from hilum.exam.report_cider import cider

ORDERS = 4
WORD = re.compile(r"[^\W_]+")
BleuCounts = Int64[np.ndarray, "N C"]
"""Per report: matches of 1- to 4-grams, of how many, length of the report, of its reference."""
SumsOfCounts = Float64[np.ndarray, "B C"]


def words_of(text: str) -> list[str]:
    """Runs of letters and digits, lower case."""
    return WORD.findall(text.lower())


def likeness(
    reports: Sequence[str],
    references: Sequence[str],
    patients: Sequence[Hashable],
    *,
    draws: int = 1000,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Interval]:
    """Every figure with its 95 % interval over resampled patients.

    Args:
        progress: called with 1 after every report.

    Raises:
        UsageError: `EXTRA_MISSING` without the extra `report`.
    """
    rouge, meteor, counts = _rouge(), _meteor(), []
    means: dict[str, list[float]] = {"rouge_l": [], "meteor_exact_stem": []}
    for report, reference in zip(reports, references, strict=True):
        means["rouge_l"].append(rouge(reference, report))
        means["meteor_exact_stem"].append(meteor(reference, report))
        counts.append(bleu_counts(report, reference))
        if progress is not None:
            progress(1)
    drawn = np.vstack([np.ones(len(reports)), patient_draws(patients, draws, seed)])
    bleu = bleu_of(drawn @ np.array(counts, dtype=np.float64))
    found = {f"bleu_{n + 1}": _interval(bleu[:, n]) for n in range(ORDERS)}
    values = means | {"cider": cider([words_of(t) for t in reports], [words_of(t) for t in references])}
    weights = drawn / drawn.sum(1, keepdims=True)
    return found | {name: _interval(weights @ np.array(value)) for name, value in values.items()}


def bleu_counts(report: str, reference: str) -> list[int]:
    """What BLEU needs of one pair (`BleuCounts`), by sacrebleu."""
    metric = _library("sacrebleu.metrics").BLEU(lowercase=True, smooth_method="none", tokenize="13a")
    score = metric.corpus_score([report], [[reference]])
    return [*score.counts, *score.totals, score.sys_len, score.ref_len]


def bleu_of(sums: SumsOfCounts) -> Float64[np.ndarray, "B 4"]:
    """BLEU-1..4 out of summed counts, 0 to 1 (Papineni et al. 2002): mean precision times brevity."""
    hits, totals, lengths = sums[:, :ORDERS], sums[:, ORDERS : 2 * ORDERS], sums[:, 2 * ORDERS :]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(hits / totals)
        short = np.exp(np.minimum(0.0, 1.0 - lengths[:, 1] / lengths[:, 0]))
    means = np.cumsum(np.where(np.isnan(logs), -np.inf, logs), axis=1) / np.arange(1, ORDERS + 1)
    return np.nan_to_num(short)[:, None] * np.exp(means)


def _interval(values: np.ndarray) -> Interval:
    return interval(float(values[0]), values[1:])


def _rouge() -> Callable[[str, str], float]:
    scorer = _library("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    return lambda reference, report: float(scorer.score(reference, report)["rougeL"].fmeasure)


class _NoWordNet:
    """A WordNet without words: nltk's third stage finds no synonym, and asks for no data."""

    def synsets(self, word: str) -> list[Any]:
        """None."""
        return []


def _meteor() -> Callable[[str, str], float]:
    score = _library("nltk.translate.meteor_score").single_meteor_score
    nothing = _NoWordNet()
    return lambda reference, report: float(score(words_of(reference), words_of(report), wordnet=nothing))


def _library(name: str) -> Any:
    """Imported when a report is measured."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            "EXTRA_MISSING", "word metrics of reports need the extra `report`", got=str(error),
            hint="pip install 'hilum[report]'",
        ) from error  # fmt: skip
