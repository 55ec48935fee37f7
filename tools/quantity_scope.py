"""What a question says beyond what is measured: negations, and things and properties that no rule computes.

Questions are in lower case, as ``plain`` makes them.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from tumorchain_agent.tools.organs import Mention

Scope = Literal["any", "all", "one", "largest", "total", "count"]
"""Of several lesions or organs: which of them a yes or no is about."""

LESION: Final = (
    r"lesions?|tumou?rs?|mass(?:es)?|cysts?|nodules?|metasta\w+|malignan\w+|cancers?|pdac|pnet|neoplasms?"
)
_VERB: Final = r"(?:is|are|does|do|did|has|have|can|could|was|were)"
_YES_NO: Final = re.compile(rf"(?:^|[,:;.] ){_VERB}\b(?! you (?:tell|give|measure|estimate|say))|^any\b")
_WH: Final = re.compile(r"\b(?:what|which|where|how|why|when|who)\b")

_NO_NEGATION: Final = re.compile(
    r"\byes(?: or |/| / )no\b|\bor not\b|\bnon-?contrast\b|\bwithout (?:iv |intravenous )?contrast(?: \w+)?\b"
)
_NEGATION: Final = re.compile(
    r"\bfree (?:of|from)\b|\bdevoid of\b|\b(?:no|not|without|lacks?|lacking|absent|absence of|neither|nor|never|none|"
    r"negative|exclud\w+|except|minus|rule\w* out|unaffected|spared?)\b"
)
_SURE: Final = re.compile(r"free (?:of|from)|devoid of|no|not|without|lacks?|lacking|absent|absence of")

_VESSEL: Final = re.compile(r"vein|arter|vena|aorta|trunk|atri")
_FOREIGN: Final = re.compile(
    r"\bnodes?\b|\bnodal\b|lymph|\bducts?\b|\bductal (?!adenocarc)|\bvessels?\b|\barter\w+|\bvein\w*|\bvenous\b|"
    r"\bwalls?\b|thick|\blumen|capsul|cortex|cortical|medulla\b|\bpelvi\w+|ureter|\bhil(?:um|ar)\b|calyx|calyces|"
    r"\bsinus\b|\bneck\b|\bfundus\b|\bfossa\b|stones?\b|calcul(?:us|i)\b|lithiasis|fluid|ascites|effusion|\bgas\b|"
    r"\bfat\b|stranding|hydroneph|nephritis|colitis|hepatitis|cirrho|\bhcc\b|hepatocellular|hepatoma|\bperi\w+|"
    r"edema|inflam|thromb|hernia|fractur|\bstent|cathet|implant"
)
"""Things beside or within an organ, which aren't the organ."""
_CHARACTER: Final = re.compile(
    r"benign|malignan|cancerous|resectab|operab|invad|invasi|infiltrat|encas|involv|extend|extension|compress|obstruct|"
    r"\bprimary\b|\bsecondary\b|\bstag(?:e|ed|es|ing)\b|\btnm\b|necro|calcifi|hemorrh|haemorrh|bleed|ruptur|"
    r"\bmargins?\b|\bborders?\b|\bboundar|\bshaped?\b|contour|lobul|irregular|smooth|defined|homogen|heterogen|sept|"
    r"suspicious|typical|\bnormal\b|expected|reference|healthy|usual|\bupper limit|second|third|\b2nd\b|\b3rd\b|"
    r"smallest (?:\w+ )?(?:lesion|tumou?r|cyst|mass|nodule|metast)|\bnew\b|dilat|prominent|palpable|includ(?:e|ing)\b"
)
"""Properties that no measurement of size, HU or place tells."""
_COURSE: Final = re.compile(
    r"\bwhy\b|\bcaus|treat|therap|prognos|surviv|\brisk|symptom|biops|previous|\bprior\b|baseline|history|recurr|"
    r"progress|\bgr[eo]w|chang(?:e|ed|ing)\b|\bincreas|\bdecreas|interval|diagnos|differential|\bresponse\b|likelihood"
)
"""Causes, time and care."""
_ADJECTIVE: Final = re.compile(
    r"enhanc|hypo|hyper|\biso|\bsolid|cystic|how many (?:\w+ )?(?:organs?|segments?|slices?|kidneys?)"
)
_STATISTIC: Final = re.compile(
    r"\bmin(?:imum|imal)?\b|median|deviation|\bsd\b|varian|percentile|\bshort|\bwidth|height|perpendicular|"
    r"circumference|surface|\bareas?\b|perimeter"
)
_PEAK: Final = re.compile(r"\bmax(?:imum|imal)?\b|highest|lowest|\bpeak\b|range of")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SAID: Final = _words(
    """a an the this that these those any some it its there here is are was were be been being am do does did has have
    having had can could may of in on at within inside into from with by for to and or as per such like via versus
    using based given considering according you we i one see seen show shows shown showing reveal reveals revealed
    demonstrate demonstrates display exhibit harbor harbour contain contains containing present presence exist exists
    existing visible visualized identifiable identified identify detected detect detectable evidence evident find found
    observe observed noted note appear appears apparent discernible discerned noticeable suggest suggests indicate
    indicates suffer patient patients individual person subject case ct scan scans image images imaging tomography
    abdominal abdomen volume volumes 3d study exam examination left right both either each every all organ organs
    region side area parenchyma tissue sign signs focal located lie lies lying situated whether if determine tell
    please answer yes considered abnormal abnormally pancreatic neuroendocrine ductal adenocarcinoma
    kidney renal hepatic"""
)
SIZES: Final = _words(
    """size sizes sized diameter diameters mean average hu hounsfield unit units attenuation density value values
    measure measures measured measuring measurement number count total combined together sum largest biggest dominant
    main dimension dimensions longest maximum maximal max ratio burden percentage percent fraction occupy occupied
    occupies
    estimated overall greatest ct numbers l s p across cm3 cm mm ml cc than threshold limit cutoff"""
)
ENLARGED: Final = _words(
    """enlarged enlargement enlarge hepatomegaly splenomegaly hepatosplenomegaly nephromegaly renomegaly pancreatomegaly
    megaly atrophic atrophy atrophied shrunken small normal or"""
)
COMPARED: Final = _words(
    """larger bigger smaller greater higher lower more less denser dense darker brighter than compared"""
)
_NOUNS: Final = {
    "lesion": r"lesions?|mass(?:es)?|nodules?", "tumor": r"tumou?rs?|neoplasms?", "cyst": r"cysts?", "pdac": "pdac",
    "metastasis": r"metasta\w+", "pnet": "pnet", "cancer": r"cancers?|malignan\w+",
}  # fmt: skip
_TOKEN: Final = re.compile(r"[^\W_]+")


def plain(text: str) -> str:
    """Lower case, single spaces, superscripts and units' exponents as digits, ``n't`` as ``not``."""
    text = " ".join(text.lower().translate(str.maketrans("³²−’", "32-'")).split())
    return re.sub(r"n't\b", " not", re.sub(r"\b([cm]m)\s*\^\s*3", r"\g<1>3", text))


def is_yes_no(text: str) -> bool:
    """Starts as a question for yes or no, and asks nothing else besides."""
    return bool(_YES_NO.search(text)) and not _WH.search(text)


def negations(text: str) -> tuple[int, bool]:
    """How many words negate, and whether a yes or no is surely inverted by them (of none: that it isn't)."""
    found = [match[0] for match in _NEGATION.finditer(_NO_NEGATION.sub(" ", text))]
    asked_not = re.match(rf"{_VERB} not\b", text)
    return len(found), len(found) < 2 and not asked_not and all(_SURE.fullmatch(each) for each in found)


def names_other(question: str, mentions: list[Mention]) -> bool:
    """Names a thing beside or within an organ, e.g. its duct; an organ that is a vessel is none of these."""
    known = [each for each in mentions if _VESSEL.search(each.organ) or each.substructure]
    return bool(_FOREIGN.search(without_organs(question, known)))


def asks_more(kind: str, text: str) -> bool:
    """Asks for a property, a cause, or a statistic that the measurement of this kind doesn't tell."""
    lesions = kind in (
        "lesion_volume",
        "lesion_hu",
        "lesion_diameter",
        "lesion_slice",
        "lesion_count",
        "lesion_location",
    )
    peaks = kind in ("hu", "lesion_hu", "hu_ratio", "compare_hu", "hu_difference")
    if kind in ("lesion_attenuation", "hu_difference"):
        text = re.sub(r"\b(?:normal|healthy)\b", " ", text)
    return bool(
        _CHARACTER.search(text)
        or _COURSE.search(text)
        or (lesions and _ADJECTIVE.search(text))
        or (kind not in ("segment_compare", "lesion_slice") and _STATISTIC.search(text))
        or (peaks and _PEAK.search(re.sub(r"\b(?:which|what) .*(?:highest|lowest)", " ", text)))
        or (kind == "lesion_diameter" and re.search(r"\b(?:mean|average)\b", text))
    )


def about_cause_or_time(text: str) -> bool:
    """A condition's cause, course or care instead of whether it is there."""
    return bool(_COURSE.search(text))


def without_organs(question: str, mentions: list[Mention]) -> str:
    """The question in lower case without the organs' names, and so without the numbers in those."""
    for start, end in sorted({(each.start, each.end) for each in mentions}, reverse=True):
        question = f"{question[:start]} {question[end:]}"
    return plain(question)


def says_only(text: str, more: frozenset[str] = frozenset()) -> bool:
    """Every word of a yes/no question without its organs is one that a rule takes into account, or says nothing."""
    text = _NEGATION.sub(" ", _NO_NEGATION.sub(" ", text))
    text = re.sub(rf"\b(?:{LESION})\b|'s\b|how many|what is the number of", " ", text)
    return all(token in _SAID or token in more for token in _TOKEN.findall(text))


def one_kind(text: str) -> bool:
    """Asks for one kind of lesion, not whether a lesion is of a kind; and not for cancer, which no mask tells."""
    text = re.sub(r"(?:pancreatic )?neuroendocrine tumou?rs?", "pnet", text)
    text = re.sub(r"cystic lesion", "cyst", re.sub(r"metastatic (?:lesion|tumou?r)", "metastasis", text))
    kinds = {name for name, pattern in _NOUNS.items() if re.search(rf"\b(?:{pattern})\b", text)}
    either = re.search(r"\b(?:or|such as)\b|/", text) and kinds <= {"lesion", "tumor", "cyst"}
    return "cancer" not in kinds and (len(kinds) == 1 or bool(either))


def scope_of(text: str) -> Scope:
    """Which of several lesions or organs are meant; ``one`` where the question speaks of one as known."""
    for scope, pattern in _SCOPES:
        if re.search(pattern, text):
            return scope
    return "any"


_SCOPES: Final[tuple[tuple[Scope, str], ...]] = (
    ("count", r"how many|number of"),
    ("largest", r"largest|biggest|dominant|main lesion"),
    ("total", r"\b(?:total|combined|together|sum)\b"),
    ("all", r"\b(?:all|every|each|both)\b"),
    (
        "any",
        rf"\b(?:any|either|there|contains?|have|has|show|shows)\b|(?:is|are) (?:an?|any) (?:\w+ )*(?:{LESION})",
    ),
    ("one", r"^(?:is|are|does|do|was|were) (?:the|this|that|these|those|its|it)\b|\b(?:the|this) "),
)
