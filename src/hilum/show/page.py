"""One self-contained page: pictures, findings, report, receipt. No network, no markup from data, no patient.

Every string goes through autoescape; the script's data through JSON with `<`, `>` and `&` as escapes. The
page's own policy allows its one style and one script by hash, pictures from `data:` and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps

from hilum.read.narrate import SIZED, finding_name, place_text
from hilum.read.reading import FindingReading, Reading
from hilum.read.report_rules import report_rules
from hilum.read.sentences import HEADINGS, ONE_HEART, SECTIONS
from hilum.read.words import ORGANS, WORDS, Words
from hilum.show.album import CENTRE, Album
from hilum.show.cuts import PLANES
from hilum.show.labels import LABELS

BAR_WIDTH = 88


def render(reading: Reading, album: Album) -> str:
    """`index.html` of a reading.

    Args:
        album: pictures of the scan; findings already added.
    """
    album.thin()
    language = reading.report.language
    style = _asset("reading.css").replace("/*columns*/", _columns(album))
    script = _asset("reading.js")
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.from_string(_asset("reading.html.j2"))
    first = reading.present[0].slug if reading.present and reading.present[0].slug in album.spots else CENTRE
    data = album.as_data()
    return template.render(
        reading=reading,
        language=language,
        notice=WORDS[language].notices.get(reading.notice, reading.notice),
        t=LABELS[language],
        key=reading.scan.sha256[:12],
        policy=policy(style, script),
        style=style,
        script=script,
        data=htmlsafe_json_dumps({**data, "first": first, "words": LABELS[language]}),
        panes=[_pane(album, plane, first) for plane in PLANES],
        rows=[_row(f, language, album) for f in _ordered(reading)],
        organs=[(ORGANS[o.name][language], o.volume_ml, o.source) for o in reading.organs],
        start=_start(data, first),
        last=len(data["slices"]) - 1,
        spots=set(album.spots),
        sections=[(HEADINGS[language][name], reading.report.of(name)) for name in SECTIONS],
    )


def policy(style: str, script: str) -> str:
    """Content security policy that allows exactly this style and this script."""
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_digest(style)}'; "
        f"script-src 'sha256-{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _asset(name: str) -> str:
    return (files("hilum.show") / "templates" / name).read_text(encoding="utf-8")


def _columns(album: Album) -> str:
    widths = " ".join(f"{album.grid(plane).width_mm:.1f}fr" for plane in PLANES)
    return f"@media (min-width: 900px) {{ .panes {{ grid-template-columns: {widths}; }} }}"


def _ordered(reading: Reading) -> list[FindingReading]:
    return sorted(reading.findings, key=lambda f: (not f.present, -f.probability))


def _row(finding: FindingReading, language: str, album: Album) -> dict[str, Any]:
    words = WORDS[language]
    where = finding.where
    hedge = words.hedges.get(report_rules().certainty(finding), "").strip() if finding.present else ""
    return {
        "slug": finding.slug,
        "name": finding_name(finding.slug, language),
        "present": finding.present,
        "hedge": hedge,
        "probability": words.number(f"{finding.probability:.2f}"),
        "bar": round(BAR_WIDTH * finding.probability, 1),
        "tick": round(BAR_WIDTH * finding.threshold, 1),
        "size": _size(finding, words),
        "place": place_text(finding, words),
        "pieces": where.pieces if where else 0,
        "image": _image(finding),
        "peak": ", ".join(f"{v:.0f}" for v in where.peak_mm_ras) if where else "",
        "shown": finding.slug in album.spots,
        "map": finding.map,
    }


def _size(finding: FindingReading, words: Words) -> str:
    where = finding.where
    if where is None or not where.above_threshold or finding.volume_ml is None or finding.slug in ONE_HEART:
        return ""
    if finding.slug in SIZED:
        return f"{where.extent_mm:.0f} mm"
    digits = 0 if finding.volume_ml >= 10 else 1
    return words.number(f"{finding.volume_ml:.{digits}f} ml")


def _image(finding: FindingReading) -> str:
    where = finding.where
    if where is None:
        return ""
    if where.image is None or where.image.instance_number is None:
        return str(where.slice_index)
    numbers = (where.image.series_number, where.image.instance_number)
    return ", ".join(str(n) for n in numbers if n is not None)


def _pane(album: Album, plane: Any, first: str) -> dict[str, Any]:
    grid = album.grid(plane)
    spot = album.spots[first]
    k = spot["k"] if spot["k"] in album.kept else min(album.kept, key=lambda i: abs(i - spot["k"]))
    window = spot["window"]
    grey = album.grey[window][k] if plane == "axial" else spot["cuts"][plane][window]
    heat = spot["heat"].get(plane) if spot["heat"] else None
    if plane == "axial" and heat is not None:
        heat = heat.get(str(k))
    left, right, top, bottom = album.letters(plane)
    return {
        "plane": plane,
        "grey": grey,
        "heat": heat,
        "w": round(grid.width_mm, 1),
        "h": round(grid.height_mm, 1),
        "letters": {"left": left, "right": right, "top": top, "bottom": bottom},
    }


def _start(data: dict[str, Any], first: str) -> int:
    k = data["spots"][first]["k"]
    return min(range(len(data["slices"])), key=lambda i: abs(data["slices"][i]["k"] - k))
