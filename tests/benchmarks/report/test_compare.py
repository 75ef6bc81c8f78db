"""Two folders of records: a change is found, noise is not, and B beside A is the mirror of A beside
B.
"""

import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from lookback.benchmarks.cli import main
from lookback.benchmarks.record import Cell, Record, Timing
from lookback.benchmarks.report.compare import (
    MACHINE,
    NOISY,
    VERDICTS,
    WITHIN,
    Comparison,
    Row,
    compare,
    difference_interval,
)
from tests.records import FACTS, as_cost, cost_record, learn_record, record, score, trained


def folder(path: Path, records: Iterable[Record]) -> Path:
    """Records written where a run would, without the flush to the disk that a run takes its time
    for.
    """
    for one in records:
        place = path / one.machine.slug / one.suite
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{one.cell_id}.json").write_text(one.model_dump_json())
    return path


def both(
    path: Path, a: Sequence[Record], b: Sequence[Record], tolerance: float = 0.1
) -> Comparison:
    return compare(folder(path / "a", a), folder(path / "b", b), tolerance)


def costs(cell: Cell) -> Cell:
    return as_cost(cell)


def seeds(cell: Cell, correct: Sequence[int], **changes: Any) -> list[Record]:
    plain = cell.model_copy(update={"test_lengths": (), **changes})
    return [
        learn_record(plain.model_copy(update={"seed": seed}), right)
        for seed, right in enumerate(correct)
    ]


def timed(
    cell: Cell, median: float, low: float, high: float, noisy: bool = False, **phase: Any
) -> Record:
    """A cost record, all of whose phases took so long."""
    made, timing = (
        cost_record(costs(cell)),
        Timing(median=median, low=low, high=high, n=20, noisy=noisy),
    )
    assert made.outcome.cost
    phases = {
        name: p.model_copy(update={"seconds": timing, **phase})
        for name, p in made.outcome.cost.phases.items()
    }
    return numbers(made, phases=phases)


def numbers(made: Record, **changes: Any) -> Record:
    cost = made.outcome.cost
    assert cost
    return made.model_copy(
        update={
            "outcome": made.outcome.model_copy(update={"cost": cost.model_copy(update=changes)})
        }
    )


def on(machine: str, made: Record) -> Record:
    return made.model_copy(update={"machine": made.machine.model_copy(update={"slug": machine})})


def verdicts(found: Comparison, ending: str) -> set[str]:
    return {row.verdict for row in found.rows if row.quantity.endswith(ending)}


def changed(found: Comparison) -> list[Row]:
    return [row for row in found.rows if row.verdict == "changed"]


def everything(cell: Cell, jitter: Callable[[float], float] = lambda value: value) -> list[Record]:
    """Records of two models, three seeds and two lengths; numbers pass through `jitter`."""
    made = []
    for model in ("transformer", "rwkv"):
        made += [
            learn_record(r.cell, min(100, round(jitter(70))))
            for r in seeds(cell, [0, 0, 0], model=model)
        ]
        made += [
            timed(
                cell.model_copy(update={"model": model, "length": n}),
                s := jitter(0.5),
                0.97 * s,
                1.03 * s,
            )
            for n in (24, 48)
        ]
    return made


def test_nothing_has_changed_beside_itself(tmp_path: Path, cell: Cell) -> None:
    broken = record(cell.model_copy(update={"model": "broken"}), trained(cell, []).outcome)
    a = [
        *everything(cell),
        broken,
        cost_record(costs(cell).model_copy(update={"length": 512}), failed=True),
    ]
    found = both(tmp_path, a, a)
    assert (
        not found.changed
        and {row.verdict for row in found.rows} == {"equal"}
        and len(found.rows) > 40
    )
    assert found.a.alone == found.b.alone == ()


@pytest.mark.parametrize("seed", range(5))
def test_b_beside_a_is_the_mirror(tmp_path: Path, cell: Cell, seed: int) -> None:
    chance = random.Random(seed)
    a, b = (
        [
            r
            for r in everything(cell, lambda v: v * chance.uniform(0.7, 1.4))
            if chance.random() < 0.9
        ]
        for _ in "ab"
    )
    there, back = both(tmp_path, a, b), compare(tmp_path / "b", tmp_path / "a")
    keyed = [{(row.cell, row.quantity): row for row in found.rows} for found in (there, back)]
    assert keyed[0].keys() == keyed[1].keys() and (there.a.alone, there.b.alone) == (
        back.b.alone,
        back.a.alone,
    )
    assert there.changed and there.changed == back.changed
    for key, row in keyed[0].items():
        other = keyed[1][key]
        assert (row.a, row.b, row.shown, row.verdict) == (
            other.b,
            other.a,
            other.shown[::-1],
            other.verdict,
        )
        assert row.better is (None if other.better is None else not other.better)
        if row.interval and other.interval:
            assert row.interval == (-other.interval[1], -other.interval[0])


def test_a_planted_slowdown_is_found_and_noise_is_not(tmp_path: Path, cell: Cell) -> None:
    a = [timed(cell.model_copy(update={"length": n}), 0.5, 0.49, 0.51) for n in (24, 48)]
    slow = both(tmp_path / "slow", a, [a[0], timed(a[1].cell, 0.65, 0.64, 0.66)])
    assert {(row.quantity, row.better) for row in changed(slow)} == {
        (f"{phase} time", False) for phase in ("training", "prefill", "decode")
    }
    assert all("L48" in row.cell and row.change == "× 1.3" for row in changed(slow))
    for name, b in {
        "small": timed(a[1].cell, 0.54, 0.53, 0.55),
        "spread": timed(a[1].cell, 0.65, 0.49, 0.8),
        "fast": timed(a[1].cell, 0.46, 0.455, 0.465),
    }.items():
        found = both(tmp_path / name, a, [a[0], b])
        assert not found.changed and WITHIN in verdicts(found, "time")
    noisy = both(tmp_path / "noisy", a, [a[0], timed(a[1].cell, 0.65, 0.6, 0.7, noisy=True)])
    assert not noisy.changed and NOISY in verdicts(noisy, "time")
    assert not both(
        tmp_path / "wide", a, [a[0], timed(a[1].cell, 0.65, 0.64, 0.66)], tolerance=0.4
    ).changed


def test_seeds_that_all_differ_alike_are_judged_by_their_answers(
    tmp_path: Path, cell: Cell
) -> None:
    """One answer of a hundred more in each of two seeds: an interval over seeds has no width, and
    is none.
    """
    runs = {
        right: [
            trained(
                cell.model_copy(update={"seed": seed, "test_lengths": (24,)}),
                [score(24, right, 100)],
            )
            for seed in (0, 1)
        ]
        for right in (50, 51, 90)
    }
    assert not both(tmp_path / "one", runs[50], runs[51]).changed
    assert both(tmp_path / "many", runs[50], runs[90]).changed


@pytest.mark.parametrize(
    "time, reference_seconds, verdict, noted",
    [
        (0.65, 1.3, MACHINE, True),
        (0.65, 1.0, "changed", False),
        (0.65, 1.05, "changed", False),
        (1.5, 1.3, "changed", True),
        (0.5, 1.3, "equal", True),
        (0.65, None, "changed", False),
    ],
)
def test_a_slow_machine_is_told_from_a_slow_model(
    tmp_path: Path,
    cell: Cell,
    time: float,
    reference_seconds: float | None,
    verdict: str,
    noted: bool,
) -> None:
    a = timed(cell, 0.5, 0.49, 0.51, reference_seconds=1.0)
    found = both(
        tmp_path,
        [a],
        [timed(cell, time, 0.98 * time, 1.02 * time, reference_seconds=reference_seconds)],
    )
    assert verdicts(found, "time") == {verdict} and found.changed == (verdict == "changed")
    assert all(bool(row.note) == noted for row in found.rows if row.quantity.endswith("time"))


def test_times_of_different_machines_without_a_yardstick_are_the_machines(
    tmp_path: Path, cell: Cell
) -> None:
    a, b = timed(cell, 0.5, 0.49, 0.51), on("other", timed(cell, 0.9, 0.89, 0.91))
    found = both(tmp_path, [a], [b])
    assert not found.changed and verdicts(found, "time") == {MACHINE} and not found.a.alone


def test_a_byte_more_is_a_change(tmp_path: Path, cell: Cell) -> None:
    a = cost_record(costs(cell))
    assert a.outcome.cost
    phases = {
        name: phase.model_copy(update={"flops": 100})
        for name, phase in a.outcome.cost.phases.items()
    }
    a = numbers(a, phases=phases)
    prefill = phases["prefill"]
    for changes, quantity, better in (
        ({"state_bytes": 4999}, "state, bytes", True),
        ({"parameters": 1235}, "parameters", None),
        (
            {"phases": {**phases, "prefill": prefill.model_copy(update={"flops": 101})}},
            "prefill FLOP",
            None,
        ),
        (
            {
                "phases": {
                    **phases,
                    "prefill": prefill.model_copy(update={"peak_bytes": prefill.peak_bytes + 1}),
                }
            },
            "prefill peak, bytes",
            False,
        ),
    ):
        (row,) = changed(both(tmp_path / quantity, [a], [numbers(a, **changes)]))
        assert (row.quantity, row.better) == (quantity, better)


def test_another_ending_is_a_change(tmp_path: Path, cell: Cell) -> None:
    fine, failed = (cost_record(costs(cell), failed=failed) for failed in (False, True))
    (row,) = changed(both(tmp_path / "phase", [fine], [failed]))
    assert (row.quantity, row.a, row.b, row.better) == ("training status", "ok", "oom", False)
    run = learn_record(cell)
    lost = run.model_copy(
        update={"outcome": run.outcome.model_copy(update={"status": "oom", "learn": None})}
    )
    (row,) = changed(both(tmp_path / "cell", [lost], [run]))
    assert (row.quantity, row.a, row.b, row.better) == ("status", "oom", "ok", True)


def test_scores_over_seeds_change_where_the_paired_t_test_says_so(
    tmp_path: Path, cell: Cell
) -> None:
    """scipy's test of the same pairs at 5 % is the judge."""
    chance, judged = random.Random(0), []
    for case in range(30):
        n, shift = chance.choice([2, 3, 5]), chance.choice([0, 3, 12])
        a = [chance.randint(40, 60) for _ in range(n)]
        b = [right + shift + chance.randint(-4, 4) for right in a]
        found = both(tmp_path / str(case), seeds(cell, a), seeds(cell, b))
        if len({y - x for x, y in zip(a, b, strict=True)}) > 1:
            judged.append(bool(stats.ttest_rel(b, a).pvalue < 0.05))
            assert found.changed == judged[-1], (a, b)
    assert 5 < sum(judged) < len(judged) - 5


def test_what_all_seeds_lost_is_found(tmp_path: Path, cell: Cell) -> None:
    (row,) = changed(both(tmp_path, seeds(cell, [95, 97, 99]), seeds(cell, [15, 12, 14])))
    assert (
        row.better is False
        and row.quantity == "accuracy @24"
        and "n = 3" in row.change
        and len(row.records) == 3
    )


def test_seeds_that_only_one_has_are_not_paired(tmp_path: Path, cell: Cell) -> None:
    found = both(tmp_path, seeds(cell, [95, 97, 10]), seeds(cell, [95, 97]))
    assert not found.changed and "1 record only in A" in str(found)
    (name,) = found.a.alone
    assert "-s2-" in name


def test_one_seed_is_judged_by_its_answers(tmp_path: Path, cell: Cell) -> None:
    """Newcombe 1998 (Statistics in Medicine 17, 873-890), table II, contrast (a) by method 10:
    0.0524 to 0.3339.
    """
    low, high = difference_interval(score(24, 48, 80), score(24, 56, 70), "accuracy")
    assert (low, high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert not both(tmp_path / "near", seeds(cell, [80]), seeds(cell, [86])).changed
    assert both(tmp_path / "far", seeds(cell, [80]), seeds(cell, [99])).changed


def test_a_score_without_an_interval_changes_in_its_last_place(tmp_path: Path, cell: Cell) -> None:
    bits = FACTS.model_copy(update={"score": "bits per byte"})
    runs = {
        value: trained(cell, [score(24, 50).model_copy(update={"score": value})], bits)
        for value in (2.1, 2.1004, 2.11)
    }
    assert not both(tmp_path / "same", [runs[2.1]], [runs[2.1004]]).changed
    (row,) = changed(both(tmp_path / "other", [runs[2.1]], [runs[2.11]]))
    assert row.better is False and row.change == "+0.010"


def test_a_score_that_is_lost_does_not_hide_the_others(tmp_path: Path, cell: Cell) -> None:
    a, b = seeds(cell, [95, 97, 96, 94]), seeds(cell, [15, 12, 17, 95])
    lost = trained(b[3].cell, [score(24, 95).model_copy(update={"score": None, "loss": None})])
    quantities = {
        row.quantity: (row.a, row.b) for row in changed(both(tmp_path, a, [*b[:3], lost]))
    }
    assert quantities["accuracy @24, seeds not finite"] == (0, 1) and "accuracy @24" in quantities


def test_cells_are_the_same_wherever_and_however_long(tmp_path: Path, cell: Cell) -> None:
    """Device and time limit do not say what is measured; seed, length and options do."""
    elsewhere = cell.model_copy(update={"device": "cuda", "time_limit": 60.0})
    found = both(tmp_path / "same", [learn_record(cell)], [on("gpu", learn_record(elsewhere))])
    assert not found.changed and not found.a.alone and not found.b.alone
    for field, value in (
        ("seed", 1),
        ("length", 25),
        ("precision", "bfloat16"),
        ("model_options", {"heads": 2}),
    ):
        other = learn_record(cell.model_copy(update={field: value}))
        with pytest.raises(ValueError, match="no cell has a record in both"):
            both(tmp_path / field, [learn_record(cell)], [other])


def test_suites_and_machines_find_their_own(tmp_path: Path, cell: Cell) -> None:
    """One cell in two suites and on two machines: each stands beside itself; a renamed suite is
    found too.
    """
    a = [
        on(machine, learn_record(cell, correct, suite))
        for machine, suite, correct in (
            ("m", "x", 10),
            ("m", "y", 40),
            ("n", "x", 70),
            ("n", "y", 95),
        )
    ]
    assert not both(tmp_path / "all", a, a).changed
    some = both(tmp_path / "some", a, a[2:3])
    assert not some.changed and len(some.a.alone) == 3
    renamed = a[0].model_copy(update={"suite": "z"})
    assert not both(tmp_path / "renamed", a[:1], [renamed]).changed


def test_of_several_records_of_a_cell_the_newest_counts(tmp_path: Path, cell: Cell) -> None:
    old, new = (
        learn_record(cell, 10),
        learn_record(cell, 90).model_copy(update={"ended": "2026-02-01T00:00:00+00:00"}),
    )
    folder(tmp_path / "a" / "copied", [new])
    found = both(tmp_path, [old], [new])
    assert not found.changed and found.a.records == 1


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lookback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command in this process: exit code, what it said, and what it said of errors."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["lookback", "compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


def test_exit_codes_and_json(tmp_path: Path, cell: Cell, lookback: Command) -> None:
    a = folder(tmp_path / "a", [timed(cell, 0.5, 0.49, 0.51), *seeds(cell, [90, 91])])
    b = folder(tmp_path / "b", [timed(cell, 0.65, 0.64, 0.66)])
    code, same, _ = lookback(a, a)
    assert code == 0 and "equal" in same and "changed" not in same
    code, differing, _ = lookback(a, b)
    assert code == 1 and "× 1.3" in differing and "2 records only in A" in differing
    assert differing.index("changed, worse") < differing.index("only in A")
    code, text, _ = lookback(a, b, "--json")
    said = json.loads(text)
    assert (
        code == 1
        and said["changed"]
        and said["counts"]["changed"] == 3
        and len(said["a"]["alone"]) == 2
    )
    assert {row["verdict"] for row in said["rows"]} <= set(VERDICTS)
    assert lookback(a, b, "--tolerance", "0.5")[0] == 0


@pytest.mark.parametrize("wrong", ["empty", "absent", "apart", "tolerance"])
def test_wrong_use_is_one_line(tmp_path: Path, cell: Cell, wrong: str, lookback: Command) -> None:
    a = folder(tmp_path / "a", [learn_record(cell)])
    other = folder(tmp_path / "apart", [learn_record(cell.model_copy(update={"seed": 9}))])
    (tmp_path / "empty").mkdir()
    b = {
        "empty": tmp_path / "empty",
        "absent": tmp_path / "absent",
        "apart": other,
        "tolerance": a,
    }[wrong]
    code, said, error = lookback(a, b, "--tolerance", "nan" if wrong == "tolerance" else "0.1")
    assert code == 2 and not said and error.count("\n") == 1 and "expected" in error
