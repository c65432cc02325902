"""Native tensors in HF's names and shapes: views of them, or empty tensors that ask a checkpoint for what it stores."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from shardwright import _core
from shardwright.adapters.joined import Joined
from shardwright.catalog import catalog_of
from shardwright.dcp.catalog_metadata import CatalogMetadata
from shardwright.dcp.load_planner import catalog_of_metadata
from shardwright.describe import DTYPES, contiguous_stride
from shardwright.sharding import Sharding, local_part, sharding_in_file, sharding_of_part

#: The e8m0 byte of the scale 1.
IDENTITY_SCALE = 127


def catalog_of_checkpoint(checkpoint: Any) -> Any:
    """The catalog of a checkpoint: of a directory, of a storage reader (ours or torch's), or the catalog given."""
    if not hasattr(checkpoint, "read_metadata"):
        return catalog_of(checkpoint)
    metadata = checkpoint.read_metadata()
    return metadata.catalog if isinstance(metadata, CatalogMetadata) else catalog_of_metadata(metadata)[0]


@dataclass(frozen=True)
class Native:
    """A native tensor under the name that the rules have for it."""

    fqn: str
    tensor: torch.Tensor
    sharding: Sharding


@dataclass
class Conversion:
    """One call of ``to_hf``."""

    #: The HF tensors are there to be loaded into, and what is loaded is meant for the native tensors.
    is_request: bool = False
    for_checkpoint_load: bool = False
    #: Native tensors of which this rank holds nothing, so that no HF tensor speaks of them.
    empty: dict[str, Native] = field(default_factory=dict)


#: The byte of a NaN in both kinds of FP8, which no weight is.
_NAN = 0x7F


@dataclass(frozen=True)
class Untouched:
    """An FP8 tensor as it was when it was made, so that it can be told whether anything has been written into it."""

    version: int  #: of this rank's part, which torch counts up where it sees a write
    address: int
    #: some elements, for writes that torch does not see; None: these have been made NaN
    bytes: tuple[int, ...] | None

    @classmethod
    def of(cls, tensor: torch.Tensor, *, marked: bool) -> Untouched | None:
        """``marked``: its elements say nothing yet, and some of them are made NaN. None for what cannot be told."""
        local = local_part(tensor)
        if local.is_inference() or local.is_meta or local.numel() == 0:
            return None
        if marked:
            _some_of(local).fill_(_NAN)
        return cls(local._version, local.data_ptr(), None if marked else tuple(_some_of(local).tolist()))

    def is_still(self, tensor: torch.Tensor) -> bool:
        local = local_part(tensor)
        if local.is_inference() or local._version != self.version or local.data_ptr() != self.address:
            return False
        found = tuple(_some_of(local).tolist())
        return found == ((_NAN,) * len(found) if self.bytes is None else self.bytes)


def _some_of(local: torch.Tensor) -> torch.Tensor:
    """A few elements, from the first to the last, as a view of bytes."""
    flat = local.view(torch.uint8).reshape(-1)
    return flat[:: max(1, (len(flat) - 1) // 4)]


@dataclass(frozen=True)
class Origin:
    """Where an HF tensor comes from: ``from_hf`` finds its way back by it, and fills the memory that it came from."""

    conversion: Conversion
    natives: tuple[Native, ...]  #: that it is made of; none: the HF tensor is the native one
    is_view: bool
    #: For an empty tensor that a load is to fill, and for a cast of the native tensor: what it was when it was made.
    empty: Untouched | None = None
    cast: Untouched | None = None


class Origins(WeakTensorKeyDictionary):
    """The origins of HF tensors, for as long as these live. A copy of an adapter starts without any: they speak of
    tensors that it has not made."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Origins, ()

    def __deepcopy__(self, memo: Any) -> Origins:
        return Origins()


def hf_tensors(
    natives: list[Native],
    weight_map: Any,
    *,
    catalog: Any = None,
    shapes: Any = None,
    quantization: bool = False,
    exclude_key_regex: str | None = None,
    for_checkpoint_load: bool = False,
    origins: Any = None,
) -> Iterator[tuple[str, str, torch.Tensor]]:
    """(FQN, HF name, HF tensor), for what this rank holds of each native tensor that the rules know.

    With ``quantization``, weights that are block-scaled (by the catalog, or without one by the rule of names) are FP8
    tensors that lie as the native tensor does: with a catalog empty ones, to be loaded into, without one casts of the
    native tensor. With a catalog, weights of which several elements share a byte or word are those bytes or words: see
    :func:`shardwright.sharding.sharding_in_file`. Each is followed by what belongs to it, all of it 1: its scales, and
    with a catalog a global scale, a shape, scales of activations; each a plain tensor of global shape, since a shard of
    the weight may need any of it. All others share the native tensor's memory, where the HF tensor is a view of it;
    where rows are in another order, or several native tensors are one HF tensor, they are copies. ``shapes`` is a
    catalog that has shapes which native tensors do not tell.
    """
    excluded = re.compile(exclude_key_regex) if exclude_key_regex else None
    conversion = Conversion(quantization or for_checkpoint_load, for_checkpoint_load)
    by_fqn = {native.fqn: native for native in natives}
    specs = [native.sharding.spec(native.fqn, local_part(native.tensor)) for native in natives]
    requests: dict[str, list[Any]] = {native.fqn: [] for native in natives}
    for request in _core.requests(specs, weight_map, catalog, shapes):
        requests[request.fqn].append(request)
    held = {native.fqn: (native.tensor, native.sharding) for native in natives}
    for fqn, native in by_fqn.items():
        if not requests[fqn]:
            conversion.empty[fqn] = native
        local = local_part(native.tensor)
        is_stack = any(0 not in request.axes for request in requests[fqn] if request.native_size)
        index_of = dict(native.sharding.held(0)) if is_stack else {}
        weight_excluded = False
        for request in requests[fqn]:
            if request.placeholder:
                # A multiplier is in the native tensor: what belongs beside that is one.
                if not weight_excluded and (quantization or _core.is_multiplier(weight_map, request.name)):
                    yield fqn, request.name, _placeholder(request, local.device)
                continue
            weight_excluded = excluded is not None and excluded.match(request.name) is not None
            if weight_excluded:
                continue
            is_scaled = quantization and request.scaled
            joined = None if request.is_box else Joined.of(request, held, weight_map, shapes or catalog)
            if is_scaled:
                lies = joined.lies if joined else _lies(native, request)
                if catalog is not None:
                    _expect_one_box(fqn, lies)
                    stored = sharding_in_file(lies, request.shape)
                    tensor = stored.empty(DTYPES[request.dtype], local.device)
                else:
                    part = local_part(
                        joined.tensor(copied=False)
                        if joined
                        else _part(native, local, request, index_of, copied=False)
                    )
                    tensor = lies.wrap(part.to(DTYPES[request.dtype]).contiguous())
            elif joined:
                tensor = joined.tensor(copied=not conversion.is_request)
            else:
                tensor = _part(native, local, request, index_of, copied=not conversion.is_request)
            if origins is not None:
                is_itself = tensor is native.tensor
                shares_memory = joined is None or joined.view_stride is not None
                is_view = is_itself or (conversion.is_request and not is_scaled and shares_memory)
                of_it = [by_fqn[fqn] for fqn in joined.natives] if joined else [native]
                as_made = Untouched.of(tensor, marked=catalog is not None) if is_scaled else None
                origins[tensor] = Origin(
                    conversion,
                    () if is_itself else tuple(of_it),
                    is_view,
                    empty=as_made if catalog is not None else None,
                    cast=as_made if catalog is None else None,
                )
            yield fqn, request.name, tensor


def _lies(native: Native, request: Any) -> Sharding:
    return sharding_of_part(
        native.fqn, native.sharding, request.native_size, request.axes, request.seen_shape
    )


def _expect_one_box(fqn: str, lies: Sharding) -> None:
    """torch's planners, which load what is asked for, take a strided shard for one box."""
    if len(lies.boxes) > 1:
        raise ValueError(
            f"{fqn}: expected a shard that is one box, found {len(lies.boxes)} of them, by {lies.placements}; "
            "shardwright.load() and LoadPlanner load such a tensor without the adapter"
        )


def _placeholder(request: Any, device: torch.device) -> torch.Tensor:
    dtype = DTYPES[request.dtype]
    if dtype.itemsize > 1:
        return torch.ones(request.shape, dtype=dtype, device=device)
    return torch.full(request.shape, IDENTITY_SCALE, dtype=torch.uint8, device=device).view(dtype)


def _part(
    native: Native, local: torch.Tensor, request: Any, index_of: dict[int, int], *, copied: bool
) -> torch.Tensor:
    """The HF tensor as a view of the native one, or a copy of that; the native tensor itself, if that is all of it."""
    rank = len(native.sharding.shape)
    if list(request.axes) == list(range(rank)) and list(request.native_size) == list(native.sharding.shape):
        return native.tensor
    lies = _lies(native, request)
    for dimension in range(rank - 1, -1, -1):
        offset, size = request.native_offset[dimension], request.native_size[dimension]
        if dimension not in request.axes:
            local = local.select(dimension, index_of[offset])
        elif size != native.sharding.shape[dimension]:
            local = local.narrow(dimension, offset, size)
    dropped = rank - len(request.axes)
    local = local.permute([axis - dropped for axis in request.axes])
    if copied:
        return lies.wrap(local.clone(memory_format=torch.contiguous_format))
    strides = contiguous_stride(native.sharding.shape)
    return lies.wrap(local, [strides[axis] for axis in request.axes])
