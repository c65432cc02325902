"""A folder for what the ranks of a worker write and read together."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist


@contextlib.contextmanager
def shared_folder() -> Iterator[Path]:
    """A new folder that all ranks see, until all are done with it."""
    with contextlib.ExitStack() as stack:
        name = [stack.enter_context(tempfile.TemporaryDirectory()) if dist.get_rank() == 0 else ""]
        dist.broadcast_object_list(name)
        yield Path(name[0])
        dist.barrier()
