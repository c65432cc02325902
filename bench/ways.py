"""Every way to load a checkpoint that the benchmark compares: ours, the peers', and the machine's own limits.

A way is a function of (checkpoint, threads) that allocates and touches what is loaded into, and returns the load, a
function without arguments that is timed. Peers are imported inside their function, so that each process has only one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

Load = Callable[[], Any]


def safetensors_files(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors"))


def fill(state_dict: dict[str, torch.Tensor]) -> None:
    for tensor in state_dict.values():
        tensor.fill_(1)


def touched_native(path: Path) -> dict[str, torch.Tensor]:
    import shardwright as sw

    state_dict = sw.empty_state_dict(path)
    fill(state_dict)
    return state_dict


def touched_as_stored(path: Path) -> dict[str, torch.Tensor]:
    """A tensor for each of the checkpoint's, of the same dtype and shape."""
    from safetensors import safe_open

    state_dict = {}
    for file in safetensors_files(path):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                state_dict[name] = torch.empty_like(tensors.get_tensor(name))
                state_dict[name].view(torch.uint8).fill_(1)
    return state_dict


def shardwright(path: Path, threads: int) -> Load:
    """Decoded and regrouped, into native BF16 tensors."""
    import shardwright as sw

    state_dict = touched_native(path)
    return lambda: sw.load(state_dict, path, threads=threads)


def adapter_configs(path: Path) -> tuple[SimpleNamespace, SimpleNamespace]:
    """(config of the model, config of its experts), with what the adapters look at."""
    text = json.loads((path / "config.json").read_text())["text_config"]
    config = SimpleNamespace(text_config=SimpleNamespace(**text))
    moe_config = SimpleNamespace(
        n_routed_experts=text["num_local_experts"],
        moe_inter_dim=text["intermediate_size"],
        dim=text["hidden_size"],
        expert_bias=False,
        expert_activation="swiglu",
    )
    return config, moe_config


def through_theirs(path: Path, reader: Callable[[], Any]) -> Load:
    from nemo_automodel.components.models.minimax_m3_vl.state_dict_adapter import MiniMaxM3VLStateDictAdapter

    model = touched_native(path)
    adapter = MiniMaxM3VLStateDictAdapter(*adapter_configs(path), SimpleNamespace(dispatcher="torch"))

    def load() -> None:
        hf_state_dict = adapter.to_hf(model, quantization=True)
        dcp.load(hf_state_dict, storage_reader=reader())
        native = adapter.from_hf(hf_state_dict)
        for name in list(native):
            model[name].copy_(native.pop(name))

    return load


def nemo_automodel(path: Path, threads: int) -> Load:
    """nemo-automodel's way to the same tensors: ask for HF tensors, dcp.load, convert, copy into the model."""
    from nemo_automodel.components.checkpoint._backports.hf_storage import _HuggingFaceStorageReader

    return through_theirs(path, lambda: _HuggingFaceStorageReader(str(path)))


def nemo_automodel_adapter(path: Path, threads: int) -> Load:
    """The same with torch's reader."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    return through_theirs(path, lambda: HuggingFaceStorageReader(str(path), thread_count=threads))


def shardwright_adapter(path: Path, threads: int) -> Load:
    """Our adapter in place of nemo-automodel's, with torch's reader. Gives the seconds of each step."""
    from shardwright.models.minimax_m3_vl.state_dict_adapter import MiniMaxM3VLStateDictAdapter
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    model = touched_native(path)
    adapter = MiniMaxM3VLStateDictAdapter(*adapter_configs(path), None)

    def load() -> dict[str, float]:
        times = [time.perf_counter()]
        hf_state_dict = adapter.to_hf(model, quantization=True, checkpoint=path)
        times.append(time.perf_counter())
        dcp.load(hf_state_dict, storage_reader=HuggingFaceStorageReader(str(path), thread_count=threads))
        times.append(time.perf_counter())
        native = adapter.from_hf(hf_state_dict)
        times.append(time.perf_counter())
        assert all(native[name] is model[name] for name in model)
        steps = ("to_hf", "dcp.load", "from_hf")
        return {step: times[i + 1] - times[i] for i, step in enumerate(steps)}

    return load


def transformers(path: Path, threads: int) -> Load:
    """from_pretrained with dequantization, which allocates the model too (transformers' own layout, no MTP)."""
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(path)
    config.quantization_config["dequantize"] = True
    return lambda: AutoModelForImageTextToText.from_pretrained(path, config=config, dtype="auto")


def torch_dcp(path: Path, threads: int) -> Load:
    """torch's own HuggingFaceStorageReader under dcp.load, raw: HF names, as stored."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    state_dict: dict[str, Any] = touched_as_stored(path)
    return lambda: dcp.load(
        state_dict, storage_reader=HuggingFaceStorageReader(str(path), thread_count=threads)
    )


def fastsafetensors(path: Path, threads: int) -> Load:
    """fastsafetensors to CPU memory, raw."""
    from fastsafetensors import SafeTensorsFileLoader

    def load() -> None:
        loader = SafeTensorsFileLoader(None, device="cpu", max_threads=threads, nogds=True)
        loader.add_filenames({0: [str(file) for file in safetensors_files(path)]})
        buffers = loader.copy_files_to_device()
        for name in loader.get_keys():
            buffers.get_tensor(name)
        buffers.close()
        loader.close()

    return load


def runai_model_streamer(path: Path, threads: int) -> Load:
    """runai-model-streamer to CPU memory, raw."""
    os.environ["RUNAI_STREAMER_CONCURRENCY"] = str(threads)
    from runai_model_streamer import SafetensorsStreamer

    def load() -> None:
        with SafetensorsStreamer() as streamer:
            streamer.stream_files([str(file) for file in safetensors_files(path)])
            for _ in streamer.get_tensors():
                pass

    return load


def safetensors_copy(path: Path, threads: int) -> Load:
    """safetensors' load_file and one copy of each tensor, raw."""
    from safetensors.torch import load_file

    def load() -> None:
        for file in safetensors_files(path):
            for tensor in load_file(file).values():
                tensor.clone()

    return load


def read_limit(path: Path, threads: int) -> Load:
    """Every file read into a small buffer, in pieces of 1 MiB."""
    piece = 64 << 20
    jobs = [
        (file, begin, min(begin + piece, file.stat().st_size))
        for file in safetensors_files(path)
        for begin in range(0, file.stat().st_size, piece)
    ]

    def read(job: tuple[Path, int, int]) -> None:
        file, begin, end = job
        buffer = bytearray(1 << 20)
        descriptor = os.open(file, os.O_RDONLY)
        for offset in range(begin, end, len(buffer)):
            os.preadv(descriptor, [buffer], offset)
        os.close(descriptor)

    def load() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read, jobs))

    return load


def fill_limit(path: Path, threads: int) -> Load:
    """The native tensors filled with a constant."""
    state_dict = touched_native(path)
    return lambda: fill(state_dict)


WAYS: dict[str, Callable[[Path, int], Load]] = {
    "shardwright": shardwright,
    "nemo-automodel": nemo_automodel,
    "transformers": transformers,
    "torch DCP, raw": torch_dcp,
    "fastsafetensors, raw": fastsafetensors,
    "runai-model-streamer, raw": runai_model_streamer,
    "safetensors copy, raw": safetensors_copy,
    "read limit": read_limit,
    "fill limit": fill_limit,
}

#: Adapters in the same place: see adapter.py.
ADAPTERS: dict[str, Callable[[Path, int], Load]] = {
    "shardwright adapter, torch's reader": shardwright_adapter,
    "nemo-automodel adapter, torch's reader": nemo_automodel_adapter,
}
