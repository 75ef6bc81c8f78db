"""What to measure (Cell) and what was measured (Record): one frozen value each, one JSON file a
record.

A record is complete in itself: nothing is ever read out of a path or a file name. Files are written
beside their place, flushed to the disk and renamed, so that a half-written one is never found under
a record's name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

NAME = r"[a-z0-9][a-z0-9_.-]{0,63}"
Name = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]
ModelName = Annotated[
    str, StringConstraints(pattern=f"^([a-z0-9]+:)?{NAME}$")
]  # hf:gpt2 is gpt2 of the family hf
# a folder of records and of a report: it leads nowhere else
SUITE_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"
SuiteName = Annotated[str, StringConstraints(pattern=f"^{SUITE_NAME}$")]
PlainText = Annotated[str, StringConstraints(pattern=r"^[^<>\[\]$`\x00-\x1f\x7f]{0,200}$")]
"""Stands in titles and figures as it is, where a tag, a link or a formula of a stranger's would be
obeyed.
"""
Status = Literal["ok", "oom", "nan", "timeout", "error", "killed"]
FINAL = ("ok", "oom", "nan", "timeout")
"""Results, all of them, and plotted as such. The other two, `error` and `killed`, are tried again.
"""


LARGEST = (
    1 << 53
)  # whole numbers up to here are the same in every reader of JSON, and make a file name that fits
SHOWN = 100  # characters of what stood where something else was expected
LIST_FIELDS = ("test_lengths", "learning_rates")
"""Fields of a cell that hold a list, where a list in a suite otherwise means several cells."""


class Value(BaseModel):
    """A frozen value that refuses what it does not know."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class Cell(Value):
    """What is measured. Two cells are the same measurement when all their fields are equal.

    Fields that only `learn` cells use stand from `test_lengths` on, those that only `cost` cells
    use from `repeats` on.
    """

    kind: Literal["learn", "cost"]
    task: Name
    task_options: dict[str, Any] = {}
    model: ModelName
    model_options: dict[str, Any] = {}
    width: int = Field(ge=1)
    depth: int = Field(ge=1)
    length: int = Field(
        ge=1, le=LARGEST
    )  # tokens: of training in a `learn` cell, of measuring in a `cost` cell
    batch_tokens: int | None = Field(
        default=None, ge=1
    )  # the batch is as many sequences as hold so many tokens
    batch_size: int = Field(
        ge=1
    )  # sequences; follows from batch_tokens and length where that is given
    seed: int = Field(default=0, ge=0, le=LARGEST)
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"  # of autocast; weights stay float32
    time_limit: float = Field(default=3600, gt=0)  # seconds
    pooling: Literal["last", "mean"] = (
        "last"  # of one label a sequence: what of it is kept, see models.reading
    )
    direction: Literal["causal", "bidirectional"] = "causal"
    compile: bool = False  # the blocks by torch.compile
    deterministic: bool = False  # only kernels that give the same bits again

    test_lengths: tuple[int, ...] = ()  # tokens; () for the training length alone
    first_length: int | None = Field(
        default=None, ge=1
    )  # training begins here and grows to `length` by half its steps
    test_examples: int = Field(default=512, ge=1)  # sequences at each test length
    steps: int = Field(default=1000, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    learning_rates: tuple[
        float, ...
    ] = ()  # each tried from the same weights; the best on validation is tested
    stop_at: float | None = None  # training is over when validation is this good
    weight_decay: float = Field(default=0.01, ge=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)  # of what each layer adds
    warmup: int = Field(default=100, ge=0)  # steps
    validations: int = Field(default=10, ge=1)  # how often in training
    validation_examples: int = Field(default=128, ge=1)  # sequences each time
    reach: bool = (
        False  # how much of an output's gradient arrives how far back, before training and after
    )
    processes: int = Field(default=1, ge=1, le=1024)  # that train this cell together, a GPU each
    # weights, gradients and moments lie split over these processes, and not in each of them
    shard: bool = False

    repeats: int = Field(default=20, ge=1)  # timed runs of each phase
    generate: bool = False  # tokens one by one, as many as the length, and what each of them took

    @model_validator(mode="before")
    @classmethod
    def _work_out(cls, data: Any) -> Any:
        """Lists as TOML and JSON bring them become tuples; the batch follows from its tokens."""
        if not isinstance(data, dict):
            return data
        data = {
            k: tuple(v) if k in LIST_FIELDS and isinstance(v, list) else v for k, v in data.items()
        }
        tokens, length = data.get("batch_tokens"), data.get("length")
        if isinstance(tokens, int) and isinstance(length, int) and length > 0:
            data["batch_size"] = max(1, tokens // length)
        return data

    @field_validator("task_options", "model_options")
    @classmethod
    def _options_are_plain(cls, options: dict[str, Any]) -> dict[str, Any]:
        """What JSON gives back as it was: TOML also has dates, and both have readers that take nan."""
        try:
            plain = not options or json.loads(json.dumps(options, allow_nan=False)) == options
        except (TypeError, ValueError, RecursionError):
            plain = False
        if not plain:
            raise ValueError(
                "expected options that are texts, finite numbers, booleans, or lists and tables of them"
            )
        return options

    @model_validator(mode="after")
    def _values_are_positive(self) -> Cell:
        if any(length < 1 for length in self.test_lengths):
            raise ValueError(f"test_lengths {list(self.test_lengths)}: expected positive lengths")
        if self.first_length is not None and self.first_length > self.length:
            raise ValueError(
                f"first_length {self.first_length}: expected at most the length, {self.length}"
            )
        if any(rate <= 0 for rate in self.learning_rates) or len(set(self.learning_rates)) < len(
            self.learning_rates
        ):
            raise ValueError(
                f"learning_rates {list(self.learning_rates)}: expected positive rates, each once"
            )
        return self

    @model_validator(mode="after")
    def _streams_where_cost_is_measured(self) -> Cell:
        if self.kind == "cost" and (self.pooling, self.direction) != ("last", "causal"):
            raise ValueError(
                "a `cost` cell measures token by token: expected pooling 'last' and direction 'causal'"
            )
        return self

    def canonical(self) -> str:
        """JSON of every field that is not at its default, keys sorted. Fields added later leave it
        as it is.
        """
        return json.dumps(
            self.model_dump(mode="json", exclude_defaults=True), sort_keys=True, allow_nan=False
        )

    def __hash__(self) -> int:
        return hash(self.canonical())

    @property
    def id(self) -> str:
        """Readable, and unique by the hash of the canonical cell that ends it:
        recall-rrwkv-L256-s0-1f3a9c2e.
        """
        kind = "" if self.kind == "learn" else "cost-"
        digest = hashlib.sha256(self.canonical().encode()).hexdigest()[:8]
        model = self.model.replace(":", "-")  # which file names cannot have everywhere
        return f"{kind}{self.task}-{model}-L{self.length}-s{self.seed}-{digest}"


class TaskFacts(Value):
    """What a reader of the numbers must know of the task; see tasks.task.Task."""

    vocabulary: int
    classes: int | None
    score: PlainText
    constant_score: float
    source: str
    data: dict[str, Any] = {}


class DistanceScore(Value):
    """Answers whose information lay `low` to `high` positions back, both included."""

    low: int
    high: int
    correct: int
    count: int


class PositionScore(Value):
    """Answers at positions `low` to `high` of the sequence, both included, counted from 0."""

    low: int
    high: int
    loss: float  # mean cross entropy, nats
    count: int


class Score(Value):
    """Answers to unseen examples of one length."""

    length: int  # tokens
    examples: int  # sequences
    count: int  # answers
    correct: int
    loss: float | None  # mean cross entropy, nats; None where it was not finite
    score: float | None  # in the task's unit: accuracy, or bits per byte
    seen_in_training: int = 0  # examples that also stood in a training batch
    by_distance: tuple[DistanceScore, ...] = ()
    by_position: tuple[PositionScore, ...] = ()  # of language modelling


class CurvePoint(Value):
    """Training after `step` steps: mean training loss (nats) since the last point, and the
    validation score.
    """

    step: int
    loss: float
    validation: float
    seconds: float | None = None  # in training steps until then
    joules: float | None = None


class Trial(Value):
    """Training at one learning rate of several, and how it validated at its end; None where it was
    not finite.
    """

    learning_rate: float
    steps: int
    seconds: float
    validation: float | None


class Reached(Value):
    """What had been spent at the first validation that was as good as `score` or better."""

    score: float
    step: int
    seconds: float
    tokens: int
    joules: float | None = None  # of the GPU; None where nobody tells


class ReachBin(Value):
    """Of the gradient of an output, what arrives `low` to `high` positions back (both included), of
    that at 0.
    """

    low: int
    high: int
    share: float  # root mean square over positions, outputs and examples


class LearnNumbers(Value):
    """With several learning rates, all but `trials` is of the one picked."""

    parameters: int
    steps: int  # steps taken
    seconds: float  # in training steps, data and start-up included, validation not
    waiting: float | None = None  # seconds of them outside the step: for the batch, above all
    joules: float | None = None  # of the GPU, in all steps; None where nobody tells
    learning_rate: float | None = (
        None  # None in records from before rates were compared: the cell's
    )
    trials: tuple[Trial, ...] = ()
    reached: tuple[Reached, ...] = ()
    curve: tuple[CurvePoint, ...]
    validation: Score | None
    tests: tuple[Score, ...]
    reach_before: tuple[ReachBin, ...] = ()
    reach_after: tuple[ReachBin, ...] = ()
    forms_apart: float | None = (
        None  # largest difference of logits read at once and one by one, over the largest logit
    )


class Timing(Value):
    """Seconds of `n` repeats: median, first and third quartile.

    `noisy` when they spread over 10 % of the median, or the yardstick was over 10 % slower after
    them than before, or faster.
    """

    median: float
    low: float
    high: float
    n: int
    noisy: bool


class Phase(Value):
    """One thing a model does, measured at the cell's length: `tokens` handled in each repeat.

    peak_bytes: most bytes of tensors alive at once, those alive before the phase included. On a CPU
    every tensor is counted, on a GPU the allocator's own maximum is read, and what it had reserved
    from the driver stands beside it.
    """

    tokens: int
    seconds: Timing
    peak_bytes: int
    reserved_bytes: int | None = None
    flops: int | None = (
        None  # floating-point operations of one repeat, a multiplication and an addition being two
    )
    joules: float | None = None  # of the GPU in one repeat, on average; None where nobody tells
    yardstick: float | None = (
        None  # seconds of work that is always the same, before the repeats and after, on average
    )


class Generated(Value):
    """Where generation stood after `tokens` tokens for every sequence, from an empty state."""

    tokens: int
    seconds: float  # since the first token
    state_bytes: int  # of the whole batch
    alive_bytes: int | None = (
        None  # of tensors alive then, weights included, where they are counted
    )


class CostNumbers(Value):
    """Phases are `training` (a whole step), `prefill` and `decode` (one token for every sequence,
    after prefill).
    """

    parameters: int
    phases: dict[Name, Phase]
    failed: dict[Name, Status] = {}  # phases that ended otherwise than ok
    state_bytes: int | None = (
        None  # of the whole batch, after the cell's length; None where prefill failed
    )
    generation: tuple[Generated, ...] = ()


class Outcome(Value):
    """What a cell's own process has to say of it."""

    status: Status
    message: str = ""  # what went wrong, when something did
    task: TaskFacts | None = None
    learn: LearnNumbers | None = None
    cost: CostNumbers | None = None
    kernels: tuple[str, ...] = ()  # which attention, WKV and LSTM operators really ran


class Machine(Value):
    """Where it was measured. No host name, user name or path."""

    slug: Name  # the folder of its records
    device: PlainText  # name of the GPU, or of the CPU
    facts: dict[str, Any] = {}


class Record(Value):
    """A measurement, complete in itself: the cell, its outcome, and where, when and with what code
    it was measured.
    """

    schema_version: Literal[1] = 1
    suite: SuiteName
    cell: Cell
    cell_id: str
    outcome: Outcome
    started: str  # ISO 8601, UTC
    ended: str
    machine: Machine
    versions: dict[str, str]
    commit: str | None = None
    uncommitted_changes: bool | None = None

    @model_validator(mode="after")
    def _is_of_its_cell(self) -> Record:
        if self.cell_id != self.cell.id:
            raise ValueError(
                f"cell_id {self.cell_id!r} is not that of the cell in the record, {self.cell.id!r}"
            )
        if self.outcome.status == "ok" and getattr(self.outcome, self.cell.kind) is None:
            raise ValueError(
                f"a record with status 'ok' of kind {self.cell.kind!r} must hold its numbers"
            )
        return self


def one_line(error: ValidationError, known: Iterable[str] = ()) -> str:
    """What pydantic found wrong, in one line: each field, what stood there, and what was expected."""
    fields = f"; known are {', '.join(sorted(known))}" if known else ""
    parts = []
    for fault in error.errors(include_url=False):
        where = ".".join(_on_one_line(part) for part in fault["loc"]) or "value"
        if fault["type"] == "extra_forbidden":
            parts.append(f"{where}: unknown field{fields}")
        elif fault["type"] == "missing":
            parts.append(f"{where}: missing")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            parts.append(
                f"{where}: {message}, not {_shown(fault['input'])}" if where != "value" else message
            )
    return "; ".join(parts)


def _on_one_line(part: int | str) -> str:
    """A name as it stands in a file that anybody may have written."""
    return str(part) if str(part).isprintable() and len(str(part)) <= SHOWN else _shown(part)


def _shown(value: object) -> str:
    """The beginning of what stood there, without anything that a terminal would obey."""
    try:
        text = repr(value)
    except (
        ValueError,
        RecursionError,
    ):  # a number of ten thousand digits, a list of as many depths
        return f"a {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def make_cell(fields: Mapping[str, Any]) -> Cell:
    """A cell of these fields; raises ValueError that says in one line what is wrong with them."""
    try:
        return Cell.model_validate(fields)
    except ValidationError as error:
        raise ValueError(one_line(error, Cell.model_fields)) from None
