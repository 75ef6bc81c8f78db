"""The command `lookback`, with a function for each verb. Only verbs that need torch import it."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import pdb
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import humanize
import typer
from rich.console import Console
from rich.table import Table

from lookback.benchmarks.describe.lists import Entry, catalogue
from lookback.benchmarks.suite import (
    DEFAULT_SCALE,
    Suite,
    cell_count,
    limit_steps,
    read_suite,
    scaled,
    select,
    suite_names,
)

if TYPE_CHECKING:
    from lookback.benchmarks.record import AnyCell
    from lookback.benchmarks.run.runner import Runner

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RESULTS = Path("results")
REPORTS = Path("reports")
PAPER = Path("paper")
TOPICS = "claims, rrwkv or papers"  # pages that look at several suites
TOO_BIG = "predicted to need more memory than this machine has; --attempt-all measures them anyway"
WIDE = 10_000  # columns of output that no terminal shows, so that nothing is wrapped


class Kind(StrEnum):
    """The kinds of entries that `lookback list` lists."""

    tasks = "tasks"
    models = "models"
    suites = "suites"


class Style(StrEnum):
    """How figures are drawn."""

    page = "page"
    paper = "paper"


class Device(StrEnum):
    """Where cells run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Engine(StrEnum):
    """The engines that start the processes of cells."""

    local = "local"
    ray = "ray"


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"lookback {version('lookback')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """How far back can a sequence model look, and what does it pay for it?"""


SuiteArgument = Annotated[str, typer.Argument(help="Name of a suite, or path of a TOML file.")]
Scale = Annotated[str, typer.Option(help="A scale of the suite: smoke, small or paper.")]
Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", help="Python file that registers tasks or models; repeatable."),
]
Results = Annotated[Path, typer.Option(help="Folder of records.")]
Published = Annotated[
    bool, typer.Option("--published", help="Show the published records too, marked as such.")
]
Models = Annotated[list[str] | None, typer.Option("--model", help="Only this model; repeatable.")]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="Only this task; repeatable.")]


@app.command("list")
def list_(
    kind: Kind,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plugin: Plugins = None,
) -> None:
    """List tasks, models or suites."""
    if kind == Kind.suites:
        entries = []
        for name in suite_names():
            suite = read_suite(name)
            summary = f"{suite.title}; {suite.takes}"
            entries.append(Entry(name, f"benchmarks/suites/{name}.toml", summary))
    else:
        entries = catalogue(kind.value, plugin or [])

    if as_json:
        print(json.dumps([dataclasses.asdict(entry) for entry in entries], indent=1))
    else:
        _print_columns([(entry.name, entry.summary) for entry in entries])


def _names(suite: Suite, name: str) -> bool:
    """Whether a suite has a task or a model of this name."""
    return any(name in (cell.task, cell.model) for cell in suite.cells)


def _grids(suite: Suite) -> Iterator[tuple[str, ...]]:
    """Yield kind, task, models, lengths and number of the cells with the same task."""
    groups: dict[tuple[str, str], list[AnyCell]] = {}
    for cell in suite.cells:
        options = ", ".join(f"{key} = {json.dumps(v)}" for key, v in cell.task_options.items())
        groups.setdefault((cell.kind, f"{cell.task} {options}".strip()), []).append(cell)
    for (kind, task), cells in groups.items():
        models = dict.fromkeys(cell.model for cell in cells)
        lengths = sorted({cell.length for cell in cells})
        yield kind, task, ", ".join(models), ", ".join(map(str, lengths)), str(len(cells))


def _print_columns(rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table without lines; on a terminal, long texts wrap within their column."""
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    table = Table.grid(padding=(0, 2))
    for row in rows:
        table.add_row(*row)
    console.print(table)


@app.command()
def describe(
    name: Annotated[str, typer.Argument(help="Name of a task, model or suite, or a TOML file.")],
    plugin: Plugins = None,
) -> None:
    """Show what a task asks (with examples), how a model is built, or what a suite measures."""
    plugins = plugin or []
    is_suite = name.endswith(".toml") or name in suite_names()
    if is_suite:
        _describe_suite(name)
    registered = {entry.name for kind in ("tasks", "models") for entry in catalogue(kind, plugins)}
    if name in registered or not is_suite:  # a plug-in's task may have the name of a suite
        from lookback.benchmarks.describe.cards import card

        print(card(name, plugins))
        asking = [other for other in suite_names() if _names(read_suite(other), name)]
        if asking:
            print(f"\nsuites: {', '.join(asking)}; `lookback describe SUITE` lists their cells")


def _describe_suite(name: str) -> None:
    suite = read_suite(name)
    print(f"Suite {name}: {suite.title}\n")
    if suite.takes:
        print(f"Takes {suite.takes} at the default scale.\n")
    if suite.match:
        print(f"{suite.match}\n")
    _print_columns([("kind", "task", "models", "lengths", "cells"), *_grids(suite)])
    print(f"\n`lookback run {name} --dry-run` lists the cells, and what each needs")


@app.command()
def run(
    suite: SuiteArgument,
    task: Annotated[
        list[str] | None,
        typer.Option(help="Only cells of this task, or this task in place of the suite's."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Only cells of this model, or this model in place of the suite's."),
    ] = None,
    length: Annotated[
        list[int] | None,
        typer.Option(help="Only cells of this length, or this length in place of the suite's."),
    ] = None,
    width: Annotated[
        list[int] | None,
        typer.Option(help="Only cells of this width, or this width in place of the suite's."),
    ] = None,
    depth: Annotated[
        list[int] | None,
        typer.Option(help="Only cells of this depth, or this depth in place of the suite's."),
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="Only cells of this seed, or this seed in place of the suite's."),
    ] = None,
    learning_rate: Annotated[
        list[float] | None,
        typer.Option(help="Only cells of this rate, or this rate in place of the suite's."),
    ] = None,
    scale: Scale = DEFAULT_SCALE,
    device: Annotated[
        Device, typer.Option(help="Where cells run; auto: on the GPU if there is one.")
    ] = Device.auto,
    plugin: Plugins = None,
    results: Results = RESULTS,
    threads: Annotated[
        int,
        typer.Option(
            help="Threads of torch in each cell; 0: one in a cell that learns on a CPU, "
            "else OMP_NUM_THREADS or one per core.",
            min=0,
        ),
    ] = 0,
    jobs: Annotated[
        int,
        typer.Option(
            help="Cells that learn side by side; 0: one per core, or one on a GPU. "
            "Cells whose cost is measured run alone.",
            min=0,
        ),
    ] = 0,
    again: Annotated[
        bool,
        typer.Option("--again", help="Set the records of these cells aside and measure anew."),
    ] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Largest relative difference of the sizes that [match] asks for.", min=0),
    ] = None,
    budget: Annotated[
        float,
        typer.Option(
            help="Seconds after which the running cell saves and stops; "
            "the same command continues the run.",
            min=0,
        ),
    ] = math.inf,
    attempt_all: Annotated[
        bool,
        typer.Option(
            "--attempt-all",
            help="On a CPU, also measure cells that are predicted not to fit in memory. "
            "They end as `oom`, but fill the memory first. On a GPU they always run.",
        ),
    ] = False,
    pilot: Annotated[
        bool,
        typer.Option(
            "--pilot",
            help="Find the learning rate of each model: every cell at the rates of [pilot], or of "
            "--learning-rate, with a part of the tokens and a seed that does not count.",
        ),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Only try the suite: at most so many training steps, few test examples, and a "
            "folder of its own for the records.",
            min=1,
        ),
    ] = None,
    keep_going: Annotated[
        bool,
        typer.Option(
            "--keep-going", help="Go on although two cells of a model end with the same error."
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug",
            help="Measure the first cell in this process and record nothing: breakpoints work, "
            "and an error opens Python's debugger.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what each cell needs, and measure nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the dry run as JSON.")] = False,
    assume_flops: Annotated[
        float | None,
        typer.Option(
            help="Operations per second, for the dry run's hours of models without a record."
        ),
    ] = None,
    engine: Annotated[
        Engine,
        typer.Option(help="local: cell after cell on this machine; ray: on a Ray cluster."),
    ] = Engine.local,
    address: Annotated[
        str,
        typer.Option(help="HOST:PORT of the Ray cluster, or auto; else RAY_ADDRESS, or a new one."),
    ] = "",
    share: Annotated[
        float,
        typer.Option(help="Part of a GPU for each cell of Ray that is not timed.", min=0.01, max=1),
    ] = 1.0,
) -> None:
    """Measure every cell of a suite that has no record yet."""
    deadline = time.monotonic() + budget
    if engine == Engine.local and (address or share < 1):
        raise ValueError("--address and --share are options of Ray: expected --engine ray too")

    from lookback.benchmarks.measure.cell import absent_data, check, check_tasks
    from lookback.benchmarks.run.process import default_jobs

    uses_ray = engine == Engine.ray and not dry_run
    cell_device = _join_ray(address, device) if uses_ray else _device(device)
    whole = read_suite(suite, scale, cell_device)
    chosen = _choose(
        whole,
        plugins=plugin or [],
        fields={
            "task": task,
            "model": model,
            "length": length,
            "width": width,
            "depth": depth,
            "seed": seed,
            "learning_rate": learning_rate,
        },
        pilot=pilot,
        limit=limit,
        tolerance=tolerance,
    )
    if not pilot and not learning_rate:
        _print_without_pilot(whole, chosen)
    for cell in chosen.cells:
        check(cell, here=engine == Engine.local and not dry_run)
    absent = absent_data(chosen.cells)
    _print_left_out(list(absent.values()))
    cells = tuple(cell for cell in chosen.cells if cell not in absent)
    check_tasks(cells)
    if debug and cells:
        raise typer.Exit(_debug(cells[0]))

    runner = _runner(
        results,
        dataclasses.replace(chosen, cells=cells),
        plugins=chosen.plugins,
        threads=threads,
        jobs=jobs or default_jobs(cell_device, threads),
        deadline=deadline,
        share=share,
        keep_going=keep_going,
    )
    if dry_run:
        from lookback.benchmarks.plan.dry_run import make_plan

        plan = make_plan(runner, assume_flops)
        print(json.dumps([line.values() for line in plan.lines], indent=1) if as_json else plan)
        return

    if cells and uses_ray:
        from lookback.benchmarks.run.ray_engine import on_ray

        runner = on_ray(runner)
    if cells and cell_device == "cpu" and not attempt_all:
        from lookback.benchmarks.plan.dry_run import without_too_big

        runner = without_too_big(runner)
        _print_left_out([TOO_BIG] * (len(cells) - len(runner.suite.cells)))
    if again:
        count = runner.set_records_aside()
        print(f"{count} records set aside as .json.old; to continue this run, leave out --again")
    code = _measure(runner, suite, pilot)
    raise typer.Exit(code or int(bool(absent)))


def _choose(
    suite: Suite,
    plugins: Sequence[str],
    fields: Mapping[str, Sequence[Any] | None],
    pilot: bool,
    limit: int | None,
    tolerance: float | None,
) -> Suite:
    """Return the suite with the cells that a user asks for, and with their widths matched.

    Args:
        suite: as its file says.
        plugins: files to load beside the suite's own.
        fields: for each field of a cell, the values to choose or to put in; see `select`.
        pilot: whether to look for learning rates instead.
        limit: the number of training steps of a trial; None if this is no trial.
        tolerance: replaces that of the suite's [match]; None keeps it.
    """
    from lookback.benchmarks.plan.match_widths import match_widths
    from lookback.benchmarks.plan.pilot import pilot_suite
    from lookback.benchmarks.plugins import load_plugins

    suite = dataclasses.replace(suite, plugins=(*suite.plugins, *plugins))
    load_plugins(suite.plugins)
    chosen = dict(fields)
    if pilot:
        rates = chosen.pop("learning_rate")
        if chosen["seed"]:
            raise ValueError("--pilot trains with a seed of its own: expected no --seed beside it")
    for field, values in chosen.items():
        if values:
            suite = dataclasses.replace(suite, cells=select(suite.cells, field, values))
    if pilot:
        suite = pilot_suite(suite, rates or ())
    if limit is not None:
        suite = limit_steps(suite, limit)
    return match_widths(suite, tolerance)


def _measure(runner: Runner, suite: str, pilot: bool) -> int:
    """Run a suite or its pilot, print its findings and the next command, and return a code."""
    if not runner.suite.cells:
        return 0
    if not pilot:
        code = runner.run()
        _print_next(runner, code)
        return code

    from lookback.benchmarks.plan.pilot import findings, run_pilot

    code = run_pilot(runner)
    if code == 0:  # half a pilot has no best rate
        print("\n".join(findings(runner)))
        print(f"next: lookback run {suite} --model NAME --learning-rate RATE")
    return code


def _raise_on_interrupt() -> None:
    """Let Ctrl-C raise KeyboardInterrupt from here on, so that temporary files are removed."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _debug(cell: AnyCell) -> int:
    """Measure a cell in this process; after an error on a terminal, open the debugger."""
    from lookback.benchmarks.measure.cell import debug

    _raise_on_interrupt()
    try:
        with tempfile.TemporaryDirectory(prefix="lookback-debug-") as folder:
            debug(cell, Path(folder))
    except Exception:
        traceback.print_exc()
        if sys.stdin.isatty():
            pdb.post_mortem()
        return 1
    return 0


def _runner(results: Path, suite: Suite, **settings: Any) -> Runner:
    """Return the runner of a suite; it knows the options and the code that each cell has now."""
    from lookback.benchmarks.measure.cell import resolve_options
    from lookback.benchmarks.measure.code import code_of
    from lookback.benchmarks.run.runner import Runner

    return Runner(
        results,
        suite,
        options={cell: resolve_options(cell) for cell in suite.cells},
        code={cell: code_of(cell, suite.digest) for cell in suite.cells},
        **settings,
    )


def _print_next(runner: Runner, code: int) -> None:
    """Compare what a run recorded with the published records, and say what to type next."""
    from lookback.benchmarks.run.published import compare_with_published
    from lookback.benchmarks.storage import read_published

    for line in compare_with_published(runner):
        print(line)
    left = len(runner.missing())
    if left and code < 128:
        print(f"{left} cells have no result yet: the same command tries them again")

    folder = runner.folder(runner.suite.cells[0])
    options = "" if runner.results == RESULTS else f" --results {runner.results}"
    if any(read_published([runner.suite.name])):
        options += " --published"  # baselines beside the user's model
    print(f"records: {folder}\nnext: lookback report {runner.suite.name}{options}")


def _print_left_out(reasons: list[str]) -> None:
    for reason in dict.fromkeys(reasons):
        count = reasons.count(reason)
        print(f"lookback: {cell_count(count)} left out: {reason}", file=sys.stderr)


def _print_without_pilot(suite: Suite, chosen: Suite) -> None:
    """Name the models that stand in for the suite's, whose learning rates a pilot chose."""
    own = {cell.model for cell in suite.cells}
    guests = {
        f"{cell.model} at {cell.learning_rate:g}"
        for cell in chosen.cells
        if cell.kind == "learn" and cell.model not in own
    }
    if suite.pilot is not None and guests:
        names = humanize.natural_list(sorted(guests))
        print(
            f"lookback: no pilot chose the learning rate of {names}: "
            "--pilot finds a better one, --learning-rate sets it",
            file=sys.stderr,
        )


def _device(device: Device) -> str:
    if device != Device.auto:
        return device.value
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _join_ray(address: str, device: Device) -> str:
    """Join a Ray cluster, and return the device of the cells."""
    from lookback.benchmarks.run.ray_engine import join_ray, ray_device

    join_ray(address)
    return ray_device() if device == Device.auto else device.value


@app.command()
def calibrate(
    task: Annotated[str, typer.Argument(help="Name of a task scored by accuracy.")],
    option: Annotated[
        str, typer.Option(help="The option to vary, as NAME=VALUE,VALUE,... in JSON.")
    ],
    other: Annotated[
        list[str] | None, typer.Option(help="Another option, as NAME=JSON; repeatable.")
    ] = None,
    model: Annotated[str, typer.Option(help="The model to train: a cheap one.")] = "transformer",
    length: Annotated[int, typer.Option(help="Tokens of a sequence.", min=1)] = 256,
    tokens: Annotated[int, typer.Option(help="Tokens to train on, for each value.")] = 1_000_000,
    learning_rate: Annotated[float, typer.Option(help="Learning rate.")] = 2e-3,
    plugin: Plugins = None,
    results: Results = RESULTS,
) -> None:
    """Train one model over a range of an option; say where floor and ceiling are."""
    from lookback.benchmarks.describe.data_sets import read_options
    from lookback.benchmarks.measure.cell import check
    from lookback.benchmarks.plan.pilot import calibration, calibration_cell
    from lookback.benchmarks.plugins import load_plugins
    from lookback.benchmarks.run.process import default_jobs

    load_plugins(plugin or [])
    name, _, values = option.partition("=")
    varied = read_options([f"{name}=[{values}]"])
    fixed = read_options(other or [])
    device = _device(Device.auto)
    fields = {"task": task, "model": model, "length": length, "tokens": tokens, "device": device}
    fields |= {"learning_rate": learning_rate}
    cells = [calibration_cell({**fixed, name: value}, fields) for value in varied[name]]
    for cell in cells:
        check(cell)
    suite = Suite(f"calibrate-{task}", f"{task} over {name}", tuple(cells))
    runner = _runner(results, suite, plugins=plugin or [], jobs=default_jobs(device, 0))
    code = runner.run()
    print("\n".join(calibration(cells, runner, name)))
    raise typer.Exit(code)


@app.command()
def report(
    suite: Annotated[
        list[str] | None,
        typer.Argument(
            help=f"Names of suites, or of the pages {TOPICS}; by default every page with records."
        ),
    ] = None,
    scale: Scale = DEFAULT_SCALE,
    results: Results = RESULTS,
    reports: Annotated[
        Path | None,
        typer.Option(help="Folder for the pages; by default reports/, or paper/ with that style."),
    ] = None,
    published: Published = False,
    style: Annotated[
        Style,
        typer.Option(
            help="`paper`: figures for the columns and in the type of a paper, also as PDF and "
            "PNG of 300 dpi; tables also as LaTeX."
        ),
    ] = Style.page,
    model: Models = None,
    task: Tasks = None,
    title: Annotated[str, typer.Option(help="Title of the pages.")] = "",
    plugin: Plugins = None,
) -> None:
    """Make pages with tables and figures from the records."""
    from lookback.benchmarks.report.make import TOPICS, Selection, make_pages

    _load_sections(plugin or [])
    names = []
    for name in suite or []:
        stem = Path(name).stem if name.endswith(".toml") else name
        names.append(stem if stem in TOPICS else scaled(stem, scale))
    pages = make_pages(
        results,
        reports or (PAPER if style == Style.paper else REPORTS),
        names,
        published,
        style.value,
        Selection(task or [], model or [], title),
    )
    for page in pages:
        html = page.path.with_name("index.html")
        if page.is_new:
            print(f"{page.table}\n\n{page.path}, and as one file {html}\n")
        else:
            print(f"unchanged: {page.path}, and as one file {html}")


def _load_sections(plugins: Sequence[str]) -> None:
    """Load plug-ins, which may register sections; without plug-ins, do not import torch."""
    if plugins or entry_points(group="lookback.plugins"):
        from lookback.benchmarks.plugins import load_plugins

        load_plugins(plugins)


@app.command("plot")
def plot_(
    output: Annotated[Path, typer.Argument(help="The figure: a file name in .png, .svg or .pdf.")],
    x: Annotated[str, typer.Option(help="Column of a frame, such as distance or test_length.")],
    y: Annotated[str, typer.Option(help="Column of the same frame.")] = "score",
    of: Annotated[
        str, typer.Option("--frame", help="The frame; by default one with x and y.")
    ] = "",
    suite: Annotated[
        list[str] | None, typer.Option(help="Only records of this suite; repeatable.")
    ] = None,
    model: Models = None,
    task: Tasks = None,
    results: Results = RESULTS,
    published: Published = False,
    style: Annotated[Style, typer.Option(help="`page` or `paper`.")] = Style.page,
    title: Annotated[str, typer.Option(help="Title of the figure.")] = "",
) -> None:
    """Draw one figure from the records, in the colours of the pages."""
    from lookback.benchmarks.report.figure import draw_figure
    from lookback.benchmarks.report.frames import distinct
    from lookback.benchmarks.report.make import Selection, chosen_records

    selection = Selection(task or [], model or [])
    records, _ = distinct(chosen_records(results, suite or [], selection, published))
    draw_figure(records, x, y, output, frame_name=of, style=style.value, title=title)
    print(output)


@app.command("compare")
def compare_(
    a: Annotated[Path, typer.Argument(help="Folder of records: before, or theirs.")] = RESULTS,
    b: Annotated[Path | None, typer.Argument(help="Folder of records: after, or ours.")] = None,
    model: Annotated[str, typer.Option(help="Compare this model within one folder.")] = "",
    against: Annotated[str, typer.Option(help="The model to compare it with.")] = "rwkv",
    published: Annotated[
        bool,
        typer.Option("--published", help="With --model: the published records count as yours."),
    ] = False,
    tolerance: Annotated[
        float, typer.Option(help="Relative difference that medians of times may have.")
    ] = 0.1,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print every comparison as JSON.")
    ] = False,
) -> None:
    """Show what changed from A to B beyond its interval; exit code 1 if anything did.

    With --model, compare two models in one folder, paired by seed; exit code 1 if it is worse.
    """
    from lookback.benchmarks.report.compare import compare_folders, compare_models

    if model:
        comparison = compare_models(b or a, model, against, published)
    elif b is not None:
        comparison = compare_folders(a, b, tolerance)
    else:
        raise ValueError("compare: expected two folders of records, or --model NAME")
    print(comparison.as_json() if as_json else comparison)
    raise typer.Exit(int(comparison.failed))


@app.command()
def verify(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of records; by default the published ones.")
    ] = None,
    count: Annotated[
        int, typer.Option("-n", "--count", help="Records to measure again.", min=1)
    ] = 3,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the choice; by default another one every time.")
    ] = None,
) -> None:
    """Measure published records again, chosen at random; exit code 1 if one is different."""
    from lookback.benchmarks.machine import usable_cores
    from lookback.benchmarks.measure.cell import repeating_cell
    from lookback.benchmarks.run.published import Verification
    from lookback.benchmarks.storage import published_folder

    if seed is None:
        seed = time.time_ns() % 10_000
    verification = Verification(
        folder or published_folder(), count, seed, repeating_cell, jobs=usable_cores()
    )
    chosen = verification.choose()
    print(f"{len(chosen)} of {len(verification.records)} records (--seed {seed}):")
    for record in chosen:
        place = f"{record.cell_id} of {record.suite} on {record.machine.device}"
        assert record.seconds is not None  # as for every record that has learned
        print(f"  {place}, {record.seconds:.0f} s there")

    verdicts = list(verification.verdicts(chosen))
    print("\n".join(str(verdict) for verdict in verdicts))
    raise typer.Exit(int(any(verdict.is_different for verdict in verdicts)))


@app.command()
def publish(
    machine: Annotated[
        str, typer.Argument(help="Folder of a machine's records in the folder of results.")
    ],
    suite: Annotated[
        list[str] | None, typer.Option(help="Only the records of this suite; repeatable.")
    ] = None,
    results: Results = RESULTS,
) -> None:
    """Move your own records into results/published, if they are final and know their commit."""
    from lookback.benchmarks.run.published import publish as publish_records

    print("\n".join(publish_records(results, machine, suite or [])))
    print("next: make published, then commit results/published and reports/published")


@app.command("test")
def test_(
    file: Annotated[str, typer.Argument(help="Python file that registers tasks or models.")],
) -> None:
    """Check the tasks and models of a file, and train each for a moment."""
    from lookback.benchmarks.describe.trial import try_plugin

    for line in try_plugin(file):
        print(line, flush=True)


@app.command()
def prefetch(
    task: Annotated[
        str, typer.Argument(help="Name of a task whose data are downloaded or generated.")
    ],
    length: Annotated[
        int | None, typer.Option(help="Length of the sequences, if the data depend on it.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Option of the task, as NAME=JSON; repeatable.")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Download or generate the data of a task, check them, and keep them in data/."""
    from lookback.benchmarks.describe.data_sets import prefetch as fetch_data

    _raise_on_interrupt()
    print(fetch_data(task, length, option or [], plugin or []))


@app.command()
def doctor() -> None:
    """Show what is installed, what is missing, and what will run."""
    from lookback.benchmarks.describe.doctor import findings

    print("\n".join(findings()))


def main() -> None:
    """Run the command line; wrong use is one line on the error stream and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack signs such as ≥
    command: Callable[..., Any] = typer.main.get_command(app)
    try:
        code = command(standalone_mode=False)
    except BrokenPipeError:
        from lookback.benchmarks.run.progress import discard_output

        discard_output()
        code = 141
    except (ValueError, OSError) as error:
        print(f"lookback: {error}", file=sys.stderr)
        code = 2
    except typer.Abort:
        code = 130
    except Exception as error:
        # click's errors of the command line; typer may bring a copy of click with other classes.
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()
        if sys.argv[1:]:  # otherwise the message is the help text
            line = " ".join(message.split()).replace("Value error, ", "").rstrip(".")
            message = f"lookback: {line} (`lookback VERB --help` lists what a verb takes)"
        print(message, file=sys.stderr)
        code = getattr(error, "exit_code", 2)
    sys.exit(code)
