"""adapter_model.safetensors and adapter_config.json, written so that they are there or are not."""

from __future__ import annotations

import math
import mmap
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from shardwright import _core
from shardwright.describe import DTYPE_NAMES
from shardwright.lora.adapter_file import WEIGHTS
from shardwright.lora.config import CONFIG
from shardwright.lora.windows import Window
from shardwright.ranks.rank_outcome import RankOutcome, expect_success
from shardwright.system_calls import opened, write_flushed

#: (name in the file, shape that the tensor is seen in, offset there, values)
Part = tuple[str, tuple[int, ...], list[int], torch.Tensor]


class AdapterBeingWritten:
    """An adapter's files in a folder of their own, until all is there. Where nothing is written its tensors are
    zero."""

    def __init__(self, directory: Path, overwrite: bool | None) -> None:
        self.directory = directory
        self.overwrite = overwrite
        self.failure: Exception | None = None
        self._pending: Any = None
        self._tensors: dict[str, torch.Tensor] = {}
        self._written: set[tuple[str, tuple[int, ...]]] = set()
        self._due: Counter[str] = Counter()

    def attempt(self, step: Callable[..., None], *arguments: Any) -> None:
        """Takes a step, unless one before has failed: the ranks go through all of them together."""
        if self.failure is not None:
            return
        try:
            step(*arguments)
        except Exception as failure:
            self.failure = failure
            self._tensors.clear()
            if self._pending is not None:
                self._pending.abandon()

    def begin(self, windows: list[Window], dtypes: Mapping[str, torch.dtype], config: str) -> None:
        shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        for window in windows:
            shapes[window.name] = dtypes[window.key], window.shape
            self._due[window.name] += math.prod(window.native_size)
        # The widest first, so that each lies at a multiple of its size; then by name.
        names = sorted(shapes, key=lambda name: (-shapes[name][0].itemsize, name))
        header, ranges = _core.safetensors_header(
            [(name, DTYPE_NAMES[shapes[name][0]], list(shapes[name][1])) for name in names],
            {
                "format": "pt",
                _core.writer_key: "save_lora",
                _core.config_key: str(_core.checksum_of(config.encode())),
            },
        )
        self._pending = _core.PendingCheckpoint(self.directory, "adapter", self.overwrite)
        weights = self._pending.path / WEIGHTS
        size = ranges[-1][1]
        # "+": where there is no fallocate, the C library reads as well.
        with opened(weights, "wb+") as file:
            file.write(header)
            file.flush()
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, not a signal later
            mapped = torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)
        self._tensors = {
            name: mapped[begin:end].view(shapes[name][0])
            for name, (begin, end) in zip(names, ranges, strict=True)
        }

    def write(self, parts: list[Part] | RankOutcome) -> None:
        """Writes what a rank has sent; raises what it has failed of."""
        if isinstance(parts, RankOutcome):
            expect_success([parts])
            return
        for name, seen, offset, values in parts:
            if (name, tuple(offset)) in self._written:
                continue
            self._written.add((name, tuple(offset)))
            box = tuple(slice(at, at + count) for at, count in zip(offset, values.shape, strict=True))
            self._tensors[name].view(seen)[box] = values
            self._due[name] -= values.numel()

    def publish(self, config: str) -> None:
        lacking = sorted(name for name, count in self._due.items() if count)
        if lacking:
            raise _core.PlanError(
                "no rank holds all of these LoRA tensors; nothing has been published:\n  "
                + "\n  ".join(_core.grouped_names(lacking))
            )
        self._tensors.clear()
        write_flushed(self._pending.path / CONFIG, config.encode())
        weights = self._pending.path / WEIGHTS
        with opened(weights, "rb+") as file:
            os.fsync(file.fileno())
        self._pending.publish(WEIGHTS)
