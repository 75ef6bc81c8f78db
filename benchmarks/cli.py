"""The command `lookback`: a verb each for what people do. torch is imported only inside the verbs
that need it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from lookback.benchmarks.describe.lists import Entry, catalogue
from lookback.benchmarks.suite import DEFAULT_SCALE, read_suite, scaled, select, suite_names

app = typer.Typer(
    help="How far back can a sequence model look, and what does it pay for it?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

ATTEMPT_ALL = (
    "Also cells predicted not to fit in memory, to end as `oom`. On a CPU they are left out, for they fill the memory "
    "first, which takes time and slows others down; a GPU says no at once, so there they always run."
)
ASSUME_FLOPS = "Operations a second, for the dry run's hours of cells to which no record is near."
TOO_BIG = "they are predicted to need more memory than this machine has; --attempt-all runs them all the same"

RESULTS, REPORTS, PAPER = Path("results"), Path("reports"), Path("paper")
FOR_PAPERS = (
    "`paper` draws for a paper's columns, in its type, and writes each figure also as PDF and PNG of 300 dpi and each "
    "table as LaTeX and CSV, by default into paper/."
)
QUESTIONS = (
    "claims, complexity, generation, rrwkv, lra-table or enwik8"  # pages beside those of suites
)


class Kind(StrEnum):
    """What there are lists of."""

    tasks = "tasks"
    models = "models"
    suites = "suites"


class Style(StrEnum):
    """How figures are drawn: for a page of ours, or for a paper."""

    page = "page"
    paper = "paper"


class Device(StrEnum):
    """Where cells run; `auto` is the GPU where there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Engine(StrEnum):
    """Who starts the processes of the cells."""

    local = "local"
    ray = "ray"
    slurm = "slurm"


Plugins = Annotated[
    list[str] | None, typer.Option("--plugin", help="Python file that registers tasks or models.")
]
Results = Annotated[Path, typer.Option(help="Folder of records.")]
Threads = Annotated[
    int,
    typer.Option(
        help="Threads of torch in each cell; 0 for OMP_NUM_THREADS, or else one a core.", min=0
    ),
]


@app.command("list")
def list_(
    kind: Kind, as_json: Annotated[bool, typer.Option("--json")] = False, plugin: Plugins = None
) -> None:
    """List tasks, models or suites."""
    if kind == Kind.suites:
        entries = [
            Entry(name, f"benchmarks/suites/{name}.toml", read_suite(name).title)
            for name in suite_names()
        ]
    else:
        entries = catalogue(kind.value, plugin or [])
    if as_json:
        print(json.dumps([dataclasses.asdict(entry) for entry in entries], indent=1))
    else:
        width = max(len(entry.name) for entry in entries)
        print("\n".join(f"{entry.name:{width}}  {entry.summary}" for entry in entries))


@app.command()
def describe(name: str, plugin: Plugins = None) -> None:
    """Show what a task asks (with examples), how a model is built, or what a suite measures."""
    is_suite = name.endswith(".toml") or name in suite_names()
    if not is_suite or name in {
        entry.name for kind in ("tasks", "models") for entry in catalogue(kind, plugin or [])
    }:
        from lookback.benchmarks.describe.cards import card

        print(card(name, plugin or []), end="\n\n" if is_suite else "\n")
    if is_suite:
        suite = read_suite(name)
        match = f"{suite.match}; here they stand as in the file\n\n" if suite.match else ""
        print(
            f"Suite {name}: {suite.title}\n\n{match}" + "\n".join(cell.id for cell in suite.cells)
        )


@app.command()
def run(
    suite: Annotated[str, typer.Argument(help="Name of a suite, or the path of a TOML file.")],
    task: Annotated[
        list[str] | None, typer.Option(help="These tasks only, or in place of the suite's.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="These models only, or in place of the suite's.")
    ] = None,
    length: Annotated[
        list[int] | None, typer.Option(help="These lengths only, or in place of the suite's.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="These seeds only, or in place of the suite's.")
    ] = None,
    scale: Annotated[
        str, typer.Option(help="smoke, small or paper, where the suite has it.")
    ] = DEFAULT_SCALE,
    device: Device = Device.auto,
    plugin: Plugins = None,
    results: Results = RESULTS,
    threads: Threads = 0,
    tolerance: Annotated[
        float | None,
        typer.Option(help="How near the sizes that [match] asks for must come.", min=0),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what each cell would need; measure none.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The dry run for machines.")] = False,
    assume_flops: Annotated[float | None, typer.Option(help=ASSUME_FLOPS)] = None,
    attempt_all: Annotated[bool, typer.Option("--attempt-all", help=ATTEMPT_ALL)] = False,
    engine: Annotated[
        Engine, typer.Option(help="Here, cell by cell; or all over a Ray cluster, or Slurm.")
    ] = Engine.local,
    address: Annotated[
        str, typer.Option(help="Of the Ray cluster; else RAY_ADDRESS, else one is started here.")
    ] = "",
    machine: Annotated[
        str, typer.Option(help="Of a cluster of several types of machine, the one to measure on.")
    ] = "",
    share: Annotated[
        float,
        typer.Option(help="Of a GPU, for each cell of Ray's that is not timed.", min=0.01, max=1),
    ] = 1.0,
    slurm: Annotated[
        list[str] | None, typer.Option(help="An option of sbatch, as NAME=VALUE: partition=gpu.")
    ] = None,
) -> None:
    """Measure every cell of a suite that has no record yet."""
    from lookback.benchmarks.measure.cell import absent_data, check, resolve_options
    from lookback.benchmarks.plan.match_widths import match_widths
    from lookback.benchmarks.plugins import load_plugins
    from lookback.benchmarks.run.runner import Runner

    load_plugins(plugin or [])
    here = dry_run or engine == Engine.local
    chosen = read_suite(
        suite, scale, _device(device) if here else _device_of(engine, address, device)
    )
    cells = chosen.cells
    for field, values in (("task", task), ("model", model), ("length", length), ("seed", seed)):
        cells = select(cells, field, values) if values else cells
    chosen = match_widths(dataclasses.replace(chosen, cells=cells), tolerance)
    for cell in chosen.cells:
        check(
            cell.model_copy(update={"device": "cpu"}) if dry_run or engine != Engine.local else cell
        )
    absent = absent_data(chosen.cells)
    _say_left_out(list(absent.values()))
    cells = tuple(cell for cell in chosen.cells if cell not in absent)
    runner = Runner(
        results,
        dataclasses.replace(chosen, cells=cells),
        plugins=plugin or [],
        threads=threads,
        options={cell: resolve_options(cell) for cell in cells},
    )
    if dry_run:
        from lookback.benchmarks.plan.dry_run import make_plan

        plan = make_plan(runner, assume_flops)
        print(json.dumps([line.values() for line in plan.lines], indent=1) if as_json else plan)
        return
    if cells and not here:
        from lookback.benchmarks.run.ray_engine import on_ray, on_slurm

        runner = (
            on_ray(runner, share, machine)
            if engine == Engine.ray
            else on_slurm(runner, slurm or [])
        )
    if cells and cells[0].device == "cpu" and not attempt_all:
        from lookback.benchmarks.plan.dry_run import without_too_big

        runner = without_too_big(runner)
        _say_left_out([TOO_BIG] * (len(cells) - len(runner.suite.cells)))
    raise typer.Exit((runner.run() if runner.suite.cells else 0) or int(bool(absent)))


def _say_left_out(reasons: list[str]) -> None:
    for reason in dict.fromkeys(reasons):
        print(f"lookback: {reasons.count(reason)} cells left out: {reason}", file=sys.stderr)


@app.command()
def reach(
    suite: Annotated[
        str, typer.Argument(help="Name of a suite, or the path of a TOML file.")
    ] = "reach",
    model: Annotated[
        list[str] | None, typer.Option(help="These models only, or in place of the suite's.")
    ] = None,
    scale: Annotated[
        str, typer.Option(help="smoke, small or paper, where the suite has it.")
    ] = DEFAULT_SCALE,
    device: Device = Device.auto,
    plugin: Plugins = None,
    results: Results = RESULTS,
    reports: Annotated[Path, typer.Option(help="Folder for what is made.")] = REPORTS,
    threads: Threads = 0,
) -> None:
    """Measure how much of an output's gradient arrives how far back, before training and after, and
    report it.
    """
    chosen = read_suite(suite, scale)
    if not any(cell.reach for cell in chosen.cells):
        raise ValueError(
            f"suite {chosen.name!r} measures no reach: expected cells with reach = true"
        )
    code = 0
    try:
        run(
            suite,
            model=model,
            scale=scale,
            device=device,
            plugin=plugin,
            results=results,
            threads=threads,
        )
    except typer.Exit as ended:
        code = ended.exit_code
    if code <= 1:  # not interrupted
        report([suite], scale, results=results, reports=reports)
    raise typer.Exit(code)


def _device(device: Device) -> str:
    if device != Device.auto:
        return device.value
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _device_of(engine: Engine, address: str, device: Device) -> str:
    """That of a cluster, which Ray can tell when it is joined."""
    from lookback.benchmarks.run.ray_engine import join_ray, ray_device

    if engine == Engine.ray:
        join_ray(address)
        return ray_device() if device == Device.auto else device.value
    if device == Device.auto:
        raise ValueError(
            "--engine slurm: expected --device cuda or --device cpu, for what the nodes have is not known here"
        )
    return device.value


@app.command()
def report(
    suite: Annotated[
        list[str] | None,
        typer.Argument(
            help=f"Names of suites or of {QUESTIONS}; every page there are records for, if none."
        ),
    ] = None,
    scale: Annotated[
        str, typer.Option(help="Of the suites named: smoke, small or paper.")
    ] = DEFAULT_SCALE,
    of: Annotated[
        str,
        typer.Option(help="The suite that a page of a question is made of, in place of its own."),
    ] = "",
    results: Results = RESULTS,
    reports: Annotated[
        Path | None, typer.Option(help="Folder for what is made, in place of reports/.")
    ] = None,
    style: Annotated[Style, typer.Option(help=FOR_PAPERS)] = Style.page,
) -> None:
    """Make tables, figures and pages from records: of suites and questions, or all that there are
    records for.
    """
    from lookback.benchmarks.report import make_all, make_named
    from lookback.benchmarks.report.style import using

    names = [Path(name).stem if name.endswith(".toml") else name for name in suite or []]
    named = partial(make_named, names=names, at_scale=partial(scaled, scale=scale), of=of)
    folder = reports or (PAPER if style == Style.paper else REPORTS)
    with using(style.value):
        pages = named(results, folder) if names else make_all(results, folder)
    for made in pages:
        print(f"{made.table}\n\n{made.path}, and as one file {made.path.with_name('index.html')}")


@app.command("compare")
def compare_(
    a: Annotated[Path, typer.Argument(help="Folder of records: before, or theirs.")],
    b: Annotated[Path, typer.Argument(help="Folder of records: after, or ours.")],
    tolerance: Annotated[
        float, typer.Option(help="Share by which the medians of times may differ.")
    ] = 0.1,
    as_json: Annotated[
        bool, typer.Option("--json", help="All that was compared, for machines.")
    ] = False,
) -> None:
    """Say what changed from A to B beyond the interval; exit code 1 when anything did."""
    from lookback.benchmarks.report.compare import compare

    found = compare(a, b, tolerance)
    print(found.as_json() if as_json else found)
    raise typer.Exit(int(found.changed))


@app.command()
def prefetch(
    task: Annotated[
        str, typer.Argument(help="Name of a task whose data are fetched, or made once and kept.")
    ],
    length: Annotated[
        int | None, typer.Option(help="Of the sequences, where data are made for a length.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the task, as NAME=JSON.")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Fetch a task's data, or make them all, check them, and keep them under data/."""
    from lookback.benchmarks.describe.data_sets import prefetch as fetch_data

    print(fetch_data(task, length, option or [], plugin or []))


@app.command()
def doctor() -> None:
    """Say what is installed, what is missing, and what will run."""
    from lookback.benchmarks.describe.doctor import findings

    print("\n".join(findings()))


def _in_a_line(said: str) -> str:
    return " ".join(said.split()).replace("Value error, ", "").rstrip(".")


def main() -> None:
    """The console script: wrong use is one line and exit code 2."""
    command: Callable[..., Any] = typer.main.get_command(app)
    try:
        code = command(standalone_mode=False)
    except (ValueError, OSError) as error:
        print(f"lookback: {error}", file=sys.stderr)
        code = 2
    except typer.Abort:
        code = 130
    except Exception as error:
        told = getattr(error, "format_message", None)  # the command line itself was wrong
        if told is None:
            raise
        said = told()
        if sys.argv[1:]:  # of nothing at all it says the help
            said = f"lookback: {_in_a_line(said)} (`lookback VERB --help` says more)"
        print(said, file=sys.stderr)
        code = getattr(error, "exit_code", 2)
    sys.exit(code)


if __name__ == "__main__":
    main()
