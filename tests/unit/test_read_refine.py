"""Rewording by a language model: what it may change, what is dropped when it fails, stalls or lies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from llm_stub import Handler, Stub, answering, breaking_off, dripping, saying, stalling, status
from readshow_standin import NODULE_MM, Standin, chest, straight_grid

import hilum
from hilum.cli.read import _endpoint
from hilum.cli.read import read as read_command
from hilum.errors import UsageError
from hilum.io.llm_client import LlmLimits
from hilum.io.llm_endpoint import endpoint_of
from hilum.read.reading import Reading
from hilum.read.refine import messages_for, refine
from hilum.read.sentences import Denial, Statement

PLACE = "in the middle third of the left lung"
LIMITS = LlmLimits(connect_s=3, read_s=2, total_s=3, attempts=1)


@pytest.fixture(scope="module")
def reading() -> Reading:
    bumps = {"lung_nodule": NODULE_MM, "pleural_effusion": np.array([100.0, -50.0, -60.0])}
    return hilum.read(chest(straight_grid()), model=Standin(bumps=bumps))


def number_of(reading: Reading, slug: str, section: str = "findings") -> str:
    told = [s for s in reading.report.sentences if isinstance(s, Statement | Denial)]
    return f"S{1 + next(n for n, s in enumerate(told) if s.finding == slug and s.section == section)}"


def told(reading: Reading, slug: str) -> Statement:
    return next(s for s in reading.report.of("findings") if isinstance(s, Statement) and s.finding == slug)


def reworded(reading: Reading, answers: list[Any] | Callable[[Handler], None]) -> Reading:
    behaviour = answering(answers) if isinstance(answers, list) else answers
    with Stub(lambda number, report: behaviour) as stub:
        return refine(reading, endpoint_of(stub.url, "m"), limits=LIMITS)


def test_a_wording_that_says_the_same_is_taken(reading: Reading) -> None:
    before = told(reading, "lung_nodule")
    better = (
        "There is a lung nodule in the middle third of the left lung, measuring about 24 mm (slice index 34)."
    )
    found = reworded(reading, [{"id": number_of(reading, "lung_nodule"), "text": better}])
    after = told(found, "lung_nodule")
    assert after.text == better and after.source == "refined" and after.evidence == before.evidence
    assert before.source == "narrator"
    assert any("1 of " in note and "reworded by m" in note for note in found.receipt.notes)
    assert found.material is reading.material
    # everything else stands as it stood, and the reading is a valid one
    others = [s for s in found.report.sentences if s.text != better]
    assert others == [s for s in reading.report.sentences if s != before]
    assert Reading.from_json(found.to_json()).report == found.report


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"No lung nodule {PLACE}, about 24 mm (slice index 34).", "claims"),
        ("Lung nodule in the middle third of the right lung, about 24 mm (slice index 34).", "new_words"),
        ("Lung nodule, about 24 mm (slice index 34).", "place"),
        (f"Lung nodule {PLACE}, about 42 mm (slice index 34).", "numbers"),
        (f"Lung nodule {PLACE} (slice index 34).", "numbers"),
        (
            f"Lung nodule and emphysema {PLACE}, about 24 mm (slice index 34).",
            "new_words",
        ),
        (
            f"Malignant lung nodule {PLACE}, about 24 mm (slice index 34).",
            "new_words",
        ),
        (
            f"Possible lung nodule {PLACE}, about 24 mm (slice index 34).",
            "new_words",
        ),
        (f"There {PLACE}, about 24 mm (slice index 34).", "claims"),
        ("", "form"),
        (f"Lung nodule {PLACE},\nabout 24 mm (slice index 34).", "form"),
    ],
)
def test_what_says_anything_else_is_dropped_back(reading: Reading, text: str, why: str) -> None:
    found = reworded(reading, [{"id": number_of(reading, "lung_nodule"), "text": text}])
    assert found.report == reading.report
    assert f"dropped: {why} 1" in found.receipt.notes[-1]


def test_a_lie_about_what_is_absent_is_dropped(reading: Reading) -> None:
    sentences = [s for s in reading.report.sentences if isinstance(s, Statement | Denial)]
    place, denial = next((n, s) for n, s in enumerate(sentences, 1) if isinstance(s, Denial))
    for text in (denial.text.replace("no sign of", "sign of"), denial.text.split(":")[0] + "."):
        found = reworded(reading, [{"id": f"S{place}", "text": text}])
        assert found.report == reading.report and "claims 1" in found.receipt.notes[-1]
    same = denial.text.replace("no sign of", "no evidence of")
    assert same in reworded(reading, [{"id": f"S{place}", "text": same}]).report.text


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        (status(500), "LLM_STATUS"),
        (status(401), "LLM_REFUSED"),
        (stalling, "LLM_TIMEOUT"),
        (dripping, "LLM_TIMEOUT"),
        (breaking_off, "LLM_UNREACHABLE"),
        (saying("I would rather not."), "LLM_REPLY"),
        (saying('{"answers": [{"id": "S1", "text": "x"}]} {"answers": []}'), "LLM_REPLY"),
        (saying(None), "LLM_REPLY"),
    ],
)
def test_an_endpoint_that_fails_leaves_the_narrators_report(
    reading: Reading, behaviour: Callable[[Handler], None], code: str
) -> None:
    found = reworded(reading, behaviour)
    assert found.report == reading.report and found.receipt.notes[-1] == f"report: not reworded: {code}"


def test_what_was_not_asked_and_what_is_no_answer_is_counted(reading: Reading) -> None:
    own = number_of(reading, "lung_nodule")
    same = {"id": own, "text": told(reading, "lung_nodule").text}
    found = reworded(reading, [{"id": "S99", "text": "Emphysema."}, 7, {"id": own}, same, same])
    assert found.report == reading.report
    assert found.receipt.notes[-1].endswith("dropped: form 2, not_asked 2")


def test_only_sentences_are_sent(reading: Reading) -> None:
    with Stub(lambda number, report: answering([])) as stub:
        refine(reading, endpoint_of(stub.url, "m"), limits=LIMITS)
        (request,) = stub.seen
    assert request.report.startswith("S1: ") and reading.scan.sha256 not in json.dumps(request.body)
    assert reading.notice not in json.dumps(request.body)
    sentences = [s for s in reading.report.sentences if isinstance(s, Statement | Denial)]
    assert request.body["messages"] == messages_for(sentences, "en") and request.body["temperature"] == 0


def test_it_works_beside_a_running_loop(reading: Reading) -> None:
    async def inside() -> Reading:
        return reworded(reading, [])

    assert asyncio.run(inside()).report == reading.report


def test_a_german_report() -> None:
    german = hilum.read(chest(straight_grid()), model=Standin(), language="de")
    place = "im mittleren Drittel der linken Lunge"
    text = f"Es zeigt sich ein Lungenrundherd {place}, etwa 24 mm (Schichtindex 34)."
    found = reworded(german, [{"id": number_of(german, "lung_nodule"), "text": text}])
    assert told(found, "lung_nodule").text == text


def test_reports_leave_only_when_that_is_said() -> None:
    assert _endpoint(None, None, False, False) is None
    with pytest.raises(UsageError, match="LLM_SEND"):
        _endpoint("https://elsewhere.example/v1", "m", False, False)
    assert _endpoint("https://elsewhere.example/v1", "m", True, False) is not None
    with pytest.raises(UsageError, match="LLM_ENDPOINT"):
        _endpoint("http://elsewhere.example/v1", "m", True, False)
    done = CliRunner().invoke(
        read_command, ["x.nii", "--out", "nowhere-y", "--refine", "http://localhost:9/v1"]
    )
    assert done.exit_code == 2 and "--refine-model" in done.output


def test_the_command_writes_what_passed(
    reading: Reading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hilum.read.reader.read", lambda *args, **options: reading)
    text = f"There is a lung nodule {PLACE}, measuring about 24 mm (slice index 34)."
    lie = {"id": number_of(reading, "pleural_effusion"), "text": "No pleural effusion."}
    answers = [{"id": number_of(reading, "lung_nodule"), "text": text}, lie]
    with Stub(lambda number, report: answering(answers)) as stub:
        call = ["x.nii", "--out", str(tmp_path / "out"), "--refine", stub.url, "--refine-model", "m"]
        done = CliRunner().invoke(read_command, call)
    assert done.exit_code == 0, done.output
    written = (tmp_path / "out" / "report.txt").read_text(encoding="utf-8")
    assert text in written and told(reading, "pleural_effusion").text in written
    assert "No pleural effusion." not in written
    assert "go to 127.0.0.1" in done.stderr and "1 of " in done.stderr
    assert "reworded by m" in (tmp_path / "out" / "receipt.json").read_text(encoding="utf-8")
