"""``tumorchain-agent engine`` from the command line, and what it is told by a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training.engine.making import config_for, made_up, write_cases
from tests.training.engine.scripted import Experts
from tests.training.engine.server import ModelServer, serving
from tumorchain_agent.cli import main
from tumorchain_agent.training.data.validate import validate_file
from tumorchain_agent.training.engine.config import load_config
from tumorchain_agent.training.engine.store import open_store
from tumorchain_agent.training.phantom.export import write_cohort
from tumorchain_agent.training.phantom.volume import generate_nano

ROOT = Path(__file__).resolve().parent.parent
TRUTHS = [made_up(seed) for seed in (60, 61, 62)]


def settings(folder: Path, url: str = "http://127.0.0.1:9/v1") -> dict[str, Any]:
    cases = write_cases(folder / "cases.jsonl", TRUTHS)
    return config_for(cases, url).model_dump(mode="json", exclude_none=True) | {"cases": "cases.jsonl"}


def write(folder: Path, values: object) -> str:
    path = folder / "engine.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_a_run_writes_samples_and_prints_its_statistics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(ModelServer(Experts.of(TRUTHS))) as server:
        config = write(tmp_path, settings(tmp_path, server.url))
        assert main(["engine", "run", config, "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    assert "3 cases, 0 set aside" in told.out
    assert "12 calls" in told.err
    assert validate_file(tmp_path / "out/samples.jsonl").good
    sheet = tmp_path / "sheet.csv"
    assert main(["engine", "sheet", str(tmp_path / "out/samples.jsonl"), str(sheet), "--n", "4"]) == 0
    assert main(["engine", "tally", str(sheet)]) == 0
    assert "4 samples, 4 of them not rated yet" in capsys.readouterr().out


@pytest.mark.slow
def test_a_cohort_of_phantoms_becomes_data_with_their_label_maps_or_with_ours(tmp_path: Path) -> None:
    folders = sorted(write_cohort(tmp_path / "cohort", 2, 77, spacing=None, workers=1))
    (folders[-1] / "labels.nii.gz").unlink()
    experts = Experts.of([generate_nano(seed).truth for seed in (77, 78)])
    with serving(ModelServer(experts)) as server:
        values = settings(tmp_path, server.url) | {"cases": "cohort", "segment": True}
        assert main(["engine", "run", write(tmp_path, values), "--out", str(tmp_path / "out")]) == 0
    found = validate_file(tmp_path / "out/samples.jsonl", scans=True)
    assert found.good
    assert found.summary.patients.both == 2
    assert len(list((tmp_path / "out/label_maps").iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"concurency": 3}, "concurency is no field"),
        ({"experts": {}}, "extractor"),
        ({"forms": []}, "forms"),
        ({"forms": ["open", "open"]}, "names one twice"),
        ({"cases": "none.jsonl"}, "does not exist"),
        ({"cases": "engine.yaml"}, "not named .jsonl"),
        ({"knowledge": "nowhere"}, "sources.yaml"),
    ],
)
def test_a_wrong_configuration_is_told_in_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], told: str
) -> None:
    config = write(tmp_path, settings(tmp_path) | change)
    assert main(["engine", "run", config, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "told"), [("a: [", "is not YAML"), ("- 1", "holds no keys"), (None, "can't be read")]
)
def test_a_file_that_is_no_configuration_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, told: str
) -> None:
    path = tmp_path / "engine.yaml"
    if text is not None:
        path.write_text(text)
    assert main(["engine", "run", str(path)]) == 2
    assert told in capsys.readouterr().err


def test_two_runs_never_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path, settings(tmp_path))
    with open_store(tmp_path / "out"):
        assert main(["engine", "run", config, "--out", str(tmp_path / "out")]) == 2
    assert "in use by another run" in capsys.readouterr().err


def test_the_graph_is_counted_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "liver.svg"
    assert main(["engine", "graph", "--organ", "liver", "--picture", str(picture)]) == 0
    assert "not a medical device" in capsys.readouterr().out
    assert picture.read_text().startswith("<svg")


def test_the_example_and_the_picture_in_the_documentation_are_current(tmp_path: Path) -> None:
    config = load_config(ROOT / "examples" / "engine.yaml")
    assert config.experts.reasoner.api_key_env == "OPENAI_API_KEY"
    assert config.cases == ROOT / "examples" / ".." / "cohort"
    picture = tmp_path / "pancreas.svg"
    assert main(["engine", "graph", "--picture", str(picture)]) == 0
    assert picture.read_text() == (ROOT / "docs/knowledge_pancreas.svg").read_text()
