"""Questions about diseases as sentences, judged by our own labeller."""

import pytest

from hilum.errors import UsageError
from hilum.text.labels import label_report
from hilum.text.prompt_bank import ENSEMBLES, Asked, PromptBank, ensemble_pairs, load_bank, own_bank
from hilum.text.vocabulary import FINDINGS, SLUGS


def test_three_of_each_in_each_language():
    bank = own_bank()
    assert [q.name for q in bank.questions] == list(SLUGS) and bank.variants == 6
    assert len(bank.texts()) == len(set(bank.texts())) == 18 * 2 * 6
    assert bank.texts()[: 2 * 6] == [*bank.questions[0].present, *bank.questions[0].absent]


@pytest.mark.parametrize("question", own_bank().questions, ids=lambda q: q.name)
def test_sentences_say_what_they_ask(question):
    for text in question.present:
        assert label_report(text)[question.name].status in ("said", "doubted"), text
    for text in question.absent:
        assert label_report(text)[question.name].label == "absent", text


@pytest.mark.parametrize("name", ENSEMBLES)
def test_ensembles_deny_and_state(name):
    assert len(ensemble_pairs(name, "x")) == {"t3": 1, "mean7": 7}[name]
    for finding in FINDINGS:
        for there, not_there in ensemble_pairs(name, finding.name[:1].lower() + finding.name[1:]):
            assert label_report(there)[finding.slug].status in ("said", "doubted"), there
            assert label_report(not_there)[finding.slug].label == "absent", not_there
    with pytest.raises(UsageError, match=r"OPTION_UNKNOWN.*t3 \| mean7"):
        ensemble_pairs("mean8", "x")


def test_a_bank_of_the_users(tmp_path):
    path = tmp_path / "bank.toml"
    path.write_text(
        '[[question]]\nname = "ascites"\ngroup = "abdomen"\n'
        'present = ["Ascites."]\nabsent = ["No ascites."]\n'
    )
    bank = load_bank(path)
    assert bank.texts() == ["Ascites.", "No ascites."] and bank.questions[0].group == "abdomen"
    assert load_bank(None) == own_bank()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[[question]\n", "CONFIG_FILE"), ("x = 1\n", "CONFIG_FILE"), ("question = 3\n", "CONFIG_FILE"),
        ('[[question]]\nname = "a"\npresent = ["A."]\nabsent = []\n', "CONFIG_VALUE"),
        ('[[question]]\nname = "a"\npresent = ["A.", "B."]\nabsent = ["C."]\n', "CONFIG_VALUE"),
        ('[[question]]\nname = "a"\npresent = ["A."]\nabsent = ["C."]\nweight = 2\n', "CONFIG_VALUE"),
    ],
)  # fmt: skip
def test_a_bank_that_is_none_is_refused(tmp_path, text, code):
    path = tmp_path / "bank.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=code):
        load_bank(path)


def test_a_question_twice_is_refused():
    one = Asked(name="a", present=("A.",), absent=("B.",))
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        PromptBank((one, one))
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        PromptBank((one, Asked(name="b", present=("A.", "C."), absent=("B.", "D."))))
