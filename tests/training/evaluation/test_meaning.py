"""Offline semantic accuracy: opposite answers are not right, true paraphrases are, and a hedge can't be told."""

from __future__ import annotations

import anyio
import pytest

from tumorchain_agent.training.evaluation.meaning import same_meaning
from tumorchain_agent.training.evaluation.semantic import OfflineJudge

STATES = (
    "Refractory Lesion (Persistent or recurrent, now present)",
    "Resolved Lesion (Previously present or recurrent, now absent)",
    "New Lesion (Absent previously, now present)",
    "No Abnormality (Always absent)",
)
"""The choices of 3D-RAD's temporal tasks."""


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("Bronchiectasis", "No bronchiectasis is seen."),
        ("Bronchiectasis", "Bronchiectasis isn't seen."),
        ("Bronchiectasis", "Bronchiectasis: not seen"),
        ("Atelectasis", "There is no atelectasis"),
        ("Portal vein thrombosis", "No thrombosis of the portal vein"),
        ("Emphysema in the right upper lobe", "No emphysema in the right upper lobe"),
        ("Pneumothorax in the right lung", "The right lung is normal."),
        ("Gallstones in the gallbladder", "The gallbladder is normal."),
        ("Hemorrhage in the spleen", "The spleen is unremarkable"),
        ("Ulcer of the stomach", "The stomach is normal"),
        ("Liver", "Not the liver, the stomach and spleen"),
        ("Pancreatic head", "Not the pancreatic head"),
        ("Left", "It is not on the left"),
        ("Left kidney", "Right kidney"),
        ("Ascending aorta", "Descending aorta"),
        ("Bilateral pleural effusion", "Right pleural effusion"),
        ("No ascites", "Ascites."),
        ("No ascites", "No mass"),
        ("no tumor", "There is a tumor"),
        ("Not observed", "In the right lung"),
        ("Present", "Absent"),
    ],
)
def test_the_opposite_is_not_the_same(reference: str, answer: str) -> None:
    assert same_meaning(reference, answer) is False


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("3 lesions", "7 lesions"),
        ("Two", "Five"),
        ("30x13 mm", "29x13 mm"),
        ("3 cm", "3 mm"),
        ("-20 HU", "20 HU"),
        ("Segment 4", "Segment 8"),
        ("35 mm", "2 to 4 cm"),
    ],
)
def test_another_number_is_not_the_same(reference: str, answer: str) -> None:
    assert same_meaning(reference, answer) is False


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("Atelectasis", "Atelectatic changes are seen."),
        ("Emphysema", "Emphysematous changes"),
        ("Ground glass opacities", "Ground-glass opacity in the lungs"),
        ("Both lungs", "The nodules are in both lungs."),
        ("Left lung upper lobe.", "In the upper lobe of the left lung"),
        ("Bilateral pleural effusion", "Pleural effusions on both sides"),
        ("No pneumonia detected", "There is no sign of pneumonia."),
        ("no tumor of the stomach", "No mass in the stomach."),
        ("liver", "The right lobe of the liver."),
        ("30x13 mm", "It measures 30 x 13 mm."),
        ("3 cm", "30 mm"),
        ("Two", "There are 2 lesions."),
        ("1 lesion", "A single lesion."),
        ("solitary", "There is one tumor."),
        ("under 2 cm", "It is 1.5 cm."),
        ("cT2 N2 M0, esophagus, under 2 cm", "Esophagus; T2 N2 M0; 15 mm"),
        ("Yes", "Yes, there is a mass."),
        ("No", "No mass"),
        ("Normal (no splenomegaly)", "Normal"),
    ],
)
def test_a_paraphrase_is_the_same(reference: str, answer: str) -> None:
    assert same_meaning(reference, answer) is True


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("T2", "T2 or T3"),
        ("Mild", "Mild or severe"),
        ("Left", "Left and right"),
        ("Liver", "Liver and spleen"),
        ("Pancreatic head", "The pancreatic head and tail"),
        ("30x13 mm", "130x13 mm, or 30x13 mm"),
        ("The lungs are normal", "No nodules in the lungs"),
        ("No ascites", "No."),
        ("Yes, in the liver", "Yes."),
        ("Yes", "There is a lesion"),
    ],
)
def test_a_hedge_and_an_all_clear_in_other_words_are_unscored(reference: str, answer: str) -> None:
    assert same_meaning(reference, answer) is None
    assert anyio.run(OfflineJudge().compare, "?", reference, answer) is None


@pytest.mark.parametrize("said", [str, lambda state: f"It is: {state.partition(' (')[0].lower()}."])
def test_the_four_states_of_a_lesion_are_told_apart(said: type[str]) -> None:
    table = [[same_meaning(reference, said(answer)) for answer in STATES] for reference in STATES]
    assert table == [[row == column for column in range(4)] for row in range(4)]


def test_nothing_said_is_wrong() -> None:
    assert [same_meaning("Emphysema", answer) for answer in ("", "...", "I can't tell.")] == [False] * 3
