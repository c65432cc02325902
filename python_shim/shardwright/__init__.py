"""Shardwright: plans and runs distributed-checkpoint loads and exports for PyTorch.

A released Hugging Face checkpoint (MiniMax M3: MXFP8, one tensor per expert) goes straight into the sharded BF16
tensors of a trainer::

    import torch.distributed.checkpoint as dcp
    import shardwright as sw

    dcp.load(state_dict, storage_reader=sw.HuggingFaceStorageReader(path), planner=sw.LoadPlanner())
    report = sw.load(state_dict, path)  # the same without dcp's own collectives

Training is saved and resumed, on any number of ranks, with ``sw.save(state, path)`` and ``sw.load(state, path)``. An
export goes the other way, from any placement to the files of a released checkpoint::

    report = sw.export(state_dict, destination, quantization="mxfp8", template=path)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from shardwright._core import CheckpointFormatError, PlanError, __version__

if TYPE_CHECKING:
    from shardwright.catalog import generate, read_catalog, request_list
    from shardwright.checkpoints import latest, verify
    from shardwright.converting import convert
    from shardwright.dcp.load_planner import LoadPlanner
    from shardwright.dcp.save_planner import SavePlanner
    from shardwright.dcp.sharded_reader import ShardedStorageReader
    from shardwright.dcp.sharded_writer import ShardedStorageWriter
    from shardwright.dcp.storage_reader import HuggingFaceStorageReader
    from shardwright.dcp.storage_writer import HuggingFaceStorageWriter
    from shardwright.exporting import export, quantizations
    from shardwright.handover.apply_pieces import AppliedPieces, TensorPart, apply_pieces
    from shardwright.handover.engine import EnginePart, EngineTensor
    from shardwright.handover.piece import Piece
    from shardwright.handover.piece_sums import PieceSums
    from shardwright.handover.pieces import pieces
    from shardwright.handover.refit import RefitPlan, RefitReport, refit, refit_plan
    from shardwright.loading import load
    from shardwright.lora.load import LoraReport, load_lora
    from shardwright.lora.save import save_lora
    from shardwright.native import empty_state_dict
    from shardwright.report import LoadReport, SaveReport
    from shardwright.saving import PendingSave, save

__all__ = [
    "EnginePart",
    "EngineTensor",
    "CheckpointFormatError",
    "HuggingFaceStorageReader",
    "HuggingFaceStorageWriter",
    "LoadPlanner",
    "LoadReport",
    "PendingSave",
    "AppliedPieces",
    "Piece",
    "PieceSums",
    "TensorPart",
    "apply_pieces",
    "LoraReport",
    "PlanError",
    "RefitPlan",
    "RefitReport",
    "SavePlanner",
    "SaveReport",
    "ShardedStorageReader",
    "ShardedStorageWriter",
    "__version__",
    "convert",
    "empty_state_dict",
    "export",
    "generate",
    "latest",
    "load",
    "load_lora",
    "pieces",
    "quantizations",
    "read_catalog",
    "refit",
    "refit_plan",
    "request_list",
    "save",
    "verify",
    "save_lora",
]

# Imported when first asked for: torch takes seconds to import, and looking at a checkpoint does not need it.
_MODULE_OF = {
    "EnginePart": "handover.engine",
    "EngineTensor": "handover.engine",
    "RefitPlan": "handover.refit",
    "RefitReport": "handover.refit",
    "refit": "handover.refit",
    "refit_plan": "handover.refit",
    "HuggingFaceStorageReader": "dcp.storage_reader",
    "HuggingFaceStorageWriter": "dcp.storage_writer",
    "LoadPlanner": "dcp.load_planner",
    "LoadReport": "report",
    "PendingSave": "saving",
    "AppliedPieces": "handover.apply_pieces",
    "Piece": "handover.piece",
    "PieceSums": "handover.piece_sums",
    "TensorPart": "handover.apply_pieces",
    "apply_pieces": "handover.apply_pieces",
    "ShardedStorageReader": "dcp.sharded_reader",
    "ShardedStorageWriter": "dcp.sharded_writer",
    "LoraReport": "lora.load",
    "SavePlanner": "dcp.save_planner",
    "SaveReport": "report",
    "convert": "converting",
    "empty_state_dict": "native",
    "export": "exporting",
    "generate": "catalog",
    "latest": "checkpoints",
    "load": "loading",
    "load_lora": "lora.load",
    "pieces": "handover.pieces",
    "quantizations": "exporting",
    "read_catalog": "catalog",
    "request_list": "catalog",
    "save": "saving",
    "verify": "checkpoints",
    "save_lora": "lora.save",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'shardwright' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"shardwright.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
