"""Tables of the image examples, in the terminal."""

from __future__ import annotations

import statistics
from typing import Any

# Column -> its head and the layout of its numbers.
Columns = dict[str, tuple[str, str]]


def print_columns(first: str, columns: Columns, rows: dict[str, dict[str, Any]]) -> None:
    """Prints a line for each row; a figure that a row lacks is left blank."""
    widths = {key: int(layout.split(".")[0]) for key, (_, layout) in columns.items()}
    print(f"\n{first:18}" + "".join(f"{columns[key][0]:>{widths[key]}}" for key in columns))
    for label, row in rows.items():
        cells = (
            f"{row[key]:{layout}}" if key in row else " " * widths[key]
            for key, (_, layout) in columns.items()
        )
        print(f"{label:18}" + "".join(cells))


def means(found: list[dict[str, Any]], columns: Columns) -> dict[str, float]:
    """Averages the figures of several seeds, and counts these."""
    row = {key: statistics.fmean(r[key] for r in found) for key in columns if key != "seeds"}
    return {"seeds": len(found), **row}
