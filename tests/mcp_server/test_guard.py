"""No path leads out of the roots, whichever tool is given it."""

from __future__ import annotations

import os
import shutil
import socket
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from tests.mcp_server.conftest import Files, call, text_of, with_client
from tumorchain_agent.errors import InputError, ScanError
from tumorchain_agent.mcp_server.guard import NoGuard, PathGuard
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.settings import Settings

SECRET = "the secret"


@pytest.fixture
def root(tmp_path: Path, files: Files) -> Iterator[Path]:
    """A root with a scan, beside a folder that is none of the callers' business, and traps inside."""
    root, outside = tmp_path / "scans", tmp_path / "outside"
    (root / "patient").mkdir(parents=True)
    outside.mkdir()
    shutil.copy(files.scan, root / "patient" / "ct.nii.gz")
    shutil.copy(files.masks, root / "patient" / "masks.nii.gz")
    shutil.copy(files.scan, outside / "ct.nii.gz")
    (outside / "secret.txt").write_text(SECRET)
    (tmp_path / "scans-of-others").mkdir()
    shutil.copy(files.scan, tmp_path / "scans-of-others" / "ct.nii.gz")
    (root / "link.nii.gz").symlink_to(outside / "ct.nii.gz")
    (root / "inner-link.nii.gz").symlink_to(root / "patient" / "ct.nii.gz")
    (root / "dangling.nii.gz").symlink_to(outside / "none.nii.gz")
    (root / "loop").symlink_to(root / "loop")
    (root / "linked").symlink_to(outside)
    (root / "to-root").symlink_to("/")
    (root / "pipe.nii.gz").unlink(missing_ok=True)
    os.mkfifo(root / "pipe.nii.gz")
    for name in ("series-with-link", "series-with-pipe", "series-deep"):
        (root / name / "a" / "b").mkdir(parents=True)
    (root / "series-with-link" / "1.dcm").symlink_to(outside / "secret.txt")
    os.mkfifo(root / "series-with-pipe" / "1.dcm")
    (root / "series-deep" / "a" / "b" / "1.dcm").symlink_to(outside / "secret.txt")
    short = Path(f"/tmp/tumorchain-{os.getpid()}.sock")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(short))
        shutil.move(short, root / "socket.nii.gz")
        yield root


ESCAPES: list[str] = [
    "{out}/ct.nii.gz",
    "{out}/secret.txt",
    "{out}",
    "{out}/",
    "{top}",
    "{top}/scans-of-others/ct.nii.gz",
    "{root}-of-others/ct.nii.gz",
    "/",
    "//",
    "/etc/passwd",
    "/etc/shadow",
    "/etc",
    "/proc/self/environ",
    "/proc/self/cwd/outside/ct.nii.gz",
    "/proc/self/root/etc/passwd",
    "/proc/self/fd/0",
    "/proc/1/mem",
    "/dev/zero",
    "/dev/stdin",
    "/dev/random",
    "/dev/fd/0",
    "/dev/tty",
    "/sys/class",
    "..",
    "../outside/ct.nii.gz",
    "../scans-of-others/ct.nii.gz",
    "patient/../../outside/ct.nii.gz",
    "patient/../../../../../../../../etc/passwd",
    "{root}/../outside/ct.nii.gz",
    "{root}/patient/../../outside/ct.nii.gz",
    "{root}/./../outside/ct.nii.gz",
    "{root}/patient/..",
    "./../outside/ct.nii.gz",
    "patient/../patient/ct.nii.gz",
    "link.nii.gz",
    "{root}/link.nii.gz",
    "inner-link.nii.gz",
    "dangling.nii.gz",
    "loop",
    "loop/loop/ct.nii.gz",
    "linked",
    "linked/ct.nii.gz",
    "linked/secret.txt",
    "{root}/linked/ct.nii.gz",
    "linked/../outside/ct.nii.gz",
    "to-root/etc/passwd",
    "to-root/proc/self/environ",
    "pipe.nii.gz",
    "{root}/pipe.nii.gz",
    "socket.nii.gz",
    "series-with-link",
    "series-with-pipe",
    "series-deep",
    ".",
    "{root}",
    "file:///etc/passwd",
    "file://{out}/ct.nii.gz",
    "FILE:{out}/ct.nii.gz",
    "http://127.0.0.1:1/ct.nii.gz",
    "https://example.org/ct.nii.gz",
    "s3://bucket/ct.nii.gz",
    "ftp://example.org/ct.nii.gz",
    "smb://host/share/ct.nii.gz",
    "data:application/gzip;base64,H4sI",
    "zip:{root}/patient/ct.nii.gz",
    "\\\\host\\share\\ct.nii.gz",
    "//host/share/ct.nii.gz",
    "\\\\?\\C:\\ct.nii.gz",
    "C:\\scans\\ct.nii.gz",
    "c:/scans/ct.nii.gz",
    "..\\outside\\ct.nii.gz",
    "patient\\..\\..\\outside\\ct.nii.gz",
    "~/.ssh/id_rsa",
    "~",
    "~root/.bashrc",
    "$HOME/ct.nii.gz",
    "${{PWD}}/../outside/ct.nii.gz",
    "`pwd`/ct.nii.gz",
    "patient/ct.nii.gz\0.txt",
    "\0/etc/passwd",
    "patient/ct.nii.gz\n/etc/passwd",
    "",
    "   ",
    "%2e%2e/outside/ct.nii.gz",
    "..%2foutside/ct.nii.gz",
    "．．/outside/ct.nii.gz",
    "．．／outside／ct.nii.gz",
    "․․/outside/ct.nii.gz",
    "patient/ct.nii.gz/../../../outside/ct.nii.gz",
    "patient/ct.nii.gz/ct.nii.gz",
    "x" * 5000,
    "a/" * 2500 + "ct.nii.gz",
]


def filled(template: str, root: Path) -> str:
    return template.format(root=root, out=root.parent / "outside", top=root.parent)


def test_there_are_at_least_sixty_ways_out() -> None:
    assert len(set(ESCAPES)) >= 60


def test_no_way_out_is_a_path_that_may_be_read(root: Path) -> None:
    guard = PathGuard([root])
    for escape in ESCAPES:
        with pytest.raises(ScanError) as caught:
            guard.read(filled(escape, root), ScanError)
        text = str(caught.value)
        assert str(root) in text
        assert "\n" not in text


Given = Callable[[str, str], tuple[str, dict[str, Any]]]
TOOLS: dict[str, Given] = {
    "open_scan": lambda path, _: ("open_scan", {"path": path}),
    "masks": lambda path, scan: ("segment_organs", {"scan_id": scan, "masks": path}),
    "lesions": lambda path, scan: ("measure_lesions", {"scan_id": scan, "mask": path}),
    "contact": lambda path, scan: (
        "measure_contact",
        {"scan_id": scan, "a": "lesion", "b": "aorta", "mask": path},
    ),
    "ask": lambda path, _: ("ask", {"path": path, "question": "TNM?"}),
    "ask masks": lambda path, _: (
        "ask",
        {"path": "patient/ct.nii.gz", "question": "TNM?", "masks": path},
    ),
}


def test_every_tool_that_takes_a_path_refuses_every_way_out(settings: Settings, root: Path) -> None:
    async def steps(client: Client) -> None:
        scan = (await call(client, "open_scan", path="patient/ct.nii.gz"))["scan_id"]
        await call(client, "segment_organs", scan_id=scan, masks="patient/masks.nii.gz")
        for make in TOOLS.values():
            for escape in ESCAPES:
                tool, arguments = make(filled(escape, root), scan)
                result = await client.call_tool(tool, arguments)
                text = text_of(result)
                assert result.is_error, (tool, escape)
                assert "is refused: " in text, (tool, escape, text)
                assert SECRET not in text

    with Workbench(settings, guard=PathGuard([root])) as bench:
        with_client(bench, steps)


def test_the_refusal_names_the_roots_and_the_nearest_path(root: Path) -> None:
    with pytest.raises(ScanError) as caught:
        PathGuard([root]).read("patients/ct.nii", ScanError)
    assert f"files are read below {root} only" in str(caught.value)
    assert f"the nearest path there is {root}/patient/ct.nii.gz" in str(caught.value)


def test_what_lies_outside_is_refused_alike_whether_it_exists_or_not(root: Path) -> None:
    guard = PathGuard([root])
    said = []
    for name in ("secret.txt", "scarce.txt"):
        with pytest.raises(ScanError) as caught:
            guard.read(str(root.parent / "outside" / name), ScanError)
        said.append(str(caught.value).replace(name, "NAME"))
    assert said[0] == said[1]


def test_paths_below_any_root_are_read_absolute_or_relative(root: Path) -> None:
    other = root.parent / "scans-of-others"
    guard = PathGuard([root, other])
    assert guard.read("patient/ct.nii.gz", ScanError) == root / "patient" / "ct.nii.gz"
    assert guard.read("ct.nii.gz", ScanError) == other / "ct.nii.gz"
    assert guard.read(str(other / "ct.nii.gz"), ScanError) == other / "ct.nii.gz"
    assert guard.read("./patient", ScanError) == root / "patient"


def test_a_root_is_a_folder_that_exists_and_not_the_file_system(root: Path) -> None:
    for bad in (Path("/"), root / "none", root / "patient" / "ct.nii.gz", root / "to-root"):
        with pytest.raises(InputError, match="--root"):
            PathGuard([bad])
    with pytest.raises(InputError, match="--root"):
        PathGuard([])


def test_a_zip_whose_entries_point_outside_writes_and_reads_nothing_there(
    settings: Settings, root: Path
) -> None:
    link = zipfile.ZipInfo("link.dcm")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(root / "evil.zip", "w") as archive:
        archive.writestr("../../escaped.dcm", b"\0" * 128 + b"DICM")
        archive.writestr("/tmp/tumorchain-escaped.dcm", b"\0" * 128 + b"DICM")
        archive.writestr(link, str(root.parent / "outside" / "secret.txt"))

    async def steps(client: Client) -> None:
        result = await client.call_tool("open_scan", {"path": "evil.zip"})
        assert result.is_error
        assert SECRET not in text_of(result)

    with Workbench(settings, guard=PathGuard([root])) as bench:
        with_client(bench, steps)
    assert not list(root.parent.rglob("escaped.dcm"))
    assert not Path("/tmp/tumorchain-escaped.dcm").exists()


def test_a_scan_that_another_process_opened_elsewhere_is_not_given_to_guarded_callers(
    settings: Settings, root: Path, files: Files
) -> None:
    with Workbench(settings) as free:
        scan = free.open_scan(str(files.scan)).scan_id
        seg = free.segment_organs(scan, None, str(files.masks)).segmentation_id
        assert isinstance(free.guard, NoGuard)

    async def steps(client: Client) -> None:
        for tool in ("segment_organs", "measure_organs", "encode_scan", "list_organs", "measure_lesions"):
            more = {"mask": "patient/masks.nii.gz"} if tool == "measure_lesions" else {}
            result = await client.call_tool(tool, {"scan_id": scan, **more})
            assert result.is_error, tool
            assert text_of(result).startswith("ScanError: "), tool
        for uri in (f"scan://{scan}", f"mask://{scan}/{seg}/label-map", f"measurement://{scan}/{seg}/liver"):
            with pytest.raises(Exception, match="ScanError"):
                await client.read_resource(uri)
        assert (await call(client, "open_scan", path="patient/ct.nii.gz"))["scan_id"] == scan
        assert await call(client, "measure_organs", scan_id=scan)

    with Workbench(settings, guard=PathGuard([root])) as bench:
        with_client(bench, steps)
