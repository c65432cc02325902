"""The weights of an export on their way to a store: ranks give each other the bytes of the files that these upload."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from shardwright.ranks.gone_ranks import naming_gone_ranks
from shardwright.ranks.rank_outcome import told as told_to_all
from shardwright.remote.sending import Sending

#: What a rank tells in place of a number of bytes when it has failed.
_FAILED = -1


def send_export(
    begin: Callable[[], tuple[Any, Sending]], ranks: int, group: dist.ProcessGroup | None
) -> tuple[Any, int]:
    """Runs all rounds of the `_core.SentExport` of so many ranks that ``begin`` makes, and returns the core's report
    once all objects of this rank are there, and the most memory that messages and parts took.

    While the bytes of one round are under way between ranks, those of the next are encoded. A failure ends all ranks.

    Raises, the same on all ranks:
        PlanError, OSError, ValueError: what one of them has raised in the beginning or while there were rounds, which
            is named.
        ConnectionResetError: a rank has ended meanwhile, which is named.
    """
    exchanged = 0
    if ranks == 1:
        export, sending = begin()
        for turn in range(export.rounds):
            export.encode(turn)
    else:
        with naming_gone_ranks(group, "exporting"):
            rounds = _Rounds(begin, ranks, group)
            exchanged = rounds.run()
        export, sending = rounds.export, rounds.sending
    report = export.finish()
    sending.finish()
    return report, exchanged + export.peak_bytes_to_send + sending.peak_bytes


class _Rounds:
    def __init__(
        self, begin: Callable[[], tuple[Any, Sending]], ranks: int, group: dist.ProcessGroup | None
    ) -> None:
        self.ranks, self.group = ranks, group
        self.failure: Exception | None = None
        self.under_way: list[tuple[dist.Work, torch.Tensor, torch.Tensor, list[int]]] = []
        with self._noting_failure():
            self.export, self.sending = begin()
        self._told_alike([0] * self.ranks)

    def run(self) -> int:
        """Returns the most memory that messages of two rounds took."""
        most = 0
        for turn in range(self.export.rounds):
            messages = [bytearray()] * self.ranks
            with self._noting_failure():
                self.export.encode(turn)
                messages = self.export.messages()
            to = [len(message) for message in messages]
            come_from = self._told_alike(to)
            outgoing = torch.empty(sum(to), dtype=torch.uint8, device="cpu")
            if outgoing.numel():
                outgoing.copy_(torch.frombuffer(bytearray().join(messages), dtype=torch.uint8))
            incoming = torch.empty(sum(come_from), dtype=torch.uint8, device="cpu")
            most = max(most, 2 * (outgoing.numel() + incoming.numel()))
            work = dist.all_to_all_single(incoming, outgoing, come_from, to, group=self.group, async_op=True)
            with self._noting_failure():
                self._take()
            self.under_way.append((work, outgoing, incoming, come_from))
        with self._noting_failure():
            self._take()
        self._told_alike([0] * self.ranks)
        return most

    def _take(self) -> None:
        """Takes what the round before has brought."""
        while self.under_way:
            work, _, incoming, come_from = self.under_way.pop(0)
            work.wait()
            address = incoming.data_ptr()
            for other, count in enumerate(come_from):
                if count:
                    self.export.receive(other, address, count)
                address += count

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        """A failure is told with the next sizes, so that no rank waits for one that has gone."""
        try:
            yield
        except Exception as failure:
            self.failure = self.failure or failure

    def _told_alike(self, to: list[int]) -> list[int]:
        """How many bytes come from each rank, where so many go to each. Raises on all ranks if one has failed."""
        told = torch.tensor(
            to if self.failure is None else [_FAILED] * self.ranks, dtype=torch.int64, device="cpu"
        )
        come_from = torch.empty_like(told)
        dist.all_to_all_single(come_from, told, group=self.group)
        if self.failure is None and come_from.min().item() >= 0:
            return [int(count) for count in come_from.tolist()]
        for work, *_ in self.under_way:  # whose memory must stay until then
            work.wait()
        failures: list[Exception | None] = [None] * self.ranks
        dist.all_gather_object(failures, self.failure, self.group)
        failed: dict[int, Any] = {r: (error, None) for r, error in enumerate(failures) if error is not None}
        raise told_to_all(CheckpointException("exporting", failed)) from self.failure
