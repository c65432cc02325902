"""Native tensors from an HF state dict in memory: decoded and regrouped, without copies between."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from shardwright import _core
from shardwright.adapters.decoding import Part, fill
from shardwright.adapters.native_to_hf import Origin
from shardwright.batches import in_batches
from shardwright.sharding import Sharding, local_part, on_dimension, sharding_of_whole, submesh

#: Native tensors are filled this many bytes at a time, so that their HF tensors can be let go in between.
BATCH_BYTES = 256 << 20

#: What the dimensions of a mesh of experts may be called.
EXPERT_MESH_DIMENSIONS = ("ep", "ep_shard", "ep_replicate")


@dataclass
class Target:
    """A native tensor that is to be filled."""

    held: Any
    sharding: Sharding
    dtype: torch.dtype
    device: torch.device
    tensor: torch.Tensor | None = None  #: that the HF tensors came from, to be filled in place

    @property
    def bytes(self) -> int:
        """That this rank holds of it."""
        return int(math.prod(self.sharding.local_shape) * self.dtype.itemsize)

    def allocate(self) -> torch.Tensor:
        if self.tensor is None:
            self.tensor = self.sharding.empty(self.dtype, self.device)
        return self.tensor


@dataclass
class Natives:
    tensors: dict[str, Any]
    #: Filled through views by whoever wrote into the HF tensors, and therefore not among ``tensors``.
    loaded_through_views: set[str]
    #: Ranges of experts that torch.chunk would deal out otherwise.
    uneven: dict[str, range]


def native_tensors(
    hf_state_dict: dict[str, Any],
    *,
    dtype: torch.dtype | None,
    weight_map_of: Callable[[Any], Any],
    experts: int = -1,
    device_mesh: DeviceMesh | None = None,
    origins: Any = None,
    wanted: Callable[[str], bool] = lambda fqn: True,
    consume: bool = False,
) -> Natives:
    """The native tensors that an HF state dict amounts to on this rank.

    Tensors that need no conversion are passed on as they are. Of the others, vectors such as a router's F32 bias keep
    their dtype, and the rest get ``dtype`` (None: that of the first of their HF tensors). These are the tensors that a
    request of ``to_hf`` was made from, filled in place, or new ones. With ``consume``, HF tensors that have been
    decoded are removed from the state dict as it goes.

    Raises:
        RuntimeError: weights of experts that this rank holds are missing; names them all.
        PlanError: what is there does not fit together, or nothing has been loaded into a request; names it all.
            Nothing has been written.
    """
    parts = {name: Part.of(name, value) for name, value in hf_state_dict.items() if torch.is_tensor(value)}
    tensors: dict[str, Any] = {}
    memory = _core.StateDictMemory([part.spec(name) for name, part in parts.items()])
    weight_map = weight_map_of(memory)
    for name, value in hf_state_dict.items():
        if name not in parts and not _core.is_ignored(weight_map, name):
            place = _core.native_place(weight_map, name)
            tensors[place[0] if place else name] = value

    origin_of = {name: origins.get(hf_state_dict[name]) if origins is not None else None for name in parts}
    held = [one for one in memory.native_tensors(weight_map, experts) if wanted(one.fqn)]
    _refuse_unloaded(hf_state_dict, origin_of, held)
    targets: list[Target] = []
    natives = Natives(tensors, set(), {})
    missing: list[str] = []
    for one in held:
        if one.as_it_is:
            tensors[one.fqn] = hf_state_dict[one.sources[0]]
            continue
        of_its = [origin_of[name] for name in one.sources]
        sharding = _sharding_of(one, parts, of_its, device_mesh, experts)
        if one.stacked:
            needed = [index for index, _ in sharding.held(0)]
            first, last = (needed[0], needed[-1] + 1) if needed else (0, 0)
            missing += memory.missing_weights(weight_map, one.fqn, first, last)
        if one.sources:
            stored = parts[one.sources[0]].local.dtype
            is_converted = one.stacked or one.scales or len(one.shape) > 1
            of_it = dtype if dtype is not None and is_converted else stored
            targets.append(_target(one, sharding, parts, of_its, of_it))
        if sharding.experts is not None:
            natives.uneven[one.fqn] = sharding.experts
    if missing:
        headline = f"the state dict lacks weights of experts that this rank holds{_position(device_mesh)}"
        names = _core.grouped_names(missing)
        raise RuntimeError(_core.in_lines(f"{headline}; nothing has been converted:", names))
    _settle_views(targets, parts, origin_of, natives)
    memory.plan([t.sharding.planning_spec(t.held.fqn, t.dtype) for t in targets], weight_map)
    for batch in in_batches(targets, lambda target: target.bytes, BATCH_BYTES):
        _fill_batch(batch, parts, weight_map)
        for target in batch:
            tensors[target.held.fqn] = target.tensor
            for gone in target.held.sources + target.held.scales:
                parts.pop(gone, None)
                if consume:
                    hf_state_dict.pop(gone, None)
    for conversion in {id(o.conversion): o.conversion for o in origin_of.values() if o}.values():
        for fqn, native in conversion.empty.items():
            if wanted(fqn):
                tensors.setdefault(fqn, native.tensor)
    return natives


def _fill_batch(batch: list[Target], parts: dict[str, Part], weight_map: Any) -> None:
    names = {name for target in batch for name in target.held.sources + target.held.scales}
    fill(
        {target.held.fqn: Part(target.sharding, local_part(target.allocate())) for target in batch},
        {name: parts[name] for name in sorted(names)},
        weight_map,
    )


def _target(
    held: Any, sharding: Sharding, parts: dict[str, Part], origins: list[Origin | None], dtype: torch.dtype
) -> Target:
    """Where it goes: into the tensor that all its HF tensors were asked for, if that has the dtype, or a new one."""
    device = parts[held.sources[0]].local.device
    if all(_is_cast(parts[name].local, origin) for name, origin in zip(held.sources, origins, strict=True)):
        return Target(held, sharding, dtype, device)  # the trainer's own tensor keeps what it has
    natives = {
        id(native): native
        for o in origins
        if o is not None and o.conversion.is_request
        for native in o.natives
        if native.fqn == held.fqn
    }
    native = next(iter(natives.values()), None)
    if native is None or len(natives) != 1 or None in origins:
        return Target(held, sharding, dtype, device)
    in_place = native.tensor.dtype == dtype and local_part(native.tensor).device == device
    return Target(held, sharding, dtype, device, native.tensor if in_place else None)


def _is_cast(tensor: torch.Tensor, origin: Origin | None) -> bool:
    """True for what ``to_hf`` has cast, if nothing has been loaded into it since."""
    return origin is not None and origin.cast is not None and origin.cast.is_still(tensor)


def _refuse_unloaded(
    hf_state_dict: dict[str, Any], origin_of: dict[str, Origin | None], held: list[Any]
) -> None:
    """The tensors that ``to_hf(checkpoint=...)`` has made to be loaded into hold nothing until that is done; and of
    casts that one native tensor is made of, all are loaded into or none."""
    unloaded = []
    for one in held:
        casts = [name for name in one.sources if _is_cast(hf_state_dict[name], origin_of[name])]
        if len(casts) < len(one.sources):
            unloaded += casts
        for name in one.sources:
            origin = origin_of[name]
            if origin is not None and origin.empty is not None and origin.empty.is_still(hf_state_dict[name]):
                unloaded.append(name)
    if unloaded:
        raise _core.PlanError(
            _core.in_lines(
                "nothing has been loaded into these tensors since to_hf(quantization=True) made them; load the "
                "checkpoint into all of them first, as with dcp.load. No tensor has been changed:",
                _core.grouped_names(unloaded),
            )
        )


def _settle_views(
    targets: list[Target], parts: dict[str, Part], origin_of: dict[str, Origin | None], natives: Natives
) -> None:
    """Takes out the targets whose HF tensors are views of the target itself: whoever wrote those has filled it."""
    for target in list(targets):
        origins = [origin_of[name] for name in target.held.sources]
        if (
            target.tensor is None
            or target.held.scales
            or not all(o is not None and o.is_view for o in origins)
        ):
            continue
        targets.remove(target)
        conversion = origins[0].conversion  # type: ignore[union-attr]
        is_plain_cpu = target.device.type in ("cpu", "meta") and not isinstance(target.tensor, DTensor)
        if conversion.for_checkpoint_load and not is_plain_cpu:
            natives.loaded_through_views.add(target.held.fqn)
        else:
            natives.tensors[target.held.fqn] = target.tensor


# --- how a native tensor lies ----------------------------------------------------------------------------------


def _sharding_of(
    held: Any,
    parts: dict[str, Part],
    origins: list[Origin | None],
    device_mesh: DeviceMesh | None,
    experts: int,
) -> Sharding:
    """As the tensor lies that the HF tensors came from; else as the mesh of experts says; else as the HF tensors."""
    for origin in origins:
        for native in origin.natives if origin is not None else ():
            if native.fqn == held.fqn:
                return native.sharding
    source = parts[held.sources[0]].sharding if held.sources else None
    if held.stacked and device_mesh is not None:
        return on_expert_mesh(held, source, device_mesh, experts)
    if source is None:  # a stack without a single weight: all of it is missing
        return Sharding((experts if experts >= 0 else held.experts[-1] + 1,))
    return sharding_of_whole(held.fqn, held.shape, source, held.axes, held.joined)


def on_expert_mesh(held: Any, source: Sharding | None, device_mesh: DeviceMesh, experts: int) -> Sharding:
    names = check_expert_mesh(device_mesh)
    count = held.shape[0] if held.shape else max(experts, held.experts[-1] + 1)
    in_parts = (
        dict(zip(source.mesh.mesh_dim_names or (), source.placements, strict=False))
        if (source is not None and source.mesh is not None)
        else {}
    )
    shards_inside = any(device_mesh.size(names.index(name)) > 1 for name in names if name != "ep")
    kept: list[int] = []
    placements: list[Placement] = []
    for number, name in enumerate(names):
        if name == "ep":
            placements.append(Shard(0))
        elif not shards_inside:
            continue
        elif name in in_parts and getattr(in_parts[name], "dim", None) is not None:
            placements.append(on_dimension(in_parts[name], held.axes[in_parts[name].dim]))
        else:
            placements.append(Shard(1) if name == "ep_shard" and name not in in_parts else Replicate())
        kept.append(number)
    mesh = device_mesh if len(kept) == len(names) else submesh(device_mesh, kept, "device_mesh")
    shape = tuple(held.shape) if held.shape else (count,)
    if not held.shape:
        placements = [p if p == Shard(0) else Replicate() for p in placements]
    if "ep" not in names:
        return Sharding(shape, mesh, tuple(placements))
    ep = names.index("ep")
    ranks, rank = device_mesh.size(ep), device_mesh.get_local_rank(ep)
    by_chunk = chunk_of(count, ranks, rank)
    by_remainder = expert_range(count, ranks, rank)
    experts_here = None if by_remainder == by_chunk or list(by_chunk) == held.experts else by_remainder
    return Sharding(shape, mesh, tuple(placements), experts_here)


def check_expert_mesh(device_mesh: DeviceMesh) -> tuple[str, ...]:
    names = tuple(device_mesh.mesh_dim_names or ())
    if not names or any(name not in EXPERT_MESH_DIMENSIONS for name in names):
        raise ValueError(
            f"device_mesh of shape {tuple(device_mesh.shape)}: expected dimensions named "
            f"{', '.join(EXPERT_MESH_DIMENSIONS)}, found {names or 'no names'}; pass the mesh of the experts, as in "
            'device_mesh[("ep", "ep_shard")]'
        )
    return names


def chunk_of(count: int, ranks: int, rank: int) -> range:
    """What torch.chunk deals out to a rank."""
    size = -(-count // ranks)
    return range(min(count, size * rank), min(count, size * (rank + 1)))


def expert_range(count: int, ranks: int, rank: int) -> range:
    """The experts of a rank where the first ``count`` mod ``ranks`` ranks hold one more than the others."""
    each, more = divmod(count, ranks)
    start = rank * each + min(rank, more)
    return range(start, start + each + (1 if rank < more else 0))


def _position(device_mesh: DeviceMesh | None) -> str:
    if device_mesh is None:
        return ""
    names = device_mesh.mesh_dim_names or ()
    coordinate = device_mesh.get_coordinate() or ()
    return " (" + ", ".join(f"{name} {at}" for name, at in zip(names, coordinate, strict=False)) + ")"
