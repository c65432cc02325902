"""What an export takes over from its template beside the tensors: config.json, tokenizer and processor files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

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
    try:
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = str(path)  # which writing and flushing do not say
        raise


def copy_template_files(template: Path, directory: Path, quantised: bool) -> None:
    """Copies every file that holds no weights, config.json with the ``quantization_config`` of what was written."""
    for source in sorted(template.iterdir()):
        if source.name.startswith(".") or source.name.endswith(_WEIGHTS):
            continue
        if source.is_dir() and source.name in _FOLDERS:
            (directory / source.name).mkdir()
            copy_template_files(source, directory / source.name, quantised)
        if not source.is_file():
            continue
        content = source.read_bytes()
        if source.name == "config.json":
            content = config_of(content, quantised)
        write_flushed(directory / source.name, content)


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
