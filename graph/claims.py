"""Each sentence of the answer with the organs and the evidence that it rests on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from tumorchain_agent.records import Claim, Notice, OrganEvidence
from tumorchain_agent.tools.organs import FIVE, display_name, match_organs, mentioned_organs
from tumorchain_agent.tools.tnm import primary_organ

_HEADING: Final = re.compile(
    r"\s*#*\s*[*_]*(?:findings?|impressions?|pathology|conclusions?|answer|diagnosis|summary)[*_]*\s*(?::[*_]*|$)\s*",
    re.IGNORECASE,
)
_BULLET: Final = re.compile(r"\s*(?:[-*•–]|\d{1,2}[.)])\s+")
_END: Final = re.compile(r"[.!?]+[)\"'”]*(?=\s+[A-Z0-9(\"“])")
_ABBREVIATION: Final = re.compile(
    r"(?:\b(?:e\.g|i\.e|cf|vs|approx|ca|fig|no|dr|incl|resp)\.|^\d{1,2}\.)$", re.IGNORECASE
)
_NOT_ASSESSED: Final = re.compile(
    r"\bnot\s+(?:\w+\s+){0,2}(?:assess|evaluat|includ|imag|seen|visib|visuali|cover|captur|contain|available|present|"
    r"depict|shown|part of|within|in)\w*|\b(?:absent|outside|unassess\w*|missing|excluded|out of)\b|"
    r"\b(?:cannot|can't|could not|can not)\s+be\s+\w+",
    re.IGNORECASE,
)
_SHORT_ANSWER: Final = re.compile(r"\banswer:\s*(?P<short>.+)\Z", re.IGNORECASE | re.DOTALL)
_NO_TUMOR: Final = re.compile(
    r"\bno (?:evidence of )?(?:an? )?(?:(?:malignant|suspicious|visible) )?"
    r"(?:tumou?rs?|mass(?:es)?|cancers?|carcinomas?|malignan\w+|lesions?)\b",
    re.IGNORECASE,
)


def sentences(text: str) -> list[str]:
    """The sentences of a text, each verbatim, without headings and bullets.

    >>> sentences("Findings:\\n- The liver is 2.5 cm larger, e.g. Fig. 2. No lesion.\\nImpression: T2 N0 M0.")
    ['The liver is 2.5 cm larger, e.g. Fig. 2.', 'No lesion.', 'T2 N0 M0.']
    """
    found: list[str] = []
    for line in text.splitlines():
        rest = _BULLET.sub("", line, count=1) if _BULLET.match(line) else line
        rest = _HEADING.sub("", rest, count=1) if _HEADING.match(rest) else rest
        rest = _BULLET.sub("", rest, count=1) if _BULLET.match(rest) else rest
        found += [sentence for sentence in _split(rest) if re.search(r"\w", sentence)]
    return found


def _split(line: str) -> Iterator[str]:
    start = 0
    for end in _END.finditer(line):
        if not _ABBREVIATION.search(line[start : end.end()]):
            yield line[start : end.end()].strip()
            start = end.end()
    yield line[start:].strip()


def make_claims(
    conclusion: str, evidence: Mapping[str, OrganEvidence], global_uri: str | None
) -> tuple[Claim, ...]:
    """A claim a sentence.

    A sentence that names no organ rests on what the sentence before rests on; before any organ is named, and
    for organs that were never examined, that is τ_g, where the LLM was shown it.
    """
    claims: list[Claim] = []
    organs: tuple[str, ...] = ()
    for sentence in sentences(conclusion):
        organs = tuple(mentioned_organs(sentence)) or organs
        uris = [uri for organ in organs if organ in evidence for uri in evidence[organ].uris]
        if global_uri is not None and not all(organ in evidence for organ in organs or ("",)):
            uris.insert(0, global_uri)
        claims.append(Claim(sentence=sentence, organs=organs, evidence_uris=tuple(dict.fromkeys(uris))))
    return tuple(claims)


def absent_described(conclusion: str, absent: Sequence[str]) -> list[Notice]:
    """A notice for each sentence that speaks of an organ that isn't in the scan, and doesn't say so."""
    found: list[Notice] = []
    for sentence in sentences(conclusion):
        for organ in mentioned_organs(sentence):
            if organ in absent and not _NOT_ASSESSED.search(sentence):
                message = (
                    f"The answer speaks of {display_name(organ)}, which is not in the scan; "
                    f"nothing it says of it was assessed: “{sentence[:200]}”"
                )
                found.append(Notice(code="absent_organ_described", message=message, organ=organ))
    return found


def classifier_disagrees(conclusion: str, evidence: Mapping[str, OrganEvidence]) -> list[Notice]:
    """A notice where answer and Cls part: a tumor in an organ that Cls calls normal, or not a word of one that it
    calls abnormal."""
    seat, spoken = primary_organ(conclusion), set(mentioned_organs(conclusion))
    found: list[Notice] = []
    for organ, shown in evidence.items():
        cls, name = shown.classification, display_name(organ)
        if cls is None or cls.p_abnormal is None:
            continue
        said = ""
        if organ == seat and cls.label == "normal":
            said = f"The answer sees a tumor of the {name}, which the classifier calls normal"
        elif organ not in spoken and cls.label == "abnormal":
            said = f"The answer says nothing of the {name}, which the classifier calls abnormal"
        if said:
            message = f"{said} (p of abnormal = {cls.p_abnormal:.2f}): look for yourself."
            found.append(Notice(code="classifier_disagrees", message=message, organ=organ))
    return found


def contradicts_itself(conclusion: str) -> list[Notice]:
    """A notice where the short answer that closes a text names another seat of a tumor than the text before it, or
    only one of the two sees a tumor at all. A text without "Answer:" has no such part."""
    found = _SHORT_ANSWER.search(conclusion)
    if found is None or "metasta" in found["short"].lower():
        return []
    before, short = conclusion[: found.start()], found["short"].strip()
    seat, named = primary_organ(before), [each for each in match_organs(short) if each.organ in FIVE]
    organs = {each.organ for each in named}
    if _NO_TUMOR.search(short):
        clash = seat is not None and (seat in organs or not organs)
    elif seat is not None:
        clash = bool(organs) and seat not in organs
    else:
        affirmed = primary_organ(short) or any(each.text == short.rstrip(".") for each in named)
        clash = bool(affirmed) and _NO_TUMOR.search(before.rpartition("Impression:")[2]) is not None
    if not clash:
        return []
    seen = f"sees a tumor of the {display_name(seat)}" if seat else "sees no tumor"
    message = f"The answer contradicts itself: its text {seen}, its short answer is “{short[:200]}” Look for yourself."
    return [Notice(code="contradicts_itself", message=message, organ=seat)]
