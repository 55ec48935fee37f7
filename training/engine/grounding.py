"""Does an extraction say what the reports say? Every feature is looked up in the words that it quotes.

A quote must stand in its report; organ, part, size and terms must stand in the quote. What the report says and the
extraction leaves out counts as well: a size, nodes, metastases, a TNM.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from tumorchain_agent.tools.ajcc import AXES
from tumorchain_agent.tools.organs import match_organs, mentioned_organs
from tumorchain_agent.tools.tnm import parse_tnm
from tumorchain_agent.training.engine.cases import Case
from tumorchain_agent.training.engine.denial import claimed, said_after, stretch
from tumorchain_agent.training.engine.faults import Fault
from tumorchain_agent.training.engine.features import (
    Extraction,
    Features,
    Lesion,
    Nodes,
    Pathology,
    Spread,
    parts_of,
)
from tumorchain_agent.training.engine.terms import CLAUSE, read_sizes, read_terms

NODES: Final = re.compile(r"\b(?:lymph[\s-]?nodes?|lymphaden\w+|nodal|nodes?)\b", re.I)
SPREAD: Final = re.compile(r"\b(?:metasta\w+|carcinomatosis)\b", re.I)
MASS: Final = re.compile(
    r"\b(?:mass(?:es)?|tumou?rs?|cancers?|malignan\w+|(?:adeno)?carcinomas?|neoplasms?|lesions?)\b", re.I
)
DENIED: Final = re.compile(
    r"\b(?:no|not|none|without|absent|absence|negative|neither|nor|free of|normal|unremarkable|nothing)\b",
    re.I,
)
_HARMLESS: Final = re.compile(r"\b(?:benign|cyst|pseudocyst)\b", re.I)
_TAKEN_FOR: Final = re.compile(
    r"\b(?:suspicious|suggestive|typical|concerning|indicative|likely|probabl[ey]|represent\w*|in keeping with|is|are"
    r"|(?:consistent|compatible)\s+with)(?:\s+(?:for|of|to represent))?(?:\s+(?!with)\w+)?\s+$",
    re.I,
)
"""Between a mass and a metastasis: the mass is the metastasis."""
_HEALTHY_BEFORE: Final = re.compile(
    r"\b(?:normal|unremarkable|negative)[\s-]+(?:(?!and\b|or\b|in\b|of\b|for\b)\w+[\s-]+){0,2}$", re.I
)
_HEALTHY_AFTER: Final = re.compile(
    r"(?:\W*|.*?\b(?:is|are|was|were|appears?|remains?)\s+)(?:all\s+|both\s+)?"
    r"(?:not\s+(?:\w+ly\s+)?(?:enlarged|involved|suspicious|abnormal)"
    r"|normal|unremarkable|negative|free of|within normal)\b"
    r"|.*\bno\s+(?:\w+\s+)?(?:enlarge|involve|abnormal|patholog|metasta|tumou?r|malignan)"
)
_WITHOUT_ENLARGEMENT: Final = re.compile(
    r"[^,;]*\b(?:without|with no)\s+(?:\w+\s+){0,2}(?:enlargement|involvement|abnormalit\w+|metasta\w+)", re.I
)
INVADES: Final = re.compile(r"(?<!without )\b(?:invad\w+|infiltrat\w+|grow(?:s|ing)? into)\b", re.I)
PUSHES: Final = re.compile(r"\b(?:displac\w+|push\w*|compress\w*)\b", re.I)
SITE_WORDS: Final = {
    "liver": r"liver|hepatic", "lung": r"lungs?|pulmonary", "bone": r"bones?|osseous|skelet\w+",
    "peritoneum": r"peritone\w+|omental", "brain": r"brain|cerebral", "adrenal": r"adrenal\w*",
}  # fmt: skip
_NUMBERS: Final = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def sites_in(text: str) -> set[str]:
    """Sites of metastases that a text names and doesn't deny."""
    return {
        site
        for site, words in SITE_WORDS.items()
        if any(claimed(re.compile(rf"\b(?:{words})\b", re.I), text))
    }


def claims_nodes(clause: str) -> bool:
    """Does a clause see lymph nodes that are enlarged or involved?"""
    return any(not _healthy(clause, each) for each in claimed(NODES, clause))


def _healthy(clause: str, node: re.Match[str]) -> bool:
    if _HEALTHY_BEFORE.search(clause[: node.start()]) or _HEALTHY_AFTER.match(said_after(clause, node)):
        return True
    enlarged = re.search(r"\benlarged\b", clause[: node.start()], re.I)
    return not enlarged and _WITHOUT_ENLARGEMENT.match(clause[node.end() :]) is not None


def claims_spread(clause: str) -> bool:
    """Does a clause see metastases?"""
    return any(claimed(SPREAD, clause))


def numbers_in(text: str) -> set[int]:
    """Whole numbers that stand in a text, as digits or words."""
    found = {int(each) for each in re.findall(r"(?<![\w.])\d{1,3}(?![\w.])", text)}
    words = re.findall(r"[a-z]+", text.lower())
    return found | {index for index, word in enumerate(_NUMBERS) if word in words and index}


def same(text: str) -> str:
    return " ".join(text.split()).lower()


def check_extraction(found: Extraction, case: Case) -> list[Fault]:
    """All that is wrong with an extraction, as far as the reports' words tell."""
    faults = list(_radiology(found.features, case.radiology))
    if case.pathology is None:
        if found.pathology is not None:
            faults.append(Fault(kind="invented_pathology", message="there is no pathology report; give null"))
    elif found.pathology is None:
        faults.append(Fault(kind="lost_pathology", message="the pathology report is left out; extract it"))
    else:
        faults += _pathology(found.pathology, case.pathology)
    return faults


def _quoted(name: str, quote: str, report: str) -> Iterator[Fault]:
    if same(quote) not in same(report):
        yield Fault(
            kind="unquoted", message=f"{name}: the quote {quote[:80]!r} does not stand in the report; copy it"
        )


def _radiology(found: Features, report: str) -> Iterator[Fault]:
    yield from _quoted("conclusion", found.conclusion, report)
    if found.lesion:
        yield from _quoted("lesion", found.lesion.quote, report)
        yield from _lesion(found.lesion)
    else:
        seen = [c for c in CLAUSE.split(report) if claims_mass(c)]
        if seen:
            yield Fault(kind="lost_lesion", message=f"the report sees a tumor ({seen[0][:80]!r}); extract it")
    yield from _neighbors(found, report)
    yield from _nodes(found.nodes, report)
    yield from _spread(found.spread, report, found.lesion.organ if found.lesion else None)
    for benign in found.benign:
        yield from _quoted("benign", benign.quote, report)
        if benign.organ not in {*mentioned_organs(benign.quote), *_implied(benign.quote)}:
            yield Fault(kind="wrong_organ", message=f"{benign.quote[:80]!r} does not name the {benign.organ}")
        if (
            benign.finding.lower().split()[-1] not in benign.quote.lower()
            and "inflammation" not in benign.quote.lower()
        ):
            yield Fault(
                kind="invented_benign", message=f"{benign.quote[:80]!r} does not speak of {benign.finding}"
            )
    age = found.clinical.age
    if age is not None and str(age) not in re.findall(r"\d+", report):
        yield Fault(kind="invented_clinical", message=f"age {age} does not stand in the report")
    sexes = {"female": r"\b(?:female|woman|f)\b", "male": r"\b(?:male|man|m)\b"}
    if found.clinical.sex and not re.search(sexes[found.clinical.sex], report, re.I):
        yield Fault(
            kind="invented_clinical", message=f"sex {found.clinical.sex} does not stand in the report"
        )


def _implied(quote: str) -> set[str]:
    return {"pancreas"} if re.search(r"pancreat", quote, re.I) else set()


def claims_mass(clause: str) -> bool:
    """Does a clause see a tumor, which is neither a metastasis nor benign?"""
    if any(claimed(_HARMLESS, clause)):
        return False
    return any(not _of_metastasis(clause, each) for each in claimed(MASS, clause))


def _of_metastasis(clause: str, mass: re.Match[str]) -> bool:
    """A mass word after a metastasis in its stretch ("metastatic lesions"), or said to be one."""
    after = SPREAD.search(clause, mass.end())
    if after and _TAKEN_FOR.search(clause[mass.end() : after.start()]):
        return True
    return SPREAD.search(stretch(clause, mass).partition(mass[0])[0]) is not None


def _lesion(lesion: Lesion) -> Iterator[Fault]:
    mentions = match_organs(lesion.quote)
    if lesion.organ not in {each.organ for each in mentions}:
        yield Fault(
            kind="wrong_organ", message=f"the quote does not name the {lesion.organ}: {lesion.quote[:80]!r}"
        )
    elif not any(claims_mass(clause) for clause in CLAUSE.split(lesion.quote)):
        yield Fault(kind="invented_lesion", message=f"the quote sees no tumor: {lesion.quote[:80]!r}")
    stated = {each.substructure for each in mentions if each.organ == lesion.organ and each.substructure}
    if lesion.location is not None and lesion.location not in parts_of(lesion.organ):
        names = ", ".join(parts_of(lesion.organ)) or "null"
        yield Fault(
            kind="wrong_location", message=f"{lesion.location!r} is no standard part; write one of {names}"
        )
    elif lesion.location is not None and lesion.location not in stated:
        yield Fault(
            kind="wrong_side" if _only_side(lesion.location, stated) else "wrong_location",
            message=f"the quote does not name the {lesion.location}: {lesion.quote[:80]!r}",
        )
    elif lesion.location is None and len(stated) == 1:
        yield Fault(kind="lost_location", message=f"the quote names the {stated.pop()}; give it as location")
    terms = {(each.attribute, each.value) for each in read_terms(lesion.quote) if not each.denied}
    for attribute in ("shape", "margin", "density", "count"):
        value = getattr(lesion, attribute)
        written = {term for name, term in terms if name == attribute}
        if value is not None and value not in written:
            yield Fault(
                kind=f"wrong_{attribute}", message=f"the quote does not say {value}: {lesion.quote[:80]!r}"
            )
        elif value is None and len(written) == 1:
            yield Fault(
                kind=f"lost_{attribute}", message=f"the quote says {written.pop()}; give it as {attribute}"
            )
    sizes = read_sizes(lesion.quote)
    if lesion.size_mm is not None and not any(abs(lesion.size_mm - each) < 0.51 for each in sizes):
        yield Fault(
            kind="wrong_size", message=f"the quote does not say {lesion.size_mm} mm: {lesion.quote[:80]!r}"
        )
    elif lesion.size_mm is None and sizes:
        yield Fault(kind="lost_size", message=f"the quote says {max(sizes)} mm; give it as size_mm")


def _only_side(location: str, stated: set[str]) -> bool:
    swapped = location.replace("left", "\0").replace("right", "left").replace("\0", "right")
    return swapped != location and swapped in stated


def _neighbors(found: Features, report: str) -> Iterator[Fault]:
    quote = found.neighbors.quote
    if quote:
        yield from _quoted("neighbors", quote, report)
    clauses = CLAUSE.split(report)
    invaded = {organ for clause in clauses for organ in _invaded_in(clause)}
    pushed = {o for c in clauses if any(claimed(PUSHES, c)) for o in mentioned_organs(c)}
    own = {found.lesion.organ} if found.lesion else set()
    for kind, said, stated in (
        ("invasion", set(found.neighbors.invaded), invaded - own),
        ("displacement", set(found.neighbors.displaced), pushed - own),
    ):
        if said - stated:
            yield Fault(
                kind=f"invented_{kind}",
                message=f"the report has no {kind} of {', '.join(sorted(said - stated))}",
            )
        if stated - said:
            yield Fault(
                kind=f"lost_{kind}", message=f"the report has {kind} of {', '.join(sorted(stated - said))}"
            )


def _invaded_in(clause: str) -> list[str]:
    verb = next(claimed(INVADES, clause), None)
    return mentioned_organs(clause[verb.end() :]) if verb else []


def _nodes(nodes: Nodes, report: str) -> Iterator[Fault]:
    clauses = [c for c in CLAUSE.split(report) if NODES.search(c)]
    if nodes.quote:
        yield from _quoted("nodes", nodes.quote, report)
    present = [c for c in clauses if claims_nodes(c)]
    status = "present" if present else "none" if clauses else "not stated"
    if nodes.status != status:
        yield Fault(
            kind="wrong_nodes", message=f"of lymph nodes the report says {status!r}, not {nodes.status!r}"
        )
    if nodes.number and nodes.number not in {n for c in present for n in numbers_in(c)}:
        yield Fault(kind="wrong_nodes", message=f"{nodes.number} lymph nodes do not stand in the report")
    if status == "present" and nodes.number is None and len({n for c in present for n in numbers_in(c)}) == 1:
        yield Fault(kind="lost_nodes", message="the report counts lymph nodes; give their number")


def _spread(spread: Spread, report: str, own: str | None) -> Iterator[Fault]:
    clauses = [c for c in CLAUSE.split(report) if SPREAD.search(c)]
    if spread.quote:
        yield from _quoted("spread", spread.quote, report)
    present = [c for c in clauses if claims_spread(c)]
    status = "present" if present else "none" if clauses else "not stated"
    if spread.status != status:
        yield Fault(
            kind="wrong_metastasis",
            message=f"of metastases the report says {status!r}, not {spread.status!r}",
        )
    stated = {site for c in present for site in sites_in(c)}
    if set(spread.sites) - stated - {"distant"}:
        more = ", ".join(sorted(set(spread.sites) - stated))
        yield Fault(kind="wrong_metastasis", message=f"the report has no metastases of {more}")
    near = {site for c in present for each in claimed(SPREAD, c) for site in sites_in(stretch(c, each))}
    if lost := near - {own} - set(spread.sites):
        yield Fault(kind="lost_metastasis", message=f"the report has metastases of {', '.join(sorted(lost))}")
    if spread.number and spread.number not in {n for c in present for n in numbers_in(c)}:
        yield Fault(kind="wrong_metastasis", message=f"{spread.number} metastases do not stand in the report")


def _pathology(found: Pathology, report: str) -> Iterator[Fault]:
    yield from _quoted("pathology", found.conclusion, report)
    stated = parse_tnm(report, found.organ)
    for axis in AXES:
        value, written = getattr(found, axis.lower()), getattr(stated, axis.lower())
        known = None if written.endswith("X") and not re.search(rf"{axis}X", report) else written
        if value != known:
            kind = (
                f"wrong_{axis.lower()}"
                if value and known
                else f"{'invented' if value else 'lost'}_{axis.lower()}"
            )
            yield Fault(
                kind=kind,
                message=f"the pathology report states {known or f'no {axis}'}, not {value or 'null'}",
            )
    if found.stage and not re.search(rf"\bstage\w*(?:\s+\w+)?\s+{re.escape(found.stage)}\b", report, re.I):
        yield Fault(kind="wrong_stage", message=f"the pathology report does not state stage {found.stage}")
    if found.organ is not None and found.organ not in {*mentioned_organs(report), *_by_disease(report)}:
        yield Fault(kind="wrong_organ", message=f"the pathology report does not name the {found.organ}")
    sizes = read_sizes(report)
    if found.size_mm is not None and not any(abs(found.size_mm - each) < 0.51 for each in sizes):
        yield Fault(kind="wrong_size", message=f"the pathology report does not say {found.size_mm} mm")
    if found.nodes and found.nodes not in {
        n for c in CLAUSE.split(report) if NODES.search(c) for n in numbers_in(c)
    }:
        yield Fault(kind="wrong_nodes", message=f"{found.nodes} nodes do not stand in the pathology report")
    claims = any(claims_mass(c) for c in CLAUSE.split(report))
    if found.malignant is not None and found.malignant != claims:
        yield Fault(
            kind="wrong_malignancy", message=f"malignant is {found.malignant}, unlike the pathology report"
        )


def _by_disease(report: str) -> set[str]:
    return {"liver"} if re.search(r"hepatocellular", report, re.I) else set()
