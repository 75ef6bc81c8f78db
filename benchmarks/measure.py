"""One cell in a process of its own: `python -m benchmarks.measure JOB`, started by run.py.

JOB is a JSON file: the cell, the plug-ins to import, where to work and where to put the outcome. Progress goes to the
file descriptor it names, a JSON list a line, so that nothing a model or plug-in prints can be taken for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from benchmarks import parallel
from benchmarks.cost import cost, out_of_memory
from benchmarks.machine import memory_bytes
from benchmarks.memory import LiveBytes
from benchmarks.record import Cell, Outcome, Status, TaskFacts, write_atomically
from benchmarks.step import Progress, answers, make_model, model_of, precision
from benchmarks.train import InterruptedRunError, NotFiniteError, learn
from models.contract import check_contract
from models.model import model_names, parameter_count
from tasks.task import AbsentCorpusError, Task, get_task, task_names

INTERRUPTED = 75  # exit code: stopped as asked, to be gone on with
OWN_PACKAGES = ("tasks", "models", "benchmarks")
PROGRESS_SECONDS = 0.2
KERNEL_TOKENS = 1024  # read to see which operators a `cost` cell calls
MEMORY_SHARE = 0.9  # of the machine's, for a cell on a CPU
ECHO_SECONDS = 5.0  # in which torch's launcher notices a process that ended, and ends the others


def load_plugins(files: Sequence[str]) -> None:
    """Import the plug-ins of the entry-point group `lookback.plugins`, and the files named: their decorators register.

    Raises ValueError that names the file when it is missing, fails, or brings packages of the names that ours have.
    """
    task_names(), model_names()  # ours first, so that a name that is taken is taken by ours
    for entry in importlib.metadata.entry_points(group="lookback.plugins"):
        _guarded(f"plug-in {entry.name} ({entry.value})", entry.load)
    for file in files:
        path = Path(file)
        if path.suffix != ".py" or not path.is_file():
            raise ValueError(f"plug-in {file}: expected an existing .py file")
        clash = [name for name in OWN_PACKAGES if (path.parent / name).exists() and _is_foreign(path.parent / name)]
        if clash:
            raise ValueError(
                f"plug-in {file} lies beside a package named {clash[0]!r}, which Lookback has too: python would "
                "import the one for the other; rename yours, or move the plug-in out of that folder"
            )
        spec = importlib.util.spec_from_file_location(f"lookback_plugin_{path.stem}", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        _guarded(f"plug-in {file}", lambda spec=spec, module=module: spec.loader.exec_module(module))


def _is_foreign(path: Path) -> bool:
    return path.resolve().parent != Path(__file__).resolve().parent.parent


def _guarded(what: str, load: object) -> None:
    try:
        load()  # type: ignore[operator]
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{what} cannot be loaded: {type(error).__name__}: {said}") from error


def check(cell: Cell) -> int:
    """Raise ValueError when the cell asks for what does not exist; the number of parameters of its model otherwise."""
    task = get_task(cell.task, cell.task_options)
    learning = (*cell.test_lengths, *([cell.first_length] if cell.first_length else []))
    for length in (cell.length, *(learning if cell.kind == "learn" else ())):
        task.check_length(length)
    if cell.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("the torch installed here sees no CUDA GPU: use --device cpu")
    _check_processes(cell)
    if cell.kind == "cost" and task.documents > 1:
        raise ValueError(f"task {task.name!r} has pairs of documents: a `cost` cell measures one sequence at a time")
    with torch.device("meta"):
        return parameter_count(model_of(cell, task))


def _check_processes(cell: Cell) -> None:
    """Raise ValueError where so many processes cannot train the cell together."""
    several = f"processes = {cell.processes}: expected"
    if cell.kind == "cost" and cell.processes > 1:
        raise ValueError(f"{several} 1, for a `cost` cell measures one process on one GPU")
    if cell.shard and cell.processes == 1:
        raise ValueError(f"{several} at least 2, for `shard` splits the model over them")
    if cell.processes > cell.batch_size:
        raise ValueError(f"{several} at most one for each of the {cell.batch_size} sequences of a batch")
    if cell.device == "cuda" and cell.processes > torch.cuda.device_count():
        raise ValueError(f"{several} at most one for each of the {torch.cuda.device_count()} GPUs that torch sees here")


def absent_data(cells: Iterable[Cell]) -> dict[Cell, str]:
    """The cells whose task's data are not on this machine, each with the line that says how to get them."""
    lines: dict[tuple[str, str], str] = {}
    absent = {}
    for cell in cells:
        key = cell.task, json.dumps(cell.task_options, sort_keys=True)
        if key not in lines:
            lines[key] = _how_to_get(cell)
        if lines[key]:
            absent[cell] = lines[key]
    return absent


def _how_to_get(cell: Cell) -> str:
    """What the task says where its data are absent; nothing where they are at hand."""
    try:
        _ = get_task(cell.task, cell.task_options).data
    except AbsentCorpusError as error:
        return str(error)
    return ""


class Reporter:
    """Writes progress to a descriptor, not more often than somebody can read it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.last = descriptor, 0.0

    def __call__(self, done: int, total: int, what: str) -> None:
        if time.monotonic() - self.last > PROGRESS_SECONDS:
            self.last = time.monotonic()
            os.write(self.descriptor, (json.dumps([done, total, what]) + "\n").encode())


def measure(cell: Cell, folder: Path, progress: Progress, stop: list[bool]) -> Outcome:
    """The outcome of a cell; everything that can happen to it, but an interruption, is one."""
    facts = None
    kernels: tuple[str, ...] = ()
    try:
        task = get_task(cell.task, cell.task_options)
        facts = _facts(task)
        with precision(cell):
            check_contract(cell.model, cell.width, cell.depth, cell.model_options, cell.device)
        kernels = kernels_of(cell, task)
        if cell.kind == "cost":
            costs = cost(cell, task, progress)
            status: Status = next(iter(costs.failed.values()), "ok")
            return Outcome(status=status, task=facts, cost=costs, kernels=kernels)
        numbers = learn(cell, task, folder, progress, lambda: stop[0])
        return Outcome(status="ok", task=facts, learn=numbers, kernels=kernels)
    except InterruptedRunError:
        raise
    except NotFiniteError as error:
        return Outcome(status="nan", message=str(error), task=facts, kernels=kernels)
    except Exception as error:
        if out_of_memory(error):
            return Outcome(status="oom", message=_first_line(error), task=facts, kernels=kernels)
        return Outcome(status="error", message=traceback.format_exc()[-2000:], task=facts, kernels=kernels)


def _first_line(error: Exception) -> str:
    """What an error says, briefly; Python's own MemoryError says nothing."""
    return (str(error).strip().splitlines() or ["no memory left"])[0]


def _facts(task: Task) -> TaskFacts:
    return TaskFacts(
        vocabulary=task.vocabulary, classes=task.classes, score=task.score, constant_score=task.constant_score,
        source=task.source, data=task.data,
    )  # fmt: skip


def kernels_of(cell: Cell, task: Task) -> tuple[str, ...]:
    """The operators for attention, WKV and LSTM that one forward pass of the cell really calls."""
    batch = task.batch("train", cell.seed, 0, 1, cell.length)
    model = make_model(cell, task)
    with LiveBytes() as watch, torch.no_grad():
        if cell.kind == "learn":
            answers(model, batch, cell)
        else:  # a beginning will do: longer sequences are there to cost much
            with contextlib.suppress(MemoryError, RuntimeError), precision(cell):
                model(batch.tokens[:, :KERNEL_TOKENS].to(cell.device))
    return tuple(sorted(watch.kernels))


def limit_memory(cell: Cell) -> None:
    """Have torch say that there is no more before this process has taken the machine's memory from everybody else.

    Of what a system can limit, RLIMIT_DATA is closest to what tensors take: address space (RLIMIT_AS) counts libraries
    and what is only set aside. A lower limit that is there (`ulimit -d`) stays. A GPU's driver needs to be free of it.
    """
    if cell.device == "cpu":
        there, most = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = [
            int(MEMORY_SHARE * memory_bytes() / cell.processes),
            *(n for n in (there, most) if n != resource.RLIM_INFINITY),
        ]
        resource.setrlimit(resource.RLIMIT_DATA, (min(wanted), most))


def _die_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends, however that happens (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        sys.exit(INTERRUPTED)


def main() -> None:
    """Measure the cell of the job that the command line names, and write its outcome."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    _die_with(job["parent"])
    if job["cell"]["processes"] > 1:
        _in_several(job)
        return
    stop = [False]
    cell = _prepare(job, stop)
    try:
        outcome = measure(cell, Path(job["folder"]), Reporter(job["progress"]), stop)
    except InterruptedRunError:
        sys.exit(INTERRUPTED)
    write_atomically(Path(job["outcome"]), outcome.model_dump_json())


def _prepare(job: dict[str, Any], stop: list[bool]) -> Cell:
    """Make this process ready to measure a job's cell: asked to stop, it notes so in `stop`."""
    cell = Cell.model_validate(job["cell"])

    def asked_to_stop(number: int, frame: FrameType | None) -> None:
        stop[0] = True
        if cell.kind == "cost":  # has nothing to save
            sys.exit(INTERRUPTED)

    signal.signal(signal.SIGTERM, asked_to_stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the runner decides
    torch.set_num_threads(max(1, job["threads"] // cell.processes))
    torch.backends.cuda.matmul.fp32_precision = "ieee"  # float32 is float32: no TF32, in any model
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # type: ignore[attr-defined]
    # cuDNN's attention makes a graph for every new length, tens of milliseconds each; costs alone keep to one length
    torch.backends.cuda.enable_cudnn_sdp(cell.kind == "cost")
    limit_memory(cell)
    load_plugins(job["plugins"])
    if cell.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
    return cell


def _in_several(job: dict[str, Any]) -> None:
    """Measure a job's cell in as many processes as it asks for; this one ends as the first of them that ended badly."""
    launched = {**job, "parent": os.getpid()}
    with Connection(job["progress"], readable=False) as progress:
        code = parallel.launch(_part, job["cell"]["processes"], Path(job["folder"]), launched, progress)
    if code < 0:
        with contextlib.suppress(OSError):  # of SIGKILL nobody can
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _part(job: dict[str, Any], progress: Connection) -> None:
    """What each of several processes does. The first says how it went, or else the one that went wrong."""
    _die_with(job["parent"])
    stop = [False]
    cell = _prepare(job, stop)
    with parallel.joined(cell.device, cell.time_limit):
        first = parallel.rank() == 0
        try:
            outcome = measure(cell, Path(job["folder"]), Reporter(progress.fileno()) if first else _silent, stop)
        except InterruptedRunError:
            return
        failed = outcome.status in ("error", "oom")
        if outcome.status == "error":  # perhaps only because another process ended: that one is noticed meanwhile
            time.sleep(ECHO_SECONDS)
        if failed and (stop[0] or Path(job["outcome"]).exists()):  # another was first to say what is wrong
            return
        if first or failed:
            write_atomically(Path(job["outcome"]), outcome.model_dump_json())
        if failed:
            os._exit(1)  # at once: the others may wait for this process in vain


def _silent(done: int, total: int, what: str) -> None:
    """Progress of a process that nobody watches."""


if __name__ == "__main__":
    main()
