"""Faults that experts make, many more than forty: a right answer changed, another report, a reply that is none."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tests.training.engine.scripted import Ask, findings
from tests.training.engine.server import Said
from tumorchain_agent.training.phantom.patient import ORGANS, Truth
from tumorchain_agent.training.phantom.reports import pathology_report

Answer = dict[str, Any]
Change = Callable[[Answer, Truth], None]


@dataclass(frozen=True)
class Injected:
    """A fault: whose, what it does to a right answer or reply, and whose cases it can befall."""

    name: str
    expert: str
    change: Change | None = None
    reply: Callable[[str], Said] | None = None
    fits: Callable[[Truth], bool] = lambda truth: truth.organ is not None

    def into(self, said: Said, truth: Truth) -> Said:
        if self.reply is not None:
            return self.reply(said.text)
        answer = copy.deepcopy(json.loads(said.text))
        assert self.change is not None
        self.change(answer, truth)
        return Said(json.dumps(answer))


def other(truth: Truth) -> str:
    """An organ that the tumor is not in, and that no report speaks of otherwise."""
    named = {each.split(":")[0] for each in truth.mimics} | {str(truth.organ), *truth.sites}
    return next(
        organ for organ in ("esophagus", "stomach", "colorectum", "pancreas", "liver") if organ not in named
    )


def put(*way: str | int, value: Any) -> Change:
    """Set what lies at the end of a way; ``value`` may ask the truth."""

    def change(answer: Answer, truth: Truth) -> None:
        here: Any = answer
        for step in way[:-1]:
            here = here[step]
        here[way[-1]] = value(truth) if callable(value) else value

    return change


def swap(value: str, *others: str) -> str:
    return next(each for each in others if each != value)


def word(pattern: Callable[[Truth], str], becomes: Callable[[Truth], str]) -> Change:
    """Replace words in the steps of a chain."""

    def change(answer: Answer, truth: Truth) -> None:
        old, new = pattern(truth), becomes(truth)
        for step in answer["steps"]:
            step["text"] = step["text"].replace(old, new).replace(old.capitalize(), new.capitalize())

    return change


def say(text: Callable[[Truth], str], kind: str = "finding") -> Change:
    """One more step in a chain."""

    def change(answer: Answer, truth: Truth) -> None:
        place = next(i for i, step in enumerate(answer["steps"]) if step["kind"] == kind)
        answer["steps"].insert(place + 1, {"kind": kind, "text": text(truth)})

    return change


def pairs(subtask: str, edit: Callable[[Answer, Truth], None], form: str | None = None) -> Change:
    """Change the summarizer's pairs of a subtask."""

    def change(answer: Answer, truth: Truth) -> None:
        for pair in answer["pairs"]:
            if pair["subtask"] == subtask and form in (None, pair["form"]):
                edit(pair, truth)

    return change


def shape(truth: Truth) -> str:
    return swap(str(truth.shape), "round", "irregular")


def margin(truth: Truth) -> str:
    return swap(str(truth.boundary), "well-defined", "ill-defined")


def density(truth: Truth) -> str:
    return swap(str(truth.density), "hypodense", "hyperdense")


def measured(truth: Truth) -> bool:
    return truth.organ in ("liver", "pancreas")


def other_t(truth: Truth) -> str:
    """A T category that the size rules out."""
    if truth.organ == "liver":
        return "T1a" if truth.size_mm > 21 or truth.count > 1 else "T3"
    return "T1a" if truth.size_mm > 10 else "T3"


def in_liver(truth: Truth) -> bool:
    return truth.organ == "liver" and "lobe" in str(truth.substructure)


def other_lobe(truth: Truth) -> str:
    return swap(str(truth.substructure), "left lobe", "right lobe")


def drop(*way: str) -> Change:
    def change(answer: Answer, _truth: Truth) -> None:
        here = answer
        for step in way[:-1]:
            here = here[step]
        del here[way[-1]]

    return change


def invent_lesion(answer: Answer, truth: Truth) -> None:
    quote = answer["features"]["conclusion"]
    answer["features"]["lesion"] = {"organ": "liver", "size_mm": 30, "quote": quote}
    answer["pathology"] |= {"malignant": True, "organ": "liver"}


def forget_step(answer: Answer, _truth: Truth) -> None:
    del answer["steps"][0]


def reverse(answer: Answer, _truth: Truth) -> None:
    answer["steps"].reverse()


def uncited(answer: Answer, _truth: Truth) -> None:
    for step in answer["steps"]:
        step["triples"] = []


def _extractor() -> Iterator[Injected]:
    lesion = ("features", "lesion")

    def of(name: str, change: Change, fits: Callable[[Truth], bool] | None = None) -> Injected:
        return Injected(
            f"extractor {name}", "extractor", change, fits=fits or (lambda t: t.organ is not None)
        )

    yield of("names another organ", put(*lesion, "organ", value=other))
    yield of("mixes up sides", put(*lesion, "location", value=other_lobe), in_liver)
    yield of("names another part", put(*lesion, "location", value="neck"), lambda t: t.organ == "pancreas")
    yield of("halves the size", put(*lesion, "size_mm", value=lambda t: t.size_mm / 2))
    yield of("changes the shape", put(*lesion, "shape", value=shape))
    yield of("changes the margin", put(*lesion, "margin", value=margin))
    yield of("changes the density", put(*lesion, "density", value=density))
    yield of(
        "changes the count", put(*lesion, "count", value=lambda t: "multiple" if t.count == 1 else "solitary")
    )
    yield of("leaves the tumor out", put(*lesion, value=None))
    yield of("leaves the shape out", put(*lesion, "shape", value=None))
    yield of("leaves the size out", put(*lesion, "size_mm", value=None))
    yield of("makes a tumor up", invent_lesion, lambda t: t.organ is None)
    yield of("makes a quote up", put(*lesion, "quote", value="A 12 mm mass of the spleen."))
    yield of("denies nodes", put("features", "nodes", "status", value="none"), lambda t: t.nodes > 0)
    yield of(
        "miscounts nodes",
        put("features", "nodes", "number", value=lambda t: t.nodes + 7),
        lambda t: t.nodes > 0,
    )
    yield of(
        "makes nodes up",
        put("features", "nodes", "status", value="present"),
        lambda t: bool(t.organ) and not t.nodes,
    )
    yield of(
        "denies metastases", put("features", "spread", value={"status": "none"}), lambda t: bool(t.sites)
    )
    yield of("moves metastases", put("features", "spread", "sites", value=["brain"]), lambda t: bool(t.sites))
    yield of("makes an invasion up", put("features", "neighbors", "invaded", value=["urinary_bladder"]))
    yield of(
        "leaves an invasion out", put("features", "neighbors", "invaded", value=[]), lambda t: bool(t.invaded)
    )
    yield of("changes T", put("pathology", "t", value=lambda t: "T1" if t.t != "T1" else "T2"))
    yield of("changes N", put("pathology", "n", value=lambda t: "N1" if t.n == "N0" else "N0"))
    yield of("changes M", put("pathology", "m", value=lambda t: "M1" if t.m == "M0" else "M0"))
    yield of("changes the stage", put("pathology", "stage", value="0"))
    yield of("leaves pathology out", put("pathology", value=None))
    yield of("makes an age up", put("features", "clinical", "age", value=61))
    yield of("takes cancer for none", put("pathology", "malignant", value=False))
    yield of("uses a word of its own", put(*lesion, "shape", value="blobby"))
    yield of("names no organ", put(*lesion, "organ", value="tummy"))
    yield of("adds a field", put("features", "prognosis", value="poor"))
    yield of("leaves a field out", drop("features", "nodes"))


def _reasoner() -> Iterator[Injected]:
    def of(name: str, change: Change, fits: Callable[[Truth], bool] | None = None) -> Injected:
        return Injected(f"reasoner {name}", "reasoner", change, fits=fits or (lambda t: t.organ is not None))

    yield of("concludes on another organ", put("organ", value=other))
    yield of("speaks of another organ", say(lambda t: f"A mass of the {other(t)} is seen."))
    yield of("mixes up sides", word(lambda t: str(t.substructure), other_lobe), in_liver)
    yield of("contradicts the size by T", put("t", value=other_t), measured)
    yield of(
        "contradicts the nodes by N",
        put("n", value=lambda t: "N0" if t.nodes else "N1"),
        lambda t: t.organ == "liver",
    )
    yield of(
        "contradicts the sites by M",
        put("m", value=lambda t: "M0" if t.sites else "M1"),
        lambda t: t.organ != "colorectum" and t.organ is not None,
    )
    yield of("invents a category", put("t", value="T9"))
    yield of(
        "stages a depth that CT can't see",
        put("t", value="T2"),
        lambda t: t.organ in ORGANS[2:] and not t.invaded,
    )
    yield of("contradicts the shape", word(lambda t: str(t.shape), shape))
    yield of("adds a contrary density", say(lambda t: f"It is {density(t)}."))
    yield of("negates the margin", word(lambda t: str(t.boundary), lambda t: f"not {t.boundary}"))
    yield of(
        "contradicts the size", word(lambda t: f"{t.size_mm:.0f} mm", lambda t: f"{t.size_mm + 9:.0f} mm")
    )
    yield of("denies nodes", say(lambda t: "Lymph nodes are not enlarged."), lambda t: t.nodes > 0)
    yield of(
        "makes nodes up",
        say(lambda t: "Enlarged lymph nodes are seen."),
        lambda t: bool(t.organ) and not t.nodes,
    )
    yield of("denies metastases", say(lambda t: "There are no metastases."), lambda t: bool(t.sites))
    yield of(
        "makes metastases up", say(lambda t: "Metastases of the brain are seen."), lambda t: bool(t.organ)
    )
    yield of("denies the tumor", say(lambda t: "There is no malignant tumor.", "impression"))
    yield of("calls it benign", put("malignant", value=False))
    yield of(
        "makes a tumor up",
        say(lambda t: "A malignant mass of the stomach is seen."),
        lambda t: t.organ is None,
    )
    yield of("makes an invasion up", say(lambda t: "It invades the urinary bladder."))
    yield of("cites what it wasn't shown", put("steps", 0, "triples", value=["liver-00000000"]))
    yield of("cites nothing", uncited)
    yield of("leaves the mass out", forget_step)
    yield of("turns the chain around", reverse)
    yield of("repeats a step", say(lambda t: findings(t)[0]))
    yield of(
        "states another N in its text",
        say(lambda t: f"This is {'N3' if t.n != 'N3' else 'N1'}.", "impression"),
    )


def _others() -> Iterator[Injected]:
    def of(name: str, change: Change, fits: Callable[[Truth], bool] | None = None) -> Injected:
        return Injected(
            f"summarizer {name}", "summarizer", change, fits=fits or (lambda t: t.organ is not None)
        )

    def two(pair: Answer, truth: Truth) -> None:
        pair["options"] = [pair["answer"], f"{pair['answer']} "[:-1] + " tumor", "spiculated"]

    def wrong_t(pair: Answer, truth: Truth) -> None:
        pair["answer"] = "T0"

    yield Injected("calibrator objects", "calibrator", put("consistent", value=False), fits=lambda t: True)
    yield of("objects", put("consistent", value=False))
    yield of("answers another organ", pairs("organ", lambda p, t: p.update(answer=other(t))))
    yield of("answers another T", pairs("tumor", wrong_t))
    yield of(
        "answers yes for no",
        pairs(
            "tumor_position",
            lambda p, t: p.update(answer="no tumor" if p["answer"] != "no tumor" else "yes, a tumor"),
        ),
    )
    yield of("answers another shape", pairs("shape", lambda p, t: p.update(answer=shape(t))))
    yield of(
        "answers another size", pairs("others", lambda p, t: p.update(answer=f"{t.size_mm + 30:.0f} mm"))
    )
    yield of("offers two right options", pairs("boundary", two, "choice"))
    yield of(
        "doesn't offer the answer",
        pairs("shape", lambda p, t: p.update(options=[shape(t), "oval"]), "choice"),
    )
    yield of(
        "offers the same twice",
        pairs("shape", lambda p, t: p.update(options=[p["answer"], "oval", "Oval"]), "choice"),
    )
    yield of("gives no options", pairs("shape", lambda p, t: p.update(options=None), "choice"))
    yield of("leaves a pair out", lambda a, t: a.update(pairs=a["pairs"][1:]))
    yield of("adds a pair", lambda a, t: a["pairs"].append(dict(a["pairs"][0])))
    yield of(
        "tells the answer in the question",
        pairs("shape", lambda p, t: p.update(question=f"Why is it {t.shape}?")),
    )
    yield of(
        "asks about another organ",
        pairs("tumor_position", lambda p, t: p.update(question="Is there a tumor in the spleen?")),
    )
    yield of(
        "contradicts the features",
        pairs("density", lambda p, t: p.update(reasoning=f"The mass is {density(t)}.")),
    )
    yield of(
        "contradicts pathology",
        pairs(
            "node",
            lambda p, t: p.update(
                reasoning=p["reasoning"] + " So N9.".replace("N9", "N3" if t.n != "N3" else "N0")
            ),
        ),
    )
    yield of(
        "leaves its task", pairs("shape", lambda p, t: p.update(reasoning=f"{p['reasoning']} It is {t.t}."))
    )
    yield of(
        "doesn't reach its answer",
        pairs("shape", lambda p, t: p.update(reasoning="Looked at the whole scan.")),
    )
    yield of(
        "writes a report without headings", pairs("report", lambda p, t: p.update(reasoning=findings(t)[0]))
    )


REPLIES: dict[str, Callable[[str], Said]] = {
    "no JSON": lambda text: Said(text.replace('":', '"', 1)),
    "a list": lambda text: Said("[1, 2]"),
    "a refusal": lambda text: Said("I'm sorry, but I can't help with medical questions."),
    "a filtered reply": lambda text: Said("", finish="content_filter"),
    "a truncated reply": lambda text: Said(text[: len(text) // 2], finish="length"),
    "an empty reply": lambda text: Said(" "),
}


def catalogue() -> list[Injected]:
    """All faults of experts."""
    found = [*_extractor(), *_reasoner(), *_others()]
    for expert in ("extractor", "reasoner", "calibrator", "summarizer"):
        found += [
            Injected(f"{expert}: {name}", expert, None, reply, lambda t: True)
            for name, reply in REPLIES.items()
        ]
    return found


def disagreeing() -> dict[str, Callable[[Truth], str | None]]:
    """Pathology reports that can't be of the same patient as a truth's CT report, where there is one."""

    def changed(truth: Truth, **more: Any) -> str:
        return pathology_report(replace(truth, **more))

    def t_for(truth: Truth) -> str | None:
        return changed(truth, t=other_t(truth)) if measured(truth) else None

    def stage(truth: Truth) -> str | None:
        text, _, rest = pathology_report(truth).rpartition("tage")
        return f"{text}tage 0." if truth.organ and rest else None

    def organ(truth: Truth) -> str | None:
        another = "liver" if truth.organ != "liver" else "pancreas"
        return changed(truth, organ=another, t="T2", n="N1", m="M1", nodes=1) if truth.organ else None

    def size(truth: Truth) -> str | None:
        return changed(truth, size_mm=truth.size_mm * 3) if truth.organ in ORGANS[2:] else None

    def nodes(truth: Truth) -> str | None:
        return changed(truth, n="N1" if truth.n == "N0" else "N0") if measured(truth) else None

    def sites(truth: Truth) -> str | None:
        fits = truth.organ not in (None, "colorectum")
        return changed(truth, m="M1" if truth.m == "M0" else "M0") if fits else None

    def cancer(truth: Truth) -> str | None:
        return (
            None if truth.organ else "Adenocarcinoma of the stomach, 31 mm. Pathology: cT3 N0 M0. Stage IIB."
        )

    return {
        "another organ": organ,
        "another size": size,
        "T against the size": t_for,
        "N against the nodes": nodes,
        "M against the sites": sites,
        "no cancer": lambda truth: changed(truth, organ=None) if truth.organ else None,
        "cancer of the healthy": cancer,
        "a stage of another TNM": stage,
    }


class Tampering:
    """Puts each case's fault into its expert's answers: always, or only the first time."""

    def __init__(self, faults: dict[str, Injected], truths: dict[str, Truth], *, once: bool) -> None:
        self.faults, self.truths, self.once = faults, truths, once

    def __call__(self, ask: Ask, said: Said) -> Said:
        fault = self.faults.get(ask.case)
        if fault is None or fault.expert != ask.expert or (self.once and ask.again):
            return said
        return fault.into(said, self.truths[ask.case])
