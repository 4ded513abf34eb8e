"""The reliability diagram as a small SVG: frequency over probability, raw and calibrated, with the number of
answers in each bin below. No drawing library; nothing in it is executed."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from hilum.exam.reliability import Reliability

SIDE, LEFT, TOP, STRIP = 300, 52, 34, 44
"""Pixels: the square, its margins, the strip of counts below it."""
COLOURS = ("#8a8f98", "#0b6bcb", "#b3541e", "#2e7d32")


def reliability_svg(title: str, diagrams: Mapping[str, Reliability]) -> str:
    """One SVG document.

    Args:
        title: above the diagram. diagrams: name -> diagram, at most four, drawn in this order.
    """
    width, height = LEFT + SIDE + 20, TOP + SIDE + 46 + STRIP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11" fill="#222">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{LEFT}" y="18" font-size="12">{escape(title)}</text>',
        *_axes(),
    ]
    for number, (name, diagram) in enumerate(list(diagrams.items())[: len(COLOURS)]):
        parts += _curve(name, diagram, COLOURS[number], number)
    if diagrams:
        parts += _counts(list(diagrams.values())[-1], COLOURS[min(len(diagrams), len(COLOURS)) - 1])
    return "\n".join([*parts, "</svg>"]) + "\n"


def _x(p: float) -> float:
    return round(LEFT + SIDE * p, 2)


def _y(p: float) -> float:
    return round(TOP + SIDE * (1 - p), 2)


def _axes() -> list[str]:
    grey = 'stroke="#d0d4da"'
    parts = [
        f'<rect x="{LEFT}" y="{TOP}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#888"/>',
        f'<line x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}" {grey} stroke-dasharray="4 3"/>',
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts += [
            f'<text x="{_x(tick)}" y="{TOP + SIDE + 14}" text-anchor="middle">{tick:g}</text>',
            f'<text x="{LEFT - 6}" y="{_y(tick) + 4}" text-anchor="end">{tick:g}</text>',
        ]
    middle = TOP + SIDE / 2
    return [
        *parts,
        f'<text x="{_x(0.5)}" y="{TOP + SIDE + 28}" text-anchor="middle">probability</text>',
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">'
        "share present</text>",
    ]


def _curve(name: str, diagram: Reliability, colour: str, number: int) -> list[str]:
    points = [(_x(c), _y(f)) for c, f in zip(diagram.confidence, diagram.frequency, strict=True)]
    line = " ".join(f"{x},{y}" for x, y in points)
    legend = f"{name}: ECE {diagram.ece:.3f}"
    return [
        f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>',
        *(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in points),
        f'<text x="{LEFT + 8}" y="{TOP + 16 + 14 * number}" fill="{colour}">{escape(legend)}</text>',
    ]


def _counts(diagram: Reliability, colour: str) -> list[str]:
    base, most = TOP + SIDE + 40 + STRIP, max(diagram.count, default=1)
    bars = []
    for at, count in zip(diagram.confidence, diagram.count, strict=True):
        tall = round(STRIP * count / most, 2)
        bars.append(
            f'<rect x="{_x(at) - 4:.2f}" y="{base - tall}" width="8" height="{tall}" fill="{colour}" '
            f'fill-opacity="0.5"><title>{count}</title></rect>'
        )
    return bars
