"""HF tensors that are no box of one native tensor: rows in another order, or several native tensors in one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from shardwright import _core
from shardwright.sharding import Sharding, local_part, sharding_of_part


@dataclass(frozen=True)
class Joined:
    """What this rank's part of an HF tensor is made of."""

    lies: Sharding
    natives: dict[str, tuple[torch.Tensor, Sharding]]
    parts: list[Any]
    #: Of the whole tensor, if the part is a view of a native tensor.
    view_stride: list[int] | None

    @classmethod
    def of(
        cls, request: Any, held: Mapping[str, tuple[torch.Tensor, Sharding]], weight_map: Any, shapes: Any
    ) -> Joined:
        """``held`` has each native tensor of the state dict; ``shapes`` is a catalog, or None.

        Raises:
            PlanError: natives that the HF tensor is made of are missing, of several dtypes, or lie so that no placement
                says how it does.
        """
        name = request.seen_name
        fqns = _core.made_of(weight_map, name)
        if request.fqn not in fqns:  # a tied head without its embedding
            fqns = [request.fqn]
        missing = [fqn for fqn in fqns if fqn not in held]
        if missing:
            raise _core.PlanError(
                f"{name} is made of {', '.join(fqns)}; expected all of them in one state dict, found none of "
                f"{', '.join(missing)}. Convert them together with to_hf"
            )
        natives = {fqn: held[fqn] for fqn in fqns}
        dtypes = {tensor.dtype for tensor, _ in natives.values()}
        if len(dtypes) > 1:
            raise _core.PlanError(
                f"{name} is made of {', '.join(fqns)}; expected one dtype, found "
                f"{', '.join(sorted(map(str, dtypes)))}"
            )
        lies = [
            sharding_of_part(fqn, sharding, sharding.shape, request.axes, request.seen_shape)
            for fqn, (_, sharding) in natives.items()
        ]
        if any(other != lies[0] for other in lies):
            raise _core.PlanError(f"{name} is made of {', '.join(fqns)}; expected them to be sharded alike")
        dtype = dtypes.pop()
        specs = [sharding.spec(fqn, local_part(tensor)) for fqn, (tensor, sharding) in natives.items()]
        parts = _core.hf_parts(weight_map, lies[0].planning_spec(name, dtype), specs, shapes)
        if not parts.is_view:
            return cls(lies[0], natives, parts.parts, None)
        ((fqn, (_, sharding)),) = natives.items()
        whole = _core.hf_parts(
            weight_map,
            Sharding(tuple(request.seen_shape)).planning_spec(name, dtype),
            [Sharding(sharding.shape).planning_spec(fqn, dtype)],
            shapes,
        )
        return cls(lies[0], natives, parts.parts, whole.parts[0].native_strides)

    def tensor(self, *, copied: bool) -> torch.Tensor:
        """A view of the native tensor, if there is one and ``copied`` does not forbid it; else a contiguous copy."""
        if self.view_stride is not None:
            view = _strided(self._local(self.parts[0]), self.parts[0])
            if copied:
                return self.lies.wrap(view.clone(memory_format=torch.contiguous_format))
            return self.lies.wrap(view, self.view_stride)
        local, _ = next(iter(self.natives.values()))
        made = torch.empty(self.lies.local_shape, dtype=local.dtype, device=local_part(local).device)
        for part in self.parts:
            there = made.as_strided(part.sizes, part.hf_strides, part.hf_offset)
            there.copy_(_strided(self._local(part), part))
        return self.lies.wrap(made)

    def _local(self, part: Any) -> torch.Tensor:
        return local_part(self.natives[part.fqn][0])


def _strided(local: torch.Tensor, part: Any) -> torch.Tensor:
    return local.as_strided(part.sizes, part.native_strides, local.storage_offset() + part.native_offset)
