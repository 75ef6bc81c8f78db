"""The page of a suite: what was asked, who is best, by how much, how sure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import humanize
import pandas as pd

from lookback.benchmarks.record import Record
from lookback.benchmarks.report.endpoints import BASELINE, Judged, SuiteEvidence, main_size
from lookback.benchmarks.report.frames import IDENTITY
from lookback.benchmarks.report.names import add_names, model_name, printable
from lookback.benchmarks.report.page import Block, Page
from lookback.benchmarks.report.plots import intervals
from lookback.benchmarks.report.section import SECTIONS, Content, contents
from lookback.benchmarks.report.sections.costs import prices
from lookback.benchmarks.report.statistics import summarise
from lookback.benchmarks.suite import Endpoint

BY_OPTION = "Score against an option"  # title of a section
TEST = [*IDENTITY, "parameters", "test_length", "test_options", "unit"]
IN_WORDS = {
    "better": "better",
    "worse": "worse",
    "equivalent": "equivalent",
    "inconclusive": "inconclusive",
    "at floor": "at the floor, unlike it",
    "baseline at floor": "learned, unlike it",
    "both at floor": "at the floor like it",
    "both at ceiling": "at the ceiling like it",
}
"""Verdicts as a sentence says them of models beside the baseline, in its order."""
MOST_TESTS = 3  # columns of scores in a first table
MOST_NAMED = 6  # models in a sentence
RECONSTRUCTION = (
    "RRWKV is this project's reconstruction: its paper (arXiv 2306.05176) was withdrawn, "
    "without code or results."
)


def suite_page(evidence: SuiteEvidence, title: str, left_out: int = 0) -> Page:
    """Return the page of the records of one suite; `left_out` counts those that are not shown."""
    shown = contents(evidence, SECTIONS)
    lead: list[str] = []
    first: list[Block] = []
    judged = evidence.judged
    if judged:
        if judged.endpoint.option and BY_OPTION in shown:  # the figure of such an endpoint
            shown = {BY_OPTION: shown.pop(BY_OPTION), **shown}
        first = list(_endpoint_blocks(judged))
        lead = endpoint_sentences(judged)
    else:
        scores = add_names(summarise(evidence["scores"], TEST, "score"), with_length=True)
        costs = prices(evidence["costs"])
        table = model_table(scores, costs)
        if not table.empty:
            lead = _first_sentences(scores, costs)
            first = [Block("Models", _seeds_text(scores), table=table)]
    return Page(
        title=title,
        source=_source(evidence.records, left_out),
        lead=lead,
        blocks=_ordered(shown, first),
    )


def machine_name(record: Record) -> str:
    """Return a machine in words: `AMD EPYC, AVX-512, 2 cores`."""
    cores = record.machine.facts.get("cores")
    is_cpu = record.cell.device == "cpu" and isinstance(cores, int)
    return f"{record.machine.device}, {cores} cores" if is_cpu else record.machine.device


def machine_names(records: Iterable[Record]) -> str:
    """Return the machines of records in words, with how many are of each if there are several."""
    counts = Counter(machine_name(record) for record in records).most_common()
    return " and ".join(name if len(counts) == 1 else f"{name} ({count})" for name, count in counts)


def _ordered(shown: dict[str, Content], first: Sequence[Block]) -> list[Block]:
    """Put the first figure, then the first table, then everything else, folded."""
    front: list[Block] = []
    failures: list[Block] = []
    rest: list[Block] = []
    for title, content in shown.items():
        section = SECTIONS[title]
        text = "\n\n".join(part for part in (section.text, content.text) if part)
        if title == "Runs that failed":
            failures.append(Block(title, text, content.figure, content.table))
        elif not front and content.figure is not None and not section.folded:
            front.append(Block(title, text, content.figure, None if first else content.table))
            if first and content.table is not None and not content.table.equals(first[0].table):
                rest.append(Block(f"{title}, in numbers", "", None, content.table, folded=True))
        else:
            rest.append(Block(title, text, content.figure, content.table, folded=True))
    return [*front, *first, *failures, *rest]


def _source(records: Sequence[Record], left_out: int) -> str:
    seeds = {record.cell.seed for record in records if record.cell.kind == "learn"}
    days = sorted({printable(record.ended[:10]) for record in records})
    words = [f"{len(records)} records of {machine_names(records)}"]
    if seeds:
        words.append(f"{len(seeds)} seed{'' if len(seeds) == 1 else 's'}")
    failed = sum(record.outcome.status != "ok" for record in records)
    if failed:
        words.append(f"{failed} failed")
    if left_out:
        words.append(f"{left_out} older measurements of the same left out")
    words.append(" to ".join(dict.fromkeys((days[0], days[-1]))))
    text = ", ".join(words) + f". Made by `lookback report {records[0].suite}`."
    versions = _code_versions(records)
    if versions:
        text += " " + versions
    if any(record.cell.model == "rrwkv" for record in records):
        text += " " + RECONSTRUCTION
    return text


def _code_versions(records: Iterable[Record]) -> str:
    """Name the files of models and tasks that have several versions among these records."""
    digests: dict[str, set[str]] = {}
    for record in records:
        for path, digest in record.code.sources.items() if record.code else ():
            digests.setdefault(path, set()).add(digest)
    several = [f"`{printable(path)}`" for path, found in sorted(digests.items()) if len(found) > 1]
    return f"Made with several versions of {', '.join(several)}." if several else ""


# --- the endpoint


def _endpoint_blocks(judged: Judged) -> Iterable[Block]:
    for number, (task, rows) in enumerate(by_task(judged.table(judged.values))):
        title = f"Models, {task}" if number else "Models"
        text = "" if number else f"{task.capitalize()}. {endpoint_text(judged.endpoint)}"
        table = rows.drop(columns=["task_name", "model", "blind", "most"]).reset_index(drop=True)
        yield Block(title, text, table=table, folded=number > 0)
    if judged.verdicts.empty:
        return
    matters = judged.endpoint.difference
    label = f"difference to {model_name(BASELINE)}"
    rows = add_names(judged.verdicts, with_length=True)
    figure = intervals(rows, "model_name", "task_name", label, matters)
    text = (
        f"Model minus {model_name(BASELINE)}, paired by seed, with 95 % intervals over seeds. "
        f"Shaded: within ±{matters}, which does not matter."
    )
    yield Block(f"Difference to {model_name(BASELINE)}", text, figure, folded=True)


def by_task(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return the rows of each task, the one with most rows first."""
    groups = [(str(task), rows) for task, rows in table.groupby("task_name", sort=False)]
    return sorted(groups, key=lambda group: -len(group[1]))


def quantity_text(endpoint: Endpoint) -> str:
    """Say what the endpoint measures."""
    names = [f"{length:,}" for length in endpoint.lengths]
    lengths = f"at {humanize.natural_list(names)} tokens"
    return {
        "score": f"{'mean ' if len(names) > 1 else ''}score {lengths}",
        "area": f"accuracy above the sighted floor, averaged over log2 distance, {lengths}",
        "halfway": f"log2 of the number of {endpoint.option} at which accuracy is half-way from "
        "the floor to one",
        "saved": f"bits a byte saved on the same bytes from {' to '.join(names)} tokens read",
    }[endpoint.quantity]


def endpoint_text(endpoint: Endpoint) -> str:
    """Say what the endpoint is, and how verdicts are reached."""
    return (
        f"Endpoint: {quantity_text(endpoint)}. Differences are to {model_name(BASELINE)}, paired "
        f"by seed, with 95 % intervals over seeds. Equivalent: within ±{endpoint.difference} by "
        "two one-sided tests. Smallest shown: the difference that this many seeds show with a "
        "power of 80 %. The sighted floor is the best score of an answer without a model."
    )


def endpoint_sentences(judged: Judged) -> list[str]:
    """Say what was measured, who is best and by how much, and the verdicts, on the first task."""
    task, table = by_task(judged.table(main_size(judged.values)))[0]
    scores = table.set_index("model_name")["endpoint"].sort_values(ascending=False, kind="stable")
    is_best = judged.is_best(scores)
    best = in_bold(scores[is_best].index)
    if is_best.sum() == 1:
        sentence = f"{best} is best: {scores.max():.2f}, then {ranking(scores[1:5])}."
    elif is_best.all():
        sentence = f"no model is apart: all {scores.min():.2f} to {scores.max():.2f}."
    else:
        behind = ranking(scores[~is_best].head(4))
        matters = judged.endpoint.difference
        sentence = f"{best} are best, within {matters}: {scores.max():.2f}, then {behind}."
    sentences = [f"{task.capitalize()}, {quantity_text(judged.endpoint)}: {sentence}"]
    if "verdict" in table:
        groups = dict(list(table.groupby("verdict")["model_name"]))
        words = [f"{IN_WORDS[key]}: {in_bold(groups[key])}" for key in IN_WORDS if key in groups]
        if words:
            sentences.append(f"Beside {model_name(BASELINE)}, {'; '.join(words)}.")
    return sentences


def in_bold(names: Iterable[str]) -> str:
    """Return a list of names that may hold commas."""
    return str(humanize.natural_list([f"**{name}**" for name in names]))


def ranking(scores: pd.Series) -> str:
    """Return models with their scores, in the order of a series: `RWKV-4 0.59, LSTM 0.43`."""
    return ", ".join(f"{name} {score:.2f}" for name, score in scores.items())


# --- suites without an endpoint


def model_table(scores: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Return a row per model: its mean scores in a few tests, and its costs (see `prices`)."""
    table = pd.DataFrame()
    if not scores.empty:
        table = scores.groupby("model_name", sort=False)["parameters"].max().to_frame()
        tests = list(scores.groupby(["task_name", "test_length"]))
        last = max(1, len(tests) - MOST_TESTS + 1)  # the first test, and the last ones
        for (task, length), rows in [tests[0], *tests[last:]]:
            of_model = rows.groupby("model_name")
            table[f"{task} @{length}"] = of_model["mean"].mean()
            if scores["seeds"].max() > 1:
                is_one = of_model.size() == 1  # else a mean of tests with several options
                for end in ("low", "high"):
                    table[f"{task} @{length}_{end}"] = of_model[end].mean().where(is_one)
    if not costs.empty:
        costs = costs.set_index("model_name")
        table = costs if table.empty else table.join(costs.drop(columns="parameters"))
    return table.reset_index()


def _seeds_text(scores: pd.DataFrame) -> str:
    if scores.empty:
        return ""
    floors = scores.groupby("test_length")["floor"].mean()
    words = ", ".join(f"{floor:.2f} at {length:,}" for length, floor in floors.items())
    one = scores["seeds"].max() == 1
    note = " One seed, so a first look and no comparison." if one else ""
    return f"The sighted floor, the best score of an answer without a model: {words}.{note}"


def _first_sentences(scores: pd.DataFrame, costs: pd.DataFrame) -> list[str]:
    """Say who scores best in the longest tests of two tasks, and what the longest length costs."""
    sentences = []
    for task, rows in list(scores.groupby("task_name", sort=False))[:2]:
        longest = rows["test_length"].max()
        means = rows[rows["test_length"] == longest].groupby("model_name")["mean"].mean()
        unit = rows["unit"].iloc[0]
        order = means.sort_values(ascending=unit != "accuracy")
        asked = f"{str(task).capitalize()} at {longest:,} tokens"
        sentences.append(f"{asked} ({unit}): {ranking(order.head(MOST_NAMED))}.")
    if "trained_tokens_per_second" in costs and len(costs) > 1:
        if "machine" in costs:  # compare on one of them
            costs = costs[costs["machine"] == costs["machine"].iloc[0]]
        costs = costs.sort_values("trained_tokens_per_second", ascending=False)
        first, last = costs.iloc[0], costs.iloc[-1]
        times = first["trained_tokens_per_second"] / last["trained_tokens_per_second"]
        sentences.append(
            f"At {first['at_length']:,} tokens {first['model_name']} trains fastest, "
            f"{times:.1f} times as fast as {last['model_name']}."
        )
    return sentences
