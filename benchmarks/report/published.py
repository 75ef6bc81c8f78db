"""Numbers that papers print, each with its source, and which of their models are ours."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

PUBLISHED = Path(__file__).parent.parent / "published.csv"
OURS = {"Transformer": "transformer", "RWKV": "rwkv"}  # their name to ours; of other sizes, and trained otherwise


def published(comparison: str = "") -> pd.DataFrame:
    """A row for each of comparison, model and task; of one comparison where it is named."""
    table = pd.read_csv(PUBLISHED)
    return table[table["comparison"] == comparison] if comparison else table
