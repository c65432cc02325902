"""Weights that something else is put into for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def restored(weights: Iterable[torch.Tensor]) -> Iterator[None]:
    """After it the weights are as they were, bit for bit. A copy of them is held meanwhile."""
    kept = [(weight, weight.detach().clone()) for weight in weights]
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in kept:
                weight.copy_(before)
