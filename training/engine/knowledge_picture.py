"""The knowledge graph as a picture: an organ in the middle, what hangs together with it around, by category."""

from __future__ import annotations

from tumorchain_agent.records import DISCLAIMER
from tumorchain_agent.tools.organs import display_name
from tumorchain_agent.training.engine import svg
from tumorchain_agent.training.engine.knowledge import CATEGORIES, KnowledgeGraph, Triple

_SIDE = 1100.0
_NAMES = {"risk_factors": "risk factors", "criteria": "TNM criteria", "stages": "stage rules"}


def draw_knowledge(graph: KnowledgeGraph, organ: str) -> str:
    """An SVG of one organ: each triple a line from head to tail; level A is drawn strongest, C faintest."""
    triples = [each for each in graph.of(organ) if each.category != "stages"]
    places = _places(organ, triples)
    parts = [svg.text(24, 34, f"Diagnostic knowledge graph: {display_name(organ)}", size=20, bold=True)]
    strength = {"A": 0.85, "B": 0.5, "C": 0.25}
    for each in triples:
        color = svg.COLORS[CATEGORIES.index(each.category)]
        head, tail = places[each.head], places.get(each.tail, places[organ])
        parts.append(svg.line(*head[:2], *tail[:2], color, width=1.2, opacity=strength[each.level]))
    for name, (x, y, share) in places.items():
        if name == organ:
            continue
        color = svg.COLORS[CATEGORIES.index(_category(name, triples))]
        right = share < 0.5
        parts += [
            svg.dot(x, y, 3.5, color),
            _turned(x, y, share, name if len(name) < 42 else f"{name[:40]}…", right),
        ]
    middle = _SIDE / 2
    parts += [svg.dot(middle, middle, 46, svg.INK)]
    parts.append(
        svg.text(middle, middle + 5, display_name(organ), color=svg.PAPER, anchor="middle", bold=True)
    )
    parts += _legend(graph, organ)
    return svg.page(_SIDE, _SIDE + 40, f"Knowledge graph of the {display_name(organ)}", parts)


def _places(organ: str, triples: list[Triple]) -> dict[str, tuple[float, float, float]]:
    """Entity → x, y and share of the turn; entities of a category stand together."""
    names: dict[str, None] = {}
    for category in CATEGORIES:
        for each in triples:
            if each.category == category:
                ends = (each.head,) if category == "criteria" else (each.head, each.tail)
                names.update(dict.fromkeys(name for name in ends if name != organ))
    middle, places = _SIDE / 2, {}
    for number, name in enumerate(names):
        share = (number + 0.5) / len(names)
        x, y = svg.on_circle(middle, middle, 330, share)
        places[name] = (x, y, share)
    places[organ] = (middle, middle, 0.0)
    return places


def _category(name: str, triples: list[Triple]) -> str:
    return next(each.category for each in triples if name in (each.head, each.tail))


def _turned(x: float, y: float, share: float, words: str, right: bool) -> str:
    angle = 360 * share - 90 + (0 if right else 180)
    anchor, shift = ("start", 8) if right else ("end", -8)
    inner = svg.text(shift, 4, words, size=11, anchor=anchor)
    return f"<g transform='translate({x:.1f} {y:.1f}) rotate({angle:.1f})'>{inner}</g>"


def _legend(graph: KnowledgeGraph, organ: str) -> list[str]:
    parts = []
    for number, category in enumerate(CATEGORIES):
        count = sum(each.category == category for each in graph.of(organ))
        y = 62 + 18 * number
        parts += [svg.dot(30, y - 4, 5, svg.COLORS[number])]
        parts.append(svg.text(42, y, f"{_NAMES.get(category, category)}: {count}"))
    note = f"Lines: evidence level A strong, B medium, C faint. Stage rules are not drawn. {DISCLAIMER}"
    return [*parts, svg.text(24, _SIDE + 24, note, color=svg.PALE)]
