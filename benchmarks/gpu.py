"""What a GPU is wanted for, in stages that end in time and go on later: `make gpu`, or `make gpu STAGE=cost`.

A stage is a list of steps, each a command of this project, what tells most first. A step that does not end in time is
interrupted and saves where it is; the next call goes on, also on another machine of the same kind that has the results
folder. docs/gpu.md says what a machine without network needs.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, Literal

ROOT = Path(__file__).parent.parent
FILE = ".file"  # ends the folder of data of one file
GRACE_SECONDS = 30.0  # of the budget: between asking a step to stop and killing it
STARTING_SECONDS = 20.0  # with less than these left no step is begun
UNUSED = ("datasets",)  # fetches from a hub, which has nothing to do here
Status = Literal["done", "failed", "unfinished"]


def unmet() -> list[str]:
    """The requirements of pyproject.toml that this Python does not meet."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return ["packaging"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [str(r) for r in map(Requirement, project["dependencies"]) if r.name not in UNUSED and not _has(r)]


def _has(requirement: Any) -> bool:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return bool(requirement.specifier.contains(version, prereleases=True))


# What there is to do


@dataclass(frozen=True)
class Step:
    """A command, as arguments of Python."""

    name: str
    command: tuple[str, ...]
    resumes: bool = True  # goes on where it was interrupted; else it begins again
    printed: bool = False  # what it prints is kept beside the records
    lasting: bool = True  # what it makes is in the results; else it is made again wherever steps after it are left

    @property
    def key(self) -> str:
        """Of the command and of the suite it runs: a suite that has grown is run again."""
        said = " ".join(self.command)
        if self.command[: len(RUN)] == RUN:
            said += (ROOT / "benchmarks/suites" / f"{self.command[len(RUN)]}.toml").read_text(encoding="utf-8")
        return hashlib.sha256(said.encode()).hexdigest()[:16]


LOOKBACK = ("-m", "benchmarks.cli")
RUN = (*LOOKBACK, "run")
PYTEST = ("-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider")
KERNELS = tuple(f"tests/test_{name}.py" for name in ("wkv_triton", "wkv", "wkv_oracle"))
LRA = ("listops", "text", "pathfinder")


def stages(scale: str) -> dict[str, list[Step]]:
    """The steps of every stage; `scale` is that of the suites, but for costs, which go to the end of memory."""
    largest = scale if scale == "smoke" else "paper"
    return {
        "tests": [
            Step("kernels", (*PYTEST, *KERNELS), resumes=False, printed=True),
            Step("gpu", (*PYTEST, "-m", "gpu"), resumes=False, printed=True),
            Step("others", (*PYTEST, "-n", "auto", "-m", "not slow and not gpu"), resumes=False, printed=True),
        ],
        "profile": [_speed("models", "training_step", "--profile")],
        "speed": [
            _speed("operators", "operator or copy"), _speed("decode", "decode"), _speed("rest", "sampler or records"),
        ],
        "cost": _by_length("cost", largest),
        "recall": _by_seed("recall", scale),
        "copying": _by_seed("copying", scale),
        "ablation": _by_seed("ablation", scale),
        "language": _by_seed("language", scale),
        "lra": _arena(scale),
    }  # fmt: skip


def _speed(name: str, chosen: str, *more: str) -> Step:
    return Step(name, ("-m", "benchmarks.speed_report", "-k", chosen, *more), resumes=False, printed=True)


def _run(name: str, suite: str, scale: str, *chosen: str) -> Step:
    return Step(name, (*RUN, suite, "--scale", scale, *chosen))


def _cells(suite: str, scale: str) -> Any:
    from benchmarks.suite import read_suite

    return read_suite(suite, scale).cells


def _by_seed(suite: str, scale: str) -> list[Step]:
    """One seed of everything before the next."""
    seeds = sorted({cell.seed for cell in _cells(suite, scale)})
    return [_run(f"seed {seed}", suite, scale, "--seed", str(seed)) for seed in seeds]


def _by_length(suite: str, scale: str) -> list[Step]:
    """Every third length up to the longest, then those between; lengths at which tokens are generated come last."""
    cells = _cells(suite, scale)
    slow = {cell.length for cell in cells if cell.generate}
    quick = sorted({cell.length for cell in cells} - slow)[::-1]
    parts = [sorted(part) for part in (*(quick[first::3] for first in range(3)), slow) if part]
    return [
        _run(" ".join(map(str, part)), suite, scale, *(word for n in part for word in ("--length", str(n))))
        for part in parts
    ]


def _arena(scale: str) -> list[Step]:
    """Three tasks of Long Range Arena; pictures are drawn beforehand, by all cores."""
    if scale == "smoke":
        return [_run("all", "lra", scale)]
    seeds = sorted({cell.seed for cell in _cells("lra", scale)})
    drawn = Step("pictures", (*LOOKBACK, "prefetch", "pathfinder"), lasting=False)
    return [
        drawn,
        *(_run(f"{task}, seed {n}", "lra", scale, "--task", task, "--seed", str(n)) for n in seeds for task in LRA),
    ]


# Doing it


@dataclass
class Stages:
    """Does what is left of stages, and notes beside the records what is done."""

    results: Path
    device: str
    budget: float  # seconds a stage
    plan: dict[str, list[Step]]
    environment: dict[str, str] = field(default_factory=dict)
    signal: int = 0  # that somebody sent us
    failed: dict[str, str] = field(default_factory=dict)  # in this call, with a word on each

    def __post_init__(self) -> None:
        from benchmarks.machine import machine

        self.folder = self.results / machine(self.device).slug
        self.notes_path = self.folder / ".work" / "gpu.json"
        self.notes: dict[str, str] = {}
        if self.notes_path.exists():
            self.notes = json.loads(self.notes_path.read_text(encoding="utf-8"))

    def left(self, stage: str) -> list[Step]:
        """The steps that are not done and did not fail in this call; none where only passing ones are left."""
        steps = [step for step in self.plan[stage] if f"{stage}: {step.name}" not in self.failed]
        steps = [step for step in steps if not step.lasting or self.notes.get(f"{stage}: {step.name}") != step.key]
        steps.sort(key=lambda step: self.notes.get(f"{stage}: {step.name}, stuck") == step.key)  # those last
        return steps if any(step.lasting for step in steps) else []

    def run(self, names: Sequence[str], again: bool) -> int:
        """Each stage for its budget; of all that are left `again` and again until nothing is. The exit code."""
        before = {number: signal.signal(number, self._asked) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while not self.signal and any(map(self.left, names)):
                for name in names:
                    self.run_stage(name)
                if not again:
                    break
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        print("\n".join(self.summary(names)), flush=True)
        return 128 + self.signal if self.signal else int(bool(self.failed))

    def run_stage(self, stage: str) -> None:
        end, first, passed = time.monotonic() + self.budget, True, set()
        while not self.signal and (steps := [step for step in self.left(stage) if step.name not in passed]):
            step, seconds = steps[0], end - time.monotonic() - GRACE_SECONDS
            if not first and seconds < (STARTING_SECONDS if step.resumes else self.budget / 2):
                return
            print(f"\n== {stage}: {step.name} ({max(0.0, seconds):.0f} s left)", flush=True)
            before = self._stands()
            status = self.run_step(stage, step, max(seconds, 0.0))
            name = f"{stage}: {step.name}"
            if status == "done" and step.lasting:
                self._note(name, step.key)
            elif status == "failed":
                self.failed[name] = "failed, see above"
            won = step.resumes and self._stands() != before
            if status == "unfinished" and first and not (won or self.signal):
                self.failed[name] = (
                    f"cannot go on where it was, and takes more than the {self.budget:g} seconds of BUDGET"
                )
                self._note(f"{name}, stuck", step.key)
            if status == "unfinished":
                return
            passed.add(step.name)
            first = first and not step.lasting

    def _stands(self) -> set[tuple[str, int]]:
        """The records and checkpoints there are, and when they were written: the same again, and nothing was won."""
        found = (*self.folder.rglob("*.json"), *self.folder.rglob("*.pt"))
        return {(str(path), path.stat().st_mtime_ns) for path in found if path.name not in ("gpu.json", "job.json")}

    def run_step(self, stage: str, step: Step, seconds: float) -> Status:
        """Run a step for so long at most, what it prints shown, and kept where that is what it is for."""
        command = [sys.executable, *step.command]
        if step.command[: len(RUN)] == RUN:
            command += ["--results", str(self.results), "--device", self.device]
        child = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            process_group=0, env={**os.environ, "PYTHONUNBUFFERED": "1", **self.environment},
        )  # fmt: skip
        target = self.folder / "gpu" / f"{stage}-{step.name}.txt" if step.printed else None
        assert child.stdout
        reader = threading.Thread(target=_show, args=(child.stdout, target, self.device))
        reader.start()
        stopped = self._wait(child, time.monotonic() + seconds)
        reader.join()
        if child.returncode == 0:
            return "done"
        return "unfinished" if stopped else "failed"

    def _wait(self, child: subprocess.Popen[bytes], deadline: float) -> bool:
        """Wait for a child; whether it was asked to stop, because its time was over or somebody asked us to."""
        asked = 0.0
        while child.poll() is None:
            now = time.monotonic()
            if not asked and (now > deadline or self.signal):
                asked = now
                child.send_signal(signal.SIGINT)
            elif asked and now > asked + GRACE_SECONDS - 5:
                os.killpg(child.pid, signal.SIGKILL)
            time.sleep(0.05)
        return bool(asked)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def _note(self, name: str, key: str) -> None:
        from benchmarks.record import write_atomically

        self.notes[name] = key
        self.notes_path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.notes_path, json.dumps(self.notes, indent=1))

    def summary(self, names: Iterable[str]) -> Iterator[str]:
        """What is done, what is left, and what to bring home."""
        yield ""
        for name in names:
            steps = [step for step in self.plan[name] if step.lasting]
            undone = [step.name for step in steps if self.notes.get(f"{name}: {step.name}") != step.key]
            rest = f"; left: {', '.join(undone)}" if undone else ""
            yield f"{name:10}{len(steps) - len(undone)} of {len(steps)} steps done{rest}"
        yield from (f"{name}: {what}" for name, what in self.failed.items())
        kept, work = _size(self.folder), _size(self.folder / ".work")
        yield f"bring home {self.folder}: {kept - work:,} bytes of records and tables"
        yield f"and with its .work, {work:,} bytes of checkpoints and notes, to go on on another machine of this kind"


def _show(source: BinaryIO, target: Path | None, device: str) -> None:
    """Pass on what a step prints, into a file too where one is given."""
    kept = bytearray()
    for line in source:
        sys.stdout.write(line.decode(errors="replace"))
        sys.stdout.flush()
        kept += line
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes("\n".join([*measured_on(device), "", ""]).encode() + kept)


def measured_on(device: str) -> list[str]:
    """Lines on when, where and with what something was measured."""
    from benchmarks.machine import commit, machine, versions

    code, changed = commit()
    facts = {"date": datetime.now(UTC).date().isoformat(), **machine(device).facts, **versions()}
    facts["commit"] = f"{code}{' and changes' if changed else ''}"
    return [f"{name:24}{value}" for name, value in facts.items()]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def brought(pack: Path) -> dict[str, str]:
    """Where the data of a pack lie, as environment variables: folders named by a variable, and all others."""
    data = (pack / "data").resolve()
    if not data.is_dir():
        return {}
    named = {path.name: str(path) for path in data.iterdir() if path.name.startswith("LOOKBACK_")}
    files = {name: next(Path(path).iterdir()) for name, path in named.items() if name.endswith(FILE)}
    return {"LOOKBACK_DATA": str(data), **named, **{name.removesuffix(FILE): str(path) for name, path in files.items()}}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__, allow_abbrev=False)
    parser.add_argument("stages", nargs="*", help="all that are left, again and again until none is, if none is named")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds that a stage may take")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--scale", choices=("smoke", "small", "paper"), default="small")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--pack", type=Path, help="what `make gpu-pack` made")
    chosen = parser.parse_args(arguments)
    if lacking := unmet():
        print(f"lookback: this Python lacks {', '.join(lacking)}: bring a pack (docs/gpu.md)", file=sys.stderr)
        return 2
    plan = stages(chosen.scale)
    if unknown := [name for name in chosen.stages if name not in plan]:
        print(f"lookback: no stage {unknown[0]!r}: expected one of {', '.join(plan)}", file=sys.stderr)
        return 2
    environment = brought(chosen.pack) if chosen.pack else {}
    if chosen.scale == "smoke":
        environment["SPEED_SCALE"] = "smoke"
    try:
        doing = Stages(chosen.results.resolve(), chosen.device, chosen.budget, plan, environment)
    except ValueError as error:
        print(f"lookback: {str(error).replace('--device cpu', 'DEVICE=cpu')}", file=sys.stderr)
        return 2
    return doing.run(chosen.stages or list(plan), again=not chosen.stages)


if __name__ == "__main__":
    sys.exit(main())
