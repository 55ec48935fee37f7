"""The report page: what it shows, that it links, that it stays inert and self-contained."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from tests.sample_answer import MEASUREMENTS, png, sample_answer, sample_pictures
from tumorchain_agent.records import TNM, Claim, Notice, Round
from tumorchain_agent.report import ASSETS, render_report
from tumorchain_agent.report_text import format_number, linked, split_sections

VOID = {"meta", "img", "br", "link", "input", "hr"}
URL_ATTRIBUTES = {"src", "href", "action", "srcset", "data", "poster", "background", "xlink:href"}


class Page(HTMLParser):
    """A parsed page: elements in order, their text by tag, and whether every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], "unclosed elements"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self._open[-1] if self._open else "", data.strip()))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self) -> str:
        return " ".join(" ".join(data.split()) for tag, data in self.texts if tag != "style")


@pytest.fixture(scope="module")
def page() -> Page:
    written = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    return Page(render_report(sample_answer(), sample_pictures(), MEASUREMENTS, written))


def test_page_shows_question_answer_stage_and_disclaimer(page: Page) -> None:
    text = page.text()
    assert page.texts[0] == ("title", "CT reasoning report: example_ct.nii.gz")
    for expected in (
        "Research software, not a medical device.",
        "Is there a lesion in the liver, and what TNM stage?",
        "Findings",
        "Impression",
        "Pathology",
        "T1b",
        "not determined",
        "M was left open in the text.",
        "Contradictions in the text",
        "1125.68",
        "2026-01-02 03:04 UTC",
        "nano-3fb2c81d77aa",
    ):
        assert expected in text


def test_warnings_stand_before_the_answer(page: Page) -> None:
    text = page.text()
    assert text.index("outside the nano model's training distribution") < text.index("Answer Findings")
    assert text.index("Research software, not a medical device.") < text.index("Is there a lesion")


def test_absent_organ_is_said_to_be_not_assessed_and_not_normal(page: Page) -> None:
    assert "Not found in this scan: esophagus . Not found is not the same as normal." in page.text()
    assert "Not found in this scan, so not assessed." in page.text()


def test_page_makes_no_external_request_and_runs_no_script(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "form", "base"}
        assert not [name for name in attributes if name.startswith("on")]
        for name in URL_ATTRIBUTES & attributes.keys():
            assert attributes[name].startswith(("#", "data:image/png;base64,")), (tag, name)
    style = next(data for tag, data in page.texts if tag == "style")
    assert "url(" not in style
    assert "@import" not in style
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:")


def test_every_link_leads_to_exactly_one_place_on_the_page(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"][1:] for attributes in page.all("a")}
    assert targets - set(ids) == set()
    labels = {
        attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes
    }
    assert labels - set(ids) == set()


def test_headings_are_nested_without_gaps(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_every_slice_is_inline_with_a_telling_alternative_text(page: Page) -> None:
    images = page.all("img")
    assert len(images) == 9
    assert base64.b64decode(images[0]["src"].partition(",")[2]) == png()
    assert images[0]["alt"] == "Axial CT slice through the liver at z = −14.5 mm, the liver outlined"
    assert "Axial, slice 71, z = −14.5 mm" in page.text()
    assert "not these pictures" in page.text(), "in token mode the reader is told who the slices are for"


def test_claim_links_to_the_round_and_organ_that_it_rests_on(page: Page) -> None:
    claims = (
        render_report(sample_answer(), {}, ()).partition('id="claims-title"')[2].partition("</section>")[0]
    )
    assert '<a href="#round-2-liver">Round 2, liver</a>: 48 ROI tokens, measurement' in claims
    assert "No organ evidence stands behind this sentence." in claims


def test_organ_mentions_link_to_the_evidence_and_others_stay_text(page: Page) -> None:
    pieces = linked("The pancreatic tail and the aorta.", {"pancreas": "round-2-pancreas"})
    assert [(p.text, p.anchor) for p in pieces] == [
        ("The ", None),
        ("pancreatic tail", "round-2-pancreas"),
        (" and the aorta.", None),
    ]
    assert any(a["href"] == "#round-2-liver" and a.get("class") == "organ" for a in page.all("a"))


def test_examined_organs_are_measured_first_and_the_rest_is_folded_away() -> None:
    html = render_report(sample_answer(), {}, MEASUREMENTS)
    section = html.partition('id="measurements-title"')[2].partition("</section>")[0]
    examined, _, folded = section.partition("<details>")
    assert [organ in examined for organ in ("Liver", "Pancreas", "Spleen", "Stomach")] == [
        True,
        True,
        True,
        False,
    ]
    assert "Stomach" in folded
    assert "Vertebrae L3" in folded
    assert "Esophagus" not in section, "absent organs have no measurements"
    for unit in ("Volume (ml)", "Mean ± SD (HU)", "Largest diameter (mm)"):
        assert unit in examined


ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)> \"' onmouseover=alert(3) {{ 7*7 }} </style>"


def test_text_of_a_model_or_file_name_never_becomes_markup() -> None:
    answer = sample_answer()
    hostile = answer.rounds[1].evidence[0].model_copy(update={"asked_as": ATTACK})
    hostile_round = Round(index=1, prompt=ATTACK, text=f"Findings: {ATTACK}", evidence=(hostile,))
    hostile_answer = sample_answer(
        question=ATTACK,
        scan=answer.scan.model_copy(update={"file_name": ATTACK}),
        conclusion=f"Findings: {ATTACK}\n- {ATTACK}",
        tnm=TNM(t=ATTACK, reasons=(ATTACK,), flags=(ATTACK,)),
        claims=(Claim(sentence=ATTACK, evidence_uris=(f"javascript:{ATTACK}", hostile.uris[0])),),
        rounds=(hostile_round,),
        notices=(Notice(code="x", message=ATTACK),),
        thread_id=ATTACK,
        timings_s={ATTACK: 1.0},
    )
    html = render_report(hostile_answer, sample_pictures(), MEASUREMENTS)
    page = Page(html)
    assert not page.all("script")
    assert all("onerror" not in a and "onmouseover" not in a for _, a in page.elements)
    assert all(a["src"].startswith("data:") for a in page.all("img"))
    assert "javascript:" not in html
    assert "49" not in next(data for tag, data in page.texts if tag == "h1")
    assert page.text().count("alert(1)") >= 10


def test_page_without_rounds_pictures_or_measurements_still_stands() -> None:
    bare = sample_answer(
        rounds=(), claims=(), notices=(), organs_absent=(), organs_examined=(), segmentation=None, tnm=TNM()
    )
    page = Page(render_report(bare, {}, ()))
    assert "No organ was examined." in page.text()
    assert "Read this first" not in page.text()


def test_reaching_the_limit_of_rounds_is_said() -> None:
    html = render_report(sample_answer(stopped_because="max_rounds"), {}, ())
    assert "the limit of rounds was reached" in html


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        ("Findings: a. Impression: b. Pathology: c.", ["Findings", "Impression", "Pathology"]),
        ("**Findings:** a\n\n**Impression:** b", ["Findings", "Impression"]),
        ("## Findings: a\n## Pathology: b", ["Findings", "Pathology"]),
        ("Yes.\nfinding: a\nconclusions: b", [None, "Findings", "Conclusion"]),
        ("Pathology: cT2 N0 M0. Answer: pancreas.", ["Pathology", "Short answer"]),
        ("The pathology: unknown. No heading here", [None]),
        ("", []),
    ],
)
def test_answer_is_split_at_its_headings(text: str, titles: list[str | None]) -> None:
    assert [section.title for section in split_sections(text)] == titles


def test_list_items_of_an_answer_become_a_list() -> None:
    (section,) = split_sections("Findings: two lesions\n- one\n- two\n\nThe rest is normal.")
    shapes = [
        (block.is_list, ["".join(p.text for p in item) for item in block.items]) for block in section.blocks
    ]
    assert shapes == [
        (False, ["two lesions"]),
        (True, ["one", "two"]),
        (False, ["The rest is normal."]),
    ]


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(None, 1, "–"), (1125.684, 2, "1125.68"), (-14.46, 1, "−14.5"), (-0.04, 1, "0.0"), (54.0, 0, "54")],
)
def test_numbers_are_written_for_readers(value: float | None, digits: int, text: str) -> None:
    assert format_number(value, digits) == text


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` (WCAG 2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def palette(scheme: str) -> dict[str, str]:
    """Custom properties of the style sheet in one colour scheme."""
    light, _, rest = (ASSETS / "report.css").read_text(encoding="utf-8").partition("@media")
    block = light if scheme == "light" else rest.partition("@media")[0]
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast_on_every_ground(scheme: str) -> None:
    colours = palette(scheme)
    pairs = [(ink, ground) for ink in ("text", "muted", "accent", "bad-text") for ground in ("page", "card")]
    pairs += [("warn-text", "warn"), ("bad-text", "bad"), ("accent", "accent-soft"), ("text", "accent-soft")]
    pairs += [("muted", "accent-soft"), ("warn-text", "card")] if scheme == "light" else []
    for ink, ground in pairs:
        brighter, darker = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
        assert (brighter + 0.05) / (darker + 0.05) >= 4.5, (ink, ground)
