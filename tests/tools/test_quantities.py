"""Measurement questions: what is asked, what is measured, how it is said; and what is never a number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tumorchain_agent.records import Measurement
from tumorchain_agent.tools.clinical import spleen_grade, spread, steatosis_grade
from tumorchain_agent.tools.quantity_answers import Measured, answer
from tumorchain_agent.tools.quantity_facts import Facts, NotMeasured
from tumorchain_agent.tools.quantity_options import free_text, letter
from tumorchain_agent.tools.quantity_questions import ORGAN_KINDS, parse_question
from tumorchain_agent.training.phantom.text import QUESTIONS


def organ(name: str, volume_ml: float, mean_hu: float, cut: tuple[str, ...] = ()) -> Measurement:
    return Measurement(
        organ=name, present=True, voxels=1000, volume_ml=volume_ml, mean_hu=mean_hu, sd_hu=9.0,
        largest_diameter_mm=123.4, cut_by_edge=cut,
    )  # fmt: skip


KNOWN = (
    organ("liver", 1500.126, 48.0),
    organ("spleen", 350.0, 50.0, ("superior",)),
    organ("pancreas", 60.0, 30.0),
    organ("kidney_left", 150.0, 31.0),
    organ("kidney_right", 120.0, 33.0),
    Measurement(organ="stomach", present=False),
)
FACTS = Facts(
    {each.organ: each for each in KNOWN}, {each.organ: f"measurement://s/l/{each.organ}" for each in KNOWN}
)


def measured(question: str) -> Measured:
    query = parse_question(question)
    assert query is not None, question
    return answer(query, FACTS)


@pytest.mark.parametrize(
    ("question", "kind", "organs"),
    [
        ("how large is the liver?", "volume", ("liver",)),
        ("mean HU of the spleen", "hu", ("spleen",)),
        ("is the left kidney larger than the right?", "compare_volume", ("kidney_left", "kidney_right")),
        ("Which kidney is larger?", "compare_volume", ("kidney_right", "kidney_left")),
        ("How would you classify the splenic enlargement based on volume?", "spleen_grade", ("spleen",)),
        ("What is the L/S ratio?", "hu_ratio", ("liver", "spleen")),
        ("What percentage of the liver is occupied by tumor?", "burden", ("liver",)),
        ("Is there any kidney cyst?", "lesion_exists", ("kidney_right", "kidney_left")),
        ("Is the pancreatic lesion PDAC or PNET?", "pdac_pnet", ("pancreas",)),
        ("Does the patient have fatty liver?", "fatty_liver", ("liver", "spleen")),
    ],
)
def test_a_question_tells_what_it_wants_measured(question: str, kind: str, organs: tuple[str, ...]) -> None:
    query = parse_question(question)
    assert query is not None
    assert (query.kind, query.organs) == (kind, organs)


@pytest.mark.parametrize(
    "question",
    [
        "Write a report of this CT.",
        "TNM stage?",
        "What is large?",
        "Are lymph nodes involved?",
        "Describe the liver.",
    ],
)
def test_other_questions_ask_for_no_measurement(question: str) -> None:
    assert parse_question(question) is None


def test_no_question_that_models_are_trained_on_is_taken_for_one_about_an_organs_size() -> None:
    for texts in QUESTIONS.values():
        for text in texts:
            query = parse_question(text.format(organ="liver"))
            assert query is None or query.kind not in ORGAN_KINDS, text


@pytest.mark.parametrize(
    ("question", "options", "right", "said"),
    [
        ("What is the volume of the liver?", "1200 cm³|1500.13 cm3|1,800.2|900", "B", "1500.13"),
        ("What is the volume of the liver in mm3?", "1500126|150012|15001", "A", "1500126"),
        ("Which range holds the splenic volume?", "<314.5|314.5-500|500-800|>800", "B", "350"),
        ("How would you classify the splenic enlargement?", "Normal (no splenomegaly)|Moderate|Severe|Mild", "D",
         "Mild splenomegaly"),
        ("Which kidney is larger?", "Left|Right|Equal", "A", "Left kidney"),
        ("Which kidney is smaller by volume?", "Left kidney|Right kidney|Both are similar", "B", "Right kidney"),
        ("Is the right kidney larger than the left?", "Yes|No", "B", "Left kidney"),
        ("Is the liver denser than the spleen?", "Yes|No", "B", "Spleen"),
        ("Is there fatty liver?", "Fatty liver|Normal", "A", "Fatty liver"),
        ("Is there fatty liver?", "No|Yes", "B", "Fatty liver"),
        ("Is the spleen enlarged?", "No|Yes", "B", "yes"),
        ("What is the grade of hepatic steatosis?", "G0|G1|G2|G3", "B", "Mild"),
        ("What is the combined volume of both kidneys?", "135|270|150|120", "B", "270"),
        ("What is the liver-to-spleen HU ratio?", "0.69|0.96|1.5|0.2", "B", "0.9600"),
    ],
)  # fmt: skip
def test_an_answer_is_a_letter_or_says_the_value(question: str, options: str, right: str, said: str) -> None:
    found = measured(question)
    assert letter(found, dict(zip("ABCD", options.split("|"), strict=False))) == right
    assert free_text(found) == said
    assert found.sources[0].startswith("measurement://s/l/")


def test_a_tie_between_choices_is_no_answer() -> None:
    assert letter(measured("What is the volume of the spleen?"), {"A": "340", "B": "360"}) is None
    assert letter(measured("Which kidney is larger?"), {"A": "Yes and no", "B": "Both"}) is None


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (
            "What is the volume of the stomach?",
            "stomach is not in the scan: not assessed, which is not normal",
        ),
        ("What is the volume of the duodenum?", "duodenum was not measured"),
        ("How many lesions are in the liver?", "lesions of liver are not segmented: not measured"),
        ("Is the colon enlarged?", "no threshold is known for colon and rectum"),
    ],
)
def test_what_is_missing_is_never_a_number(question: str, reason: str) -> None:
    with pytest.raises(NotMeasured, match=reason):
        measured(question)


def test_an_organ_that_the_edge_cuts_is_a_lower_bound() -> None:
    assert measured("How large is the spleen?").limits == (
        "spleen is cut by the scan's edge (superior): its volume is a lower bound",
    )


def test_grades_change_at_the_published_thresholds() -> None:
    volumes = (314.5, 314.6, 500, 500.1, 800, 800.1)
    assert [spleen_grade(v) for v in volumes] == ["normal", "mild", "mild", "moderate", "moderate", "severe"]
    liver = [(58, 200), (57, 200), (50, 200), (38, 200), (45, 45), (38, 70)]
    assert [steatosis_grade(*each) for each in liver] == [
        "normal", "mild", "moderate", "severe", "normal", "moderate",
    ]  # fmt: skip
    assert [spread(s) for s in ([0.6, 0.4], [0.5, 0.3, 0.2], [0.4, 0.3, 0.3])] == [
        "highly clustered", "somewhat clustered", "widely distributed",
    ]  # fmt: skip


def test_the_benchmarks_subtypes_are_all_known_to_the_metrics(shared: Path) -> None:
    from tumorchain_agent.training.evaluation.deeptumorvqa_metrics import answer_type

    facts = json.loads((shared / "facts" / "deeptumorvqa_subtypes.json").read_text(encoding="utf-8"))
    told = {each["subtype_name"]: each["answer_type"] for each in facts["subtypes"]}
    assert {name: answer_type(name) for name in told} == told
