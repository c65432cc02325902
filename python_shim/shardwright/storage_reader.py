"""The storage half of a load through torch.distributed.checkpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader as TorchHuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.planner import LoadPlanner as TorchLoadPlanner
from torch.futures import Future

from shardwright import _core
from shardwright.catalog_metadata import CatalogMetadata
from shardwright.describe import describe
from shardwright.load_planner import LoadPlanner
from shardwright.progress import progress_callback
from shardwright.report import LoadReport


def default_threads() -> int:
    """This process's share of the processors: those it may use, divided among the ranks that torchrun started here."""
    ranks_here = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return max(1, len(os.sched_getaffinity(0)) // ranks_here)


class HuggingFaceStorageReader(TorchHuggingFaceStorageReader):
    """Reads a Hugging Face safetensors checkpoint into preallocated shards, decoding and regrouping on the way.

    Args:
        path: the checkpoint directory.
        thread_count: threads that read and decode; None: this process's share of the processors.
        staging_bytes: memory between files and shards, all threads together; None: 1 MiB a thread.
        progress: True shows a progress bar on stderr; a callable gets (bytes done, bytes in all) now and then.

    After a load, ``report`` is its :class:`LoadReport`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        thread_count: int | None = None,
        *,
        staging_bytes: int | None = None,
        progress: bool | Callable[[int, int], None] = False,
    ) -> None:
        threads = default_threads() if thread_count is None else thread_count
        if threads < 1:
            raise ValueError(f"thread_count is {thread_count}; expected 1 or more")
        super().__init__(os.fspath(path), threads)
        if staging_bytes is not None and staging_bytes < 1:
            raise ValueError(f"staging_bytes is {staging_bytes}; expected a number of bytes, or None")
        self.staging_bytes = staging_bytes
        self.progress = progress
        self.report: LoadReport | None = None
        self._catalog_seconds = 0.0

    def read_metadata(self) -> Metadata:
        return CatalogMetadata(self._read_catalog, self.load_id)

    def _read_catalog(self) -> Any:
        start = time.perf_counter()
        catalog = _core.read_catalog(os.fspath(self.path), self.thread_count)
        self._catalog_seconds = time.perf_counter() - start
        return catalog

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        # Not super(): it would build the storage data of every tensor, which nobody here asks for.
        if not isinstance(metadata, CatalogMetadata):
            raise ValueError(
                "shardwright.HuggingFaceStorageReader needs the metadata of its own read_metadata()"
            )
        self._metadata = metadata

    def read_data(self, plan: LoadPlan, planner: TorchLoadPlanner) -> Future[None]:
        """Runs the planner's transfers if it is Shardwright's, else reads the plan's items as they are stored."""
        if isinstance(planner, LoadPlanner) and not planner.by_items:
            self._run(
                planner.core_plan, planner.catalog, planner.specs, planner.local_tensors, planner.plan_seconds
            )
        else:
            self._read_items(plan, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read_items(self, plan: LoadPlan, planner: TorchLoadPlanner) -> None:
        start = time.perf_counter()
        catalog = self._metadata.catalog
        targets = [planner.resolve_tensor(item).detach() for item in plan.items]
        requests = []
        specs = []
        for item, target in zip(plan.items, targets, strict=True):
            index = item.storage_index
            offset = [0] * len(item.lengths) if index.offset is None else list(index.offset)
            requests.append((index.fqn, offset, list(item.storage_offsets), list(item.lengths)))
            specs += describe({index.fqn: target})[0]
        core_plan = _core.plan_reads(requests, specs, catalog)
        self._run(core_plan, catalog, specs, targets, time.perf_counter() - start)
        for item, target in zip(plan.items, targets, strict=True):
            planner.commit_tensor(item, target)

    def _run(
        self, core_plan: Any, catalog: Any, specs: list[Any], tensors: list[torch.Tensor], plan_seconds: float
    ) -> None:
        with progress_callback(self.progress) as callback:
            core = _core.run_load(
                core_plan, catalog, specs, self.thread_count, self.staging_bytes or 0, callback
            )
        # Autograd must know that the tensors changed behind its back.
        torch.autograd.graph.increment_version(tensors)
        self.report = LoadReport.of(core, self._catalog_seconds, plan_seconds)
