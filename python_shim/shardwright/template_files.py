"""What an export takes over from its template beside the tensors: config.json, tokenizer and processor files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from shardwright import _core
from shardwright.system_calls import naming, uninterrupted

#: Ends of the names of files that hold weights, or say where they are.
_WEIGHTS = (
    ".safetensors",
    ".safetensors.index.json",
    ".bin",
    ".bin.index.json",
    ".pt",
    ".pth",
    ".gguf",
    ".distcp",
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
    path.parent.mkdir(exist_ok=True)
    with naming(path), open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def template_files(template: Path, quantised: bool) -> dict[str, bytes]:
    """Every file of a template that holds no weights, by its name relative to it, and what an export writes there:
    config.json with the ``quantization_config`` of the weights."""
    return uninterrupted(lambda: _files_of(template, quantised))


def _files_of(template: Path, quantised: bool) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for source in sorted(template.iterdir()):
        if (
            source.name.startswith(".")
            or source.name.endswith(_WEIGHTS)
            or source.name == _core.checksums_name
        ):
            continue
        if source.is_dir() and source.name in _FOLDERS:
            inside = _files_of(source, quantised)
            files.update({f"{source.name}/{name}": content for name, content in inside.items()})
        if source.is_file():
            with naming(source):
                content = source.read_bytes()
            files[source.name] = config_of(content, quantised) if source.name == "config.json" else content
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
