"""The report suite: efficacy against twins and by hand, likeness of words, files, what is not there."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from sacrebleu.metrics import BLEU
from sklearn.metrics import precision_recall_fscore_support

from hilum.cli.exam import exam
from hilum.errors import ReportError
from hilum.exam.report_cider import cider
from hilum.exam.report_efficacy import crg_of, efficacy, stated_in, truth_of
from hilum.exam.report_radgraph import radgraph
from hilum.exam.report_suite import examine_reports, read_cases
from hilum.exam.report_words import bleu_counts, bleu_of, likeness, words_of
from hilum.text.labels import label_report
from hilum.text.vocabulary import FINDINGS, SLUGS

REFERENCES = [
    "There is a 5 mm nodule in the right upper lobe. No pleural effusion.",
    "Consolidation in the left lower lobe. Mild emphysema. The heart is enlarged.",
    "Small pleural effusion on the left. No nodule. Atelectasis in the left lower lobe.",
    "Hiatal hernia. Coronary artery wall calcification.",
]
REPORTS = [
    "A 6 mm nodule is seen in the right upper lobe. No pleural effusion is observed.",
    "Emphysema. Cardiomegaly.",
    "Small pleural effusion on the right. Nodule in the left lower lobe.",
    "",
]


def random_marks(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = (rng.random((60, 18)) < 0.3).astype(float)
    stated = rng.random((60, 18)) < 0.2 + 0.6 * truth
    truth[rng.random((60, 18)) < 0.1] = np.nan
    truth[:, 3], truth[:, 5] = 0.0, 1.0
    return stated, truth


def test_efficacy_equals_scikit_learn() -> None:
    stated, truth = random_marks(1)
    found = efficacy(stated, truth, list(range(60)), draws=20)
    known = np.isfinite(truth)
    for d, slug in enumerate(SLUGS):
        rows = known[:, d]
        expected = precision_recall_fscore_support(
            truth[rows, d] == 1, stated[rows, d], average="binary", zero_division=np.nan
        )[:3]
        got = [v.value for v in (found.findings[slug].precision, found.findings[slug].recall)]
        np.testing.assert_allclose(got, expected[:2])
    expected = precision_recall_fscore_support(truth[known] == 1, stated[known], average="binary")[:3]
    got = [found.micro.precision.value, found.micro.recall.value, found.micro.f1.value]
    np.testing.assert_allclose(got, expected)
    assert found.left_out == (SLUGS[3], SLUGS[5]) and found.masked == int((~known).sum())
    macro = np.mean([found.findings[s].f1.value for d, s in enumerate(SLUGS) if d not in (3, 5)])
    assert found.macro.f1.value == pytest.approx(macro)


def test_patients_are_drawn_whole() -> None:
    """Ten scans of one patient are one draw: no interval."""
    stated, truth = random_marks(2)
    alone = efficacy(stated, truth, ["a"] * 60, draws=50)
    apart = efficacy(stated, truth, list(range(60)), draws=50)
    assert alone.micro.f1.low == alone.micro.f1.high == alone.micro.f1.value
    assert apart.micro.f1.low < apart.micro.f1.value < apart.micro.f1.high


def test_crg_is_the_formula() -> None:
    def plain(tp: float, fp: float, fn: float, tn: float) -> float:
        x, a = tp + fp + fn + tn, tp + fn
        r, u = (x - a) / (2 * a), (x - a) / 2
        return u / (2 * u - (r * tp - r * fn - fp))

    cases = np.array([[7.0, 3, 2, 88], [0, 0, 10, 90], [10, 0, 0, 90], [10, 90, 0, 0]])
    np.testing.assert_allclose(crg_of(*cases.T), [plain(*case) for case in cases])
    np.testing.assert_allclose(crg_of(*cases.T)[1:], [1 / 3, 1, 1 / 3])
    assert math.isnan(float(crg_of(*np.array([[0.0], [1], [0], [5]]))[0]))


def slow_cider(reports: list[list[str]], references: list[list[str]]) -> list[float]:
    """The formula, n by n, with dense vectors over all n-grams."""

    def grams(words: list[str], n: int) -> Counter:
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    scores = np.zeros(len(reports))
    for n in range(1, 5):
        all_grams = sorted({g for words in (*reports, *references) for g in grams(words, n)})
        df = {g: sum(g in grams(words, n) for words in references) for g in all_grams}
        idf = np.array([math.log(len(references) / max(1, df[g])) for g in all_grams])
        for i, (report, reference) in enumerate(zip(reports, references, strict=True)):
            a = np.array([grams(report, n)[g] for g in all_grams]) * idf
            b = np.array([grams(reference, n)[g] for g in all_grams]) * idf
            norm = np.linalg.norm(a) * np.linalg.norm(b)
            cosine = float(np.minimum(a, b) @ b / norm) if norm > 0 else 0.0
            scores[i] += 10 / 4 * cosine * math.exp(-((len(report) - len(reference)) ** 2) / 72)
    return scores.tolist()


def test_cider_equals_its_slow_twin() -> None:
    reports, references = [words_of(t) for t in REPORTS], [words_of(t) for t in REFERENCES]
    np.testing.assert_allclose(cider(reports, references), slow_cider(reports, references))
    perfect = cider(references, references)
    assert min(perfect) > 9.9 and max(perfect) <= 10 + 1e-9
    assert cider([["a"]], [["a"]]) == [0.0], "one reference makes no word rare"


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_bleu_of_summed_counts_is_that_of_the_corpus(order: int) -> None:
    counts = np.array([bleu_counts(a, b) for a, b in zip(REPORTS, REFERENCES, strict=True)], dtype=float)
    metric = BLEU(lowercase=True, smooth_method="none", max_ngram_order=order)
    expected = metric.corpus_score(REPORTS, [REFERENCES]).score / 100
    assert bleu_of(counts.sum(0)[None])[0, order - 1] == pytest.approx(expected)


def test_likeness_of_a_perfect_and_of_an_empty_report() -> None:
    same = likeness(REFERENCES, REFERENCES, list("abcd"), draws=10)
    assert same["bleu_4"].value == pytest.approx(1) and same["rouge_l"].value == pytest.approx(1)
    assert same["meteor_exact_stem"].value > 0.99 and same["cider"].value > 9.9
    nothing = likeness([""] * 4, REFERENCES, list("abcd"), draws=10)
    assert all(value.value == 0 for value in nothing.values())


def test_meteor_by_hand() -> None:
    """One of two words matches by its stem: P = R = 1/2, one chunk of one match, penalty 0.5."""
    found = likeness(["nodules heart"], ["nodule lung"], ["a"], draws=2)["meteor_exact_stem"]
    assert found.value == pytest.approx(0.5 * 0.5)


def write(path: Path, header: list[str], rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


NAMES = [f"valid_{patient}_a_1.nii.gz" for patient in (1, 1, 2, 3)]
NAMES[1] = "valid_1_b_1.nii.gz"


def label_row(text: str) -> list[str]:
    told = label_report(text)
    return [{"present": "1", "absent": "0", "unknown": ""}[told[s].label] for s in SLUGS]


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    rows = [[n, t] for n, t in zip(NAMES[:3], REPORTS, strict=False)]
    rows.append(["valid_9_a_1.nii.gz", "Emphysema."])
    return write(tmp_path / "reports.csv", ["VolumeName", "report"], rows)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    header = ["VolumeName", *(f.name for f in FINDINGS), "Findings_EN"]
    rows = [[n, *label_row(t), t] for n, t in zip(NAMES, REFERENCES, strict=True)]
    return write(tmp_path / "truth.csv", header, rows)


def test_files_are_matched_and_a_missing_report_is_an_empty_one(reports: Path, labelled: Path) -> None:
    cases = read_cases(reports, labelled)
    assert (cases.missing, cases.unmatched, cases.texts[3]) == (1, 1, "")
    assert cases.patients == ["valid_1", "valid_1", "valid_2", "valid_3"]
    result = examine_reports(cases, draws=10)
    rows = truth_of([[label_report(t)[s].label for s in SLUGS] for t in REFERENCES])
    expected = efficacy(stated_in([label_report(t) for t in REPORTS]), rows, cases.patients, draws=10)
    assert list(result.efficacy) == ["masked"]
    assert result.efficacy["masked"].as_dict() == expected.as_dict()
    hernia = result.efficacy["masked"].counts["hiatal_hernia"]
    assert hernia[2] == 1, "what the missing report should have said is missed"


def test_a_truth_of_texts_is_read_twice(reports: Path, tmp_path: Path) -> None:
    rows = [[n, t] for n, t in zip(NAMES, REFERENCES, strict=True)]
    truth = write(tmp_path / "texts.csv", ["VolumeName", "Findings_EN"], rows)
    found = examine_reports(read_cases(reports, truth), draws=10).efficacy
    assert found["masked"].masked > 0 and found["absent"].masked == 0
    # the third reference denies the nodule that is stated: wrong either way
    assert found["masked"].counts["lung_nodule"][1] == found["absent"].counts["lung_nodule"][1] == 1
    assert found["absent"].micro.precision.value <= found["masked"].micro.precision.value


def test_the_command(reports: Path, labelled: Path, tmp_path: Path) -> None:
    call = ["--suite", "report", "--reports", str(reports), "--truth", str(labelled)]
    done = CliRunner().invoke(exam, [*call, "--out", str(tmp_path / "r.json")])
    assert done.exit_code == 0, done.output
    assert "CRG" in done.output and "bleu_4" in done.output and "1 missing" in done.output
    table = json.loads((tmp_path / "r.json").read_text())
    assert set(table["likeness"]) == {
        *(f"bleu_{n}" for n in range(1, 5)), "rouge_l", "meteor_exact_stem", "cider",
    }  # fmt: skip
    assert CliRunner().invoke(exam, ["--suite", "report", "--reports", str(reports)]).exit_code == 2
    assert CliRunner().invoke(exam, ["--suite", "samples"]).exit_code == 2


@pytest.mark.parametrize(
    ("header", "rows", "code"),
    [
        (["VolumeName", "age"], [["a", "1"]], "COLUMN_MISSING"),
        (["VolumeName", "report"], [["a", "x"], ["a", "y"]], "LABEL_DUPLICATE"),
        (["VolumeName", "report"], [["elsewhere", "x"]], "REPORT_UNMATCHED"),
        (["VolumeName", "report"], [["", "x"]], "COLUMN_MISSING"),
        (["VolumeName", "report"], [["a", "x", "y"]], "TEXT_ENCODING"),
    ],
)
def test_tables_that_do_not_fit_are_refused(
    tmp_path: Path, reports: Path, header: list[str], rows: list[list[str]], code: str
) -> None:
    with pytest.raises(ReportError) as caught:
        read_cases(reports, write(tmp_path / "bad.csv", header, rows))
    assert caught.value.code == code


def stand_in(folder: Path, body: str) -> None:
    (folder / "radgraph.py").write_text(f"class F1RadGraph:\n    def __init__(self, **k):\n        {body}\n"
        "    def __call__(self, hyps, refs):\n        n = len(hyps)\n"
        "        return (0.5,) * 3, ([1.0] * n, [0.5] * n, [0.0] * n), None, None\n")  # fmt: skip


def test_radgraph_is_run_where_it_is_and_can_fetch_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert radgraph(["a"], ["b"]).reason == "its library is not installed"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    stand_in(tmp_path, "pass")
    found = radgraph(["a", "b"], ["a", "b"])
    assert (found.simple, found.partial, found.complete) == ([1.0, 1.0], [0.5, 0.5], [0.0, 0.0])
    stand_in(tmp_path, "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9/')")
    refused = radgraph(["a"], ["b"])
    assert refused.simple is None and "no connection is opened" in refused.reason
