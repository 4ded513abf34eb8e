"""What the narrator says is true: images, sizes, sides, denials; in English and in German."""

import re
from functools import cache

import numpy as np
import pytest

from hilum.errors import UsageError
from hilum.phantom.draw import draw_plan
from hilum.phantom.make import make_phantom
from hilum.phantom.narrator import narrate, narrate_facts
from hilum.phantom.narrator_facts import LesionFact, lesion_facts, lesion_mask
from hilum.phantom.narrator_words import LANGUAGES, fields_of, load_book
from hilum.text.vocabulary import LOBES, SLUGS

SLICES = 60
FIELDS = {
    "where",
    "size",
    "thickness",
    "degree",
    "kind",
    "density",
    "stage",
    "ref",
    "noun",
    "is",
    "was",
    "date",
}
FIELDS |= {"prior", "slice", "series", "image", "low", "high", "invades"}
GERMAN = re.compile(
    r"\b(der|die|das|und|kein|keine|nicht|mit|links|rechts|beidseits|Lunge|Herz|im|Bild|Serie|vom|ist|war)\b"
    r"|[äöüßÄÖÜ]"
)
ENGLISH = re.compile(r"\b(the|and|no|not|with|left|right|lung|heart|image|series|is|was|of|both|size)\b")


def invented(seed):
    """Facts of a chest that nobody built: fast, and stranger than the lesions module makes them."""
    plan, rng = draw_plan(seed), np.random.default_rng(seed)
    facts = {}
    for finding in plan.findings:
        lobes = tuple(str(n) for n in rng.permutation(LOBES)[: rng.integers(0, 4)])
        k = int(rng.integers(5, 50))
        attributes = {"thickness_mm": 12.5, "items": "stent, surgical clips", "density": "part-solid"}
        if plan.tumour and finding.slug == "lung_nodule":
            attributes |= {"t_stage": plan.tumour.t_stage, "invades": plan.tumour.invades, "satellites": 2.0}
        facts[finding.slug] = LesionFact(
            slug=finding.slug,
            degree=finding.degree,
            side=str(rng.choice(["", "right", "left", "both"])),
            lobes=lobes,
            size_mm=float(rng.uniform(2, 60)),
            count=int(rng.integers(1, 5)),
            volume_ml=1.0,
            centroid_mm=(0.0, 0.0, 0.0),
            box_mm=((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
            slice_index=k,
            slice_range=(k - 3, k + 3),
            z_mm=float(k),
            instance=SLICES - k,
            instances=(SLICES - k - 3, SLICES - k + 3),
            attributes=attributes,
        )
    return plan, facts


@cache
def told(seed, language):
    plan, facts = invented(seed)
    return facts, narrate_facts(facts, plan.scanner, language, series=3, seed=seed)


@pytest.mark.parametrize("language", LANGUAGES)
def test_denials_and_claims_agree_with_the_truth(language):
    denied = 0
    for seed in range(80):
        facts, story = told(seed, language)
        for s in story.sentences:
            for slug in (s.slug, *s.also) if s.slug else ():
                assert (slug in facts) != (s.status == "absent"), s
                denied += s.status == "absent"
            assert s.slug or s.status == "none"
    assert denied > 200


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_is_both_denied_and_claimed_and_every_finding_is_told(language):
    for seed in range(80):
        facts, story = told(seed, language)
        claimed = {s.slug for s in story.sentences if s.status in ("present", "uncertain")}
        assert claimed == set(facts)
        repeated = [s.slug for s in story.sentences if s.status == "absent"]
        assert len(repeated) == len(set(repeated))


@pytest.mark.parametrize("language", LANGUAGES)
def test_records_say_what_the_words_say(language):
    seen = set()
    for seed in range(80):
        facts, story = told(seed, language)
        for s in story.sentences:
            assert (s.image is not None) == bool(re.search(reference_words(s), s.text)), s
            if s.image is not None:
                fact = facts[s.slug]
                assert s.series == 3 and s.image == fact.instance and s.z_mm == fact.z_mm
                assert str(s.images[0] if s.images else s.image) in s.text
            if s.prior_image is not None:
                assert s.image is None and re.search(r"prior|previous|Vor", s.text)
            if s.size_mm:
                number = re.search(r"(\d+(?:[.,]\d)?) (mm|cm)", s.text)
                value = float(number[1].replace(",", ".")) * (10 if number[2] == "cm" else 1)
                assert value == pytest.approx(s.size_mm)
            for lobe in s.lobes:
                assert lobe in facts[s.slug].lobes
            seen |= {s.status, s.hedged, bool(s.images), bool(s.prior_image), bool(s.lobes), s.section}
    assert {"present", "absent", "uncertain", "prior", "none", "technique", "findings", "impression"} <= seen


def reference_words(sentence):
    """How any notation of an image of this study looks."""
    if sentence.prior_image is not None:
        return r"$^"
    return r"\((?:series|Serie|Se|S|IMA|images?|Bild(?:er)?):? ?\d"


def test_english_is_english_and_german_is_german():
    for seed in range(80):
        english, german = told(seed, "en")[1], told(seed, "de")[1]
        for s in english.sentences:
            assert not GERMAN.search(s.text), s.text
        for s in german.sentences:
            assert not ENGLISH.search(s.text), s.text
        assert "SYNTHETIC" in english.text and "SYNTHETIC" in german.text


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_are_well_formed(language):
    for seed in range(80):
        for s in told(seed, language)[1].sentences:
            assert s.text[0].isupper() or s.text[0].isdigit(), s.text
            assert s.text[-1] in ".:" and "  " not in s.text and "{" not in s.text, s.text
            assert not re.search(r"\s[.,;:]|\.\.|\( | \)|,\.", s.text), s.text
            assert not re.search(r"\b[Aa] (8|11 |18 |[aeiou])", s.text) or language == "de", s.text


def test_same_seed_same_report():
    plan, facts = invented(5)
    first = narrate_facts(facts, plan.scanner, "en", seed=9)
    assert first == narrate_facts(facts, plan.scanner, "en", seed=9)
    assert first.text != narrate_facts(facts, plan.scanner, "en", seed=10).text


def test_prior_study_only_when_asked():
    plan, facts = invented(5)
    for seed in range(30):
        without = narrate_facts(facts, plan.scanner, "en", seed=seed, previous=False)
        assert not any(s.status == "prior" or s.prior_image for s in without.sentences)
    with_prior = [narrate_facts(facts, plan.scanner, "en", seed=s, previous=True) for s in range(10)]
    assert any(s.status == "prior" for n in with_prior for s in n.sentences)


def test_both_books_hold_the_same():
    english, german = load_book("en"), load_book("de")
    assert set(english["finding"]) == set(german["finding"]) == set(SLUGS)
    assert set(english["kinds"]) == set(german["kinds"])
    for slug in SLUGS:
        assert set(english["finding"][slug]) == set(german["finding"][slug]), slug
        for book in (english, german):
            entry = book["finding"][slug]
            assert min(len(entry["present"]), len(entry["absent"]), len(entry["impression"])) >= 2
            texts = [t for v in entry.values() if isinstance(v, list) for t in v]
            assert all(fields_of(t) <= FIELDS for t in texts)
    in_groups = [s for group in english["group"] for s in group["slugs"]]
    assert sorted(in_groups) == sorted(SLUGS)


def test_unknown_language():
    with pytest.raises(UsageError):
        narrate_facts({}, draw_plan(0).scanner, "fr")


@pytest.fixture(scope="module")
def phantom():
    findings = [
        "lung_nodule",
        "pleural_effusion",
        "consolidation",
        "lymphadenopathy",
        "emphysema",
        "atelectasis",
    ]
    plan = draw_plan(4, findings=findings, spacing_mm=(4.0, 4.0, 4.0))
    return make_phantom(plan, work_mm=4.0)


def test_images_lie_within_the_lesion(phantom):
    masks = {t.slug: lesion_mask(phantom, t) for t in phantom.lesions}
    depth = phantom.scan.geometry.shape[2]
    checked = 0
    for seed in range(25):
        for language in LANGUAGES:
            for s in narrate(phantom, language, series=5, seed=seed).sentences:
                if s.image is None:
                    continue
                k = depth - s.image  # image 1 is the uppermost slice
                assert masks[s.slug][:, :, k].any()
                assert all(masks[s.slug][:, :, depth - i].any() for i in s.images or ())
                assert abs(phantom.scan.geometry.to_mm(np.array([[0, 0, k]]))[0, 2] - s.z_mm) < 1e-2
                checked += 1
    assert checked > 20


def test_facts_of_a_phantom(phantom):
    facts = lesion_facts(phantom)
    assert set(facts) == {s for s, v in zip(SLUGS, phantom.labels, strict=True) if v}
    for slug, fact in facts.items():
        low, high = np.array(fact.box_mm[0]), np.array(fact.box_mm[1])
        assert (low <= high).all() and (low <= fact.centroid_mm).all() and (fact.centroid_mm <= high).all()
        assert fact.volume_ml > 0 and fact.instances[0] <= fact.instance <= fact.instances[1], slug
