"""vLLM's own classes of weight transfer take what shardwright.integrations.vllm gives, and get an export's tensors.

Its wheel brings CUDA and another torch, so `.venv-peers` has it not: `make engines` puts it on PYTHONPATH for these
tests alone. The classes need no GPU.
"""

from pathlib import Path

import pytest
import shardwright as sw
import torch
from safetensors import safe_open
from shardwright.integrations.vllm import weight_source

base = pytest.importorskip("vllm.distributed.weight_transfer.base")


def stored(directory: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    return tensors


@pytest.mark.parametrize("quantization", ["mxfp8", None])
def test_a_source_is_what_vllms_sender_checks_it_against(quantization: str | None, tmp_path: Path):
    sender = pytest.importorskip(
        "vllm.distributed.weight_transfer.nccl_engine"
    ).NCCLTrainerWeightTransferEngine
    sw.generate(tmp_path / "released", "tiny")
    state = sw.empty_state_dict(tmp_path / "released")
    sw.load(state, tmp_path / "released")
    options = {"quantization": quantization, "template": tmp_path / "released"}
    source = weight_source(state, **options, batch_bytes=100_000)
    assert isinstance(source, base.WeightSource)
    assert source.implements_iter_full() and not source.implements_iter_local()
    sent = {name: tensor.clone() for name, tensor in sender._checked_iter(source, source.metadata)}
    sw.export(state, tmp_path / "to", **options)
    expected = stored(tmp_path / "to")
    assert list(sent) == source.owned_names(0) and sent.keys() == expected.keys()
    for name, tensor in sent.items():
        assert tensor.dtype == expected[name].dtype and tensor.shape == expected[name].shape, name
        assert torch.equal(
            tensor.reshape(-1).view(torch.uint8), expected[name].reshape(-1).view(torch.uint8)
        ), name
