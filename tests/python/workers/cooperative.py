"""Runs on ranks: loads with `cooperative`, each compared with the reference on every rank.

The environment's COOPERATIVE_WAY says how bytes are handed on: in "memory", or over "c10d" as if each rank were a node.
"""

import json
import os
import resource
import shutil
import tempfile
from itertools import product
from pathlib import Path

import reference
import shardwright as sw
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checkpoints import allows_direct_reads
from checks import run_checks
from dcp_load import check_sharded
from destinations import Destination
from placements import is_grouped
from shardwright import _core
from shardwright.ranks import cooperation
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

IN_MEMORY = os.environ["COOPERATIVE_WAY"] == "memory"
HOW = "node" if IN_MEMORY else "job"
if not IN_MEMORY:
    cooperation._this_node = lambda: f"node {dist.get_rank()}"


def of_all_ranks(value: int) -> list[int]:
    """So that a check fails on all ranks or on none: they go on to the next together."""
    values = [0] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def file_bytes(path: str) -> int:
    return sum(stored.end - stored.begin for stored in sw.read_catalog(path).tensors)


def replicas(path: str, uneven: str) -> None:
    """All ranks hold all: each byte is read once on the node, by ranks that share the work."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for checkpoint in (path, uneven):
        everything = file_bytes(checkpoint)
        report = check_sharded(checkpoint, lambda fqn, tensor: (mesh, [Replicate()]), cooperative=HOW)
        read, received = of_all_ranks(report.bytes_read), of_all_ranks(report.bytes_received)
        assert sum(read) == everything, (read, everything)
        assert [r + c for r, c in zip(read, received, strict=True)] == [everything] * len(read)
        assert report.cooperation == (
            "through shared memory" if IN_MEMORY else "over c10d: they are of several nodes"
        )
        if IN_MEMORY:  # whoever has time reads
            continue
        largest = max(stored.end - stored.begin for stored in sw.read_catalog(checkpoint).tensors)
        assert max(read) - min(read) <= 2 * largest, read


def columns(path: str, uneven: str) -> None:
    """Shards on the input dimension: rows are read whole, once, and their parts handed out."""
    world = dist.get_world_size()
    everyone = init_device_mesh("cpu", (world,))
    experts = init_device_mesh("cpu", (1, world), mesh_dim_names=("ep", "ep_shard"))
    for checkpoint in (path, uneven):

        def sharding(fqn, tensor):
            return (
                (experts, [Shard(0), Shard(1)]) if is_grouped(fqn) else (everyone, [Shard(tensor.dim() - 1)])
            )

        alone = sum(of_all_ranks(check_sharded(checkpoint, sharding).bytes_read))
        report = check_sharded(checkpoint, sharding, cooperative=HOW)
        together = sum(of_all_ranks(report.bytes_read))
        assert together <= 1.01 * file_bytes(checkpoint) < alone, (together, file_bytes(checkpoint), alone)


def disjoint_rows(path: str, uneven: str) -> None:
    """Where ranks need different rows, there is nothing to hand over."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def sharding(fqn, tensor):
        return (mesh, [Shard(0)]) if tensor.dim() >= 2 else None

    alone = of_all_ranks(check_sharded(path, sharding).bytes_read)
    report = check_sharded(path, sharding, cooperative=dist.group.WORLD)
    assert sum(of_all_ranks(report.bytes_read)) == file_bytes(path) < sum(alone)  # vectors are read once
    assert sum(of_all_ranks(report.bytes_received)) == sum(alone) - file_bytes(path)


def into_devices(path: str, uneven: str) -> None:
    """Tensors on the GPU, where there is one, beside others in CPU memory."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for checkpoint in (path, uneven):
        expected = reference.native(checkpoint)
        state = {
            fqn: torch.zeros_like(tensor, device=device if n % 3 else "cpu")
            for n, (fqn, tensor) in enumerate(expected.items())
        }
        report = sw.load(state, checkpoint, cooperative=HOW)
        assert [fqn for fqn in expected if not reference.same(state[fqn].cpu(), expected[fqn])] == []
        assert sum(of_all_ranks(report.bytes_received)) > 0
        assert report.devices == int(device.type == "cuda")


def past_the_page_cache(path: str, uneven: str) -> None:
    """Files are read as without cooperation, within the staging given, and the trace tells of both phases."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    rank = dist.get_rank()
    with tempfile.TemporaryDirectory() as folder:
        for staging in (None, 1 << 20):
            report = check_sharded(
                path,
                lambda fqn, tensor: (mesh, [Replicate() if tensor.dim() % 2 else Shard(0)]),
                cooperative=HOW,
                direct_io=True,
                staging_bytes=staging,
                trace=f"{folder}/trace.json",
            )
            direct = report.files if allows_direct_reads(Path(path)) else 0
            assert report.files_direct == direct and report.files > 0, report
            assert staging is None or report.peak_staging_bytes <= staging, report
            events = json.loads(Path(folder, f"trace.rank{rank}.json").read_text())["traceEvents"]
            threads = {
                event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"
            }
            done = [event for event in events if event["ph"] == "X"]
            assert {event["pid"] for event in events} == {rank}
            named = {threads[event["tid"]].split()[0] for event in done}
            assert named == {"together", "load"} | (set() if IN_MEMORY else {"exchange"}), named
            received = sum(event["args"]["bytes"] for event in done if event["name"] == "exchange")
            assert received == (0 if IN_MEMORY else report.bytes_received), (received, report)
            assert max(event["ts"] + event["dur"] for event in done) <= report.seconds["total"] * 1e6


def what_is_cached_is_read_apart_and_nothing_is_left(path: str, uneven: str) -> None:
    """Of a node; a process group is taken at its word."""
    for file in Path(path).iterdir():
        file.read_bytes()  # into the page cache
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    everything = file_bytes(path)
    for how, times, words in (
        (
            True,
            dist.get_world_size() if IN_MEMORY else 1,
            "each rank by itself: the files are in the page cache",
        ),
        (
            dist.group.WORLD,
            1,
            "through shared memory" if IN_MEMORY else "over c10d: they are of several nodes",
        ),
    ):
        descriptors = os.listdir("/proc/self/fd")
        report = check_sharded(path, lambda fqn, tensor: (mesh, [Replicate()]), cooperative=how)
        if how is not True or IN_MEMORY:
            read = sum(of_all_ranks(report.bytes_read))
            assert (read, report.cooperation) == (times * everything, words), (
                read,
                everything,
                report.cooperation,
            )
        assert not IN_MEMORY or len(os.listdir("/proc/self/fd")) == len(descriptors)  # Gloo opens connections
        assert "memfd:shardwright" not in Path("/proc/self/maps").read_text()


def memory_that_is_refused(path: str, uneven: str) -> None:
    """The bytes go over c10d then, which the report says."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        report = check_sharded(path, lambda fqn, tensor: (mesh, [Replicate()]), cooperative=HOW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sum(of_all_ranks(report.bytes_read)) == file_bytes(path)
    words = "shared memory: the system has no " if IN_MEMORY else "they are of several nodes"
    assert report.cooperation.startswith("over c10d: ") and words in report.cooperation, report.cooperation
    assert report.cooperation in str(report)


def address_space_that_is_refused(path: str, uneven: str) -> None:
    """As of a process that may take no more (ulimit -v), which is another error to Python."""
    usual = _core.SharedMemory

    class Limited(usual):
        @staticmethod
        def create(count):
            limits = resource.getrlimit(resource.RLIMIT_AS)
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (taken, limits[1]))
            try:
                return usual.create(count)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, limits)

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    _core.SharedMemory = Limited
    try:
        report = check_sharded(path, lambda fqn, tensor: (mesh, [Replicate()]), cooperative=HOW)
    finally:
        _core.SharedMemory = usual
    words = "shared memory: cannot map " if IN_MEMORY else "they are of several nodes"
    assert report.cooperation.startswith("over c10d: ") and words in report.cooperation, report.cooperation


def a_rank_that_cannot_read(path: str, uneven: str) -> None:
    """All ranks hear of it, by rank, and none waits for ever."""
    last = dist.get_world_size() - 1

    class Broken(_core.CooperativeLoad):
        def read(self, turn, outgoing):
            raise OSError(5, "the disk is gone")

        def read_on_node(self, timeout, progress=None):
            raise OSError(5, "the disk is gone")

    expected = reference.native(path)
    state = {fqn: torch.zeros_like(whole) for fqn, whole in expected.items()}
    usual = _core.CooperativeLoad
    if dist.get_rank() == last:
        _core.CooperativeLoad = Broken
    try:
        sw.load(state, path, cooperative=HOW)
    except OSError as error:
        assert "the disk is gone" in str(error), error
        assert dist.get_rank() == last or f"rank {last}" in str(error), error
    else:
        raise AssertionError("not refused")
    finally:
        _core.CooperativeLoad = usual


def a_rank_that_cannot_plan(path: str, uneven: str) -> None:
    expected = reference.native(path)
    destinations = {fqn: Destination(whole.shape, whole.dtype) for fqn, whole in expected.items()}
    last = dist.get_world_size() - 1
    if dist.get_rank() == last:
        destinations["model.norm.weight"] = Destination((3,), torch.float32)
    try:
        sw.load({fqn: destination.tensor for fqn, destination in destinations.items()}, path, cooperative=HOW)
    except (sw.PlanError, OSError) as error:
        assert "model.norm.weight" in str(error), error
        assert dist.get_rank() == last or f"rank {last}" in str(error), error
    else:
        raise AssertionError("not refused")
    assert [fqn for fqn in destinations if not destinations[fqn].untouched()] == []


def a_rank_whose_bytes_are_damaged(path: str, uneven: str) -> None:
    """Found before ranks read together, by one of them alone."""
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    mesh = init_device_mesh("cpu", (last + 1,))
    local = torch.full((100,), float(rank))
    state = {"w": DTensor.from_local(local, mesh, [Shard(0)], run_check=False)}
    folder = [tempfile.mkdtemp() if rank == 0 else None]
    dist.broadcast_object_list(folder)
    where = Path(folder[0], "saved")
    sw.save(state, where)
    if rank == last:
        (file,) = where.glob(f"rank-{last:05d}-00000-*")
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    dist.barrier()
    for together, through_dcp in product((HOW, dist.group.WORLD), (False, True)):
        local.fill_(-1)
        try:
            if through_dcp:
                reader = sw.ShardedStorageReader(where, verify=True, cooperative=together)
                dcp.load(state, storage_reader=reader)
            else:
                sw.load(state, where, verify=True, cooperative=together)
        except (sw.CheckpointFormatError, OSError, CheckpointException) as error:
            assert f"rank-{last:05d}-00000-" in str(error) and ': "w" is damaged' in str(error), error
            assert through_dcp or rank == last or f"rank {last}: " in str(error), error
        else:
            raise AssertionError("not refused")
        assert (local == -1).all()
    dist.barrier()
    if rank == 0:
        shutil.rmtree(folder[0])


def scaled_weights_resume_as_they_are_stored(path: str, uneven: str) -> None:
    """FP8 into FP8, with scales beside it that nobody asks to be applied."""
    folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(folder)
    weight = torch.arange(256.0 * 256).remainder(240).reshape(256, 256).to(torch.float8_e4m3fn)
    saved = {
        "m.weight": weight,
        "m.weight_scale_inv": torch.rand(2, 2, generator=torch.Generator().manual_seed(1)),
    }
    dcp.save(saved, storage_writer=sw.ShardedStorageWriter(folder[0]))
    state = {name: torch.zeros_like(tensor) for name, tensor in saved.items()}
    dcp.load(
        state, storage_reader=sw.ShardedStorageReader(folder[0], cooperative=HOW), planner=sw.LoadPlanner()
    )
    assert torch.equal(state["m.weight"].view(torch.uint8), weight.view(torch.uint8))
    assert torch.equal(state["m.weight_scale_inv"], saved["m.weight_scale_inv"])
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(folder[0])


CHECKS = [
    replicas,
    columns,
    disjoint_rows,
    into_devices,
    past_the_page_cache,
    what_is_cached_is_read_apart_and_nothing_is_left,
    memory_that_is_refused,
    address_space_that_is_refused,
    a_rank_that_cannot_read,
    a_rank_that_cannot_plan,
    a_rank_whose_bytes_are_damaged,
    scaled_weights_resume_as_they_are_stored,
]


if __name__ == "__main__":
    run_checks(CHECKS)
