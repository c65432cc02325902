"""Handing a trainer's tensors over piece by piece, as an export would write them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist

from shardwright import _core
from shardwright.byte_sizes import bytes_of_size
from shardwright.dcp.storage_reader import threads_of
from shardwright.describe import current_streams
from shardwright.export_request import AskedExport
from shardwright.handover.buckets import Bucket, Buckets
from shardwright.handover.handed_state import handed_state
from shardwright.handover.piece import Piece, piece_of
from shardwright.handover.piece_sums import PieceSums
from shardwright.local_path import bytes_or_none, whole_number
from shardwright.ranks.together import round_of_ranks, together

_DOING = "beginning to hand over tensors"

#: Least memory for pieces: of two buckets, one of which is filled while pieces of the other are used.
_SMALLEST = 128 << 10


def pieces(
    state_dict: dict[str, Any],
    *,
    quantization: str | None = None,
    template: Any = None,
    model: Any = "auto",
    layout: str = "automodel",
    strict: bool = True,
    strict_dtypes: bool = False,
    quantized_weights: Sequence[str] | None = None,
    bucket_bytes: int | str = "256MiB",
    changed_since: PieceSums | None = None,
    threads: int | None = None,
    staging_bytes: int | None = None,
    device_memory: int | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> Iterator[Piece]:
    """Hands a native state dict over as the tensors of a Hugging Face checkpoint, piece by piece: what
    :func:`shardwright.export` would write with the same arguments, bit for bit, without files.

    All ranks of the process group call this together, each with its shards; without a process group, one does. The
    call itself is collective: it agrees on who hands over what, and on the scales of blocks that ranks cut. What it
    returns is this rank's alone: the boxes that it would write. Each byte of the checkpoint is in one piece of one
    rank, and no rank gathers a tensor.

    Pieces come layer by layer, the scales of a weight, and what else belongs to it, right behind it; a weight that is
    larger than half of ``bucket_bytes`` comes in several pieces. The tensors of the state dict must stay as they are
    until the last piece.

    Args:
        state_dict: FQN → tensor (plain, DTensor or ShardedTensor) in CPU memory or on CUDA devices; nested dicts are
            flattened. Without a template, a head that is the embedding's memory is not handed over.
        quantization, template, model, layout, strict, strict_dtypes, quantized_weights: as :func:`export` has them.
        bucket_bytes: memory that pieces take, or text such as "1GB". One half is filled by threads while pieces of the
            other are used. Its memory is used again when no piece of it is referred to any more; who keeps pieces
            makes it take more.
        changed_since: :class:`PieceSums` of this rank, which remembers what was handed over before: only blocks whose
            encoded bytes have changed since are, with their scales. A new one gets everything. It counts as handed over
            when the pieces have been asked for to the last; what a run that ended early handed over comes again. None:
            everything.
        threads: of this rank, that encode; None: this process's share of the processors.
        staging_bytes: memory between tensors and pieces; None: 1 MiB a thread, for CUDA devices 8 MiB a thread, which
            is pinned, up to 128 MiB in all.
        device_memory: bytes of each CUDA device that may be taken beside the tensors; None: 256 MiB.

    Raises, from the call itself, the same on every rank:
        PlanError: state dict and template do not fit, or ranks disagree; lists what is wrong.
        ValueError: an argument, or a CUDA device that refuses.
        ConnectionResetError: a rank has ended meanwhile.

    Raises, on the rank that meets it, before a piece of that bucket:
        PlanError: a value that cannot be encoded so, such as a NaN in four bits; names tensor and element.
    """
    described = together(process_group, _DOING, lambda: Described(
        state_dict, bucket_bytes, changed_since, threads, staging_bytes, device_memory, quantization=quantization,
        template=template, model=model, layout=layout, strict=strict, strict_dtypes=strict_dtypes,
        quantized_weights=quantized_weights,
    ))  # fmt: skip
    return described.handed_over(described.begin(process_group))


class Described:
    """What a rank has, described to the planner. ``asked``: arguments of :class:`AskedExport`."""

    def __init__(
        self,
        state_dict: dict[str, Any],
        bucket_bytes: int | str = "256MiB",
        changed_since: Any = None,
        threads: int | None = None,
        staging_bytes: int | None = None,
        device_memory: int | None = None,
        **asked: Any,
    ) -> None:
        export = AskedExport(**asked)
        self.request = export.request()
        self.bucket_bytes = whole_number(
            "bucket_bytes", bytes_of_size(bucket_bytes, "bucket_bytes"), _SMALLEST
        )
        if changed_since is not None and not isinstance(changed_since, PieceSums):
            raise ValueError(
                f"changed_since: expected a shardwright.PieceSums or None, found {changed_since!r}"
            )
        self.changed_since: Any = changed_since
        self._run = 0  # with these sums
        self.threads = threads_of(threads, "threads")
        self.staging_bytes = bytes_or_none("staging_bytes", staging_bytes) or 0
        handed = handed_state(state_dict, export.has_template)
        self.description, self.state = handed.description, handed.state
        self.devices = _core.DeviceOptions(
            bytes_or_none("device_memory", device_memory), current_streams(self.description.local_tensors)
        )
        self.holdings: bytes = _core.describe_export(
            self.description.specs, self.state, self.request, self.devices
        )

    def begin(self, group: dist.ProcessGroup | None) -> Any:
        """Plans with the other ranks; returns what hands over."""
        share = round_of_ranks(
            group,
            _DOING,
            lambda: self.holdings,
            lambda holdings: list(_core.plan_export(holdings, self.request, "")),
        )
        return together(group, _DOING, lambda: self.source(share))

    def source(self, share: bytes) -> Any:
        """What hands over this rank's share of the plan."""
        if self.changed_since is not None:
            self._run = self.changed_since.begin_run()
        return _core.Pieces(
            share, self.description.specs, self.state, self.request, self.bucket_bytes // 2, self.changed_since,
            self.threads, self.staging_bytes, self.devices,
        )  # fmt: skip

    def handed_over(self, source: Any) -> Iterator[Piece]:
        sums, run = self.changed_since, self._run

        def begin_filling(begin: Callable[[], Future[list[Any]]]) -> Future[list[Any]]:
            return begin() if sums is None else sums.begin_filling(run, begin)

        yield from _handed_over(
            source, Buckets(source.bucket_bytes), self.description.local_tensors, begin_filling
        )
        if sums is not None:
            sums.keep(run, source)


def _handed_over(
    source: Any,
    buckets: Buckets,
    keep: list[torch.Tensor],
    begin_filling: Callable[[Callable[[], Future[list[Any]]]], Future[list[Any]]],
) -> Iterator[Piece]:
    """Pieces, one bucket being filled while those of the other are used. ``keep``: the tensors' memory.
    ``begin_filling`` runs what begins to fill one."""
    with ThreadPoolExecutor(1, "shardwright-pieces") as executor:

        def begin() -> tuple[Bucket, Future[list[Any]]]:
            bucket = buckets.next()
            memory = bucket.tensor()
            return bucket, begin_filling(lambda: executor.submit(source.next, memory.data_ptr()))

        bucket, filling = begin()
        try:
            while facts := filling.result():
                for number, fact in enumerate(facts):
                    yield piece_of(fact, bucket.tensor())
                    if number == 0:  # by now the caller has let go of the bucket before
                        bucket_after, filling = begin()
                bucket = bucket_after
        finally:
            with suppress(Exception):
                filling.result()  # which writes to memory that must be there until it ends
            keep.clear()
