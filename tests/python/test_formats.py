"""What storage/README.md says of the formats on disk is enough to read them: this reader knows nothing else."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import pickle
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import shardwright as sw
import torch
import torch.distributed as dist
import xxhash
from families import lora_of
from outcomes import run_forked
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

ROOT = Path(__file__).resolve().parents[2]

BLOCK, CELL = 4 << 20, 64 << 10

#: name → dtype, shape, row-major bytes
Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def xxh3(data: bytes, seed: int = 0) -> int:
    return xxhash.xxh3_64_intdigest(data, seed=seed)


# --- numbers and messages ----------------------------------------------------------------------------------------


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number, and where it ends."""
    value = 0
    for shift in itertools.count(0, 7):
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise AssertionError


def varints(data: bytes) -> list[int]:
    numbers, at = [], 0
    while at < len(data):
        number, at = varint(data, at)
        numbers.append(number)
    return numbers


def fixed64s(data: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(data) // 8}Q", data))


class Message:
    def __init__(self, data: bytes) -> None:
        self.fields: dict[int, list] = {}
        at = 0
        while at < len(data):
            key, at = varint(data, at)
            value, at = varint(data, at) if key & 7 != 1 else (fixed64s(data[at : at + 8])[0], at + 8)
            if key & 7 == 2:
                value, at = data[at : at + value], at + value
            expect(key & 7 in (0, 1, 2), "a field of another type")
            self.fields.setdefault(key >> 3, []).append(value)

    def number(self, field: int) -> int:
        return self.fields.get(field, [0])[0]

    def bytes(self, field: int) -> bytes:
        return self.fields.get(field, [b""])[0]

    def text(self, field: int) -> str:
        return self.bytes(field).decode()

    def messages(self, field: int) -> list[Message]:
        return [Message(data) for data in self.fields.get(field, [])]


# --- safetensors and checksums -----------------------------------------------------------------------------------


def header_of(file: bytes) -> tuple[dict, int]:
    """The JSON, and where the tensors begin."""
    (length,) = struct.unpack("<Q", file[:8])
    expect(length % 8 == 0, "a header that ends at a multiple of 8")
    return json.loads(file[8 : 8 + length]), 8 + length


def sums_of(data: bytes, cuts: list[int]) -> list[int]:
    sums = [0] * math.ceil(len(data) / BLOCK)
    at = 0
    while at < len(data):
        row = at - at % cuts[-1]
        end = min(row + min(cut for cut in cuts if row + cut > at), row + (at - row) // CELL * CELL + CELL)
        end = min(end, at // BLOCK * BLOCK + BLOCK)
        sums[at // BLOCK] += xxh3(data[at:end], seed=at)
        at = end
    return [total % 2**64 for total in sums]


# --- torch streams and their metadata ----------------------------------------------------------------------------


class Named:
    """In place of a class or function that a pickle names: what it was called with, and its state."""

    def __init__(self, name: str, *arguments: object) -> None:
        self.name, self.arguments, self.state = name, arguments, None

    def __call__(self, *arguments: object) -> Named:
        return Named(self.name, *arguments)

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Named) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.name, str(self.state)))


class Pickles(pickle.Unpickler):
    """Builds nothing of what pickles name."""

    def find_class(self, module: str, name: str) -> type:
        class Made(Named):
            def __new__(cls, *arguments: object) -> Named:  # type: ignore[misc]
                made = object.__new__(Named)
                Named.__init__(made, f"{module}.{name}", *arguments)
                return made

        return Made

    def persistent_load(self, key: object) -> Named:
        return Named("storage", key)


def shown(value: object) -> object:
    """Plain values of what a pickle held."""
    if isinstance(value, Named):
        return value.name, shown(value.arguments), shown(value.state)
    if isinstance(value, type):
        return shown(value())
    if isinstance(value, dict):
        return {shown(key) if isinstance(key, Named) else key: shown(part) for key, part in value.items()}
    return type(value)(map(shown, value)) if isinstance(value, (tuple, list)) else value


def header_of_stream(stream: bytes, name: str, dtype: str, offset: list[int], shape: list[int]) -> int:
    """Where the bytes of a chunk begin, by what comes before them."""
    file = io.BytesIO(stream)
    try:
        number, version, system, tensor, keys = [shown(Pickles(file).load()) for _ in range(5)]
    except Exception as error:  # damaged pickles raise anything
        raise ValueError("five pickles") from error
    (count,) = struct.unpack("<Q", file.read(8))
    expect((number, version, keys) == (0x1950A86A20F9469CFC6C, 1001, ["0"]), "the numbers of a stream")
    assert isinstance(system, dict)
    expect(set(system.pop("padding")) <= {" "}, "spaces")
    about = {"protocol_version": 1001, "little_endian": True, "name": name, "offset": tuple(offset)}
    expect(system == about, "the third pickle")
    strides = [math.prod(max(size, 1) for size in shape[d + 1 :]) for d in range(len(shape))]
    storage = ("storage", ("torch.ByteStorage", (), None), "0", "cpu", count, None)
    hooks = ("collections.OrderedDict", (), None)
    of_dtype = (f"torch.{dtype}", (), None)
    arguments = (
        ("storage", (storage,), None),
        0,
        tuple(shape),
        tuple(strides),
        False,
        hooks,
        of_dtype,
    )
    expect(tensor == ("torch._utils._rebuild_tensor_v3", arguments, None), "the call for a tensor")
    expect(file.tell() % 64 == 0 and file.tell() + count == len(stream), "the length of a stream")
    return file.tell()


def read_torch_metadata(directory: Path) -> tuple[dict, object]:
    """{(name, offset or None): (file, offset, length)}, and the planner's data."""
    metadata = Pickles(io.BytesIO((directory / ".metadata").read_bytes())).load()
    expect(metadata.name == "torch.distributed.checkpoint.metadata.Metadata", "the metadata")
    expect(metadata.state["version"] == "1.0.0", "the version of the metadata")
    places = {}
    for index, place in metadata.state["storage_data"].items():
        offset = index.state.get("offset")
        key = index.state["fqn"], None if offset is None else offset.arguments[0]
        places[key] = tuple(place.state[field] for field in ("relative_path", "offset", "length"))
    return places, metadata.state["planner_data"]


# --- a sharded checkpoint ----------------------------------------------------------------------------------------


def read_sharded(directory: Path) -> tuple[Tensors, dict[str, bytes], int]:
    """Tensors, objects and the order. Every checksum is compared."""
    content = (directory / "shardwright.manifest").read_bytes()
    outer = Message(content)
    order = fixed64s(content[-8:])[0] if content[-9] == 0x19 else 0
    expect((outer.number(3), outer.number(2)) == (order, xxh3(outer.bytes(1), order)), "the manifest")
    manifest = Message(outer.bytes(1))
    expect((manifest.number(1), manifest.number(2)) == (2, BLOCK), "the version")
    files, names = [], []
    for listed in manifest.messages(3):
        names.append(listed.text(1))
        files.append((directory / listed.text(1)).read_bytes())
        header = files[-1][: listed.number(3)]
        expect((len(files[-1]), xxh3(header)) == (listed.number(2), listed.number(4)), listed.text(1))

    def stored(place: Message, row_bytes: int) -> bytes:
        data = files[place.number(1)][place.number(2) : place.number(3)]
        expect(sums_of(data, [row_bytes or len(data)]) == fixed64s(place.bytes(4)), "what lies at a place")
        return data

    is_torchs = ".metadata" in names
    places = read_torch_metadata(directory)[0] if is_torchs else {}
    said = [(file, begin, begin + length) for file, begin, length in places.values()]
    tensors: Tensors = {}
    for tensor in manifest.messages(4):
        name, dtype, shape, size = tensor.text(1), tensor.text(3), varints(tensor.bytes(5)), tensor.number(4)
        whole = bytearray(math.prod(shape) * size)
        for chunk in tensor.messages(8):
            (place,) = chunk.messages(3)
            offset, sizes = varints(chunk.bytes(1)), varints(chunk.bytes(2))
            row_bytes = (sizes[-1] if sizes else 1) * size
            data = stored(place, row_bytes if dtype else 0)
            if is_torchs:
                file, begin, length = places.pop((name, tuple(offset)))
                expect(file == names[place.number(1)] and begin % 64 == 0, name)
                stream = files[place.number(1)][begin : begin + length]
                expect(
                    begin + header_of_stream(stream, name, tensor.text(2), offset, sizes) == place.number(2),
                    name,
                )
                expect(stream.endswith(data), name)
            elif dtype:
                header, start = header_of(files[place.number(1)])
                range_in_file = [place.number(2) - start, place.number(3) - start]
                expect(
                    header[name] == {"dtype": dtype, "shape": sizes, "data_offsets": range_in_file}
                    and json.loads(header["__metadata__"]["DCP_SHARDING_INFO"])[name]
                    == {"saved_offsets": offset}
                    and (header["__metadata__"]["format"], header["__metadata__"]["DCP_VERSION"])
                    == ("pt", "1.0"),
                    name,
                )
            rows = itertools.product(*(range(o, o + n) for o, n in zip(offset[:-1], sizes[:-1], strict=True)))
            for number, row in enumerate(rows):
                at = 0
                for index, length in zip([*row, *offset[-1:]], shape, strict=True):
                    at = at * length + index
                whole[at * size : at * size + row_bytes] = data[number * row_bytes : (number + 1) * row_bytes]
        tensors[name] = tensor.text(2), tuple(shape), bytes(whole)
    objects = {entry.text(1): entry.messages(2)[0] for entry in manifest.messages(5)}
    if is_torchs:
        for name, place in objects.items():
            begin = place.number(2)
            where = names[place.number(1)], begin, place.number(3) - begin
            expect(places.pop((name, None)) == where, name)
        expect(not places, "places of nothing")
        for one, other in itertools.pairwise(sorted(said)):
            if one[0] == other[0]:
                between = files[names.index(one[0])][one[2] : other[1]]
                expect(len(between) < 64 and not any(between), "zeros between streams")
    return tensors, {name: stored(place, 0) for name, place in objects.items()}, order


# --- an export ---------------------------------------------------------------------------------------------------


def read_export(directory: Path) -> tuple[Tensors, dict[str, list[int]]]:
    """Tensors and their cuts. Every checksum is compared."""
    outer = Message((directory / "shardwright.checksums").read_bytes())
    expect(xxh3(outer.bytes(1)) == outer.number(2), "the list of checksums")
    checksums = Message(outer.bytes(1))
    expect(checksums.number(1) == 1, "the version")
    for listed in checksums.messages(3):
        content = (directory / listed.text(1)).read_bytes()
        expect((len(content), xxh3(content)) == (listed.number(2), listed.number(4)), listed.text(1))
    tensors: Tensors = {}
    file_of = {}
    for listed in checksums.messages(2):
        file = (directory / listed.text(1)).read_bytes()
        header, start = header_of(file)
        found = (len(file), start, xxh3(file[:start]))
        expect(found == (listed.number(2), listed.number(3), listed.number(4)), listed.text(1))
        expect(header.pop("__metadata__") == {"format": "pt"}, listed.text(1))
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            tensors[name] = entry["dtype"], tuple(entry["shape"]), file[start + begin : start + end]
            file_of[name] = listed.text(1)
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    expect(list(index["weight_map"].items()) == list(file_of.items()), "the index")
    expect(index["metadata"]["total_size"] == sum(len(data) for *_, data in tensors.values()), "total_size")
    cuts = {}
    for entry in checksums.messages(4):
        name, sums = entry.text(1), fixed64s(entry.bytes(3))
        cuts[name] = varints(entry.bytes(2))
        expect(not sums or sums_of(tensors[name][2], cuts[name]) == sums, name)
    expect(list(cuts) == sorted(tensors), "the tensors that have checksums")
    return tensors, cuts


# --- what was saved ----------------------------------------------------------------------------------------------


def state() -> dict:
    draw = torch.Generator().manual_seed(3)
    return {
        "matrix": torch.randn(1100, 2100, generator=draw),  # 9 MB, rows across the ends of blocks
        "wide": torch.randn(6, 70_001, generator=draw).to(torch.bfloat16),  # rows of more than one cell
        "stack": torch.randn(4, 5, 40, generator=draw),
        "flat": torch.randn(1_300_000, generator=draw),
        "number": torch.tensor(7.0),
        "empty": torch.empty(0, 4),
        "bits": torch.rand(3, 7, generator=draw) > 0.5,
        "trained": torch.randn(2, 3, generator=draw, requires_grad=True),
        "complex": torch.randn(5, 3, dtype=torch.complex128, generator=draw),
        "nested": {"text": "some text" * 9, "number": 1.5},
    }


def exported_state() -> dict:
    return {name: value for name, value in state().items() if name not in ("nested", "complex")}


def bytes_of(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def expected(tensors: dict, name_of: Callable[[torch.dtype], str]) -> Tensors:
    return {
        name: (name_of(value.dtype), tuple(value.shape), bytes_of(value))
        for name, value in tensors.items()
        if isinstance(value, torch.Tensor)
    }


def of_torch(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def of_safetensors(dtype: torch.dtype) -> str:
    return {torch.float32: "F32", torch.bfloat16: "BF16", torch.bool: "BOOL"}[dtype]


def on_ranks(rank: int, directory: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    placements = {"matrix": Shard(1), "wide": Shard(1), "stack": Shard(2), "flat": Shard(0), "bits": Shard(0)}

    def placed(values: dict) -> dict:
        return {
            name: distribute_tensor(value.detach(), mesh, [placements.get(name, Replicate())])
            if isinstance(value, torch.Tensor)
            else value
            for name, value in values.items()
        }

    sw.save(placed(state()), directory / "saved", format="safetensors")
    sw.save(placed(state()), directory / "saved_for_torch", format="torch")
    sw.export(placed(exported_state()), directory / "exported", max_shard_size="4MB")
    dist.destroy_process_group()
    os._exit(0)  # at the interpreter's end a thread of Gloo may abort the process


@pytest.fixture(scope="module")
def by_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ranks")
    run_forked(2, on_ranks, directory)
    return directory


@pytest.mark.parametrize("format", ["torch", "safetensors"])
def test_a_sharded_checkpoint_is_what_the_readme_says(tmp_path: Path, format: str):
    for number, step in enumerate((7, 5), start=1):
        sw.save(state(), tmp_path, step=step, format=format)
        tensors, objects, order = read_sharded(tmp_path / f"step-{step:08d}")
        assert tensors == expected(state(), of_torch)
        assert order == number
        assert objects.keys() == {"nested.text", "nested.number"}
        (tmp_path / "pickle").write_bytes(objects["nested.text"])
        assert torch.load(tmp_path / "pickle", weights_only=True) == state()["nested"]["text"]
    names = sorted(path.name for path in tmp_path.glob("step-00000005/*"))
    tag = names[-2].split("-")[-1].split(".")[0]
    if format == "torch":
        assert names == [".metadata", f"rank-00000-00000-{tag}.distcp", "shardwright.manifest"]
        assert read_torch_metadata(tmp_path / "step-00000005")[1]["nested.text"] == ("nested", "text")
        return
    assert names == [f"rank-00000-00000-{tag}.safetensors", f"rank-00000-{tag}.bin", "shardwright.manifest"]


def test_an_order_that_is_not_told_is_absent(tmp_path: Path):
    sw.save(state(), tmp_path)
    assert read_sharded(tmp_path)[2] == 0


@pytest.mark.ranks
def test_shards_of_ranks_are_what_the_readme_says(by_two_ranks: Path):
    for name in ("saved", "saved_for_torch"):
        tensors, objects, _ = read_sharded(by_two_ranks / name)
        assert tensors == expected(state(), of_torch)
        assert objects.keys() == {"nested.text", "nested.number"}
    assert {path.name[:16] for path in by_two_ranks.glob("saved/*.safetensors")} == {
        "rank-00000-00000",
        "rank-00001-00000",
    }


@pytest.mark.ranks
def test_an_export_of_ranks_is_what_the_readme_says(by_two_ranks: Path):
    tensors, cuts = read_export(by_two_ranks / "exported")
    assert tensors == expected(exported_state(), of_safetensors)
    assert cuts["matrix"] == [4200, 8400] and cuts["wide"] == [70_002, 140_002] and cuts["stack"] == [80, 160]


def test_an_export_and_its_files_beside_are_what_the_readme_says(tmp_path: Path):
    weights = {"a.weight": torch.randn(3, 5), "b.weight": torch.randn(200, 70_001).to(torch.bfloat16)}
    sw.export(weights, tmp_path / "template")
    (tmp_path / "template" / "config.json").write_text('{"model_type": "none"}')
    sw.export(weights, tmp_path / "export", template=tmp_path / "template", layout="huggingface")
    tensors, cuts = read_export(tmp_path / "export")
    assert tensors == expected(weights, of_safetensors)
    assert cuts == {"a.weight": [20], "b.weight": [140_002]}
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == [
        "config.json",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
        "shardwright.checksums",
    ]


def test_an_adapter_is_what_the_readme_says(tmp_path: Path):
    lora = lora_of("model.layers.1.", torch.Generator().manual_seed(5))
    lora = {name: value.to(torch.bfloat16) if "self_attn" in name else value for name, value in lora.items()}
    sw.save_lora(lora, tmp_path, alpha=8.0, model="qwen3_moe", layout="huggingface")
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    file = (tmp_path / "adapter_model.safetensors").read_bytes()
    header, start = header_of(file)
    config = (tmp_path / "adapter_config.json").read_bytes()
    of_file = {"format": "pt", "shardwright": "save_lora", "shardwright.config": str(xxh3(config))}
    assert header.pop("__metadata__") == of_file
    assert list(header) == sorted(header, key=lambda name: (header[name]["dtype"] != "F32", name))
    ends = [start + end for _, end in (entry["data_offsets"] for entry in header.values())]
    assert ends[-1] == len(file)
    begin, end = header["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"]["data_offsets"]
    found = torch.frombuffer(bytearray(file[start + begin : start + end]), dtype=torch.bfloat16)
    assert torch.equal(found, lora["model.layers.1.self_attn.q_proj.lora_A.weight"].reshape(-1))


def test_every_word_of_the_glossary_is_where_it_says():
    text = (ROOT / "storage" / "README.md").read_text()
    glossary = text[text.index("\n## Glossary") :]
    folders = [ROOT / folder for folder in ("planner", "storage", "kernels")]
    headers = "".join(path.read_text() for folder in folders for path in folder.glob("**/*.h"))
    rows = [line.strip("|").split("|") for line in glossary.splitlines() if line.startswith("| ")]
    assert len(rows) > 80
    words = [
        word.strip() for row in rows for word in row[0].split(",") if word.strip() not in ("word", "---")
    ]
    assert len(words) == len(set(words))
    for row in rows:
        for where in re.findall(r"`([^`]+)`", row[-1]):
            is_there = (ROOT / where).exists() if "/" in where else where.split("::")[-1] in headers
            assert is_there, where


@pytest.mark.parametrize("kind", ["safetensors", "torch", "export"])
def test_a_damaged_byte_is_found(kind: str, tmp_path: Path):
    path = tmp_path / kind
    if kind != "export":
        sw.save(state(), path, step=3, format=kind)
        path /= "step-00000003"
    else:
        sw.export(exported_state(), path, max_shard_size="8MB")
    read: Callable[[Path], object] = read_export if kind == "export" else read_sharded
    read(path)
    choose = random.Random(5)
    for file in path.iterdir():
        if file.suffix == ".json":
            continue  # the index has no checksum of its own
        intact = file.read_bytes()
        some = [choose.randrange(len(intact)) for _ in range(6)]
        for at in {0, 9, len(intact) - 9, len(intact) - 1, *some}:
            damaged = bytearray(intact)
            damaged[at] ^= 1 << choose.randrange(8)
            file.write_bytes(damaged)
            with pytest.raises((ValueError, LookupError, struct.error)):
                read(path)
        file.write_bytes(intact)
    read(path)
