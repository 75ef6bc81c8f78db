"""Costs against length: time, memory, operations and state in training, prefill and decoding."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from lookback.benchmarks.report import plots
from lookback.benchmarks.report.frames import largest
from lookback.benchmarks.report.names import add_names
from lookback.benchmarks.report.section import Content, register_section
from lookback.benchmarks.report.statistics import quadratic_part, slope

# Quantity -> phase, column of the frame, factor to the unit that is drawn, unit.
QUANTITIES = {
    "training time": ("training", "seconds", 1e3, "ms"),
    "training memory": ("training", "peak_bytes", 1e-6, "MB"),
    "training operations": ("training", "flops", 1e-9, "GFLOP"),
    "prefill time": ("prefill", "seconds", 1e3, "ms"),
    "prefill memory": ("prefill", "peak_bytes", 1e-6, "MB"),
    "decode time": ("decode", "seconds", 1e3, "ms"),
    "state": ("state", "state_bytes", 1e-3, "KB"),
}
DRAWN = ("training time", "training memory", "decode time", "state")


def quantities(costs: pd.DataFrame) -> pd.DataFrame:
    """Return one row per cell and quantity: columns quantity, value, low, high (quartiles)."""
    parts = []
    for quantity, (phase, column, _, _) in QUANTITIES.items():
        if column not in costs:
            continue
        rows = costs[(costs["phase"] == phase) & costs[column].notna()]
        rows = rows.assign(quantity=quantity, value=rows[column])
        is_time = column == "seconds"
        rows = rows.assign(low=rows["q1"] if is_time else rows["value"])
        rows = rows.assign(high=rows["q3"] if is_time else rows["value"])
        parts.append(rows)
    return pd.concat(parts) if parts else pd.DataFrame()


def one_protocol(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the batch size that reaches the longest length."""
    lengths = rows.groupby("batch")["trained_length"].max()
    return rows[rows["batch"] == lengths.idxmax()]


@register_section("Cost against length", of="costs")
def cost_by_length(costs: pd.DataFrame) -> Content:
    """Medians of repeats, shaded to their quartiles. Memory is the most that was alive at once,
    weights and optimizer included; decode time is of one token after so long a context; state is
    what generation keeps. The table is of the longest length that all models reached. Share of
    matmul speed: operations a second in training, over those of a large matrix product."""
    rows = add_names(quantities(costs))
    if rows.empty:
        return Content()
    rows = one_protocol(rows)
    drawn = []
    for quantity in DRAWN:
        scale, unit = QUANTITIES[quantity][2:]
        part = rows[rows["quantity"] == quantity]
        scaled = {name: part[name] * scale for name in ("value", "low", "high")}
        drawn.append(part.assign(**scaled, panel=f"{quantity}, {unit}"))
    batch = rows["batch"].iloc[0]
    panel = ["panel", "device"]
    x_label = f"tokens, {batch}"
    figure = plots.curves(pd.concat(drawn), "trained_length", panel, x_label, "", True, "value")
    return Content(figure, prices(costs))


def prices(costs: pd.DataFrame) -> pd.DataFrame:
    """Return a row per machine and model, at the longest length that all its models have."""
    rows = quantities(costs)
    if rows.empty:
        return rows
    machines = add_names(rows).groupby("device", sort=False)
    parts = [_machine_prices(one_protocol(own)).assign(machine=name) for name, own in machines]
    table = pd.concat(parts, ignore_index=True)
    return table.drop(columns="machine") if len(parts) == 1 else table


def _machine_prices(rows: pd.DataFrame) -> pd.DataFrame:
    lengths = rows.groupby("model_name")["trained_length"].apply(set)
    common = set.intersection(*lengths)
    if not common:
        return pd.DataFrame()
    rows = rows[rows["trained_length"] == max(common)]
    values = rows.pivot_table(
        index="model_name", columns="quantity", values="value", aggfunc="median"
    )
    values = values.reindex(columns=list(QUANTITIES))
    table = rows.groupby("model_name", sort=False)["parameters"].max().to_frame()
    training = rows[rows["phase"] == "training"].groupby("model_name")
    speed = training["tokens"].max() / values["training time"]
    table["trained_tokens_per_second"] = speed.round().astype("Int64")
    if "share_of_matmul_speed" in rows:
        table["share_of_matmul_speed"] = training["share_of_matmul_speed"].median()
    table["training_peak_bytes"] = values["training memory"]
    table["decode_seconds"] = values["decode time"]
    table["state_bytes"] = values["state"]
    return table.reset_index().assign(at_length=max(common))


@register_section("Tokens generated one by one", of="generation", folded=True)
def generation(points: pd.DataFrame) -> Content:
    """Seconds since the first token, and the state kept, while tokens are generated one by one."""
    points = add_names(points)
    parts = []
    for column, scale, unit in (("seconds", 1.0, "seconds"), ("state_bytes", 1e-3, "state, KB")):
        parts.append(points.assign(value=points[column] * scale, panel=unit))
    figure = plots.curves(
        pd.concat(parts), "tokens", ["panel"], "tokens generated", "", True, "value"
    )
    return Content(figure)


@register_section("How costs grow", of="costs", folded=True)
def cost_growth(costs: pd.DataFrame) -> Content:
    """Slope: of log cost over log length, with its 95 % interval; operations and bytes are exact
    and have none. Times are fitted with c + a T + b T²: the quadratic share is that of b T² at the
    longest length, and the crossover the length where it equals a T; both only where b's interval
    lies above zero."""
    return Content(table=growth(costs))


def growth(costs: pd.DataFrame) -> pd.DataFrame:
    """Return a row per quantity and model: its slope and its quadratic share."""
    rows = quantities(costs)
    if rows.empty:
        return rows
    rows = add_names(rows)
    return pd.DataFrame(list(_growth_rows(one_protocol(rows))))


def _growth_rows(rows: pd.DataFrame) -> Iterator[dict[str, object]]:
    keys = ["suite", "machine", "quantity", "model", "model_options", "model_name"]
    for key, group in rows.groupby(keys, sort=False):
        line = group.groupby("trained_length")["value"].median()
        if len(line) < 2:
            continue
        lengths, values = [float(x) for x in line.index], [float(y) for y in line]
        row = dict(zip(keys, key, strict=True))
        row |= {"lengths": len(line), "longest": int(max(lengths))}
        row["slope"], row["slope_low"], row["slope_high"] = slope(lengths, values)
        if QUANTITIES[row["quantity"]][1] == "seconds":
            row["quadratic_share"], row["crossover"] = quadratic_part(lengths, values)
        else:
            # Counted, not timed: without an interval, and by its last doubling.
            row["slope"] = slope(lengths[-2:], values[-2:])[0]
            row["slope_low"] = row["slope_high"] = float("nan")
        yield row


def ratios(costs: pd.DataFrame, model: str, against: str) -> pd.DataFrame:
    """Return one model's cost over another's at the longest length both have, per quantity.

    Columns low and high are the bounds that the quartiles of both allow.
    """
    rows = quantities(costs)
    if rows.empty:
        return rows
    rows = rows[rows["model_options"] == "{}"]
    keys = ["suite", "machine", "task", "depth", "batch", "training", "trained_length", "quantity"]
    medians = rows.groupby([*keys, "model", "width"], sort=False)[["value", "low", "high"]].median()
    medians = medians.reset_index()  # over seeds
    ours, theirs = (medians[medians["model"] == name] for name in (model, against))
    pairs = ours.merge(theirs, on=keys, suffixes=("", "_baseline"))
    pairs = largest(pairs, "trained_length", ["suite", "machine", "batch"])
    return pairs.assign(
        ratio=pairs["value"] / pairs["value_baseline"],
        ratio_low=pairs["low"] / pairs["high_baseline"],
        ratio_high=pairs["high"] / pairs["low_baseline"],
    )
