"""What is said of scans, as a file and out of phantoms."""

import json

import pytest

from hilum.cohort.joint_phantoms import image_heights, phantom_sample, placed
from hilum.cohort.joint_samples import JointSample, PlacedText, Report, read_samples, write_samples
from hilum.errors import ReportError
from hilum.phantom.draw import draw_plan
from hilum.phantom.make import make_phantom
from hilum.phantom.narrator import narrate
from hilum.text.vocabulary import SLUGS

SAMPLES = [
    JointSample(
        key=key, patient="p", split="train", scan="ab", labels={"lung_nodule": 1},
        reports=(Report(text="Ein Rundherd – links.", language="de"),),
        snippets=(PlacedText(text="A nodule", z_mm=-12.5, language="en"),),
    )
    for key in ("b", "a")
]  # fmt: skip


def test_samples_survive_a_file(tmp_path):
    path = tmp_path / "samples.jsonl"
    write_samples(path, SAMPLES)
    assert read_samples(path) == sorted(SAMPLES, key=lambda s: s.key)
    first = path.read_bytes()
    write_samples(path, reversed(SAMPLES))
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    "wrong",
    [
        b'{"key": "a", "patient"', b'{"key": "a"}', b'{"key": "", "patient": "p"}', b"\xff\xfe\n", b"[]\n",
        b'{"key": "a", "patient": "p", "colour": 1}',
        b'{"key": "a", "patient": "p", "snippets": [{"text": "x", "z_mm": NaN}]}',
        b'{"key": "a", "patient": "p", "labels": {"lung_nodule": 2}}',
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused(tmp_path, wrong):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(SAMPLES[0].model_dump_json().encode() + b"\n" + wrong)
    with pytest.raises(ReportError, match=r"SAMPLES_DAMAGED"):
        read_samples(path)


def test_a_scan_twice_and_no_file_are_refused(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(s.model_dump_json() + "\n" for s in (*SAMPLES, SAMPLES[0])))
    with pytest.raises(ReportError, match=r"SAMPLES_DAMAGED.*one line"):
        read_samples(path)
    with pytest.raises(ReportError, match="SAMPLES_DAMAGED"):
        read_samples(tmp_path / "gone.jsonl")


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(draw_plan(124, spacing_mm=(3.0, 3.0, 3.0)), work_mm=3.0)


def test_a_phantom_says_the_same_in_many_words(phantom):
    sample = phantom_sample(phantom, "train", wordings=3)
    assert sample.patient == "phantom:124" and set(sample.labels) == set(SLUGS)
    assert [r.language for r in sample.reports] == ["en"] * 3 + ["de"] * 3
    assert len({r.text for r in sample.reports}) == 6
    assert sample == phantom_sample(phantom, "train", wordings=3)
    for snippet in sample.snippets:
        low, high = sorted(phantom.scan.geometry.corners_mm()[:, 2][[0, -1]])
        assert low <= snippet.z_mm <= high
    json.dumps(sample.model_dump())


@pytest.mark.parametrize("language", ["en", "de"])
def test_places_are_those_of_the_lesions_and_of_this_study(phantom, language):
    seen, heights = 0, image_heights(phantom.scan.geometry)
    for seed in range(40):
        told = narrate(phantom, language, seed=seed, previous=True)
        own = {s.text.partition(" (")[0]: s for s in told.sentences if s.image is not None}
        for snippet in placed(told.text, language, heights):
            sentence = own[snippet.text]
            first, last = sentence.images or (sentence.image, sentence.image)
            middle = (heights[first] + heights[last]) / 2
            assert snippet.z_mm == pytest.approx(middle, abs=1e-3)
            if not sentence.images:
                assert snippet.z_mm == pytest.approx(sentence.z_mm, abs=1e-3)
            seen += 1
    assert seen > 20
