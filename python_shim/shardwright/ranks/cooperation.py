"""Ranks that read together: each needed byte once from the files, the rest from each other."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist

from shardwright import _core
from shardwright.ranks.gone_ranks import expect_member, has_others, naming_gone_ranks, timeout_of
from shardwright.ranks.node_memory import join_memory, waiting_time
from shardwright.ranks.together import failing_together, together


@dataclass(frozen=True)
class Readers:
    """The ranks that read together."""

    group: dist.ProcessGroup
    #: else each rank reads for itself what lies in the page cache: no object of a store does
    even_cached_files: bool


_FORMING = "forming groups to read"

#: What a caller may say of reading together.
Cooperative: TypeAlias = bool | Literal["node", "job"] | dist.ProcessGroup | Readers


def _this_node() -> str:
    """The same on ranks that can share memory."""
    return _core.this_node() or f"{socket.gethostname()} {os.getpid()}"


@contextmanager
def reading_group(cooperative: Cooperative) -> Iterator[Readers | None]:
    """The ranks to read with: those of this node, of the job, or of the group that is given; None if there are no
    others.

    Collective over the group that is given; over the default one if ``cooperative`` is True, "node" or "job". Where all
    ranks are to read together and that group takes CPU tensors, it is the one to read with; else the ranks form a Gloo
    group, the first time. Forming one while a rank ends can take several times the group's timeout.
    """
    if isinstance(cooperative, Readers):
        yield cooperative
        return
    if cooperative is False:
        yield None
        return
    expect_member("cooperative", cooperative)
    own = cooperative if isinstance(cooperative, dist.ProcessGroup) else None
    way = "a process group" if own is not None else cooperative
    together(own, _FORMING, lambda: _expect_known(cooperative), [f"cooperative {way}"])
    if not has_others(own):
        yield None
        return
    if own is not None:
        yield Readers(own, True)
        return
    nodes: list[str] = [""] * dist.get_world_size()
    with naming_gone_ranks(None, _FORMING):
        if cooperative != "job":
            dist.all_gather_object(nodes, _this_node())
        group = _group_of_node(nodes)
    yield Readers(group, cooperative is not True) if dist.get_world_size(group) > 1 else None


def _expect_known(cooperative: Any) -> None:
    named = isinstance(cooperative, str) and cooperative in ("node", "job")
    if not named and cooperative is not True and not isinstance(cooperative, dist.ProcessGroup):
        raise ValueError(
            f'cooperative: expected True, False, "node", "job" or a process group, found {cooperative!r}'
        )


_groups_of_nodes: dict[int, tuple[Any, list[str], dist.ProcessGroup]] = {}  # by id of the default group


def _group_of_node(nodes: list[str]) -> dist.ProcessGroup:
    """The ranks that have this rank's name among ``nodes``, by rank."""
    world = dist.group.WORLD
    if len(set(nodes)) == 1 and any(device.type == "cpu" for device in world._device_types):
        return world
    known = _groups_of_nodes.get(id(world))
    if known is None or known[0] is not world or known[1] != nodes:
        ranks_of = {node: [r for r, at in enumerate(nodes) if at == node] for node in dict.fromkeys(nodes)}
        timeout = timeout_of(world)
        groups = {node: dist.new_group(ranks, timeout, "gloo") for node, ranks in ranks_of.items()}
        known = _groups_of_nodes[id(world)] = world, nodes, groups[nodes[dist.get_rank()]]
    return known[2]


def naming_gone_readers(readers: Readers | None) -> AbstractContextManager[None]:
    """As naming_gone_ranks, where there are others to read with."""
    return nullcontext() if readers is None else naming_gone_ranks(readers.group, "reading")


def read_together(
    plan: Any,
    catalog: Any,
    specs: list[Any],
    options: Any,
    readers: Readers,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Any, str]:
    """Reads what the ranks need in common, each byte on one rank, and hands it over: in shared memory where all are of
    one node, else by all-to-all in rounds, where the bytes of the next round are read while those of one are under way.

    In the end each rank loads what is left to it. Returns the core's report, and in words how ranks have read together.
    A failure is raised on all ranks.

    Raises:
        ConnectionResetError: a rank has ended meanwhile, which is named.
    """
    group = readers.group
    if isinstance(catalog.directory, str):  # an address
        readers = replace(readers, even_cached_files=True)
    with naming_gone_ranks(group, "reading"):
        with failing_together(group):
            load = _core.CooperativeLoad(plan, catalog, specs, options)
            mine = load.terms, _this_node(), _core.content_words(catalog)
        of_ranks: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(of_ranks, mine, group)
        try:
            with failing_together(group):
                terms, nodes, contents = zip(*of_ranks, strict=True)
                _core.expect_one_checkpoint(contents)
                all_cached = not any(files_on_disk for _, _, files_on_disk in terms)
            if all_cached and not readers.even_cached_files:
                way = "each rank by itself: the files are in the page cache"
            else:
                way = _hand_over(load, (plan, catalog, specs), terms, len(set(nodes)) == 1, readers, progress)
            with naming_gone_ranks(group, "reading", load.partly_written):
                report = None
                with failing_together(group, load.partly_written):
                    report = load.finish(progress)
        except BaseException:
            load.abandon()
            raise
        return report, way


def _hand_over(
    load: Any,
    planned: tuple[Any, Any, list[Any]],
    terms: Any,
    on_one_node: bool,
    readers: Readers,
    progress: Callable[[int, int], None] | None,
) -> str:
    """Reads what several ranks need. Returns how, in words."""
    group = readers.group
    plans: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(plans, _core.encode_plan(*planned), group)

    def begin(in_memory: bool) -> None:
        with failing_together(group):
            catalog, rank = planned[1], dist.get_rank(group)
            load.begin(catalog, plans, terms, rank, in_memory, not readers.even_cached_files)

    begin(on_one_node)
    if load.pieces == 0:
        return "each rank by itself: none needs what another does"
    why_not = (
        join_memory(group, load.node_bytes, load.join_node) if on_one_node else "they are of several nodes"
    )
    with naming_gone_ranks(group, "reading", load.partly_written):
        if why_not is not None:
            if on_one_node:
                begin(False)
            _run_rounds(load, group, progress)
            return f"over c10d: {why_not}"
        with failing_together(group, load.partly_written):
            try:
                well = load.read_on_node(waiting_time(group), progress)
            except BaseException:
                load.fail_on_node()  # or the others would wait for this rank's pieces
                raise
        if not well:
            raise OSError("a rank that this one reads together with has failed, and has not said why")
    return "through shared memory"


def _run_rounds(
    load: Any, group: dist.ProcessGroup, progress: Callable[[int, int], None] | None = None
) -> None:
    under_way: list[tuple[int, dist.Work, torch.Tensor, torch.Tensor]] = []
    for turn in range(load.rounds):
        with failing_together(group, load.partly_written):
            to, come_from = load.bytes_to(turn), load.bytes_from(turn)
            outgoing = torch.empty(sum(to), dtype=torch.uint8, device="cpu")
            incoming = torch.empty(
                sum(come_from), dtype=torch.uint8, device="cpu", pin_memory=load.to_devices
            )
            load.read(turn, outgoing.data_ptr())
            _place(load, under_way)
            if progress is not None:
                progress(load.bytes_done, load.bytes_in_all)
        work = dist.all_to_all_single(incoming, outgoing, come_from, to, group=group, async_op=True)
        under_way.append((turn, work, outgoing, incoming))
    with failing_together(group, load.partly_written):
        _place(load, under_way)


def _place(load: Any, under_way: list[tuple[int, dist.Work, torch.Tensor, torch.Tensor]]) -> None:
    while under_way:
        turn, work, _, incoming = under_way.pop(0)
        work.wait()
        load.place(turn, incoming.data_ptr())
