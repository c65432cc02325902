"""Heads that are the embedding, of which a checkpoint without a template has the embedding alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from shardwright.sharding import local_part

#: What the heads of language models are called, and what they are tied to.
HEAD = "lm_head.weight"
EMBEDDINGS = ("embed_tokens.weight", "tok_embeddings.weight", "word_embeddings.weight", "embeddings.weight")


def tied_heads(state_dict: Mapping[str, Any]) -> list[str]:
    """The heads that are an embedding of the state dict: the same memory, seen alike. Such tensors transformers'
    ``save_pretrained`` stores once, too. Heads in memory of their own are no such ones, whatever they hold.
    """
    tensors = {name: value for name, value in state_dict.items() if isinstance(value, torch.Tensor)}
    embeddings = [value for name, value in tensors.items() if name.endswith(EMBEDDINGS)]
    return [
        name
        for name, head in tensors.items()
        if name.endswith(HEAD) and any(_is_same_memory(head, embedding) for embedding in embeddings)
    ]


def _is_same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    if (
        a.shape != b.shape
        or a.dtype != b.dtype
        or getattr(a, "placements", ()) != getattr(b, "placements", ())
    ):
        return False
    here, there = local_part(a), local_part(b)
    if here.is_meta or there.is_meta:
        return False
    shared: bool = here.untyped_storage()._cdata == there.untyped_storage()._cdata
    return shared and here.stride() == there.stride() and here.storage_offset() == there.storage_offset()
