"""Loads one generated checkpoint in every way there is, in one run: a table, a JSON file and a picture.

    .venv-peers/bin/python bench/peers.py [--preset bench] [--runs 5] [--threads 2] [--out build/bench]
    .venv-peers/bin/python bench/peers.py --family qwen3_5_moe|deepseek_v3 [--runs 5] [--threads 2]
    .venv-peers/bin/python bench/peers.py --encoding nvfp4_modelopt|int4_group32|...|all [--runs 5] [--threads 2]

Each measurement has a process of its own, so that no way profits or suffers from the memory that another left behind.
In each round every way is taken once; medians over the rounds are quoted. A process loads the preset `tiny` first, to
warm the code; what it loads into is allocated and touched beforehand; and the files are in the page cache, but for the
rows called cold, before which they are dropped from it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from encoding_ways import ENCODING_WAYS, TIMED_ENCODINGS, Sample
from family_ways import FAMILY_WAYS, TIMED
from peers_tables import picture, table
from ways import ADAPTERS, WAYS, read_limit, safetensors_files

# --- one measurement, in a process of its own ------------------------------------------------------------------------


def drop_from_page_cache(path: Path) -> None:
    for file in safetensors_files(path):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def bytes_read_by_this_process() -> int:
    """By read calls, from files in the page cache or not; what is mapped into memory does not count."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))


def measure(way: str, warm_up: Path, path: Path, threads: int, cold: bool) -> dict[str, Any]:
    import torch
    from shardwright.peak_memory import measure_peak_memory
    from shardwright.report import LoadReport

    torch.set_num_threads(threads)
    prepare = (WAYS | ADAPTERS | FAMILY_WAYS | ENCODING_WAYS)[way]
    prepare(warm_up, threads)()
    load = prepare(path, threads)
    if cold:
        drop_from_page_cache(path)
    else:
        read_limit(
            path, threads
        )()  # the system may have taken them out of the page cache since they were written
    read_before = bytes_read_by_this_process()
    with measure_peak_memory() as peak:
        start, of_processors = time.perf_counter(), time.process_time()
        result = load()
        seconds, of_processors = time.perf_counter() - start, time.process_time() - of_processors
    measured: dict[str, Any] = {
        "seconds": seconds,
        "processor_seconds": of_processors,
        "memory_above_destination": peak.bytes,
        "bytes_read": bytes_read_by_this_process() - read_before,
    }
    if isinstance(result, LoadReport):
        measured |= {"bytes_needed": result.bytes_needed, "phases": result.seconds}
    elif isinstance(result, Sample):
        measured["fraction"] = result.fraction
        measured["seconds"] /= result.fraction
        measured["processor_seconds"] /= result.fraction
    elif isinstance(result, dict):
        measured["steps"] = result
    return measured


def measure_apart(way: str, warm_up: Path, path: Path, threads: int, cold: bool = False) -> dict[str, Any]:
    command = [
        sys.executable,
        __file__,
        "--measure",
        way,
        str(warm_up),
        str(path),
        str(threads),
        str(int(cold)),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{way}: exit status {done.returncode}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# --- ranks -----------------------------------------------------------------------------------------------------------


#: What ranks hold: names that end so are sharded on dimension 1, all others on dimension 0; None: each has everything.
HELD: dict[str, tuple[str, ...] | None] = {
    "its shard of dimension 0": (),
    "all": None,
    "of experts its shard of the input dimension": (".gate_and_up_projs", ".down_projs"),
    "of gates and ups its shard of the input dimension": (".gate_and_up_projs",),
}


def sharded(state_dict: dict[str, Any], ranks: int, on_dimension_1: tuple[str, ...]) -> dict[str, Any]:
    """Empty DTensors of the same dtypes and shapes."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, empty

    mesh = init_device_mesh("cpu", (ranks,))

    def made(name: str, whole: torch.Tensor) -> Any:
        placement = Shard(int(name.endswith(on_dimension_1))) if whole.dim() else Replicate()
        return empty(whole.shape, dtype=whole.dtype, device_mesh=mesh, placements=[placement])

    return {name: made(name, whole) for name, whole in state_dict.items()}


def load_as_rank(
    rank: int, ranks: int, path: str, held: str, options: dict[str, Any], runs: int, out: str
) -> None:
    """Loads what this rank holds on one thread, `runs` times; rank 0 writes seconds, and bytes of all, to `out`."""
    import shardwright as sw
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    on_dimension_1 = HELD[held] if ranks > 1 else None
    state_dict = sw.empty_state_dict(path)
    if on_dimension_1 is not None:
        state_dict = sharded(state_dict, ranks, on_dimension_1)
    for tensor in state_dict.values():
        (tensor if on_dimension_1 is None else tensor.to_local()).fill_(1)
    seconds = []
    for _ in range(runs + 1):  # the first warms the code
        dist.barrier()
        start = time.perf_counter()
        report = sw.load(state_dict, path, threads=1, **options)
        dist.barrier()
        seconds.append(time.perf_counter() - start)
    figures: list[Any] = [None] * ranks
    dist.all_gather_object(figures, (report.bytes_needed, report.bytes_read, report.bytes_received))
    if rank == 0:
        needed, read, received = zip(*figures, strict=True)
        found = {"bytes_needed": needed, "bytes_read": read, "bytes_received": received}
        Path(out).write_text(json.dumps({"seconds": seconds[1:]} | found))


def measure_ranks(path: Path, ranks: int, runs: int, held: str, **options: Any) -> dict[str, Any]:
    from shardwright.ranks.run import run_on_ranks

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "figures.json")
        run_on_ranks(ranks, load_as_rank, ranks, str(path), held, options, runs, str(out))
        figures = json.loads(out.read_text())
    return {"ranks": ranks, "held": held} | figures | {"median": statistics.median(figures["seconds"])}


# --- reading cold files, with nothing of ours ------------------------------------------------------------------------


def dd(path: Path, threads: int, flags: list[str], block: str) -> float:
    def read(file: Path) -> None:
        subprocess.run(
            ["dd", f"if={file}", "of=/dev/null", f"bs={block}", *flags], check=True, capture_output=True
        )

    drop_from_page_cache(path)
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, safetensors_files(path)))
    return time.perf_counter() - start


def fio(path: Path, engine: str, direct: int, jobs: int, depth: int) -> float | None:
    """Seconds to read every file once; None without fio. (It cannot cut files among jobs: each job has files.)"""
    files = safetensors_files(path)
    arguments = ["fio", "--readonly", "--output-format=json", "--rw=read", "--bs=1M", "--invalidate=1"]
    arguments += [f"--ioengine={engine}", f"--direct={direct}", f"--iodepth={depth}", "--thread"]
    for job in range(jobs):
        arguments += [f"--name=job{job}", "--filename=" + ":".join(str(file) for file in files[job::jobs])]
    try:
        drop_from_page_cache(path)
        done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return max(job["read"]["runtime"] for job in json.loads(done.stdout)["jobs"]) / 1000


def read_cold(path: Path) -> dict[str, float]:
    """Each setting's seconds; the best of them is what a cold load is held against."""
    seconds: dict[str, float] = {}
    for threads in (1, 2, 5):
        for flags in ([], ["iflag=direct"]):
            for block in ("1M", "16M"):
                name = " ".join(["dd", f"x{threads}", f"bs={block}", *flags])
                seconds[name] = dd(path, threads, flags, block)
    for engine, direct, jobs, depth in (
        ("psync", 0, 2, 1),
        ("io_uring", 1, 2, 16),
        ("io_uring", 1, 4, 8),
    ):
        measured = fio(path, engine, direct, jobs, depth)
        if measured is not None:
            seconds[f"fio {engine} direct={direct} jobs={jobs} depth={depth}"] = measured
    return seconds


# --- all together ----------------------------------------------------------------------------------------------------


def measure_all(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    import shardwright as sw

    def made(name: str, preset: str, layers: int = 0) -> Path:
        path = folder / name
        sw.generate(path, preset, layers=layers)
        return path

    warm_up, path = made("tiny", "tiny"), made(options.preset, options.preset)
    sizes = {"small": made("of_small", "small"), options.preset: path}
    if options.preset == "bench":
        sizes["twice bench"] = made("twice", "bench", layers=18)
    os.sync()  # nothing is to be written back while we measure

    def told(what: str) -> None:
        print(f"# {what}", file=sys.stderr, flush=True)

    rounds: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS if way not in options.without}
    for turn in range(options.runs):
        for way, found in rounds.items():
            told(f"round {turn + 1} of {options.runs}: {way}")
            found.append(measure_apart(way, warm_up, path, options.threads))

    told("sizes")
    scaling: dict[str, Any] = {}
    for name, place in sizes.items():
        found = [measure_apart("shardwright", warm_up, place, options.threads) for _ in range(options.runs)]
        scaling[name] = {
            "checkpoint_bytes": bytes_of(place),
            "median": statistics.median(one["seconds"] for one in found),
            "memory_above_destination": max(one["memory_above_destination"] for one in found),
        }

    told("ranks")
    alone, *others = HELD
    ranks = [measure_ranks(path, n, options.runs, alone) for n in (1, 2)]
    ranks += [
        measure_ranks(path, 2, options.runs, held, cooperative=cooperative) | {"cooperative": cooperative}
        for held in others
        for cooperative in (False, True)
    ]

    told("cold")
    cold_ours, cold_read = [], []
    for _ in range(options.runs):
        cold_ours.append(measure_apart("shardwright", warm_up, path, options.threads, cold=True)["seconds"])
        cold_read.append(read_cold(path))
    settings = {name: statistics.median(one[name] for one in cold_read) for name in cold_read[0]}
    best = min(settings, key=lambda name: settings[name])

    ways = {way: in_short(found) for way, found in rounds.items()}
    return {
        "machine": machine(),
        "preset": options.preset,
        "threads": options.threads,
        "runs": options.runs,
        "checkpoint_bytes": bytes_of(path),
        "ways": ways,
        "scaling": scaling,
        "ranks_with_one_thread_each": ranks,
        "cold": {
            "shardwright": {"seconds": sorted(cold_ours), "median": statistics.median(cold_ours)},
            "reading": settings,
            "best_reading": best,
        },
    }


#: What a family's load is held against.
BESIDE_OURS = [*FAMILY_WAYS, "safetensors copy, raw", "read limit", "fill limit"]


def measure_family(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    import shardwright as sw

    family = TIMED[options.family]
    warm_up, path = folder / "small", folder / options.family
    sw.generate(warm_up, family=options.family, form=family.form, config=family.always)
    sw.generate(path, family=options.family, form=family.form, config=family.config | family.always)
    os.sync()
    rounds = measure_in_rounds(["shardwright", *BESIDE_OURS], warm_up, path, options)
    ranks = [
        measure_ranks(path, 2, options.runs, held, cooperative=cooperative) | {"cooperative": cooperative}
        for held in HELD
        if HELD[held] is not None
        for cooperative in (False, True)
    ]
    return {
        "machine": machine(),
        "family": options.family,
        "form": family.form,
        "threads": options.threads,
        "runs": options.runs,
        "checkpoint_bytes": bytes_of(path),
        "ways": {way: in_short(found) for way, found in rounds.items()},
        "ranks_with_one_thread_each": ranks,
    }


def measure_in_rounds(
    ways: list[str], warm_up: Path, path: Path, options: argparse.Namespace
) -> dict[str, list[dict[str, Any]]]:
    rounds: dict[str, list[dict[str, Any]]] = {way: [] for way in ways if way not in options.without}
    for turn in range(options.runs):
        for way, found in rounds.items():
            print(f"# round {turn + 1} of {options.runs}: {way}", file=sys.stderr, flush=True)
            found.append(measure_apart(way, warm_up, path, options.threads))
    return rounds


def measure_encoding(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    import shardwright as sw

    timed = TIMED_ENCODINGS[options.encoding]
    warm_up, path = folder / "tiny", folder / options.encoding
    sw.generate(warm_up, "tiny", **timed.generated)
    sw.generate(path, options.preset, **timed.generated)
    os.sync()
    rounds = measure_in_rounds(
        ["shardwright", timed.tool, "read limit", "fill limit"], warm_up, path, options
    )
    return {
        "machine": machine(),
        "encoding": options.encoding,
        "stored": sw._core.stored_alike(sw.read_catalog(path)),
        "preset": options.preset,
        "threads": options.threads,
        "runs": options.runs,
        "load_average": os.getloadavg(),
        "checkpoint_bytes": bytes_of(path),
        "ways": {way: in_short(found) for way, found in rounds.items()},
    }


def measure_each_encoding(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    found = {}
    for name in TIMED_ENCODINGS:
        print(f"# {name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            one = argparse.Namespace(**vars(options) | {"encoding": name})
            found[name] = measure_encoding(Path(place), one) | {"tool": TIMED_ENCODINGS[name].tool}
    return {"machine": machine(), "threads": options.threads, "runs": options.runs, "encodings": found}


def in_short(found: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "seconds": sorted(one["seconds"] for one in found),
        "median": statistics.median(one["seconds"] for one in found),
        "processor_seconds": statistics.median(one["processor_seconds"] for one in found),
        "memory_above_destination": max(one["memory_above_destination"] for one in found),
        "bytes_read": statistics.median(one["bytes_read"] for one in found),
        "fraction": min(one.get("fraction", 1) for one in found),
    }


def bytes_of(path: Path) -> int:
    return sum(file.stat().st_size for file in safetensors_files(path))


def machine() -> str:
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{len(os.sched_getaffinity(0))} cores of {model}, {memory:.0f} GiB, Linux {platform.release()}"


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        way, warm_up, path, threads, cold = sys.argv[2:]
        print(json.dumps(measure(way, Path(warm_up), Path(path), int(threads), cold == "1")))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="bench")
    parser.add_argument(
        "--family", choices=[*TIMED], help="another family, large enough, instead of a preset"
    )
    parser.add_argument(
        "--encoding",
        choices=[*TIMED_ENCODINGS, "all"],
        help="a checkpoint in this encoding, beside its own tool; all: one after another, in one table",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--without", nargs="*", default=[], metavar="WAY", help="ways to leave out")
    parser.add_argument("--folder", type=Path, help="where the checkpoints go; default: a temporary folder")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="for peers.json, .md and .png")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measured = measure_all
        if options.family:
            measured = measure_family
        elif options.encoding:
            measured = measure_each_encoding if options.encoding == "all" else measure_encoding
        result = measured(Path(folder), options)
    chosen = options.family or {"all": "encodings"}.get(options.encoding, options.encoding)
    name = f"peers_{chosen}" if chosen else "peers"
    (options.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / f"{name}.md").write_text(table(result) + "\n")
    if not chosen:
        picture(result, options.out / "peers.png")
    print(table(result))


if __name__ == "__main__":
    main()
