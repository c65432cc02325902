"""`.distcp` checkpoints of torch's own writer become Hugging Face checkpoints in any encoding, a matrix at a time."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from shardwright.ranks.run import run_on_ranks
from slow_rules import RULES
from test_rules import weights
from test_template_encodings import differing, held
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

DRAW = torch.Generator().manual_seed(31)
STATE = {
    "a.weight": weights(DRAW, 300, 256, torch.bfloat16),
    "b.weight": weights(DRAW, 160, 384, torch.float32),
    "c.weight": weights(DRAW, 40, 96, torch.bfloat16),
    "norm.weight": torch.randn(96, generator=DRAW),
}


def saved_by_torch(path: Path, state: dict[str, Any]) -> Path:
    dcp.save(state, storage_writer=dcp.FileSystemWriter(path), no_dist=True)
    return path


def save_shards(rank: int, path: str, state: dict[str, torch.Tensor]) -> None:
    """Uneven shards of either dimension, one after the other, and a copy on all ranks."""
    mesh = init_device_mesh("cpu", (3,))
    placements = [Shard(0), Shard(1), Replicate()]
    shards = {
        name: distribute_tensor(tensor, mesh, [placements[number % 3] if tensor.dim() > 1 else Replicate()])
        for number, (name, tensor) in enumerate(state.items())
    }
    dcp.save({"model": shards, "step": 7}, storage_writer=dcp.FileSystemWriter(path))


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("of_ranks") / "saved"
    run_on_ranks(3, save_shards, str(path), STATE)
    return path


def expected_by(rule: str) -> dict[str, torch.Tensor]:
    encoded = {}
    for name in ("a.weight", "b.weight"):
        encoded |= RULES[rule](name, STATE[name])
    return encoded | {name: STATE[name] for name in ("c.weight", "norm.weight")}


@pytest.mark.ranks
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "mxfp4-gpt-oss"])
def test_chunks_of_ranks_have_the_bits_that_the_rule_gives_whole_matrices(
    rule: str, of_ranks: Path, tmp_path: Path
):
    sw.convert(
        of_ranks,
        tmp_path / "to",
        quantization=rule,
        quantized_weights=["a.*", "b.*"],
        layout="huggingface",
        buffer_bytes=1,
    )
    assert differing(held(tmp_path / "to"), expected_by(rule)) == []
    assert sw.verify(tmp_path / "to").problems == []


@pytest.mark.ranks
def test_three_ranks_convert_them_between_them(of_ranks: Path, tmp_path: Path):
    command = [sys.executable, "-m", "shardwright", "convert", str(of_ranks), str(tmp_path / "to")]
    command += ["--quantization", "nvfp4-modelopt", "--quantized-weights", "a.*", "b.*", "--ranks", "3"]
    done = subprocess.run([*command, "--layout", "huggingface"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert differing(held(tmp_path / "to"), expected_by("nvfp4-modelopt")) == []


@pytest.mark.parametrize("layout", ["automodel", "transformers", "torchtitan"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "f32"])
def test_a_trainers_names_become_those_of_the_release(dtype: torch.dtype, layout: str, tmp_path: Path):
    released = tmp_path / "released"
    sw.generate(released, family="llama")
    state = sw.empty_state_dict(released, layout=layout)
    sw.load(state, released, layout=layout)
    masters = {name: tensor.to(dtype) for name, tensor in state.items()}
    saved_by_torch(tmp_path / "saved", {"app": {"model": masters}, "step": 3})
    # torchtitan permutes rows by the config's number of heads, which the template has.
    family = {"template": released} if layout == "torchtitan" else {"model": "llama"}
    sw.convert(
        tmp_path / "saved", tmp_path / "to", quantization="bf16", layout=layout, key="app.model", **family
    )
    assert differing(held(tmp_path / "to"), held(released)) == []


@pytest.mark.parametrize("encoding", ["mxfp8", "mxfp4_gpt_oss", "nvfp4_modelopt", "int4_group32"])
def test_with_a_template_what_has_not_changed_gets_its_bytes_back(encoding: str, tmp_path: Path):
    released = tmp_path / "released"
    sw.generate(released, encoding=encoding)
    state = sw.empty_state_dict(released)
    sw.load(state, released)
    saved_by_torch(tmp_path / "saved", {"model": state})
    sw.convert(
        tmp_path / "saved", tmp_path / "to", quantization="template", template=released, buffer_bytes=1
    )
    assert differing(held(tmp_path / "to"), held(released)) == []
    assert (tmp_path / "to" / "config.json").read_bytes() == (released / "config.json").read_bytes()


def test_streams_that_we_wrote_are_read_without_our_manifest(tmp_path: Path):
    sw.save({"model": STATE}, tmp_path / "saved", format="torch")
    (tmp_path / "saved" / "shardwright.manifest").unlink()
    sw.convert(
        tmp_path / "saved",
        tmp_path / "to",
        quantization="mxfp8",
        quantized_weights=["a.*", "b.*"],
        layout="huggingface",
    )
    assert differing(held(tmp_path / "to"), expected_by("mxfp8")) == []


MEASURED = """
import sys, shardwright as sw
from shardwright.peak_memory import measure_peak_memory
how = {"quantization": "mxfp8", "layout": "huggingface", "buffer_bytes": 1 << 20}
sw.convert(sys.argv[1], sys.argv[2] + "/warm", quantized_weights=["layers.0.weight"], **how)
with measure_peak_memory() as peak:
    sw.convert(sys.argv[1], sys.argv[2] + "/to", quantized_weights=["*"], **how)
print(peak.bytes)
"""


@pytest.mark.process
def test_it_takes_memory_for_the_largest_matrix(tmp_path: Path):
    matrices = {f"layers.{n}.weight": torch.zeros(1024, 1024, dtype=torch.bfloat16) for n in range(64)}
    saved_by_torch(tmp_path / "saved", matrices)
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "saved"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32 << 20  # of 128 MiB


def refused(source: Path, to: Path, *words: str, **options: Any) -> None:
    options = {"quantization": "mxfp8", "quantized_weights": ["a.*"], "layout": "huggingface"} | options
    with pytest.raises(ValueError) as error:
        sw.convert(source, to, **options)
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)
    assert not to.exists() or not list(to.iterdir())


def test_a_byte_that_differs_is_told(tmp_path: Path):
    path = saved_by_torch(tmp_path / "saved", {"a.weight": STATE["a.weight"]})
    (file,) = path.glob("*.distcp")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    refused(path, tmp_path / "to", file.name, "a.weight", "damaged", "again")


def test_a_file_cut_short_is_told(tmp_path: Path):
    path = saved_by_torch(tmp_path / "saved", {"a.weight": STATE["a.weight"]})
    (file,) = path.glob("*.distcp")
    file.write_bytes(file.read_bytes()[:-1000])
    refused(path, tmp_path / "to", file.name, "a.weight", "expected", "found")


@pytest.mark.parametrize("what", ["a_gap", "twice"])
def test_chunks_that_do_not_make_up_a_matrix_are_told(what: str, tmp_path: Path):
    path = saved_by_torch(tmp_path / "saved", {"a.weight": STATE["a.weight"]})
    metadata = dcp.FileSystemReader(path).read_metadata()
    stored = metadata.state_dict_metadata["a.weight"]
    if what == "a_gap":
        stored.size = torch.Size([301, 256])
    else:
        stored.chunks = stored.chunks * 2
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    refused(path, tmp_path / "to", "a.weight", str(path))
    good = {"a.weight": torch.ones(3)}
    sw.save(good, tmp_path / "ours")
    with pytest.raises(ValueError, match="a.weight.*do not make up the whole"):
        sw.convert(path, tmp_path / "ours")
    loaded = {"a.weight": torch.zeros(3)}
    sw.load(loaded, tmp_path / "ours")
    assert torch.equal(loaded["a.weight"], good["a.weight"])


def test_a_matrix_stored_transposed_is_told_and_the_way_out(tmp_path: Path):
    path = saved_by_torch(tmp_path / "saved", {"a.weight": STATE["a.weight"].t()})
    refused(path, tmp_path / "to", ".distcp", "a.weight", "strides [1, 256]", "shardwright.export()")
    sw.export(path, tmp_path / "to", quantization="mxfp8", quantized_weights=["a.*"], layout="huggingface")
    expected = RULES["mxfp8"]("a.weight", STATE["a.weight"].t().contiguous())
    assert differing(held(tmp_path / "to"), expected) == []


def test_options_of_trainings_are_not_for_released_checkpoints(tmp_path: Path):
    sw.export({"a.weight": STATE["a.weight"]}, tmp_path / "released", layout="huggingface")
    refused(tmp_path / "released", tmp_path / "to", "layout", str(tmp_path / "released"))
    refused(tmp_path / "released", tmp_path / "to", "key", layout=None, key="model")
    with pytest.raises(ValueError, match=r"layout: expected a quantization="):
        sw.convert(tmp_path / "released", tmp_path / "to", layout="transformers")


# --- archives that lie -----------------------------------------------------------------------------------------------


def records_of(value: Any) -> dict[str, bytes]:
    stream = io.BytesIO()
    torch.save(value, stream)
    with zipfile.ZipFile(stream) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive_of(records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return stream.getvalue()


def saved_as(archive: bytes, path: Path) -> Path:
    """A checkpoint whose metadata tells of a.weight, and has this archive for it."""
    saved_by_torch(path, {"a.weight": STATE["a.weight"]})
    (file,) = path.glob("*.distcp")
    file.write_bytes(archive)
    metadata = dcp.FileSystemReader(path).read_metadata()
    for place in metadata.storage_data.values():
        place.offset, place.length = 0, len(archive)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    return path


def changed(change: Callable[[dict[str, bytes]], None]) -> bytes:
    records = records_of(STATE["a.weight"])
    change(records)
    return archive_of(records)


VALUES = "archive/data/0"

LIES: dict[str, tuple[bytes, str]] = {
    "values_compressed": (archive_of(records_of(STATE["a.weight"]), zipfile.ZIP_DEFLATED), "one storage"),
    "no_values": (changed(lambda records: records.pop(VALUES) and None), "one storage"),
    "two_storages": (changed(lambda records: records.update({"archive/data/1": b"1234"})), "one storage"),
    "fewer_values": (
        changed(lambda records: records.update({VALUES: records[VALUES][:-2]})),
        "expected 153600 bytes in its archive, found 153598",
    ),
    "big_endian": (changed(lambda records: records.update({"archive/byteorder": b"big"})), "little-endian"),
    "another_dtype": (archive_of(records_of(STATE["a.weight"].half())), "expected torch.bfloat16 [300, 256]"),
    "another_shape": (
        archive_of(records_of(STATE["a.weight"][:-1].clone())),
        "found torch.bfloat16 [299, 256]",
    ),
    "no_tensor": (archive_of(records_of([STATE["a.weight"]])), "found no tensor"),
    "no_archive": (b"PK\x03\x04" + bytes(2000), "are no archive"),
    "nothing": (b"", "are no archive"),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_archive_that_is_not_what_the_metadata_says(lie: str, tmp_path: Path):
    archive, words = LIES[lie]
    refused(saved_as(archive, tmp_path / "saved"), tmp_path / "to", ".distcp", "a.weight", words)


def test_an_archive_that_torch_would_write_for_a_part_of_a_storage_is_read_where_the_part_is(tmp_path: Path):
    """torch.save keeps the whole storage of a view; torch's writer makes a copy before it saves, others may not."""
    whole = torch.cat([torch.zeros(7, 256, dtype=torch.bfloat16), STATE["a.weight"]])
    path = saved_as(archive_of(records_of(whole[7:])), tmp_path / "saved")
    sw.convert(path, tmp_path / "to", quantization="mxfp8", quantized_weights=["a.*"], layout="huggingface")
    assert differing(held(tmp_path / "to"), RULES["mxfp8"]("a.weight", STATE["a.weight"])) == []
