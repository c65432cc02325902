"""vLLM's pluggable weight transfer, as 0.33 has it: a ``WeightSource`` of what an export would write.

::

    source = weight_source(model.state_dict, quantization="mxfp8", template=released)
    engine = WeightTransferTrainerFactory.trainer_init(init_info, client=client, source=source)
    engine.send_weights()  # at each step
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist

from shardwright.byte_sizes import bytes_of_size
from shardwright.describe import DTYPES
from shardwright.handover.pieces import Described
from shardwright.handover.whole_tensors import whole_tensors
from shardwright.ranks.together import together

_DOING = "beginning to hand weights to vLLM"


def weight_source(
    state_dict: dict[str, Any] | Callable[[], dict[str, Any]],
    *,
    everywhere: bool = True,
    device: torch.device | str | None = None,
    batch_bytes: int | str = "512MiB",
    process_group: dist.ProcessGroup | None = None,
    **options: Any,
) -> Any:
    """A ``vllm.distributed.weight_transfer.base.WeightSource`` of a trainer's tensors, named, encoded and quantized as
    the checkpoint that :func:`shardwright.export` would write with the same options.

    All ranks of the process group call this together, and iterate together: vLLM's engines take whole tensors, which
    are put together of the ranks' pieces, up to ``batch_bytes`` at once. The group must carry CPU tensors, as Gloo
    does.

    Args:
        state_dict: of this rank; or what gives it, which is asked at each round.
        everywhere: every rank gets the tensors, which vLLM's IPC engine needs; False: the first, which sends, alone.
        device: where tensors go before they are sent; None: they stay in CPU memory.
        options: as :func:`shardwright.pieces` has them, but for ``changed_since``: vLLM loads whole tensors.

    Raises:
        ImportError: vLLM is not installed, or is older than its ``WeightSource``.
        PlanError, ValueError: as :func:`shardwright.pieces`, from this call and from iterating.
    """
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    if not hasattr(WeightSource, "iter_full"):
        raise ImportError("vLLM's WeightSource has no iter_full; expected vLLM 0.33 or later")
    if options.get("changed_since") is not None:
        raise ValueError("changed_since: vLLM loads whole tensors; expected None")
    most = bytes_of_size(batch_bytes, "batch_bytes")

    def begin() -> tuple[Any, Any]:
        state = state_dict if isinstance(state_dict, dict) else state_dict()
        described = together(process_group, _DOING, lambda: Described(state, **options))
        return described, described.begin(process_group)

    class PieceSource(WeightSource):
        """Whole tensors of a checkpoint, put together of what ranks hand over."""

        @cached_property
        def metadata(self) -> list[Any]:
            owners = None if everywhere else (0,)
            return [
                ParamMeta(
                    tensor.name, DTYPES.get(tensor.dtype, torch.uint8), tuple(tensor.shape), owners=owners
                )
                for tensor in tensors
            ]

        def iter_full(self) -> Iterator[tuple[str, torch.Tensor]]:
            described, source = begin()
            for name, tensor in whole_tensors(
                source, described.handed_over(source), process_group, everywhere=everywhere, batch_bytes=most
            ):
                yield name, tensor if device is None else tensor.to(device)

    tensors = begin()[1].tensors()
    return PieceSource()
