"""The doorways to engines in one process, by their documented protocols. tests/peers asks the engines' own classes."""

import pickle
import sys
import types
from types import SimpleNamespace

import fake_vllm
import pytest
import shardwright as sw
import torch
from handed_over import put_together, wrong_tensors
from shardwright.integrations import sglang, vllm


@pytest.fixture
def modules(monkeypatch):
    """sys.modules, in which what a test puts is gone afterwards."""
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return sys.modules


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        f"model.layers.{n}.mlp.{name}.weight": torch.randn(64, 96, generator=generator).bfloat16()
        for n in range(3)
        for name in ("up_proj", "down_proj")
    } | {"model.norm.weight": torch.randn(96, generator=generator)}


OPTIONS = {"quantization": "nvfp4-modelopt", "layout": "huggingface", "quantized_weights": ["*_proj.weight"]}


def test_vllm_gets_each_tensor_whole_in_the_order_that_was_told(modules):
    fake_vllm.install()
    weights = state()
    source = vllm.weight_source(weights, batch_bytes=10_000, **OPTIONS)
    engine = fake_vllm.Engine(source, 0)
    for _ in range(2):
        engine.send_weights()
        assert wrong_tensors(engine.loaded, put_together(sw.pieces(weights, **OPTIONS))) == []
        weights["model.layers.1.mlp.up_proj.weight"].mul_(3)
    with pytest.raises(ValueError, match="vLLM loads whole tensors"):
        vllm.weight_source(weights, changed_since=sw.PieceSums(), **OPTIONS)


class Bucket:
    """sglang.srt.weight_sync.tensor_bucket.FlattenedTensorBucket, as far as senders use it."""

    def __init__(self, named_tensors) -> None:
        self.named = named_tensors
        assert (
            len({tensor.dtype for _, tensor in named_tensors}) == 1
        )  # older releases cast to a common dtype

    def get_flattened_tensor(self) -> torch.Tensor:
        return torch.cat([tensor.flatten().view(torch.uint8) for _, tensor in self.named])

    def get_metadata(self) -> list:
        return [(name, tensor.dtype, tensor.shape) for name, tensor in self.named]


class Serializer:
    @staticmethod
    def serialize(content) -> bytes:
        return pickle.dumps(content)


class SglangEngine:
    def __init__(self, answer=(True, "Success")) -> None:
        self.server_args = SimpleNamespace(tp_size=3)
        self.answer = answer
        self.loaded: dict[str, torch.Tensor] = {}
        self.flushed: list[bool] = []

    def update_weights_from_tensor(self, named_tensors, load_format=None, flush_cache=True):
        self.flushed.append(flush_cache)
        if load_format == "flattened_bucket":
            assert len(named_tensors) == 3 and len(set(named_tensors)) == 1
            content = pickle.loads(named_tensors[0])
            flat, named_tensors = content["flattened_tensor"], []
            for name, dtype, shape in content["metadata"]:
                size = dtype.itemsize * shape.numel()
                named_tensors.append((name, flat[:size].clone().view(dtype).view(shape)))
                flat = flat[size:]
        self.loaded |= {name: tensor.clone() for name, tensor in named_tensors}
        return self.answer


@pytest.mark.parametrize("load_format", [None, "direct", "flattened_bucket"])
@pytest.mark.parametrize("flush_cache", [True, False])
def test_sglang_gets_each_tensor_whole(modules, load_format: str | None, flush_cache: bool):
    for name in ("sglang", "sglang.srt", "sglang.srt.weight_sync"):
        modules[name] = types.ModuleType(name)
    modules["sglang.srt.utils"] = SimpleNamespace(MultiprocessingSerializer=Serializer)
    modules["sglang.srt.weight_sync.tensor_bucket"] = SimpleNamespace(FlattenedTensorBucket=Bucket)
    engine = SglangEngine()
    count = sglang.update_weights(
        engine, state(), load_format=load_format, flush_cache=flush_cache, batch_bytes=10_000, **OPTIONS
    )
    assert count == len(engine.loaded)
    assert wrong_tensors(engine.loaded, put_together(sw.pieces(state(), **OPTIONS))) == []
    assert engine.flushed == [False] * (len(engine.flushed) - 1) + [flush_cache]


@pytest.mark.parametrize(
    "answer, message",
    [
        ((False, "no such parameter"), "could not load model.layers.0.*: no such parameter"),
        ({"success": False}, "it does not say why"),
    ],
)
def test_what_sglang_refuses_is_an_error(answer, message: str):
    with pytest.raises(ValueError, match=message):
        sglang.update_weights(SglangEngine(answer), state(), **OPTIONS)
    with pytest.raises(ValueError, match="engine is None"):
        sglang.update_weights(None, state(), **OPTIONS)
