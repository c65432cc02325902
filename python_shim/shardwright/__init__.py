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

# What type checkers and editors read in place of the table below.
if TYPE_CHECKING:
    from shardwright.catalog import generate as generate
    from shardwright.catalog import read_catalog as read_catalog
    from shardwright.catalog import request_list as request_list
    from shardwright.checkpoints import latest as latest
    from shardwright.checkpoints import verify as verify
    from shardwright.converting import convert as convert
    from shardwright.dcp.load_planner import LoadPlanner as LoadPlanner
    from shardwright.dcp.save_planner import SavePlanner as SavePlanner
    from shardwright.dcp.sharded_reader import ShardedStorageReader as ShardedStorageReader
    from shardwright.dcp.sharded_writer import ShardedStorageWriter as ShardedStorageWriter
    from shardwright.dcp.storage_reader import HuggingFaceStorageReader as HuggingFaceStorageReader
    from shardwright.dcp.storage_writer import HuggingFaceStorageWriter as HuggingFaceStorageWriter
    from shardwright.exporting import export as export
    from shardwright.exporting import quantizations as quantizations
    from shardwright.handover.apply_pieces import AppliedPieces as AppliedPieces
    from shardwright.handover.apply_pieces import TensorPart as TensorPart
    from shardwright.handover.apply_pieces import apply_pieces as apply_pieces
    from shardwright.handover.engine import EnginePart as EnginePart
    from shardwright.handover.engine import EngineTensor as EngineTensor
    from shardwright.handover.piece import Piece as Piece
    from shardwright.handover.piece_sums import PieceSums as PieceSums
    from shardwright.handover.pieces import pieces as pieces
    from shardwright.handover.refit import RefitPlan as RefitPlan
    from shardwright.handover.refit import RefitReport as RefitReport
    from shardwright.handover.refit import refit as refit
    from shardwright.handover.refit import refit_plan as refit_plan
    from shardwright.loading import load as load
    from shardwright.lora.load import LoraReport as LoraReport
    from shardwright.lora.load import load_lora as load_lora
    from shardwright.lora.save import save_lora as save_lora
    from shardwright.native import empty_state_dict as empty_state_dict
    from shardwright.report import LoadReport as LoadReport
    from shardwright.report import SaveReport as SaveReport
    from shardwright.saving import PendingSave as PendingSave
    from shardwright.saving import save as save

#: Public names by module. A module is imported when a name of it is first asked for: torch takes seconds to import, and
#: looking at a checkpoint does not need it.
_NAMES = {
    "catalog": ("generate", "read_catalog", "request_list"),
    "checkpoints": ("latest", "verify"),
    "converting": ("convert",),
    "dcp.load_planner": ("LoadPlanner",),
    "dcp.save_planner": ("SavePlanner",),
    "dcp.sharded_reader": ("ShardedStorageReader",),
    "dcp.sharded_writer": ("ShardedStorageWriter",),
    "dcp.storage_reader": ("HuggingFaceStorageReader",),
    "dcp.storage_writer": ("HuggingFaceStorageWriter",),
    "exporting": ("export", "quantizations"),
    "handover.apply_pieces": ("AppliedPieces", "TensorPart", "apply_pieces"),
    "handover.engine": ("EnginePart", "EngineTensor"),
    "handover.piece": ("Piece",),
    "handover.piece_sums": ("PieceSums",),
    "handover.pieces": ("pieces",),
    "handover.refit": ("RefitPlan", "RefitReport", "refit", "refit_plan"),
    "loading": ("load",),
    "lora.load": ("LoraReport", "load_lora"),
    "lora.save": ("save_lora",),
    "native": ("empty_state_dict",),
    "report": ("LoadReport", "SaveReport"),
    "saving": ("PendingSave", "save"),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = ["CheckpointFormatError", "PlanError", "__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'shardwright' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"shardwright.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
