"""Layout "automodel" of every family is what nemo-automodel 0.7.0's own adapter makes. Run by `make compare`.

Where that adapter does otherwise than its model or the release, the case says so, and what is expected instead.
"""

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import shardwright as sw
import torch
from nemo_automodel.components.models.common import BackendConfig
from safetensors.torch import save_file
from shardwright.adapters import StateDictAdapter
from test_families_transformers import differing
from tiny_models import TINY, Tensors, held, unchanged
from transformers import AutoConfig

BACKEND = BackendConfig(linear="torch", attn="sdpa", rms_norm="torch", dispatcher="torch", experts="torch")
BY_NAME = {tiny.id: tiny for tiny in TINY}


def random_like(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)


def shaped(generator: torch.Generator, prefix: str, **shapes: tuple[int, ...]) -> Tensors:
    return {
        prefix + name.replace("__", "."): torch.randn(shape, generator=generator).to(torch.bfloat16)
        for name, shape in shapes.items()
    }


def mtp_after_the_last_layer(tensors: Tensors) -> Tensors:
    """A layer 2 like layer 1, with what multi-token prediction has besides."""
    generator = torch.Generator().manual_seed(9)
    more = {
        name.replace(".layers.1.", ".layers.2."): random_like(tensor, generator)
        for name, tensor in tensors.items()
        if ".layers.1." in name
    }
    prefix = next(iter(more)).partition(".layers.")[0] + ".layers.2."
    return (
        tensors
        | more
        | shaped(
            generator,
            prefix,
            enorm__weight=(24,),
            hnorm__weight=(24,),
            eh_proj__weight=(24, 48),
            shared_head__norm__weight=(24,),
        )
    )


def mtp_beside_the_model(tensors: Tensors) -> Tensors:
    """Qwen3.5's: a layer of full attention, under "mtp."."""
    generator = torch.Generator().manual_seed(9)
    text = "model.language_model." if "model.language_model.norm.weight" in tensors else "model."
    more = {
        name.replace(f"{text}layers.1.", "mtp.layers.0."): random_like(tensor, generator)
        for name, tensor in tensors.items()
        if f"{text}layers.1." in name
    }
    return (
        tensors
        | more
        | shaped(
            generator,
            "mtp.",
            fc__weight=(24, 48),
            norm__weight=(24,),
            pre_fc_norm_embedding__weight=(24,),
            pre_fc_norm_hidden__weight=(24,),
        )
    )


def with_factors(tensors: Tensors) -> Tensors:
    """Gemma 4's, which a new model has at one."""
    generator = torch.Generator().manual_seed(9)
    factors = {
        name: random_like(tensor, generator) for name, tensor in tensors.items() if "per_expert_scale" in name
    }
    assert factors
    return tensors | factors


def nemotron_mtp(tensors: Tensors) -> Tensors:
    generator = torch.Generator().manual_seed(9)
    more = {
        name.replace("backbone.layers.1.", "mtp.layers.1."): random_like(tensor, generator)
        for name, tensor in tensors.items()
        if name.startswith("backbone.layers.1.")
    }
    return tensors | more | shaped(generator, "mtp.layers.0.", enorm__weight=(24,), eh_proj__weight=(24, 48))


def deepseek_v4_mtp(tensors: Tensors) -> Tensors:
    generator = torch.Generator().manual_seed(9)
    more = {
        name.replace("layers.2.", "mtp.0."): random_like(tensor, generator)
        for name, tensor in tensors.items()
        if name.startswith("layers.2.")
    }
    return (
        tensors
        | more
        | shaped(generator, "mtp.0.", enorm__weight=(24,), e_proj__weight=(24, 24), hc_head_fn=(4, 96))
    )


def stacked_as_released(tensors: Tensors) -> Tensors:
    """Qwen3.5's BF16 release stacks experts; Qwen3-VL's does so, transposed."""
    result = dict(tensors)
    for prefix in sorted({name.split(".mlp.experts.")[0] for name in tensors if ".mlp.experts." in name}):
        gate, up, down = (
            torch.stack([result.pop(f"{prefix}.mlp.experts.{e}.{name}_proj.weight") for e in range(4)])
            for name in ("gate", "up", "down")
        )
        result[f"{prefix}.mlp.experts.gate_up_proj"] = torch.cat([gate, up], dim=1)
        result[f"{prefix}.mlp.experts.down_proj"] = down
    return result


def ling(_: Tensors) -> Tensors:
    generator = torch.Generator().manual_seed(9)
    tensors = shaped(
        generator,
        "",
        model__word_embeddings__weight=(40, 24),
        model__norm__weight=(24,),
        lm_head__weight=(40, 24),
    )
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        tensors |= shaped(
            generator,
            prefix,
            input_layernorm__weight=(24,),
            post_attention_layernorm__weight=(24,),
            attention__query_key_value__weight=(64, 24),
            attention__dense__weight=(24, 32),
            attention__query_layernorm__weight=(8,),
            attention__key_layernorm__weight=(8,),
        )
        if layer == 0:
            tensors |= shaped(
                generator,
                prefix + "mlp.",
                gate_proj__weight=(40, 24),
                up_proj__weight=(40, 24),
                down_proj__weight=(24, 40),
            )
            continue
        tensors |= shaped(generator, prefix + "mlp.gate.", weight=(4, 24), expert_bias=(4,))
        for module in ("shared_experts.", *(f"experts.{expert}." for expert in range(4))):
            tensors |= shaped(
                generator,
                f"{prefix}mlp.{module}",
                gate_proj__weight=(16, 24),
                up_proj__weight=(16, 24),
                down_proj__weight=(24, 16),
            )
    return tensors


def step(_: Tensors) -> Tensors:
    generator = torch.Generator().manual_seed(9)
    tensors = shaped(
        generator,
        "",
        model__embed_tokens__weight=(40, 24),
        model__norm__weight=(24,),
        lm_head__weight=(40, 24),
    )
    return tensors | shaped(
        generator,
        "model.layers.0.",
        input_layernorm__weight=(24,),
        post_attention_layernorm__weight=(24,),
        self_attn__q_proj__weight=(32, 24),
        self_attn__k_proj__weight=(16, 24),
        self_attn__v_proj__weight=(16, 24),
        self_attn__o_proj__weight=(24, 32),
        self_attn__q_norm__weight=(8,),
        self_attn__g_proj__weight=(4, 24),
        moe__gate_proj__weight=(4, 16, 24),
        moe__up_proj__weight=(4, 16, 24),
        moe__down_proj__weight=(4, 24, 16),
        moe__gate__weight=(4, 24),
        moe__router_bias=(4,),
        share_expert__gate_proj__weight=(20, 24),
        share_expert__up_proj__weight=(20, 24),
        share_expert__down_proj__weight=(24, 20),
    )


@dataclass(frozen=True)
class Case:
    """An adapter, and a checkpoint for it."""

    module: str  #: of nemo_automodel.components.models
    adapter: str
    tiny: str = ""  #: which tiny model's checkpoint; "": none
    changed: Callable[[Tensors], Tensors] = unchanged
    config: tuple[tuple[str, Any], ...] = ()
    left_out: str = "-"  #: what begins so has no place in the model
    zeros: str = "-"  #: what ends so is in no file, and zero
    multiplied: tuple[str, ...] = ()  #: what ends so is written otherwise than it was read: a factor is in it
    words: str = ""
    is_gated: bool = True

    @property
    def id(self) -> str:
        return f"{self.module} {self.words or self.tiny}"


CASES = [
    Case("qwen3_moe", "Qwen3MoeStateDictAdapter", "qwen3_moe, a dense layer"),
    Case("qwen3_5", "Qwen3_5DenseStateDictAdapter", "qwen3_5", mtp_beside_the_model),
    Case("qwen3_5", "Qwen3_5DenseStateDictAdapter", "qwen3_5_text", mtp_beside_the_model),
    Case(
        "qwen3_5_moe",
        "Qwen3_5MoeStateDictAdapter",
        "qwen3_5_moe",
        lambda tensors: mtp_beside_the_model(stacked_as_released(tensors)),
        words="stacked",
    ),
    Case(
        "gemma4_moe",
        "Gemma4MoEStateDictAdapter",
        "gemma4",
        with_factors,
        multiplied=(".experts.down_proj", ".router.per_expert_scale"),
    ),
    Case("glm4_moe", "Glm4MoeStateDictAdapter", "glm4_moe", mtp_after_the_last_layer),
    Case("glm4_moe", "Glm4MoeStateDictAdapter", "glm4_moe_lite", mtp_after_the_last_layer),
    Case("glm_moe_dsa", "GlmMoeDsaStateDictAdapter", "glm_moe_dsa", mtp_after_the_last_layer),
    Case("gpt_oss", "GPTOSSStateDictAdapter", "gpt_oss"),
    Case("deepseek_v3", "DeepSeekV3StateDictAdapter", "deepseek_v3", mtp_after_the_last_layer),
    Case("deepseek_v32", "DeepSeekV32StateDictAdapter", "deepseek_v32", mtp_after_the_last_layer),
    Case("kimi_k25_vl", "KimiK25VLStateDictAdapter", "kimi_k25"),
    Case("nemotron_v3", "NemotronV3StateDictAdapter", "nemotron_h", nemotron_mtp, is_gated=False),
    Case("minimax_m2", "MiniMaxM2StateDictAdapter", "minimax_m2"),
    Case("mistral4", "Mistral4MultimodalStateDictAdapter", "mistral3", zeros=".e_score_correction_bias"),
    Case("mistral3", "Mistral3FP8StateDictAdapter", "mistral3, dense"),
    Case("hy_mt2", "HyMT2StateDictAdapter", "hy_v3", mtp_after_the_last_layer, left_out="model.layers.2."),
    Case("qwen3_next", "Qwen3NextStateDictAdapter", "qwen3_next"),
    Case("qwen3_vl_moe", "Qwen3VLMoeStateDictAdapter", "qwen3_vl_moe, as released"),
    Case("ernie4_5", "Ernie4_5StateDictAdapter", "ernie4_5"),
    Case(
        "ernie4_5",
        "Ernie4_5_MoeStateDictAdapter",
        "ernie4_5_moe",
        lambda tensors: tensors | {"model.mtp_block.0.input_layernorm.weight": torch.ones(24)},
        left_out="model.mtp_",
    ),
    Case("hy_v3", "HYV3StateDictAdapter", "hy_v3", mtp_after_the_last_layer, left_out="model.layers.2."),
    Case("kimi_linear", "KimiLinear48BStateDictAdapter", "kimi_linear"),
    Case("deepseek_v4", "DeepSeekV4StateDictAdapter", "deepseek_v4", deepseek_v4_mtp),
    Case(
        "ling_v2",
        "BailingMoeV2StateDictAdapter",
        changed=ling,
        config=(
            ("model_type", "bailing_moe_v2"),
            ("num_attention_heads", 4),
            ("num_key_value_heads", 2),
            ("head_dim", 8),
        ),
    ),
    Case("laguna", "LagunaStateDictAdapter", "laguna"),
    Case("mimo_v2_flash", "MiMoV2FlashStateDictAdapter", "mimo_v2_flash"),
    Case("gemma4_unified", "Gemma4UnifiedStateDictAdapter", "gemma4_unified"),
    Case(
        "glm5_next",
        "Glm5NextStateDictAdapter",
        "glm5_next",
        mtp_after_the_last_layer,
        left_out="model.language_model.layers.2.",
    ),
    Case("step3p5", "Step3p5StateDictAdapter", changed=step, config=(("model_type", "step3p5"),)),
    Case("step3p7", "Step3p7StateDictAdapter", "step3p7"),
]
each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


def write(case: Case, path: Path) -> Tensors:
    path.mkdir(parents=True, exist_ok=True)
    tensors: Tensors = {}
    if case.tiny:
        BY_NAME[case.tiny].write(path)
        tensors = held(path)
    tensors = {name: tensor.contiguous() for name, tensor in case.changed(tensors).items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    if case.config:
        (path / "config.json").write_text(json.dumps(dict(case.config)))
    return tensors


def adapter_of(case: Case, path: Path, dtype: torch.dtype = torch.bfloat16, backend: Any = BACKEND) -> Any:
    module = importlib.import_module(f"nemo_automodel.components.models.{case.module}.state_dict_adapter")
    made = getattr(module, case.adapter)
    config = AutoConfig.from_pretrained(path) if case.tiny else SimpleNamespace(**dict(case.config))
    moe = SimpleNamespace(
        n_routed_experts=4,
        moe_inter_dim=16,
        dim=24,
        expert_bias=False,
        expert_activation="swiglu" if case.is_gated else "relu2",
    )
    if case.module in ("qwen3_5", "gemma4_unified"):
        return made()
    if case.module == "mistral3":
        return made.for_vlm_full(config)
    if case.adapter == "Ernie4_5StateDictAdapter":
        return made(config)
    return made(config, moe, backend, dtype)


def as_fp8(tensors: Tensors, is_stored_so: Callable[[str], bool]) -> Tensors:
    """Weights in blocks of 128 x 128: here, one block each."""
    generator = torch.Generator().manual_seed(3)
    result = dict(tensors)
    for name in filter(is_stored_so, tensors):
        result[name] = tensors[name].to(torch.float8_e4m3fn)
        rows, columns = (-(-size // 128) for size in tensors[name].shape)
        result[name + "_scale_inv"] = torch.rand(rows, columns, generator=generator) + 0.5
    return result


def is_matrix_of_a_layer(name: str) -> bool:
    return ".self_attn." in name and name.endswith("_proj.weight") or ".experts." in name


FP8 = [
    Case("qwen3_5_moe", "Qwen3_5MoeStateDictAdapter", "qwen3_5_moe"),
    Case("deepseek_v3", "DeepSeekV3StateDictAdapter", "deepseek_v3"),
    Case("deepseek_v32", "DeepSeekV32StateDictAdapter", "deepseek_v32"),
    Case("glm_moe_dsa", "GlmMoeDsaStateDictAdapter", "glm_moe_dsa"),
    Case("minimax_m2", "MiniMaxM2StateDictAdapter", "minimax_m2"),
    Case("mimo_v2_flash", "MiMoV2FlashStateDictAdapter", "mimo_v2_flash"),
    Case("glm5_next", "Glm5NextStateDictAdapter", "glm5_next"),
]


@pytest.mark.parametrize("case", FP8, ids=lambda case: case.id)
def test_weights_in_fp8_are_decoded_as_theirs(case: Case, tmp_path: Path):
    write(case, tmp_path)
    decoded_by_theirs = ".experts." if case.module == "qwen3_5_moe" else "layers."  # the rest stays FP8 there
    stored = as_fp8(held(tmp_path), lambda name: is_matrix_of_a_layer(name) and decoded_by_theirs in name)
    assert sum(tensor.dtype == torch.float8_e4m3fn for tensor in stored.values()) >= 12
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    expected = adapter_of(case, tmp_path).from_hf(dict(stored))
    expected = {name: tensor.contiguous() for name, tensor in expected.items()}
    state = {name: torch.full_like(tensor, 7) for name, tensor in expected.items()}
    sw.load(state, tmp_path)
    assert differing(state, expected) == []


def test_rows_of_scales_that_may_be_those_of_heads_are_refused(tmp_path: Path):
    """Keys of MiMo's full attention have eight rows of scales for six blocks of 128. nemo-automodel takes the first
    six; transformers takes 96 rows a block; sglang-jax, two blocks for each of four heads of 192 rows."""
    case = Case("mimo_v2_flash", "MiMoV2FlashStateDictAdapter", "mimo_v2_flash")
    generator = torch.Generator().manual_seed(3)
    stored = write(case, tmp_path)
    keys = "model.layers.0.self_attn.k_proj.weight"
    stored[keys] = torch.randn(768, 24, generator=generator).to(torch.float8_e4m3fn)
    stored[keys + "_scale_inv"] = torch.rand(8, 1, generator=generator) + 0.5
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs = adapter_of(case, tmp_path).from_hf(dict(stored))
    state = {name: torch.full_like(tensor, 7) for name, tensor in theirs.items()}
    with pytest.raises(
        sw.PlanError, match=f"{keys}_scale_inv .*8 rows of scales for the 768 rows .*4 parts of 192"
    ):
        sw.load(state, tmp_path)
    assert all((tensor == 7).all() for tensor in state.values())


@each
def test_theirs_and_ours_make_the_same_state_dict_and_the_same_checkpoint(case: Case, tmp_path: Path):
    stored = write(case, tmp_path / "from")
    theirs = adapter_of(case, tmp_path / "from")
    expected = {name: tensor.contiguous() for name, tensor in theirs.from_hf(dict(stored)).items()}
    zeros = {name for name in expected if name.endswith(case.zeros)}
    assert all((expected[name] == 0).all() for name in zeros)
    state = {name: torch.full_like(tensor, 7) for name, tensor in expected.items()}
    report = sw.load(state, tmp_path / "from")
    assert differing(state, expected) == []
    assert all(name.startswith(case.left_out) for name in report.unused)
    assert set(report.zeroed) == zeros and bool(zeros) == (case.zeros != "-")

    empty = sw.empty_state_dict(tmp_path / "from")
    tied = {name for name in empty.keys() - expected.keys() if name.endswith("lm_head.weight")}
    assert not tied or not any(name.endswith("lm_head.weight") for name in stored)
    assert {name: tensor.shape for name, tensor in empty.items() if name not in tied} == {
        name: tensor.shape for name, tensor in expected.items() if name not in zeros
    }

    exported = sw.export(state, tmp_path / "to", template=tmp_path / "from")
    assert set(exported.left_out) >= zeros
    kept = {name: tensor for name, tensor in stored.items() if not name.startswith(case.left_out)}
    back = theirs.to_hf({name: tensor for name, tensor in expected.items() if name not in zeros})
    kept |= {
        name: tensor.to(kept[name].dtype) for name, tensor in back.items() if name.endswith(case.multiplied)
    }
    assert differing(held(tmp_path / "to"), kept) == []
    assert {name: tensor.shape for name, tensor in back.items()} == {
        name: tensor.shape for name, tensor in kept.items()
    }
    assert differing({name: tensor.to(kept[name].dtype) for name, tensor in back.items()}, kept) == []


@pytest.mark.parametrize(
    "case",
    [
        Case("gpt_oss", "GPTOSSStateDictAdapter", "gpt_oss"),
        Case("mimo_v2_flash", "MiMoV2FlashStateDictAdapter", "mimo_v2_flash"),
    ],
    ids=lambda case: case.id,
)
def test_sinks_have_another_name_where_transformer_engine_attends(case: Case, tmp_path: Path):
    stored = write(case, tmp_path)
    theirs = adapter_of(case, tmp_path, backend=SimpleNamespace(attn="te"))
    expected = {name: tensor.contiguous() for name, tensor in theirs.from_hf(dict(stored)).items()}
    assert "model.layers.1.self_attn.attn_module.softmax_offset" in expected
    state = {name: torch.full_like(tensor, 7) for name, tensor in expected.items()}
    assert sw.load(state, tmp_path).unused == []
    assert differing(state, expected) == []


@each
def test_an_adapter_of_a_checkpoint_converts_as_loads_and_theirs_do(case: Case, tmp_path: Path):
    stored = write(case, tmp_path)
    expected = sw.empty_state_dict(tmp_path)
    sw.load(expected, tmp_path)
    kept = {name: tensor for name, tensor in stored.items() if not name.startswith(case.left_out)}
    adapter = StateDictAdapter(model_type_of(case), checkpoint=tmp_path)
    back = adapter.from_hf(dict(kept))
    tied = expected.keys() - back.keys()
    assert all(key.endswith("lm_head.weight") for key in tied)
    assert differing(back, {name: tensor for name, tensor in expected.items() if name not in tied}) == []
    kept = {name: tensor for name, tensor in kept.items() if not name.endswith(case.multiplied)}
    hf = {name: tensor for name, tensor in adapter.to_hf(expected).items() if name in kept}
    assert differing({name: tensor.to(kept[name].dtype) for name, tensor in hf.items()}, kept) == []
    # Their trainers hold these in F32, whatever a file does.
    trained = {
        name: tensor.float() if "_fp32_params" in name else tensor for name, tensor in expected.items()
    }
    theirs = adapter_of(case, tmp_path).to_hf(dict(trained))
    ours = adapter.to_hf(trained)
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in theirs.items() if name in ours
    }
    assert (
        differing(ours, {name: tensor.contiguous() for name, tensor in theirs.items() if name in ours}) == []
    )


def model_type_of(case: Case) -> str:
    return BY_NAME[case.tiny].model_type if case.tiny else str(dict(case.config)["model_type"])
