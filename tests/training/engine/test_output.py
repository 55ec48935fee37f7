"""What the engine writes: samples by the data format, provenance, statistics, a picture, sheets for review."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.training.engine.making import config_for, made_up, outcomes, run, write_cases
from tests.training.engine.scripted import Ask, Experts
from tests.training.engine.server import ModelServer, Said, serving
from tumorchain_agent.errors import DataError, InputError
from tumorchain_agent.training.data.files import read_samples
from tumorchain_agent.training.data.record import CoTSample
from tumorchain_agent.training.data.validate import validate_file
from tumorchain_agent.training.engine.knowledge import load_knowledge
from tumorchain_agent.training.engine.review import COLUMNS, tally_sheet, wilson, write_sheet
from tumorchain_agent.training.tasks import SUBTASKS, TASKS

TRUTHS = [made_up(seed) for seed in range(800, 816)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")

    def object_once(ask: Ask, said: Said) -> Said:
        return (
            Said('{"consistent": false, "issues": ["?"]}')
            if ask.expert == "calibrator" and not ask.again
            else said
        )

    with serving(ModelServer(Experts.of(TRUTHS), object_once)) as server:
        run(config_for(write_cases(folder / "cases.jsonl", TRUTHS), server.url), folder / "out")
    return folder / "out"


def samples_of(folder: Path) -> list[CoTSample]:
    return list(read_samples(folder / "samples.jsonl"))


def test_all_samples_are_good_and_of_all_tasks_subtasks_and_forms(made: Path) -> None:
    assert validate_file(made / "samples.jsonl").good
    samples = samples_of(made)
    assert {each.subtask for each in samples} == set(SUBTASKS)
    assert {each.task for each in samples} == set(TASKS)
    forms = {(each.subtask, each.answer_type == "choice") for each in samples}
    assert forms == {(name, choice) for name in SUBTASKS for choice in (True, False)} - {("report", True)}


def test_the_right_choice_stands_anywhere(made: Path) -> None:
    letters = Counter(each.correct for each in samples_of(made) if each.correct)
    assert set(letters) >= {"A", "B", "C", "D"}
    assert max(letters.values()) < 0.6 * letters.total()


def test_a_samples_provenance_tells_models_prompts_triples_and_reviews(made: Path) -> None:
    known = load_knowledge().by_id
    for sample in samples_of(made):
        found: dict[str, Any] = sample.provenance
        assert found["models"]["summarizer"] == ["scripted-summarizer"]
        assert set(found["prompts"]) == {"extractor", "reasoner", "calibrator", "summarizer"}
        assert set(found["triples"]) <= set(known)
        assert found["reviews"] == {"calibrator": 1, "summarizer": 0}
    cited = [each for each in samples_of(made) if each.provenance["tumor_organ"]]
    assert all(each.provenance["triples"] for each in cited)


def test_closer_looks_name_the_organ_among_others_and_rounds_end_with_the_answer(made: Path) -> None:
    for sample in samples_of(made):
        first, second = sample.rounds
        organ = sample.provenance["tumor_organ"]
        assert organ is None or organ in second.organs
        assert len(second.organs) >= 2
        assert first.text.endswith("closer look.")
        assert second.text.endswith(f"Answer: {sample.answer}.")


def test_statistics_count_what_is_there(made: Path) -> None:
    found = json.loads((made / "statistics.json").read_text())
    samples = samples_of(made)
    assert found["cases"] == len(TRUTHS)
    assert found["set_aside"] == 0
    assert sum(found["forms"].values()) == sum(found["organs"].values()) == len(samples)
    assert found["calibrations"] == len(TRUTHS)
    assert {(each["by"], each["kind"], each["found"]) for each in found["faults"]} == {
        ("calibrator", "calibrator_objects", len(TRUTHS))
    }
    assert "not a medical device" in (made / "statistics.md").read_text()


def test_the_picture_names_every_subtask_with_its_count(made: Path) -> None:
    root = ElementTree.fromstring((made / "statistics.svg").read_text())
    texts = {str(each.text) for each in root.iter() if each.tag.endswith("text")}
    counts = Counter(each.subtask for each in samples_of(made))
    assert {f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items()} <= texts
    assert any("not a medical device" in text for text in texts)


def test_a_line_that_is_no_case_is_set_aside_with_its_number(tmp_path: Path) -> None:
    cases = write_cases(tmp_path / "cases.jsonl", TRUTHS[:2])
    cases.write_text(cases.read_text() + '{"id": "x"}\n')
    with serving(ModelServer(Experts.of(TRUTHS))) as server:
        run(config_for(cases, server.url), tmp_path / "out")
    (line,) = (tmp_path / "out/set_aside.jsonl").read_text().splitlines()
    assert json.loads(line)["faults"][0]["kind"] == "bad_case"
    assert outcomes(tmp_path / "out")[-1].id == "line 3"


def rate(sheet: Path, answers: list[tuple[str, str]]) -> None:
    lines = list(csv.reader(io.StringIO(sheet.read_text("utf-8-sig"))))
    for line, (usable, quality) in zip(lines[2:], answers, strict=False):
        line[COLUMNS.index("usable")], line[COLUMNS.index("quality")] = usable, quality
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    sheet.write_text(text.getvalue(), "utf-8-sig")


def test_a_sheet_is_drawn_evenly_and_its_ratings_are_counted(made: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.csv"
    assert write_sheet(made / "samples.jsonl", sheet, 24) == 24
    rows = list(csv.DictReader(io.StringIO(sheet.read_text("utf-8-sig").split("\n", 1)[1])))
    assert Counter(row["subtask"] for row in rows) == dict.fromkeys(SUBTASKS, 2)
    first = sheet.read_bytes()
    write_sheet(made / "samples.jsonl", sheet, 24)
    assert sheet.read_bytes() == first
    rate(sheet, [("yes", "high")] * 15 + [("Yes", "Acceptable")] * 3 + [("no", "")] * 2)
    found = tally_sheet(sheet)
    assert (found.rows, found.unrated) == (24, 4)
    assert (found.usable.count, found.usable.of, found.high.count, found.high.of) == (18, 20, 15, 18)
    assert "90.00 %" in found.markdown()


def test_a_wrong_word_in_a_sheet_is_told_by_its_row(made: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.csv"
    write_sheet(made / "samples.jsonl", sheet, 5)
    rate(sheet, [("yes", "high"), ("maybe", "")])
    with pytest.raises(DataError, match="row 4"):
        tally_sheet(sheet)
    (tmp_path / "other.csv").write_text("a,b\n")
    with pytest.raises(DataError, match="column names"):
        tally_sheet(tmp_path / "other.csv")
    with pytest.raises(InputError, match="can't be read"):
        tally_sheet(tmp_path / "none.csv")


def test_intervals_are_wilsons() -> None:
    found = wilson(95, 100)
    assert (round(found.low, 4), round(found.high, 4)) == (0.8882, 0.9785)
    assert wilson(0, 0).text() == "–"
