"""A hand-over whose ranks are threads of one process, and engines whose tensors are cut by plain torch."""

import itertools
import queue
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import shardwright as sw
import torch
from shardwright import _core
from shardwright.dcp.save_description import describe_save
from shardwright.describe import describe
from shardwright.handover.engine import EnginePart, EngineTensor

THREADS, STAGING = 1, 1 << 20
SECONDS = 300.0  #: that a rank waits for another one


class Ranks:
    """Rounds and messages of so many ranks."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._barrier = threading.Barrier(count)
        self._told: list = [None] * count
        self._replies: list = []
        # All of them now: were each made when it is asked for, a sender and a receiver that ask at a time might
        # get one each, for Python switches threads within a dict's factory.
        self._board: dict[str, str] = {}
        pairs = itertools.product(range(count), repeat=2)
        self._messages: dict[tuple[int, int], queue.Queue] = {pair: queue.Queue() for pair in pairs}

    def round_of(self, rank: int):
        def round_(mine, answers):
            try:
                self._told[rank] = mine()
            except Exception as error:
                self._told[rank] = error
            if self._barrier.wait() == 0:
                failed = [told for told in self._told if isinstance(told, Exception)]
                try:
                    self._replies = failed[:1] * self.count or answers(list(self._told))
                except Exception as error:
                    self._replies = [error] * self.count
            self._barrier.wait()
            reply = self._replies[rank]
            self._barrier.wait()
            if isinstance(reply, Exception):
                raise reply
            return reply

        return round_

    def gather_of(self, rank: int):
        def gather(count: int, mine):
            told = self.round_of(rank)(mine, lambda told: [b"".join(told)] * self.count)
            assert len(told) == self.count * count
            return [told[at : at + count] for at in range(0, len(told), count)]

        return gather

    def transport_of(self, rank: int) -> "ThreadTransport":
        return ThreadTransport(self._messages, self._board, rank)


class ThreadTransport:
    """One rank's, over queues of whole messages."""

    def __init__(self, messages: dict, board: dict, rank: int) -> None:
        self._messages, self._board, self._rank = messages, board, rank
        self._numbers = itertools.count()  # of sends and receives, which are begun on threads of their own
        self._receives: dict[int, tuple[int, memoryview]] = {}

    def send(self, to: int, memory: memoryview) -> int:
        self._messages[self._rank, to].put(bytes(memory))
        return next(self._numbers)

    def receive(self, source: int, memory: memoryview) -> int:
        number = next(self._numbers)
        self._receives[number] = source, memory
        return number

    def wait(self, number: int) -> None:
        if number not in self._receives:
            return
        source, memory = self._receives.pop(number)
        memory[:] = self._messages[source, self._rank].get(timeout=300)

    def post(self, key: str, text: str) -> None:
        self._board[key] = text

    def look(self, key: str) -> str | None:
        return self._board.get(key)


@dataclass
class Side:
    """What a rank brings: tensors of the trainer, or of the engine, or both."""

    state: dict | None = None
    engine: list[EngineTensor] = field(default_factory=list)
    described: tuple = ()

    def describe(self) -> None:
        """While the rank's mesh is there."""
        if self.state is not None:
            self.described = (describe(self.state).specs, describe_save(self.state, {}).encode())


def on_ranks(count: int, run: Callable[[int], object]) -> list:
    """What it gives for each rank, an exception as well."""
    results: list = [None] * count

    def of_rank(rank: int) -> None:
        try:
            results[rank] = run(rank)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=of_rank, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def hand_over(
    sides: list[Side], request, plans: list | None = None, nodes: Sequence[str] = ("node",)
) -> list:
    """The outcome of each rank. Ranks of the same of `nodes`, which they are given in turns, share memory; those of ""
    do not."""
    ranks = Ranks(len(sides))
    plans = plans or [_core.PlannedRefit() for _ in sides]
    core_sides = []
    for side in sides:
        one = _core.RefitSide()
        if side.state is not None:
            one.set_trainer(*side.described)
        for tensor in side.engine:
            tensor.add_to(one)
        core_sides.append(one)

    def run(rank: int):
        node = nodes[rank % len(nodes)]
        return _core.hand_over(
            rank, len(sides), ranks.round_of(rank), ranks.gather_of(rank), core_sides[rank], request,
            plans[rank], ranks.transport_of(rank), STAGING, THREADS, _core.DeviceOptions(), node,
            SECONDS,
        )  # fmt: skip

    return on_ranks(len(sides), run)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.reshape(-1)
    return flat.clone(memory_format=torch.contiguous_format).view(torch.uint8)


@dataclass
class Expected:
    """An engine's rank, and what its tensors are to become."""

    engine: list[EngineTensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)

    def clear(self) -> None:
        for tensor in self.engine:
            tensor.tensor.zero_()

    def wrong(self) -> list[str]:
        return [
            tensor.name
            for tensor, value in zip(self.engine, self.values, strict=True)
            if not torch.equal(bits(tensor.tensor), bits(value))
        ]


def random_engine(files: dict[str, torch.Tensor], ranks: int, seed: int) -> list[Expected]:
    """Ranks of an engine that hold random slices of the tensors of a checkpoint: whole ones, along any dimension,
    several one behind the other in one tensor, transposed, with gaps in memory."""
    of_rank = [Expected() for _ in range(ranks)]
    draw = random.Random(seed)
    names = sorted(name for name, tensor in files.items() if tensor.numel())
    for name in names:
        tensor = files[name]
        cut = draw.choice([None, *range(tensor.ndim)])
        transposed = tensor.ndim == 2 and draw.random() < 0.2
        for rank in range(ranks):
            if draw.random() < 0.1:
                continue  # another rank's expert
            box = [slice(0, size) for size in tensor.shape]
            if cut is not None:
                edges = [tensor.shape[cut] * r // ranks for r in (rank, rank + 1)]
                box[cut] = slice(*edges)
            part = tensor[tuple(box)]
            if part.numel() == 0:
                continue
            axes = (1, 0) if transposed else None
            value = part.T if transposed else part
            room = torch.zeros([2 * size for size in value.shape], dtype=value.dtype)
            place = room[tuple(slice(0, size) for size in value.shape)] if draw.random() < 0.3 else None
            if place is None or not tensor.ndim:
                place = torch.zeros(value.shape, dtype=value.dtype)
            of_rank[rank].engine.append(
                EngineTensor(f"engine.{name}", place, [EnginePart(name, box or None, None, axes)])
            )
            of_rank[rank].values.append(value.contiguous())
    for expected in of_rank:
        _fuse(expected, files, draw)
    return of_rank


def _fuse(expected: Expected, files: dict[str, torch.Tensor], draw: random.Random) -> None:
    """Adds tensors that are several of the checkpoint's, one behind the other, and stacks of them."""
    matrices: dict[tuple, list[str]] = defaultdict(list)
    for name, tensor in sorted(files.items()):
        if tensor.ndim == 2 and tensor.numel():
            matrices[tensor.shape[1], tensor.dtype].append(name)
    for (columns, dtype), names in matrices.items():
        chosen = draw.sample(names, min(len(names), draw.randint(1, 4)))
        rows = [files[name].shape[0] for name in chosen]
        behind = torch.zeros(sum(rows), columns, dtype=dtype)
        at = [sum(rows[:i]) for i in range(len(rows))]
        parts = [EnginePart(name, at=(first, 0)) for name, first in zip(chosen, at, strict=True)]
        expected.engine.append(EngineTensor(f"fused.{chosen[0]}", behind, parts))
        expected.values.append(torch.cat([files[name] for name in chosen]))
        same = [name for name in names if files[name].shape == files[chosen[0]].shape]
        stack = torch.zeros(len(same), *files[same[0]].shape, dtype=dtype)
        parts = [EnginePart(name, at=(n, 0, 0), axes=(1, 2)) for n, name in enumerate(same)]
        expected.engine.append(EngineTensor(f"stack.{same[0]}", stack, parts))
        expected.values.append(torch.stack([files[name] for name in same]))


def request_of(template=None, quantization="none", model="auto", layout="automodel", weights=None):
    catalog = None if template is None else sw.read_catalog(template)
    return _core.ExportRequest(
        catalog, model, layout, quantization, weights or [], True, 5_000_000_000, {}, False, None
    )
