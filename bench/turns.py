"""Works timed in turns, so that all of them meet the machine in the same moods."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


def seconds_in_turns(works: Mapping[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """The seconds of each run of each work, in ascending order. Each runs once untimed: that warms files and code."""
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return {name: sorted(values) for name, values in seconds.items()}
