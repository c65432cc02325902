"""Runs on ranks: exports by named rules of weights that are cut anywhere, and conversions by several ranks.

    torchrun --nproc-per-node N rules.py CHECKPOINT UNEVEN_CHECKPOINT RESULT.json

The checkpoints are not used.
"""

import random

import shardwright as sw
import torch
import torch.distributed as dist
from checks import run_checks
from placements import held_indices, take
from safetensors.torch import save_file
from shared_folder import shared_folder
from slow_rules import RULES, decoded
from test_rules import weights
from test_template_encodings import differing, held
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard


def ways() -> list[tuple[tuple[int, ...], list[Placement]]]:
    world = dist.get_world_size()
    strided = _StridedShard(1, split_factor=3)
    one = [[Shard(0)], [Shard(1)], [strided], [_StridedShard(0, split_factor=3)], [Replicate()]]
    found: list[tuple[tuple[int, ...], list[Placement]]] = [((world,), placements) for placements in one]
    if world == 4:
        two = [[Shard(0), Shard(1)], [Shard(1), Shard(1)], [Replicate(), Shard(1)], [Shard(0), Replicate()]]
        found += [((2, 2), placements) for placements in two]
    return found


def sharded(whole: torch.Tensor, shape: tuple[int, ...], placements: list[Placement]) -> DTensor:
    mesh = init_device_mesh("cpu", shape)
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    local = take(whole, held_indices(tuple(whole.shape), shape, tuple(coordinate), placements))
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def any_shards(*_: str) -> None:
    """Blocks, bytes and words lie on several ranks: the bits are those of the whole tensor."""
    with shared_folder() as path:
        for seed, (shape, placements) in enumerate(ways()):
            for rule in RULES:
                choice = random.Random(f"{seed} {rule}")  # the same on every rank
                draw = torch.Generator().manual_seed(choice.randrange(1 << 32))
                wide = rule == "mxfp4-gpt-oss"
                state, expected = {}, {}
                for name in ("a.weight", "b.weight"):
                    rows, columns = choice.randint(1, 300), choice.randint(1, 9) * (32 if wide else 8)
                    dtype = choice.choice([torch.bfloat16, torch.float32])
                    whole = weights(draw, rows, columns, dtype)
                    state[name] = sharded(whole, shape, placements)
                    expected |= RULES[rule](name, whole)
                to = path / f"{seed}-{rule}"
                sw.export(
                    state,
                    to,
                    quantization=rule,
                    layout="huggingface",
                    quantized_weights=["*"],
                    max_shard_size="4KB",
                )
                wrong = differing(held(to), expected) if dist.get_rank() == 0 else []
                assert wrong == [], (shape, placements, rule, wrong)
                dist.barrier()


def converted(*_: str) -> None:
    """From each encoding to each other and to BF16."""
    with shared_folder() as path:
        draw = torch.Generator().manual_seed(5)
        plain = {"b.weight": weights(draw, 300, 96, torch.float32), "norm.weight": torch.ones(96)}
        names = list(RULES)
        for number, rule in enumerate(names):
            stored = RULES[rule]("a.weight", weights(draw, 700, 256, torch.bfloat16))
            source = path / rule
            if dist.get_rank() == 0:
                source.mkdir()
                save_file(stored | plain, source / "model.safetensors", metadata={"format": "pt"})
            dist.barrier()
            values = decoded(rule, "a.weight", stored, torch.bfloat16)
            for to in (names[number - 1], names[number - 3], "bf16"):
                expected = RULES[to]("a.weight", values) if to != "bf16" else {"a.weight": values}
                target = path / f"{rule}-{to}"
                sw.convert(source, target, quantization=to, buffer_bytes=70_000, max_shard_size="50KB")
                wrong = differing(held(target), expected | plain) if dist.get_rank() == 0 else []
                assert wrong == [], (rule, to, wrong)
                dist.barrier()


def one_rank_finds_a_nan(*_: str) -> None:
    """All ranks are told which, and nothing is published."""
    with shared_folder() as path:
        for rule in RULES:
            if rule == "mxfp8":
                continue
            whole = torch.ones(64, 128)
            whole[63, 127] = float("nan")
            state = {"a.weight": sharded(whole, (dist.get_world_size(),), [Shard(1)])}
            try:
                sw.export(
                    state, path / rule, quantization=rule, layout="huggingface", quantized_weights=["*"]
                )
            except ValueError as error:
                assert "a.weight" in str(error) and "NaN" in str(error), error
            else:
                raise AssertionError(f"{rule}: a NaN was exported")
            dist.barrier()
            assert not list((path / rule).glob("*.safetensors"))


if __name__ == "__main__":
    run_checks([any_shards, converted, one_rank_finds_a_nan])
