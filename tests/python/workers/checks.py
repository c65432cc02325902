"""Runs the checks of a worker on this rank and gathers what they found wrong."""

import json
import os
import sys
import traceback
from collections.abc import Callable

import torch.distributed as dist


def run_checks(checks: list[Callable[[str, str], None]]) -> None:
    """Calls each check with the two checkpoints that the command line names; rank 0 writes the outcome."""
    path, uneven, result = sys.argv[1:]
    dist.init_process_group("gloo")
    outcome = {}
    for check in checks:
        try:
            check(path, uneven)
            failure = ""
        except BaseException:  # a CheckpointException is no Exception
            failure = f"rank {dist.get_rank()}: {traceback.format_exc()}"
        failures: list[str] = [""] * dist.get_world_size()
        dist.all_gather_object(failures, failure)
        outcome[check.__name__] = "\n".join(filter(None, failures))
    if dist.get_rank() == 0:
        with open(result, "w") as file:
            json.dump(outcome, file)
    dist.destroy_process_group()
    # Gloo's thread may drop the last reference to a tensor while the interpreter ends, which aborts it (torch 2.13).
    sys.stdout.flush()
    os._exit(0)
