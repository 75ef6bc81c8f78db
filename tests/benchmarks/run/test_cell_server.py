"""Cells that a server forks are those of fresh processes, and end with it."""

import signal
import threading
from pathlib import Path

import pytest

from lookback.benchmarks.record import AnyCell, Outcome
from lookback.benchmarks.run.cell_server import CellServer
from lookback.benchmarks.run.process import ALLOCATOR, measure_in_process
from lookback.benchmarks.storage import record_files
from tests.processes import LINUX, runner_of, tiny, wait_until
from tests.records import as_cost

pytestmark = [LINUX, pytest.mark.xdist_group("cell server")]  # the tests share one server


@pytest.fixture(scope="module")
def server():
    server = CellServer(ALLOCATOR)
    yield server
    server.close()


def measured(cell: AnyCell, folder: Path, server: CellServer | None) -> Outcome:
    outcome, _ = measure_in_process(
        cell,
        folder,
        plugins=(),
        threads=1,
        stop_requests=lambda: 0,
        progress=lambda *progress: None,
        server=server,
    )
    return outcome


@pytest.mark.parametrize("model", ["transformer", "rwkv", "lstm"])
def test_a_forked_cell_learns_what_a_fresh_process_learns(
    cell: AnyCell, tmp_path: Path, server: CellServer, model: str
) -> None:
    cell = cell.model_copy(update={"model": model})
    forked = measured(cell, tmp_path / "forked", server)
    fresh = measured(cell, tmp_path / "fresh", None)
    assert forked.status == fresh.status == "ok"
    assert forked.learn.tests == fresh.learn.tests
    assert [point.loss for point in forked.learn.curve] == [
        point.loss for point in fresh.learn.curve
    ]


def test_a_forked_cell_counts_the_same_bytes(
    cell: AnyCell, tmp_path: Path, server: CellServer
) -> None:
    cost = as_cost(cell, {"repeats": 1})
    forked = measured(cost, tmp_path / "forked", server).cost
    fresh = measured(cost, tmp_path / "fresh", None).cost
    for name in ("training", "prefill", "decode"):
        assert forked.phases[name].peak_bytes == fresh.phases[name].peak_bytes
        assert forked.phases[name].flops == fresh.phases[name].flops


def test_cells_side_by_side_have_their_own_outcomes(
    cell: AnyCell, tmp_path: Path, server: CellServer
) -> None:
    outcomes = {}

    def run(seed: int) -> None:
        seeded = cell.model_copy(update={"seed": seed})
        outcomes[seed] = measured(seeded, tmp_path / str(seed), server)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {outcome.status for outcome in outcomes.values()} == {"ok"}
    losses = {outcome.learn.curve[-1].loss for outcome in outcomes.values()}
    assert len(losses) == 3


def test_cells_end_with_their_server(cell: AnyCell, tmp_path: Path) -> None:
    server = CellServer(ALLOCATOR)
    long = cell.model_copy(update={"steps": 1_000_000})
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(measured(long, tmp_path, server)))
    thread.start()
    wait_until(lambda: bool(server.processes), "the cell has started")
    (pid,) = server.processes
    server.process.send_signal(signal.SIGKILL)
    thread.join(timeout=60)
    assert outcomes[0].status == "killed"
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the cell ends")

    # The next cell gets a new server.
    assert measured(cell, tmp_path / "next", server).status == "ok"
    server.close()


def test_a_cell_that_is_stopped_while_the_server_starts_leaves_nothing(tmp_path: Path) -> None:
    """The run waits for the server's imports no longer than its user does."""
    runner = runner_of(tmp_path, tiny(seed=0), tiny(seed=1))
    timer = threading.Timer(0.3, lambda: signal.raise_signal(signal.SIGTERM))
    timer.start()
    assert runner.run() == 128 + signal.SIGTERM
    assert not list(tmp_path.glob("*/.work/*/output.txt")) and not list(record_files(tmp_path))
