"""sglang's own buckets carry what shardwright.integrations.sglang gives: an export's tensors.

Its wheel brings CUDA and another torch, so `.venv-peers` has it not: `make engines` puts it on PYTHONPATH for these
tests alone. The classes need no GPU.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import shardwright as sw
import torch
from safetensors import safe_open
from shardwright.integrations import sglang

buckets = pytest.importorskip("sglang.srt.weight_sync.tensor_bucket")


class Engine:
    """What a rank of sglang's engine does with a flattened bucket."""

    def __init__(self, serializer) -> None:
        self.server_args = SimpleNamespace(tp_size=2)
        self.serializer = serializer
        self.loaded: dict[str, torch.Tensor] = {}

    def update_weights_from_tensor(self, named_tensors, load_format=None, flush_cache=True):
        assert load_format == "flattened_bucket" and len(named_tensors) == 2
        content = self.serializer.deserialize(named_tensors[1])
        bucket = buckets.FlattenedTensorBucket(
            flattened_tensor=content["flattened_tensor"], metadata=content["metadata"]
        )
        self.loaded |= {name: tensor.clone() for name, tensor in bucket.reconstruct_tensors()}
        return True, "Success"


@pytest.mark.parametrize("quantization", ["mxfp8", None])
def test_a_flattened_bucket_holds_an_exports_tensors(quantization: str | None, tmp_path: Path):
    serializer = pytest.importorskip("sglang.srt.utils").MultiprocessingSerializer
    sw.generate(tmp_path / "released", "tiny")
    state = sw.empty_state_dict(tmp_path / "released")
    sw.load(state, tmp_path / "released")
    options = {"quantization": quantization, "template": tmp_path / "released"}
    engine = Engine(serializer)
    count = sglang.update_weights(
        engine, state, load_format="flattened_bucket", batch_bytes=100_000, **options
    )
    sw.export(state, tmp_path / "to", **options)
    assert count == len(engine.loaded)
    for file in sorted((tmp_path / "to").glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                expected, found = opened.get_tensor(name), engine.loaded.pop(name)
                assert found.dtype == expected.dtype and found.shape == expected.shape, name
                assert torch.equal(
                    found.reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8)
                ), name
    assert engine.loaded == {}
