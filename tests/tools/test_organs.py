"""Table 10 and organ matching Λ."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tumorchain_agent.errors import LabelMapError, UnknownOrganError
from tumorchain_agent.tools import organs
from tumorchain_agent.tools.organs import (
    FIVE,
    MERGE,
    ORGANS,
    STRUCTURES,
    SUBSTRUCTURES,
    display_name,
    match_organs,
    mentioned_organs,
    merge_labels,
    organ_ids,
    organ_structures,
    organ_table_hash,
    resolve_organ,
)

KIDNEYS = [("kidney_right", None), ("kidney_left", None)]
ADRENALS = [("adrenal_gland_right", None), ("adrenal_gland_left", None)]

NAMED = {
    "liver": [("liver", None)],
    "The LIVER, spleen.": [("liver", None), ("spleen", None)],
    "hepatic steatosis": [("liver", None)],
    "hepatocellular carcinoma (HCC)": [("liver", None), ("liver", None)],
    "hepatic vein thrombosis": [("liver", None)],
    "right hepatic lobe": [("liver", "right lobe")],
    "left lobe of the liver": [("liver", "left lobe")],
    "left and right hepatic lobes": [("liver", "left lobe"), ("liver", "right lobe")],
    "hepatic segment VII": [("liver", "segment 7")],
    "segment 4": [("liver", "segment 4")],
    "segment IVb": [("liver", "segment 4")],
    "segments 5 and 6": [("liver", "segment 5"), ("liver", "segment 6")],
    "right lobe of the liver, 2 to 4 cm": [("liver", "right lobe")],
    "left lobe of the liver, 2.9 cm": [("liver", "left lobe")],
    "segments 5 and 6, 3 x 4 mm": [("liver", "segment 5"), ("liver", "segment 6")],
    "segments II/III": [("liver", "segment 2"), ("liver", "segment 3")],
    "Couinaud's segment 8": [("liver", "segment 8")],
    "caudate lobe": [("liver", "segment 1")],
    "porta hepatis": [("liver", "hilum")],
    "pancreatic tail": [("pancreas", "tail")],
    "pancreatic\n  tail": [("pancreas", "tail")],
    "pancreatic-tail mass": [("pancreas", "tail")],
    "tail of the pancreas": [("pancreas", "tail")],
    "body and tail of the pancreas": [("pancreas", "body"), ("pancreas", "tail")],
    "pancreatic head/neck": [("pancreas", "head"), ("pancreas", "neck")],
    "pancreatic head, neck, body and tail": [("pancreas", part) for part in ("head", "neck", "body", "tail")],
    "uncinate process": [("pancreas", "uncinate process")],
    "PDAC with a dilated pancreatic duct": [("pancreas", None), ("pancreas", None)],
    "gastric wall": [("stomach", None)],
    "gastric antrum": [("stomach", "antrum")],
    "gastric fundus and body": [("stomach", "fundus"), ("stomach", "body")],
    "pyloric stenosis": [("stomach", "pylorus")],
    "lesser curvature of the stomach": [("stomach", None)],
    "colorectal cancer": [("colorectum", None)],
    "colon": [("colorectum", None)],
    "colonic wall": [("colorectum", None)],
    "large bowel": [("colorectum", None)],
    "sigmoid": [("colorectum", "sigmoid colon")],
    "rectum": [("colorectum", "rectum")],
    "caecum": [("colorectum", "cecum")],
    "hepatic flexure": [("colorectum", "hepatic flexure")],
    "splenic flexure of the colon": [("colorectum", "splenic flexure")],
    "hepatic and splenic flexures": [("colorectum", "hepatic flexure"), ("colorectum", "splenic flexure")],
    "ascending colon": [("colorectum", "ascending colon")],
    "the appendix is normal": [("colorectum", "appendix")],
    "oesophageal": [("esophagus", None)],
    "distal oesophagus": [("esophagus", "lower thoracic")],
    "middle third of the esophagus": [("esophagus", "middle thoracic")],
    "cervical esophagus": [("esophagus", "cervical")],
    "gastroesophageal junction": [("esophagus", "gastroesophageal junction")],
    "gastro-oesophageal junction": [("esophagus", "gastroesophageal junction")],
    "EGJ": [("esophagus", "gastroesophageal junction")],
    "left kidney": [("kidney_left", None)],
    "kidney_left": [("kidney_left", None)],
    "left renal pelvis": [("kidney_left", None)],
    "kidney": KIDNEYS,
    "both kidneys": KIDNEYS,
    "renal parenchyma": KIDNEYS,
    "left and right kidneys": [("kidney_left", None), ("kidney_right", None)],
    "right hydronephrosis": [("kidney_right", None)],
    "left kidney and right adrenal gland": [("kidney_left", None), ("adrenal_gland_right", None)],
    "adrenals": ADRENALS,
    "left suprarenal gland": [("adrenal_gland_left", None)],
    "right renal cyst": [("kidney_cyst", "kidney_cyst_right")],
    "kidney cysts": [("kidney_cyst", None)],
    "splenomegaly": [("spleen", None)],
    "hepatosplenomegaly": [("liver", None), ("spleen", None)],
    "gall bladder": [("gallbladder", None)],
    "bladder": [("urinary_bladder", None)],
    "duodenal bulb": [("duodenum", None)],
    "jejunal loops": [("small_bowel", None)],
    "bowel loops": [("small_bowel", None), ("colorectum", None)],
    "portal vein": [("portal_vein_and_splenic_vein", None)],
    "splenic vein": [("portal_vein_and_splenic_vein", None)],
    "portal venous thrombosis": [("portal_vein_and_splenic_vein", None)],
    "IVC": [("inferior_vena_cava", None)],
    "para-aortic nodes": [("aorta", None)],
    "abdominal aorta": [("aorta", None)],
    "L3 vertebra": [("lumbar_vertebrae", "vertebrae_L3")],
    "vertebrae_L3": [("lumbar_vertebrae", "vertebrae_L3")],
    "L3-L4": [("lumbar_vertebrae", "vertebrae_L3"), ("lumbar_vertebrae", "vertebrae_L4")],
    "T3 and T4 vertebral bodies": [
        ("thoracic_vertebrae", "vertebrae_T3"),
        ("thoracic_vertebrae", "vertebrae_T4"),
    ],
    "T12": [("thoracic_vertebrae", "vertebrae_T12")],
    "spine": [("lumbar_vertebrae", None), ("thoracic_vertebrae", None)],
    "left 7th rib": [("rib_left", "rib_left_7")],
    "rib_right_12": [("rib_right", "rib_right_12")],
    "ribs": [("rib_left", None), ("rib_right", None)],
    "left femoral head": [("femur", "femur_left")],
    "iliac crest": [("hip", None)],
    "left common iliac artery": [("iliac_artery", "iliac_artery_left")],
    "right psoas muscle": [("iliopsoas", "iliopsoas_right")],
    "left lower lobe": [("lung_lower_lobe_left", None)],
    "RUL": [("lung_upper_lobe_right", None)],
    "lung bases": [("lung_lower_lobe_left", None), ("lung_lower_lobe_right", None)],
    "left lung": [("lung_upper_lobe_left", None), ("lung_lower_lobe_left", None)],
}

NOT_NAMED = [
    "delivery, Liverpool, colonel, semicolon, ribbon, hippocampus, heartburn",
    "gastrointestinal and epigastric, nasogastric tube",
    "portal venous phase; hepatic arterial phase; pancreatic phase; portal-venous phase",
    "T2 N0 M0, cT1N1M0, T1-weighted, C3",
    "extrahepatic and extra-hepatic bile ducts",
    "renal function; liver function tests; heart rate; renal failure",
    "superior mesenteric artery, hepatic artery, splenic artery, renal veins, pulmonary embolism",
    "maxillary antrum",
    "the left lobe, the body, the tail and the head",
    "ascites, lymph nodes, peritoneum",
    "",
]


def found(text: str) -> list[tuple[str, str | None]]:
    return [(mention.organ, mention.substructure) for mention in match_organs(text)]


def test_structures_are_those_of_totalsegmentator(shared: Path) -> None:
    facts = json.loads((shared / "facts/totalsegmentator_total_v2.json").read_text())
    assert {str(key): name for key, name in STRUCTURES.items()} == facts["classes"]


def test_each_of_117_ids_is_in_exactly_one_of_56_organs() -> None:
    assert list(ORGANS) == list(range(1, 57))
    assert len(set(ORGANS.values())) == 56
    ids = [key for organ in ORGANS.values() for key in organ_ids(organ)]
    assert sorted(ids) == list(range(1, 118))


def test_merging_follows_table_10() -> None:
    expected = {5: "liver", 20: "colorectum", 23: "kidney_cyst", 24: "kidney_cyst", 26: "vertebrae_S1"}
    expected |= {25: "sacrum", 31: "lumbar_vertebrae", 50: "cervical_vertebrae", 69: "humerus", 85: "gluteus"}
    expected |= {
        92: "rib_left",
        115: "rib_right",
        52: "aorta",
        79: "spinal_cord",
        91: "skull",
        117: "costal_cartilages",
    }
    assert {key: ORGANS[int(MERGE[key])] for key in expected} == expected
    assert ORGANS[1] == "spleen"
    assert ORGANS[38] == "heart"
    assert ORGANS[56] == "skull"
    assert MERGE.dtype == np.uint8
    assert not MERGE[0]
    assert not MERGE[118:].any()


def test_merge_labels_keeps_shape_and_refuses_unknown_ids() -> None:
    labels = np.array([[0, 5], [20, 117]], np.int16)
    assert merge_labels(labels).tolist() == [[0, 5], [20, 37]]
    assert merge_labels(np.zeros((0, 3), np.uint8)).shape == (0, 3)
    for wrong in (118, -1):
        with pytest.raises(LabelMapError, match=str(wrong)):
            merge_labels(np.array([wrong], np.int16))


def test_the_table_hash_is_stable() -> None:
    assert organ_table_hash() == "2a6d27f77f32707ad733166fd994905c0459fda7c07c64c272a21814fdea1978"


def test_the_five_organs_have_substructures_and_names_for_sentences() -> None:
    assert set(SUBSTRUCTURES) == set(FIVE)
    assert SUBSTRUCTURES["pancreas"] == ("head", "neck", "body", "tail", "uncinate process")
    assert display_name("colorectum") == "colon and rectum"
    assert organ_structures("colorectum") == ("colon",)


@pytest.mark.parametrize(("text", "expected"), NAMED.items(), ids=list(NAMED))
def test_named_organs_are_matched(text: str, expected: list[tuple[str, str | None]]) -> None:
    assert found(text) == expected


@pytest.mark.parametrize("text", NOT_NAMED)
def test_false_friends_are_not_matched(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    "name", [*ORGANS.values(), *STRUCTURES.values(), *(display_name(organ) for organ in ORGANS.values())]
)
def test_every_organ_and_structure_name_resolves_to_its_organ(name: str) -> None:
    ids = {structure: ORGANS[int(MERGE[key])] for key, structure in STRUCTURES.items()}
    owner = {display_name(organ): organ for organ in ORGANS.values()} | ids | {o: o for o in ORGANS.values()}
    assert resolve_organ(name) == owner[name]
    assert resolve_organ(f" {name.replace('_', ' ').upper()} ") == owner[name]


def test_every_phrase_of_an_organ_names_that_organ_and_no_other() -> None:
    for entry in organs._DATA["organs"]:
        terms = [(term, None) for term in entry["terms"]]
        terms += [(term, part) for part, group in entry.get("parts", {}).items() for term in group]
        for template, part in terms:
            if template.startswith("*"):
                continue
            for phrase in organs._expand(template):
                mentions = match_organs(phrase)
                assert [(m.organ, m.text) for m in mentions] == [(entry["name"], phrase)], phrase
                assert part is None or mentions[0].substructure == part, phrase


def test_every_standard_substructure_is_matched_by_its_own_words() -> None:
    for organ, parts in SUBSTRUCTURES.items():
        for part in parts:
            adjective = {"liver": "liver", "pancreas": "pancreatic", "stomach": "gastric"}.get(organ, "")
            adjective = f"{adjective} " if part not in ("left lobe", "right lobe") else ""
            text = f"{part} of the liver" if "lobe" in part else f"{adjective}{part}"
            if organ == "esophagus" and part != "gastroesophageal junction":
                text = f"{part} esophagus"
            assert (organ, part) in found(text), text


def test_mentions_carry_the_words_and_their_place() -> None:
    text = "Normal liver; mass in the pancreatic tail."
    liver, pancreas = match_organs(text)
    assert (liver.text, liver.start, liver.end) == ("liver", 7, 12)
    assert text[pancreas.start : pancreas.end] == pancreas.text == "pancreatic tail"


def test_organs_are_listed_once_in_order_of_first_mention() -> None:
    assert mentioned_organs("Spleen. Liver and spleen, hepatic lesion, kidneys") == [
        "spleen",
        "liver",
        "kidney_right",
        "kidney_left",
    ]


def test_a_report_of_the_colon_reaches_the_organs_that_it_names() -> None:
    text = (
        "No wall thickening of the right hemicolon, cecum and hepatic flexure. No pericolonic vascular "
        "abnormality; the liver, gallbladder, pancreas, spleen, kidneys show no colon-related lesion."
    )
    expected = ["colorectum", "liver", "gallbladder", "pancreas", "spleen", "kidney_right", "kidney_left"]
    assert mentioned_organs(text) == expected


def test_a_phrase_does_not_reach_over_a_blank_line_or_punctuation() -> None:
    assert found("hepatic\n\nflexure") == [("liver", None)]
    assert found("hepatic, flexure") == [("liver", None)]
    assert found("portal venous. Phase") == [("portal_vein_and_splenic_vein", None)]


@pytest.mark.parametrize(
    ("name", "organ"), [("Colon", "colorectum"), ("the liver", "liver"), ("L3", "lumbar_vertebrae")]
)
def test_a_typed_name_resolves_to_one_organ(name: str, organ: str) -> None:
    assert resolve_organ(name) == organ


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("livr", "did you mean liver"),
        ("pancras", "pancreas"),
        ("kidneys", "kidney_right, kidney_left"),
        ("tumor", "list_organs"),
        ("liver and spleen", "liver"),
        ("", "list_organs"),
        ("x" * 100_000, "list_organs"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest_names(name: str, hint: str) -> None:
    with pytest.raises(UnknownOrganError, match=hint) as caught:
        resolve_organ(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_question_of_100_kb_is_matched_at_once() -> None:
    text = (
        "The liver shows a 3 cm lesion in segment VII; no ascites, and the portal venous phase is poor. "
        * 1100
    )
    assert len(text) > 100_000
    match_organs("")
    times = []
    for _ in range(5):
        started = time.process_time()
        mentions = match_organs(text)
        times.append(time.process_time() - started)
    assert len(mentions) == 2200
    assert min(times) < 0.1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "left ",
                "right ",
                "and ",
                "kidney",
                "segment 4",
                "/5",
                ", ",
                "hepatic ",
                "flexure\n",
                "İß ",
                "T12-",
                "tail of ",
            ]
        )
        | st.text(max_size=6),
        max_size=30,
    )
)
def test_mentions_of_any_text_are_in_order_and_do_not_overlap(pieces: list[str]) -> None:
    text = "".join(pieces)
    mentions = match_organs(text)
    assert all(text[m.start : m.end] == m.text and m.organ in ORGANS.values() for m in mentions)
    spans = list(dict.fromkeys((m.start, m.end) for m in mentions))
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
