"""Tables for people."""


def print_table(rows: list[tuple[str, str]]) -> None:
    """Prints (what, figure) rows in two columns."""
    width = max(len(what) for what, _ in rows)
    for what, figure in rows:
        print(f"{what:<{width}}  {figure}")
