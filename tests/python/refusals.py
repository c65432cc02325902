"""That a load is refused, and nothing touched."""

from pathlib import Path

import pytest
import shardwright as sw
import torch
from destinations import destinations_like, state_of


def assert_refused(
    path: str | Path,
    expected: dict[str, torch.Tensor],
    exception: type[Exception],
    *words: str | Path,
    add: dict[str, torch.Tensor] | None = None,
    **options,
) -> str:
    """Loading `expected`, and what `add` gives, fails with all words in the message, and changes nothing."""
    destinations = destinations_like(expected)
    state = state_of(destinations) | (add or {})
    before = {name: tensor.clone() for name, tensor in (add or {}).items() if not tensor.is_meta}
    with pytest.raises(exception) as refused:
        sw.load(state, path, **options)
    message = str(refused.value)
    missing = [word for word in map(str, words) if word not in message]
    assert not missing, f"{missing} not in: {message}"
    assert [name for name in destinations if not destinations[name].untouched()] == []
    assert [name for name in before if not torch.equal(before[name], add[name])] == []
    return message
