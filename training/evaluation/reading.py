"""A language model's text → the answer in the form that was wanted, or none: stricter than benchmarks' own parsers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from tumorchain_agent.training.evaluation.deeptumorvqa_metrics import without_thinking
from tumorchain_agent.training.evaluation.prompts import Asked

_BOXED: Final = re.compile(r"\$*\\boxed\{(?:\\text\{)?([^{}]*)\}+\$*")
_CLOSING: Final = re.compile(
    r"\b(?:answer|option|choice)(?:\s+(?:is|would be|should be|must be))?\s*[:=]\s*"
    r"|\b(?:answer|option|choice)\s+(?:is|would be|should be|must be)\s+"
    r"|\bI(?:'d| would| will| must)?\s+(?:answer|choose|select|pick|go with)\s*:?\s+",
    re.IGNORECASE,
)
"""What the last of these says is the answer."""
_AFTER: Final = (
    r"(?=\s*$|\s*\n|\s*[).:;\]](?:\s|$|\W)|,\s|\s+[-–—:(]|\s+(?:is|as|because|since|seems|fits|would)\b)"
)
"""What may follow a letter that stands for an option; a word after "A" makes it an article."""
_LEAD: Final = r"\W*(?:(?i:(?:the\s+)?(?:option|choice|answer))\s+)?\W*"
_SPOKEN: Final = re.compile(rf"{_LEAD}([A-Za-z]){_AFTER}", re.IGNORECASE)
_WRITTEN: Final = re.compile(rf"{_LEAD}(?:([A-Z]){_AFTER}|([a-z])(?=\W*$|\)|[.:]\s))")
_SEVERAL: Final = re.compile(r"\W*[A-Za-z]\W*(?:,|/|&|\bor\b|\band\b)\W*(?:or |and )?[A-HJ-Z]\b(?!')")

_CUBIC: Final = re.compile(r"(?<![a-zA-Z])([cdm]?m)(?:\s*(?:\^|\*\*)\s*\{?[23]\}?|[23²³])(?!\d)")
_THOUSANDS: Final = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NUMBER: Final = re.compile(r"(?<![\w.])(?<!\d,)-?\d+(?:\.\d+)?(?!\d|[.,]\d|[eE][-+]?\d)")
_SPAN: Final = re.compile(r"\d\s*(?:[-–x×]|to|and|or)\s*$", re.IGNORECASE)


def read_answer(text: str, asked: Asked) -> str | None:
    """What a language model's text answers, in the wanted form; ``None`` when it can't be read.

    Thinking is left out; where the text closes with "the answer is …", the last of these counts.
    """
    said = _BOXED.sub(r" answer: \1\n", without_thinking(text)).replace("*", "").replace("`", "")
    closings = list(_CLOSING.finditer(said))
    said = (said[closings[-1].end() :] if closings else said).strip()
    if asked.form == "letter":
        return _letter(said, asked.options, closing=bool(closings))
    if asked.form == "yes_no":
        return _yes_no(said)
    if asked.form == "number":
        return _number(said, closing=bool(closings))
    return said.rstrip(".") or None


def _yes_no(said: str) -> str | None:
    """The first word, else the one of the two that is said."""
    lead = re.match(r"\W*(yes|no)\b(?! doubt)", said, re.IGNORECASE)
    found = {each.lower() for each in re.findall(r"\b(yes|no)\b(?! doubt)", said, re.IGNORECASE)}
    if lead:
        return lead[1].lower()
    return found.pop() if len(found) == 1 and not re.match(r"\W*not\b", said, re.IGNORECASE) else None


def _number(said: str, *, closing: bool) -> str | None:
    """The only number outside brackets; after closing words the first, unless it begins a range."""
    plain = _THOUSANDS.sub("", _CUBIC.sub(r"\1", said.replace("−", "-")))
    outside = re.sub(r"\([^()]*\)", " ", plain)
    found = list(_NUMBER.finditer(outside)) or list(_NUMBER.finditer(plain))
    if not found or (len(found) > 1 and not closing):
        return None
    ranged = len(found) > 1 and _SPAN.search(found[0].string[: found[1].start()])
    return None if ranged else found[0][0]


def _letter(said: str, options: Mapping[str, str], *, closing: bool) -> str | None:
    """The letter that the text begins with, or that is its last line; else the only option whose text is said."""
    last = said.splitlines()[-1] if said else ""
    for part in (said, last):
        found = (_SPOKEN if closing else _WRITTEN).match(part)
        letter = next(filter(None, found.groups()), "").upper() if found else ""
        if letter in options and not _SEVERAL.match(part):
            return letter
    return _named(said, options)


def _named(said: str, options: Mapping[str, str]) -> str | None:
    plain = said.casefold()
    named = [
        text
        for text in map(str.casefold, options.values())
        if re.search(rf"(?<!\w){re.escape(text)}(?!\w)", plain)
    ]
    whole = [text for text in named if not any(text != other and text in other for other in named)]
    fitting = [key for key, text in options.items() if text.casefold() in whole]
    return fitting[0] if len(fitting) == 1 else None
