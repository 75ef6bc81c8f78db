"""Nothing uses the network: not an import, a run, or a report."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WATCH = """
import os, sys

def seen(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        # A path as address is a socket of this machine.
        if not isinstance(args[-1], (str, bytes)) or event != "socket.connect":
            with open(os.environ["NETWORK_SEEN"], "a") as file:
                file.write(f"{event} {args[1:] if event == 'socket.connect' else args}\\n")

sys.addaudithook(seen)
"""


@pytest.fixture
def watched(tmp_path: Path) -> dict[str, str]:
    """An environment in which every Python process logs its look-ups and connections."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    paths = os.pathsep.join([str(tmp_path / "watch"), str(ROOT)])
    return {**os.environ, "PYTHONPATH": paths, "NETWORK_SEEN": str(tmp_path / "seen.txt")}


def python(environment: dict[str, str], *arguments: str) -> None:
    subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )


def test_a_run_and_its_report_need_no_network(watched: dict[str, str], tmp_path: Path) -> None:
    seen, results = tmp_path / "seen.txt", ["--results", str(tmp_path / "results")]
    reach = "import socket, subprocess, sys; s = socket.socket(); s.connect_ex(('127.0.0.1', 9))"
    python(watched, "-c", f"{reach}; subprocess.run([sys.executable, '-c', {reach!r}])")
    assert (
        seen.read_text().count("127.0.0.1") == 2
    )  # so whatever a process or its child reached for would be seen
    seen.unlink()
    cli = ["-m", "lookback"]
    cells = ["--scale", "smoke", "--task", "copy", "--model", "lstm"]
    device = ["--device", "cpu", "--threads", "1"]
    reports = ["--reports", str(tmp_path / "reports")]
    python(watched, *cli, "run", "quick", *cells, *device, *results)
    python(watched, *cli, "report", "quick-smoke", *results, *reports)
    assert list((tmp_path / "reports").rglob("index.html")) and not seen.exists(), seen.read_text()
