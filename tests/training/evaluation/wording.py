"""Questions about a made-up patient by subtype of DeepTumorVQA, in several wordings, with options and the truth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.training.evaluation.dataset import Patient

MEASUREMENT, VISUAL, MEDICAL = "measurement", "visual reasoning", "medical reasoning"


def questions_of(who: Patient, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Every subtype that masks answer."""
    for subtype, kind, texts, answer, options in _all(who):
        text = texts[int(rng.integers(len(texts)))]
        shown = _shuffled(rng, answer, options)
        yield {
            "image_id": who.name, "spacing": "[3.0 3.0 6.0]", "shape": str(who.hu.shape), "sex": "F", "age": None,
            "question": text, "answer": answer,
            "mc_question": f"{text} " + " ".join(f"{k}: {v}" for k, v in shown.items()),
            "correct_option": next(k for k, v in shown.items() if v == answer),
            "organ": "liver", "lesion": False, "question_type": kind, "question_subtype": subtype,
            "requires_tools": [],
        }  # fmt: skip


def _shuffled(rng: np.random.Generator, answer: str, options: tuple[str, ...]) -> dict[str, str]:
    if not options:
        value = float(answer)
        whole = "." not in answer
        step = max(1.0, abs(value) * 0.3) if whole else max(0.05, abs(value) * 0.3)
        others = [value + step, value - step, value + 2 * step]
        options = tuple(str(round(each)) if whole else f"{each:.2f}" for each in others)
    found = list(dict.fromkeys([answer, *options]))
    rng.shuffle(found)
    return dict(zip("ABCD", found, strict=False))


Row = tuple[str, str, tuple[str, ...], str, tuple[str, ...]]


def _all(who: Patient) -> Iterator[Row]:
    yield from _organs(who)
    yield from _thresholds(who)
    yield from _lesions(who)


def _organs(who: Patient) -> Iterator[Row]:
    for organ, (ml, hu) in who.stats.items():
        yield "organ volume measurement", MEASUREMENT, (
            f"What is the volume of the {organ} in cm³?", f"What is the {organ} volume (cm3)?",
            f"How large is the {organ}?", f"Estimate the total volume of the {organ}.",
        ), f"{ml:.2f}", ()  # fmt: skip
        yield "organ HU measurement", MEASUREMENT, (
            f"What is the mean HU of the {organ}?", f"What is the average Hounsfield unit value of the {organ}?",
            f"What is the mean attenuation of the {organ} in HU?",
        ), f"{hu:.2f}", ()  # fmt: skip
    (liver, spleen), pancreas = (who.stats["liver"], who.stats["spleen"]), who.stats["pancreas"]
    yield "organ HU ratio", MEASUREMENT, (
        "What is the liver-to-spleen HU ratio?", "What is the L/S attenuation ratio?",
        "What is the ratio of the mean HU of the liver to that of the spleen?",
    ), f"{liver[1] / spleen[1]:.3f}", ()  # fmt: skip
    yield (
        "organ HU ratio",
        MEASUREMENT,
        ("What is the pancreas-to-spleen (P/S) HU ratio?",),
        (f"{pancreas[1] / spleen[1]:.3f}"),
        (),
    )
    left, right = who.stats["left kidney"][0], who.stats["right kidney"][0]
    yield "organ aggregation", VISUAL, (
        "What is the combined volume of both kidneys in cm³?",
        "What is the total volume of the left and right kidneys?",
    ), f"{left + right:.2f}", ()  # fmt: skip
    yield "kidney volume comparison", VISUAL, (
        "Which kidney is larger by volume?",
        "Which kidney has the larger volume, left or right?", "Which kidney is bigger?",
    ), "Left kidney" if left > right else "Right kidney", ("Left kidney", "Right kidney")  # fmt: skip
    yield (
        "kidney volume comparison",
        VISUAL,
        ("Is the left kidney larger than the right kidney?",),
        ("Yes" if left > right else "No"),
        ("Yes", "No"),
    )


def _thresholds(who: Patient) -> Iterator[Row]:
    spleen, (liver_ml, liver_hu), spleen_hu = (
        who.stats["spleen"][0],
        who.stats["liver"],
        who.stats["spleen"][1],
    )
    grades = ("Normal (no splenomegaly)", "Mild", "Moderate", "Severe")
    grade = grades[int(np.searchsorted([314.5, 500, 800], spleen))]
    yield "splenomegaly grading", MEDICAL, (
        "How would you classify the splenic enlargement based on volume?", "What is the grade of splenomegaly?",
    ), grade, grades  # fmt: skip
    yes_no = ("Yes", "No")
    yield (
        "splenomegaly detection",
        "recognition",
        ("Is there splenomegaly?", "Is the spleen enlarged?"),
        (yes_no[spleen <= 314.5]),
        yes_no,
    )
    yield (
        "organ enlargement",
        VISUAL,
        ("Is the liver enlarged?", "Is there hepatomegaly?"),
        yes_no[liver_ml <= 1800],
        yes_no,
    )
    ratio = liver_hu / spleen_hu
    yield "fatty liver", MEDICAL, (
        "Does this patient have fatty liver?", "Based on the liver-to-spleen ratio, is there hepatic steatosis?",
    ), yes_no[ratio >= 1], yes_no  # fmt: skip
    steps = ("G0 (normal)", "G1 (mild)", "G2 (moderate)", "G3 (severe)")
    met = [liver_hu >= 58 or ratio >= 1, liver_hu >= 51 or ratio >= 0.8, liver_hu >= 39 or ratio >= 0.5, True]
    yield (
        "hepatic steatosis grading",
        MEDICAL,
        ("What is the grade of hepatic steatosis?",),
        steps[met.index(True)],
        steps,
    )
    yield (
        "pancreatic steatosis",
        MEDICAL,
        ("Is there pancreatic steatosis based on the P/S ratio?",),
        (yes_no[who.stats["pancreas"][1] / spleen_hu >= 0.7]),
        yes_no,
    )


def _lesions(who: Patient) -> Iterator[Row]:
    liver = [each for each in who.found if each["organ"] == "liver"]
    kidney = [each for each in who.found if each["organ"] == "left kidney"]
    yes_no = ("Yes", "No")
    yield "kidney cyst existence", "recognition", ("Is there any kidney cyst?",), yes_no[not kidney], yes_no
    yield (
        "liver lesion existence",
        "recognition",
        ("Is there a lesion in the liver?",),
        yes_no[not liver],
        yes_no,
    )
    yield "lesion counting", VISUAL, (
        "How many lesions are there in the liver?", "What is the number of liver lesions?",
    ), str(len(liver)), ()  # fmt: skip
    if not liver:
        return
    main = max(liver, key=lambda each: each["ml"])
    burden = 100 * sum(each["ml"] for each in liver) / who.stats["liver"][0]
    yield "lesion volume measurement", MEASUREMENT, (
        "What is the volume of the largest liver lesion in cm³?",
        "What is the volume (cm3) of the largest lesion in the liver?",
    ), f"{main['ml']:.3f}", ()  # fmt: skip
    yield (
        "lesion volume measurement",
        MEASUREMENT,
        ("What is the total volume of all liver lesions?",),
        (f"{sum(each['ml'] for each in liver):.3f}"),
        (),
    )
    yield "tumor burden percentage", MEASUREMENT, (
        "What percentage of the liver is occupied by tumor?", "What is the tumor burden of the liver (%)?",
    ), f"{burden:.3f}", ()  # fmt: skip
    longest = max(each["mm"] for each in liver)
    yield (
        "largest lesion diameter",
        VISUAL,
        ("What is the diameter of the largest liver lesion in cm?",),
        f"{longest / 10:.3f}",
        (),
    )
    yield (
        "largest lesion diameter",
        VISUAL,
        ("What is the largest liver lesion's diameter in mm?",),
        f"{longest:.2f}",
        (),
    )
    yield (
        "largest lesion slice",
        VISUAL,
        ("Which axial slice shows the largest liver lesion best?",),
        str(main["slice"]),
        (),
    )
    yield (
        "largest lesion location",
        VISUAL,
        ("In which segment is the largest liver lesion located?",),
        (f"Segment {main['segment']}"),
        tuple(f"Segment {1 + (main['segment'] + k) % 8}" for k in range(3)),
    )
    count = sum(each["segment"] == main["segment"] for each in liver)
    yield (
        "lesion count by location",
        VISUAL,
        (f"How many lesions are in segment {main['segment']} of the liver?",),
        str(count),
        (),
    )
    around = who.stats["liver"][1]
    yield (
        "tumor organ HU difference",
        VISUAL,
        ("What is the HU difference between the largest liver lesion and the liver?",),
        (f"{main['hu'] - around:.2f}"),
        (),
    )
    kinds = ("Hypoattenuating", "Isoattenuating", "Hyperattenuating")
    yield "largest lesion attenuation", VISUAL, (
        "Is the largest liver lesion hypoattenuating, isoattenuating or hyperattenuating relative to the liver?",
    ), kinds[1 + int(np.sign(main["hu"] - around)) * (abs(main["hu"] - around) > 10)], kinds  # fmt: skip
    if kidney:
        yield "bilateral kidney asymmetry", VISUAL, (
            "Which kidney has the greater lesion burden?", "Is there asymmetry of the kidneys in lesion volume?",
        ), "Left kidney", ("Left kidney", "Right kidney", "Symmetric")  # fmt: skip
        yield (
            "lesion type classification",
            MEDICAL,
            ("Is the kidney lesion more likely a cyst or a tumor?",),
            ("Tumor" if max(kidney, key=lambda each: each["ml"])["hu"] > 34.8 else "Cyst"),
            ("Cyst", "Tumor"),
        )
    pancreas = [each for each in who.found if each["organ"] == "pancreas"]
    if pancreas:
        share = 100 * sum(each["ml"] for each in pancreas) / who.stats["pancreas"][0]
        yield "multi-organ lesion burden comparison", VISUAL, (
            "Which organ has the higher lesion burden, the liver or the pancreas?",
        ), "Liver" if burden > share else "Pancreas", ("Liver", "Pancreas", "Equal")  # fmt: skip
        size = max(pancreas, key=lambda each: each["ml"])["mm"]
        stages = ("T1", "T2", "T3", "T4")
        yield (
            "pancreatic tumor staging",
            MEDICAL,
            ("What is the T stage of the pancreatic tumor by size?",),
            (stages[0 if size <= 20 else 1 if size <= 40 else 2]),
            stages,
        )
