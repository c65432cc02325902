"""What a command has found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answer:
    """Is printed once the command is done: ``facts`` with ``--json``, ``text`` without."""

    facts: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    failure: str = ""  #: what is wrong with what was looked at, in a line; the exit status is then 1
