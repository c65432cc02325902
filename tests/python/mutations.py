"""Ways to damage a checkpoint: bytes, lengths, names and links, and what a stranger would write on purpose.

Each takes a random generator and a directory, changes the directory and says what it has done.
"""

import io
import json
import os
import pickle
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path

import torch
import xxhash

Mutation = Callable[[random.Random, Path], str]

#: A file that nothing of a checkpoint may make.
HARM = "harm-done"

NUMBERS = [
    "0", "1", "-1", "2", "7", "-0", "255", "2147483647", "2147483648", "4294967296", "9007199254740993",
    "1152921504606846976", "4611686018427387904", "9223372036854775807", "9223372036854775808",
    "18446744073709551615", "18446744073709551616", "1" + "0" * 400, "-9223372036854775808", "1.5", "4.0", "1e2",
    "1e308", "1e999", "-1e-999", "NaN", "Infinity", "null", "true", '""', '"4"', "[]", "{}", "[[1]]",
]  # fmt: skip

NAMES = [
    b"", b".", b"..", b"../x", b"../../../../etc/passwd", b"/etc/passwd", b"/dev/zero", b"a/../../x", b"./", b"a//b",
    b"\\u0000", b"a\\u0000b", b"\\ud800", b"\\n", b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"x" * 300, b"y" * 70_000,
    b"__metadata__", b"dtype", b"U8", b"F8_E4M3", b"F64", b"F4", b"BF16", b"C64", b"BOOL", b"weight_map",
    b"config.json", b"~", b"%s%n", b"C:\\\\x", b"\xe2\x80\xae", b"shardwright.manifest", b".metadata",
]  # fmt: skip


class Harm:
    def __reduce__(self):
        return os.mkdir, (HARM,)


# --- files as trees entries ---------------------------------------------------------------------------------


def files_of(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())


def chosen(rng: random.Random, directory: Path) -> Path:
    return rng.choice(files_of(directory))


def remove(rng: random.Random, directory: Path) -> str:
    path = chosen(rng, directory)
    path.unlink()
    return f"{path.name} removed"


def swap(rng: random.Random, directory: Path) -> str:
    a, b = chosen(rng, directory), chosen(rng, directory)
    contents = a.read_bytes(), b.read_bytes()
    a.write_bytes(contents[1])
    b.write_bytes(contents[0])
    return f"{a.name} and {b.name} swapped"


def copy_over(rng: random.Random, directory: Path) -> str:
    a, b = chosen(rng, directory), chosen(rng, directory)
    b.write_bytes(a.read_bytes())
    return f"{b.name} is a copy of {a.name}"


def rename(rng: random.Random, directory: Path) -> str:
    path = chosen(rng, directory)
    name = rng.choice(
        [
            "x.safetensors",
            ".x.safetensors",
            "x",
            path.name + ".bak",
            "y" * 240,
            os.fsdecode(b"\xff.safetensors"),
        ]
    )
    path.rename(directory / name)
    return f"{path.name} renamed to {name!r}"


def add(rng: random.Random, directory: Path) -> str:
    """A file that nothing lists."""
    name = rng.choice(
        ["x.safetensors", "model-00009-of-00009.safetensors", ".metadata", "shardwright.manifest", "config.json",
         "model.safetensors.index.json", "shard-00000-model-00001-of-00001.safetensors", "__9_0.distcp"]
    )  # fmt: skip
    content = rng.choice(
        [b"", b"{}", rng.randbytes(100), chosen(rng, directory).read_bytes(), pickle.dumps(Harm())]
    )
    (directory / name).write_bytes(content)
    return f"{name} added, {len(content)} bytes"


def in_its_place(rng: random.Random, directory: Path) -> str:
    """Something that is no file, or a link."""
    path = chosen(rng, directory)
    kind = rng.choice(["directory", "pipe", "dangling", "itself", "zero", "null", "sibling", "moved", "here"])
    content = path.read_bytes()
    path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "moved":  # as in the hub's cache: a link to the same bytes
        elsewhere = directory.parent / "elsewhere"
        elsewhere.write_bytes(content)
        path.symlink_to(elsewhere)
    elif kind == "sibling":
        path.symlink_to(rng.choice([other for other in files_of(directory) if other != path]).name)
    else:
        targets = {
            "dangling": "nowhere",
            "itself": path.name,
            "zero": "/dev/zero",
            "null": "/dev/null",
            "here": ".",
        }
        path.symlink_to(targets[kind])
    return f"in the place of {path.name}: {kind}"


# --- bytes --------------------------------------------------------------------------------------------------


def _at(rng: random.Random, data: bytes) -> int:
    """A place in the file; half of the time in the first part, where headers are."""
    first = min(len(data), 2000)
    return rng.randrange(max(first if rng.random() < 0.5 else len(data), 1))


def damaged(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    at, length = _at(rng, data), rng.choice([1, 1, 2, 8, 64, 1000])
    kind = rng.choice(
        ["flip", "flip", "flip", "set", "cut", "grow", "insert", "delete", "double", "zero", "exchange"]
    )
    other = _at(rng, data)
    if kind == "flip" and data:
        bit = rng.randrange(8)
        return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :], f"bit {bit} of byte {at} flipped"
    if kind == "set":
        value = rng.choice([0, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        return data[:at] + bytes([value]) * length + data[at + length :], f"bytes {at}+{length} are {value}"
    if kind == "cut":
        at = rng.choice([0, 1, 7, 8, 9, at, max(len(data) - 1, 0)])
        return data[:at], f"cut to {at} bytes"
    if kind == "grow":
        return data + rng.choice([bytes(length), rng.randbytes(length)]), f"{length} bytes more"
    if kind == "insert":
        return data[:at] + rng.randbytes(length) + data[at:], f"{length} bytes put in at {at}"
    if kind == "delete":
        return data[:at] + data[at + length :], f"{length} bytes taken out at {at}"
    if kind == "double":
        return data[:at] + data[at : at + length] + data[at:], f"bytes {at}+{length} doubled"
    if kind == "exchange":
        a, b = min(at, other), max(at, other)
        length = min(length, b - a, len(data) - b)
        swapped = (
            data[:a] + data[b : b + length] + data[a + length : b] + data[a : a + length] + data[b + length :]
        )
        return swapped, f"bytes {a}+{length} and {b}+{length} exchanged"
    return data[:at] + bytes(length) + data[at + length :], f"bytes {at}+{length} are zero"


def in_bytes(rng: random.Random, directory: Path) -> str:
    path = chosen(rng, directory)
    data, what = path.read_bytes(), []
    for _ in range(rng.choice([1, 1, 1, 3])):
        data, one = damaged(rng, data)
        what.append(one)
    path.write_bytes(data)
    return f"{path.name}: {', '.join(what)}"


def huge(rng: random.Random, directory: Path) -> str:
    """Sparse, and far longer than memory."""
    path = chosen(rng, directory)
    size = rng.choice([1 << 33, 1 << 40, (1 << 42) + 1])
    os.truncate(path, size)
    return f"{path.name} has {size} bytes"


# --- text ---------------------------------------------------------------------------------------------------


def _change_token(rng: random.Random, text: bytes) -> tuple[bytes, str]:
    pattern, choices = rng.choice(
        [(rb"-?\d+(?:\.\d+)?", [number.encode() for number in NUMBERS]), (rb'(?<=")[^"\\]*(?=")', NAMES)]
    )
    found = list(re.finditer(pattern, text))
    if not found:
        return text, "nothing"
    match = rng.choice(found)
    # what stands elsewhere in the text is the more dangerous: it fits
    to = rng.choice(choices) if rng.random() < 0.7 else rng.choice(found)[0]
    return text[: match.start()] + to + text[
        match.end() :
    ], f"{match[0][:60]!r} at {match.start()} is {to[:60]!r}"


def _change_tree(rng: random.Random, text: bytes) -> tuple[bytes, str]:
    """JSON of another structure: members that are gone, twice, nested, exchanged."""
    try:
        tree = json.loads(text)
    except ValueError:
        return _change_token(rng, text)
    objects = [tree] if isinstance(tree, dict) else []
    for one in objects:
        objects += [value for value in one.values() if isinstance(value, dict)]
    objects = [one for one in objects if one]
    if not objects:
        return text, "nothing"
    members = rng.choice(objects)
    key, other = rng.choice(list(members)), rng.choice(list(members))
    kind = rng.choice(["gone", "exchanged", "renamed", "copied", "twice", "nested", "filled", "emptied"])
    if kind == "gone":
        del members[key]
    elif kind == "exchanged":
        members[key], members[other] = members[other], members[key]
    elif kind == "renamed":
        members[key + rng.choice(["x", "_scale_inv", ".weight", " ", "\u202e"])] = members.pop(key)
    elif kind == "copied":
        members[key] = members[other]
    elif kind == "nested":
        depth = rng.choice([10, 5_000])
        brackets = rng.choice([("[", "]"), ('{"a":', "}")])
        mark = "@nested@"
        members[key] = mark
        deep = brackets[0] * depth + "1" + brackets[1] * depth
        return json.dumps(tree).replace(f'"{mark}"', deep).encode(), f"{key!r} nested {depth} times"
    elif kind == "filled":
        for number in range(3000):
            members[f"{key}.{number}"] = members[key]
    elif kind == "emptied":
        members[key] = type(members[key])() if isinstance(members[key], dict | list | str) else None
    else:
        once = json.dumps({key: members[key]})[1:-1]
        whole = json.dumps(tree)
        at = whole.find(once)
        return f"{whole[:at]}{once},{whole[at:]}".encode(), f"{key!r} twice"
    return json.dumps(tree).encode(), f"{key!r}, {other!r}: {kind}"


def changed_text(rng: random.Random, text: bytes) -> tuple[bytes, str]:
    return rng.choice([_change_token, _change_token, _change_tree])(rng, text)


def in_header(rng: random.Random, directory: Path) -> str:
    """The JSON of a safetensors file, with a length that fits it, or does not."""
    files = [path for path in files_of(directory) if path.suffix == ".safetensors"]
    path = rng.choice(files)
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    text, what = changed_text(rng, data[8 : 8 + length])
    kind = rng.random()
    told = (
        len(text)
        if kind < 0.9
        else rng.choice([0, 1, length, len(text) - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 8])
    )
    path.write_bytes(struct.pack("<Q", told) + text + data[8 + length :])
    return f"{path.name}: {what}" + (f"; length {told}" if kind >= 0.9 else "")


def in_json(rng: random.Random, directory: Path) -> str:
    path = rng.choice([path for path in files_of(directory) if path.suffix == ".json"])
    text, what = changed_text(rng, path.read_bytes())
    path.write_bytes(text)
    return f"{path.name}: {what}"


# --- the manifest, with a checksum that fits ----------------------------------------------------------------

Fields = list[tuple[int, int, int | bytes]]


def _varint(number: int) -> bytes:
    number &= 2**64 - 1
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def protobuf_fields(data: bytes) -> Fields:
    """(number, wire type, value) of a message, in the order of the bytes."""

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    at, found = 0, []
    while at < len(data):
        tag = varint()
        if tag & 7 == 0:
            value: int | bytes = varint()
        elif tag & 7 == 1:
            value = data[at : at + 8]
            at += 8
        elif tag & 7 == 2:
            length = varint()
            value = data[at : at + length]
            at += length
        else:
            raise ValueError("a wire type that the manifest does not have")
        found.append((tag >> 3, tag & 7, value))
    return found


def protobuf_bytes(fields: Fields) -> bytes:
    out = []
    for number, kind, value in fields:
        out.append(_varint(number << 3 | kind))
        if isinstance(value, int):
            out.append(_varint(value))
        else:
            out.append(value if kind == 1 else _varint(len(value)) + value)
    return b"".join(out)


#: Numbers of fields that are messages (storage/format/manifest.proto): of ManifestFile's Manifest, and within.
_MESSAGES = {
    "manifest": {3: "file", 4: "tensor", 5: "object"},
    "tensor": {8: "chunk"},
    "chunk": {3: "place"},
    "object": {2: "place"},
}
_PACKED = {"tensor": {5}, "chunk": {1, 2}}
_WHOLE = [0, 1, 2, 3, 8, 63, 64, 65, 255, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


def _changed_number(rng: random.Random, value: int) -> int:
    near = value + rng.choice([-64, -8, -1, 1, 2, 8, 64])
    return rng.choice([near % 2**64, near % 2**64, value * 2 % 2**64, value // 2, rng.choice(_WHOLE)])


def _changed_message(rng: random.Random, kind: str, data: bytes) -> tuple[bytes, str]:
    fields = protobuf_fields(data)
    if not fields:
        return data, "nothing"
    at = rng.randrange(len(fields))
    number, wire, value = fields[at]
    inner = _MESSAGES.get(kind, {}).get(number)
    move = rng.random()
    if move < 0.06:
        del fields[at]
        return protobuf_bytes(fields), f"{kind}.{number} gone"
    if move < 0.12:
        fields.insert(at, fields[at])
        return protobuf_bytes(fields), f"{kind}.{number} twice"
    if move < 0.2:
        other = rng.randrange(len(fields))
        if fields[other][1] == wire:
            fields[at], fields[other] = (number, wire, fields[other][2]), (fields[other][0], wire, value)
            return protobuf_bytes(fields), f"{kind}.{number} and .{fields[other][0]} exchanged"
    if kind == "object" and number == 1:
        # Never that of another value: nothing but the manifest knows the names of objects.
        changed, what = value + b"x", "name of an object"
    elif inner and isinstance(value, bytes):
        changed, what = _changed_message(rng, inner, value)
        what = f"{kind}.{number}: {what}"
    elif isinstance(value, int):
        changed = _changed_number(rng, value)
        what = f"{kind}.{number}: {value} is {changed}"
    elif number in _PACKED.get(kind, ()):
        numbers = [field[2] for field in protobuf_fields(b"".join(b"\x08" + one for one in _varints(value)))]
        numbers = _changed_numbers(rng, numbers)
        changed = b"".join(_varint(one) for one in numbers)
        what = f"{kind}.{number} is {numbers}"
    elif wire == 2 and rng.random() < 0.7:
        changed = rng.choice(
            [
                *NAMES,
                b"float32",
                b"complex128",
                b"F32",
                b"BF16",
                b"F64",
                b"I8",
                b"float8_e4m3fn",
                b"device",
                b"nn",
            ]
        )
        what = f"{kind}.{number}: {value[:40]!r} is {changed[:40]!r}"
    else:
        changed, what = damaged(rng, value)
        changed = (changed + bytes(8))[:8] if wire == 1 else changed
        what = f"{kind}.{number}: {what}"
    fields[at] = (number, wire, changed)
    return protobuf_bytes(fields), what


def _varints(data: bytes) -> list[bytes]:
    return re.findall(rb"[\x80-\xff]*[\x00-\x7f]", data, re.DOTALL)


def _changed_numbers(rng: random.Random, numbers: list) -> list:
    kind = rng.random()
    if kind < 0.2:
        return [*numbers, rng.choice(_WHOLE)]
    if kind < 0.3 or not numbers:
        return numbers[1:]
    if kind < 0.4:
        return rng.sample(numbers, len(numbers))
    at = rng.randrange(len(numbers))
    return [*numbers[:at], _changed_number(rng, numbers[at]), *numbers[at + 1 :]]


def manifest_file(manifest: bytes) -> bytes:
    return protobuf_bytes([(1, 2, manifest), (2, 1, struct.pack("<Q", xxhash.xxh3_64_intdigest(manifest)))])


#: torch's name, safetensors' name and size of dtypes.
_DTYPES = [
    (b"float32", b"F32", 4), (b"int32", b"I32", 4), (b"bfloat16", b"BF16", 2), (b"float16", b"F16", 2),
    (b"bool", b"BOOL", 1), (b"uint8", b"U8", 1), (b"int64", b"I64", 8), (b"float64", b"F64", 8),
    (b"complex64", b"C64", 8), (b"complex128", b"", 16), (b"float8_e4m3fn", b"F8_E4M3", 1), (b"complex32", b"", 4),
    (b"qint8", b"I8", 1),
]  # fmt: skip


def lying_manifest(rng: random.Random, directory: Path) -> str:
    """A manifest that holds together, and says something else than the files do."""
    path = directory / "shardwright.manifest"
    fields = protobuf_fields(_read(path))
    manifest = protobuf_fields(fields[0][2])
    tensors = [at for at, field in enumerate(manifest) if field[0] == 4]
    a, b = rng.sample(tensors, 2)
    one, other = (protobuf_fields(manifest[at][2]) for at in (a, b))
    kind = rng.choice(["dtype", "part of a dtype", "places", "names", "shape"])
    if kind == "places":
        chunks = [[field for field in tensor if field[0] == 8] for tensor in (one, other)]
        one = [field for field in one if field[0] != 8] + chunks[1]
        other = [field for field in other if field[0] != 8] + chunks[0]
    elif kind == "names":
        names = [next(field for field in tensor if field[0] == 1) for tensor in (one, other)]
        one = [names[1], *(field for field in one if field[0] != 1)]
        other = [names[0], *(field for field in other if field[0] != 1)]
    elif kind == "shape":  # turned: as many elements
        for tensor in (one, other):
            for at, (number, wire, value) in enumerate(tensor):
                if number == 5:
                    tensor[at] = number, wire, b"".join(reversed(_varints(value)))
                if number == 8:
                    chunk = [
                        (n, w, b"".join(reversed(_varints(v))) if n in (1, 2) else v)
                        for n, w, v in protobuf_fields(value)
                    ]
                    tensor[at] = number, wire, protobuf_bytes(chunk)
    else:
        dtype = rng.choice(_DTYPES)
        rows = {2: (2, 2, dtype[0]), 3: (3, 2, dtype[1]), 4: (4, 0, dtype[2])}
        if kind != "dtype":
            del rows[rng.choice(list(rows))]
        one = sorted(
            [field for field in one if field[0] not in rows] + list(rows.values()), key=lambda field: field[0]
        )
        kind += f": {dtype}"
    manifest[a], manifest[b] = (4, 2, protobuf_bytes(one)), (4, 2, protobuf_bytes(other))
    path.write_bytes(manifest_file(protobuf_bytes(manifest)))
    return f"manifest, with its checksum, tensors {a} and {b}: {kind}"


def _read(path: Path) -> bytes:
    if not path.is_file():  # another mutation has put something in its place that never ends
        raise ValueError("no file any more")
    return path.read_bytes()


def in_manifest(rng: random.Random, directory: Path) -> str:
    path = directory / "shardwright.manifest"
    manifest = protobuf_fields(_read(path))[0][2]
    assert isinstance(manifest, bytes)
    what = []
    for _ in range(rng.choice([1, 1, 1, 2])):
        manifest, one = _changed_message(rng, "manifest", manifest)
        what.append(one)
    path.write_bytes(manifest_file(manifest))
    return f"manifest, with its checksum: {', '.join(what)}"


# --- pickles ------------------------------------------------------------------------------------------------


def _archive_of_harm() -> bytes:
    data = io.BytesIO()
    torch.save({"x": Harm()}, data)
    return data.getvalue()


def harmful_pickle(rng: random.Random, directory: Path) -> str:
    """A pickle that makes a directory, in the place of a file or of a part of one."""
    path = rng.choice([path for path in files_of(directory) if path.suffix != ".json"])
    harm = rng.choice([pickle.dumps(Harm()), _archive_of_harm(), pickle.dumps(Harm(), protocol=2)])
    data = path.read_bytes()
    at = rng.choice([0, 0, rng.randrange(len(data) + 1)])
    path.write_bytes(rng.choice([harm, data[:at] + harm + data[at + len(harm) :], harm + data]))
    return f"{path.name}: a pickle that runs code at {at}"


def in_metadata(rng: random.Random, directory: Path) -> str:
    """torch's .metadata, changed where it is right as a pickle."""
    path = directory / ".metadata"
    data = _read(path)
    if HARM.encode() in data:
        raise ValueError("another mutation has put a pickle there that runs code")
    metadata = pickle.loads(data)
    index = rng.choice(list(metadata.storage_data))
    place = metadata.storage_data[index]
    name = rng.choice(list(metadata.state_dict_metadata))
    stored = metadata.state_dict_metadata[name]
    kind = rng.choice(
        ["place", "place", "path", "size", "chunk", "dtype", "gone", "exchanged", "type", "names", "harm"]
    )
    absurd = [-1, 0, 1, 2**31, 2**62, 2**63, 2**64, 1.5, None, "7", True, [], 10**400]
    what = ""
    if kind == "place":
        field = rng.choice(["offset", "length"])
        value = rng.choice([*absurd, getattr(place, field) + rng.choice([-64, -1, 1, 64])])
        setattr(place, field, value)
        what = f"{index.fqn}.{field} is {str(value)[:30]}"
    elif kind == "path":
        place.relative_path = rng.choice(
            [
                "",
                ".",
                "..",
                "../x",
                "/etc/passwd",
                "/dev/zero",
                "a\0b",
                "x" * 5000,
                "\ud800",
                ".metadata",
                None,
                7,
                b"x",
            ]
        )
        what = f"{index.fqn} lies in {str(place.relative_path)[:30]!r}"
    elif kind in ("size", "chunk", "dtype") and hasattr(stored, "chunks"):
        sizes = [
            torch.Size([]),
            torch.Size([0]),
            torch.Size([2**62, 4]),
            torch.Size([1] * 300),
            (3, 4),
            None,
            "size",
        ]
        sizes.append(torch.Size([size + 1 for size in stored.size]))
        value = rng.choice(sizes)
        if kind == "size":
            stored.size = value
        elif kind == "dtype":
            stored.properties.dtype = value = rng.choice(
                [torch.complex128, torch.uint8, torch.float32, torch.bool]
            )
        else:
            setattr(rng.choice(stored.chunks), rng.choice(["offsets", "sizes"]), value)
        what = f"{kind} of {name} is {value}"[:80]
    elif kind == "exchanged":
        other = rng.choice(list(metadata.storage_data))
        metadata.storage_data[index], metadata.storage_data[other] = metadata.storage_data[other], place
        what = f"{index.fqn} and {other.fqn}"
    elif kind == "type":
        holder, value = rng.choice([metadata.storage_data, metadata.state_dict_metadata]), rng.choice(absurd)
        holder[rng.choice(list(holder))] = value
        what = f"an entry is {str(value)[:30]}"
    elif kind == "names":
        data = metadata.planner_data
        if data:
            data[rng.choice(list(data))] = rng.choice(
                [(), None, ("a",), ("a", 2**70), ((1,),), 7, ("model", "x\0")]
            )
        what = "planner data"
    elif kind == "harm":
        holder = rng.choice([vars(metadata), vars(place)])
        holder[rng.choice(list(holder))] = Harm()
        what = "a field runs code"
    else:
        holder = rng.choice(
            [vars(metadata), metadata.storage_data, metadata.state_dict_metadata, vars(place)]
        )
        holder.pop(rng.choice(list(holder)))
        what = "an entry is gone"
    path.write_bytes(pickle.dumps(metadata, protocol=rng.choice([2, 4, 5])))
    return f".metadata: {kind}: {what}"


#: What is tried on any checkpoint, and how often.
ANYWHERE: list[tuple[Mutation, int]] = [
    (in_bytes, 8), (remove, 1), (swap, 1), (copy_over, 1), (rename, 1), (add, 1), (in_its_place, 2), (huge, 1),
    (harmful_pickle, 1),
]  # fmt: skip
