"""Cells, which say what to measure, and records, which say what was measured.

A record is complete in itself: nothing is ever read back out of a path or a file name. This module
imports neither torch nor pandas, so that programs that read records start at once.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

NAME = r"[a-z0-9][a-z0-9_.-]{0,63}"
Name = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]

# A model of another library has a prefix: hf:gpt2 is the type `gpt2` of transformers.
ModelName = Annotated[str, StringConstraints(pattern=f"^([a-z0-9]+:)?{NAME}$")]

# A suite's name is also a folder of records and of pages, so it must not contain a separator.
SUITE_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"
SuiteName = Annotated[str, StringConstraints(pattern=f"^{SUITE_NAME}$")]

# Printed verbatim in titles and figures, so it must not hold tags, links or formulas.
PlainText = Annotated[str, StringConstraints(pattern=r"^[^<>\[\]$`\x00-\x1f\x7f]{0,200}$")]

Status = Literal["ok", "oom", "nan", "timeout", "error", "killed"]
FINAL = ("ok", "oom", "nan", "timeout")
"""Statuses that are results and are plotted as such; `error` and `killed` are tried again."""

GROWING = 0.6  # part of training in which lengths grow, in a cell with `start_length`
# Measured numbers, bounded so that arithmetic on them does not overflow. Seconds can be negative if
# the clock was set during the measurement.
Count = Annotated[int, Field(ge=0, le=10**18)]
Amount = Annotated[float, Field(ge=-1e100, le=1e100)]

LARGEST = 1 << 53  # every JSON reader represents integers up to here exactly
SHOWN = 100  # characters of an unexpected value that a message repeats


class StrictModel(BaseModel):
    """Immutable model that rejects unknown fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class Cell(StrictModel):
    """One measurement of a suite: the fields that `LearnCell` and `CostCell` share.

    Two cells are the same measurement when all their fields are equal.
    """

    kind: str
    task: Name
    task_options: dict[str, Any] = {}
    model: ModelName
    model_options: dict[str, Any] = {}
    width: int = Field(ge=1)
    depth: int = Field(ge=1)
    length: int = Field(ge=1, le=LARGEST)  # tokens
    batch_tokens: int | None = Field(default=None, ge=1)  # tokens per batch; gives batch_size
    batch_size: int = Field(ge=1)  # sequences; worked out where batch_tokens is given
    seed: int = Field(default=0, ge=0, le=LARGEST)
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"  # of autocast; weights stay float32
    time_limit: float = Field(default=3600, gt=0)  # seconds
    compile: bool = False  # the blocks, by torch.compile
    deterministic: bool = False  # only kernels that repeat their results to the bit

    @model_validator(mode="before")
    @classmethod
    def _normalise(cls, data: Any) -> Any:
        """Turn lists, as TOML and JSON have them, into tuples, and work out the batch size."""
        if not isinstance(data, dict):
            return data

        fields = dict(data)
        for name in LIST_FIELDS:
            if isinstance(fields.get(name), list):
                fields[name] = tuple(fields[name])

        batch_tokens = fields.get("batch_tokens")
        length = fields.get("length")
        if isinstance(batch_tokens, int) and isinstance(length, int) and length > 0:
            fields["batch_size"] = max(1, batch_tokens // length)

        tokens = fields.get("tokens")
        batch_size = fields.get("batch_size")
        if isinstance(tokens, int) and isinstance(length, int) and isinstance(batch_size, int):
            fields["steps"] = max(1, math.ceil(tokens / max(1, batch_size * length)))
        return fields

    @field_validator("task_options", "model_options")
    @classmethod
    def _check_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Reject options that JSON would not give back unchanged, such as TOML's dates and nan."""
        try:
            is_plain = not options or json.loads(json.dumps(options, allow_nan=False)) == options
        except (TypeError, ValueError, RecursionError):
            is_plain = False
        if not is_plain:
            raise ValueError(
                "expected options of texts, finite numbers, booleans, lists and tables"
            )
        return options

    def canonical(self) -> str:
        """JSON of every field that is not at its default, with sorted keys.

        A field that is added later, with a default, does not change the canonical form of old
        cells.
        """
        fields = self.model_dump(mode="json", exclude_defaults=True)
        return json.dumps(fields, sort_keys=True, allow_nan=False)

    def __hash__(self) -> int:
        return hash(self.canonical())

    @property
    def id(self) -> str:
        """Readable name with a hash of the fields: recall-rwkv-L256-s0-1f3a9c2e.

        A time limit says how long a measurement may take, not what is measured: it does not count.
        """
        fields = json.loads(self.canonical())
        fields.pop("time_limit", None)
        content = json.dumps(fields, sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:8]
        prefix = "" if self.kind == "learn" else f"{self.kind}-"
        model = self.model.replace(":", "-")  # some file systems reject a colon
        return f"{prefix}{self.task}-{model}-L{self.length}-s{self.seed}-{digest}"


class LearnCell(Cell):
    """Train a model on a task at one length, then test it at several."""

    kind: Literal["learn"]
    pooling: Literal["last", "mean"] = "last"  # of tasks with one label per sequence
    direction: Literal["causal", "bidirectional"] = "causal"

    start_length: int | None = Field(default=None, ge=1)  # shortest length in training
    lengths: Literal["grow", "draw"] = "grow"  # from there to `length`; or draw one for each batch
    test_lengths: tuple[int, ...] = ()  # tokens; empty for the training length alone
    test_options: tuple[dict[str, Any], ...] = ()  # of the task, in place of those in training
    test_examples: int = Field(default=512, ge=1)  # sequences in each test
    tokens: int | None = Field(default=None, ge=1)  # to train on; gives steps
    steps: int = Field(default=1000, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    learning_rates: tuple[float, ...] = ()  # each tried; the best on validation is tested
    weight_decay: float = Field(default=0.01, ge=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)  # share dropped of each layer's update
    warmup: int = Field(default=100, ge=0)  # steps
    validations: int = Field(default=10, ge=1)  # number of validations during training
    validation_examples: int = Field(default=128, ge=1)  # sequences per validation
    reach: bool = False  # also measure gradient reach, before and after training
    processes: int = Field(default=1, ge=1, le=1024)  # that train together, one GPU each

    @model_validator(mode="after")
    def _check_values(self) -> LearnCell:
        if any(length < 1 for length in self.test_lengths):
            raise ValueError(f"test_lengths {list(self.test_lengths)}: expected positive lengths")
        if self.lengths == "draw" and self.start_length is None:
            raise ValueError("lengths = 'draw': expected start_length, the shortest of them")
        if self.start_length is not None and self.start_length > self.length:
            raise ValueError(
                f"start_length {self.start_length}: expected at most the length, {self.length}"
            )
        rates = self.learning_rates
        if any(rate <= 0 for rate in rates) or len(set(rates)) < len(rates):
            raise ValueError(f"learning_rates {list(rates)}: expected distinct positive rates")
        return self


class CostCell(Cell):
    """Measure time, memory, state and operations of a model at one length."""

    kind: Literal["cost"]
    repeats: int = Field(default=20, ge=1)  # timed runs of each phase
    generate: bool = False  # also generate `length` tokens one by one

    # A cost cell measures one process that reads token by token; a suite cannot change this.
    pooling: ClassVar[str] = "last"
    direction: ClassVar[str] = "causal"
    dropout: ClassVar[float] = 0.0
    processes: ClassVar[int] = 1


AnyCell = Annotated[LearnCell | CostCell, Field(discriminator="kind")]
CELL_TYPES: dict[str, type[LearnCell] | type[CostCell]] = {"learn": LearnCell, "cost": CostCell}
LIST_FIELDS = ("test_lengths", "test_options", "learning_rates")
"""Fields of a cell that hold a list; in a suite, a list elsewhere means several cells."""


class Job(StrictModel):
    """The message from the runner to the process that measures a cell."""

    cell: AnyCell
    plugins: tuple[Path, ...] = ()
    folder: Path  # where checkpoints and output lie while the cell is not finished
    outcome: Path  # where to write the outcome
    progress: int  # file descriptor that takes lines of JSON: [done, total, description]
    parent: int  # process id of the runner; the cell ends when the runner does
    threads: int = Field(ge=1)
    memory_share: float = Field(default=1.0, gt=0, le=1)  # of the memory that cells may use
    shared_gpu: bool = False  # other cells run on the GPU at the same time
    created: float = 0.0  # seconds since 1970


class Code(StrictModel):
    """Digests of the files that a cell was measured with, each the start of a SHA-256."""

    plugins: dict[str, str]  # by file name; with the modules beside it that it imports
    sources: dict[str, str]  # Lookback's files of the task and the model, by path
    suite: str


class ResolvedOptions(StrictModel):
    """Every option of a cell's task and model with its value, defaults included.

    A cell holds only the options that its suite spelled out; these say what the cell ran with after
    a default has changed.
    """

    task: dict[str, Any] = {}
    model: dict[str, Any] = {}

    def repeat(self, earlier: ResolvedOptions) -> bool:
        """Return whether a cell with these options is the same measurement as an earlier one.

        An option that the earlier one lacks was added since; its default keeps what was before.
        """
        return all(
            name in now and now[name] == value
            for now, before in ((self.task, earlier.task), (self.model, earlier.model))
            for name, value in before.items()
        )


class TaskFacts(StrictModel):
    """Facts of the task that a reader of the numbers needs; see `lookback.tasks.task.Task`."""

    vocabulary: Count
    classes: Count | None
    score: PlainText
    baseline_score: Amount
    source: str
    data: dict[str, Any] = {}

    def sighted_floor(self, test: Score) -> float:
        """Return the best score on a test without a model: a constant answer's or a reference's."""
        known = [self.baseline_score, *(s for s in test.references.values() if s is not None)]
        return max(known) if self.score == "accuracy" else min(known)


class DistanceScore(StrictModel):
    """Correct answers whose information lay `low` to `high` positions back, inclusive."""

    low: Count
    high: Count
    correct: Count
    count: Count


class PositionScore(StrictModel):
    """Mean loss of answers at positions `low` to `high` of the sequence, inclusive, from 0."""

    low: Count
    high: Count
    loss: Amount  # mean cross entropy, nats
    count: Count


class SequenceSums(StrictModel):
    """Sums over the answers of each test sequence, in order; the unit of an interval.

    Numbers separated by spaces, so that a record stays short.
    """

    totals: str  # correct answers, or nats where the score is bits per byte
    counts: str  # answers; a single number if all sequences have as many


class Score(StrictModel):
    """Answers to unseen examples of one length."""

    length: Count  # tokens
    options: dict[str, Any] = {}  # of the task, where a test has others than training
    examples: Count  # sequences
    count: Count  # answers
    correct: Count
    loss: Amount | None  # mean cross entropy, nats; None if it was not finite
    score: Amount | None  # in the task's unit: accuracy, or bits per byte
    seen_in_training: Count = 0  # test examples that also occurred in a training batch
    by_distance: tuple[DistanceScore, ...] = ()
    by_position: tuple[PositionScore, ...] = ()  # of language modelling
    by_sequence: SequenceSums | None = None  # None in old records, and in validation
    references: dict[
        str, Amount | None
    ] = {}  # scores of answers without a model, on these examples

    @model_validator(mode="after")
    def _check_counts(self) -> Score:
        counts = [(self.correct, self.count)]
        counts += [(part.correct, part.count) for part in self.by_distance]
        for correct, count in counts:
            if correct > count:
                raise ValueError(f"{correct} correct answers of {count}")
        return self


class CurvePoint(StrictModel):
    """State of training after `step` steps."""

    step: Annotated[Count, Field(le=10**9)]
    loss: Amount  # mean training loss since the last point, nats
    validation: Amount  # in the task's unit
    seconds: Amount | None = None  # spent in training steps so far
    joules: Amount | None = None


class Trial(StrictModel):
    """Training at one of several learning rates."""

    learning_rate: Amount
    steps: Count
    seconds: Amount
    validation: Amount | None  # at the end; None if it was not finite


class Reached(StrictModel):
    """Cost of training up to the first validation of at least `score`."""

    score: Amount
    step: Count
    seconds: Amount
    tokens: Count
    joules: Amount | None = None  # of the GPU; None if no driver reports them


class ReachBin(StrictModel):
    """RMS gradient of an output with respect to inputs `low` to `high` positions earlier."""

    low: Count
    high: Count
    share: Amount  # relative to distance 0; over positions, outputs and examples


class FailedTest(StrictModel):
    """A test that ended in an error, after training and beside tests that did not."""

    length: Count  # tokens
    options: dict[str, Any] = {}  # of the task, where a test has others than training
    status: Literal["oom", "error"]
    message: str  # the error


class LearnNumbers(StrictModel):
    """Results of a `LearnCell`; if it tried several learning rates, those of the best."""

    parameters: Count
    steps: Count  # steps taken
    tokens_trained: Count | None = None  # None in old records, as the two below
    tokens_at_full_length: Count | None = None
    longest_trained: Count | None = None  # tokens of the longest sequence in training
    seconds: Amount  # in training steps; data and start-up included, validation not
    waiting: Amount | None = None  # seconds of these outside the step, mostly for the batch
    evaluating: Amount | None = None  # seconds in validations and tests
    saving: Amount | None = None  # seconds in writing checkpoints
    joules: Amount | None = None  # of the GPU, in all steps; None if no driver reports them
    learning_rate: Amount | None = None  # None in old records: the cell's
    trials: tuple[Trial, ...] = ()
    reached: tuple[Reached, ...] = ()
    curve: tuple[CurvePoint, ...]
    validation: Score | None
    tests: tuple[Score, ...]
    failed_tests: tuple[FailedTest, ...] = ()
    reach_before: tuple[ReachBin, ...] = ()
    reach_after: tuple[ReachBin, ...] = ()

    state_bytes: Count | None = None  # of one sequence of the cell's length; None if none is kept

    # Largest difference between the logits of `forward` and those of `step`, relative to the
    # largest logit; None if the model has no recurrent form.
    parallel_recurrent_difference: Amount | None = None


class Timing(StrictModel):
    """Median and quartiles of the seconds of `n` repeats.

    `noisy` if the quartiles lie further apart than 10 % of the median, or if the reference workload
    took 10 % more or less time after the repeats than before them.
    """

    median: Annotated[Amount, Field(gt=0)]
    low: Amount
    high: Amount
    n: Count
    noisy: bool


class Phase(StrictModel):
    """One operation of a model, measured at the cell's length."""

    tokens: Count  # handled in each repeat
    seconds: Timing

    # Most bytes of tensors alive at once, including those alive before. Every tensor is counted on
    # a CPU; on a GPU this is the allocator's maximum, with the memory reserved from the driver
    # beside.
    peak_bytes: Count
    reserved_bytes: Count | None = None

    flops: Count | None = None  # of one repeat; a multiplication and an addition are two
    joules: Amount | None = None  # of the GPU in one repeat; None if no driver reports them
    reference_seconds: Amount | None = None  # of the reference workload, before and after


class Generated(StrictModel):
    """State of generation after `tokens` tokens for every sequence, from an empty state."""

    tokens: Count
    seconds: Amount  # since the first token
    state_bytes: Count  # of the whole batch
    alive_bytes: Count | None = None  # of all tensors then, weights included, where counted


class CostNumbers(StrictModel):
    """Results of a `CostCell`.

    Phases are `training` (a whole step), `prefill`, and `decode` (one token for every sequence,
    after prefill).
    """

    parameters: Count
    phases: dict[Name, Phase]
    failed: dict[Name, Status] = {}  # phases that did not end as `ok`
    state_bytes: Count | None = (
        None  # of the whole batch after `length` tokens; None without prefill
    )
    generation: tuple[Generated, ...] = ()
    matmul_flops_per_second: Amount | None = None  # of a large product; None in old records


class Outcome(StrictModel):
    """The result of a cell, as its own process reports it."""

    status: Status
    message: str = ""  # the error, if there was one
    task: TaskFacts | None = None
    learn: LearnNumbers | None = None
    cost: CostNumbers | None = None
    kernels: tuple[str, ...] = ()  # attention, WKV and LSTM operators that were called
    starting: Amount | None = None  # seconds from asking for the process until it could measure


class Machine(StrictModel):
    """The machine of a measurement, without names of hosts or users, and without paths."""

    slug: Name  # the folder of its records
    device: PlainText  # name of the GPU, or of the CPU
    facts: dict[str, Any] = {}


class Record(StrictModel):
    """A cell with its outcome, and where, when and with which code it was measured."""

    schema_version: Literal[1] = 1
    suite: SuiteName
    cell: AnyCell
    cell_id: str
    options: ResolvedOptions = ResolvedOptions()
    code: Code | None = None  # None in records of earlier versions
    outcome: Outcome
    started: str  # ISO 8601, UTC
    ended: str
    wall_seconds: float | None = None  # of the last process: starting, measuring, saving and all
    machine: Machine
    versions: dict[str, str]
    commit: str | None = None
    uncommitted_changes: bool | None = None

    @property
    def seconds(self) -> float | None:
        """Seconds that the cell took, in all its processes if it was resumed; None if unknown."""
        learn = self.outcome.learn
        if learn is None:
            return self.wall_seconds
        return max(self.wall_seconds or 0.0, learn.seconds + (learn.evaluating or 0.0))

    @model_validator(mode="after")
    def _check_cell(self) -> Record:
        expected = self.cell.id
        if self.cell_id != expected:
            raise ValueError(
                f"cell_id {self.cell_id!r} does not match the cell in the record, {expected!r}"
            )
        if self.outcome.status == "ok" and getattr(self.outcome, self.cell.kind) is None:
            raise ValueError(
                f"a record with status 'ok' of kind {self.cell.kind!r} must hold its numbers"
            )
        return self


def digest(content: bytes) -> str:
    """Return the first 16 hexadecimal digits of a SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


CELL: TypeAdapter[LearnCell | CostCell] = TypeAdapter(AnyCell)


def make_cell(fields: Mapping[str, Any]) -> LearnCell | CostCell:
    """Return the cell with these fields; raises ValueError with one line on what is wrong."""
    kind = fields.get("kind")
    known = CELL_TYPES[kind].model_fields if kind in CELL_TYPES else ()
    try:
        return CELL.validate_python(dict(fields))
    except ValidationError as error:
        raise ValueError(one_line(error, known)) from None


def one_line(error: ValidationError, known: Iterable[str] = ()) -> str:
    """Return pydantic's findings in one line: each field, its value, and what was expected."""
    messages = []
    unknown = []
    for fault in error.errors(include_url=False):
        location = [part for part in fault["loc"] if part not in CELL_TYPES]
        field = ".".join(_printable(part) for part in location)
        message = fault["msg"].removeprefix("Value error, ")

        if fault["type"] == "extra_forbidden":
            unknown.append(f"{field}: unknown field")
        elif fault["type"] == "missing":
            messages.append(f"{field}: missing")
        elif fault["type"].startswith("union_tag"):
            kinds = " or ".join(repr(kind) for kind in CELL_TYPES)
            messages.append(f"kind: expected {kinds}, not {_shorten(fault['input'].get('kind'))}")
        elif field:
            messages.append(f"{field}: {message}, not {_shorten(fault['input'])}")
        else:
            messages.append(message)

    if unknown and known:
        unknown.append(f"known are {', '.join(sorted(known))}")
    return "; ".join([*messages, *unknown])


def _printable(part: int | str) -> str:
    """Return a field's name, quoted if a stranger's file could break a terminal with it."""
    text = str(part)
    return text if text.isprintable() and len(text) <= SHOWN else _shorten(part)


def _shorten(value: object) -> str:
    """Return the first characters of a value's repr, which contains no control characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of 10,000 digits, or lists as deeply nested
        return f"a {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
