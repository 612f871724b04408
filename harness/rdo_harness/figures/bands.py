"""Means of operating points over seeds, with 95 % intervals: over seeds, or over test items where there is one seed."""

from __future__ import annotations

import math

import pandas as pd

from rdo_harness.metrics import interval
from rdo_harness.significance import bootstrap, item_nats, wilson

SETTING = (
    "lam",
    "lam_units",
    "apply",
    "eps",
    "regulariser_p",
    "step",
    "relative_step",
    "granularity",
    "sparsity_target",
    "bits",
    "pressure",
    "allocation",
    "start",
    "compensated",
    "group_size",
    "qp",
    "dependent",
    "pruner",
    "level",
    "setting",
)
"""Columns that tell the operating points of one label apart."""


def over_seeds(points: pd.DataFrame) -> pd.DataFrame:
    """One row for each operating point of a label: the mean of every number, and where its interval begins and ends.

    The intervals are in ``cross_entropy_low``, ``_high``, ``metric_low``, ``_high``, NaN where nothing gives one.
    """
    setting = [column for column in SETTING if column in points]
    rows = []
    for _, same in points.groupby(setting, dropna=False, sort=False):
        row = same.iloc[0].to_dict() | same.mean(numeric_only=True).to_dict()
        for column in ("cross_entropy", "metric"):
            row[f"{column}_low"], row[f"{column}_high"] = _interval(same, column)
        rows.append(row)
    return pd.DataFrame(rows)


def levelled(points: pd.DataFrame) -> pd.DataFrame:
    """The rows of one model, with what normal training of their seed differs by from that of all seeds taken off.

    So methods of one seed can stand beside means over several.
    """
    points, normal = points.copy(), points[points["lam"].isna()]
    for column in ("cross_entropy", "metric"):
        uncompressed = normal.groupby("seed")[f"uncompressed_{column}"].mean()
        points[column] -= points["seed"].map(uncompressed - uncompressed.mean()).fillna(0.0)
    return points


def lossless(points: pd.DataFrame) -> pd.Series[bool]:
    """Which rows are of lossless methods: they have the data type that the weights were kept in."""
    return points["dtype"].notna() if "dtype" in points else pd.Series(False, index=points.index)


def _interval(same: pd.DataFrame, column: str) -> tuple[float, float]:
    if len(same) > 1:
        found = interval(list(same[column]))
        spread = math.nan if found.half_width is None else found.half_width
        return found.mean - spread, found.mean + spread
    row = same.iloc[0].to_dict()
    value = float(row[column])
    if column == "metric" and row["metric_name"] == "accuracy":
        items = row.get("test_items", 0)
        return wilson(round(value * items), int(items)) if items > 0 else (math.nan, math.nan)
    nats = item_nats(row)
    if nats is None or (column == "metric" and row["metric_name"] != "bits_per_byte"):
        return math.nan, math.nan
    # Items of unequal length have another mean than their tokens: what counts is the relative width.
    low, high = (bound / nats.mean() for bound in bootstrap(nats))
    return value * low, value * high
