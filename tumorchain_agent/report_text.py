"""Text for readers: the parts of an answer, mentions of organs as links, numbers as they are written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tumorchain_agent.tools.organs import match_organs

_HEADING = re.compile(
    r"(?:^|(?<=[.!?;:\n]))[ \t]*(?:[#>*_]+[ \t]*)?"
    r"(findings?|impressions?|pathology|conclusions?|diagnosis|summary|answer)"
    r"[ \t]*(?:\*\*|__)?[ \t]*:[ \t]*(?:\*\*|__)?",
    re.IGNORECASE | re.MULTILINE,
)
_TITLES = {
    "finding": "findings", "impressions": "impression", "conclusions": "conclusion", "answer": "short answer",
}  # fmt: skip
_BULLET = re.compile(r"^[ \t]*(?:[-*•]|\d{1,2}[.)])[ \t]+")


@dataclass(frozen=True)
class Piece:
    """A run of text; ``anchor`` is the id of the evidence that it names."""

    text: str
    anchor: str | None = None


@dataclass(frozen=True)
class Block:
    """One paragraph, or a list with one entry per item."""

    items: tuple[tuple[Piece, ...], ...]
    is_list: bool = False


@dataclass(frozen=True)
class Section:
    """A titled part of an answer; the text before the first heading has no title."""

    title: str | None
    blocks: tuple[Block, ...]


def format_number(value: float | None, digits: int = 1) -> str:
    """A number as written in a report; a dash for none, a proper minus sign, no negative zero."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def sentence_case(text: str) -> str:
    """The text with its first letter as a capital and the others as they are."""
    return text[:1].upper() + text[1:]


def split_sections(text: str, anchors: Mapping[str, str] | None = None) -> tuple[Section, ...]:
    """Split at headings such as Findings, Impression and Pathology, at the start of a line or of a sentence.

    ``anchors`` maps organs to ids of the page; their mentions become links.
    """
    starts = list(_HEADING.finditer(text))
    parts: list[tuple[str | None, str]] = [(None, text[: starts[0].start()] if starts else text)]
    for here, following in zip(starts, [*starts[1:], None], strict=False):
        word = here.group(1).lower()
        title = sentence_case(_TITLES.get(word, word))
        parts.append((title, text[here.end() : following.start() if following else len(text)]))
    sections = (Section(title, _blocks(body, anchors or {})) for title, body in parts)
    return tuple(section for section in sections if section.blocks)


def _blocks(text: str, anchors: Mapping[str, str]) -> tuple[Block, ...]:
    blocks: list[Block] = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in paragraph.splitlines() if line.strip()]
        for is_list, group in _runs(lines):
            items = [_BULLET.sub("", line) for line in group] if is_list else [" ".join(group)]
            blocks.append(Block(tuple(linked(plain(item), anchors) for item in items), is_list))
    return tuple(blocks)


def _runs(lines: Iterable[str]) -> list[tuple[bool, list[str]]]:
    runs: list[tuple[bool, list[str]]] = []
    for line in lines:
        is_list = bool(_BULLET.match(line))
        if runs and runs[-1][0] == is_list:
            runs[-1][1].append(line)
        else:
            runs.append((is_list, [line]))
    return runs


def plain(text: str) -> str:
    """The text without Markdown's marks for bold and without control characters."""
    unmarked = text.replace("**", "").replace("__", "").strip()
    return "".join(char for char in unmarked if char.isprintable())


def linked(text: str, anchors: Mapping[str, str]) -> tuple[Piece, ...]:
    """Cut a text so that each mention of an organ with an anchor is a piece of its own."""
    pieces: list[Piece] = []
    position = 0
    for mention in match_organs(text):
        anchor = anchors.get(mention.organ)
        if anchor is None or mention.start < position:
            continue
        pieces.append(Piece(text[position : mention.start]))
        pieces.append(Piece(text[mention.start : mention.end], anchor))
        position = mention.end
    pieces.append(Piece(text[position:]))
    return tuple(piece for piece in pieces if piece.text)
