"""Ways to read what lies at an address of S3, beside ours. Each returns what is timed, and is imported when it is made:
what is not installed raises ImportError."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

Work = Callable[[], object]

BYTES_OF_REQUEST = 8 << 20
REQUESTS_AT_ONCE = 24


def obstore(address: str, ending: str) -> Work:
    """obstore alone: every object whose name ends so, in ranges, thrown away as it comes."""
    import obstore
    from obstore.store import from_url

    store = from_url(address, client_options={"allow_http": True, "timeout": "1h"})
    objects = [one for one in obstore.list_with_delimiter(store)["objects"] if one["path"].endswith(ending)]
    ranges = [
        (one["path"], begin, min(begin + BYTES_OF_REQUEST, one["size"]))
        for one in objects
        for begin in range(0, one["size"], BYTES_OF_REQUEST)
    ]

    def read(wanted: tuple[str, int, int]) -> None:
        path, begin, end = wanted
        for _ in obstore.get(store, path, options={"range": (begin, end)}).stream(min_chunk_size=256 << 10):
            pass

    def read_all() -> None:
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            list(pool.map(read, ranges))

    return read_all


def streamer(address: str, names: list[str]) -> Work:
    """runai-model-streamer: whole files into CPU tensors, which it gives one after the other."""
    import runai_model_streamer_s3  # noqa: F401  # without it S3 is not reached
    from runai_model_streamer import SafetensorsStreamer

    def read_all() -> None:
        with SafetensorsStreamer() as stream:
            stream.stream_files([f"{address}/{name}" for name in names])
            for _ in stream.get_tensors():
                pass

    return read_all


def shardwright(address: str, state: dict[str, torch.Tensor], threads: int) -> Work:
    import shardwright as sw

    return lambda: sw.load(state, address, threads=threads)


def fsspec_reader(address: str, state: dict[str, torch.Tensor]) -> Work:
    """torch's own, through s3fs."""
    import s3fs  # noqa: F401  # fsspec finds it by name
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

    return _by_torch(state, lambda: FsspecReader(address))


def s3torchconnector(address: str, state: dict[str, torch.Tensor]) -> Work:
    """Amazon's, as it chooses for checkpoints."""
    from s3torchconnector import S3ClientConfig
    from s3torchconnector.dcp import S3StorageReader

    options = S3ClientConfig(force_path_style=True)
    return _by_torch(state, lambda: S3StorageReader("us-east-1", address, s3client_config=options))


def _by_torch(state: dict[str, torch.Tensor], reader: Callable[[], Any]) -> Work:
    import torch.distributed.checkpoint as dcp

    return lambda: dcp.load(state, storage_reader=reader(), no_dist=True)
