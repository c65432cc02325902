"""Shardwright: plans and runs distributed-checkpoint loads for PyTorch.

A released Hugging Face checkpoint (MiniMax M3: MXFP8, one tensor per expert) goes straight into the sharded BF16
tensors of a trainer::

    import torch.distributed.checkpoint as dcp
    import shardwright as sw

    dcp.load(state_dict, storage_reader=sw.HuggingFaceStorageReader(path), planner=sw.LoadPlanner())
    report = sw.load(state_dict, path)  # the same without dcp's own collectives
"""

from shardwright._core import CheckpointFormatError, PlanError
from shardwright.checkpoint import empty_state_dict, generate, read_catalog, request_list
from shardwright.load_planner import LoadPlanner
from shardwright.loading import load
from shardwright.report import LoadReport
from shardwright.storage_reader import HuggingFaceStorageReader

__all__ = [
    "CheckpointFormatError",
    "HuggingFaceStorageReader",
    "LoadPlanner",
    "LoadReport",
    "PlanError",
    "empty_state_dict",
    "generate",
    "load",
    "read_catalog",
    "request_list",
]
