"""What the numbers are of: cells that failed, tasks, models, and how it was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from lookback.benchmarks.record import GROWING, LearnCell, Record
from lookback.benchmarks.report.frames import APART, Labels, options, without_size
from lookback.benchmarks.report.parts import Part
from lookback.benchmarks.report.style import in_order
from lookback.benchmarks.report.tables import span

MATCH = 0.02  # parameters this close count as matched


def parts(records: Sequence[Record]) -> list[Part]:
    return [
        Part("What did not end well", table=failed_table(records)),
        Part("Tasks", table=task_table(records)),
        Part("Models", matched(records), table=model_table(records)),
        Part("How it was measured", table=pd.DataFrame(facts(records).items(), columns=["what", ""])),
    ]


def failed_table(records: Sequence[Record]) -> pd.DataFrame:
    """Each cell that ended otherwise than ok, and the last line of why."""
    return pd.DataFrame([
        {"cell": r.cell_id, "status": r.outcome.status,
         "message": (r.outcome.message.strip().splitlines() or [""])[-1]}
        for r in records if r.outcome.status != "ok"
    ])  # fmt: skip


def task_table(records: Sequence[Record]) -> pd.DataFrame:
    """Each task with its options, its constant answer and the source of its rule."""
    labels = Labels.of(records)
    found = {labels.task(r.cell): (r.cell, r.outcome.task) for r in records if r.outcome.task}
    return pd.DataFrame([
        {"task": name, "options": options(cell.task_options),
         "constant answer": f"{task.baseline_score:.4g} {task.score}", "source of the rule": task.source,
         "data": ", ".join(f"{key} {value}" for key, value in task.data.items() if isinstance(value, str))}
        for name, (cell, task) in sorted(found.items())
    ])  # fmt: skip


def model_table(records: Sequence[Record]) -> pd.DataFrame:
    """Each model with its options and sizes, which vary with the tasks' vocabularies, and those beside the first's."""
    labels = Labels.of(records)
    rows = [
        {"model": labels.model(r.cell), "options": options(r.cell.model_options), "width": r.cell.width,
         "depth": r.cell.depth, "parameters": numbers.parameters}
        for r in records if (numbers := r.outcome.learn or r.outcome.cost)
    ]  # fmt: skip
    if not rows:
        return pd.DataFrame()
    groups = pd.DataFrame(rows).groupby(["model", "options", "width", "depth"], sort=False, as_index=False)
    table = groups["parameters"].agg(span)
    first, deviations = sizes_beside(records)
    if deviations:
        table[f"beside {first}"] = [_range(deviations.get(model, [])) for model in table["model"]]
    return table


def sizes(records: Sequence[Record]) -> list[dict[str, int]]:
    """Parameters by model of each place where models meet: a task, a length, and a size where there are several."""
    labels = Labels.of(records)
    places: dict[tuple[object, ...], dict[str, int]] = {}
    bare: dict[str, str] = {}  # names without their settings
    for record in records:
        if numbers := record.outcome.learn or record.outcome.cost:
            cell, setting = record.cell, labels.setting(record.cell)
            place = cell.kind, labels.task(cell), without_size(setting), cell.length
            places.setdefault(place, {})[labels.model(cell)] = numbers.parameters
            bare[labels.model(cell)] = labels.model(cell).removesuffix(setting).rstrip()
    groups = [group for models in places.values() for group in _near(models, bare)]
    return [models for models in groups if len(models) > 1]


def _near(models: dict[str, int], bare: dict[str, str]) -> list[dict[str, int]]:
    """The models of one place, in groups about the sizes of the one that has most."""
    names = [bare[model] for model in in_order(models)]
    most = max(dict.fromkeys(names), key=names.count)
    centres = [model for model in models if bare[model] == most]
    if len(centres) == 1:
        return [models]
    groups: dict[str, dict[str, int]] = {}
    for model, size in models.items():
        apart = {centre: max(size / models[centre], models[centre] / size) for centre in centres}
        nearest = min(centres, key=lambda centre: apart[centre])
        if apart[nearest] <= APART:
            groups.setdefault(nearest, {})[model] = size
    return list(groups.values())


def sizes_beside(records: Sequence[Record]) -> tuple[str, dict[str, list[float]]]:
    """The model that sizes are held against, and how far every other one's deviates, in each place they meet."""
    found: dict[str, list[float]] = {}
    firsts = {in_order(models)[0] for models in sizes(records)}
    first = in_order({name.split(" ")[0] for name in firsts})[:1]
    for models in sizes(records):
        of_first, *others = in_order(models)
        for model in others if of_first.split(" ")[0] in first else ():
            found.setdefault(model, []).append(models[model] / models[of_first] - 1)
    return (first or [""])[0], found


def matched(records: Sequence[Record]) -> str:
    """A sentence: within what the sizes of models that meet are matched, or which are how much larger or smaller."""
    places = sizes(records)
    if not places:
        return ""
    common = in_order(set.intersection(*(set(models) for models in places)))
    off = {model: max(abs(size / models[model] - 1) for models in places for size in models.values())
           for model in common}  # fmt: skip
    centre = min(common, key=off.__getitem__, default="")
    if centre and off[centre] <= MATCH:
        return f"Parameters are matched: all are within {_percent(off[centre])} of {centre}'s."
    spreads = [max(models.values()) / min(models.values()) - 1 for models in places]
    if max(spreads) <= MATCH:
        return f"Parameters are matched within {_percent(max(spreads))}."
    first, deviations = sizes_beside(records)
    worst = {model: max(found, key=abs) for model, found in deviations.items()}
    unmatched = [
        f"{model} has up to {_percent(abs(off))} {'more' if off > 0 else 'fewer'}"
        for model, off in worst.items() if abs(off) > MATCH
    ]  # fmt: skip
    names = ", ".join(unmatched) or f"they are up to {_percent(max(spreads))} apart"
    return f"**Sizes are not matched** within {_percent(MATCH, 0)}: beside {first}, {names}."


def _range(deviations: Sequence[float]) -> str:
    ends = dict.fromkeys(_percent(end, 1, "+") for end in (min(deviations), max(deviations))) if deviations else ()
    return " to ".join(ends)


def _percent(share: float, digits: int = 1, sign: str = "") -> str:
    return f"{100 * share:{sign}.{digits}f} %"


def facts(records: Sequence[Record]) -> dict[str, str]:
    """Where, with what and when the records were measured."""
    machine = records[0].machine
    loads = [load for r in records if isinstance(load := r.machine.facts.get("load_before"), int | float)]
    versions = {name: _every(r.versions.get(name, "") for r in records) for name in sorted(records[0].versions)}
    found = {
        "device": machine.device,
        "machine": ", ".join(
            f"{k} {v}" for k, v in machine.facts.items() if not k.startswith("load") and v is not None
        ),
        "load average when cells began": f"{min(loads)} to {max(loads)}" if loads else "",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "kernels": _every(kernel for r in records for kernel in r.outcome.kernels),
        "precision": _every(r.cell.precision for r in records),
        "training": "; ".join(trainings(records)),
        "time outside the training step": waited(records),
        "measured": f"{min(r.started for r in records)} to {max(r.ended for r in records)}",
        "commits": _every(
            (r.commit or "none")[:12] + (" with changes" if r.uncommitted_changes else "") for r in records
        ),
    }
    return {name: value for name, value in found.items() if value}


def trainings(records: Sequence[Record]) -> list[str]:
    """How the models of each task were trained: steps, batches, rates, lengths on the way, and when it could end."""
    labels, tasks = Labels.of(records), dict[str, list[str]]()
    for cell in (record.cell for record in records if record.cell.kind == "learn"):
        rates = " or ".join(f"{rate:g}" for rate in cell.learning_rates or (cell.learning_rate,))
        words = [
            f"{cell.steps:,} steps of {cell.batch_size} sequence{'s' if cell.batch_size > 1 else ''}",
            f"learning rate {rates}, {cell.warmup} steps of warm-up", f"weight decay {cell.weight_decay:g}",
            f"dropout {cell.dropout:g}" if cell.dropout else "",
            _lengths(cell),
        ]  # fmt: skip
        said = f"at {cell.length:,}: {', '.join(filter(None, words))}"
        tasks.setdefault(labels.task(cell), []).append(said)
    return [f"{task} {_more_than_one(dict.fromkeys(said))}" for task, said in tasks.items()]


def _lengths(cell: LearnCell) -> str:
    """How long the sequences in training are, where not all are of one length."""
    if not cell.start_length:
        return ""
    if cell.lengths == "draw":
        return f"lengths drawn from {cell.start_length} up"
    return f"lengths growing from {cell.start_length} over the first {100 * GROWING:g} %"


def _more_than_one(said: Iterable[str]) -> str:
    """Sentences of several lengths, those that say the same as one: at 64 and 128: ..."""
    by_words: dict[str, list[str]] = {}
    for sentence in said:
        place, words = sentence.split(": ", 1)
        by_words.setdefault(words, []).append(place.removeprefix("at "))
    return "; ".join(f"at {' and '.join(places)}: {words}" for words, places in by_words.items())


def waited(records: Sequence[Record]) -> str:
    """The largest share that a run spent outside its training steps, waiting for batches above all."""
    shares = [
        (numbers.waiting / numbers.seconds, r.cell_id) for r in records
        if (numbers := r.outcome.learn) and numbers.waiting is not None and numbers.seconds > 0
    ]  # fmt: skip
    return f"at most {_percent(max(shares)[0])} ({max(shares)[1]})" if shares else ""


def _every(values: Iterable[object]) -> str:
    return ", ".join(sorted({str(value) for value in values}))
