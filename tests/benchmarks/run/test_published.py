"""Published records: a run is compared with them, they are measured again, and checked before."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lookback.benchmarks.measure.cell import repeating_cell, resolve_options
from lookback.benchmarks.record import AnyCell, Code, Record, ResolvedOptions
from lookback.benchmarks.run.published import (
    DIFFERENT,
    EQUAL,
    WITHIN,
    Verdict,
    Verification,
    compare_with_published,
    publish,
)
from lookback.benchmarks.run.runner import Runner
from lookback.benchmarks.storage import read_records, record_files, write_record
from lookback.benchmarks.suite import Suite
from tests.command_line import lookback
from tests.processes import LINUX, tiny
from tests.records import as_cost, cost_record, learn_record


def put(folder: Path, record: Record) -> Path:
    return write_record(folder / record.machine.slug / record.suite, record)


def runner_with(folder: Path, *records: Record) -> Runner:
    """A runner that has recorded these."""
    cells = tuple(record.cell for record in records)
    runner = Runner(folder, Suite(records[0].suite, "", cells))
    for record in records:
        write_record(runner.folder(record.cell), record)
    return runner


# --- a run beside them


def test_a_run_says_how_many_scores_are_equal_and_how_fast_it_trained(tmp_path: Path) -> None:
    cost = as_cost(tiny())
    for seed in range(3):
        put(tmp_path / "published", learn_record(tiny(seed=seed), 80))
    put(tmp_path / "published", cost_record(cost, seconds=1.0))
    own = [learn_record(tiny(seed=seed), 80 + (seed == 2)) for seed in range(3)]
    runner = runner_with(tmp_path / "own", *own, cost_record(cost, seconds=0.5))
    assert compare_with_published(runner, tmp_path / "published") == [
        "scores: 2 of 3 equal to the published records of Some Machine; "
        "training steps 2 times as fast"
    ]


def test_a_run_names_the_instruction_sets_where_scores_differ(tmp_path: Path) -> None:
    published, own = learn_record(tiny(), 80), learn_record(tiny(), 81)
    records = []
    for record, instructions in ((published, "AVX2"), (own, "AVX-512")):
        facts = {**record.machine.facts, "instruction_set": instructions}
        machine = record.machine.model_copy(update={"facts": facts})
        records.append(record.model_copy(update={"machine": machine}))
    put(tmp_path / "published", records[0])
    (line,) = compare_with_published(
        runner_with(tmp_path / "own", records[1]), tmp_path / "published"
    )
    assert line == (
        "scores: 0 of 1 equal to the published records of Some Machine; "
        "published with AVX2, measured here with AVX-512"
    )


def test_times_of_other_numbers_of_threads_and_other_options_are_not_compared(
    tmp_path: Path,
) -> None:
    cost = cost_record(as_cost(tiny()), seconds=1.0)
    machine = cost.machine.model_copy(update={"facts": {"threads": 8}})
    put(tmp_path / "published", cost.model_copy(update={"machine": machine}))
    options = ResolvedOptions(model={"squeeze": True})
    put(tmp_path / "published", learn_record(tiny(), 80).model_copy(update={"options": options}))
    runner = runner_with(tmp_path / "own", cost, learn_record(tiny(), 80))
    (line,) = compare_with_published(runner, tmp_path / "published")
    assert line == "published records of Some Machine had other numbers of threads"


def test_an_option_that_was_added_since_does_not_make_another_measurement(tmp_path: Path) -> None:
    """Its default keeps what was before; a published record cannot hold it."""
    published = learn_record(tiny(), 80)
    put(tmp_path / "published", published)
    options = ResolvedOptions(model={"short_conv": False})
    own = published.model_copy(update={"options": options})
    (line,) = compare_with_published(runner_with(tmp_path / "own", own), tmp_path / "published")
    assert line.startswith("scores: 1 of 1 equal")


# --- measuring again


def forge(path: Path, correct: int) -> None:
    """Change what a record says of its first test."""
    content = json.loads(path.read_text())
    test = content["outcome"]["learn"]["tests"][0]
    test["correct"], test["score"] = correct, correct / test["count"]
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of three seeds, made by running them."""
    folder = tmp_path_factory.mktemp("measured")
    cells = tuple(tiny(seed=seed, test_examples=64) for seed in range(3))
    assert Runner(folder, Suite("three", "", cells), jobs=2).run() == 0
    return folder


@LINUX
@pytest.mark.xdist_group("verify")
def test_a_true_record_is_equal_to_the_last_digit(measured: Path) -> None:
    verification = Verification(measured, 3, 0, lambda record: record.cell, jobs=2)
    verdicts = list(verification.verdicts(verification.choose()))
    assert [verdict.verdict for verdict in verdicts] == [EQUAL] * 3


@LINUX
@pytest.mark.xdist_group("verify")
def test_a_forged_record_is_caught(measured: Path, tmp_path: Path) -> None:
    """The exit code says so, and the line shows both scores."""
    records = list(read_records(measured))
    paths = [put(tmp_path, record) for record in records]
    true = records[0].outcome.learn.tests[0]
    forge(paths[0], true.count)
    result = lookback("verify", str(tmp_path))
    assert result.returncode == 1
    assert "3 of 3 records" in result.stdout and result.stdout.count(EQUAL) == 2
    place = f"{records[0].cell_id} of three on {records[0].machine.device}"
    assert f"{place}: {DIFFERENT}\n" in result.stdout
    assert f"published 1.0, here {true.score}" in result.stdout
    assert "measured here with" not in result.stdout  # the same machine


def test_a_second_measurement_names_the_instruction_sets_where_it_differs() -> None:
    records = []
    for instructions in ("AVX2", "AVX-512"):
        record = learn_record(tiny(), 80)
        facts = {**record.machine.facts, "instruction_set": instructions}
        machine = record.machine.model_copy(update={"facts": facts})
        records.append(record.model_copy(update={"machine": machine}))
    line = "  published with AVX2, measured here with AVX-512"
    assert line in str(Verdict(*records, DIFFERENT)).splitlines()
    assert line not in str(Verdict(*records, EQUAL)).splitlines()


@LINUX
@pytest.mark.xdist_group("verify")
def test_a_score_that_another_seed_could_have_is_within(measured: Path, tmp_path: Path) -> None:
    """Seeds that spread widely leave room for a rounding error that tipped one answer."""
    records = list(read_records(measured))
    paths = [put(tmp_path, record) for record in records]
    correct = records[0].outcome.learn.tests[0].correct
    for path, shift in zip(paths, (1, 12, -12), strict=True):
        forge(path, max(0, correct + shift))
    verification = Verification(tmp_path, 3, 0, lambda record: record.cell, jobs=2)
    chosen = [record for record in verification.choose() if record.cell.seed == 0]
    (verdict,) = verification.verdicts(chosen)
    assert verdict.verdict == WITHIN and not verdict.is_different


def test_a_record_from_before_a_default_changed_is_repeated_with_its_own_options() -> None:
    record = learn_record(tiny("rrwkv"))
    options = resolve_options(record.cell)
    record = record.model_copy(update={"options": options})
    assert repeating_cell(record) == record.cell

    older = options.model_copy(update={"model": {**options.model, "squeeze": True}})
    cell = repeating_cell(record.model_copy(update={"options": older}))
    assert cell is not None and not options.model["squeeze"]
    assert resolve_options(cell) == older

    absent = options.model_copy(update={"model": {**options.model, "no_such_option": 1}})
    assert repeating_cell(record.model_copy(update={"options": absent})) is None


def test_nothing_to_verify_is_one_line(tmp_path: Path) -> None:
    result = lookback("verify", str(tmp_path))
    assert result.returncode == 2 and "expected learning records" in result.stderr


def test_a_pilots_one_seed_is_not_verified(tmp_path: Path) -> None:
    kept = learn_record(tiny())
    for record in (kept, learn_record(tiny(seed=100), suite="suite-pilot")):
        put(tmp_path, record)
    chosen = Verification(tmp_path, 9, 0, lambda record: record.cell).choose()
    assert [record.cell_id for record in chosen] == [kept.cell_id]


# --- publishing


def final(cell: AnyCell, suite: str = "quick") -> Record:
    record = learn_record(cell, suite=suite)
    return record.model_copy(update={"code": Code(plugins={}, sources={}, suite="0" * 16)})


def test_publishing_moves_records_and_says_what_was_checked(tmp_path: Path) -> None:
    for seed in range(2):
        put(tmp_path / "own", final(tiny(seed=seed)))
    put(tmp_path / "own", final(tiny(), suite="other"))
    lines = publish(tmp_path / "own", "some-machine", ["quick"], tmp_path / "published")
    assert lines[0] == "2 records (2 of quick), 0 of which replace older ones"
    assert "0123456789ab" in lines[1] and "uncommitted" in lines[1]
    assert len(list(record_files(tmp_path / "published"))) == 2
    assert [path.parent.name for path in record_files(tmp_path / "own")] == ["other"]


SPOILED: list[tuple[str, Callable[[Record], Record]]] = [
    (
        "ended as error",
        lambda r: r.model_copy(
            update={"outcome": r.outcome.model_copy(update={"status": "error"})}
        ),
    ),
    ("uncommitted changes", lambda r: r.model_copy(update={"uncommitted_changes": True})),
    ("without a commit", lambda r: r.model_copy(update={"commit": None})),
    ("do not know their code", lambda r: r.model_copy(update={"code": None})),
]


@pytest.mark.parametrize(("reason", "spoil"), SPOILED, ids=[reason for reason, _ in SPOILED])
def test_what_cannot_be_relied_upon_is_not_published(
    tmp_path: Path, reason: str, spoil: Callable[[Record], Record]
) -> None:
    """One bad record keeps all where they are."""
    put(tmp_path / "own", final(tiny()))
    put(tmp_path / "own", spoil(final(tiny(seed=1))))
    with pytest.raises(ValueError, match=f"1 records .*{reason}"):
        publish(tmp_path / "own", "some-machine", [], tmp_path / "published")
    assert len(list(record_files(tmp_path / "own"))) == 2
    assert not (tmp_path / "published").exists()


def test_published_records_below_ones_own_are_not_hers(tmp_path: Path) -> None:
    put(tmp_path, learn_record(tiny()))
    put(tmp_path / "published", learn_record(tiny(seed=1)))
    assert [record.cell.seed for record in read_records(tmp_path)] == [0]
    assert [record.cell.seed for record in read_records(tmp_path / "published")] == [1]
