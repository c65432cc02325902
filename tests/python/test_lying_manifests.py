"""Manifests with a checksum that fits, whose fields do not fit each other. mutations.py makes more, at random."""

import functools
import random
from pathlib import Path

import mutations
import pytest
import shardwright as sw
import torch
from mutate_checkpoints import run_batch
from mutated_flows import ours
from mutations import manifest_file, protobuf_bytes, protobuf_fields

pytestmark = pytest.mark.ranks


def with_dtype(tensor: str, dtype: bytes, known: bytes | None, bytes_of_element: int | None):
    """A mutation that gives a tensor this dtype by torch's name, by safetensors', and this size."""

    def change(rng: random.Random, directory: Path) -> str:
        path = directory / "shardwright.manifest"
        fields = protobuf_fields(protobuf_fields(path.read_bytes())[0][2])
        for at, (number, wire, value) in enumerate(fields):
            if number != 4 or {n: v for n, _, v in protobuf_fields(value)}[1] != tensor.encode():
                continue
            new = {2: dtype, 3: known, 4: bytes_of_element}
            changed = [(n, w, v if new.get(n) is None else new[n]) for n, w, v in protobuf_fields(value)]
            fields[at] = number, wire, protobuf_bytes(changed)
        path.write_bytes(manifest_file(protobuf_bytes(fields)))
        return f"{tensor} is {dtype!r}"

    return change


@pytest.mark.parametrize(
    "tensor, dtype, known, size",
    [
        ("model.mask", b"qint8", b"I8", 1),
        ("model.embed.weight", b"complex128", b"", 4),
        ("model.embed.weight", b"int32", b"F32", 4),
        ("model.norm.weight", b"float8_e4m3fn", None, None),
        ("model.phase", b"complex32", None, None),
        ("model.count", b"device", None, None),
        ("model.count", b"float32", None, None),
    ],
)
def test_a_dtype_that_is_not_one_is_refused_before_anything_is_written(
    tensor: str, dtype: bytes, known: bytes | None, size: int | None, tmp_path: Path
):
    """In a process of its own: some of these ended it. `run_batch` sees to destinations and memory around them."""
    kind = ours(tmp_path)
    kind.mutations = [(with_dtype(tensor, dtype, known, size), 1)]
    kind.load = functools.partial(load_and_expect, tensor)
    counts, broken = run_batch(kind, [0], seed=1)
    assert broken == []
    assert counts.keys() <= {"refused: CheckpointFormatError", "refused: PlanError"} and counts.total() == 1


def load_and_expect(name: str, state: dict, directory: Path) -> None:
    with pytest.raises((sw.CheckpointFormatError, sw.PlanError)) as raised:
        sw.load(state, directory)
    assert name in str(raised.value), raised.value
    raise raised.value


@pytest.mark.parametrize("data", [b"no archive", mutations._archive_of_harm()], ids=["damaged", "runs_code"])
def test_planners_data_that_cannot_be_read_is_an_error_of_the_format(data: bytes, tmp_path: Path):
    sw.save({"model": {"model.norm.weight": torch.ones(4)}}, tmp_path / "saved")
    path = tmp_path / "saved" / "shardwright.manifest"
    fields = protobuf_fields(protobuf_fields(path.read_bytes())[0][2])
    fields = [(n, w, data if n == 6 else v) for n, w, v in fields]
    path.write_bytes(manifest_file(protobuf_bytes(fields)))
    with pytest.raises(sw.CheckpointFormatError, match=r"shardwright\.manifest: the planner's data"):
        sw.export(tmp_path / "saved", tmp_path / "exported")
    assert not (tmp_path / "exported").exists() and not Path(mutations.HARM).exists()
