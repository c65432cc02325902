"""Ends processes at random moments of saves, exports and loads, and looks at what is left.

    python tests/python/kill_flows.py [--moments 20] [--ranks 1 2] [--flows save steps ...] [--signals KILL TERM INT]

Each time the checkpoint of before or a newer one must be there, whole and of one save; files of strangers beside, in
and linked from its directory must be as they were; and the next save must work and leave nothing of a dead one. Of
several ranks, one is ended or all are, in turns; those that are left have to end by themselves.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import shardwright as sw
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from mutations import protobuf_fields
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

MANIFEST, METADATA = "shardwright.manifest", ".metadata"
SIZE = 200_000
STRANGERS = {
    "README.md": "by hand",
    "runs/notes.txt": "by hand",
    "runs/step-00000001/trainer.pt": "of a trainer",
    "checkpoint/optimizer.pt": "of a trainer",
    "export/README.md": "by hand",
    "elsewhere/far.safetensors": "of somebody",
}


def tensors(value: float, names: list[str]) -> dict[str, Any]:
    """Each rank holds SIZE elements of each tensor."""
    if not dist.is_initialized():
        return {name: torch.full((SIZE,), value) for name in names}
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {
        name: DTensor.from_local(torch.full((SIZE,), value), mesh, [Shard(0)], run_check=False)
        for name in names
    }


def state(value: float) -> dict[str, Any]:
    return {**tensors(value, [f"t{i}" for i in range(4)]), "step": value}


def lora(value: float) -> dict[str, torch.Tensor]:
    module = "model.layers.0.self_attn.o_proj"
    return {
        f"{module}.lora_A.weight": torch.full((4, 6000), value),
        f"{module}.lora_B.weight": torch.full((6000, 4), value),
    }


def save_lora(path: Path, value: float) -> None:
    sw.save_lora(lora(value), path, alpha=8, model="minimax_m3")


def one_value(values: set[float]) -> float:
    assert len(values) == 1, values
    return values.pop()


def named_in(path: Path) -> list[str]:
    """The files that a checkpoint's manifest names, read without the code under test."""

    def values(message: Any, of: int) -> list[Any]:
        return [value for number, _, value in protobuf_fields(message) if number == of]

    (manifest,) = values((path / MANIFEST).read_bytes(), 1)
    return [name.decode() for file in values(manifest, 3) for name in values(file, 1)]


def of_sharded(path: Path) -> float:
    problems = sw.verify(path).problems
    if (path / ".shardwright.saving").exists():  # torch's metadata gets its name just before the manifest
        problems = [line for line in problems if METADATA not in line]
    assert not problems, problems
    elements = SIZE * len({name[:10] for name in named_in(path)} - {METADATA})
    loaded: dict = {f"t{i}": torch.zeros(elements) for i in range(4)} | {"step": 0.0}
    sw.load(loaded, path, verify=True)
    return one_value(
        {loaded["step"]} | {value.item() for i in range(4) for value in loaded[f"t{i}"].unique()}
    )


def of_either(path: Path) -> float:
    """What our readers find; if torch finds a checkpoint, it is as whole, of before or the new one."""
    value = of_sharded(path)
    if (path / METADATA).exists():
        stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
        found = {f"t{i}": torch.zeros(stored[f"t{i}"].size) for i in range(4)} | {"step": 0.0}
        dcp.load(found, storage_reader=dcp.FileSystemReader(path), no_dist=True)
        for_torch = one_value({found["step"]} | {v.item() for i in range(4) for v in found[f"t{i}"].unique()})
        assert abs(for_torch - value) <= 1, (for_torch, value)
    return value


def of_latest(path: Path) -> float:
    latest = sw.latest(path)
    assert latest is not None
    return of_sharded(latest)


def of_export(path: Path) -> float:
    assert not sw.verify(path).problems, sw.verify(path).problems
    catalog = sw.read_catalog(path)
    found = {name: tensor for file in catalog.files for name, tensor in load_file(path / file.name).items()}
    assert len(found) == 4
    return one_value({value.item() for tensor in found.values() for value in tensor.unique()})


def of_adapter(path: Path) -> float:
    found = load_file(path / "adapter_model.safetensors")
    return one_value({value.item() for tensor in found.values() for value in tensor.unique()})


def save_asynchronously(path: Path, value: float) -> None:
    pending = sw.save(state(value), path, asynchronous=True)
    assert isinstance(pending, sw.PendingSave)
    pending.wait()


#: Name → (folder, what is done, what is then there).
FLOWS: dict[str, tuple[str, Callable[[Path, float], Any], Callable[[Path], float]]] = {
    "save": ("checkpoint", lambda path, value: sw.save(state(value), path), of_sharded),
    "steps": (
        "runs",
        lambda path, value: sw.save(state(value), path, step=int(value) % 7, keep_last=2),
        of_latest,
    ),
    "formats": (
        "both",
        lambda path, value: sw.save(state(value), path, format="safetensors" if value % 3 == 2 else "torch"),
        of_either,
    ),
    "async": ("checkpoint", save_asynchronously, of_sharded),
    "export": ("export", lambda path, value: sw.export(tensors(value, list("abcd")), path), of_export),
    "lora": ("adapter", save_lora, of_adapter),
    "load": ("checkpoint", lambda path, value: load(path), of_sharded),
}


def load(path: Path) -> None:
    loaded = state(-1.0)
    sw.load(loaded, path)


def for_ever(flow: str, rank: int, ranks: int, folder: Path, path: Path, begin: int) -> None:
    """One rank: writes ever newer values, and says when the first one is there."""
    torch.set_num_threads(1)
    if ranks > 1:
        store = dist.FileStore(str(folder / "store"), ranks)
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
        )
    for value in range(begin, begin + 100_000):
        FLOWS[flow][1](path, float(value))
        (folder / f"ready_{rank}").touch()  # the first one takes longer


def forked(work: Callable[..., None], *arguments: Any) -> int:
    """A process that does the work; torch has been imported by then. What it says goes nowhere."""
    child = os.fork()
    if child != 0:
        return child
    status = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        work(*arguments)
        status = 0
    finally:
        os._exit(status)


def ended(process: int, seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if os.waitpid(process, os.WNOHANG)[0] != 0:
            return True
        time.sleep(0.005)
    return False


def strangers(root: Path) -> dict[str, tuple[bytes, int]]:
    return {name: ((root / name).read_bytes(), (root / name).stat().st_mtime_ns) for name in STRANGERS}


def leftovers(root: Path) -> list[str]:
    """What no manifest of a whole checkpoint, no index and no stranger names, and folders of saves."""
    named = set(STRANGERS) | {"checkpoint/elsewhere"}
    for manifest in root.rglob(MANIFEST):
        folder = manifest.parent
        if not sw.verify(folder).problems:
            named |= {str((folder / name).relative_to(root)) for name in [MANIFEST, *named_in(folder)]}
    if (root / "export" / "model.safetensors.index.json").exists():
        files = [file.name for file in sw.read_catalog(root / "export").files]
        named |= {
            f"export/{name}" for name in [*files, "model.safetensors.index.json", "shardwright.checksums"]
        }
    named |= {"adapter/adapter_model.safetensors", "adapter/adapter_config.json"}
    there = {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if not path.is_dir() or path.is_symlink() or path.name.startswith(".")
    }
    return sorted(there - named)


def one_moment(
    flow: str,
    root: Path,
    ranks: int,
    number: signal.Signals,
    all_of_them: bool,
    wait: float,
    choice: random.Random,
) -> str:
    """Ends, and looks. Says whether it was in the middle of something."""
    name, act, value_at = FLOWS[flow]
    path = root / name
    before = value_at(path)
    untouched = strangers(root)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        children = [
            forked(for_ever, flow, rank, ranks, folder, path, int(before) + 1) for rank in range(ranks)
        ]
        try:
            while not all((folder / f"ready_{rank}").exists() for rank in range(ranks)):
                for child in children:
                    ended_now = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                    assert ended_now is None, "a rank ended before it had saved"
                time.sleep(0.001)
            time.sleep(wait)
            victims = children if all_of_them else [choice.choice(children)]
            for child in victims:
                os.kill(child, number)
            for child in victims:
                assert ended(child, 30), f"{flow}, {ranks} ranks: a process does not end after {number.name}"
            for child in list(set(children) - set(victims)):
                assert ended(child, 90), "a rank waits for ever for one that is gone"
            children = []
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
    in_the_middle = any(root.rglob(".shardwright.saving"))
    after = value_at(path)
    assert after >= before + (flow != "load"), (after, before)
    assert strangers(root) == untouched
    if flow != "load":
        act(path, after + 1)
        assert value_at(path) == after + 1
        assert strangers(root) == untouched
    assert leftovers(root) == [], leftovers(root)
    return "in the middle" if in_the_middle else "between"


def prepared(root: Path) -> Path:
    for name, text in STRANGERS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "checkpoint" / "elsewhere").symlink_to(root / "elsewhere")
    for name, act, _ in FLOWS.values():
        if act is not FLOWS["load"][1]:
            act(root / name, 0.0)
    return root


def kill(
    flows: list[str], ranks: list[int], signals: list[signal.Signals], moments: int, seed: int, folder: Path
) -> Counter[str]:
    choice = random.Random(seed)
    found: Counter[str] = Counter()
    for flow in flows:
        for count in ranks:
            if flow in ("lora", "load") and count > 1:
                continue
            for number in signals:
                root = prepared(folder / f"{flow}_{count}_{number.name}")
                for moment in range(moments):
                    all_of_them = count == 1 or moment % 2 == 1
                    wait = choice.uniform(0, 0.08 if count == 1 else 0.15)
                    outcome = one_moment(flow, root, count, number, all_of_them, wait, choice)
                    found[f"{flow}, {count} ranks, {number.name}: {outcome}"] += 1
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--moments", type=int, default=20, help="of each flow, number of ranks and signal")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--flows", nargs="+", default=list(FLOWS))
    parser.add_argument("--signals", nargs="+", default=["KILL", "TERM", "INT"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        signals = [signal.Signals[f"SIG{name}"] for name in options.signals]
        outcomes = kill(options.flows, options.ranks, signals, options.moments, options.seed, Path(directory))
    for what, count in sorted(outcomes.items()):
        print(f"{what}: {count}")
    print(f"{sum(outcomes.values())} kills, nothing lost")
