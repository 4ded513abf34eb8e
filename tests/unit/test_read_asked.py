"""Asked in words: scores of a scan, in its reading and on its page."""

import json

import numpy as np
import pytest
from _encoders import file_of, stand_in
from readshow_standin import Standin, chest, straight_grid

import hilum
from hilum.cohort.prep_presets import Pipeline
from hilum.errors import UsageError
from hilum.io.encoder_file import save_encoder
from hilum.read.asked import asked_in_words, with_asked
from hilum.read.encoder import LoadedEncoder
from hilum.read.joint import put_in_space
from hilum.read.reading import Reading

PREP = Pipeline(
    "tiny-joint", spacing_mm=(12.0, 12.0, 12.0), clip_first=True, values="unit", fit="pad-multiple",
    fit_vox=(16, 16, 16),
)  # fmt: skip
NET = {"patch": 8, "patch_z": 4, "rope_full": True, "slices": False, "qkv_bias": True, "registers": 0}
SIZES = {"patch": [8, 8, 4], "field_vox": [16, 16, 16]}


@pytest.fixture(autouse=True)
def _tower(monkeypatch):
    stand_in(monkeypatch)


@pytest.fixture(scope="module")
def volume():
    return chest(straight_grid())


def joint():
    return file_of("3d-joint", prep=PREP.facts(), prep_2d=None, net=NET, **SIZES)


def test_the_score_is_the_softmax_of_both_sides(volume):
    model = LoadedEncoder(joint())
    (one,) = asked_in_words(model, volume, ["effusion"], "t3")
    scan = put_in_space(model, volume).disease
    there, absent = model.encode_text(["There is effusion.", "There is no effusion."])
    scale = float(model.encoder.joint.scale()[0].detach())
    logits = np.array([scan @ there, scan @ absent], dtype=np.float64)
    assert one.margin == pytest.approx(logits[0] - logits[1], abs=1e-4)
    assert one.score == pytest.approx(np.exp(scale * logits)[0] / np.exp(scale * logits).sum(), abs=1e-3)
    assert one.model == "tiny" and one.ensemble == "t3"
    both = asked_in_words(model, volume, ["effusion", "nodule"], "mean7")
    assert [a.text for a in both] == ["effusion", "nodule"] and both[0].margin != both[1].margin


@pytest.mark.parametrize("wrong", [[], [""], ["x" * 3000]])
def test_what_is_no_prompt_is_refused(volume, wrong):
    with pytest.raises(UsageError, match="OPTION_UNKNOWN"):
        asked_in_words(LoadedEncoder(joint()), volume, wrong)
    with pytest.raises(UsageError, match="OPTION_UNKNOWN"):
        asked_in_words(LoadedEncoder(joint()), volume, ["x"], "t4")
    with pytest.raises(UsageError, match="MODEL_INPUT"):
        asked_in_words(LoadedEncoder(file_of("3d")), volume, ["x"])


def test_it_stands_in_the_reading_and_on_the_page(volume, tmp_path):
    save_encoder(tmp_path / "model", joint())
    reading = hilum.read(volume, model=Standin())
    assert reading.asked == []
    asked = with_asked(reading, ["<b>hernia</b>"], tmp_path / "model", "t3")
    asked.save(tmp_path / "out")
    told = json.loads((tmp_path / "out" / "reading.json").read_text())
    assert told["asked"][0]["text"] == "<b>hernia</b>" and told["version"] == "1.2"
    page = (tmp_path / "out" / "index.html").read_text()
    assert "h-asked" in page and "&lt;b&gt;hernia" in page and "<b>hernia" not in page
    again = Reading.from_json((tmp_path / "out" / "reading.json").read_text())
    assert again.asked == asked.asked
    with pytest.raises(UsageError, match="NO_MATERIAL"):
        with_asked(again, ["x"], tmp_path / "model")
    reading.save(tmp_path / "plain")
    assert "h-asked" not in (tmp_path / "plain" / "index.html").read_text()
