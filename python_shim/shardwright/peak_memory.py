"""How much memory a piece of work takes above what was there before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFERENCES = Path("/proc/self/clear_refs")


@dataclass
class PeakMemory:
    """``bytes``: the highest resident size during the work, minus the resident size at its begin."""

    bytes: int = 0


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {field}")


@contextmanager
def measure_peak_memory() -> Iterator[PeakMemory]:
    """Measures the work inside the ``with`` block, by Linux's own account (VmRSS and VmHWM).

    Memory that the work fills but that was allocated before counts too, unless it has been touched before.
    """
    _CLEAR_REFERENCES.write_text("5")  # resets VmHWM to the present size
    before = _status_bytes("VmRSS")
    peak = PeakMemory()
    try:
        yield peak
    finally:
        peak.bytes = max(0, _status_bytes("VmHWM") - before)
