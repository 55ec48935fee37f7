"""Is a finding denied? A negation counts for the stretch of words that it governs, not for its whole sentence.

Before a finding it reaches from "no" to a turn such as "but" or "with"; after it counts only what is said of the
finding itself ("is not seen", "lymph nodes: none").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from tumorchain_agent.training.evaluation.facts import denied_before

_OTHER: Final = r"(?:a|an|another|several|multiple|numerous|there|two|three|four|five|\d+)\b"
_SUBJECT: Final = r"the\b(?=[^,;]*\b(?:is|are|has|have|shows?|contains?)\b)"
_TURN: Final = re.compile(
    rf"\b(?:apart from|aside from|other than|besides)\b"
    rf"|\bwithout (?:\w+ )?contrast\b"
    rf"|\bno (?:\w+ )?(?:change|increase|decrease|doubt)\b"
    rf"|\bcannot (?:be )?(?:exclude|rule out|ruled out)d?\b"
    rf"|(?:\bnot \w+(?: \w+)?|\babsent|\bexcluded|\bruled out)\s*,"
    rf"|(?:,|\band)\s+(?={_OTHER}|{_SUBJECT})"
)
"""Where the reach of a negation ends, besides the turns that the evaluation knows."""
_NOTHING: Final = re.compile(r"\b(?:none of|nothing)\b")
_END: Final = re.compile(r"\b(?:but|however|although|yet|except|with|without|while|whereas)\b|[,;]")
_NOT_THERE: Final = re.compile(
    r"(?:\W*|.*?\b(?:is|are|was|were|has|have)\s+)(?:been\s+)?"
    r"(?:not\s+(?:been\s+)?(?:\w+ly\s+)?"
    r"(?:seen|present|identified|found|visible|visuali[sz]ed|detected|evident|demonstrated|noted|assessed|assessable"
    r"|stated|described|mentioned|reported|evaluated)\b(?! to)"
    r"|absent\b|excluded\b|ruled out\b)"
    r"|\W*(?:none|no)\b"
)


def denied(clause: str, place: re.Match[str]) -> bool:
    """Does a clause deny what is found at a place in it?"""
    before = clause[: place.start()].lower()
    turns = [turn.end() for turn in _TURN.finditer(clause.lower()) if turn.end() <= place.start()]
    before = before[turns[-1] if turns else 0 :]
    if denied_before(before) or _NOTHING.search(before):
        return True
    return _NOT_THERE.match(said_after(clause, place)) is not None


def said_after(clause: str, place: re.Match[str]) -> str:
    """What a clause goes on to say of a finding, in lower case: up to a comma or a turn."""
    return _END.split(clause[place.end() :].lower(), maxsplit=1)[0]


def stretch(clause: str, place: re.Match[str]) -> str:
    """The part of a clause between the turns around a place."""
    ends = [each for pattern in (_END, _TURN) for each in pattern.finditer(clause.lower())]
    start = max((each.end() for each in ends if each.end() <= place.start()), default=0)
    stop = min((each.start() for each in ends if each.start() >= place.end()), default=len(clause))
    return clause[start:stop]


def claimed(pattern: re.Pattern[str], clause: str) -> Iterator[re.Match[str]]:
    """Where a clause says what a pattern finds, and doesn't deny it."""
    return (place for place in pattern.finditer(clause) if not denied(clause, place))
