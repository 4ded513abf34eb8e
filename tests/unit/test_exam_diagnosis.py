"""The diagnosis suite: thresholds from validation alone, F1s of three conventions, 16 of 18, tables.

scikit-learn is the second opinion; a poisoned test part must not move a threshold.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from _cohort_layouts import plain_cohort
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

import hilum
from hilum.cli import run
from hilum.cohort.judge import Judgement
from hilum.cohort.manifest import Manifest, ScanRow
from hilum.cohort.prepare import PrepareOptions, prepare
from hilum.cohort.records import ScanRecord
from hilum.cohort.sources.rad_chestct import SLUGS_16, labels_18
from hilum.errors import InputRefused, LeakError, ReportError, UsageError
from hilum.exam.bootstrap import patient_draws
from hilum.exam.diagnosis import Asked, chosen_for_card, examine_model, examine_table
from hilum.exam.diagnosis_answers import Answers, answers_of_table, table_of
from hilum.exam.diagnosis_measure import call, figures, fit_on_test
from hilum.exam.diagnosis_table import as_markdown, as_text
from hilum.exam.label_sets import LABEL_SETS, label_set
from hilum.exam.metrics import youden
from hilum.exam.presence import accuracy, counts_of, f1_absent, f1_present, f1_weighted
from hilum.exam.thresholds import GRID, RULES, corner, corner_on_grid
from hilum.exam.unseen import require_patients_unseen
from hilum.read.scan_model import ScanModel
from hilum.text.vocabulary import FINDINGS, INDEX, SLUGS


def scored(seed: int, n: int = 200, digits: int = 12, strength: float = 0.3):
    generator = np.random.default_rng(seed)
    truth = generator.random(n) < 0.3
    return np.clip(np.round(generator.random(n) * 0.7 + strength * truth, digits), 0, 1), truth


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("digits", [1, 12])
def test_the_corner_is_the_point_of_scikit_learns_curve_nearest_to_it(seed, digits):
    p, truth = scored(seed, digits=digits)
    fpr, tpr, at = roc_curve(truth, p, drop_intermediate=False)
    distance = np.round(fpr**2 + (1 - tpr) ** 2, 12)
    best = max(np.flatnonzero(distance == distance.min()), key=lambda n: tpr[n])
    np.testing.assert_array_equal(p >= corner(p, truth), p >= at[best])


def test_of_equal_corners_the_one_with_the_higher_tpr_is_taken():
    # one positive and one negative more at each step: (0.5, 0.5) away from the corner both ways
    p = np.array([0.9, 0.8, 0.7, 0.6])
    truth = np.array([True, False, True, False])
    assert (p >= corner(p, truth)).tolist() == [True, True, True, False]


@pytest.mark.parametrize("seed", range(3))
def test_the_grid_rule_is_that_of_published_tables(seed):
    p, truth = scored(seed)
    best_threshold, best = 0.0, 1e9
    for t in GRID:  # as calc_metrics.py does it: above, and the last of equal ones
        called = p > t
        tpr, fpr = called[truth].mean(), called[~truth].mean()
        if (d := round(float((1 - tpr) ** 2 + fpr**2), 12)) <= best:
            best, best_threshold = d, t
    assert corner_on_grid(p, truth) == best_threshold


def test_one_class_has_a_neutral_threshold():
    p, all_there = np.array([0.1, 0.9]), np.array([True, True])
    assert corner(p, all_there) == corner_on_grid(p, ~all_there) == youden(p, all_there) == 0.5


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_scikit_learns(seed):
    p, truth = scored(seed)
    at = corner(p, truth)
    called = p >= at
    draws = patient_draws(list(range(len(p))), 30, seed)
    found = figures(
        ("lung_nodule",), p[:, None], truth[:, None].astype(float), call(p[:, None], [at]), [at], draws
    )
    got = {name: value.value for name, value in found.columns[0].values.items()}
    want = {
        "auroc": roc_auc_score(truth, p),
        "average_precision": average_precision_score(truth, p),
        "f1_present": f1_score(truth, called),
        "f1_absent": f1_score(~truth, ~called),
        "f1_weighted": f1_score(truth, called, average="weighted"),
        "accuracy": accuracy_score(truth, called),
        "sensitivity": recall_score(truth, called),
        "specificity": recall_score(~truth, ~called),
    }
    assert got == pytest.approx(want) and found.macro["f1_weighted"].value == pytest.approx(
        want["f1_weighted"]
    )
    assert all(
        found.columns[0].values[k].low <= v <= found.columns[0].values[k].high for k, v in want.items()
    )


def test_counts_in_draws_are_those_of_the_drawn_cases():
    generator = np.random.default_rng(0)
    called, truth = generator.random(30) < 0.4, generator.random(30) < 0.3
    draws = patient_draws([n // 2 for n in range(30)], 25, 3)
    counts = counts_of(called, truth, draws)
    for b, row in enumerate(draws):
        again = np.repeat(np.arange(30), row.astype(int))
        told, came = called[again], truth[again]
        assert accuracy(counts)[b] == pytest.approx(accuracy_score(came, told))
        assert f1_present(counts)[b] == pytest.approx(f1_score(came, told))
        assert f1_absent(counts)[b] == pytest.approx(f1_score(~came, ~told))
        assert f1_weighted(counts)[b] == pytest.approx(f1_score(came, told, average="weighted"))


def test_the_papers_convention_is_absence_on_thresholds_of_the_test_scans():
    p, truth = scored(1)
    called, (at,) = fit_on_test(p[:, None], truth[:, None].astype(float), "paper")
    fpr, tpr, steps = roc_curve(~truth, 1 - p, drop_intermediate=False)
    best = int((fpr**2 + (1 - tpr) ** 2).argmin())
    absent = 1 - p >= steps[best]
    np.testing.assert_array_equal(called[:, 0] < 0.5, absent)
    draws = np.ones((1, len(p)))
    found = figures(("lung_nodule",), p[:, None], truth[:, None].astype(float), called, [at], draws)
    assert found.columns[0].values["f1_absent"].value == pytest.approx(f1_score(~truth, absent))


def test_sixteen_and_eighteen_expand_as_published():
    l16 = np.arange(16)
    e = np.full(18, -1)
    e[0:4], e[5:13], e[14:18] = l16[0:4], l16[4:12], l16[12:16]  # EXACT §3.2
    told = labels_18(l16)
    assert [-1 if v is None else v for v in told] == e.tolist()
    chosen = LABEL_SETS["rad-chestct"]
    assert chosen.slugs == SLUGS_16 and len(LABEL_SETS["fvlm"].slugs) == 16
    np.testing.assert_array_equal(chosen.scores(e.astype(float), "arterial"), l16)
    p = np.linspace(0, 1, 18)
    assert chosen.scores(p, "either")[1] == p[4] and chosen.scores(p, "arterial")[1] == p[1]
    assert "medical_material" not in LABEL_SETS["fvlm"].slugs
    assert LABEL_SETS["fvlm"].scores(np.arange(18), "arterial").tolist() == [
        i for i, s in enumerate(SLUGS) if s not in ("medical_material", "lymphadenopathy")
    ]


def test_calcification_has_the_truth_of_its_data_set():
    chosen = label_set(None, "rad-chestct")
    assert chosen.name == "rad-chestct" and label_set(None, "ct-rate").name == "ct-rate"
    place = chosen.slugs.index("arterial_wall_calcification")
    rad = {"calcification": 1, "arterial_wall_calcification": None, "coronary_calcification": None}
    assert chosen.truth(rad, "either")[place] == 1.0 == chosen.truth(rad, "arterial")[place]
    rate = {"arterial_wall_calcification": 0, "coronary_calcification": 1}
    assert chosen.truth(rate, "either")[place] == 1.0 and chosen.truth(rate, "arterial")[place] == 0.0
    assert np.isnan(chosen.truth({"arterial_wall_calcification": 0}, "either")[place])
    with pytest.raises(UsageError, match="OPTION_UNKNOWN"):
        label_set("seventeen", "ct-rate")


# ------------------------------------------------------------------------------------------------- a cohort


def judged(n: int) -> Judgement:
    return Judgement(f"{n:064x}", "nifti", (4, 4, 4), (1.0, 1.0, 1.0), tuple(np.eye(4)[:3].ravel()), "RAS")


def manifest(
    counts: dict[str, int], seed: int = 0, flip_test: bool = False
) -> tuple[Manifest, dict[str, list]]:
    """Scans without files, labels that depend on the seed, and a model's probabilities for them."""
    generator = np.random.default_rng(seed)
    rows, told = [], {}
    number = 0
    for split, count in counts.items():
        for _ in range(count):
            truth = (generator.random(18) < 0.4).astype(int)
            p = np.clip(0.35 * truth + 0.65 * generator.random(18), 0, 1)
            shown = 1 - truth if flip_test and split == "test" else truth
            labels = {s: int(v) for s, v in zip(SLUGS, shown, strict=True)}
            labels["cardiomegaly"] = None if number % 3 == 0 else labels["cardiomegaly"]
            labels["bronchiectasis"] = 0
            key = f"s{number:03d}"
            patient = f"p:{number // 2}" if split == "test" else f"{split}:{number}"
            record = ScanRecord(key, f"{key}.nii.gz", patient, labels=labels)
            rows.append(ScanRow(record, judged(number), split))
            told[key] = p.tolist()
            number += 1
    return Manifest.of(rows, "ct-rate"), told


def write_table(path, told: dict[str, list], names=tuple(f.name for f in FINDINGS), suffix=".nii.gz"):
    lines = [",".join(["VolumeName", *names])]
    for key, row in told.items():
        lines.append(",".join([f"{key}{suffix}", *(repr(v) for v in row[: len(names)])]))
    path.write_text("\n".join(lines) + "\n")
    return path


def answers(part: Manifest, told: dict[str, list]) -> Answers:
    rows = list(part.rows())
    p = np.array([told[r.record.key] for r in rows])
    return Answers(
        tuple(r.record.key for r in rows), tuple(r.record.patient for r in rows),
        tuple(r.record.labels for r in rows), p, p, {},
    )  # fmt: skip


FACTS = {"model": "m", "cohort": {"source": "made"}, "part": "test"}


def test_a_table_is_judged_by_thresholds_of_its_validation_rows(tmp_path):
    cohort, told = manifest({"val": 60, "test": 60})
    val, test = (
        answers_of_table(write_table(tmp_path / "t.csv", told), cohort.only(s)) for s in ("val", "test")
    )
    result = examine_table(val, test, Asked(draws=50), FACTS)
    nodule = result.figures.columns[INDEX["lung_nodule"]]
    labels = np.array([r.record.labels["lung_nodule"] for r in cohort.only("val").rows()]) > 0
    p = np.array([told[r.record.key][INDEX["lung_nodule"]] for r in cohort.only("val").rows()])
    assert nodule.threshold == youden(p, labels)
    came = np.array([r.record.labels["lung_nodule"] for r in cohort.only("test").rows()]) > 0
    q = np.array([told[r.record.key][INDEX["lung_nodule"]] for r in cohort.only("test").rows()])
    assert nodule.values["f1_present"].value == pytest.approx(f1_score(came, q >= nodule.threshold))
    assert {c.slug for c in result.excluded} == {"bronchiectasis"}
    heart = result.figures.columns[INDEX["cardiomegaly"]]
    assert heart.unknown == 20 and heart.positives + heart.negatives == 40
    told_json = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert told_json["excluded"] == {"bronchiectasis": "one class only"}
    assert told_json["summary"]["macro_f1"] == told_json["summary"]["macro_f1_present"]
    assert told_json["patients"] == 30 and told_json["scans"] == 60
    for text in (as_text(result), as_markdown(result)):
        assert "In no mean: Bronchiectasis (one class only)" in text and "nan" not in text


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_poisoned_test_part_moves_no_threshold(rule):
    clean, told = manifest({"val": 60, "test": 60})
    poisoned, same = manifest({"val": 60, "test": 60}, flip_test=True)
    assert told == same
    asked = Asked(rule=rule, draws=20)
    first, second = (
        examine_table(answers(c.only("val"), told), answers(c.only("test"), told), asked, FACTS)
        for c in (clean, poisoned)
    )
    at = [[c.threshold for c in r.figures.columns] for r in (first, second)]
    np.testing.assert_array_equal(*at)
    assert first.calibration["kind"] == second.calibration["kind"]
    assert first.figures.macro["auroc"].value > 0.6 > 0.4 > second.figures.macro["auroc"].value
    cards = [chosen_for_card(answers(c.only("val"), told), c.only("val")) for c in (clean, poisoned)]
    assert cards[0] == cards[1]
    results = [
        examine_model(cards[0], answers(c.only("test"), told), asked, FACTS) for c in (clean, poisoned)
    ]
    np.testing.assert_array_equal(*[[c.threshold for c in r.figures.columns] for r in results])


@pytest.mark.parametrize("convention", ["paper", "fvlm"])
def test_published_conventions_say_loudly_that_they_fit_on_test(convention):
    cohort, told = manifest({"val": 40, "test": 40})
    asked = Asked(convention=convention, draws=20)
    result = examine_table(None, answers(cohort.only("test"), told), asked, FACTS)
    quoted = {"paper": "macro_f1_absent", "fvlm": "macro_f1_weighted"}[convention]
    facts = result.as_dict()
    assert facts["summary"]["macro_f1"] == facts["summary"][quoted]
    for text in (as_text(result), as_markdown(result), json.dumps(facts)):
        assert "FIT ON THE TEST SCANS" in text
    default = examine_table(None, answers(cohort.only("test"), told), Asked(draws=20), FACTS)
    assert default.as_dict()["summary"]["macro_f1"] is None and "no F1 and no accuracy" in as_text(default)
    assert default.as_dict()["summary"]["macro_auroc"] == facts["summary"]["macro_auroc"]


def test_a_card_answers_for_joined_calcification_by_either_call():
    cohort, told = manifest({"test": 40})
    test = answers(cohort, told)
    card = {"thresholds": dict.fromkeys(SLUGS, 0.5), "validated_on": "elsewhere"}
    asked = Asked(labels=LABEL_SETS["rad-chestct"], calcification="either", draws=10)
    result = examine_model(card, test, asked, FACTS)
    column = result.figures.columns[1]
    both = test.probabilities[:, [1, 4]]
    came = (
        np.array([x["arterial_wall_calcification"] or x["coronary_calcification"] for x in test.labels]) > 0
    )
    assert column.values["auroc"].value == pytest.approx(roc_auc_score(came, both.max(1)))
    assert column.values["f1_present"].value == pytest.approx(f1_score(came, (both >= 0.5).any(1)))
    alone = examine_model(card, test, Asked(labels=LABEL_SETS["rad-chestct"], draws=10), FACTS)
    assert alone.figures.columns[1].values["auroc"].value != column.values["auroc"].value
    assert len(alone.figures.columns) == 16 and alone.facts["calcification"] == "arterial"


def test_a_table_may_know_fewer_findings_and_fewer_scans(tmp_path):
    cohort, told = manifest({"val": 30, "test": 30})
    names = tuple(f.name for f in FINDINGS[:9])
    some = dict(list(told.items())[:50])
    path = write_table(tmp_path / "few.csv", some, names, suffix="")
    test = answers_of_table(path, cohort.only("test"))
    assert len(test) == 20 and len(test.unanswered) == 10
    result = examine_table(answers_of_table(path, cohort.only("val")), test, Asked(draws=10), FACTS)
    assert {c.excluded for c in result.figures.columns[9:]} <= {"not answered"}
    assert "10 scans without an answer" in as_text(result)
    again = tmp_path / "again.csv"
    again.write_text(table_of({"test": test}))
    back = answers_of_table(again, cohort.only("test"))
    np.testing.assert_allclose(back.probabilities, test.probabilities, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("VolumeName,Lung nodule\ns000,1.5\n", "MODEL_OUTPUT"),
        ("VolumeName,Lung nodule\ns000,high\n", "MODEL_OUTPUT"),
        ("VolumeName,nodules\ns000,0.5\n", "COLUMN_MISSING"),
        ("name,Lung nodule\ns000,0.5\n", "COLUMN_MISSING"),
        ("VolumeName,Lung nodule\ns000,0.5\ns000.nii.gz,0.6\n", "RECORD_DUPLICATE"),
    ],
)
def test_tables_that_are_none_are_refused(tmp_path, text, code):
    (tmp_path / "t.csv").write_text(text)
    cohort, _ = manifest({"test": 2})
    with pytest.raises((ReportError, InputRefused), match=code):
        answers_of_table(tmp_path / "t.csv", cohort)


def test_a_table_without_any_scan_of_the_cohort_is_refused(tmp_path):
    cohort, _ = manifest({"test": 3})
    path = write_table(tmp_path / "t.csv", {"other": [0.5] * 18})
    with pytest.raises(InputRefused, match="MODEL_OUTPUT"):
        examine_table(None, answers_of_table(path, cohort), Asked(draws=5), FACTS)


def test_patients_of_training_are_refused():
    card = {"name": "m", "recipe": {"data": {"seed": 10, "train": 4, "validation_seed": 90, "validation": 2}}}
    with pytest.raises(LeakError, match="PATIENT_LEAK"):
        require_patients_unseen(card, ["phantom:12"])
    assert "shares no patient" in require_patients_unseen(card, ["phantom:50", "ct-rate:1"])
    assert "cannot be compared" in require_patients_unseen({"name": "peer"}, ["phantom:12"])


def test_the_command_judges_a_table_and_writes(tmp_path, capsys):
    cohort, told = manifest({"val": 40, "test": 40})
    cohort.write(tmp_path / "manifest.parquet")
    path = write_table(tmp_path / "t.csv", told)
    base = ["exam", "--suite", "diagnosis", "--cohort", str(tmp_path / "manifest.parquet")]
    out = tmp_path / "out"
    assert run([*base, "--predictions", str(path), "--out", str(out)]) == 0
    assert "macro" in capsys.readouterr().out or True
    facts = json.loads((out / "diagnosis.json").read_text())
    assert facts["suite"] == "diagnosis" and facts["summary"]["macro_auroc"][0] > 0.6
    assert len(facts["findings"]) == 18 and facts["thresholds_from"].startswith("40 validation scans")
    assert sorted(p.name for p in out.iterdir()) == [
        "diagnosis.json", "diagnosis.md", "predictions.csv", "reliability.svg",
    ]  # fmt: skip
    assert (out / "reliability.svg").read_text().startswith("<svg")
    assert run([*base, "--predictions", str(path), "--convention", "paper", "--json"]) == 0
    assert "FIT ON THE TEST SCANS" in json.loads(capsys.readouterr().out)["convention_note"]
    assert run(base) == 2  # neither a model nor a table
    assert run([*base, "m", "--predictions", str(path)]) == 2
    assert run([*base[:-1], str(tmp_path / "none"), "--predictions", str(path)]) == 2
    assert run([*base, "--predictions", str(path), "--test-part", "val"]) == 2


def test_the_command_chooses_for_a_model_and_keeps_the_choice_in_its_card(tmp_path, monkeypatch):
    splits = ["val"] * 6 + ["test"] * 6
    plain_cohort(
        tmp_path / "data", 12, split=splits.__getitem__, lung_nodule=lambda i: i % 2,
        emphysema=lambda i: "" if i == 11 else i // 2 % 2,
    )  # fmt: skip
    prepare(tmp_path / "data", tmp_path / "cohort", PrepareOptions(workers=0))
    model = tmp_path / "model"
    shutil.copytree(Path(hilum.__file__).parent / "weights/phantom-small", model)
    card = json.loads((model / "card.json").read_text()) | {"recipe": {}}
    (model / "card.json").write_text(json.dumps(card | {"thresholds": {}, "calibration": {}}))
    read = []

    def answer(self, volume):
        read.append(volume)
        pooled = np.full(18, 0.2 + 0.001 * len(read), dtype=np.float32)
        pooled[INDEX["lung_nodule"]] = 0.9 - 0.01 * len(read) if len(read) % 2 == 0 else 0.3
        return SimpleNamespace(pooled=pooled, probabilities=self.calibrate(pooled))

    monkeypatch.setattr(ScanModel, "run", answer)
    base = ["exam", str(model), "--suite", "diagnosis", "--cohort", str(tmp_path / "cohort"), "--out"]
    assert run([*base, str(tmp_path / "a"), "--choose"]) == 0
    assert len(read) == 12
    kept = json.loads((model / "card.json").read_text())
    assert 0.0 < kept["thresholds"]["lung_nodule"] < 1.0 and "cardiomegaly" not in kept["thresholds"]
    assert kept["validated_on"].startswith("6 scans of 6 patients of csv")
    assert kept["sha256"] == card["sha256"] and kept["calibration_kind"]
    told = json.loads((tmp_path / "a/diagnosis.json").read_text())
    nodule = told["findings"][INDEX["lung_nodule"]]
    assert nodule["auroc"] == [1.0, 1.0, 1.0] and nodule["f1"][0] == 1.0
    assert nodule["threshold"] == kept["thresholds"]["lung_nodule"]
    assert told["excluded"]["cardiomegaly"] == "no label is known" and "cannot be compared" in told["seen"]
    assert told["findings"][INDEX["emphysema"]]["unknown"] == 1
    lines = (tmp_path / "a/predictions.csv").read_text().splitlines()
    assert len(lines) == 13 and lines[0].startswith("VolumeName,split,Medical material")
    del read[:]
    read += [None] * 6  # the stand-in's answers depend on how many it gave
    assert run([*base, str(tmp_path / "b")]) == 0
    again = json.loads((tmp_path / "b/diagnosis.json").read_text())
    assert again["findings"] == told["findings"] and len(read) == 12
    assert run(["exam", "phantom-small", *base[2:], str(tmp_path / "c"), "--choose"]) == 2
