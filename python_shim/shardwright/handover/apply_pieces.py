"""Putting pieces into the tensors of whoever runs the model."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch.distributed.tensor import DTensor

from shardwright._core import PlanError
from shardwright.describe import boxes_of_dtensor
from shardwright.handover.piece import Piece
from shardwright.ranks.rank_outcome import text_of


class TensorPart(NamedTuple):
    """A tensor that holds a part of a checkpoint's tensor: the box of its own shape that begins at ``offset``."""

    tensor: torch.Tensor
    offset: tuple[int, ...]


@dataclass
class AppliedPieces:
    """What has been put in place."""

    layers: list[str] = field(default_factory=list)  #: that have got new values, in their order
    bytes: int = 0  #: that have been copied into tensors
    passed_over: set[str] = field(
        default_factory=set
    )  #: tensors of pieces that nobody wants (``strict=False``)


#: A copy that is still to be made: (its place, the bytes).
_Copy = tuple[torch.Tensor, torch.Tensor]


class _Places(NamedTuple):
    """What a destination holds of a checkpoint's tensor."""

    parts: list[TensorPart]
    shape: tuple[int, ...] | None  #: that the checkpoint's tensor must have; None: any that the parts lie in


def apply_pieces(tensors: Mapping[str, Any], *streams: Iterable[Piece], strict: bool = True) -> AppliedPieces:
    """Copies pieces into tensors, a layer at a time: each layer's tensors are whole old or whole new.

    A layer is staged when all its pieces have come and fit, and then copied. Where a stream ends with an error, or a
    piece does not fit, the error says which layers have the new values; all others have the old ones.

    Args:
        tensors: the checkpoint's name → a tensor that holds all of it, a DTensor, a :class:`TensorPart`, or a list of
            these; in the checkpoint's dtype. Parts of pieces that none of them holds are passed over.
        streams: what :func:`pieces` gives on each rank. Several are taken together, layer by layer.
        strict: a piece of a tensor that is not in ``tensors`` is an error.

    Raises:
        PlanError: a piece that does not fit, by name.
        Exception: what a stream raises, its text followed by which layers are new; ``applied`` of it is an
            :class:`AppliedPieces`.
    """
    if not isinstance(tensors, Mapping):
        raise TypeError(f"tensors: expected a dict of names and tensors, found {type(tensors).__name__}")
    applied = AppliedPieces()
    places = {
        name: [_places_of(name, one) for one in (value if isinstance(value, list) else [value])]
        for name, value in tensors.items()
    }
    pieces = heapq.merge(*map(_only_pieces, streams), key=attrgetter("place"))
    try:
        for _, of_layer in groupby(pieces, key=attrgetter("place")):
            copies: list[_Copy] = []
            layer = ""
            for piece in of_layer:
                layer = piece.layer
                if piece.name in places:
                    for held in places[piece.name]:
                        copies += _copies(held, piece)
                elif strict:
                    raise PlanError(
                        f"{piece.name}: comes in pieces, and there is no tensor for it; pass strict=False to leave "
                        "it out"
                    )
                else:
                    applied.passed_over.add(piece.name)
            with torch.no_grad():
                for place, value in copies:
                    place.copy_(value)
            applied.bytes += sum(value.nbytes for _, value in copies)
            if copies:
                applied.layers.append(layer)
    except Exception as error:
        raise _told(error, applied) from error
    return applied


def _told(error: Exception, applied: AppliedPieces) -> Exception:
    """The same error that says which layers are new as well."""
    new = ", ".join(applied.layers) if applied.layers else "no layer"
    text = f"{text_of(error)}; {new} has the new values, all others have the old ones"
    try:
        found = (
            OSError(error.errno, text) if isinstance(error, OSError) and error.errno else type(error)(text)
        )
    except Exception:  # a class that takes other arguments
        found = RuntimeError(text)
    vars(found)["applied"] = applied
    return found


def expect_memory_for_each(name: str, tensor: torch.Tensor) -> None:
    """Refuses what expand() gives, before anything is taken: it cannot be written."""
    if any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)):
        raise PlanError(
            f"{name}: expected memory for each element, found {list(tensor.shape)} of strides "
            f"{list(tensor.stride())}, as expand() gives"
        )


def _only_pieces(stream: Iterable[Any]) -> Iterator[Piece]:
    for piece in stream:
        if not isinstance(piece, Piece):
            raise TypeError(f"streams: expected what shardwright.pieces gives, found {type(piece).__name__}")
        yield piece


def _places_of(name: str, value: Any) -> _Places:
    """What a destination holds, as parts of the checkpoint's tensor."""
    if isinstance(value, TensorPart):
        expect_memory_for_each(name, value.tensor)
        return _Places([value], None)
    if isinstance(value, DTensor):
        if value.device_mesh.get_coordinate() is None:
            return _Places([], None)
        local = value.to_local().detach()
        parts = [
            TensorPart(
                local[
                    tuple(slice(at, at + size) for at, size in zip(box.local_offset, box.size, strict=True))
                ],
                tuple(box.offset),
            )
            for box in boxes_of_dtensor(value)
        ]
        return _Places(parts, tuple(value.shape))
    if isinstance(value, torch.Tensor):
        expect_memory_for_each(name, value)
        return _Places([TensorPart(value.detach(), (0,) * value.dim())], tuple(value.shape))
    raise TypeError(f"{name}: expected a tensor or a TensorPart, found {type(value).__name__}")


def _copies(places: _Places, piece: Piece) -> Iterator[_Copy]:
    """Copies of a piece into the parts that hold some of it; the bytes are staged."""
    for part in places.parts:
        tensor, offset = part
        if tensor.dtype != piece.dtype or tensor.dim() != len(piece.shape):
            raise PlanError(
                f"{piece.name}: expected a tensor of {piece.dtype} and {len(piece.shape)} dimensions, as the pieces "
                f"are, found {tensor.dtype} {list(tensor.shape)}"
            )
        if places.shape is not None and places.shape != piece.shape:
            raise PlanError(
                f"{piece.name}: expected a tensor of {list(piece.shape)}, found {list(places.shape)}; say with a "
                "shardwright.TensorPart which part of it this is"
            )
        if any(
            at < 0 or at + size > of for at, size, of in zip(offset, tensor.shape, piece.shape, strict=True)
        ):
            raise PlanError(
                f"{piece.name}: expected a part of {list(piece.shape)}, found {list(tensor.shape)} at {list(offset)}"
            )
        if tuple(tensor.shape) == piece.shape and tensor.is_contiguous():
            place = tensor.view(piece.tensor.dtype).view(piece.view)[piece.box]
            yield place, piece.tensor.clone()
            continue
        yield from _copies_into_part(tensor, offset, piece)


def _copies_into_part(tensor: torch.Tensor, offset: tuple[int, ...], piece: Piece) -> Iterator[_Copy]:
    scale = piece.dtype.itemsize // piece.tensor.dtype.itemsize  # bytes of an element that the piece cuts
    in_pieces = (*piece.shape[:-1], piece.shape[-1] * scale) if piece.shape else ()
    if piece.view != in_pieces:
        raise PlanError(
            f"{piece.name}: comes as boxes of {list(piece.view)}, which have gaps in {list(piece.shape)}; expected a "
            "whole tensor without gaps to put them into"
        )
    if scale > 1:
        tensor = tensor.view(piece.tensor.dtype)
        offset = (*offset[:-1], offset[-1] * scale)
    here, there = [], []
    for at, size, wanted in zip(offset, tensor.shape, piece.box, strict=True):
        first, end = max(at, wanted.start), min(at + size, wanted.stop)
        if first >= end:
            return
        here.append(slice(first - at, end - at))
        there.append(slice(first - wanted.start, end - wanted.start))
    yield tensor[tuple(here)], piece.tensor[tuple(there)].clone()
