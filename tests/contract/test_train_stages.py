"""The recipes of the stages, one after the other, made tiny, from phantoms to encoders: as a user would."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from _stages import WORDS, phantom_cohort

from hilum.cli import run
from hilum.io.encoder_file import load_encoder
from hilum.train.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
CHAIN = {"2d": None, "2d-gram": "2d", "3d": "2d-gram", "3d-gram": "3d", "text": "3d-gram"}
TINY = ("steps=2", "batch=2", "checkpoint_every=2", "threads=1", "heads.hidden=16", "heads.bottleneck=8",
        "heads.prototypes=8", "patches=[16]")  # fmt: skip
SMALLER = {
    "2d": ("slices.parts=2", "slices.sides=[{whole=32, parts=16}]"),
    "2d-gram": ("slices.parts=2", "slices.sides=[{whole=32, parts=16, anchor=48}]"),
    "3d": ("volumes.side_vox=32", "volumes.part_side_vox=16", "volumes.parts=2"),
    "3d-gram": ("volumes.side_vox=32", "volumes.part_side_vox=16", "volumes.parts=2"),
    "text": ("volumes.side_vox=32", "volumes.part_side_vox=16", "volumes.parts=2", "text.max_tokens=24"),
}


def tiny_bert(folder: Path) -> Path:
    """A text encoder in the layout of a Hugging Face folder."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=80, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    vocabulary = {word: n for n, word in enumerate(["[PAD]", "[UNK]", *WORDS][:80])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Folders of all stages."""
    folder = tmp_path_factory.mktemp("chain")
    cohort = phantom_cohort(folder)
    bert = tiny_bert(folder / "bert")
    runs = {}
    for stage, before in CHAIN.items():
        runs[stage] = folder / stage
        given = [*TINY, *SMALLER[stage], f'data=[{{cohort="{cohort}", prep="flexict-3d-4mm"}}]']
        given += [f"start={runs[before]}"] if before else []
        given += [f"text.encoder={bert}"] if stage == "text" else []
        recipe = str(RECIPES / f"flexict-nano-{stage}.toml")
        assert run(["train", recipe, *given, "--out", str(runs[stage])]) == 0, stage
    return runs


def test_every_stage_leaves_an_encoder_that_says_what_it_is(chain):
    kinds = {}
    for stage, folder in chain.items():
        file = load_encoder(folder / "encoder")
        kinds[stage] = file.config.kind
        assert file.card["synthetic"] is True and "synthetic" in file.card["trained_on"]
        assert file.card["recipe"]["name"] == f"flexict-nano-{stage}"
        losses = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert [row["step"] for row in losses] == [0, 1]
        assert ("gram" in losses[0]) == stage.endswith("gram") and ("osl" in losses[0]) == (stage == "text")
    assert kinds == {"2d": "2d", "2d-gram": "2d", "3d": "3d", "3d-gram": "3d", "text": "3d-vlm"}


def test_a_finished_run_has_nothing_left_to_do(chain, capfd):
    recipe = str(RECIPES / "flexict-nano-2d.toml")
    cohort = chain["2d"].parent / "prepared"
    given = [*TINY, *SMALLER["2d"], f'data=[{{cohort="{cohort}", prep="flexict-3d-4mm"}}]']
    before = load_encoder(chain["2d"] / "encoder").card["sha256"]
    assert run(["train", recipe, *given, "--out", str(chain["2d"])]) == 0
    assert load_encoder(chain["2d"] / "encoder").card["sha256"] == before
    assert run(["train", recipe, *given, "seed=1", "--out", str(chain["2d"])]) == 3
    assert "RESUME_CHANGED" in capfd.readouterr().err


def test_a_dry_run_says_groups_and_memory_and_does_nothing(chain, tmp_path, capfd):
    recipe = str(RECIPES / "flexict-nano-3d.toml")
    cohort = chain["2d"].parent / "prepared"
    given = [f'data=[{{cohort="{cohort}", prep="flexict-3d-4mm"}}]', f"start={chain['2d']}"]
    assert run(["train", recipe, *given, "--dry-run", "--out", str(tmp_path / "no")]) == 0
    said = capfd.readouterr()
    assert "factor" in said.err and "memory, MiB" in said.err and "3 scans" in said.err
    assert json.loads(said.out)["name"] == "flexict-nano-3d" and not (tmp_path / "no").exists()


def test_a_stage_without_the_one_before_is_refused_by_name(tmp_path, chain, capfd):
    recipe = str(RECIPES / "flexict-nano-3d.toml")
    cohort = chain["2d"].parent / "prepared"
    given = [f'data=[{{cohort="{cohort}", prep="flexict-3d-4mm"}}]', f"start={tmp_path / 'nowhere'}"]
    assert run(["train", recipe, *given, "--out", str(tmp_path / "no")]) == 2
    assert "Run the stage before" in capfd.readouterr().err and not (tmp_path / "no").exists()


def test_every_recipe_is_read_and_says_synthetic():
    for path in RECIPES.glob("flexict-*.toml"):
        assert load_recipe(path).synthetic is True and "SYNTHETIC" in path.read_text()
