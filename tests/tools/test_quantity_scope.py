"""Thresholds, negations, and what isn't measured: the rules answer only what they compute."""

from __future__ import annotations

import numpy as np
import pytest

from tumorchain_agent.records import Measurement
from tumorchain_agent.tools.lesion_facts import Lesion
from tumorchain_agent.tools.quantity_answers import Measured, answer
from tumorchain_agent.tools.quantity_facts import Facts, NotMeasured
from tumorchain_agent.tools.quantity_options import free_text, letter
from tumorchain_agent.tools.quantity_questions import parse_question


def measurement(name: str, volume_ml: float, mean_hu: float, diameter_mm: float = 100.0) -> Measurement:
    return Measurement(
        organ=name, present=True, voxels=1000, volume_ml=volume_ml, mean_hu=mean_hu, largest_diameter_mm=diameter_mm
    )  # fmt: skip


def lesion(organ: str, kind: str, volume_ml: float, mean_hu: float, diameter_mm: float) -> Lesion:
    return Lesion(
        kind=kind, organ=organ, measurement=measurement(organ, volume_ml, mean_hu, diameter_mm), slice_index=3,
        box=(slice(0, 1),) * 3, mask=np.ones((1, 1, 1), bool), source=f"x_lesions.nii.gz:{kind}",
    )  # fmt: skip


ORGANS = {
    each.organ: each
    for each in (
        measurement("liver", 1500.0, 100.0),
        measurement("spleen", 400.0, 110.0),
        measurement("pancreas", 80.0, 90.0),
        measurement("kidney_left", 300.0, 30.0),
        measurement("kidney_right", 200.0, 30.0),
        measurement("stomach", 300.0, 40.0),
    )
}
LESIONS = (
    lesion("pancreas", "tumor", 1.2, 45.0, 12.0),
    lesion("liver", "tumor", 1.5, 40.0, 14.0),
    lesion("liver", "cyst", 14.0, 5.0, 30.0),
    lesion("kidney_left", "cyst", 2.0, 8.0, 15.0),
)
FACTS = Facts(ORGANS, {}, lesions=LESIONS, lesion_organs=frozenset(ORGANS))


def measured(question: str) -> Measured:
    query = parse_question(question)
    assert query is not None, question
    return answer(query, FACTS)


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("Is the liver free of lesions?", "no"),
        ("Is the stomach free of lesions?", "yes"),
        ("Is there no lesion in the liver?", "no"),
        ("Is the pancreas without any mass?", "no"),
        ("Are there no lesions in the spleen?", "yes"),
        ("Is a lesion absent from the liver?", "no"),
        ("Are there no lesions in the spleen and the pancreas?", "no"),
        ("Is the spleen enlarged?", "yes"),
        ("Is the spleen not enlarged?", "no"),
        ("Is the liver not enlarged?", "yes"),
        ("Are both kidneys enlarged?", "no"),
        ("Is either kidney enlarged?", "yes"),
        ("Do both kidneys have cysts?", "no"),
        ("Is there a lesion in the liver and the spleen?", "no"),
        ("Is there a lesion in the liver or the spleen?", "yes"),
        ("Is there hepatosplenomegaly?", "no"),
        ("Is there a cyst in the left or right kidney?", "yes"),
        ("Is there fatty liver on this CT without contrast?", "yes"),
    ],
)
def test_a_negation_inverts_the_answer_and_both_means_each(question: str, said: str) -> None:
    found = measured(question)
    assert free_text(found, yes_no=True) == said
    assert letter(found, {"A": "Yes", "B": "No"}) == {"yes": "A", "no": "B"}[said]


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("Is the pancreatic lesion larger than 4 cm?", "no"),
        ("Is the pancreatic lesion larger than 1 cm?", "yes"),
        ("Is the pancreatic lesion larger than one centimeter?", "yes"),
        ("Is the pancreatic lesion 12 mm or larger?", "yes"),
        ("Is the pancreatic lesion larger than 12 mm?", "no"),
        ("Is the pancreatic lesion no larger than 2 cm?", "yes"),
        ("Is the pancreatic lesion between 1 and 2 cm?", "yes"),
        ("Is the pancreatic lesion's volume at most 1.2 mL?", "yes"),
        ("Is the mean HU of the pancreatic lesion below 40 HU?", "no"),
        ("Is any liver lesion larger than 2 cm?", "yes"),
        ("Is there a liver lesion smaller than 1 cm?", "no"),
        ("Are all liver lesions smaller than 2 cm?", "no"),
        ("Is there no lesion larger than 2 cm in the liver?", "no"),
        ("Is the largest liver lesion at least 3 cm?", "yes"),
        ("Is the liver lesion larger than 1 cm?", "yes"),
        ("Is the total lesion volume in the liver greater than 15 ml?", "yes"),
        ("Is the tumor burden of the liver above 10 %?", "no"),
        ("Do the lesions occupy more than 1% of the liver?", "yes"),
        ("Is there more than one lesion in the pancreas?", "no"),
        ("Is there more than one lesion in the liver?", "yes"),
        ("Are there at least 3 liver lesions?", "no"),
        ("Are there fewer than 3 lesions in the liver?", "yes"),
        ("Are there at most two cysts in the left kidney?", "yes"),
        ("Are there multiple lesions in the liver?", "yes"),
        ("Is there a single lesion in the liver?", "no"),
        ("Is the number of liver lesions greater than 5?", "no"),
        ("Is the spleen larger than 500 cm3?", "no"),
        ("Is the spleen larger than 500 cm^3?", "no"),
        ("Is the spleen larger than 0.3 liters?", "yes"),
        ("Is the spleen not larger than 500 cm³?", "yes"),
        ("Does the spleen volume not exceed 300 cm³?", "no"),
        ("Is the liver volume more than 1,400 mL?", "yes"),
        ("Is the liver volume between 1000 and 1800 cm3?", "yes"),
        ("Is the combined volume of both kidneys greater than 400 cm3?", "yes"),
        ("Is the mean HU of the liver less than 100?", "no"),
        ("Is the liver's attenuation below 120 HU?", "yes"),
        ("Is the L/S ratio below 1.0?", "yes"),
    ],
)
def test_a_threshold_is_answered_yes_or_no(question: str, said: str) -> None:
    found = measured(question)
    assert (found.number, found.label) == (None, said), found.text
    assert free_text(found, yes_no=True) == said
    assert letter(found, {"A": "No", "B": "Yes"}) == {"yes": "B", "no": "A"}[said]


@pytest.mark.parametrize(
    ("question", "number"),
    [
        ("What is the difference in volume between the liver and the spleen?", 1100.0),
        ("What is the volume difference between the right and left kidney?", 100.0),
        ("How much larger is the liver than the spleen?", 1100.0),
        ("What is the combined volume of both kidneys?", 500.0),
        ("How many liver lesions are larger than 2 cm?", 1.0),
        ("How many lesions in the liver have a volume of at least 1 ml?", 2.0),
    ],
)
def test_a_difference_is_no_sum_and_lesions_are_counted_by_size(question: str, number: float) -> None:
    assert measured(question).number == pytest.approx(number)


@pytest.mark.parametrize(
    "question",
    [
        "Is the mass in the pancreas benign?", "Is the pancreatic tumor malignant?", "Is there pancreatic cancer?",
        "Is the pancreatic tumor resectable?", "Does the pancreatic tumor invade the stomach?",
        "Does the tumor involve the stomach wall?", "Is the liver lesion a metastasis?", "Is the liver lesion a cyst?",
        "Is the liver lesion primary or metastatic?", "Are there enlarged lymph nodes near the pancreas?",
        "How large are the lymph nodes near the stomach?", "Is the pancreatic duct enlarged?",
        "What is the diameter of the pancreatic duct?", "Is the splenic artery enlarged?",
        "What is the volume of the renal cortex?", "What is the density of the lesion in the liver?",
        "What is the stage of the pancreatic cancer?", "Is the liver lesion calcified?", "Has the liver lesion grown?",
        "Is there a large lesion in the liver?", "Is there a 2 cm lesion in the liver?",
        "Is there a lesion in the liver, and what TNM stage?", "Is the lesion solitary or multiple?",
        "How many malignant lesions are in the liver?", "How many hypodense lesions are in the liver?",
        "How many organs have lesions?", "What is the volume of the second largest lesion in the liver?",
        "What percentage of the liver lesions are cysts?", "What is the volume of the liver without the tumor?",
        "What is the volume of the pancreatic head?", "What is the maximum HU of the liver?",
        "What is the HU difference between the liver and the spleen?", "What is the normal volume of the liver?",
        "Which organ has the largest volume: liver, spleen or stomach?", "What causes the fatty liver?",
        "Is there no fatty liver?", "Isn't the spleen enlarged?", "Is neither kidney enlarged?",
        "Is the spleen mildly enlarged?", "Is the spleen larger than normal?", "Is the liver volume normal?",
        "Is the spleen larger than 13 cm?", "Is the liver more than 3 times larger than the spleen?",
        "Is the left kidney at least 20 ml larger than the right kidney?", "Are the kidneys of the same size?",
        "Is the liver lesion larger than the pancreatic lesion?", "Is the pancreatic lesion larger than 4?",
        "Is the pancreatic lesion larger than 4 cm and benign?", "Are the kidneys larger than 250 ml?",
        "Is the spleen larger than 500 cm3 and the liver larger than 1800 cm3?",
        "Is there a cyst in the left kidney and a tumor in the right kidney?",
        "Is the lesion in the left or right kidney?", "Is the tumor less than 1 cm from the stomach?",
        "What is the volume of the liver relative to the spleen?", "Does the tumor cross the midline?",
        "Is the short axis of the liver lesion larger than 1 cm?",
        "Are there more lesions in the liver than in the pancreas?",
        "Which kidney is larger than 250 ml?", "How large is the pseudocyst?",
    ],
)  # fmt: skip
def test_what_no_rule_computes_is_left_to_the_llm(question: str) -> None:
    assert parse_question(question) is None


@pytest.mark.parametrize(
    "question",
    [
        "Is the liver lesion larger than 2 cm?",
        "Are the kidneys enlarged?",
        "Is the spleen lesion smaller than 1 cm?",
    ],
)
def test_where_it_is_not_told_which_is_meant_nothing_is_measured(question: str) -> None:
    with pytest.raises(NotMeasured):
        measured(question)


@pytest.mark.parametrize(
    "question",
    [
        "Is the liver lesion hypodense?",
        "Is the tumor stage T2 of the pancreas by size?",
        "What is the spleen's volume?",
    ],
)
def test_a_grade_or_a_number_is_neither_yes_nor_no(question: str) -> None:
    found = measured(question)
    assert letter(found, {"A": "Yes", "B": "No"}) is None
    with pytest.raises(NotMeasured, match="neither yes nor no"):
        free_text(found, yes_no=True)


def test_asymmetry_is_there_whichever_side_has_more() -> None:
    found = measured("Is there asymmetry of the kidneys in lesion volume?")
    assert (free_text(found), free_text(found, yes_no=True)) == ("Left kidney", "yes")
    right = Facts(ORGANS, {}, (lesion("kidney_right", "cyst", 1.0, 5.0, 9.0),), frozenset(ORGANS))
    assert free_text(answer(found.query, right), yes_no=True) == "yes"
