"""Does retrospection help, where, and what does it cost: RRWKV beside RWKV, in one page a machine, from all records."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lookback.benchmarks.record import Record
from lookback.benchmarks.report import distance, frames, reach
from lookback.benchmarks.report.about import failed_table
from lookback.benchmarks.report.answers import Question, notes_on, write_answer
from lookback.benchmarks.report.costs import costs_of
from lookback.benchmarks.report.learning import better, learned
from lookback.benchmarks.report.page import Made, NothingToReportError
from lookback.benchmarks.report.parts import Part
from lookback.benchmarks.report.statistics import LEVEL
from lookback.benchmarks.report.style import RC, in_order, looks, plt
from lookback.benchmarks.report.tables import bounds, by_place, decimal, plain

OURS, BASELINE = "rrwkv", "rwkv"
RATIOS = (
    ("training tokens a second", "training", "tokens_per_second"), ("training peak memory", "training", "peak_bytes"),
    ("time of a token in decode", "decode", "seconds"), ("state", "decode", "state_bytes"),
)  # fmt: skip

TITLE = "Does retrospection help, where, and what does it cost? RRWKV beside RWKV on "
DEFAULTS = "defaults"
WITHOUT = "retrospection=none"  # a variant that does not look back, and so says nothing of looking back
ONE_RATE = "one learning rate"  # in place of a verdict
MOST_NAMED = 4  # places that a sentence names
VIEW = """By how much RRWKV is better than RWKV, to the right, or worse: filled, tested at the length of training; \
hollow, at the longest length tested beyond it. Lines are 95 % t intervals over seeds, paired, each for itself. Helps, \
hurts: how many variants have an interval wholly above zero, or below. The best variant is the best at the length of \
training, picked afterwards. Of suites with one learning rate nothing is counted. *defaults* are those of \
`docs/models.md`; a run that two suites have is shown once."""
Row = dict[str, Any]


def by_suite(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records of the two models, of each suite that has both: only there were they given the same steps and batches.

    Without smoke scales, whose few steps show nothing but that they can be taken.
    """
    groups: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: (r.suite, r.cell.task, r.cell.length, r.cell.seed, r.cell.id)):
        if record.cell.model in (OURS, BASELINE) and not record.suite.endswith("-smoke"):
            groups.setdefault(record.suite, []).append(record)
    both = {suite for suite, found in groups.items() if len({r.cell.model for r in found}) == 2}
    return {suite: found for suite, found in groups.items() if suite in both}


# --- does it help


def comparisons(groups: dict[str, list[Record]]) -> list[Row]:
    """Each variant's score minus RWKV's, paired by seed, in every suite, task, and length of training and test.

    Two suites may have the same runs, to the last answer of every seed: these are one row, of the suite that names no
    option, if there is one.
    """
    rows = sorted(_compared(groups), key=lambda row: row["variant"] != DEFAULTS)
    once: dict[Any, Row] = {}
    for row in rows:
        same = row["task"].split(" ")[0], *(row[k] for k in ("trained at", "tested at", "score", "mean", "low"))
        once.setdefault(same if row["seeds"] > 1 else id(row), row)
    return sorted(once.values(), key=lambda row: list(groups).index(row["suite"]))


def _compared(groups: dict[str, list[Record]]) -> list[Row]:
    rows: list[Row] = []
    for suite, records in groups.items():
        scores, lost = frames.scores(records), frames.failures(records)
        ranges = distance.ranges(records)
        found = frames.differences(scores, BASELINE) if len(scores) else pd.DataFrame()
        verdict_of = _verdict if frames.tuned(records) else _one_rate
        for row in found.to_dict("records"):
            names = {"suite": suite, "variant": _variant(row["model"])}
            rows.append({
                **row, **names, "verdict": verdict_of(row),
                **{f"{which} {key}": value for which, model in (("its", row["model"]), ("basis", row["against"]))
                   for key, value in _of_model(scores, ranges, lost, row, model).items()},
            })  # fmt: skip
    return rows


def _variant(model: str) -> str:
    return model.removeprefix(OURS).strip() or DEFAULTS


def _verdict(row: Row) -> str:
    return {row["model"]: "helps", row["against"]: "hurts"}.get(better(row), "not shown")


def _one_rate(row: Row) -> str:
    return ONE_RATE if row["seeds"] > 1 else "not shown"


def _of_model(scores: pd.DataFrame, ranges: pd.DataFrame, lost: frames.Failures, row: Row, model: str) -> Row:
    """What a row of the table says of one of its two models, besides its mean."""
    place = row["task"], row["trained at"], row["tested at"], model
    here = scores[_at(scores, place)]
    spans = ranges[_at(ranges, place)] if len(ranges) else ranges
    return {
        "learned": learned(here, lost.get((place[0], place[1], model), 0))["learned"],
        "range": distance.median_range(spans) if len(spans) else "", "parameters": int(here["parameters"].iloc[0]),
    }  # fmt: skip


def _at(frame: pd.DataFrame, place: tuple[Any, ...]) -> pd.Series:
    columns = ("task", "length", "test_length", "model")
    return pd.concat([frame[c] == value for c, value in zip(columns, place, strict=True)], axis=1).all(axis=1)


def _in_order(rows: Sequence[Row]) -> list[Row]:
    order = in_order(row["model"] for row in rows)
    return sorted(rows, key=lambda row: order.index(row["model"]))


def comparison_table(rows: Sequence[Row]) -> pd.DataFrame:
    """RRWKV minus RWKV-4, paired by seed, a row a suite, task, length and variant."""
    table = by_place([
        {"suite": row["suite"], "task": row["task"], "trained at": row["trained at"], "tested at": row["tested at"],
         "variant": row["variant"], "unit": row["score_unit"], "RWKV": decimal(row["score_of_baseline"]),
         "RRWKV": decimal(row["score"]), "difference": decimal(row["mean"], "+.3f"),
         "95 % interval": bounds(row["low"], row["high"], "+.3f"), "seeds": row["seeds"],
         "learned: RWKV": row["basis learned"], "learned: RRWKV": row["its learned"],
         "range: RWKV": row["basis range"], "range: RRWKV": row["its range"],
         "parameters": _times(row["its parameters"] / row["basis parameters"]), "verdict": row["verdict"]}
        for row in _in_order(rows)
    ], "suite", "task", "trained at", "tested at")  # fmt: skip
    return table.drop(columns=[c for c in table.columns if (table[c] == "").all()])


# --- which part of it helps


def part_pairs(groups: dict[str, list[Record]]) -> list[Row]:
    """Each variant minus the one that lacks one of its options: what that option changes, paired by seed."""
    rows: list[Row] = []
    for suite, records in groups.items():
        ours = [record for record in records if record.cell.model == OURS] if frames.tuned(records) else []
        scores = frames.scores(ours)
        if scores.empty:
            continue
        labels = frames.Labels.of(ours)
        variants = {labels.model(r.cell): {**frames.settings(r.cell), "": labels.setting(r.cell)} for r in ours}
        for label, given in variants.items():
            for whole, less in variants.items():
                changed = [(key, value) for key, value in given.items() if key not in less]
                if len(changed) == 1 and given == {**less, **dict(changed)}:
                    basis = whole.removesuffix(str(less[""])).rstrip()
                    pair = frames.differences(scores[scores["model"].isin([label, whole])], basis)
                    name = f"{changed[0][0]}={changed[0][1]}"
                    rows += [{**row, "suite": suite, "changed": name, "whole": _variant(whole)}
                             for row in pair.to_dict("records")]  # fmt: skip
    return rows


def part_table(rows: Sequence[Row]) -> pd.DataFrame:
    """What each part gives: a variant before and after a change of one option, paired by seed."""
    return by_place([
        {"suite": row["suite"], "task": row["task"], "trained at": row["trained at"], "tested at": row["tested at"],
         "variant": row["whole"], "changed to": row["changed"], "unit": row["score_unit"],
         "before": f"{row['score_of_baseline']:.3f}", "after": f"{row['score']:.3f}",
         "difference": f"{row['mean']:+.3f}",
         "95 % interval": bounds(row["low"], row["high"], "+.3f"), "seeds": row["seeds"], "verdict": _part_verdict(row)}
        for row in _in_order(rows)
    ], "suite", "task", "trained at", "tested at")  # fmt: skip


def _part_verdict(row: Row) -> str:
    return {row["model"]: "better", row["against"]: "worse"}.get(better(row), "not shown")


# --- what it costs


def cost_ratios(groups: dict[str, list[Record]]) -> list[Row]:
    """RRWKV's cost over RWKV's, at the longest length where both were measured, of each suite, protocol and task."""
    rows: list[Row] = []
    for suite, records in groups.items():
        costs = costs_of(records)
        ok = costs[costs["status"] == "ok"] if len(costs) else costs
        for (task, protocol), here in ok.groupby(["task", "protocol"], sort=False) if len(ok) else ():
            basis = here[here["family"] == BASELINE]
            for model, variant in here[here["family"] == OURS].groupby("model", sort=False):
                common = set(basis["length"]) & set(variant["length"])
                if common:
                    row = {"suite": suite, "task": task, "protocol": protocol, "variant": _variant(str(model))}
                    rows.append({**row, "length": max(common), **_ratios(basis, variant, max(common))})
    return rows


def _ratios(basis: pd.DataFrame, variant: pd.DataFrame, length: int) -> Row:
    found: Row = {}
    for name, phase, column in RATIOS:
        ours, theirs = (
            frame.loc[(frame["length"] == length) & (frame["phase"] == phase), column].astype(float).median()
            for frame in (variant, basis)
        )
        found[name] = ours / theirs if theirs else math.nan
    timed = pd.concat([frame[frame["length"] == length] for frame in (basis, variant)])
    sizes = [frame["parameters"].dropna() for frame in (variant, basis)]
    return {**found, "parameters": sizes[0].iloc[0] / sizes[1].iloc[0], "noisy": bool((timed["noisy"] == True).any())}  # noqa: E712


def cost_table(rows: Sequence[Row]) -> pd.DataFrame:
    """What looking back costs: RRWKV's numbers over those of RWKV-4 in the same protocol."""
    return pd.DataFrame([
        {"suite": row["suite"], "task": row["task"], "with": row["protocol"], "length": row["length"],
         "variant": row["variant"], "parameters": _times(row["parameters"]),
         **{name: _times(row[name]) for name, *_ in RATIOS}, "noisy": "yes" if row["noisy"] else "no"}
        for row in rows
    ])  # fmt: skip


def _times(ratio: float) -> str:
    return "" if math.isnan(ratio) else f"× {ratio:.2f}"


# --- in one view


def places(rows: Sequence[Row]) -> list[list[Row]]:
    """Comparisons of several seeds, together where they are of one suite, task and length of training."""
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in _in_order(rows):
        if row["seeds"] > 1:
            groups.setdefault((row["suite"], row["task"], row["trained at"]), []).append(row)
    return [groups[key] for key in sorted(groups, key=lambda key: (key[1], key[2], key[0]))]


def view_table(rows: Sequence[Row]) -> pd.DataFrame:
    """A row a suite, task and length of training: how many variants help and hurt, and what the best has."""
    table = []
    for here in places(rows):
        at_home = [row for row in here if row["tested at"] == row["trained at"]]
        beyond = [row for row in here if row["tested at"] > row["trained at"]]
        best = max(at_home, key=lambda row: (row["verdict"] == "helps", _gain(row)), default={})
        table.append({
            "task": here[0]["task"], "trained at": here[0]["trained at"], "suite": here[0]["suite"],
            "helps": _of(at_home, "helps"), "hurts": _of(at_home, "hurts"),
            "helps at longer tests": _of(beyond, "helps"), "hurts at longer tests": _of(beyond, "hurts"),
            **({"best variant": best["variant"], "RWKV": decimal(best["score_of_baseline"]),
                "RRWKV": decimal(best["score"]), "difference": _difference(best)} if best else {}),
        })  # fmt: skip
    return pd.DataFrame(table).fillna("")


def _of(rows: Sequence[Row], verdict: str) -> str:
    rows = [row for row in rows if row["verdict"] != ONE_RATE]
    return f"{sum(row['verdict'] == verdict for row in rows)} of {len(rows)}" if rows else ""


def _gain(row: Row) -> float:
    """By how much RRWKV is better, in the unit of the score."""
    return row["mean"] if row["score_unit"] == "accuracy" else -row["mean"]


def _difference(row: Row) -> str:
    return f"{row['mean']:+.3f} ({bounds(row['low'], row['high'], '+.3f')}, n = {row['seeds']})"


def view_figure(rows: Sequence[Row]) -> Figure | None:
    """A panel a unit, two marks a variant: RRWKV's gain over RWKV at the length of training and at the longest test."""
    drawn = [row for here in places(rows) for row in here if row["tested at"] == row["trained at"]]
    units = list(dict.fromkeys(row["score_unit"] for row in drawn))
    if not units:
        return None
    groups = [[row for row in drawn if row["score_unit"] == unit] for unit in units]
    style = looks([row["model"] for row in drawn])
    with mpl.rc_context(RC):
        figure, axes = plt.subplots(
            len(units), 1, figsize=(8.4, sum(0.27 * len(group) + 0.8 for group in groups)), squeeze=False,
            height_ratios=[len(group) + 1 for group in groups],
        )  # fmt: skip
        for panel, unit, group in zip(axes.flat, units, groups, strict=True):
            for place, row in enumerate(group):
                _mark(panel, row, -place, style[row["model"]], "full")
                if (farther := _farthest(rows, row)) is not None:
                    _mark(panel, farther, -place - 0.32, style[row["model"]], "none")
            panel.axvline(0, color="#666666", linewidth=0.8, zorder=0)
            panel.set_title(f"{unit}{' lower' if unit != 'accuracy' else ' higher'} than RWKV's")
            panel.set_ylim(-len(group) + 0.2, 0.6)
            names = [f"{row['task']} @{row['trained at']}, {row['variant']} ({row['suite']})" for row in group]
            panel.set_yticks([-place - 0.16 for place in range(len(group))], names, fontsize=7.5)
            panel.grid(visible=False, axis="y")
    return figure


def _farthest(rows: Sequence[Row], row: Row) -> Row | None:
    """The same variant, trained at the same place, at the longest length tested beyond it."""
    same = ("suite", "task", "trained at", "model")
    found = [other for other in rows if all(other[k] == row[k] for k in same) and other["tested at"] > row["tested at"]]
    return max(found, key=lambda other: other["tested at"], default=None)


def _mark(axes: Axes, row: Row, place: float, look: dict[str, Any], fill: str) -> None:
    sign = 1 if row["score_unit"] == "accuracy" else -1
    if math.isfinite(row["low"]) and math.isfinite(row["high"]):
        axes.plot([sign * row["low"], sign * row["high"]], [place] * 2, color=look["color"], linewidth=1.2)
    inside = look["color"] if fill == "full" else "white"
    axes.plot(_gain(row), place, marker=look["marker"], color=look["color"], markerfacecolor=inside, markersize=4.5)


# --- in words


def words(rows: Sequence[Row], pairs: Sequence[Row], ratios: Sequence[Row]) -> list[str]:
    """The answer in sentences, each from the numbers of the tables below."""
    several = [row for row in rows if row["seeds"] > 1 and WITHOUT not in row["variant"]]
    one_rate = [row for row in several if row["verdict"] == ONE_RATE]
    several = [row for row in several if row["verdict"] != ONE_RATE]
    lines = [
        _count(several),
        _default(several),
        *_shown(several),
        _part_words(pairs),
        _untuned(one_rate),
        _single(rows),
        *_cost_words(ratios),
    ]
    return [line for line in lines if line]


def _count(rows: Sequence[Row]) -> str:
    if not rows:
        return "No comparison has several seeds, so that nothing can be said for or against retrospection."
    found = Counter(row["verdict"] for row in rows)
    by_chance = len(rows) * (1 - LEVEL)
    return (
        f"**Of {len(rows)} comparisons** (a variant that looks back, a task, a length of training and of test, several "
        f"seeds, each model at the best of several learning rates) RRWKV **helps in {found['helps']}, hurts in "
        f"{found['hurts']}**, and in {found['not shown']} "
        f"neither is shown. Each is judged at 95 % alone: were there no difference anywhere, about {by_chance:.1f} "
        f"of {len(rows)} would show one, and more or fewer together, for many share their runs."
    )


def _default(rows: Sequence[Row]) -> str:
    """The same of RRWKV as it is, nothing chosen after the fact."""
    found = Counter(row["verdict"] for row in rows if row["variant"] == DEFAULTS)
    if not found:
        return ""
    return (
        f"**With its default options**, chosen before any of this, it helps in {found['helps']} of {found.total()} and "
        f"hurts in {found['hurts']}."
    )


def _shown(rows: Sequence[Row]) -> list[str]:
    """Where it helps, and where it hurts, the largest differences first."""
    lines = []
    for verdict in ("helps", "hurts"):
        found = sorted((row for row in rows if row["verdict"] == verdict), key=lambda row: -abs(row["mean"]))
        said = [
            f"{row['task']} trained at {row['trained at']} and tested at {row['tested at']} ({row['suite']}, "
            f"{row['variant']}): {row['score_of_baseline']:.3f} becomes {row['score']:.3f}, {_difference(row)}"
            for row in found[:MOST_NAMED]
        ]
        more = f"; and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        lines += [f"**It {verdict}** in {'; '.join(said)}{more}."] if said else []
    return lines


def _part_words(pairs: Sequence[Row]) -> str:
    """What became of scores when one option of RRWKV was changed."""
    several = [row for row in pairs if row["seeds"] > 1]
    if not several:
        return ""
    found = Counter(_part_verdict(row) for row in several)
    retrospection = [row for row in several if row["changed"].startswith("retrospection=")]
    shown = sum(_part_verdict(row) != "not shown" for row in retrospection)
    return (
        f"**Its parts**: one option changed, a score became better in {found['better']} and worse in {found['worse']} "
        f"of {len(several)} comparisons"
        + (f"; {len(retrospection)} of these change retrospection itself, {shown} with a difference that is shown."
           if retrospection else ".")
    )  # fmt: skip


def _untuned(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    suites = ", ".join(dict.fromkeys(row["suite"] for row in rows))
    return (
        f"{len(rows)} more, at one learning rate, which may suit one of the two models better, are in the tables and "
        f"count nowhere ({suites})."
    )


def _single(rows: Sequence[Row]) -> str:
    single = [row for row in rows if row["seeds"] == 1]
    if not single:
        return ""
    suites = ", ".join(dict.fromkeys(row["suite"] for row in single))
    are = "comparison has" if len(single) == 1 else "comparisons have"
    return f"{len(single)} {are} one seed, and show{'s' if len(single) == 1 else ''} nothing ({suites})."


def _cost_words(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return ["**What it costs** was not measured here."]
    return [
        f"**It costs**, {row['variant']}, with {row['protocol']} of {row['length']:,} tokens ({row['suite']}): "
        + ", ".join(f"{row[name]:.2f} times the {name}" for name, *_ in RATIOS if not math.isnan(row[name]))
        + f", with {row['parameters']:.2f} times the parameters{' (some timings were noisy)' if row['noisy'] else ''}."
        for row in rows
        if row["length"] == max(other["length"] for other in rows)
    ]


# --- the page


def parts(rows: Sequence[Row], pairs: Sequence[Row], ratios: Sequence[Row]) -> list[Part]:
    return [
        Part("In one view", VIEW, "gains", view_figure(rows), pd.DataFrame(_data(rows)), view_table(rows)),
        Part("Does it help, and where",
             "Score of RRWKV minus that of RWKV trained from the same seed on the same batches; t intervals. Learned: "
             "seeds above half of what lies between the constant answer and one. Range: the longest distance up to "
             "which accuracy stays above that, median over seeds (≥: as far as was asked). Parameters: RRWKV's over "
             "RWKV's. retrospection=none keeps the mediums in the token shift alone.",
             table=comparison_table(rows)),
        Part("Which part of it helps",
             "One option changed, the seed and the batches the same, and the width, where sizes are matched, worked "
             "out anew: the score after, minus that before; t intervals. retrospection=none keeps the mediums in the "
             "token shift alone.",
             table=part_table(pairs)),
        Part("What it costs", "RRWKV's cost over RWKV's, of medians, at the longest length that both were measured at.",
             table=cost_table(ratios)),
    ]  # fmt: skip


def _data(rows: Sequence[Row]) -> list[Row]:
    columns = (
        "suite", "task", "trained at", "tested at", "variant", "score_unit", "score_of_baseline", "score", "mean",
        "low", "high", "seeds", "verdict",
    )  # fmt: skip
    return [{column: row[column] for column in columns} for here in places(rows) for row in here]


def more_parts(groups: dict[str, list[Record]]) -> list[Part]:
    """How far gradients reach, and what ended otherwise than well."""
    reaches = [
        Part(f"How far back gradients reach: {suite}", reach.TABLE_TEXT, table=reach.reach_table(shares))
        for suite, found in groups.items() if len(shares := reach.shares_of(found))
    ]  # fmt: skip
    every = [record for found in groups.values() for record in found]
    return [*reaches, Part("What did not end well", table=failed_table(every))]


def make_answer(records: Sequence[Record], folder: Path) -> Made:
    """Write the page; records must be of one machine, of any suites."""
    groups = by_suite(records)
    if not groups:
        raise NothingToReportError(f"no suite has records of both {OURS} and {BASELINE}: run `distance` first")
    both = [record for found in groups.values() for record in found]
    rows, pairs, ratios = comparisons(groups), part_pairs(groups), cost_ratios(groups)
    found = [*parts(rows, pairs, ratios), *more_parts(groups)]
    sentences = words(rows, pairs, ratios)
    text = " ".join([
        *notes_on(both), "What stands here is of that reconstruction, not of what its author may have built.",
        f"Made from the records of {', '.join(groups)} alone, by `make paper-rrwkv`.",
    ])  # fmt: skip
    shown = next((plain(part.table) for part in found if part.table is not None and part.has_table), sentences[0])
    return write_answer(folder, TITLE + records[0].machine.device, text, found, both, shown, sentences)


QUESTION = Question("rrwkv", make_answer)
