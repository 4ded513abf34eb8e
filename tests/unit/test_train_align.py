"""The baselines that learn from reports: they learn, gradients go where they must and nowhere else, the
similarity map pooled is the score."""

import hashlib
import itertools

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hilum.cohort.prep import Prep
from hilum.cohort.samples import report_json
from hilum.errors import RunError
from hilum.io.weights import preset_data
from hilum.model.align import AlignConfig, PooledLinear, spread
from hilum.model.clip_global import ClipNet
from hilum.model.fold import rows
from hilum.model.organ_clip import OrganClipNet, place_shares
from hilum.model.preset import Preset, build_network
from hilum.phantom.narrator_sentence import Sentence
from hilum.read.scan_model import ScanModel
from hilum.text.prompts import PLACE_NAMES, PLACE_OF, PLACES, place_sentences, prompt_pairs
from hilum.text.vocabulary import FINDINGS, GATES, SLUGS
from hilum.train import text_bank
from hilum.train.batch import Batch, ReportRow
from hilum.train.methods import clip_global, organ_clip
from hilum.train.phantom_task import PhantomTask, train
from hilum.train.recipe import ObjectiveRecipe, Recipe
from hilum.train.text_bank import bank_of

NET = AlignConfig(widths=(8, 8, 8, 8), depth=(1, 1, 1, 1), abn_width=8, reader=16, size=8, detach=True)
PRESETS = {name: Preset("tiny", name, NET, Prep(), (0.5,) * 18) for name in ("clip_global", "organ_clip")}
NODULE, EFFUSION = SLUGS.index("lung_nodule"), SLUGS.index("pleural_effusion")


def words(texts, cache=None):
    """Stands for the encoder: a fixed random vector per pair of neighbouring words, summed; no file is
    read."""
    vectors = np.zeros((len(texts), 384), dtype=np.float32)
    for row, text in enumerate(texts):
        told = text.lower().replace(".", "").split()
        for pair in itertools.pairwise(told):
            digest = hashlib.sha256(" ".join(pair).encode()).digest()
            vectors[row] += np.random.default_rng(list(digest)).normal(size=384)
        vectors[row] /= np.linalg.norm(vectors[row])
    return vectors


@pytest.fixture(autouse=True)
def no_encoder(monkeypatch):
    monkeypatch.setattr(text_bank, "embedded", words)
    # it knows no synonyms: prompts are worded as the reports below
    monkeypatch.setattr(
        text_bank, "prompt_pairs", lambda style: [(f"Seen {f.name}.", f"No {f.name}.") for f in FINDINGS]
    )


def sentences(nodule, effusion):
    say = [
        Sentence("Non-contrast CT.", "technique"),
        Sentence("The trachea is in the midline."),
        Sentence("Seen lung nodule.", slug="lung_nodule", status="present")
        if nodule
        else Sentence("No lung nodule.", slug="lung_nodule", status="absent"),
        Sentence("Seen pleural effusion.", slug="pleural_effusion", status="present")
        if effusion
        else Sentence("No pleural effusion.", slug="pleural_effusion", status="absent"),
    ]
    return tuple(say)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two patients with four siblings each; a bright block says nodule, a dark one says effusion."""
    folder = tmp_path_factory.mktemp("set")
    generator = torch.Generator().manual_seed(0)
    patients = []
    for i in range(2):
        organs = torch.zeros((7, 32, 32, 32), dtype=torch.uint8)
        organs[:, 4:28, 4:28, 4:28] = 255
        patients.append([])
        for k in range(4):
            scan = torch.full((32, 32, 32), -900, dtype=torch.int16)
            scan[organs[0] > 0] = 40
            labels = torch.zeros(18)
            if k & 1:
                scan[7:15, 7:15, 7:15], labels[NODULE] = 700, 1
            if k & 2:
                scan[17:25, 17:25, 7:15], labels[EFFUSION] = -700, 1
            scan += (torch.randn(scan.shape, generator=generator) * 20).to(torch.int16)
            path = folder / f"{i}-{k}.safetensors"
            told = report_json(sentences(bool(k & 1), bool(k & 2)))
            meta = {"affine_ras": str(np.diag([4.0, 4, 4, 1]).tolist()), "degrees": "{}", "report": told}
            save_file({"scan": scan, "organs": organs, "labels": labels}, path, metadata=meta)
            patients[-1].append(path)
    return patients


def recipe(method, **optim):
    return Recipe.model_validate(
        {"name": "tiny", "method": method, "preset": "tiny", "threads": 1, "precision": "fp32"}
        | {"optim": {"steps": 4, "warmup": 2, "ema": 0.5, "scans": 4, "lr": 0.01} | optim}
    )


def learnt(method, files, out, **optim):
    seen = []
    net = train(recipe(method, **optim), PRESETS[method], files, out, report=lambda p: seen.append(p.losses))
    return net, seen


def batches(method, files, learns="findings", step=0):
    task = PhantomTask(recipe(method, steps=step + 1), PRESETS[method], files)
    made = next(task.batches(step, torch.device("cpu"))).values()
    return task, [Batch(**{**vars(batch), "learns": learns}) for batch in made]


def test_a_report_is_split_by_place_and_silence_is_normal():
    told = place_sentences(sentences(True, False))
    by_name = dict(zip(PLACE_NAMES, told, strict=True))
    assert by_name["Lung"] == (["Seen lung nodule."], False)
    assert by_name["Pleura"] == (["No pleural effusion."], True)
    assert by_name["Heart"] == (["Heart shows no significant abnormalities."], True)
    joint = Sentence("Neither.", slug="pleural_effusion", status="absent", also=("pericardial_effusion",))
    both = dict(zip(PLACE_NAMES, place_sentences([joint]), strict=True))
    assert both["Pleura"] == both["Heart"] == (["Neither."], True)


def test_each_finding_is_pooled_where_exact_lets_it_lie():
    assert [PLACES[place] for place in PLACE_OF] == list(GATES)
    assert len(set(PLACE_NAMES)) == len(PLACES)


def test_prompts_are_those_of_the_sources():
    assert prompt_pairs("ct-clip")[9] == ("Lung nodule is present.", "Lung nodule is not present.")
    assert prompt_pairs("fvlm")[9] == ("Lung nodule.", "Not Lung nodule.")


def test_the_bank_knows_who_says_the_same():
    reports = {"a": sentences(True, False), "b": sentences(False, False), "c": sentences(True, False)}
    whole, places = bank_of(reports, "report"), bank_of(reports, "places")
    same = whole.same[:, 0]
    assert same[0] == same[2] != same[1] and whole.texts.shape == (3, 1, 384)
    lung, heart = PLACE_NAMES.index("Lung"), PLACE_NAMES.index("Heart")
    ids = places.same
    assert ids[0, lung] == ids[2, lung] != ids[1, lung] and len(set(ids[:, heart].tolist())) == 1
    assert torch.equal(places.texts[0], places.texts[2]) and places.prompts.shape == (2, 18, 384)
    with pytest.raises(RunError, match="REPORT_EMPTY"):
        bank_of(reports | {"d": (Sentence("CT.", "technique"),)}, "places")


@pytest.mark.parametrize("method", ["clip_global", "organ_clip"])
def test_it_learns_what_reports_say(method, files, tmp_path):
    net, seen = learnt(method, files, tmp_path, steps=30, warmup=1, scans=4, lr=0.02)
    losses = [s["report" if method == "clip_global" else "sentences"] for s in seen]
    assert np.mean(losses[-8:]) < 0.75 * np.mean(losses[:4])
    gained = {NODULE: [], EFFUSION: []}
    for step in range(100, 104):
        # looks that it has not seen
        _, made = batches(method, files, step=step)
        labels = torch.cat([batch.labels for batch in made])
        scores = scored(method, net, made)
        for finding, told in gained.items():
            there = labels[:, finding] > 0.5
            told.append(float(scores[there, finding].mean() - scores[~there, finding].mean()))
    assert all(np.mean(told) > 0 for told in gained.values()), gained


@torch.no_grad()
def scored(method, net, made):
    """Scores of each scan, organs given."""
    if method == "clip_global":
        return torch.cat([net(batch.scan).scan for batch in made])
    organs = [net.organ_features(batch.scan) for batch in made]
    places = torch.stack(organ_clip.place_embeddings(net, organs, made))
    return torch.einsum("kde,de->kd", places[:, list(PLACE_OF)], net.text.directions())


@pytest.mark.parametrize("method", ["clip_global", "organ_clip"])
def test_a_cut_run_goes_on_bit_for_bit(method, files, tmp_path):
    whole, losses = learnt(method, files, tmp_path / "whole", steps=4)

    def stop(progress):
        if progress.step == 2:
            raise KeyboardInterrupt

    told = recipe(method, steps=4).model_copy(update={"checkpoint_every": 2})
    with pytest.raises(KeyboardInterrupt):
        train(told, PRESETS[method], files, tmp_path / "cut", report=stop)
    later = []
    again = train(told, PRESETS[method], files, tmp_path / "cut", report=lambda p: later.append(p.losses))
    assert later == losses[2:]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def reached(module):
    return [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters()]


def test_a_report_reaches_all_of_the_global_network(files):
    task, made = batches("clip_global", files)
    net = task.student()
    clip_global.losses(net, made, task.preset, ObjectiveRecipe())["report"].backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None]
    assert not silent and net.text.prompts.abs().sum() > 0
    assert all(reached(net.text)) and any(reached(net.encoder)) and any(reached(net.reader))


def test_sentences_reach_the_finding_half_alone(files):
    task, made = batches("organ_clip", files)
    net = task.student()
    torch.nn.init.normal_(net.heads.query)
    found = organ_clip.losses(net, made, task.preset, ObjectiveRecipe())
    assert list(found) == ["sentences"]
    found["sentences"].backward()
    for still in (net.encoder, net.seg, net.organ_head):
        assert not any(reached(still))
    for moved in (net.abn, net.heads, net.text):
        assert all(p.grad is not None for p in moved.parameters()) and any(reached(moved))


def test_together_organs_get_no_gradient_from_sentences(files):
    task, made = batches("organ_clip", files, "both")
    net = task.student()
    found = organ_clip.losses(net, made, task.preset, ObjectiveRecipe())
    assert sorted(found) == ["organs", "sentences"]
    found["sentences"].backward()
    assert any(reached(net.encoder)) and not any(reached(net.seg)) and not any(reached(net.organ_head))


def test_organs_alone_leave_the_finding_half(files):
    task, made = batches("organ_clip", files, "organs")
    net = task.student()
    made = [Batch(**{**vars(batch), "report": None}) for batch in made]
    organ_clip.losses(net, made, task.preset, ObjectiveRecipe())["organs"].backward()
    assert any(reached(net.seg)) and not any(reached(net.abn)) and not any(reached(net.text))


def random_prompts(net):
    torch.nn.init.normal_(net.text.prompts)
    return net


def test_the_global_map_averages_to_the_score():
    net = random_prompts(ClipNet(NET)).eval()
    found = net(torch.randn(1, 1, 32, 48, 32))
    assert found.maps.shape == (1, 18, 16, 24, 16)
    assert torch.allclose(found.maps.mean((2, 3, 4)), found.scan, atol=1e-4)


def test_a_places_map_averages_by_attention_to_the_score():
    net = random_prompts(OrganClipNet(NET)).eval()
    torch.nn.init.normal_(net.heads.query)
    torch.nn.init.normal_(net.heads.key.weight)
    scan = torch.randn(1, 1, 32, 32, 32)
    found, organs = net.similarity(scan), net.organ_features(scan)
    read = net.heads.read(net.anomaly_cells(scan, organs))
    weights = net.heads.attention(read, place_shares(rows(organs.shares())[0]))
    assert torch.allclose(weights.sum(0), torch.ones(len(PLACES)), atol=1e-5)
    maps = rows(found.maps)[0]
    for finding, place in enumerate(PLACE_OF):
        assert torch.allclose(weights[:, place] @ maps[:, finding], found.scan[0, finding], atol=1e-4)


def test_attention_starts_as_the_mean_of_the_place():
    net = OrganClipNet(NET)
    shares = torch.zeros(50, len(PLACES))
    shares[:10], shares[10:20] = 1.0, 0.5
    weights = net.heads.attention(torch.randn(50, net.heads.reader.out_width), shares)
    assert torch.allclose(weights[:20, 0], shares[:20, 0] / shares[:, 0].sum(), atol=1e-4)
    assert weights[20:].max() < 1e-6


def test_standardised_pooling_is_one_linear_map():
    project = PooledLinear(3, 12, 5)
    told = 0.02 * torch.randn(200, 3, 12) + torch.randn(3, 12)
    for pooled in told:
        project(pooled)
    assert torch.allclose(project.mean, told.mean(0), atol=0.02)
    assert torch.allclose(project.deviation, told.std(0), rtol=0.35)
    project.eval()
    found = torch.stack([project(pooled) for pooled in told])
    assert 0.3 < float(found.detach().std(0).mean()) < 3, "small differences between scans are seen"
    cells, weights = torch.randn(40, 12), torch.rand(40, 3).softmax(0)
    slow = torch.stack([weights[:, p] @ project.cells(cells)[:, p] for p in range(3)])
    assert torch.allclose(project(weights.T @ cells), slow, rtol=1e-3, atol=1e-3)
    assert float(project.seen) == 200, "reading a scan teaches nothing"


@pytest.mark.parametrize("cosine", [False, True])
def test_maps_are_confined_to_the_places_that_it_finds(cosine):
    net = random_prompts(OrganClipNet(NET))
    card = {"thresholds": {}, "similarity": "cosine" if cosine else "share"}
    found = ScanModel(PRESETS["organ_clip"], net, card, "").infer(torch.randn(1, 1, 32, 32, 32))
    assert found.maps.shape == found.gate.shape == (18, 32, 32, 32)
    assert 0 < found.gate[NODULE].float().mean() < 1
    assert np.all((found.pooled > 0) & (found.pooled < 1)), "ties would lose order"


def test_spreading_keeps_order_and_sign():
    x = torch.tensor([-300.0, -2.0, 0.0, 0.1, 40.0, 900.0])
    y = spread(x.view(1, 6, 1, 1, 1)).flatten()
    assert torch.all(y.diff() > 0) and torch.equal(y.sign(), x.sign()) and y.abs().max() < 7


@pytest.mark.parametrize("name", ["phantom-small-cam", "phantom-small-clip", "phantom-small-organ-clip"])
def test_baselines_are_as_large_as_exact_in_small(name):
    def count(name):
        with torch.device("meta"):
            network = build_network(Preset.from_dict(preset_data(name)))
        return sum(p.numel() for p in network.parameters())

    ours, theirs = count("phantom-small"), count(name)
    assert abs(theirs / ours - 1) <= 0.02, f"{name}: {theirs:,} parameters, not {ours:,}; change `wide`"


def test_trunks_and_inputs_are_those_of_exact_in_small():
    ours = preset_data("phantom-small")["net"]
    for name in ("phantom-small-cam", "phantom-small-clip", "phantom-small-organ-clip"):
        net = preset_data(name)["net"]
        same = ("windows_hu", "widths", "depth", "abn_width", "bands_hu", "contrast_hu", "reader")
        assert {key: net[key] for key in same} == {key: ours[key] for key in same}
        assert preset_data(name)["prep"] == preset_data("phantom-small")["prep"]


def test_a_report_row_is_missing_where_a_scan_teaches_organs_alone(files):
    task, made = batches("organ_clip", [*files, files[0][:1]])
    assert all(isinstance(batch.report, ReportRow) for batch in made)
    assert len(task.bank.row_of) == 8
