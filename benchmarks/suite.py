"""A suite is a TOML file: defaults, then grids whose lists are multiplied out into cells.

title = "How far back can they recall?"
takes = "2 core-hours"         # at scale small, in words
plugins = ["my_model.py"]      # files beside this one that register tasks or models

[defaults]                     # of every cell
width = 64

[[grid]]
kind = "learn"
task = ["copy", "recall"]      # 2 tasks x 2 models: 4 cells
model = ["transformer", "rwkv"]
test_lengths = [64, 256]       # a field that is a list itself; several of them: a list of lists
task_options = { pairs = { low = 2, high = 8 } }    # drawn for every batch of training
test_options = [{ pairs = 2 }, { pairs = 8 }]       # and fixed in testing
learning_rate = { transformer = 1e-3, rwkv = 3e-3 } # of each model, or one of all
scales = ["small", "paper"]    # only at these scales; without it, at all scales

[match]                        # work out the other models' widths so that sizes agree
by = "parameters"              # or "flops" of a training step, or "state_bytes"
to = "transformer"             # keeps the suite's width
options = {}                   # the options of that model
tolerance = 0.02               # the largest relative difference
multiple = 1                   # every width is a multiple of it

[endpoint]                     # the one number that the suite decides by, see `Endpoint`
quantity = "score"
task = "recall"
lengths = [256]
difference = 0.05

[pilot]                        # how learning rates are found: `lookback run SUITE --pilot`
learning_rates = [1e-3, 3e-3, 1e-2]
only = { width = [64] }        # of these cells; without it, of all

[scales.paper]                 # what a scale changes in every cell
width = 512
match = { multiple = 16 }      # and in [match]; may also stand without one

Every suite has the scale `smoke`: models of one narrow layer and two steps, see SMOKE, and what its
own [scales.smoke] says. A scale overrides a grid, and a grid overrides the defaults. The batch is
given by `batch_size` or by `batch_tokens`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator

from lookback.benchmarks.record import (
    CELL_TYPES,
    LIST_FIELDS,
    SUITE_NAME,
    AnyCell,
    Name,
    StrictModel,
    digest,
    make_cell,
    one_line,
)

FOLDER = Path(__file__).parent / "suites"
DEFAULT_SCALE = "small"
SECTIONS = ("match", "endpoint", "pilot")  # tables that say nothing of a cell
TEXTS = ("title", "takes")
KEYS = (*TEXTS, "plugins", "defaults", "grid", *SECTIONS, "scales")
SMOKE = {  # enough to see that a suite runs: seconds
    "width": 16,
    "depth": 1,
    "seed": 0,
    "steps": 2,
    "warmup": 1,
    "validations": 1,
    "validation_examples": 4,
    "test_examples": 4,
    "repeats": 3,
}
SMOKE_TOLERANCE = 0.2  # of matched sizes: narrow models have few widths to choose from
FEW_EXAMPLES = 16  # in the tests of a suite that is only tried
MARGIN = 0.1  # above the sighted floor: a model below is at the floor
CEILING = 0.95  # of an accuracy: models above are not told apart
MOST_CELLS = 100_000  # per grid: more are a typing error

Section = TypeVar("Section", bound=StrictModel)

# These fields change slowest, so that models alternate at each length.
SLOWEST = ("kind", "task", "task_options", "length", "seed")


class Match(StrictModel):
    """What makes a suite's models comparable; see lookback.benchmarks.plan.match_widths."""

    by: Literal["parameters", "flops", "state_bytes"] = "parameters"
    to: Name  # a model
    options: dict[str, Any] = Field(default_factory=dict)  # of that model
    tolerance: float = Field(default=0.02, gt=0, lt=1)  # relative
    multiple: int = Field(default=1, ge=1, le=1024)  # of all widths: odd ones compute slower

    def __str__(self) -> str:
        quantities = {
            "parameters": "parameters",
            "flops": "operations of a training step",
            "state_bytes": "bytes of state at the cell's length",
        }
        multiples = f", multiples of {self.multiple}," if self.multiple > 1 else ""
        return (
            f"widths{multiples} are worked out so that {quantities[self.by]} "
            f"agree with those of {self.to} within {100 * self.tolerance:g} %"
        )


class Endpoint(StrictModel):
    """The number that a suite decides by, chosen before its runs.

    Quantities: `score`, the mean over `lengths`; `area`, under the accuracy over log2 distance,
    from the sighted floor; `halfway`, log2 of the value of an option at which accuracy is half-way
    from the floor to one; `saved`, bits per byte at the first of `lengths` minus those at the last.
    """

    quantity: Literal["score", "area", "halfway", "saved"]
    task: Name
    lengths: tuple[int, ...]  # of tests
    difference: float = Field(gt=0)  # the smallest that matters
    option: str = ""  # that `halfway` is measured over


class Pilot(StrictModel):
    """How the learning rate of each model is found, with a seed that does not count."""

    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 2e-2, 4e-2)
    share: float = Field(default=0.25, gt=0, le=1)  # of the suite's training tokens
    seed: int = 100
    # Only cells whose fields have one of these values; the others share the rates found for them.
    only: dict[str, list[Any]] = Field(default_factory=dict)

    @field_validator("only")
    @classmethod
    def _check_fields(cls, only: dict[str, list[Any]]) -> dict[str, list[Any]]:
        unknown = sorted(set(only) - set(CELL_TYPES["learn"].model_fields))
        if unknown:
            raise ValueError(f"unknown field {unknown[0]!r}: expected fields of a cell")
        return only


@dataclass(frozen=True)
class Suite:
    """A named list of cells; `name` contains the scale, unless it is the default one.

    With a `match`, the cells have the widths of the file until match_widths has worked them out.
    """

    name: str
    title: str
    cells: tuple[AnyCell, ...]
    match: Match | None = None
    endpoint: Endpoint | None = None
    pilot: Pilot | None = None
    plugins: tuple[str, ...] = ()  # files
    digest: str = ""  # of the file
    takes: str = ""  # how long the default scale takes, in words
    path: Path | None = None  # of its file, of which a copy is kept beside the records


def suite_names() -> list[str]:
    """Names of the suites that come with Lookback, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def suite_path(name: str) -> Path:
    """Return the file of a suite, one of ours by its name or a user's by its path.

    Raises ValueError if there is none.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise ValueError(
                f"suite file {name!r} does not exist: expected the path of a TOML file"
            )
        return path

    known = suite_names()
    if name not in known:
        near = difflib.get_close_matches(name, known) or known
        raise ValueError(
            f"unknown suite {name!r}: expected {' or '.join(near)}, or the path of a .toml file"
        )
    return FOLDER / f"{name}.toml"


def only_chooses(name: str) -> bool:
    """Return whether a folder of records is of a pilot or a calibration, which choose settings."""
    return name.endswith("-pilot") or name.startswith("calibrate-")


def scaled(name: str, scale: str) -> str:
    """Return the name of a suite at a scale, which is also the folder of its records."""
    return name if scale == DEFAULT_SCALE else f"{name}-{scale}"


def read_suite(name: str, scale: str = DEFAULT_SCALE, device: str = "cpu") -> Suite:
    """Read a suite at a scale, with its cells for a device.

    Raises ValueError that names the file and the key.
    """
    path = suite_path(name)
    suite_name = scaled(path.stem, scale)
    content = _read_toml(path)
    if not re.fullmatch(SUITE_NAME, suite_name):
        raise ValueError(
            f"{str(path)!r}: expected a name of letters, digits, _, . and -, "
            "because it names the folder of the records"
        )

    _check_types(path, content)
    scales = content.get("scales", {})
    known = {DEFAULT_SCALE, "smoke", *scales}
    for grid in content["grid"]:
        known.update(grid.get("scales", []))
    if scale not in known:
        raise ValueError(f"{path}: no scale {scale!r}: expected one of {', '.join(sorted(known))}")

    changes = _changes(content, scale)
    cells: list[AnyCell] = []
    for number, grid in enumerate(content["grid"], start=1):
        if scale not in grid.get("scales", [scale]):
            continue
        try:
            cells += _cells(content.get("defaults", {}), grid, changes, device)
        except ValueError as error:
            raise ValueError(f"{path}: grid {number}: {error}") from None
    if not cells:
        raise ValueError(f"{path}: no cells at scale {scale!r}")

    distinct = tuple(dict.fromkeys(cells))  # two grids may contain the same cell
    return Suite(
        name=suite_name,
        title=content.get("title", path.stem),
        cells=distinct,
        takes=content.get("takes", ""),
        match=_section(path, content, changes, "match", Match),
        endpoint=_section(path, content, changes, "endpoint", Endpoint),
        pilot=_section(path, content, changes, "pilot", Pilot),
        plugins=tuple(str(path.parent / plugin) for plugin in content.get("plugins", [])),
        digest=digest(path.read_bytes()),
        path=path,
    )


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid TOML: {' '.join(str(error).split())}") from None
    except ValueError:  # from int(), of thousands of digits
        raise ValueError(f"{path}: not valid TOML: a number is too long") from None


def find_suite(name: str, results: Path | None = None) -> Suite | None:
    """Return the suite of a folder of records: as it was run into `results`, or one of ours.

    Raises ValueError if the copy that a run kept beside its records is no longer a suite.
    """
    kept = sorted(results.glob(f"*/{name}/*.toml")) if results else []
    if kept:
        scale = name.removeprefix(kept[0].stem).removeprefix("-")
        return read_suite(str(kept[0]), scale or DEFAULT_SCALE)
    return _find_ours(name)


@functools.cache
def _find_ours(name: str) -> Suite | None:
    for scale in (DEFAULT_SCALE, "smoke", "paper"):
        base = name.removesuffix(f"-{scale}") if scale != DEFAULT_SCALE else name
        if base in suite_names():
            return read_suite(base, scale)
    return None


def cell_count(count: int) -> str:
    """Return `1 cell` or `33 cells`."""
    return f"{count} cell{'' if count == 1 else 's'}"


def _check_types(path: Path, content: Mapping[str, Any]) -> None:
    """Raise ValueError unless the file consists of the tables and lists that a suite has."""
    unknown = sorted(set(content) - set(KEYS))
    if unknown:
        raise ValueError(f"{path}: unknown key {unknown[0]!r}: expected one of {', '.join(KEYS)}")
    for key in TEXTS:
        if not isinstance(content.get(key, ""), str):
            raise ValueError(f"{path}: {key}: expected a text")
    for key in ("defaults", *SECTIONS, "scales"):
        if not isinstance(content.get(key, {}), dict):
            raise ValueError(f"{path}: {key}: expected a table")
    for name, changes in content.get("scales", {}).items():
        if not isinstance(changes, dict):
            raise ValueError(f"{path}: scales.{name!r}: expected a table")

    if not _is_list_of(content.get("plugins", []), str):
        raise ValueError(f"{path}: plugins: expected a list of files")

    grids: Any = content.get("grid")
    if not _is_list_of(grids, dict):
        raise ValueError(f"{path}: grid: expected at least one [[grid]] table")
    for number, grid in enumerate(grids, start=1):
        if not _is_list_of(grid.get("scales", []), str):
            raise ValueError(f"{path}: grid {number}: scales: expected a list of names")


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _changes(content: Mapping[str, Any], scale: str) -> dict[str, Any]:
    """Return what a scale changes; `smoke` changes something in every suite."""
    own = content.get("scales", {}).get(scale, {})
    if scale != "smoke":
        return dict(own)
    changes = {**_layered(SMOKE, own), **{name: own[name] for name in SECTIONS if name in own}}
    match = own.get("match", {})
    if "match" in content and isinstance(match, dict):
        changes["match"] = {"tolerance": SMOKE_TOLERANCE, **match}
    return changes


def _section(
    path: Path,
    content: Mapping[str, Any],
    changes: Mapping[str, Any],
    name: str,
    kind: type[Section],
) -> Section | None:
    """Return a table of the suite with the changes of a scale; None if neither has one."""
    if name not in content and name not in changes:
        return None
    try:
        fields = {**content.get(name, {}), **changes.get(name, {})}
        for field, value in fields.items():
            fields[field] = tuple(value) if isinstance(value, list) else value
        return kind.model_validate(fields)
    except ValidationError as error:
        raise ValueError(f"{path}: {name}: {one_line(error, kind.model_fields)}") from None
    except TypeError:  # the scale's is not a table
        raise ValueError(f"{path}: {name}: expected a table") from None


def _cells(
    defaults: Mapping[str, Any], grid: Mapping[str, Any], changes: Mapping[str, Any], device: str
) -> list[AnyCell]:
    """Multiply a grid out into cells, under the changes of a scale."""
    fields = _layered(defaults, grid, changes)
    count = _count(fields)
    if count > MOST_CELLS:
        raise ValueError(f"expected at most {MOST_CELLS:,} cells, not {count:,}")

    rates = fields.get("learning_rate")
    if isinstance(rates, Mapping):
        del fields["learning_rate"]
    cells = []
    for values in multiply(fields):
        if isinstance(rates, Mapping):
            values["learning_rate"] = _rate_of(values.get("model"), rates)
        cells.append(make_cell({"device": device, **_of_kind(values, grid)}))
    return cells


def _rate_of(model: Any, rates: Mapping[str, Any]) -> Any:
    """Return the learning rate of a model from a table; raises ValueError if it has none."""
    if model not in rates:
        raise ValueError(f"learning_rate: expected a rate for model {model!r}")
    return rates[model]


def _layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of all layers, of which later ones override earlier ones.

    A later `batch_size` overrides `batch_tokens` too, from which it would follow, and a later
    `steps` overrides `tokens`.
    """
    fields: dict[str, Any] = {}
    for layer in layers:
        if "batch_size" in layer and "batch_tokens" in layer:
            raise ValueError(
                "batch_size and batch_tokens: expected one of them, the other follows from it"
            )
        if "batch_size" in layer:
            fields.pop("batch_tokens", None)
        if "steps" in layer:
            fields.pop("tokens", None)
        fields |= layer
    return {name: value for name, value in fields.items() if name not in (*SECTIONS, "scales")}


def _of_kind(values: Mapping[str, Any], grid: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the fields that the defaults or the scale set for cells of the other kind.

    Raises ValueError if the grid itself sets such a field.
    """
    kind = values.get("kind")
    if kind not in list(CELL_TYPES):
        kinds = " or ".join(map(repr, CELL_TYPES))
        raise ValueError(f"kind: expected {kinds}, not {kind!r:.100}")

    fields = {}
    for name, value in values.items():
        kinds_with_field = [
            other for other, cell_type in CELL_TYPES.items() if name in cell_type.model_fields
        ]
        if kind in kinds_with_field or not kinds_with_field:  # make_cell rejects unknown fields
            fields[name] = value
        elif name in grid:
            other = kinds_with_field[0]
            raise ValueError(f"{name}: a field of kind {other!r}, but this grid is of {kind!r}")
    return fields


def multiply(fields: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every combination of the values of list fields, also inside tables (options)."""
    names = [name for name in SLOWEST if name in fields]
    names += [name for name in fields if name not in SLOWEST]
    choices = [_choices(name, fields[name]) for name in names]
    for values in itertools.product(*choices):
        yield dict(zip(names, values, strict=True))


def _choices(name: str, value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        return list(multiply(value))
    if not isinstance(value, list):
        return [value]

    first = value[0] if value else None
    if name == "test_options" and isinstance(first, dict):
        return [value]
    if isinstance(first, dict):  # tables listed one by one
        combinations: list[Any] = []
        for table in value:
            combinations += _choices(name, table)
        return combinations
    if name in LIST_FIELDS and not isinstance(first, list):
        return [value]
    return value


def _count(fields: Mapping[str, Any]) -> int:
    """Return an upper bound of the number of combinations, without making them."""
    return math.prod(_count_choices(value) for value in fields.values())


def _count_choices(value: Any) -> int:
    if isinstance(value, dict):
        return _count(value)
    if not isinstance(value, list):
        return 1

    count = 0
    for item in value:
        count += _count(item) if isinstance(item, dict) else 1
    return count


def select(cells: Sequence[AnyCell], field: str, values: Sequence[Any]) -> tuple[AnyCell, ...]:
    """Return the cells whose field has one of these values.

    A value that no cell has replaces the value of every cell: `--model rwkv` selects, and `--model
    mine` runs a user's own model wherever the suite runs others. The options of a replaced task or
    model are dropped, and so are learning rates that the suite chose for each model. A new task
    runs once for each kind, model, size, length and seed, however many grids have them. Cells that
    have no such field, as cost cells have no learning rate, are left as they are.
    """
    rates = {cell.learning_rate for cell in cells if cell.kind == "learn"}
    dropped = ("learning_rate",) if field == "model" and len(rates) > 1 else ()
    chosen: list[AnyCell] = []
    for value in values:
        matching = [cell for cell in cells if getattr(cell, field, value) == value]
        if not any(hasattr(cell, field) for cell in matching):
            matching = [
                _replace(cell, field, value, dropped) if hasattr(cell, field) else cell
                for cell in cells
            ]
            if field == "task":
                matching = _first_of_each_size(matching)
        chosen += matching
    return tuple(dict.fromkeys(chosen))


def _first_of_each_size(cells: Sequence[AnyCell]) -> list[AnyCell]:
    """Return the first of the cells that differ only in how their task is trained and tested."""
    first: dict[str, AnyCell] = {}
    for cell in cells:
        fields = (cell.kind, cell.model, cell.model_options, cell.width, cell.depth, cell.length)
        first.setdefault(repr((*fields, cell.seed)), cell)
    return list(first.values())


def limit_steps(suite: Suite, steps: int) -> Suite:
    """Return a suite for trying out: at most so many steps, and one repeat of each timing.

    Its name is its own, so that its records never stand among those of the suite.
    """
    cells = []
    for cell in suite.cells:
        fields = cell.model_dump()
        if cell.kind == "learn":
            limited = min(steps, cell.steps)
            fields |= {"tokens": None, "steps": limited, "validations": 1}
            fields["warmup"] = min(cell.warmup, limited)
            fields["test_examples"] = min(cell.test_examples, FEW_EXAMPLES)
            fields["validation_examples"] = min(cell.validation_examples, FEW_EXAMPLES)
        else:
            fields["repeats"] = 1
        cells.append(make_cell(fields))
    return dataclasses.replace(suite, name=f"{suite.name}-limit", cells=tuple(cells), path=None)


def _replace(cell: AnyCell, field: str, value: Any, dropped: Sequence[str]) -> AnyCell:
    """Return the cell with another task, model or number, and defaults for `dropped`."""
    fields = {**cell.model_dump(), field: value}
    if field == "learning_rate":
        fields["learning_rates"] = ()  # nothing to choose from
    for name in dropped:
        fields.pop(name, None)
    if field in ("task", "model"):
        fields[f"{field}_options"] = {}
    if field == "task":
        fields.pop("test_options", None)
    if (fields.get("start_length") or 0) > fields["length"]:
        fields["start_length"] = None
    return make_cell(fields)
