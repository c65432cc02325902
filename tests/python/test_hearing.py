"""Ranks that raise together: none does before the others have heard why, as it may end its process then."""

import json
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import shardwright as sw
import torch
import torch.distributed as dist
from outcomes import run_forked
from shardwright import exporting
from shardwright.dcp.sharded_writer import ShardedStorageWriter
from shardwright.ranks import together

pytestmark = pytest.mark.ranks

COLLECTIVES = ("all_gather_object", "scatter_object_list", "broadcast_object_list")
REASON = "the reason"


def refuse(*_: Any) -> Any:
    raise ValueError(REASON)


def in_together(rank: int, folder: Path) -> None:
    together.together(None, "trying", refuse if rank == 1 else str)


def in_a_round(rank: int, folder: Path) -> None:
    together.round_of_ranks(None, "trying", refuse if rank == 1 else bytes, lambda told: told)


def in_its_answers(rank: int, folder: Path) -> None:
    together.round_of_ranks(None, "trying", bytes, refuse)


def failing(rank: int, folder: Path) -> None:
    with together.failing_together(dist.group.WORLD):
        if rank == 1:
            refuse()


def saving(rank: int, folder: Path) -> None:
    if rank == 1:
        ShardedStorageWriter.write_data = refuse
    sw.save({"weight": torch.ones(4)}, folder / "saved")


def exporting_others(rank: int, folder: Path) -> None:
    """The ranks find different checkpoints at one path."""
    exporting.load_weights = lambda *_, **options: {}
    exporting.content_of = lambda source: [f"{REASON} {rank}"]
    sw.export(folder, folder / "exported")


FLOWS = {
    flow.__name__: flow
    for flow in (in_together, in_a_round, in_its_answers, failing, saving, exporting_others)
}


def raise_in(rank: int, folder: Path, flow: str, late: int, seconds: float, patience: float) -> None:
    """One of the two ranks, of which one hears everything so many seconds late. Ends its process at once."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    together._HEARING_SECONDS = patience
    heard: list[float] = []

    def hearing_late(collective: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> None:
            collective(*arguments, **options)
            time.sleep(seconds if rank == late else 0)
            heard.append(time.monotonic())

        return run

    for name in COLLECTIVES:
        setattr(dist, name, hearing_late(getattr(dist, name)))
    text = "nothing was raised"
    try:
        FLOWS[flow](rank, folder)
    except Exception as error:
        text = str(error)
    told = {"text": text, "raised": time.monotonic(), "heard": heard[-1]}
    (folder / f"{rank}.json").write_text(json.dumps(told))
    os._exit(0)


def outcome(folder: Path, *how: Any) -> list[dict[str, Any]]:
    run_forked(2, raise_in, folder, *how)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize("flow", FLOWS)
def test_nobody_raises_before_all_have_heard(flow: str, late: int, tmp_path: Path):
    ranks = outcome(tmp_path, flow, late, 0.3, 60.0)
    assert all(REASON in rank["text"] for rank in ranks), ranks
    assert min(rank["raised"] for rank in ranks) >= ranks[late]["heard"], ranks


def test_who_does_not_hear_is_not_waited_for_long(tmp_path: Path):
    ranks = outcome(tmp_path, "failing", 0, 3.0, 0.2)
    assert REASON in ranks[1]["text"]
    assert ranks[1]["raised"] < ranks[0]["heard"] - 1
