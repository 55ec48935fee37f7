"""``view``: what the page is told, what the server gives out and to whom, and the page in a real browser."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.browser import Browser, chromium
from tests.conftest import WriteNifti, torso, torso_grid
from tests.sample_answer import sample_answer
from tumorchain_agent.cli_viewer import make_page
from tumorchain_agent.errors import InputError, ScanError
from tumorchain_agent.mcp_server.segmentations import write_mask
from tumorchain_agent.records import DISCLAIMER
from tumorchain_agent.tools.scan import CT, open_ct
from tumorchain_agent.tools.snomed import CODES
from tumorchain_agent.viewer import ASSETS, HOST, Page, ViewServer
from tumorchain_agent.viewer_data import organ_centres, read_labels

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def scan(write_nifti: WriteNifti) -> Path:
    affine, shape = torso_grid(6.0, 6.0, 8.0)
    return write_nifti(np.round(torso(affine, shape)[0]), affine)


@pytest.fixture
def folder(scan: Path, tmp_path: Path) -> Path:
    """What ``ask`` leaves of the torso: an answer and its label map."""
    ct = open_ct(scan)
    out = tmp_path / "out"
    (out / "masks").mkdir(parents=True)
    write_mask(
        out / "masks" / "label_map.nii.gz", np.asfortranarray(torso(ct.affine, ct.shape)[1]), ct.affine
    )
    answer = sample_answer(scan=ct.info)
    (out / "answer.json").write_text(answer.model_dump_json(), encoding="utf-8")
    (out / "secret.txt").write_text("not for you", encoding="utf-8")
    return out


@pytest.fixture
def page(folder: Path, scan: Path, tmp_path: Path) -> Page:
    return make_page(folder, scan, tmp_path)


@contextmanager
def serving(page: Page) -> Iterator[ViewServer]:
    with ViewServer(page) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def get(server: ViewServer, path: str, *, host: str | None = None, method: str = "GET") -> Any:
    """Status, headers and body for a raw path, which nothing normalises on the way."""
    connection = http.client.HTTPConnection(HOST, server.server_port, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"{HOST}:{server.server_port}")
    connection.endheaders()
    response = connection.getresponse()
    found = response.status, dict(response.getheaders()), response.read()
    connection.close()
    return found


def test_page_data_leads_each_organ_to_a_place_inside_it(page: Page, folder: Path, scan: Path) -> None:
    data = json.loads(page.data)
    labels = read_labels(folder)
    assert labels is not None
    organs = {organ["name"]: organ for organ in data["organs"]}
    for name in ("liver", "spleen", "aorta"):
        index = np.linalg.inv(labels.affine) @ [*organs[name]["centre"], 1]
        key = {"liver": 5, "spleen": 1, "aorta": 52}[name]
        assert labels.values[tuple(np.rint(index[:3]).astype(int))] == key
    assert organs["pancreas"]["centre"] is None
    assert organs["esophagus"]["absence"] == "not in the scan, not assessed"
    assert organs["liver"]["facts"] == "abnormal, p 0.83, 1125.7 ml"
    assert data["disclaimer"] == DISCLAIMER
    assert data["claims"][0]["organs"] == ["liver"]
    assert data["warnings"][0].startswith("The nano model is a demonstration")
    assert not re.search("<|&lt;", json.dumps([data["sections"], data["rounds"]]))


def test_the_place_shown_is_the_slice_where_the_organ_is_largest(folder: Path) -> None:
    labels = read_labels(folder)
    assert labels is not None
    areas = (labels.values == 5).sum(axis=(0, 1))
    level = (np.linalg.inv(labels.affine) @ [*organ_centres(labels)["liver"], 1])[2]
    assert areas[round(level)] == areas.max()


def test_the_scan_is_served_as_it_was_opened(page: Page, scan: Path) -> None:
    with serving(page) as server:
        status, headers, body = get(server, f"/{server.secret}/scan.nii.gz")
    assert (status, headers["Content-Type"]) == (200, "application/gzip")
    copy = scan.parent / "served.nii.gz"
    copy.write_bytes(body)
    assert open_ct(copy).scan_id == open_ct(scan).scan_id


def test_only_the_page_its_data_and_the_scan_are_given_out(page: Page) -> None:
    escapes = (
        "../answer.json", "..%2fanswer.json", "masks/../answer.json", "secret.txt", "answer.json", "/etc/passwd",
        "//etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "masks", "masks/", "masks/..", "viewer.css/..", "./viewer.css",
        "masks\\label_map.nii.gz", "scan.nii.gz/", "data.json/x", "masks/label_map.nii.gz%00", "..", "file:///etc/passwd",
    )  # fmt: skip
    with serving(page) as server:
        good = [
            get(server, f"/{server.secret}/{name}")[0] for name in ("", "viewer.js", "data.json", *page.files)
        ]
        bad = {name: get(server, f"/{server.secret}/{name}")[0] for name in escapes}
    assert set(good) == {200}
    assert set(bad.values()) == {404}, bad


def test_nobody_without_the_address_sees_anything(page: Page) -> None:
    with serving(page) as server:
        assert server.server_address[0] == "127.0.0.1"
        port = server.server_port
        assert get(server, "/")[0] == 404
        assert get(server, "/data.json")[0] == 404
        assert get(server, f"/{'x' * len(server.secret)}/data.json")[0] == 404
        inside = f"/{server.secret}/data.json"
        assert get(server, inside, host=f"evil.example:{port}")[0] == 404
        assert get(server, inside, host=HOST)[0] == 404
        assert get(server, inside, method="POST")[0] == 501
        assert get(server, inside, host=f"localhost:{port}")[0] == 200


def test_every_answer_carries_a_policy_without_outside_hosts(page: Page) -> None:
    with serving(page) as server:
        heads = [get(server, path)[1] for path in (f"/{server.secret}/", "/nothing")]
    for head in heads:
        assert head["Content-Security-Policy"].startswith("default-src 'none'")
        assert not re.search(r"https?:|\*", head["Content-Security-Policy"])
        assert (head["X-Content-Type-Options"], head["Cache-Control"]) == ("nosniff", "no-store")


def test_a_browser_that_leaves_in_the_middle_of_the_scan_is_no_error(
    page: Page, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    large = tmp_path / "large.nii.gz"
    large.write_bytes(bytes(16 << 20))
    page.files["scan.nii.gz"] = large
    with serving(page) as server:
        connection = http.client.HTTPConnection(HOST, server.server_port, timeout=20)
        connection.request("GET", f"/{server.secret}/scan.nii.gz")
        answer = connection.getresponse()
        assert answer.status == 200
        answer.close()
        connection.close()
        _wait_for_handlers()
        assert get(server, f"/{server.secret}/")[0] == 200
    assert capfd.readouterr().err == ""


def _wait_for_handlers() -> None:
    for thread in threading.enumerate():
        if "process_request_thread" in thread.name:
            thread.join(timeout=20)


def test_assets_come_with_their_licence_and_version_and_name_no_host() -> None:
    bundle = ASSETS / "niivue.min.js"
    assert bundle.stat().st_size <= 3_000_000
    assert bundle.read_bytes().startswith(b"/* NiiVue 0.69.0 (BSD-2-Clause)")
    assert "BSD 2-Clause License" in (ASSETS / "niivue-license.txt").read_text(encoding="utf-8")
    assert "MIT" in (ASSETS / "niivue-dependencies.txt").read_text(encoding="utf-8")
    for name in ("index.html", "viewer.js", "viewer.css"):
        text = (ASSETS / name).read_text(encoding="utf-8")
        assert "://" not in text
        assert "innerHTML" not in text


def test_wrong_folders_and_scans_are_refused(
    folder: Path, scan: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("TUMORCHAIN_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"holds no answer\.json"):
        make_page(tmp_path, scan, tmp_path)
    with pytest.raises(ScanError, match="pass it with --scan"):
        make_page(folder, None, tmp_path)
    other = scan.parent / "other.nii.gz"
    ct: CT = open_ct(scan)
    write_mask(other, (ct.hu > 0).astype(np.uint8), ct.affine)
    with pytest.raises(ScanError, match=r"other\.nii\.gz is not the scan of this answer"):
        make_page(folder, other, tmp_path)
    (folder / "answer.json").write_text('{"question": "?"}', encoding="utf-8")
    with pytest.raises(InputError, match="can't be read as an answer"):
        make_page(folder, scan, tmp_path)


@pytest.mark.slow
def test_a_click_on_a_claim_moves_the_crosshair_and_outlines_the_organ(page: Page, tmp_path: Path) -> None:
    chromium()
    data = json.loads(page.data)
    centres = {organ["name"]: organ["centre"] for organ in data["organs"]}
    with serving(page) as server, Browser(tmp_path / "profile") as browser:
        browser.open(server.address)
        browser.until("['ready', 'failed'].includes(document.body.dataset.state)", True)
        assert browser.value("document.getElementById('status').textContent") == ""
        browser.value("document.getElementById('claim-1').click()")
        assert browser.value("document.body.dataset.organ") == "liver"
        assert crosshair(browser) == pytest.approx(centres["liver"], abs=0.11)
        assert browser.value("document.getElementById('claim-1').getAttribute('aria-pressed')") == "true"
        at_liver = outlined(browser)
        spleen = "[...document.querySelectorAll('[data-organ=spleen]')][0]"
        browser.value(f"{spleen}.click()")
        at_spleen = outlined(browser)
        assert crosshair(browser) == pytest.approx(centres["spleen"], abs=0.11)
        assert browser.value("document.getElementById('disclaimer').textContent") == DISCLAIMER
        outside = [url for url in browser.requests if not url.startswith((server.address, "data:", "blob:"))]
        assert outside == []
        assert browser.problems == []
    assert at_liver["liver"] > 50
    assert at_spleen["spleen"] > 20
    assert at_liver["spleen"] == at_spleen["liver"] == 0, "what was not clicked has no outline"


def crosshair(browser: Browser) -> list[float]:
    return [float(part) for part in str(browser.value("document.body.dataset.crosshair")).split()]


def outlined(browser: Browser) -> dict[str, int]:
    """Pixels of the picture in the very colour of an organ's outline."""
    image = np.asarray(Image.open(BytesIO(browser.picture())).convert("RGB")).astype(int)
    stage = image[:, : image.shape[1] * 6 // 10]
    return {
        name: int((np.abs(stage - CODES[name].rgb).max(axis=2) <= 3).sum()) for name in ("liver", "spleen")
    }


def _takes_ctrl_c() -> None:
    """Tests that run in the background have it ignored, and so would their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(folder: Path, scan: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "tumorchain_agent.cli", "view", str(folder), "--scan", str(scan), "--no-open"],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_takes_ctrl_c,
    )
    assert process.stdout is not None
    address = process.stdout.readline().split()[0]
    assert process.stdout.readline().strip() == DISCLAIMER
    found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)(/[\w-]{20,}/)", address)
    assert found
    connection = http.client.HTTPConnection(HOST, int(found[1]), timeout=20)
    connection.request("GET", found[2])
    answer = connection.getresponse()
    assert (answer.status, b"<html" in answer.read()) == (200, True)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=30)[1]
    assert (process.returncode, told) == (0, "")
    assert list(temporary.iterdir()) == []
