"""The page: no network, nothing from data becomes markup, every id resolves, and the output folder around
it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from readshow_standin import NODULE_MM, Standin, chest, straight_grid

import hilum
from hilum.errors import OutputError, UsageError
from hilum.read.reading import Reading
from hilum.show import album
from hilum.show.cuts import LUNG, PLANES, SOFT, cut_grid, picture_point
from hilum.show.figures import figure, heat_picture
from hilum.volume import Provenance

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(2)></style>{{7*7}}</script>"
VOID = {"meta", "img", "input", "br", "hr", "link"}


class Page(HTMLParser):
    """Collects tags with attributes, and complains about tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.content: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"attribute twice in <{tag}>"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> does not close what is open"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.content:
            self.content[self.open[-1]].append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(album, "WIDTH_PX", 96)
        info = {"kernel": EVIL, "contrast": "none", "patient_name": "CANARY^PHI"}
        volume = chest(straight_grid(), Provenance("nifti", "ab" * 32, info=info))
        bumps = {"lung_nodule": NODULE_MM, "cardiomegaly": np.array([-20.0, 30.0, -30.0])}
        reading = hilum.read(volume, model=Standin(bumps=bumps, name=EVIL, trained_on="synthetic " + EVIL))
        return reading.save(tmp_path_factory.mktemp("page") / "out")


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def data_of(page: Page) -> dict:
    return json.loads(page.content["script"][0])


def test_markup_nests_and_ids_resolve(page: Page) -> None:
    assert page.open == []
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    pointed = {attrs[key] for _, attrs in page.tags for key in ("for", "aria-labelledby") if key in attrs}
    assert pointed and pointed <= set(ids)
    spots = data_of(page)["spots"]
    picks = [attrs["data-finding"] for attrs in page.all("button") if "data-finding" in attrs]
    assert picks.count("lung_nodule") == 3 and set(picks) <= set(spots)  # table, findings, impression
    assert {f"pane-{plane}" for plane in PLANES} <= set(ids)


def test_scripts_ask_only_for_ids_that_exist(page: Page) -> None:
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    asked = set(re.findall(r'(?:byId|getElementById)\("([\w-]+)"\)', page.content["script"][1]))
    assert asked and asked <= ids


def test_nothing_outside_the_page(text: str, page: Page) -> None:
    assert not re.search(r"(?i)(https?:)?//[a-z0-9]", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))
    sources = [attrs[key] for _, attrs in page.tags for key in ("src", "href", "action") if attrs.get(key)]
    assert sources and all(s.startswith("data:image/") for s in sources if s)
    assert "@import" not in text and "url(" not in text


def test_policy_allows_exactly_this_style_and_script(page: Page) -> None:
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and "default-src 'none'" in policy and "unsafe" not in policy
    for kind, content in (("style", page.content["style"][0]), ("script", page.content["script"][1])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not any("style" in attrs or any(k.startswith("on") for k in attrs) for _, attrs in page.tags)


def test_strings_never_become_markup(text: str, page: Page) -> None:
    assert "<script>alert" not in text and "<img src=x" not in text
    assert not any(attrs.get("src") == "x" for attrs in page.all("img"))
    assert len(page.all("script")) == 2 and len(page.all("style")) == 1
    assert "{{7*7}}" in text and "49</" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_notice_and_size(text: str) -> None:
    assert "Research software. Model trained on synthetic phantoms. Not a medical device." in text
    assert len(text.encode()) < 8_000_000


def test_only_known_facts_leave(folder: Path) -> None:
    assert all(b"CANARY" not in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_pictures_decode_and_match(page: Page) -> None:
    data = data_of(page)
    assert len(data["grey"]["lung"]) == len(data["grey"]["soft"]) == len(data["slices"])
    raw = base64.b64decode(data["grey"]["lung"][0].split(",")[1])
    assert Image.open(io.BytesIO(raw)).size == (96, round(96 * 64 / 84))
    heat = data["spots"]["lung_nodule"]["heat"]
    k = str(data["spots"]["lung_nodule"]["k"])
    assert k in heat["axial"] and heat["coronal"] and heat["sagittal"]
    assert data["spots"]["lung_nodule"]["window"] == "lung"
    assert data["spots"]["cardiomegaly"]["window"] == "soft"


def test_cross_lies_on_the_nodule() -> None:
    volume = chest(straight_grid())
    voxel = tuple(int(v) for v in np.rint(volume.geometry.to_vox(NODULE_MM)[0]))
    for plane in PLANES:
        grid = cut_grid(volume.geometry, plane, 0)
        x_mm, y_mm = picture_point(volume.geometry, plane, voxel)
        picture = figure(volume, plane, tuple(NODULE_MM), window=SOFT, width_px=round(grid.width_mm))
        assert picture.size == (round(grid.width_mm), round(grid.height_mm))
        values = np.asarray(picture.convert("L"))
        assert values[round(y_mm), round(x_mm)] > 100  # the nodule (60 HU)
        assert (
            values[round(y_mm), round(x_mm) - 30] < 30 or values[round(y_mm), round(x_mm) + 30] < 30
        )  # lung


def test_windows_are_black_and_white_at_their_ends() -> None:
    assert LUNG.grey(np.array([-1350.0, -600.0, 150.0])).tolist() == [0, 128, 255]
    low, middle, high, bone = SOFT.grey(np.array([-160.0, 40.0, 240.0, 3000.0])).tolist()
    assert (low, high, bone) == (0, 255, 255) and middle in (127, 128)


def test_heat_starts_at_its_threshold() -> None:
    volume = chest(straight_grid())
    grid = cut_grid(volume.geometry, "axial", 0)
    heat = np.zeros((64, 84), dtype=np.float32)
    assert heat_picture(heat, grid, 0.4, 4.5) is None
    heat[20:30, 10:20] = 0.9
    picture = heat_picture(heat, grid, 0.4, 4.5)
    assert picture is not None
    shown = np.asarray(picture.convert("RGBA"))[..., 3] > 0
    assert np.array_equal(shown, heat >= 0.4)


def test_folder_holds_what_the_reading_names(folder: Path) -> None:
    reading = Reading.from_json((folder / "reading.json").read_bytes())
    receipt = json.loads((folder / "receipt.json").read_text())
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    maps = {"maps/lung_nodule.nii.gz", "maps/cardiomegaly.nii.gz"}
    files = {"reading.json", "report.txt", "receipt.json", "index.html", "organs.nii.gz"}
    assert names == maps | files
    assert {f.map for f in reading.findings if f.map} == maps
    assert set(receipt["outputs"]) == names - {"receipt.json"}
    for name, digest in receipt["outputs"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert set(reading.receipt.outputs) == {*maps, "organs.nii.gz", "report.txt"}
    assert receipt["timings_s"]["save"] > 0
    sentence = next(s for s in reading.report.sentences if s.finding == "lung_nodule")
    assert sentence.evidence[0].map == "maps/lung_nodule.nii.gz"


def test_existing_output_is_kept_and_overwriting_is_reproducible(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(album, "WIDTH_PX", 32)
    reading = hilum.read(chest(straight_grid()), model=Standin())
    out = reading.save(tmp_path / "sörgfältig benannt …", all_maps=True)
    assert len(list((out / "maps").iterdir())) == 18
    with pytest.raises(OutputError) as caught:
        reading.save(out)
    assert caught.value.code == "OUTPUT_EXISTS"
    before = {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "receipt.json"}
    reading.save(out, overwrite=True, all_maps=True)
    after = {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "receipt.json"}
    assert before == after
    with pytest.raises(UsageError):
        Reading.from_json(before["reading.json"]).save(tmp_path / "again")


def test_a_page_that_grows_too_large_is_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(album, "WIDTH_PX", 64)
    volume = chest(straight_grid())
    full = album.Album.of(volume, [tuple(NODULE_MM)])
    full.add_spot("lung_nodule", tuple(NODULE_MM))
    monkeypatch.setattr(album, "MAX_BYTES", full.bytes_used // 2)
    k = full.spots["lung_nodule"]["k"]
    full.thin()
    assert len(full.kept) < 40 and k in full.kept and full.bytes_used <= album.MAX_BYTES
    assert set(full.grey["lung"]) == set(full.kept)
