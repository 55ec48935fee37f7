"""Small pieces of SVG, as text; nothing is fetched from anywhere."""

from __future__ import annotations

from html import escape
from math import cos, pi, sin

COLORS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280", "#4a5568", "#b7791f", "#2c7a7b")
INK, PALE, PAPER = "#1a202c", "#718096", "#ffffff"
_FONT = "font-family='Helvetica, Arial, sans-serif'"


def text(
    x: float,
    y: float,
    words: str,
    *,
    size: float = 12,
    color: str = INK,
    anchor: str = "start",
    bold: bool = False,
) -> str:
    weight = " font-weight='bold'" if bold else ""
    look = f"font-size='{size:g}' fill='{color}' text-anchor='{anchor}'{weight}"
    return f"<text x='{x:.1f}' y='{y:.1f}' {look}>{escape(words)}</text>"


def box(
    x: float, y: float, width: float, height: float, color: str, *, round_: float = 2, opacity: float = 1.0
) -> str:
    return (
        f"<rect x='{x:.1f}' y='{y:.1f}' width='{width:.1f}' height='{height:.1f}' rx='{round_:g}' fill='{color}' "
        f"fill-opacity='{opacity:g}'/>"
    )


def line(
    x1: float, y1: float, x2: float, y2: float, color: str = PALE, *, width: float = 1, opacity: float = 1.0
) -> str:
    return (
        f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='{color}' stroke-width='{width:g}' "
        f"stroke-opacity='{opacity:g}'/>"
    )


def dot(x: float, y: float, radius: float, color: str) -> str:
    return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{radius:g}' fill='{color}'/>"


def sector(
    x: float,
    y: float,
    inner: float,
    outer: float,
    start: float,
    end: float,
    color: str,
    *,
    opacity: float = 1.0,
) -> str:
    """A piece of a ring; ``start`` and ``end`` are shares of a full turn from 12 o'clock, clockwise."""
    end = min(end, start + 0.9999)
    large = int(end - start > 0.5)
    (ax, ay), (bx, by) = (_on(x, y, outer, each) for each in (start, end))
    (cx, cy), (dx, dy) = (_on(x, y, inner, each) for each in (end, start))
    way = (
        f"M{ax:.2f} {ay:.2f} A{outer:g} {outer:g} 0 {large} 1 {bx:.2f} {by:.2f} "
        f"L{cx:.2f} {cy:.2f} A{inner:g} {inner:g} 0 {large} 0 {dx:.2f} {dy:.2f} Z"
    )
    return f"<path d='{way}' fill='{color}' fill-opacity='{opacity:g}' stroke='{PAPER}' stroke-width='1'/>"


def _on(x: float, y: float, radius: float, share: float) -> tuple[float, float]:
    return x + radius * sin(2 * pi * share), y - radius * cos(2 * pi * share)


def on_circle(x: float, y: float, radius: float, share: float) -> tuple[float, float]:
    """The point of a circle at a share of a full turn."""
    return _on(x, y, radius, share)


def page(width: float, height: float, title: str, parts: list[str]) -> str:
    """A whole SVG document."""
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:g} {height:g}' width='{width:g}' "
        f"height='{height:g}' {_FONT} role='img'><title>{escape(title)}</title>"
    )
    return "\n".join([head, box(0, 0, width, height, PAPER, round_=0), *parts, "</svg>"]) + "\n"
