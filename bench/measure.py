"""Taking times and telling them: medians of interleaved repeats, ratios, and whether a target is met."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Row(NamedTuple):
    """One line of the result. Times in seconds."""

    what: str
    ours: float
    plain: float | None
    """The same outside the mount."""
    target: str
    met: bool | None
    """None: for information."""
    unit: str = "s"


def seconds(action: Callable[[], object]) -> float:
    """How long *action* takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def interleaved(repeats: int, *actions: Callable[[], object]) -> list[float]:
    """The median time of each action, all of them run in turn *repeats* times, after one turn that does not count."""
    times: list[list[float]] = [[] for _ in actions]
    for turn in range(repeats + 1):
        for action, taken in zip(actions, times, strict=True):
            one = seconds(action)
            if turn:
                taken.append(one)
    return [statistics.median(taken) for taken in times]


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| | mount | outside | ratio | target | |", "|---|---|---|---|---|---|"]
    for row in rows:
        plain = _told(row.plain, row.unit) if row.plain is not None else ""
        ratio = _ratio(row.ours / row.plain) if row.plain else ""
        met = {None: "", True: "met", False: "**missed**"}[row.met]
        lines.append(f"| {row.what} | {_told(row.ours, row.unit)} | {plain} | {ratio} | {row.target} | {met} |")
    return "\n".join(lines)


def _ratio(value: float) -> str:
    return f"1/{1 / value:.0f}" if value < 0.2 else f"{value:.2f}x"


def _told(value: float, unit: str) -> str:
    if unit != "s":
        return f"{value:.0f} {unit}"
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"
