"""Functions that the command line runs on several ranks."""

import atexit
import time

import pytest
import torch.distributed as dist
from shardwright.ranks.run import run_on_ranks

pytestmark = pytest.mark.ranks


def one_fails_and_is_the_last_to_end(rank: int) -> None:
    if rank == 1:
        atexit.register(time.sleep, 5)  # by then the other one has missed it
        raise OSError(5, "the disk is gone")
    dist.barrier()


def test_the_rank_that_failed_is_named_and_not_one_that_missed_it():
    with pytest.raises(ValueError, match="^rank 1: the disk is gone$"):
        run_on_ranks(2, one_fails_and_is_the_last_to_end)
