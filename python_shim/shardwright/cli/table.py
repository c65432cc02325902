"""Tables for people."""


def print_table(rows: list[tuple[str, str]]) -> None:
    """Prints (what, figure) rows in two columns."""
    width = max(len(what) for what, _ in rows)
    for what, figure in rows:
        print(f"{what:<{width}}  {figure}")


def print_columns(heads: list[str], rows: list[list[str]]) -> None:
    """Prints rows of as many cells as there are heads: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    print()
    for row in [heads, *rows]:
        first = f"{row[0]:<{widths[0]}}"
        print(
            "  ".join([first, *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))])
        )
