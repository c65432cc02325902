"""gpt-oss in MXFP4 as released: transformers' own unpacking, and the layouts that follow from it."""

from pathlib import Path

import pytest
import shardwright as sw
import torch
from safetensors.torch import save_file
from shardwright.adapters import StateDictAdapter
from test_families_transformers import differing
from tiny_models import TINY, held
from transformers import AutoModelForCausalLM, Mxfp4Config
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

BY_NAME = {tiny.id: tiny for tiny in TINY}
EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def packed(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A tiny gpt-oss whose experts are random MXFP4: as files hold it, and as transformers decodes it."""
    BY_NAME["gpt_oss"].write(path)
    stored, decoded = {}, {}
    generator = torch.Generator().manual_seed(1)
    for name, tensor in held(path).items():
        decoded[name] = stored[name] = tensor
        if not name.endswith(EXPERTS):
            continue
        del stored[name]
        experts, columns, rows = tensor.shape
        groups = -(-columns // 32)
        blocks = torch.randint(0, 256, (experts, rows, groups, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(100, 140, (experts, rows, groups), dtype=torch.uint8, generator=generator)
        stored[name + "_blocks"], stored[name + "_scales"] = blocks, scales
        decoded[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
    (path / "model.safetensors").unlink(missing_ok=True)
    for file in path.glob("*.safetensors"):
        file.unlink()
    save_file(
        {n: t.contiguous() for n, t in stored.items()}, path / "model.safetensors", metadata={"format": "pt"}
    )
    return stored, {name: tensor.contiguous() for name, tensor in decoded.items()}


@pytest.mark.parametrize("layout", ["automodel", "transformers", "torchtitan"])
def test_packed_experts_load_as_those_that_transformers_has_unpacked(layout: str, tmp_path: Path):
    stored, decoded = packed(tmp_path / "packed")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "config.json").write_bytes((tmp_path / "packed" / "config.json").read_bytes())
    save_file(decoded, tmp_path / "plain" / "model.safetensors", metadata={"format": "pt"})
    expected = sw.empty_state_dict(tmp_path / "plain", layout=layout)
    sw.load(expected, tmp_path / "plain", layout=layout)
    state = sw.empty_state_dict(tmp_path / "packed", layout=layout)
    report = sw.load(state, tmp_path / "packed", layout=layout)
    assert report.unused == [] and report.unknown == []
    assert differing(state, expected) == []
    if layout == "transformers":
        assert (
            differing(
                {name: state[name] for name in decoded if name in state}, {n: decoded[n] for n in state}
            )
            == []
        )
    sw.export(state, tmp_path / "to", quantization="template", template=tmp_path / "packed", layout=layout)
    assert differing(held(tmp_path / "to"), stored) == []
    with pytest.raises(ValueError, match="a matrix is the transpose"):
        sw.export(state, tmp_path / "bf16", template=tmp_path / "packed", layout=layout)


def test_an_export_by_gpt_oss_rule_is_read_by_transformers(tmp_path: Path):
    """transformers quantizes on GPUs alone: that the bits are the rule's is shown by tests/python/test_rules.py."""
    sw.generate(tmp_path / "packed", family="gpt_oss", form="mxfp4")
    state = sw.empty_state_dict(tmp_path / "packed", layout="transformers")
    generator = torch.Generator().manual_seed(0)
    for tensor in state.values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    sw.export(
        state,
        tmp_path / "ours",
        quantization="mxfp4-gpt-oss",
        template=tmp_path / "packed",
        layout="transformers",
    )
    loaded = {name: torch.full_like(tensor, 7) for name, tensor in state.items()}
    sw.load(loaded, tmp_path / "ours", layout="transformers")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype="auto", quantization_config=Mxfp4Config(dequantize=True)
    )
    assert differing(loaded, model.state_dict()) == []
    for name in state:
        assert (loaded[name] - state[name]).abs().max() < (1.1 if name.endswith(EXPERTS) else 1e-9)


def test_an_adapter_takes_packed_experts_as_a_load_does(tmp_path: Path):
    stored, _ = packed(tmp_path)
    expected = sw.empty_state_dict(tmp_path)
    sw.load(expected, tmp_path)
    found = StateDictAdapter("gpt_oss", checkpoint=tmp_path).from_hf(dict(stored))
    assert differing(found, expected) == []
