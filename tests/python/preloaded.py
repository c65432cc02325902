"""What all ranks of tests need and takes seconds: imported and worked out once, by the process whose forks they are."""

import hypothesis  # noqa: F401
import numpy.random  # noqa: F401
import pytest  # noqa: F401
import reference
import safetensors.torch  # noqa: F401
import shardwright  # noqa: F401
import torch._dynamo  # noqa: F401
import torch.distributed.checkpoint
import torch.distributed.tensor  # noqa: F401

for dtype in (torch.bfloat16, torch.float32):
    reference.mx_table("F8_E4M3", dtype)
