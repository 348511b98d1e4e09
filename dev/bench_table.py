"""The rows that the bench prints, each with its target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    what: str
    bare: str
    ours: str
    ratio: str = ""
    target: str = ""
    missed: bool = False


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


def median(values: Sequence[float]) -> float:
    return percentile(values, 50)


def spread_ms(durations_s: Sequence[float]) -> str:
    parts = [
        f"{percentile(durations_s, percent) * 1000:,.0f}" for percent in (50, 95, 99)
    ]
    return " / ".join(parts) + " ms"


def against(
    what: str, bare: Sequence[float], ours: Sequence[float], limit: float = 0
) -> Row:
    """The ratio of the medians, which may be `limit` (0: any)."""
    ratio = median(ours) / median(bare)
    target = f"≤ {limit:.2f}" if limit else ""
    missed = bool(limit) and ratio > limit
    return Row(what, spread_ms(bare), spread_ms(ours), f"{ratio:.2f}", target, missed)


def below(what: str, value: float, limit: float, form: str) -> Row:
    """A figure that has to stay below a limit; `form` formats both."""
    return Row(
        what, "", form.format(value), "", f"< {form.format(limit)}", value >= limit
    )


def table(rows: Sequence[Row]) -> str:
    heading = Row(
        "p50 / p95 / p99, or as said", "Bare SDK", "e2b-proxy", "Ratio", "Target"
    )
    lines = [
        f"| {row.what} | {row.bare} | {row.ours} | {row.ratio} | {row.target} |"
        for row in [heading, *rows]
    ]
    return "\n".join([lines[0], "|---|---|---|---|---|", *lines[1:]])
