"""The 117 TotalSegmentator structures, the 56 organs of the paper's Table 10, and organ matching Λ."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.errors import LabelMapError, UnknownOrganError

_DATA: Final[dict[str, Any]] = json.loads(
    resources.files(__package__).joinpath("data/organs.json").read_text(encoding="utf-8")
)

STRUCTURES: Final[dict[int, str]] = {int(key): name for key, name in _DATA["structures"].items()}
"""TotalSegmentator ``total`` v2: class id 1..117 → name."""

ORGANS: Final[dict[int, str]] = {entry["id"]: entry["name"] for entry in _DATA["organs"]}
"""Table 10: merged id 1..56 → organ."""

FIVE: Final[tuple[str, ...]] = ("liver", "pancreas", "stomach", "colorectum", "esophagus")
"""The digestive organs that TumorChain reasons about, in the paper's order."""

_BY_NAME: Final[dict[str, dict[str, Any]]] = {entry["name"]: entry for entry in _DATA["organs"]}
_STRUCTURE_IDS: Final[dict[str, int]] = {name: key for key, name in STRUCTURES.items()}

SUBSTRUCTURES: Final[dict[str, tuple[str, ...]]] = {organ: tuple(_BY_NAME[organ]["parts"]) for organ in FIVE}
"""Standard names of the parts of the five organs, e.g. pancreas: head, neck, body, tail, uncinate process."""


def _merge_table() -> NDArray[np.uint8]:
    table = np.zeros(256, np.uint8)
    for entry in _DATA["organs"]:
        table[[_STRUCTURE_IDS[name] for name in entry["structures"]]] = entry["id"]
    table.flags.writeable = False
    return table


MERGE: Final[NDArray[np.uint8]] = _merge_table()
"""Lookup [256]: TotalSegmentator id → Table 10 id; 0 is background."""


def _entry(organ: str) -> dict[str, Any]:
    if organ not in _BY_NAME:
        raise _unknown(organ)
    return _BY_NAME[organ]


def organ_structures(organ: str) -> tuple[str, ...]:
    """TotalSegmentator class names that make up a Table 10 organ, by id."""
    return tuple(_entry(organ)["structures"])


def organ_ids(organ: str) -> tuple[int, ...]:
    """TotalSegmentator class ids that make up a Table 10 organ, ascending."""
    return tuple(_STRUCTURE_IDS[name] for name in organ_structures(organ))


def display_name(organ: str) -> str:
    """The organ as written in a sentence, e.g. ``"colon and rectum"`` for ``"colorectum"``."""
    return str(_entry(organ)["display"])


def merge_labels(labels: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    """Table 10: TotalSegmentator ids (any shape, 0..117) → organ ids 0..56, same shape.

    Raises LabelMapError for ids outside 0..117.
    """
    if labels.size and (int(labels.max()) > len(STRUCTURES) or int(labels.min()) < 0):
        wrong = int(labels.max()) if int(labels.max()) > len(STRUCTURES) else int(labels.min())
        raise LabelMapError(
            f"label map holds id {wrong}; TotalSegmentator's task total v2 has ids 0..{len(STRUCTURES)}: "
            "pass a label map of that task"
        )
    merged: NDArray[np.uint8] = MERGE[labels]
    return merged


@cache
def organ_table_hash() -> str:
    """SHA-256 of the ids, names and merging (not of the vocabulary): a checkpoint is tied to this table."""
    table = [[entry["id"], entry["name"], organ_ids(entry["name"])] for entry in _DATA["organs"]]
    text = json.dumps([sorted(STRUCTURES.items()), table], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Mention:
    """One organ named in a text; ``text[start:end]`` is what named it.

    Words that name several organs at once ("kidneys") give one mention for each, with the same span.
    """

    organ: str
    text: str
    start: int
    end: int
    substructure: str | None
    """A name of SUBSTRUCTURES, a TotalSegmentator class of a merged organ ("vertebrae_L3"), or ``None``."""


Target = tuple[str, str | None]
"""Organ, sub-structure."""


class _Node:
    """A word of the phrase tree; ``targets`` is set where a phrase ends (empty: a neutral phrase)."""

    __slots__ = ("next", "targets")

    def __init__(self) -> None:
        self.next: dict[str, _Node] = {}
        self.targets: tuple[Target, ...] | None = None


@dataclass(frozen=True)
class _Vocabulary:
    root: _Node
    parts: dict[str, _Node]
    """Organ, or side family, → words that name a part beside another part of it."""
    phrases: dict[str, tuple[Target, ...]]


_WORD: Final = re.compile(r"[^\W_]+")
_JOINT: Final = re.compile(r"(?!.*\n\s*\n)[\s_'’‐‑–-]*", re.DOTALL)
"""What may stand between two words of one phrase."""
_LIST_MARK: Final = re.compile(r"\s*[/&,+‐‑–-]\s*")
_LIST_WORDS: Final = frozenset({"and", "or", "to", "through"})
_MEASURE: Final = re.compile(r"\d[\d.,]*(?:\s*(?:to|and|by|x|×|[-–])\s*\d[\d.,]*)*\s*[cm]m\b")
"""A length, whose number is no segment: "right lobe of the liver, 2 to 4 cm"."""
_GROUP: Final = re.compile(r"\(([^()\[\]]*)\)|\[([^()\[\]]*)\]")


def _expand(template: str) -> Iterator[str]:
    """``"(the )left [lobe|part](s)"`` → every phrase it stands for."""
    group = _GROUP.search(template)
    if group is None:
        yield " ".join(template.split())
        return
    choices = group[2].split("|") if group[2] is not None else ("", group[1])
    for choice in choices:
        yield from _expand(template[: group.start()] + choice + template[group.end() :])


def _add(root: _Node, phrase: str, targets: tuple[Target, ...]) -> None:
    node = root
    for word in _WORD.findall(phrase.lower()):
        node = node.next.setdefault(word, _Node())
    node.targets = targets


def _phrases() -> tuple[dict[str, tuple[Target, ...]], dict[str, dict[str, Target]]]:
    """Phrases → targets, and for each family the bare part words → target."""
    phrases: dict[str, tuple[Target, ...]] = {}
    bare: dict[str, dict[str, Target]] = {}
    for template in _DATA["neutral"]:
        phrases.update((phrase, ()) for phrase in _expand(template))
    for entry in _DATA["shared"]:
        parts = entry.get("parts", [None] * len(entry["organs"]))
        targets = tuple(zip(entry["organs"], parts, strict=True))
        phrases.update((phrase, targets) for template in entry["terms"] for phrase in _expand(template))
    for entry in _DATA["organs"]:
        _add_organ(entry, phrases, bare)
    return phrases, bare


def _family(organ: str) -> str:
    return re.sub(r"_(left|right)$", "", organ)


def _add_organ(
    entry: dict[str, Any], phrases: dict[str, tuple[Target, ...]], bare: dict[str, dict[str, Target]]
) -> None:
    organ = entry["name"]
    merged = len(entry["structures"]) > 1
    named = [organ.replace("_", " "), entry["display"]]
    names: list[tuple[str, str | None]] = [(name, None) for name in [*named, *entry["terms"]]]
    names += [(name.replace("_", " "), name if merged else None) for name in entry["structures"]]
    names += [(term, part) for part, terms in entry.get("parts", {}).items() for term in terms]
    for template, part in names:
        for phrase in _expand(template.removeprefix("*")):
            if template.startswith("*"):
                bare.setdefault(_family(organ), {})[phrase] = (organ, part)
            else:
                phrases[phrase.lower()] = ((organ, part),)


@cache
def _vocabulary() -> _Vocabulary:
    phrases, bare = _phrases()
    root = _Node()
    for phrase, targets in phrases.items():
        _add(root, phrase, targets)
    parts: dict[str, _Node] = {}
    for family, words in bare.items():
        for phrase, target in words.items():
            _add(parts.setdefault(family, _Node()), phrase, (target,))
    return _Vocabulary(root, parts, phrases)


class _Scan:
    """One pass over a text: the longest phrase at each word, then the parts listed beside it."""

    def __init__(self, text: str) -> None:
        spans = [match.span() for match in _WORD.finditer(text)]
        self.text = text
        self.starts = [start for start, _ in spans]
        self.ends = [end for _, end in spans]
        self.words = [text[start:end].lower() for start, end in spans]
        self.vocabulary = _vocabulary()

    def mentions(self) -> list[Mention]:
        found: list[Mention] = []
        first_words = self.vocabulary.root.next
        done = 0
        for index, word in enumerate(self.words):
            if index < done or word not in first_words:
                continue
            length, targets = self._longest(self.vocabulary.root, index)
            if targets:
                found += self._before(index, targets[0], done)
                found += self._mention(index, length, targets)
                listed, done = self._after(index + length, targets[0])
                found += listed
            elif length:
                done = index + length
        return found

    def _mention(self, index: int, length: int, targets: tuple[Target, ...]) -> list[Mention]:
        start, end = self.starts[index], self.ends[index + length - 1]
        return [Mention(organ, self.text[start:end], start, end, part) for organ, part in targets]

    def _longest(self, node: _Node, index: int) -> tuple[int, tuple[Target, ...]]:
        """Words in the longest phrase that starts at ``index`` (0: none) and what it names."""
        best: tuple[int, tuple[Target, ...]] = (0, ())
        position = index
        while position < len(self.words) and (step := node.next.get(self.words[position])):
            if position > index and not self._joined(position):
                break
            node, position = step, position + 1
            if node.targets is not None:
                best = (position - index, node.targets)
        return best

    def _joined(self, index: int) -> bool:
        gap = self._gap(index)
        return gap == " " or _JOINT.fullmatch(gap) is not None

    def _gap(self, index: int) -> str:
        """The characters between word ``index - 1`` and word ``index``."""
        return self.text[self.ends[index - 1] : self.starts[index]]

    def _after(self, index: int, target: Target) -> tuple[list[Mention], int]:
        """Parts listed after a part: "segments 5 and 6", "pancreatic body/tail"."""
        found: list[Mention] = []
        parts = self.vocabulary.parts.get(_family(target[0]))
        while parts and target[1] and (start := self._skip_list_mark(index, target[0])):
            length, targets = self._longest(parts, start)
            sided = length == 1 and self.words[start] in ("left", "right")
            measure = _MEASURE.match(self.text, self.starts[start])
            if not length or sided or measure or self._longest(self.vocabulary.root, start)[0] > 0:
                break
            found += self._mention(start, length, targets)
            index = start + length
        return found, index

    def _before(self, index: int, target: Target, free: int) -> list[Mention]:
        """Parts listed before a part: "body and tail of the pancreas", "left and right kidneys"."""
        found: list[Mention] = []
        parts = self.vocabulary.parts.get(_family(target[0]))
        while parts and (target[1] or _family(target[0]) != target[0]):
            for start in range(max(free, index - 4), index):
                length, targets = self._longest(parts, start)
                if length and self._skip_list_mark(start + length, target[0]) == index:
                    found[:0] = self._mention(start, length, targets)
                    index = start
                    break
            else:
                break
        return found

    def _skip_list_mark(self, index: int, organ: str) -> int:
        """The word after a list mark at ``index``, or 0 when none stands there."""
        if not 0 < index < len(self.words):
            return 0
        marked = _LIST_MARK.fullmatch(self._gap(index)) is not None
        if "," in self._gap(index) and organ not in FIVE:
            return 0
        if self.words[index] in _LIST_WORDS and (marked or not self._gap(index).strip()):
            return index + 1 if index + 1 < len(self.words) and not self._gap(index + 1).strip() else 0
        return index if marked else 0


def match_organs(text: str) -> list[Mention]:
    """Λ: every organ that a text names, in text order; names, synonyms, sub-structures, plurals, adjectives.

    Whole words only; where phrases overlap the longest wins ("hepatic flexure" is colon, not liver).
    """
    return _Scan(text).mentions()


def mentioned_organs(text: str) -> list[str]:
    """The organs of ``match_organs``, each once, by first mention."""
    return list(dict.fromkeys(mention.organ for mention in match_organs(text)))


def _unknown(name: str) -> UnknownOrganError:
    asked = " ".join(_WORD.findall(name.lower()))[:80]
    known = {phrase: targets for phrase, targets in _vocabulary().phrases.items() if targets}
    near = difflib.get_close_matches(asked, known, n=6, cutoff=0.6)
    organs = list(dict.fromkeys(organ for phrase in near for organ, _ in known[phrase]))[:5]
    hint = f"did you mean {', '.join(organs)}?" if organs else "list the 56 organs with list_organs"
    return UnknownOrganError(f"{name[:80]!r} is not one of the 56 organs; {hint}")


def resolve_organ(name: str) -> str:
    """The one Table 10 organ that a user or tool caller named, e.g. ``"pancreatic tail"`` → ``"pancreas"``.

    Raises UnknownOrganError, with the nearest names, for anything else, and for a name of several organs.
    """
    asked = name.strip()
    if asked in _BY_NAME:
        return asked
    whole = [mention for mention in match_organs(asked) if mention.text == asked.removeprefix("the ")]
    if len(whole) == 1:
        return whole[0].organ
    if whole:
        organs = ", ".join(mention.organ for mention in whole)
        raise UnknownOrganError(f"{name!r} names {len(whole)} organs; name one of {organs}")
    raise _unknown(name)
