"""Runs on ranks: what ranks hand over together, compared with an export's files.

torchrun --nproc-per-node N pieces.py CHECKPOINT UNEVEN_CHECKPOINT RESULT.json
"""

import random
import sys
import threading
from pathlib import Path

import fake_vllm
import shardwright as sw
import torch
import torch.distributed as dist
from checks import run_checks
from export import shared_folder
from handed_over import bits, exported, put_together, sharded_over, wrong_tensors
from shardwright.handover.pieces import Described
from shardwright.handover.whole_tensors import whole_tensors
from shardwright.integrations import sglang, vllm
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard

QUANTIZATIONS = ["mxfp8", "template", None]


def shards_of(path: str, seed: int = 5) -> dict[str, torch.Tensor]:
    whole = sw.empty_state_dict(path)
    sw.load(whole, path)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    chosen = random.Random(seed)
    placements = {
        name: [chosen.choice([Replicate(), *map(Shard, range(tensor.dim()))])]
        for name, tensor in whole.items()
    }
    return sharded_over(whole, mesh, placements)


def refused(work) -> str:
    """What each rank is told, which must be the same."""
    told = ["nothing"] * dist.get_world_size()
    mine = "nothing"
    try:
        work()
    except (sw.PlanError, ValueError) as error:
        mine = f"{type(error).__name__}: {error}"
    dist.all_gather_object(told, mine)
    assert len(set(told)) == 1, told
    return mine


def pieces_of_all_ranks_are_an_export(path: str, uneven: str) -> None:
    for source in (path, uneven):
        state = shards_of(source)
        for quantization in QUANTIZATIONS:
            options = {"quantization": quantization, "template": source, "bucket_bytes": "256KiB"}
            mine = [
                (
                    piece._replace(tensor=None),
                    piece.tensor.dtype,
                    piece.tensor.shape,
                    bits(piece.tensor).clone(),
                )
                for piece in sw.pieces(state, **options)
            ]
            of_all = [mine] * dist.get_world_size()
            dist.all_gather_object(of_all, mine)
            received = [
                piece._replace(tensor=content.view(dtype).view(shape))
                for of_rank in of_all
                for piece, dtype, shape, content in of_rank
            ]
            with shared_folder() as folder:
                sw.export(state, folder / "to", quantization=quantization, template=source)
                found = put_together(received)
                wrong = wrong_tensors(found, exported(folder / "to"))
            assert wrong == [], (quantization, wrong)


def whole_tensors_are_an_export(path: str, uneven: str) -> None:
    state = shards_of(uneven)
    for everywhere in (True, False):
        described = Described(state, quantization="mxfp8", template=uneven)
        source = described.begin(None)
        found = dict(
            whole_tensors(
                source, described.handed_over(source), None, everywhere=everywhere, batch_bytes=20_000
            )
        )
        with shared_folder() as folder:
            sw.export(state, folder / "to", quantization="mxfp8", template=uneven)
            expected = exported(folder / "to") if everywhere or dist.get_rank() == 0 else {}
            wrong = wrong_tensors(found, expected)
        assert wrong == [], (everywhere, wrong)


def one_error_for_all(path: str, uneven: str) -> None:
    state = shards_of(uneven)
    rank = dist.get_rank()
    name = next(name for name in state if name.endswith("norm.weight"))
    told = refused(lambda: sw.pieces({**state, name: torch.zeros(2 + rank)}, template=uneven))
    assert name in told, told
    told = refused(lambda: sw.pieces(state, template=uneven, quantization="mxfp8" if rank == 0 else None))
    assert "expected quantization mxfp8 as on rank 0, found quantization none" in told, told
    told = refused(lambda: sw.pieces(state, template=uneven, threads=1 - rank))
    assert "rank 1: threads is 0" in told, told


class Engine:
    """What sglang's Engine has of this protocol; refuses a tensor of that name."""

    def __init__(self, refuses: str = "") -> None:
        self.loaded: dict[str, torch.Tensor] = {}
        self.flushed: list[bool] = []
        self.refuses = refuses

    def update_weights_from_tensor(self, named_tensors, load_format=None, flush_cache=True):
        self.flushed.append(flush_cache)
        if any(name == self.refuses for name, _ in named_tensors):
            return False, "no such parameter"
        self.loaded |= {name: tensor.clone() for name, tensor in named_tensors}
        return True, "Success"


def sglang_gets_an_export(path: str, uneven: str) -> None:
    state = shards_of(uneven)
    options = {"quantization": "mxfp8", "template": uneven, "batch_bytes": 20_000}
    engine = Engine() if dist.get_rank() == 0 else None
    count = sglang.update_weights(engine, state, **options)
    wrong = []
    with shared_folder() as folder:
        sw.export(state, folder / "to", quantization="mxfp8", template=uneven)
        if engine is not None:
            wrong = wrong_tensors(engine.loaded, exported(folder / "to"))
            assert len(engine.loaded) == count
            assert engine.flushed == [False] * (len(engine.flushed) - 1) + [True] and len(engine.flushed) > 2
    assert wrong == []
    refusing = Engine(sorted(engine.loaded)[len(engine.loaded) // 2]) if engine else None
    told = refused(lambda: sglang.update_weights(refusing, state, **options))
    assert "sglang could not load" in told and "no such parameter" in told, told
    refusing = Engine(list(engine.loaded)[-1]) if engine else None
    told = refused(lambda: sglang.update_weights(refusing, state, **options | {"batch_bytes": "1GiB"}))
    assert "sglang could not load" in told, told


class OwnError(Exception):
    """Cannot be sent to other ranks: a lock is none of a pickle's."""

    def __init__(self, text: str, more: int) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


def a_failure_of_one_rank_is_told_to_all(path: str, uneven: str) -> None:
    state = shards_of(uneven)
    rank = dist.get_rank()

    class Failing(Engine):
        def update_weights_from_tensor(self, named_tensors, load_format=None, flush_cache=True):
            raise OwnError("the engine is out of order", 1)

    engine = Failing() if rank == 0 else None
    told = refused(lambda: sglang.update_weights(engine, state, template=uneven, batch_bytes=20_000))
    assert "rank 0: the engine is out of order" in told, told
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    wholes = {"model.layers.0.w.weight": torch.ones(8 * dist.get_world_size(), 64).bfloat16()}
    state = sharded_over(wholes, mesh, {name: [Shard(0)] for name in wholes})
    if rank == 1:
        state["model.layers.0.w.weight"].to_local().fill_(float("nan"))  # in its first bucket
    engine = Engine() if rank == 0 else None
    options = {"quantization": "mxfp4-modelopt", "quantized_weights": ["*"], "layout": "huggingface"}
    told = refused(lambda: sglang.update_weights(engine, state, **options))
    assert "rank 1:" in told and "NaN" in told, told


def who_has_the_last_tensor_has_all(path: str, uneven: str) -> None:
    """Whoever counts tensors asks for none behind the last one."""
    fake_vllm.install()
    state = shards_of(uneven)
    source = vllm.weight_source(state, everywhere=False, template=uneven, batch_bytes=20_000)
    taken = zip(source.metadata, source.iter_full(), strict=False)
    found = sum(meta.name == name for meta, (name, _) in taken)
    del taken
    assert found == (len(source.metadata) if dist.get_rank() == 0 else 0)


def vllm_gets_an_export(path: str, uneven: str) -> None:
    fake_vllm.install()
    state = shards_of(uneven)
    rank = dist.get_rank()
    for everywhere in (True, False):
        source = vllm.weight_source(
            lambda: state, everywhere=everywhere, quantization="mxfp8", template=uneven, batch_bytes=20_000
        )
        engine = fake_vllm.Engine(source, rank)
        for step in range(2):
            for tensor in state.values():
                tensor.to_local().mul_(1 + step)
            engine.send_weights()
            with shared_folder() as folder:
                sw.export(state, folder / "to", quantization="mxfp8", template=uneven)
                wrong = wrong_tensors(engine.loaded, exported(folder / "to")) if rank == 0 else []
            assert wrong == [], (everywhere, step, wrong)


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parent))
    run_checks(
        [
            pieces_of_all_ranks_are_an_export,
            whole_tensors_are_an_export,
            one_error_for_all,
            sglang_gets_an_export,
            a_failure_of_one_rank_is_told_to_all,
            who_has_the_last_tensor_has_all,
            vllm_gets_an_export,
        ]
    )
