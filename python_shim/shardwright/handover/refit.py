"""Handing a trainer's weights to an engine, in place, rank to rank."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist

from shardwright import _core
from shardwright.byte_sizes import bytes_of_size
from shardwright.describe import Description, current_streams
from shardwright.export_request import AskedExport
from shardwright.handover.engine import EngineTensor
from shardwright.handover.group_transport import GroupTransport
from shardwright.handover.handed_state import handed_state
from shardwright.handover.kept_side import KeptSide, facts_of_side
from shardwright.local_path import bytes_or_none, whole_number
from shardwright.ranks.gone_ranks import group_to_tell, naming_gone_ranks, rank_among
from shardwright.ranks.node_memory import board_of, waiting_time
from shardwright.ranks.rank_outcome import text_of
from shardwright.ranks.together import held_interrupt, round_of_ranks, together
from shardwright.report import figures_of
from shardwright.saving import expect_no_save_over

E = TypeVar("E", bound=BaseException)

_DOING = "handing weights over"


@dataclass(frozen=True)
class HandedBox:
    """What goes from one rank to another: ``tensor.view(view)[box]`` of a tensor of the checkpoint."""

    name: str
    view: tuple[int, ...]  #: empty: the tensor's own shape; of codes of four bits, in bytes
    box: tuple[slice, ...]


class RefitPlan:
    """Who hands what to whom, as far as this rank takes part; kept from one hand-over to the next."""

    def __init__(self) -> None:
        self._planned = _core.PlannedRefit()
        self._kept: KeptSide | None = None
        self.is_new = False  #: whether refit_plan() has made it anew; otherwise it was up to date

    @property
    def sends(self) -> dict[int, list[HandedBox]]:
        """For each rank of the process group what this one sends to it, in order."""
        return _lists(self._planned.sends)

    @property
    def receives(self) -> dict[int, list[HandedBox]]:
        """For each rank of the process group what this one gets from it, in order."""
        return _lists(self._planned.receives)

    @property
    def bytes_to(self) -> dict[int, int]:
        """Of the weights, for each rank that this one sends to."""
        return dict(self._planned.bytes_to)

    @property
    def bytes_from(self) -> dict[int, int]:
        return dict(self._planned.bytes_from)

    def encode(self) -> bytes:
        """The wire form (planner/wire/refit.proto)."""
        encoded: bytes = self._planned.encode()
        return encoded


def _lists(facts: Mapping[int, list[Any]]) -> dict[int, list[HandedBox]]:
    return {
        rank: [
            HandedBox(name, tuple(view), tuple(slice(at, at + n) for at, n in zip(offset, size, strict=True)))
            for name, view, offset, size in boxes
        ]
        for rank, boxes in facts.items()
    }


@dataclass
class RefitReport:
    """What one rank did."""

    bytes_sent: int = 0
    bytes_received: int = 0
    bytes_kept: int = 0  #: that went from this rank to itself
    messages: int = 0  #: sent
    peak_staging_bytes: int = 0  #: of CPU memory for what was on the way
    copied_bytes: int = 0  #: of tensors on devices without kernels, copied to CPU memory
    bytes_in_memory: int = 0  #: of those sent and received, through memory that ranks of a node share
    not_shared: str = ""  #: why ranks of this node share none, where they were to
    layers: list[str] = field(default_factory=list)  #: of this rank's engine, all of them new
    seconds: float = 0.0  #: planning and agreeing left out


def refit_plan(
    state_dict: dict[str, Any] | None,
    engine: Sequence[EngineTensor] | None,
    *,
    plan: RefitPlan | None = None,
    quantization: str | None = None,
    template: Any = None,
    model: Any = "auto",
    layout: str = "automodel",
    strict: bool = True,
    strict_dtypes: bool = False,
    quantized_weights: Sequence[str] | None = None,
    staging_bytes: int | str = "120MiB",
    threads: int | None = None,
    device_memory: int | None = None,
    transport: Literal["auto", "c10d"] = "auto",
    process_group: dist.ProcessGroup | None = None,
) -> RefitPlan:
    """Plans who hands what to whom, and moves nothing. Arguments and errors as :func:`refit` has them, which plans by
    itself. ``plan``: an earlier one, which is returned if it still holds, else made anew in place."""
    return _Refit(
        state_dict, engine, plan,
        AskedExport(quantization, template, model, layout, strict, strict_dtypes, quantized_weights),
        staging_bytes, threads, device_memory, transport, process_group,
    ).plan()  # fmt: skip


def refit(
    state_dict: dict[str, Any] | None,
    engine: Sequence[EngineTensor] | None = None,
    *,
    plan: RefitPlan | None = None,
    quantization: str | None = None,
    template: Any = None,
    model: Any = "auto",
    layout: str = "automodel",
    strict: bool = True,
    strict_dtypes: bool = False,
    quantized_weights: Sequence[str] | None = None,
    staging_bytes: int | str = "120MiB",
    threads: int | None = None,
    device_memory: int | None = None,
    transport: Literal["auto", "c10d"] = "auto",
    process_group: dist.ProcessGroup | None = None,
) -> RefitReport:
    """Hands a trainer's weights to an engine whose ranks are in the same process group: the engine's tensors become,
    in place, the slices that their parts name of the checkpoint that :func:`shardwright.export` would write with the
    same arguments, bit for bit.

    All ranks of the process group call this together: those of the trainer with their shards, those of the engine with
    their tensors, a rank of both with both; without a process group, one does. The trainer's ranks encode, and each
    byte goes from the one that would write it in an export straight to the ranks that need it; no rank holds a tensor
    that it does not own. An engine's rank receives a layer in full before it puts any of it in its place.

    Args:
        state_dict: FQN → tensor (plain, DTensor or ShardedTensor) in CPU memory or on CUDA devices; nested dicts are
            flattened. None: this rank is none of the trainer's.
        engine: this rank's tensors of the engine, and what they are made of. None: it is none of the engine's.
        plan: what was planned before, by :func:`refit_plan` or an earlier call. Planning is left out while all ranks
            bring what they did; else it is made anew, in place.
        quantization, template, model, layout, strict, strict_dtypes, quantized_weights: as :func:`export` has them,
            and the same on all ranks, the engine's too.
        staging_bytes: memory of this rank for what is on the way, both directions together, or text such as "64MiB";
            the same on all ranks. A layer that has no room in it takes what it takes, which the report says.
        threads: of this rank; None: this process's share of the processors.
        device_memory: bytes of each CUDA device that may be taken beside the tensors; None: 256 MiB.
        transport: "auto": between ranks of one node through memory that they share, in which each byte is encoded and
            from which the engine copies it; elsewhere over the process group. The memory is a part of
            ``staging_bytes``, and kept with the plan. "c10d": weights go over the process group alone; a few bytes, by
            which ranks agree, still go through memory where all of them are of one node.

    Raises, the same on every rank, before anything is sent:
        PlanError: state dict, template and engine do not fit each other: shapes, dtypes, names that nobody can supply;
            lists what is wrong, by name.
        ValueError: an argument; a process group that an asynchronous save has.

    Raises, the same on every rank, naming ranks:
        PlanError, ValueError: a value that cannot be encoded so.
        ConnectionResetError: a rank has ended meanwhile.
        KeyboardInterrupt: this rank has been interrupted (Ctrl-C) while weights move.
        InterruptedError: another one has.

    The text then says how far this rank's engine is new, as do the attributes ``new_layers`` and ``old_layers``: each
    layer is whole, either new or as it was.
    """
    return _Refit(
        state_dict, engine, plan,
        AskedExport(quantization, template, model, layout, strict, strict_dtypes, quantized_weights),
        staging_bytes, threads, device_memory, transport, process_group,
    ).run()  # fmt: skip


class _Refit:
    """What a rank brings, described to the planner."""

    def __init__(
        self,
        state_dict: dict[str, Any] | None,
        engine: Sequence[EngineTensor] | None,
        plan: RefitPlan | None,
        asked: AskedExport,
        staging_bytes: int | str,
        threads: int | None,
        device_memory: int | None,
        transport: str,
        group: dist.ProcessGroup | None,
    ) -> None:
        self._group, refusal = group_to_tell(group)
        expect_no_save_over(self._group)
        self._rank, self._ranks = rank_among(self._group)
        self._plan = plan if isinstance(plan, RefitPlan) else RefitPlan()
        self._side = _core.RefitSide()
        self._description = Description()
        self._engine: list[EngineTensor] = []
        self._copied_bytes = 0

        def describe_sides() -> None:
            if refusal is not None:
                raise refusal
            if plan is not None and plan is not self._plan:
                raise ValueError(f"plan: expected a shardwright.RefitPlan or None, found {plan!r}")
            self._engine = _expect_engine(engine)
            self._staging_bytes = bytes_of_size(staging_bytes, "staging_bytes")
            if transport not in ("auto", "c10d"):
                raise ValueError(f'transport: expected "auto" or "c10d", found {transport!r}')
            self._node = _core.this_node() if transport == "auto" else ""
            self._threads = 0 if threads is None else whole_number("threads", threads, 1, 1024)
            facts = facts_of_side(state_dict, self._engine, asked)
            kept = self._plan._kept
            if kept is not None and kept.facts == facts:
                self._side, self._request = kept.side, kept.request
            else:
                self._request = asked.request()
                if state_dict is not None:
                    handed = handed_state(state_dict, asked.has_template)
                    self._description, self._copied_bytes = handed.description, handed.copied_bytes
                    self._side.set_trainer(handed.description.specs, handed.state)
                for tensor in self._engine:
                    tensor.add_to(self._side)
                self._side.keep_digest(self._request)
                self._plan._kept = KeptSide(facts, self._side, self._request)
            self._devices = _core.DeviceOptions(
                bytes_or_none("device_memory", device_memory),
                current_streams(self._description.local_tensors),
            )

        self._failure: Exception | None = None  # told in the first round, for which the others wait
        self._staging_bytes, self._threads, self._node = 0, 0, ""
        self._timeout = waiting_time(self._group or dist.group.WORLD) if self._ranks > 1 else 0.0
        self._devices = _core.DeviceOptions()
        try:
            describe_sides()
        except Exception as error:
            if self._ranks == 1:
                raise
            self._failure = error
            self._request = AskedExport().request()

    def _round(self, mine: Callable[[], bytes], answers: Callable[[list[bytes]], list[bytes]]) -> bytes:
        """A round over all ranks, as planner/job.h has it. Raises the same on all of them."""
        return round_of_ranks(self._group, _DOING, lambda: self._told(mine), answers)

    def _gather(self, count: int, mine: Callable[[], bytes]) -> list[bytes]:
        """What all ranks tell, so many bytes each, in one collective. Raises as :meth:`_round` does."""
        own = bytes(count + 1)  # the last one: whether it has not failed
        try:
            own = self._told(mine) + b"\1"
        except Exception as error:
            self._failure = error
        with naming_gone_ranks(self._group, _DOING):
            told = gathered(self._group, own)
        if not all(one[count] for one in told):
            self._round(bytes, lambda told: told)  # in which those that have failed say why
        return [one[:count] for one in told]

    def _told(self, mine: Callable[[], bytes]) -> bytes:
        if self._failure is not None:
            raise self._failure
        return mine()

    def plan(self) -> RefitPlan:
        self._plan.is_new = not _core.plan_refit(
            self._rank, self._ranks, self._round, self._gather, self._side, self._request, self._plan._planned,
            self._staging_bytes, self._threads, self._devices, self._node,
        )  # fmt: skip
        return self._plan

    def _any_failed(self, outcome: Any) -> bool:
        """On any rank."""
        if self._ranks == 1:
            return bool(outcome.has_failed)
        with naming_gone_ranks(self._group, _DOING):
            return not all(told == b"\1" for told in gathered(self._group, bytes([not outcome.has_failed])))

    def run(self) -> RefitReport:
        outcome = _core.hand_over(
            self._rank, self._ranks, self._round, self._gather, self._side, self._request, self._plan._planned,
            GroupTransport(self._group), self._staging_bytes, self._threads, self._devices, self._node,
            self._timeout,
        )  # fmt: skip
        torch.autograd.graph.increment_version([tensor.tensor for tensor in self._engine])
        interrupts: list[KeyboardInterrupt] = []

        def expect_success() -> None:
            try:
                outcome.expect_success()
            except KeyboardInterrupt as interrupt:  # others are told in place of being left alone
                interrupts.append(interrupt)
                raise InterruptedError(errno.EINTR, f"interrupted while {_DOING}") from interrupt

        try:
            with held_interrupt() as held:
                if self._any_failed(outcome):
                    together(self._group, _DOING, expect_success)
        except Exception as error:
            told = _saying_which(error, outcome)
            if interrupts or held:
                raise _with_layers(KeyboardInterrupt(text_of(told)), outcome) from error
            raise told from error
        return RefitReport(
            **figures_of(outcome, RefitReport),
            copied_bytes=self._copied_bytes,
            layers=outcome.committed,
            seconds=outcome.seconds,
        )


def gathered(group: dist.ProcessGroup | None, mine: bytes) -> list[bytes]:
    """What all ranks tell, as many bytes on each: in memory where they share some, else by a collective."""
    if (board := board_of(group)) is not None:
        return board.gather(mine)
    told = torch.empty(dist.get_world_size(group), len(mine), dtype=torch.uint8, device="cpu")
    own = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
    dist.all_gather(list(told), own, group=group)
    return [bytes(one) for one in told.tolist()]


def _expect_engine(engine: Sequence[EngineTensor] | None) -> list[EngineTensor]:
    if engine is None:
        return []
    found = (
        list(engine) if isinstance(engine, Iterable) and not isinstance(engine, torch.Tensor) else [engine]
    )
    for one in found:
        if not isinstance(one, EngineTensor):
            raise ValueError(
                f"engine: expected a list of shardwright.EngineTensor, found {type(one).__name__}"
            )
    return found


def _saying_which(error: Exception, outcome: Any) -> Exception:
    """The error, with what has become of this rank's engine."""
    new, old = outcome.committed, outcome.left
    if not new and not old:
        return error
    names = ", ".join(_core.grouped_names(new)) or "no layer"
    others = ", ".join(_core.grouped_names(old)) or "none"
    text = f"; of this rank's engine {names} is new, as it was is {others}"
    told: Exception
    if isinstance(error, OSError):
        told = type(error)(error.errno, f"{error.strerror}{text}")
    else:
        told = type(error)(f"{error}{text}")
    vars(told).update(vars(error))
    return _with_layers(told, outcome)


def _with_layers(error: E, outcome: Any) -> E:
    vars(error).update(new_layers=outcome.committed, old_layers=outcome.left)
    return error
