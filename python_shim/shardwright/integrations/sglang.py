"""sglang's ``update_weights_from_tensor``, as 0.5.23 has it, with what an export would write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from shardwright.byte_sizes import bytes_of_size
from shardwright.handover.pieces import Described
from shardwright.handover.whole_tensors import whole_tensors
from shardwright.ranks.together import together

_DOING = "beginning to hand weights to sglang"

Named = list[tuple[str, torch.Tensor]]


def update_weights(
    engine: Any,
    state_dict: dict[str, Any],
    *,
    load_format: str | None = None,
    flush_cache: bool = True,
    tp_size: int | None = None,
    device: torch.device | str | None = None,
    batch_bytes: int | str = "512MiB",
    process_group: dist.ProcessGroup | None = None,
    **options: Any,
) -> int:
    """Gives an engine a trainer's tensors, named, encoded and quantized as the checkpoint that
    :func:`shardwright.export` would write with the same options.

    All ranks of the process group call this together. The first has the engine, and gets whole tensors, which are put
    together of the ranks' pieces, up to ``batch_bytes`` at once; each batch is one call of the engine. The group must
    carry CPU tensors, as Gloo does.

    Args:
        engine: an ``sglang.Engine``, or what has its ``update_weights_from_tensor``; None on all ranks but the first.
        load_format: None, or another that takes names and tensors; "flattened_bucket": the tensors of one dtype as one
            tensor, which sglang's own classes make and serialize.
        flush_cache: whether the engine forgets its cache of prefixes, with the last call.
        tp_size: the engine's ranks, each of which gets a flattened bucket; None: as ``engine.server_args`` has it.
        device: where tensors go before they are handed over; None: they stay in CPU memory.
        options: as :func:`shardwright.pieces` has them, but for ``changed_since``: sglang loads whole tensors.

    Returns:
        the number of tensors that the engine was given by this rank.

    Raises, the same on every rank:
        ValueError: the engine says that it could not load a batch; names its tensors. Those before have been loaded.
        PlanError, ValueError: as :func:`shardwright.pieces`.
    """
    if options.get("changed_since") is not None:
        raise ValueError("changed_since: sglang loads whole tensors; expected None")
    most = bytes_of_size(batch_bytes, "batch_bytes")
    described = together(process_group, _DOING, lambda: Described(state_dict, **options))
    source = described.begin(process_group)
    tensors = whole_tensors(
        source, described.handed_over(source), process_group, everywhere=False, batch_bytes=most
    )
    count = 0
    try:
        for batch, is_last in _batches(tensors, len(source.tensors()), most, device):
            if engine is None:
                raise ValueError(
                    "engine is None on the first rank; expected what has update_weights_from_tensor"
                )
            payloads = _payloads(batch, load_format, engine, tp_size)
            for number, (named, of_batch) in enumerate(payloads):
                answer = engine.update_weights_from_tensor(
                    named_tensors=named,
                    load_format=load_format,
                    flush_cache=flush_cache and is_last and number + 1 == len(payloads),
                )
                _expect_loaded(answer, of_batch)
            count += len(batch)
    except Exception as error:
        tensors.throw(error)  # tells the other ranks, unless it comes from there
        raise
    return count


def _batches(
    tensors: Iterator[tuple[str, torch.Tensor]], count: int, most: int, device: Any
) -> Iterator[tuple[Named, bool]]:
    """Tensors for one call of the engine, and whether these are the last of so many.

    The last come before ``tensors`` has ended: until then the other ranks can be told that the engine refuses them.
    """
    batch: Named = []
    used = 0
    for number, (name, tensor) in enumerate(tensors, 1):
        if batch and used + tensor.nbytes > most:
            yield batch, False
            batch, used = [], 0
        batch.append((name, tensor if device is None else tensor.to(device)))
        used += tensor.nbytes
        if number == count:
            yield batch, True


def _payloads(
    batch: Named, load_format: str | None, engine: Any, tp_size: int | None
) -> list[tuple[Any, Named]]:
    """What the engine is given in one call or several, and which tensors that are."""
    if load_format != "flattened_bucket":
        return [(batch, batch)]
    from sglang.srt.utils import MultiprocessingSerializer
    from sglang.srt.weight_sync.tensor_bucket import FlattenedTensorBucket

    ranks = engine.server_args.tp_size if tp_size is None else tp_size
    by_dtype: dict[torch.dtype, Named] = {}
    for name, tensor in batch:
        by_dtype.setdefault(tensor.dtype, []).append((name, tensor))
    payloads: list[tuple[Any, Named]] = []
    for of_dtype in by_dtype.values():
        bucket = FlattenedTensorBucket(named_tensors=of_dtype)
        content = {"flattened_tensor": bucket.get_flattened_tensor(), "metadata": bucket.get_metadata()}
        payloads.append(([MultiprocessingSerializer.serialize(content)] * ranks, of_dtype))
    return payloads


def _expect_loaded(answer: Any, named: Named) -> None:
    """Raises what an engine says went wrong: (False, why), or {"success": False, "message": why}."""
    success, message = True, ""
    if isinstance(answer, (tuple, list)) and answer:
        success, message = bool(answer[0]), str(answer[1]) if len(answer) > 1 else ""
    elif isinstance(answer, dict):
        success, message = bool(answer.get("success", True)), str(answer.get("message", ""))
    if not success:
        raise ValueError(
            f"sglang could not load {named[0][0]} and {len(named) - 1} more: {message or 'it does not say why'}"
        )
