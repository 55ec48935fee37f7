"""How facts are put into words: a canonical word for each, which answers keep to, and others that mean the same.

Without a generator every function gives the canonical wording. With one it draws, the canonical half the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from tumorchain_agent.tools.organs import MERGE, ORGANS, display_name
from tumorchain_agent.training.phantom.patient import Truth

Rng = np.random.Generator | None

SAME: Final[dict[str, tuple[str, ...]]] = {
    "round": ("rounded",),
    "lobulated": ("lobular",),
    "irregular": ("irregularly shaped",),
    "well-defined": ("sharply marginated", "well-circumscribed"),
    "ill-defined": ("poorly marginated", "blurred"),
    "hypodense": ("hypoattenuating", "low-density"),
    "hyperdense": ("hyperattenuating", "high-density"),
    "heterogeneous": ("mixed-density",),
    "solitary": ("single",),
    "multiple": ("several",),
    "under 2 cm": ("less than 2 cm", "under 20 mm"),
    "2 to 4 cm": ("between 2 and 4 cm", "20 to 40 mm"),
    "over 4 cm": ("more than 4 cm", "over 40 mm"),
    "colon": ("large bowel",),
    "esophagus": ("oesophagus",),
    "tumor": ("malignant tumor", "cancer"),
}
"""Canonical word → others for the same fact."""
_SECTION: Final[dict[str, tuple[str, ...]]] = {
    "liver": ("{part} of the liver",),
    "pancreas": ("pancreatic {part}", "{part} of the pancreas"),
    "stomach": ("gastric {part}", "{part} of the stomach"),
    "colorectum": ("{part}",),
    "esophagus": ("{part} esophagus", "{part} oesophagus"),
}
_MASS: Final = (
    "{count} {density} {shape} {boundary} {mass} of the {section}, {size}",
    "{count} {mass} of the {section}, {size}, {shape}, {boundary} and {density}",
    "in the {section} {count} {density} {mass}, {size}, {shape} and {boundary}",
    "{mass} of the {section}: {count}, {size}, {boundary}, {shape}, {density}",
)
_CLEAR: Final = ("no mass in {the}", "{The} without a mass", "no mass is seen in {the}")
_CLOSER: Final = (
    "{The} {need} a closer look.",
    "A closer look at {the} is needed.",
    "{The} should be examined more closely.",
)
_NODES: Final = (
    "Enlarged regional lymph nodes.",
    "Regional lymph nodes are enlarged.",
    "Regional lymphadenopathy.",
)
_NO_NODES: Final = (
    "No enlarged regional lymph nodes.",
    "Regional lymph nodes are not enlarged.",
    "No regional lymphadenopathy.",
)
_NO_SPREAD: Final = ("No metastases.", "No distant metastases.", "There are no distant metastases.")
_SPREAD: Final = {
    "liver": ("Liver metastases.", "Metastases in the liver.", "Hepatic metastases."),
    "lung": ("Distant metastases.", "There are distant metastases."),
    "peritoneum": ("Peritoneal metastases.", "Metastases of the peritoneum."),
}
"""The five organs are what a round examines; the lungs aren't, so their metastases are just distant ones."""
_PUSHES: Final = (
    "It pushes {the} aside without growing into {it}.",
    "{The} {is} displaced but not invaded.",
)
_INVADES: Final = ("It grows into {the}.", "It invades {the}.")
MIMICS: Final[dict[str, tuple[str, ...]]] = {
    "liver:cyst": ("a simple cyst of the liver", "a hepatic cyst"),
    "pancreas:cyst": ("a simple cyst of the pancreas", "a pancreatic cyst"),
    "pancreas:pseudocyst": ("a pseudocyst of the pancreas", "a pancreatic pseudocyst"),
    "pancreas:pancreatitis": ("pancreatitis", "inflammation of the pancreas"),
}
_BENIGN: Final = ("There is {what}, which is benign.", "Benign finding: {what}.")
_HEALTHY: Final = ("no tumor", "no malignancy", "no malignant tumor")
_NO_TNM: Final = ("TNM does not apply", "no TNM", "nothing to stage")
_TNM: Final = ("c{t} {n} {m}", "c{t}{n}{m}", "c{t}, {n}, {m}", "c{t} c{n} c{m}")


def pick(rng: Rng, options: Sequence[str]) -> str:
    """The first, canonical wording half the time, else any of the others."""
    if rng is None or len(options) == 1 or rng.random() < 0.5:
        return options[0]
    return options[1 + int(rng.integers(len(options) - 1))]


def word(rng: Rng, canonical: str) -> str:
    """A word that means the same."""
    return pick(rng, (canonical, *SAME.get(canonical, ())))


def spoken(organ: str, rng: Rng = None) -> str:
    """How a report names a Table 10 organ: ``colon`` for ``colorectum``."""
    return word(rng, "colon" if organ == "colorectum" else display_name(organ))


def structure(number: int, rng: Rng = None) -> str:
    """The same for a TotalSegmentator id."""
    return spoken(ORGANS[int(MERGE[number])], rng)


def listing(names: Sequence[str]) -> str:
    """``the liver``, ``the liver and the colon``, ``the liver, the colon and the stomach``."""
    words = [f"the {name}" for name in names]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def section_phrase(truth: Truth, rng: Rng = None) -> str:
    """Where in its organ the tumour sits, e.g. ``pancreatic tail``."""
    return pick(rng, section_phrases(str(truth.organ), str(truth.substructure)))


def section_phrases(organ: str, part: str) -> list[str]:
    """All that a part of an organ is called, the canonical first."""
    return [words.format(part=part) for words in _SECTION[organ]]


def size_phrase(size_mm: float, rng: Rng = None) -> str:
    """Small, medium or large by the strata of the evaluation."""
    return word(rng, "under 2 cm" if size_mm < 20 else "2 to 4 cm" if size_mm <= 40 else "over 4 cm")


def count_word(truth: Truth, rng: Rng = None) -> str:
    return word(rng, "solitary" if truth.count == 1 else "multiple")


def mass(truth: Truth, size: str, rng: Rng = None) -> str:
    """What and where the tumour is, in one clause; ``size`` is put in as it stands."""
    facts = {key: word(rng, str(getattr(truth, key))) for key in ("density", "shape", "boundary")}
    return pick(rng, _MASS).format(
        count=count_word(truth, rng),
        mass="mass" if truth.count == 1 else "masses",
        section=section_phrase(truth, rng),
        size=size,
        **facts,
    )


def clear(organs: Sequence[str], rng: Rng = None) -> str:
    """That organs hold no mass."""
    the = listing([spoken(organ, rng) for organ in organs])
    return pick(rng, _CLEAR).format(the=the, The=the)


def look_closer(organs: Sequence[str], rng: Rng = None) -> str:
    """The text of a round that only decides where to look."""
    the = listing([spoken(organ, rng) for organ in organs])
    need = "needs" if len(organs) == 1 else "need"
    return pick(rng, _CLOSER).format(the=the, The=capital(the), need=need)


def nodes(enlarged: bool, rng: Rng = None) -> str:
    return pick(rng, _NODES if enlarged else _NO_NODES)


def spread(site: str, rng: Rng = None) -> str:
    return pick(rng, _SPREAD[site])


def no_spread(rng: Rng = None) -> str:
    return pick(rng, _NO_SPREAD)


def pushes(numbers: Sequence[int], rng: Rng = None) -> str:
    """That neighbours (TotalSegmentator ids) are pushed aside and healthy."""
    the = listing([structure(number, rng) for number in numbers])
    it, is_ = ("it", "is") if len(numbers) == 1 else ("them", "are")
    return pick(rng, _PUSHES).format_map({"the": the, "The": capital(the), "it": it, "is": is_})


def invades(numbers: Sequence[int], rng: Rng = None) -> str:
    return pick(rng, _INVADES).format(the=listing([structure(number, rng) for number in numbers]))


def benign(mimics: Sequence[str], rng: Rng = None) -> str:
    """That findings of ``Truth.mimics`` are harmless."""
    names = [pick(rng, MIMICS[each]) for each in mimics]
    what = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return pick(rng, _BENIGN).format(what=what)


def verdict(truth: Truth, rng: Rng = None) -> str:
    """The impression: a tumour and of what, or none."""
    if truth.organ is None:
        return pick(rng, _HEALTHY)
    return f"{word(rng, 'tumor')} of the {spoken(truth.organ, rng)}"


def tnm(truth: Truth, rng: Rng = None) -> str:
    """The categories in one of the ways that ``tools.tnm.parse_tnm`` reads, or that there are none."""
    if truth.organ is None:
        return pick(rng, _NO_TNM)
    return pick(rng, _TNM).format(t=truth.t, n=truth.n, m=truth.m)
