"""Tables for people."""

from __future__ import annotations

from collections.abc import Sequence


def amount(name: str, value: float) -> str:
    """A figure with its unit, which its name tells, short enough for a table."""
    if "seconds" in name:
        return f"{value * 1000:,.1f} ms" if value < 1 else f"{value:,.2f} s"
    if "bytes" in name:
        for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if value >= size:
                return f"{value / size:,.2f} {unit}"
        return f"{value:,.0f} B"
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:,.1f}"


def table(rows: Sequence[tuple[str, object]]) -> str:
    """(what, figure) rows in two columns. Numbers get separators."""
    width = max(len(what) for what, _ in rows)
    return "\n".join(
        f"{what:<{width}}  {f'{figure:,}' if isinstance(figure, int) else figure}" for what, figure in rows
    )


def columns(heads: list[str], rows: list[list[str]]) -> str:
    """Rows of as many cells as there are heads: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    return "\n".join(
        "  ".join(
            [
                f"{row[0]:<{widths[0]}}",
                *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in [heads, *rows]
    )
