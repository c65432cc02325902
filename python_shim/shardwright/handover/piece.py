"""A box of a tensor of the checkpoint, with its bytes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from shardwright.describe import DTYPES


class Piece(NamedTuple):
    """What one rank hands over of a tensor of the checkpoint.

    ``whole[piece.box] = piece.tensor`` puts it into the tensor, nearly always; ``put_into`` always does.
    """

    name: str  #: as the checkpoint has it
    shape: tuple[int, ...]  #: of the whole tensor
    dtype: torch.dtype  #: of the whole tensor
    box: tuple[slice, ...]  #: a slice of each dimension of ``view``
    tensor: torch.Tensor  #: in CPU memory, of the box's shape, without gaps
    layer: str  #: that the tensor is of, such as "model.layers.3" or "lm_head"

    #: The shape that the box is one of: ``shape``, or another one with as many elements where the box has gaps in that
    #: (of interleaved gate and up projections, say, of which a rank has one). Where ranks cut what the checkpoint has
    #: as one element (weights of four bits in int32), ``tensor`` is of uint8, and ``view`` counts bytes.
    view: tuple[int, ...]

    place: int  #: of the layer among the layers, the same on all ranks

    def put_into(self, whole: torch.Tensor) -> None:
        """Copies the bytes to their place in the whole tensor, which must be without gaps, as a new one is."""
        whole.view(self.tensor.dtype).view(self.view)[self.box].copy_(self.tensor)


def piece_of(facts: Any, memory: torch.Tensor) -> Piece:
    """From the facts of a piece as the core gives them, and the bytes of its bucket."""
    unit = DTYPES.get(facts.unit, torch.uint8)
    size = facts.box_size
    tensor = memory[facts.offset : facts.offset + facts.bytes].view(unit).view(size)
    box = tuple(
        slice(first, first + count) for first, count in zip(facts.box_offset, facts.box_size, strict=True)
    )
    dtype = DTYPES.get(facts.dtype, torch.uint8)
    return Piece(
        facts.name, tuple(facts.shape), dtype, box, tensor, facts.layer, tuple(facts.view), facts.place
    )
