"""``tumorchain-agent view``: an answer beside its scan, in the browser, without anything leaving the machine."""

from __future__ import annotations

import argparse
import gzip
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorchain_agent.cli_numbers import whole
from tumorchain_agent.errors import InputError

if TYPE_CHECKING:
    from tumorchain_agent.records import Answer
    from tumorchain_agent.tools.scan import CT
    from tumorchain_agent.viewer import Page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder that ask wrote")
    parser.add_argument(
        "--scan", metavar="SCAN", type=Path, help="the scan, if it is no longer where it was asked about"
    )
    parser.add_argument("--port", metavar="N", type=whole(0), default=0, help="port (default: a free one)")
    parser.add_argument("--no-open", action="store_true", help="print the address, open no browser")


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted; 0."""
    import webbrowser

    from tumorchain_agent.records import DISCLAIMER
    from tumorchain_agent.viewer import ViewServer

    with tempfile.TemporaryDirectory(prefix="tumorchain-view-") as private:
        page = make_page(args.folder, args.scan, Path(private))
        with ViewServer(page, args.port) as server:
            print(f"{server.address}  (Ctrl-C ends)\n{DISCLAIMER}", flush=True)
            if not args.no_open:
                webbrowser.open(server.address)
            try:
                server.serve_forever(poll_interval=0.2)
            except KeyboardInterrupt:
                return 0
    return 0


def make_page(folder: Path, scan: Path | None, private: Path) -> Page:
    """The page of an answer's folder; the scan is converted into ``private``. Raises InputError."""
    from tumorchain_agent.viewer import Page
    from tumorchain_agent.viewer_data import LABEL_MAP, read_answer, read_labels, view_data

    answer = read_answer(folder)
    labels = read_labels(folder)
    ct = _find(answer, scan)
    if labels is not None and labels.values.shape != ct.shape:
        raise InputError(f"{folder / LABEL_MAP} is not of this scan; ask again, into another folder")
    target = private / "scan.nii.gz"
    write_scan(target, ct)
    return Page.make(view_data(answer, labels), target, folder / LABEL_MAP if labels else None, LABEL_MAP)


def _find(answer: Answer, given: Path | None) -> CT:
    """The scan that was asked about, told by its content, wherever it lies."""
    from tumorchain_agent.errors import ScanError
    from tumorchain_agent.tools.scan import open_ct

    path, volume = (given, None) if given is not None else _last_place(answer)
    name = answer.scan.file_name
    if path is None or not path.exists():
        raise ScanError(f"{name} is not known to this machine any more; pass it with --scan", "missing")
    ct = open_ct(path) if volume is None else open_ct(path, volume=volume)
    if ct.scan_id != answer.scan.scan_id:
        raise ScanError(f"{path.name} is not the scan of this answer; pass {name} with --scan")
    return ct


def _last_place(answer: Answer) -> tuple[Path | None, int | None]:
    from tumorchain_agent.cli_ask import load_settings
    from tumorchain_agent.mcp_server.index import Index

    fact = Index(load_settings().cache_dir / "index").read("scans", answer.scan.scan_id)
    return (Path(fact["path"]), fact.get("volume")) if fact else (None, None)


def write_scan(path: Path, ct: CT) -> None:
    """The scan as ``.nii.gz`` in whole HU on its RAS+ grid."""
    import nibabel
    import numpy as np

    nifti: Any = nibabel.Nifti1Image
    whole_hu = np.clip(np.rint(ct.hu), -32768, 32767).astype(np.int16)
    image = nifti(whole_hu, ct.affine, dtype=np.int16)
    image.header.set_xyzt_units("mm")
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(image.to_bytes())
