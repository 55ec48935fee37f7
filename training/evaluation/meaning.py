"""Does an answer keep a reference's meaning? By organs, facts, numbers and the other words of both; no model.

Yes must meet yes and no must meet no, numbers must be equal, and every word that neither an organ nor a known finding
explains must be said again, with the same negation. What hedges, or is an all-clear in other words, can't be told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from tumorchain_agent.graph.claims import sentences
from tumorchain_agent.tools.organs import match_organs
from tumorchain_agent.training.evaluation.facts import (
    HAS,
    HAS_NO,
    SCAN,
    Triple,
    finding_spans,
    negated,
    subjects,
    triples,
)

_FILLERS: Final = frozenset(
    re.findall(
        r"\w+",
        """
        a an the this that these those it its there here is are was were be been being has have had do does did will
        would can could may might of in on at to for from by with within into onto as and or but not no nor neither
        without which who what where when than then also only very rather quite about approximately around measuring
        measures measured measure size sized diameter seen see shown shows show noted note observed observe found
        find identified identify detected detect visible visualized visualised present presence absent absence
        evidence sign signs finding findings appears appear appearing located location lies lie lying situated
        involving involves side sided region regions area areas image images scan ct patient answer final now
        currently current previously free negative never denies rule rules ruled out exclude excluded however
        although yet except while whereas any some x cm mm ml hu cc demonstrates demonstrated consistent between up
        least most more less over under above below
        """,
    )
)
"""Words that tell nothing by themselves."""
_ENDINGS: Final = re.compile(r"(?:ations?|ative|at(?:ed|ing|e)|tous|tic|s[ei]s|ies|ed|ing|es|s|al|ly|y|e)$")
_RIVALS: Final = tuple(
    frozenset(group.split())
    for group in (
        "left right bilateral", "upper middle lower", "superior inferior", "anterior posterior", "medial lateral",
        "proximal distal", "ascending descending transverse sigmoid", "axial coronal sagittal", "mild moderate severe",
        "increased decreased", "new resolved refractory", "acute chronic", "benign malignant", "arterial venous portal",
        "small large", "round lobulated irregular", "well-defined ill-defined", "hypodense hyperdense isodense",
        "heterogeneous homogeneous", "solitary multiple", "T1 T2 T3 T4 Tis", "N0 N1 N2 N3", "M0 M1",
    )
)  # fmt: skip
"""Who says two of a group doesn't choose."""
_SIZES: Final = ("under 2 cm", "2 to 4 cm", "over 4 cm")
_MORE: Final = re.compile(
    r"ascending|descending|thoracic|abdominal|peri(?!cardi)\w+|para[a-z]{4,}|retro\w+|\w*(?:itis|megaly|stones?|lithiasis|"
    r"omas?|nephrosis)|cirrho\w+|hypertension|linitis|plastica|crc|hcc|pdac"
)
"""Words of an organ's names that tell more than the organ: "gallstones"."""
_AMOUNT: Final = re.compile(
    r"(?<![a-z\d.])(?<![a-z]-)(?:(?<!\w)-)?\d+(?:\.\d+)?(?:\s*(?:[x×*–-]|to|by)\s*\d+(?:\.\d+)?)*"
    r"\s*(?:(cm3|cm³|mm|cm|ml|cc|hu|%)(?![a-z]))?"
)
_UNITS: Final = {"cm": (10.0, "mm"), "cm3": (1.0, "ml"), "cm³": (1.0, "ml"), "cc": (1.0, "ml")}
"""Unit → how many of which other."""
_COUNTS: Final = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SAID_AS: Final = {
    **{word: str(k) for k, word in enumerate(_COUNTS, 2)},
    **dict.fromkeys(("both", "bilaterally"), "bilateral"),
}
_ONE: Final = re.compile(r"(?<!segment )(?<!stage )\b1(?= [a-z]{4})")
_ALL_CLEAR: Final = re.compile(r"\b(?:no|without)(?: \w+)? abnormalit(?:y|ies)\b", re.IGNORECASE)
_ASIDE: Final = re.compile(r"\s*\(([^()]*)\)")
_VERDICT: Final = re.compile(r"\W*(yes|no)\b\W*", re.IGNORECASE)


def same_meaning(reference: str, answer: str) -> bool | None:
    """Does the answer say all that the reference says, and contradict none of it? ``None`` when it can't be told.

    What the reference adds in parentheses need not be said.
    """
    if not _plain(answer):
        return False
    if _plain(answer) in (_plain(reference), *map(_plain, _ASIDE.findall(reference))):
        return True
    wanted, said = _ASIDE.sub("", reference).strip() or reference, answer
    right, given = _verdict(wanted), _verdict(said)
    if right is not None:
        return _same_verdict(wanted, said, right)
    if given == "yes":
        said = _VERDICT.sub("", said, count=1)
    elif given == "no" and _plain(said) == "no":
        return None if _Text(wanted).denies else False
    return _same_content(_Text(wanted), _Text(said))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .,;:!?'\"")


def _verdict(text: str) -> str | None:
    """Yes or no, alone or set off from what follows."""
    found = re.match(r"\W*(yes|no)\s*(?:$|[.,;:!–-])", text, re.IGNORECASE)
    return found[1].lower() if found else None


def _same_verdict(wanted: str, said: str, right: str) -> bool | None:
    given = re.match(_VERDICT, said)
    if given is None:
        return None
    if given[1].lower() != right:
        return False
    rest, told = _VERDICT.sub("", wanted, count=1), _VERDICT.sub("", said, count=1)
    if not rest:
        return True
    return _same_content(_Text(rest), _Text(told if _verdict(said) else said)) if told else None


@dataclass(frozen=True)
class _Text:
    """A text taken apart."""

    text: str

    @cached_property
    def sentences(self) -> list[str]:
        plain = re.sub(r"\b[Nn]on-(?=\w)", "non", _ALL_CLEAR.sub("normal", self.text))
        counted = re.sub(r"[A-Za-z]+", lambda word: _SAID_AS.get(word[0].lower(), word[0]), plain)
        return sentences(_ONE.sub("one", counted))

    @cached_property
    def facts(self) -> set[Triple]:
        return {fact for sentence in self.sentences for fact in triples(sentence)}

    @cached_property
    def places(self) -> dict[str, set[bool]]:
        """Organ, with its part → whether it is negated, where it is named."""
        found: dict[str, set[bool]] = {}
        for sentence in self.sentences:
            mentions = match_organs(sentence)
            for name in subjects(mentions):
                spots = [each.start for each in mentions if name in subjects([each])]
                found.setdefault(name, set()).update(negated(sentence.lower(), spot) for spot in spots)
        return found

    @cached_property
    def numbers(self) -> set[tuple[float, str]]:
        """Values and units, in mm and ml; those of organs, of stages and of findings aren't among them."""
        return {
            each
            for sentence in self.sentences
            for match in _AMOUNT.finditer(sentence.lower())
            if not _inside(match.start(), [*_organ_spans(sentence), *finding_spans(sentence)])
            for each in _values(match)
        }

    @cached_property
    def words(self) -> dict[str, set[bool]]:
        """Stem → whether it is negated, of all words that tell something."""
        return _stems((word, no) for word, no, _ in self._words())

    @cached_property
    def unexplained(self) -> dict[str, set[bool]]:
        """Those that belong to no organ and no finding."""
        return _stems((word, no) for word, no, explained in self._words() if not explained)

    @property
    def empty(self) -> bool:
        return not (self.facts or self.places or self.numbers or self.unexplained)

    @property
    def denies(self) -> bool:
        """Says that something isn't there or is normal, and nothing else."""
        told = [fact.relation == HAS_NO or fact.object == "normal" for fact in self.facts]
        told += [no for each in self.unexplained.values() for no in each]
        return all(told) if told else any(negated(f"{each.lower()} x", len(each)) for each in self.sentences)

    def _words(self) -> Iterator[tuple[str, bool, bool]]:
        """Word, whether it is negated, whether it is explained."""
        for sentence in self.sentences:
            lower, organs, findings = sentence.lower(), _organ_spans(sentence), finding_spans(sentence)
            for match in re.finditer(r"(?<![a-z\d])[a-z]+", lower):
                word, place = match[0], match.start()
                of_organ = _inside(place, organs) and not _MORE.fullmatch(word)
                explained = of_organ or _inside(place, findings) or (word == "bilateral" and bool(organs))
                yield word, negated(lower, place), explained


def _organ_spans(sentence: str) -> list[tuple[int, int]]:
    return [(each.start, each.end) for each in match_organs(sentence)]


def _inside(place: int, spans: Iterable[tuple[int, int]]) -> bool:
    return any(start <= place < end for start, end in spans)


def _values(match: re.Match[str]) -> Iterator[tuple[float, str]]:
    times, unit = _UNITS.get(match[1] or "", (1.0, match[1] or ""))
    amount = match[0].removesuffix(match[1] or "")
    for number in re.finditer(
        r"(?:(?<![\w)])-)?\d+(?:\.\d+)?", re.sub(r"(?<=\d)\s*[-–]\s*(?=\d)", " to ", amount)
    ):
        yield round(times * float(number[0]), 6), unit


def _stems(words: Iterable[tuple[str, bool]]) -> dict[str, set[bool]]:
    found: dict[str, set[bool]] = {}
    for word, no in words:
        if word not in _FILLERS:
            found.setdefault(_stem(word), set()).add(no)
    return found


def _stem(word: str) -> str:
    plain = word.replace("ae", "e").replace("oe", "e")
    cut = _ENDINGS.sub("", plain)
    return cut if len(cut) >= 4 else plain


def _same_content(wanted: _Text, said: _Text) -> bool | None:
    if wanted.empty:
        return None if wanted.denies == said.denies else False
    found = {*_places_said(wanted, said), *_facts_said(wanted, said), *_words_said(wanted, said)}
    found.add(_numbers_said(wanted, said))
    return False if False in found else None if None in found else True


def _agree(wanted: set[bool], said: set[bool]) -> bool | None:
    """Whether two texts negate something alike; ``None`` when one of them does and doesn't."""
    return True if wanted == said else None if wanted & said else False


def _places_said(wanted: _Text, said: _Text) -> Iterator[bool | None]:
    """Every organ must be named. Where the organ is all there is, it mustn't be negated, and no other may be named."""
    alone = not (wanted.facts or wanted.numbers or wanted.unexplained)
    for name, negations in wanted.places.items():
        fitting = [no for other, no in said.places.items() if f"{other}:".startswith(f"{name}:")]
        yield bool(fitting)
        if alone and fitting:
            yield _agree(negations, set().union(*fitting))
    if alone:
        known = {*wanted.places, *(name.partition(":")[0] for name in wanted.places)}
        others = [name for name, no in said.places.items() if False in no and name not in known]
        yield True if all(name.partition(":")[0] in wanted.places for name in others) else None


def _facts_said(wanted: _Text, said: _Text) -> Iterator[bool | None]:
    exact = any(unit == "mm" for _, unit in wanted.numbers)
    objects = {fact.object for fact in wanted.facts}
    missing = None if _all_clear(wanted, said) else False
    for fact in wanted.facts:
        if exact and fact.object in _SIZES:
            continue
        near = [each for each in said.facts if SCAN in (fact.organ, each.organ) or each.organ == fact.organ]
        same = {each.relation for each in near if each.object == fact.object}
        yield same == {fact.relation} if same else missing
        rivals = _rivals(fact.object, objects)
        if any(each.object in rivals and each.relation == HAS for each in near):
            yield None


def _words_said(wanted: _Text, said: _Text) -> Iterator[bool | None]:
    missing = None if _all_clear(wanted, said) else False
    for stem, negations in wanted.unexplained.items():
        yield _agree(negations, said.words[stem]) if stem in said.words else missing
        if any(False in said.words.get(each, ()) for each in _rivals(stem, wanted.words, _stem)):
            yield None


def _all_clear(wanted: _Text, said: _Text) -> bool:
    """Nothing is wrong, says one of two texts; the other denies something."""
    normal = any(fact.object == "normal" for fact in (*wanted.facts, *said.facts))
    return normal and wanted.denies and said.denies


def _rivals(name: str, own: Container[str], form: Callable[[str], str] = str) -> set[str]:
    groups = [{form(each) for each in group} for group in _RIVALS]
    return {each for group in groups if name in group for each in group if each not in own}


def _numbers_said(wanted: _Text, said: _Text) -> bool | None:
    """Every number, and none more of the same unit."""
    units = {unit for _, unit in wanted.numbers}
    rest = {each for each in said.numbers if each[1] in {*units, ""} or "" in units} if units else set()
    for value, unit in wanted.numbers:
        met = {each for each in rest if each[0] == value and (each[1] == unit or "" in (unit, each[1]))}
        if not met:
            return False
        rest -= met
    return None if rest else True
