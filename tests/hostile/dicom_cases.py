"""How every hostile DICOM case is judged: by the reader, by the inspection, and against its good twin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from hilum.errors import ContainerError, InputRefused
from hilum.io.dicom_series import inspect_series, read_series
from hilum.io.limits import Answers
from hilum.volume import CTVolume, Level


@dataclass(frozen=True)
class Case:
    """One spoiled series. `build` gets an empty folder and returns what to read (None: the folder).

    `answers` is the flag that answers an ASK; `kind` the class of the refusal; `again` checks what an
    accepted or
    answered reading gives.
    """

    name: str
    code: str
    level: Level
    build: Callable[[Path], Path | None]
    kind: type[InputRefused] = ContainerError
    answers: Answers | None = None
    again: Callable[[CTVolume], None] | None = None
    given: Answers = field(default_factory=Answers)


def judge(case: Case, folder: Path) -> None:
    """Reader and inspection say the same: this code, this level; a NOTE does not stop, an answer
    opens the door."""
    target = case.build(folder) or folder
    seen = inspect_series(target, answers=case.given)
    levels = {f.level for f in seen.findings if f.code == case.code}
    assert case.level in levels, [(f.code, f.level.name, f.got) for f in seen.findings]
    assert seen.refused == (case.level >= Level.ASK), [f.code for f in seen.stopping]
    if case.level >= Level.ASK:
        with pytest.raises(case.kind) as caught:
            read_series(target, answers=case.given)
        assert caught.value.code == case.code, str(caught.value)
        assert caught.value.exit_code == 3
        if case.level == Level.ASK:
            assert "--" in (caught.value.hint or ""), "an ASK names the flag that answers it"
    if case.level == Level.REPAIR:
        with pytest.raises(case.kind) as caught:
            read_series(target, mode="refuse", answers=case.given)
        assert caught.value.code == case.code
    if case.level < Level.ASK or case.answers is not None:
        volume = read_series(target, answers=case.answers or case.given)
        finding = next(f for f in volume.provenance.findings if f.code == case.code)
        assert finding.level < Level.ASK
        assert np.isfinite(volume.hu).all()
        if case.again is not None:
            case.again(volume)
