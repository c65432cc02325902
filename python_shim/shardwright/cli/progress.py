"""A progress bar on request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_callback(
    wanted: bool | Callable[[int, int], None],
) -> Iterator[Callable[[int, int], None] | None]:
    """What the engine calls with (bytes done, bytes in all): nothing, the caller's own, or one that moves a bar."""
    if callable(wanted) or not wanted:
        yield wanted or None
        return
    from tqdm import tqdm

    with tqdm(unit="B", unit_scale=True, desc="loading") as bar:

        def move(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield move
