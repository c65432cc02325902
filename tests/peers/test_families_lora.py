"""LoRA of every family: what peft merges, and what nemo-automodel's own adapters write. Run by `make compare`.

What is expected is made without our tables: B A is added to the trainer's weights, nemo-automodel's adapter makes a
checkpoint of these, and transformers loads that.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import shardwright as sw
import torch
from peft import PeftModel
from peft.utils.transformers_weight_conversion import _MODEL_TO_CONVERSION_PATTERN
from safetensors.torch import save_file
from test_families_automodel import BY_NAME, CASES, Case, adapter_of, model_type_of, write
from tiny_models import TINY, Tensors, Tiny, held
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

RANK, ALPHA = 3, 12
SCALING = ALPHA / RANK

#: Matrices of layers that are torch.nn.Linear in nemo-automodel and in transformers.
LINEAR = re.compile(
    r"^(?!.*(vision|visual|mtp\.|\.gate\.)).*layers\.\d+\.(?!.*\d\.visual).*"
    r"\.(\w*_proj|in_proj_\w+|kv_a_proj_with_mqa|kv_b_proj|f_[ab]_proj|wq_a|wq_b|wkv)\.weight$"
)
STACK = re.compile(r"(.*\.)(gate_and_up|down)_projs$")

each = pytest.mark.parametrize("case", [case for case in CASES if case.tiny], ids=lambda case: case.id)


def has_place_in_transformers(case: Case, name: str) -> bool:
    """Layers of multi-token prediction are no part of transformers' models. Beside a trainer's weight with a factor in
    it HF has none."""
    if case.multiplied and name.endswith(".down_projs"):
        return False
    layers = BY_NAME[case.tiny].config.get("text_config", BY_NAME[case.tiny].config)["num_hidden_layers"]
    number = re.search(r"layers\.(\d+)\.", name)
    return not name.startswith("mtp.") and number is not None and int(number[1]) < layers


def peft_takes_it(model_type: str, name: str) -> bool:
    """peft refuses some modules of Mamba; and of families whose experts' projections it maps to parameters, it takes
    each module of such a name, such as a shared expert's, for an expert's. Of Laguna's shared expert it does not load
    what it saves itself: transformers' mapping renames its new name again."""
    if model_type == "laguna" and ".shared_experts." in name:
        return False
    pattern = _MODEL_TO_CONVERSION_PATTERN.get(model_type)
    is_expert_like = re.search(r"\.(gate|up|down)_proj\.weight$", name) is not None
    return not name.endswith(".out_proj.weight") and not (
        is_expert_like and pattern in ("qwen2_moe", "mixtral")
    )


def family_of(case: Case) -> str:
    """Mistral 4's text model in a VL model has names of its own."""
    return "mistral4" if case.module == "mistral4" else model_type_of(case)


def lora_of(natives: Tensors, seed: int = 5) -> Tensors:
    """A and B of each linear module and stack of experts, named and shaped as nemo-automodel does."""
    generator = torch.Generator().manual_seed(seed)

    def make(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    lora = {}
    for name, weight in natives.items():
        stack = STACK.match(name)
        if stack:
            experts, inputs, outputs = weight.shape
            lora[f"{stack[1]}lora_{stack[2]}_A"] = make(experts, inputs, RANK)
            lora[f"{stack[1]}lora_{stack[2]}_B"] = make(experts, RANK, outputs)
        elif LINEAR.match(name) and weight.dim() == 2:
            module = name.removesuffix(".weight")
            outputs, inputs = weight.shape
            lora[f"{module}.lora_A.weight"] = make(RANK, inputs)
            lora[f"{module}.lora_B.weight"] = make(outputs, RANK)
    return lora


def merged(natives: Tensors, lora: Tensors) -> Tensors:
    result = dict(natives)
    for name, weight in natives.items():
        stack = STACK.match(name)
        module = name.removesuffix(".weight")
        if stack and f"{stack[1]}lora_{stack[2]}_A" in lora:
            a, b = (lora[f"{stack[1]}lora_{stack[2]}_{letter}"] for letter in "AB")
            result[name] = weight + SCALING * a @ b
        elif f"{module}.lora_A.weight" in lora:
            a, b = (lora[f"{module}.lora_{letter}.weight"] for letter in "AB")
            result[name] = weight + SCALING * b @ a
    return result


def model_of(tiny: Tiny, path: Path) -> torch.nn.Module:
    auto = AutoModelForImageTextToText if tiny.is_vision_model else AutoModelForCausalLM
    return auto.from_pretrained(path, dtype=torch.float32)


def assert_close(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4, msg=name)


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def assert_comes_back(lora: Tensors, path: Path, model: str) -> None:
    back = {name: torch.full_like(tensor, torch.nan) for name, tensor in lora.items()}
    sw.load_lora(back, path, model=model)
    assert_same(back, lora)


def in_full_precision(tensors: Tensors) -> Tensors:
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
    }


def natives_of(case: Case, path: Path, stored: Tensors) -> tuple[Any, Tensors]:
    theirs = adapter_of(case, path, torch.float32)
    natives = theirs.from_hf(in_full_precision(stored))
    return theirs, {name: tensor.contiguous() for name, tensor in natives.items()}


@each
def test_peft_merges_what_ours_writes_and_writes_what_ours_loads(case: Case, tmp_path: Path):
    stored = write(case, tmp_path / "from")
    theirs, natives = natives_of(case, tmp_path / "from", stored)
    tiny, model_type = BY_NAME[case.tiny], family_of(case)
    lora = lora_of(
        {
            name: tensor
            for name, tensor in natives.items()
            if has_place_in_transformers(case, name) and peft_takes_it(tiny.model_type, name)
        }
    )
    assert len(lora) >= 8, sorted(natives)
    (tmp_path / "merged").mkdir()
    config = (tmp_path / "from" / "config.json").read_text()
    (tmp_path / "merged" / "config.json").write_text(config)
    in_hf = {name: tensor.contiguous() for name, tensor in theirs.to_hf(merged(natives, lora)).items()}
    save_file(in_hf, tmp_path / "merged" / "model.safetensors", metadata={"format": "pt"})
    expected = model_of(tiny, tmp_path / "merged").state_dict()

    sw.save_lora(lora, tmp_path / "ours", alpha=ALPHA, model=model_type)
    with_adapter = PeftModel.from_pretrained(model_of(tiny, tmp_path / "from"), str(tmp_path / "ours"))
    with_adapter.save_pretrained(str(tmp_path / "theirs"))
    assert_same(held(tmp_path / "theirs"), held(tmp_path / "ours"))
    assert_comes_back(lora, tmp_path / "theirs", model_type)
    # What a trainer has multiplied by its factors is not what the model has beside them.
    found = with_adapter.merge_and_unload().state_dict()
    assert_close(
        *(
            {name: tensor for name, tensor in of.items() if not name.endswith(case.multiplied)}
            for of in (found, expected)
        )
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_layout_comes_back(case: Case, tmp_path: Path):
    stored = write(case, tmp_path / "from")
    _, natives = natives_of(case, tmp_path / "from", stored)
    if case.multiplied:
        with pytest.raises(ValueError, match="down_projs"):
            sw.save_lora(
                lora_of(natives), tmp_path / "refused", alpha=1, model=family_of(case), layout="huggingface"
            )
        natives = {name: tensor for name, tensor in natives.items() if not name.endswith(".down_projs")}
    lora = lora_of(natives)
    for layout in ("huggingface", "automodel"):
        sw.save_lora(lora, tmp_path / layout, alpha=ALPHA, model=family_of(case), layout=layout)
        assert_comes_back(lora, tmp_path / layout, family_of(case))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_nemo_automodels_own_files_are_those_of_layout_automodel(case: Case, tmp_path: Path):
    stored = write(case, tmp_path / "from")
    theirs, natives = natives_of(case, tmp_path / "from", stored)
    lora = lora_of(natives)
    in_file = {"base_model.model." + name: tensor for name, tensor in lora.items()}
    expected: Tensors = {}
    for name, tensor in in_file.items():
        expected |= dict(theirs.convert_single_tensor_to_hf(name, tensor, v4_compatible=True))
    sw.save_lora(lora, tmp_path / "ours", alpha=ALPHA, model=family_of(case), layout="automodel")
    assert_same(held(tmp_path / "ours"), expected)


TRANSFORMERS_OWN = (
    "mixtral",
    "hunyuan_v1_moe",
    "gemma4_text",
    "qwen3_vl",
    "llama",
    "mistral",
    "qwen2",
    "qwen3, tied",
)


@pytest.mark.parametrize(
    "tiny", [tiny for tiny in TINY if tiny.id in TRANSFORMERS_OWN], ids=lambda tiny: tiny.id
)
def test_models_that_nemo_automodel_takes_from_transformers(tiny: Tiny, tmp_path: Path):
    tiny.write(tmp_path / "from")
    model = model_of(tiny, tmp_path / "from")
    linear = {
        f"{name}.weight": module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and "layers." in name
        and "vision" not in name
        and peft_takes_it(tiny.model_type, f"{name}.weight")
    }
    lora = lora_of(linear)
    assert len(lora) >= 16
    state = model.state_dict()
    expected = {name: tensor.clone() for name, tensor in merged(state, lora).items()}
    sw.save_lora(lora, tmp_path / "ours", alpha=ALPHA, model=tiny.model_type)
    assert_comes_back(lora, tmp_path / "ours", tiny.model_type)
    with_adapter = PeftModel.from_pretrained(model, str(tmp_path / "ours"))
    assert_close(with_adapter.merge_and_unload().state_dict(), expected)
