"""Plans the hand-over of MiniMax M3 in MXFP8 from many trainer ranks to many engine ranks, in one process.

    python bench/refit_planning.py [--experts-over 64 --cut-over 16] [--tensor-parallel 8 --expert-parallel 32]
                                   [--every 16] [--json]

The trainer has experts over the first number of ranks and each cut over the second, all else sharded over all; the
engine is tensor parallel in all, experts over groups. What is measured is processor time, one thread, of what each rank
does by itself: the first one, which plans who encodes what; a trainer's rank, which finds what it sends to whom; an
engine's rank, which says what it needs; and any rank again, where nothing has changed. With `--every 1` it looks
at all trainer ranks, and at what an engine's rank then receives.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import shardwright as sw
from shardwright import _core

clock = time.process_time

ROWS = re.compile(
    r"\.(q_proj|k_proj|v_proj|gate_proj|up_proj|w1|w3|embed_tokens|lm_head)\.weight(_scale_inv)?$"
)
COLUMNS = re.compile(r"\.(o_proj|down_proj|w2)\.weight(_scale_inv)?$")
EXPERT = re.compile(r"\.experts\.(\d+)\.")


def row_major(shape: list[int]) -> list[int]:
    strides = [1] * len(shape)
    for d in range(len(shape) - 2, -1, -1):
        strides[d] = strides[d + 1] * max(1, shape[d + 1])
    return strides


def engine_side(
    tensors: list[Any], cuts: list[tuple[int, int | None]], rank: int, tensor_parallel: int
) -> Any:
    """What a rank of the engine is made of: memory of its own for each tensor, which is not there, as nothing is
    handed over. ``cuts``: see cuts_of."""
    side = _core.RefitSide()
    group, place = divmod(rank, tensor_parallel)
    for tensor, (of_group, cut) in zip(tensors, cuts, strict=True):
        if of_group not in (-1, group):
            continue
        shape = list(tensor.shape)
        offset = [0] * len(shape)
        if cut is not None and shape[cut] % tensor_parallel == 0:
            shape[cut] //= tensor_parallel
            offset[cut] = place * shape[cut]
        part = _core.EnginePart(tensor.name, offset, shape, [], [], [], [])
        side.add_engine_tensor(tensor.name, tensor.dtype, shape, [part], 0, row_major(shape))
    return side


def cuts_of(tensors: list[Any], expert_parallel: int, experts: int) -> list[tuple[int, int | None]]:
    """Of each tensor the group that has it, -1 for all, and the dimension along which its ranks cut it."""
    cuts = []
    for tensor in tensors:
        expert = EXPERT.search(tensor.name)
        group = int(expert[1]) * expert_parallel // experts if expert else -1
        cuts.append((group, 0 if ROWS.search(tensor.name) else 1 if COLUMNS.search(tensor.name) else None))
    return cuts


def specs_of(natives: list[Any], placements: list[Any], mesh: list[int], rank: int) -> list[Any]:
    specs = []
    coordinate = list(divmod(rank, mesh[1]))
    for native, lies in zip(natives, placements, strict=True):
        boxes = _core.local_boxes(native.shape, mesh, coordinate, lies)
        local = _core.local_shape(native.shape, mesh, coordinate, lies)
        strides = row_major(local)
        specs.append(
            _core.TensorSpec(native.fqn, native.dtype, native.shape, local, strides, 0, "cpu", boxes)
        )
    return specs


class Asked(Exception):
    """Ends planning after the first step."""


def seconds_of_first_step(side: Any, request: Any, ranks: int) -> float:
    """What a rank does to find that all ranks bring what they did, of a side that has not changed."""
    side.keep_digest(request)
    seconds = []

    def gather(_: int, mine: Callable[[], bytes]) -> list[bytes]:
        return [mine()] * ranks

    def round_of(mine: Callable[[], bytes], answers: Callable[[list[bytes]], list[bytes]]) -> bytes:
        seconds.append(clock() - begin)
        raise Asked

    begin = clock()
    with contextlib.suppress(Asked):
        _core.plan_refit(
            0, ranks, round_of, gather, side, request, _core.PlannedRefit(), 128 << 20, 1, _core.DeviceOptions(), ""
        )  # fmt: skip
    return seconds[0]


@dataclass
class Case:
    """What is planned: a checkpoint's tensors, as the trainer has them and as the engine does."""

    mesh: list[int]
    engines: int
    tensor_parallel: int
    natives: list[Any]
    placements: list[Any]
    tensors: list[Any]
    cuts: list[tuple[int, int | None]]
    request: Any

    @property
    def ranks(self) -> int:
        return self.mesh[0] * self.mesh[1]

    @property
    def message_bytes(self) -> int:  # as sw.refit has it
        return min(4 << 20, (128 << 20) // (2 * self.engines))

    def specs(self, rank: int) -> list[Any]:
        return specs_of(self.natives, self.placements, self.mesh, rank)

    def states(self) -> list[bytes]:
        """What each of the trainer's ranks says that it holds."""
        values = [
            (native.fqn, 0, "bfloat16" if native.dtype == "BF16" else "float32", "strided",
             2 if native.dtype == "BF16" else 4, 0, native.shape, lies, [])
            for native, lies in zip(self.natives, self.placements, strict=True)
        ]  # fmt: skip
        encoded = _core.encode_values(values, self.mesh, list(range(self.ranks)))
        return [_core.encode_state(rank, [(encoded, None)]) for rank in range(self.ranks)]


def case_of(options: argparse.Namespace) -> Case:
    with tempfile.TemporaryDirectory() as folder:
        sw.generate(folder, options.preset, layout_only=True)
        catalog = sw.read_catalog(folder)
        natives = _core.native_tensors(catalog, _core.weight_map(catalog))
        tensors = list(catalog.tensors)
        request = _core.ExportRequest(catalog, "auto", "automodel", "mxfp8", [], False, 5_000_000_000, {})
    shard = _core.Placement.shard
    experts = max(int(found[1]) for tensor in tensors if (found := EXPERT.search(tensor.name))) + 1
    return Case(
        [options.experts_over, options.cut_over],
        options.tensor_parallel * options.expert_parallel,
        options.tensor_parallel,
        natives,
        [[shard(0), shard(1)] if native.stacked else [shard(0), shard(0)] for native in natives],
        tensors,
        cuts_of(tensors, options.expert_parallel, experts),
        request,
    )


def plan_of_first(case: Case, states: list[bytes]) -> tuple[list[bytes], dict[str, Any]]:
    """What rank 0 tells each of the trainer's ranks to encode."""
    specs = case.specs(0)
    holdings = [_core.describe_export(specs, states[0], case.request)]
    holdings += [_core.describe_export(specs[:1], state, case.request) for state in states[1:]]
    begin = clock()
    shares = _core.plan_export(holdings, case.request, "")
    return shares, {"first_rank_seconds": clock() - begin}


def needs_of_engine(case: Case, share: bytes, planned: Any) -> tuple[list[bytes], dict[str, Any]]:
    """What each of its ranks needs; the first one plans for it."""
    first = engine_side(case.tensors, case.cuts, 0, case.tensor_parallel)
    unchanged = seconds_of_first_step(first, case.request, case.ranks + case.engines)
    begin = clock()
    needs = [_core.begin_refit_plan(share, first, case.request, case.message_bytes, planned)]
    seconds = clock() - begin
    for rank in range(1, case.engines):
        side = engine_side(case.tensors, case.cuts, rank, case.tensor_parallel)
        needs.append(_core.needs_beside(planned, side))
    return needs, {
        "engine_rank_seconds": seconds,
        "unchanged_seconds": unchanged,
        "needs_bytes": max(map(len, needs)),
    }


def sends_of_trainer(
    case: Case, shares: list[bytes], states: list[bytes], needs: list[bytes], every: int
) -> tuple[list[bytes], dict[str, Any]]:
    """What the engine's first rank is told by the trainer's, of which some plan."""
    told_first = [b""] * (case.ranks + case.engines)
    all_needs = [b""] * case.ranks + needs
    seconds, bytes_of_plan, sent = [], [], []
    for rank in range(0, case.ranks, every):
        specs = case.specs(rank)
        planned = _core.PlannedRefit()
        begin = clock()
        told = _core.plan_sends(
            rank, shares[rank], specs, states[rank], case.request, all_needs, case.message_bytes, planned
        )
        seconds.append(clock() - begin)
        told_first[rank] = told[case.ranks]
        bytes_of_plan.append(len(planned.encode()))
        sent.append(sum(planned.bytes_to.values()))
    return told_first, {
        "trainer_rank_seconds": max(seconds),
        "plan_bytes": max(bytes_of_plan),
        "trainer_ranks_looked_at": len(sent),
        "busiest_over_mean": max(sent) * len(sent) / sum(sent),
        "bytes_sent_of_mean_rank": sum(sent) // len(sent),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    case = case_of(options)
    states = case.states()
    shares, of_first = plan_of_first(case, states)
    planned = _core.PlannedRefit()
    needs, of_engine = needs_of_engine(case, shares[0], planned)
    told_first, of_trainer = sends_of_trainer(case, shares, states, needs, options.every)
    result = {
        "trainer_ranks": case.ranks,
        "engine_ranks": case.engines,
        "tensors": len(case.tensors),
        **of_first,
        **of_engine,
        **of_trainer,
    }
    if options.every == 1:
        begin = clock()
        _core.plan_receives(told_first, planned)
        result["engine_rank_receives_seconds"] = clock() - begin
        result["engine_plan_bytes"] = len(planned.encode())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="full")
    parser.add_argument("--experts-over", type=int, default=64)
    parser.add_argument("--cut-over", type=int, default=16)
    parser.add_argument("--tensor-parallel", type=int, default=8)
    parser.add_argument("--expert-parallel", type=int, default=32)
    parser.add_argument("--every", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        print(f"{name:32} {value:.3f}" if isinstance(value, float) else f"{name:32} {value:,}")


if __name__ == "__main__":
    main()
