"""What a language model's text is read as, in each form that an answer may be wanted in; and what stays unread."""

from __future__ import annotations

import pytest

from tumorchain_agent.training.evaluation.prompts import Asked
from tumorchain_agent.training.evaluation.reading import read_answer

OPTIONS = {"A": "Mild", "B": "Normal (no splenomegaly)", "C": "Severe", "D": "Moderate"}


@pytest.mark.parametrize(
    "text",
    [
        "B", "b", "B.", "b)", "(b)", "(B)", "**B**", "B: normal", "B - normal", "B\nThe spleen is normal.", "Option B",
        "the answer is (b).", "The answer is B", "Answer: b", "Answer: Option B", "The correct option is B.",
        "The correct choice is B", "Final answer: The answer is B", r"\boxed{B}", r"So it is $\boxed{\text{B}}$.",
        "B, because the spleen is small.", "B. normal spleen", "B) normal size of the spleen", "B is correct",
        "To answer the question, I look at the spleen. The answer is B.", "I answer B because A is wrong.",
        "The answer is A. No: the answer is B.", "<think>The answer is A? no</think>B", "<think>A</think>\n\nanswer: B",
        "The spleen has 300 ml.\n\nB", "Answer: normal (no splenomegaly)", "B, I think",
    ],
)  # fmt: skip
def test_a_letter_is_read_where_it_stands_for_an_option(text: str) -> None:
    assert read_answer(text, Asked("q", "letter", OPTIONS)) == "B"


@pytest.mark.parametrize(
    "text",
    [
        "A mass is seen.", "a mass is seen.", "The answer is a mass in the liver.", "Cannot tell.", "B or C", "A and B",
        "A, B", "It is E.", "e.g. the spleen", "<think>The answer is B", "The answer is not B", "", "Answer: unknown",
        "Mild or severe", "To answer this, I look at a spleen.", "A spleen, B-mode",
    ],
)  # fmt: skip
def test_an_article_or_several_letters_are_no_letter(text: str) -> None:
    assert read_answer(text, Asked("q", "letter", OPTIONS)) is None


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("The liver volume is 1523.4 cm3.", "1523.4"),
        ("1523.4 cm3", "1523.4"),
        ("1523.4cm³", "1523.4"),
        ("1523.4 cm^3", "1523.4"),
        ("1523.4 cm^{3}", "1523.4"),
        ("1,523.4 mL", "1523.4"),
        ("1,234,567 mm3", "1234567"),
        ("~35", "35"),
        ("−12.5 HU", "-12.5"),
        ("The ratio is 0.95 (liver 57, spleen 60)", "0.95"),
        ("(1523.4 cm3)", "1523.4"),
        ("approximately 42 HU (range 40-45)", "42"),
        ("To answer this I segmented 2 kidneys. The answer is 310.", "310"),
        ("The answer is 3. On a closer look the answer is 4.", "4"),
        ("The answer is 3 lesions in segment 4.", "3"),
        (r"\boxed{310}", "310"),
        ("<think>5 or 6</think>7", "7"),
        ("L1 lesion: 3", "3"),
        ("Between 12 and 14.", None),
        ("The answer is between 12 and 14.", None),
        ("The answer is 12-14.", None),
        ("12 x 30 mm", None),
        ("The answer is 12 x 30 mm", None),
        ("1523,4", None),
        ("1e3", None),
        ("There are 2 lesions in segment 4", None),
        ("<think>7", None),
        ("T1", None),
    ],
)
def test_a_number_is_read_without_its_unit(text: str, read: str | None) -> None:
    assert read_answer(text, Asked("q", "number")) == read


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Yes, there is.", "yes"),
        ("No.", "no"),
        ("yes. No cyst", "yes"),
        ("I would say: yes", "yes"),
        ("There is no doubt that yes", "yes"),
        ("No lesions are visible, so the answer would be: no", "no"),
        ("To answer yes or no, I look at it. The answer is no.", "no"),
        ("<think>Yes?</think>No", "no"),
        ("The answer is not yes", None),
        ("It may be yes or no", None),
        ("Unclear.", None),
    ],
)
def test_yes_and_no_are_read_where_only_one_is_meant(text: str, read: str | None) -> None:
    assert read_answer(text, Asked("q", "yes_no")) == read


def test_a_phrase_is_what_the_text_closes_with() -> None:
    asked = Asked("q", "phrase")
    assert read_answer("To answer this, I measured it. The answer is left kidney.", asked) == "left kidney"
    assert read_answer("<think>Right?</think>Left kidney", asked) == "Left kidney"
    assert read_answer("<think>Left kidney", asked) is None
