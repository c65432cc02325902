"""Puts our Checkpointer where nemo-automodel's stands, and takes it back."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from nemo_automodel.components.checkpoint import checkpointing

from shardwright.integrations.nemo_automodel.checkpointer import Checkpointer

TheirCheckpointer: type = Checkpointer.__base__


def install() -> None:
    """Every Checkpointer that nemo-automodel makes from now on is ours. Calling it again does nothing.

    The name ``Checkpointer`` of each of its modules is set; its class is left as it is. Checkpointers that are there
    already stay what they are: call it before a recipe is set up or a model is loaded.
    """
    _replace(TheirCheckpointer, Checkpointer)


def uninstall() -> None:
    """Takes back what ``install`` has done. Checkpointers that were made meanwhile stay ours."""
    _replace(Checkpointer, TheirCheckpointer)


@contextmanager
def installed() -> Iterator[None]:
    """For a ``with`` block."""
    install()
    try:
        yield
    finally:
        uninstall()


def _replace(old: type, new: type) -> None:
    for module in _modules():
        if vars(module).get("Checkpointer") is old:
            module.Checkpointer = new  # type: ignore[attr-defined]


def _modules() -> list[ModuleType]:
    """Those of nemo-automodel that are imported; others take the name from ``checkpointing`` when they are."""
    own = [module for name, module in sorted(sys.modules.items()) if name.startswith("nemo_automodel.")]
    return [checkpointing, *own]
