"""What an export takes over from its template beside the tensors: config.json, tokenizer and processor files."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from shardwright.system_calls import naming, opened, uninterrupted

#: Names of files that hold weights or a trainer's state, in whatever format, or say where they are.
_WEIGHTS = re.compile(
    r"\.(bin|pt|pth|pkl|pickle|h5|hdf5|msgpack|ot|tflite|mlmodel|pdparams|nemo|npz|npy|distcp)"
    r"(\.index\.json)?([.~](bak|old|orig|tmp|\d+))*~?$"
    r"|\.(safetensors|onnx|gguf|ckpt)",
    re.IGNORECASE,
)

#: What tells of an adapter, a training or a checkpoint of one that is in the same folder; alone it would mislead.
_OTHERS = re.compile(
    r"shardwright\..*|adapter_config\.json|automodel_peft_config\.json|trainer_state\.json|latest|zero_to_fp32\.py"
    r"|events\.out\.tfevents\..*"
)

#: Folders that hold no weights: what transformers puts beside a tokenizer with several chat templates.
_FOLDERS = ("additional_chat_templates",)

#: What config.json says of MXFP8 weights where the template does not.
_MXFP8 = {
    "quant_method": "mxfp8",
    "fmt": "e4m3",
    "scale_fmt": "ue8m0",
    "weight_block_size": [1, 32],
    "activation_scheme": "dynamic",
}


def write_flushed(path: Path, content: bytes) -> None:
    """Writes a small file that is on the device when this returns."""
    uninterrupted(lambda: path.parent.mkdir(exist_ok=True))
    with opened(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def template_files(template: Path, quantised: bool) -> dict[str, bytes]:
    """Every file of a template that is of the model but its weights, by its name relative to it, and what an export
    writes there: config.json with the ``quantization_config`` of the weights."""
    return uninterrupted(lambda: _files_of(template, quantised))


def _files_of(template: Path, quantised: bool) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for source in sorted(template.iterdir()):
        if source.name.startswith(".") or _WEIGHTS.search(source.name) or _OTHERS.fullmatch(source.name):
            continue
        if source.is_dir() and source.name in _FOLDERS:
            inside = _files_of(source, quantised)
            files.update({f"{source.name}/{name}": content for name, content in inside.items()})
        if source.is_file():
            with naming(source):
                content = source.read_bytes()
            files[source.name] = _content_of(source.name, content, quantised)
    return files


def _content_of(name: str, content: bytes, quantised: bool) -> bytes:
    return config_of(content, quantised) if name == "config.json" else content


def kept_files(directory: Path, names: list[str], quantised: bool) -> dict[str, bytes]:
    """The files of an export that another one replaces without a template, as that writes them."""
    files = {}
    for name in names:
        with naming(directory / name), opened(directory / name, "rb") as file:
            files[name] = _content_of(name, file.read(), quantised)
    return files


def config_of(template: bytes, quantised: bool) -> bytes:
    """The template's config.json, unchanged if it says the truth about the weights."""
    config: dict[str, Any] = json.loads(template)
    holders = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
    having = [part for part in holders if "quantization_config" in part]
    tells_mxfp8 = bool(having) and having[0]["quantization_config"].get("weight_block_size") == [1, 32]
    if quantised == tells_mxfp8 and quantised == bool(having):
        return template
    for part in having:
        del part["quantization_config"]
    if quantised:
        config["quantization_config"] = _MXFP8
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
