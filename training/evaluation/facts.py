"""Entity–relation–entity triples of a medical text by rules (paper 12.1), with synonyms and negation; no model.

A triple is (organ or part of it, ``has`` or ``has no``, finding): "No mass in the pancreatic tail" is (pancreas: tail,
has no, mass). A sentence that names no organ is about the scan, so that what is said before it doesn't change it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from tumorchain_agent.graph.claims import sentences
from tumorchain_agent.tools.organs import Mention, match_organs

SCAN: Final = "scan"
HAS, HAS_NO = "has", "has no"


class Triple(NamedTuple):
    subject: str
    relation: str
    object: str

    @property
    def organ(self) -> str:
        return self.subject.partition(":")[0]

    @property
    def opposite(self) -> Triple:
        return Triple(self.subject, HAS if self.relation == HAS_NO else HAS_NO, self.object)


_FINDINGS: Final[tuple[tuple[str, str], ...]] = (
    ("pseudocyst", r"pseudocysts?"), ("pancreatitis", r"pancreatitis|inflammation of the pancreas"),
    ("cyst", r"(?<!pseudo)cysts?\b"),
    ("enlarged nodes", r"enlarged (?:\w+ )*lymph nodes?|lymph nodes? (?:\w+ )*(?:enlarged|involved)|lymphadenopathy"),
    ("metastasis", r"metasta(?:sis|ses|tic)\w*|deposits?"),
    ("invasion", r"invad\w+|invasion|grow\w* into|infiltrat\w+"),
    ("displacement", r"displac\w+|push\w* [^.]*aside|compress\w+"),
    ("wall thickening", r"(?:wall|mural) thicken\w+|thicken\w+ of the wall"),
    ("ascites", r"ascites|free fluid"), ("necrosis", r"necro\w+"), ("calcification", r"calcifi\w+"),
    ("dilatation", r"dilat\w+"), ("effusion", r"effusions?"), ("obstruction", r"obstruct\w+|stenosis|strictures?"),
    ("steatosis", r"steatosis|fatty"), ("enlargement", r"hepatomegaly|splenomegaly|organomegaly"),
    ("mass", r"mass(?:es)?|tumou?rs?|lesions?|nodules?|malignan\w+|cancers?|carcinomas?|neoplas\w+"),
    ("benign", r"benign|harmless"), ("normal", r"normal|unremarkable"),
    ("round", r"round(?:ed)?|oval|spherical"), ("lobulated", r"lobul(?:ated|ar)"),
    ("irregular", r"irregular(?:ly)?(?: shaped)?"),
    ("well-defined", r"well[- ](?:defined|circumscribed|demarcated)|sharply marginated|smooth margins?"),
    ("ill-defined", r"ill[- ]defined|poorly (?:marginated|defined)|blurred|indistinct|unclear (?:boundary|margins?)"),
    ("hypodense", r"hypo(?:dense|attenuat\w+)|low[- ](?:density|attenuation)"),
    ("hyperdense", r"hyper(?:dense|attenuat\w+)|high[- ](?:density|attenuation)"),
    ("isodense", r"iso(?:dense|attenuat\w+)"),
    ("heterogeneous", r"heterogen\w+|mixed[- ]density"), ("homogeneous", r"homogen\w+"),
    ("solitary", r"solitary|single|\bone\b"), ("multiple", r"multiple|several|numerous|many"),
    ("under 2 cm", r"(?:under|less than|below) (?:2 cm|20 mm)"),
    ("2 to 4 cm", r"2 to 4 cm|between 2 and 4 cm|20 to 40 mm"),
    ("over 4 cm", r"(?:over|more than|above) (?:4 cm|40 mm)"),
)  # fmt: skip
"""Canonical finding → how it is said, in lower case; the first that fits a stretch of text takes it."""
_PATTERN: Final = re.compile(
    "|".join(f"(?P<f{k}>\\b(?:{pattern})\\b)" for k, (_, pattern) in enumerate(_FINDINGS))
)
_LENGTH: Final = re.compile(r"\b(\d+(?:\.\d+)?)\s*(mm|cm)\b")
_TNM: Final = re.compile(
    r"\b[cp]?(T(?:is|[0-4xX])[a-d]?)(?![a-z])|\b[cp]?(N[0-3xX][a-c]?)\b|\b[cp]?(M[01xX][a-c]?)\b"
)
_TNM_RUN: Final = re.compile(
    r"\b[cp]?(T(?:is|[0-4xX])[a-d]?)\s*,?\s*[cp]?(N[0-3xX][a-c]?)\s*,?\s*[cp]?(M[01xX][a-c]?)"
)
_STAGE: Final = re.compile(r"\bstage(?: group)? (0|I{1,3}|IV)([ABC]?\d?)\b")
_NO: Final = re.compile(
    r"\b(?:no|not|without|none|absence of|absent|lack of|lacks|free of|negative for|never|neither|nor|denies|"
    r"rules? out|excluded?|cannot)\b|n['’]t\b"
)
_NOT_AFTER: Final = re.compile(
    r"[\w-]+(?: \w+)?:? (?:(?:(?:is|are|was|were) )?(?:not|absent|excluded|ruled out)\b|(?:is|are|was|were)n['’]t)"
)
_TURN: Final = re.compile(r"\b(?:but|however|although|yet|except|with|while|whereas)\b|[;:]")
"""Where the reach of a negation ends."""


def triples(text: str) -> list[Triple]:
    """The facts of a text in order, each once.

    >>> triples("No mass in the liver. A round lesion of the pancreatic tail.")[0]
    Triple(subject='liver', relation='has no', object='mass')
    """
    found: dict[Triple, None] = {}
    for sentence in sentences(text):
        for triple in _of_sentence(sentence, subjects(match_organs(sentence)) or (SCAN,)):
            found.setdefault(triple)
    return list(found)


def subjects(mentions: list[Mention]) -> tuple[str, ...]:
    """``organ`` or ``organ:part`` of each, in order; an organ whose part is named only by its part."""
    names = [f"{m.organ}:{m.substructure}" if m.substructure else m.organ for m in mentions]
    parted = {name.partition(":")[0] for name in names if ":" in name}
    return tuple(dict.fromkeys(name for name in names if ":" in name or name not in parted))


def _of_sentence(sentence: str, subjects: tuple[str, ...]) -> Iterator[Triple]:
    lower = sentence.lower()
    for finding, start in _findings(sentence, lower):
        relation = HAS_NO if negated(lower, start) else HAS
        for subject in subjects:
            yield Triple(subject, relation, finding)


def _findings(sentence: str, lower: str) -> Iterator[tuple[str, int]]:
    for match in _PATTERN.finditer(lower):
        yield _FINDINGS[int(str(match.lastgroup)[1:])][0], match.start()
    if not re.search(r"2 to 4|2 and 4|20 to 40|(?:under|less than|below|over|more than|above) \d", lower):
        for match in _LENGTH.finditer(lower):
            mm = float(match[1]) * (10 if match[2] == "cm" else 1)
            yield "under 2 cm" if mm < 20 else "2 to 4 cm" if mm <= 40 else "over 4 cm", match.start()
    run = _TNM_RUN.search(sentence)
    if run:
        yield from ((value, run.start()) for value in run.groups())
    else:
        yield from ((next(filter(None, match.groups())), match.start()) for match in _TNM.finditer(sentence))
    for match in _STAGE.finditer(sentence):
        yield f"stage {match[1]}{match[2]}", match.start()


def finding_spans(sentence: str) -> list[tuple[int, int]]:
    """Where findings, T, N, M and stages stand; measured lengths are not among them."""
    found = [match.span() for match in _PATTERN.finditer(sentence.lower())]
    for pattern in (_TNM_RUN, _TNM, _STAGE):
        found += [match.span() for match in pattern.finditer(sentence)]
    return found


def denied_before(before: str) -> bool:
    """Is there a "no" in the lower-case words before a finding, with no turn between?"""
    turns = [turn.end() for turn in _TURN.finditer(before)]
    return _NO.search(before[turns[-1] if turns else 0 :]) is not None


def negated(lower: str, place: int) -> bool:
    """Is a finding denied before its place; or by a "not" shortly after it ("is not enlarged")?"""
    if denied_before(lower[:place]):
        return True
    return bool(_NOT_AFTER.match(lower[place:]))
