"""Ranks of one node that read together: each needed byte once from the files, the rest from each other."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from shardwright import _core
from shardwright.ranks.gone_ranks import naming_gone_ranks, timeout_of


def _this_node() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.exists() else ''}"


@contextmanager
def reading_group(cooperative: bool | dist.ProcessGroup) -> Iterator[dist.ProcessGroup | None]:
    """The ranks to read with: those of this node, or of the group that is given; None if there are no others.

    Collective over the default process group if ``cooperative`` is True. Where all ranks are of one node and that group
    takes CPU tensors, it is the one to read with; else the ranks of each node form a Gloo group, the first time, as the
    pieces travel in CPU memory. Forming one while a rank ends can take several times the group's timeout.
    """
    if not isinstance(cooperative, (bool, dist.ProcessGroup)):
        raise ValueError(f"cooperative: expected True, False or a process group, found {cooperative!r}")
    if cooperative is not True:
        alone = cooperative is False or dist.get_world_size(cooperative) == 1
        yield None if alone else cooperative
        return
    if not dist.is_initialized() or dist.get_world_size() == 1:
        yield None
        return
    nodes: list[str] = [""] * dist.get_world_size()
    with naming_gone_ranks(None, "forming groups to read"):
        dist.all_gather_object(nodes, _this_node())
        group = _group_of_node(nodes)
    yield group if dist.get_world_size(group) > 1 else None


_groups_of_nodes: dict[int, tuple[Any, list[str], dist.ProcessGroup]] = {}  # by id of the default group


def _group_of_node(nodes: list[str]) -> dist.ProcessGroup:
    world = dist.group.WORLD
    if len(set(nodes)) == 1 and any(device.type == "cpu" for device in world._device_types):
        return world
    known = _groups_of_nodes.get(id(world))
    if known is None or known[0] is not world or known[1] != nodes:
        ranks_of = {node: [r for r, at in enumerate(nodes) if at == node] for node in dict.fromkeys(nodes)}
        timeout = timeout_of(world)
        groups = {node: dist.new_group(ranks, timeout, "gloo") for node, ranks in ranks_of.items()}
        known = _groups_of_nodes[id(world)] = world, nodes, groups[_this_node()]
    return known[2]


def raise_if_any_failed(
    group: dist.ProcessGroup,
    failure: BaseException | None,
    partly_written: Callable[[], list[str]] = list,
) -> None:
    """Raises on all ranks if one brings a failure: its own where there is one, else one that names the others', and
    what they leave partly written here."""
    failed = torch.tensor([failure is not None], dtype=torch.int32)
    dist.all_reduce(failed, dist.ReduceOp.MAX, group)
    if not failed.item():
        return
    messages: list[str | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(messages, None if failure is None else str(failure), group)
    if failure is not None:
        raise failure
    lines = [
        f"rank {dist.get_global_rank(group, rank)}: {text}"
        for rank, text in enumerate(messages)
        if text is not None
    ]
    names = partly_written()
    if names:
        lines += ["partly written on this rank:", *(f"  {line}" for line in _core.grouped_names(names))]
    of_others = OSError("a rank that this one reads together with has failed:\n" + "\n".join(lines))
    vars(of_others)["partly_written"] = names
    raise of_others


def naming_gone_readers(group: dist.ProcessGroup | None) -> AbstractContextManager[None]:
    """As naming_gone_ranks, where there are others to read with."""
    return nullcontext() if group is None else naming_gone_ranks(group, "reading")


def read_together(
    plan: Any,
    catalog: Any,
    specs: list[Any],
    options: Any,
    group: dist.ProcessGroup,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """Reads what the group's ranks need in common, each byte on one rank, and hands it over by all-to-all.

    While the bytes of one round are under way, those of the next are read. In the end each rank loads what is left to
    it. Returns the core's report. A failure is raised on all ranks.

    Raises:
        ConnectionResetError: a rank has ended meanwhile, which is named.
    """
    with naming_gone_ranks(group, "reading"):
        return _read_together(plan, catalog, specs, options, group, progress)


def _read_together(
    plan: Any,
    catalog: Any,
    specs: list[Any],
    options: Any,
    group: dist.ProcessGroup,
    progress: Callable[[int, int], None] | None,
) -> Any:
    with failing_together(group):
        load = _core.CooperativeLoad(plan, catalog, specs, options)
        words = _core.content_words(catalog)
        mine = _core.encode_plan(plan, catalog, specs), load.terms, words
    ranks: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(ranks, mine, group)
    try:
        with failing_together(group):
            plans, terms, contents = zip(*ranks, strict=True)
            _core.expect_one_checkpoint(contents)
            load.begin(catalog, plans, terms, dist.get_rank(group))
        with naming_gone_ranks(group, "reading", load.partly_written):
            _run_rounds(load, group, progress)
            report = None
            with failing_together(group, load.partly_written):
                report = load.finish(progress)
    except BaseException:
        load.abandon()
        raise
    return report


def _run_rounds(
    load: Any, group: dist.ProcessGroup, progress: Callable[[int, int], None] | None = None
) -> None:
    under_way: list[tuple[int, dist.Work, torch.Tensor, torch.Tensor]] = []
    for turn in range(load.rounds):
        with failing_together(group, load.partly_written):
            to, come_from = load.bytes_to(turn), load.bytes_from(turn)
            outgoing = torch.empty(sum(to), dtype=torch.uint8)
            incoming = torch.empty(sum(come_from), dtype=torch.uint8, pin_memory=load.to_devices)
            load.read(turn, outgoing.data_ptr())
            _place(load, under_way)
            if progress is not None:
                progress(load.bytes_done, load.bytes_in_all)
        work = dist.all_to_all_single(incoming, outgoing, come_from, to, group=group, async_op=True)
        under_way.append((turn, work, outgoing, incoming))
    with failing_together(group, load.partly_written):
        _place(load, under_way)


@contextmanager
def failing_together(
    group: dist.ProcessGroup | None, partly_written: Callable[[], list[str]] = list
) -> Iterator[None]:
    """Ends on all ranks together: well, or with the failure of each that has one, which the others name."""
    failure = None
    try:
        yield
    except BaseException as error:
        if group is None:
            raise
        failure = error
    if group is not None:
        raise_if_any_failed(group, failure, partly_written)


def _place(load: Any, under_way: list[tuple[int, dist.Work, torch.Tensor, torch.Tensor]]) -> None:
    while under_way:
        turn, work, _, incoming = under_way.pop(0)
        work.wait()
        load.place(turn, incoming.data_ptr())
