"""Layout "torchtitan" of every family is what torchtitan 0.3.0's own adapter makes. Run by `make compare`.

Two things are otherwise there, and what is expected instead stands beside them: the shape of Qwen3.5's stacked experts,
and gpt-oss, of which torchtitan reads the MXFP4 release alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import shardwright as sw
import torch
from safetensors.torch import save_file
from shardwright.adapters import StateDictAdapter
from test_families_automodel import mtp_after_the_last_layer, stacked_as_released
from test_families_transformers import differing
from tiny_models import TINY, Tensors, held, unchanged, with_experts_turned
from titan_adapters import Anything, adapter_class

BY_NAME = {tiny.id: tiny for tiny in TINY}


@dataclass(frozen=True)
class Case:
    """An adapter, and a checkpoint for it."""

    model: str  #: of torchtitan.models
    adapter: str
    tiny: str
    changed: Callable[[Tensors], Tensors] = unchanged
    for_theirs: Callable[[Tensors], Tensors] = unchanged  #: the checkpoint as their adapter reads it right
    left_out: str = "-"  #: what begins so has no place in the model
    config: dict[str, Any] = field(default_factory=dict)  #: of their model

    @property
    def id(self) -> str:
        return f"{self.model} {self.tiny}"


def as_decoded_from_mxfp4(tensors: Tensors) -> Tensors:
    """What torchtitan's reader makes of the MXFP4 release: "_blocks" are [E, out, in], BF16 experts [E, in, out]."""
    result = {}
    for name, tensor in tensors.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            name, tensor = name + "_blocks", tensor.transpose(1, 2).contiguous()
        result[name] = tensor
    return result


CASES = [
    Case("llama3", "Llama3StateDictAdapter", "llama"),
    Case("qwen3", "Qwen3StateDictAdapter", "qwen3"),
    Case("qwen3", "Qwen3StateDictAdapter", "qwen3, tied", config={"enable_weight_tying": True}),
    Case("qwen3", "Qwen3StateDictAdapter", "qwen3_moe, a dense layer"),
    Case("deepseek_v3", "DeepSeekV3StateDictAdapter", "deepseek_v3"),
    Case(
        "deepseek_v3",
        "DeepSeekV3StateDictAdapter",
        "deepseek_v3, queries of full rank",
        changed=mtp_after_the_last_layer,
        config={"mtp_layers": [None], "q_lora_rank": 0},
    ),
    Case("gpt_oss", "GptOssStateDictAdapter", "gpt_oss", for_theirs=as_decoded_from_mxfp4),
    Case("qwen3_5", "Qwen35StateDictAdapter", "qwen3_5", left_out="mtp."),
    Case(
        "qwen3_5",
        "Qwen35StateDictAdapter",
        "qwen3_5_moe",
        changed=stacked_as_released,
        for_theirs=with_experts_turned,  # which it takes for [E, in, out]; released are [E, out, in]
    ),
    Case("kimi_k2_7", "KimiK25StateDictAdapter", "kimi_k25"),
]
each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


def write(case: Case, path: Path) -> Tensors:
    BY_NAME[case.tiny].write(path)
    tensors = {name: tensor.contiguous() for name, tensor in case.changed(held(path)).items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return tensors


def adapter_of(case: Case) -> Any:
    made = adapter_class(case.model, case.adapter)
    config = BY_NAME[case.tiny].config.get("text_config", BY_NAME[case.tiny].config)
    attention = SimpleNamespace(
        n_heads=4,
        n_kv_heads=2,
        head_dim=config.get("head_dim"),
        rope=Anything.Config(),
        q_lora_rank=case.config.get("q_lora_rank", 12),
    )
    width = SimpleNamespace(
        in_proj_q=SimpleNamespace(out_features=8), in_proj_v=SimpleNamespace(out_features=24)
    )
    layer = SimpleNamespace(attention=attention, moe=SimpleNamespace(num_experts=4), delta_net=width)
    return made(
        SimpleNamespace(
            layers=[layer, layer],
            dim=24,
            enable_weight_tying=case.config.get("enable_weight_tying", False),
            mtp_layers=case.config.get("mtp_layers", []),
            vision_encoder=SimpleNamespace(in_channels=3, temporal_patch_size=2, patch_size=4),
        ),
        None,
    )


@each
def test_theirs_and_ours_make_the_same_state_dict_and_the_same_checkpoint(case: Case, tmp_path: Path):
    stored = write(case, tmp_path / "from")
    theirs = adapter_of(case)
    expected = theirs.from_hf(dict(case.for_theirs(stored)))
    expected = {name: tensor.contiguous() for name, tensor in expected.items()}
    state = {name: torch.full_like(tensor, 7) for name, tensor in expected.items()}
    report = sw.load(state, tmp_path / "from", layout="torchtitan")
    assert differing(state, expected) == []
    assert all(name.startswith(case.left_out) for name in report.unused)

    empty = sw.empty_state_dict(tmp_path / "from", layout="torchtitan")
    assert {name: tensor.shape for name, tensor in empty.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    sw.export(state, tmp_path / "to", template=tmp_path / "from", layout="torchtitan")
    assert differing(held(tmp_path / "to"), stored) == []
    assert differing(dict(theirs.to_hf(dict(expected))), case.for_theirs(stored)) == []


@each
def test_adapters_give_each_others_tensors(case: Case, tmp_path: Path):
    """In memory: what theirs makes of a checkpoint, ours gives back as theirs does, and takes again."""
    stored = write(case, tmp_path)
    theirs = adapter_of(case)
    natives = {
        name: tensor.contiguous() for name, tensor in theirs.from_hf(dict(case.for_theirs(stored))).items()
    }
    ours = StateDictAdapter(BY_NAME[case.tiny].model_type, layout="torchtitan", checkpoint=tmp_path)
    hf = ours.to_hf(natives)
    in_place = hf.keys() - {name for name in stored if name.startswith(case.left_out)}
    assert differing({name: hf[name] for name in in_place}, {name: stored[name] for name in in_place}) == []
    assert {name for name in stored if not name.startswith(case.left_out)} == in_place
    assert differing(case.for_theirs(hf), dict(theirs.to_hf(dict(natives)))) == []
    back = ours.from_hf(hf)
    tied = {"output.weight", "lm_head.weight"} - back.keys()  # of a tied head, the embedding is stored alone
    assert differing(back, {name: tensor for name, tensor in natives.items() if name not in tied}) == []
