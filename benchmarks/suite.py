"""A suite is a TOML file: defaults, then grids whose lists are multiplied out into cells.

title = "How far back can they recall?"

[defaults]                     # every cell
width = 64

[[grid]]                       # lists are multiplied; a list field (test_lengths, learning_rates) takes a list of lists
kind = "learn"
task = ["copy", "recall"]
model = ["transformer", "rwkv"]
scales = ["small", "paper"]    # only at these scales; at all, when left out

[match]                        # the other models' widths are worked out, so that parameters agree within 2 %
by = "parameters"              # or "flops", of a training step, or "state_bytes", at the cell's length
to = "transformer"             # whose width is the suite's; its `options`, the `tolerance` (0.02) and the
                               # `multiple` of which widths are (1) may be given too

[scales.smoke]                 # what a scale changes in every cell of every grid
steps = 3
match = { tolerance = 0.2 }    # and in [match], which may also stand here alone, for this scale

The batch is given by `batch_size` or by `batch_tokens`; what a grid says counts before the
defaults, and what a scale says before both.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from lookback.benchmarks.record import (
    CELL_TYPES,
    LIST_FIELDS,
    SUITE_NAME,
    AnyCell,
    Name,
    StrictModel,
    make_cell,
    one_line,
)

FOLDER = Path(__file__).parent / "suites"
DEFAULT_SCALE = "small"
MOST_CELLS = 100_000  # of a grid: what a slip of the pen multiplies out to is told, not waited for
FIRST = (
    "kind",
    "task",
    "task_options",
    "length",
    "seed",
)  # slowest to change; models alternate at each length


class Match(StrictModel):
    """What makes the suite's models comparable; see lookback.benchmarks.plan.match_widths, which
    works the widths out.
    """

    by: Literal["parameters", "flops", "state_bytes"] = "parameters"
    to: Name
    options: dict[str, Any] = Field(default_factory=dict)  # of that model
    tolerance: float = Field(default=0.02, gt=0, lt=1)
    multiple: int = Field(
        default=1, ge=1, le=1024
    )  # of which widths are: machines compute slower at odd ones

    def __str__(self) -> str:
        measured = {
            "flops": "operations of a training step",
            "state_bytes": "bytes of state at the cell's length",
        }
        what, widths = measured.get(self.by, self.by), "widths"
        if self.multiple > 1:
            widths = f"widths, multiples of {self.multiple},"
        return f"{widths} are worked out so that {what} agree with those of {self.to} within {100 * self.tolerance:g} %"


@dataclass(frozen=True)
class Suite:
    """A named list of cells; `name` carries the scale, unless it is the default one.

    With a `match`, widths stand as the file has them until lookback.benchmarks.plan.match_widths
    has worked them out.
    """

    name: str
    title: str
    cells: tuple[AnyCell, ...]
    match: Match | None = None


def suite_names() -> list[str]:
    """Names of the suites that come with Lookback, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def suite_path(name: str) -> Path:
    """The file of a suite: one of ours by its name, or a user's by its path."""
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise ValueError(
                f"suite file {name!r} does not exist: expected the path of a TOML file"
            )
        return path
    if name not in suite_names():
        near = difflib.get_close_matches(name, suite_names()) or suite_names()
        raise ValueError(
            f"unknown suite {name!r}: expected {' or '.join(near)}, or the path of a .toml file"
        )
    return FOLDER / f"{name}.toml"


def scaled(name: str, scale: str) -> str:
    """The name under which records of a suite at a scale lie."""
    return name if scale == DEFAULT_SCALE else f"{name}-{scale}"


def read_suite(name: str, scale: str = DEFAULT_SCALE, device: str = "cpu") -> Suite:
    """Read a suite at a scale, its cells for a device; raises ValueError that names the file and
    the key.
    """
    path = suite_path(name)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid TOML: {' '.join(str(error).split())}") from None
    except ValueError:  # what int() says of ten thousand digits
        raise ValueError(f"{path}: not valid TOML: a number is too long") from None
    if not re.fullmatch(SUITE_NAME, scaled(path.stem, scale)):
        raise ValueError(
            f"{str(path)!r}: expected a name of letters, digits, _, . and -, for its records' folder"
        )
    _check_keys(path, content, scale)
    cells = dict.fromkeys(
        _cells(path, content, scale, device)
    )  # the same cell from two grids is one cell
    if not cells:
        raise ValueError(f"{path}: no cells at scale {scale!r}")
    return Suite(
        scaled(path.stem, scale),
        content.get("title", path.stem),
        tuple(cells),
        _match(path, content, scale),
    )


def _check_keys(path: Path, content: Mapping[str, Any], scale: str) -> None:
    unknown = set(content) - {"title", "defaults", "grid", "match", "scales"}
    if unknown:
        raise ValueError(
            f"{path}: unknown key {sorted(unknown)[0]!r}: expected title, defaults, grid, match or scales"
        )
    if not isinstance(content.get("grid"), list) or not all(
        isinstance(grid, dict) for grid in content["grid"]
    ):
        raise ValueError(f"{path}: grid: expected at least one [[grid]] table")
    if not isinstance(content.get("title", ""), str):
        raise ValueError(f"{path}: title: expected a text")
    for number, grid in enumerate(content["grid"], start=1):
        scales = grid.get("scales", [])
        if not isinstance(scales, list) or not all(isinstance(name, str) for name in scales):
            raise ValueError(f"{path}: grid {number}: scales: expected a list of names")
    for key in ("defaults", "match", "scales"):
        if not isinstance(content.get(key, {}), dict):
            raise ValueError(f"{path}: {key}: expected a table")
    for name, changed in content.get("scales", {}).items():
        if not isinstance(changed, dict):
            raise ValueError(f"{path}: scales.{name!r}: expected a table")
    known = set(content.get("scales", {})) | {
        s for grid in content["grid"] for s in grid.get("scales", [])
    }
    if scale not in known | {DEFAULT_SCALE}:
        raise ValueError(
            f"{path}: no scale {scale!r}: expected one of {', '.join(sorted(known | {DEFAULT_SCALE}))}"
        )


def _match(path: Path, content: Mapping[str, Any], scale: str) -> Match | None:
    """What the suite asks to be matched at a scale; nothing where neither the file nor the scale
    has a `match`.
    """
    changed = content.get("scales", {}).get(scale, {})
    if "match" not in {**content, **changed}:
        return None
    try:
        return Match.model_validate({**content.get("match", {}), **changed.get("match", {})})
    except (ValidationError, TypeError) as error:
        told = (
            one_line(error, Match.model_fields)
            if isinstance(error, ValidationError)
            else "expected a table"
        )
        raise ValueError(f"{path}: match: {told}") from None


def _cells(path: Path, content: Mapping[str, Any], scale: str, device: str) -> Iterator[AnyCell]:
    for number, grid in enumerate(content["grid"], start=1):
        if scale not in grid.get("scales", [scale]):
            continue
        changed = content.get("scales", {}).get(scale, {})
        try:
            fields = _layered(content.get("defaults", {}), grid, changed)
            if (count := _count(fields)) > MOST_CELLS:
                raise ValueError(f"expected at most {MOST_CELLS:,} cells, not {count:,}")
        except ValueError as error:
            raise ValueError(f"{path}: grid {number}: {error}") from None
        for values in multiply(fields):
            try:
                yield make_cell({"device": device, **_of_its_kind(values, grid)})
            except ValueError as error:
                raise ValueError(f"{path}: grid {number}: {error}") from None


def _of_its_kind(values: Mapping[str, Any], grid: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the fields that the defaults or the scale set for cells of the other kind.

    What a grid itself sets is kept: if its kind has no such field, that is the user's error.
    """
    own_fields = CELL_TYPES[values["kind"]].model_fields if values.get("kind") in CELL_TYPES else {}
    all_fields = {name for cell_type in CELL_TYPES.values() for name in cell_type.model_fields}
    other_fields = all_fields - set(own_fields) if own_fields else set()
    return {
        name: value for name, value in values.items() if name in grid or name not in other_fields
    }


def _layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of all layers, later ones first, where the size of a batch and its tokens exclude
    each other.
    """
    fields: dict[str, Any] = {}
    for layer in layers:
        if "batch_size" in layer and "batch_tokens" in layer:
            raise ValueError(
                "batch_size and batch_tokens: expected one of them, the other follows from it"
            )
        if "batch_size" in layer:
            fields.pop("batch_tokens", None)
        fields |= layer
    return {key: value for key, value in fields.items() if key not in ("scales", "match")}


def multiply(fields: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every combination of the values of list fields; tables (options) are multiplied out inside."""
    order = sorted(fields, key=lambda key: FIRST.index(key) if key in FIRST else len(FIRST))
    choices = [_choices(key, fields[key]) for key in order]
    for values in itertools.product(*choices):
        yield dict(zip(order, values, strict=True))


def _count(fields: Mapping[str, Any]) -> int:
    """How many combinations `multiply` would give, at most, without making them."""
    return math.prod(_width(value) for value in fields.values())


def _width(value: Any) -> int:
    if isinstance(value, dict):
        return _count(value)
    if isinstance(value, list):
        return sum(_width(item) if isinstance(item, dict) else 1 for item in value)
    return 1


def _choices(key: str, value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        return list(multiply(value))
    if not isinstance(value, list):
        return [value]
    if value and isinstance(value[0], dict):  # tables listed one by one
        return [combination for table in value for combination in _choices(key, table)]
    many = value and isinstance(value[0], list)
    return value if many or key not in LIST_FIELDS else [value]


def select(cells: Sequence[AnyCell], field: str, values: Sequence[Any]) -> tuple[AnyCell, ...]:
    """Return the cells whose field has one of these values.

    A value that no cell has replaces the value of every cell: `--model rwkv` selects, and `--model
    mine` runs a user's own model wherever the suite runs others. The options of a replaced task or
    model are dropped.
    """
    chosen: list[AnyCell] = []
    for value in values:
        matching = [cell for cell in cells if getattr(cell, field) == value]
        chosen += matching or [_replace(cell, field, value) for cell in cells]
    return tuple(dict.fromkeys(chosen))


def _replace(cell: AnyCell, field: str, value: Any) -> AnyCell:
    """Return the cell with another task, model, length or seed."""
    fields = {**cell.model_dump(), field: value}
    if field in ("task", "model"):
        fields[f"{field}_options"] = {}
    if (fields.get("start_length") or 0) > fields["length"]:
        fields["start_length"] = None
    return make_cell(fields)
