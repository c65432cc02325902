"""LoRA adapters go both ways between ours and peft. Run by `make compare`, which sets up what this needs.

What peft makes of an adapter is seen by what it merges into a tiny model of transformers' M3; what ours makes of it, by
the trainer's tensors. Expected values come from A and B of the trainer, multiplied here.
"""

import json
from pathlib import Path

import peft
import pytest
import shardwright as sw
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

RANK, ALPHA = 3, 12
SCALING = ALPHA / RANK
TEXT = "model.language_model."
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("generated") / "tiny"
    sw.generate(path, preset="tiny", seed=0, values="any")
    return path


@pytest.fixture
def model(checkpoint: Path) -> torch.nn.Module:
    """Tiny, with random weights that are small enough to stay exact neighbours of what is added to them."""
    config = AutoConfig.from_pretrained(checkpoint)
    del config.quantization_config
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config, dtype=torch.float32)


def trainers_tensors(model: torch.nn.Module, fill: bool = True) -> dict[str, torch.Tensor]:
    """LoRA tensors as nemo-automodel names and shapes them, for every projection of the text part."""
    shapes = {
        name.removeprefix(TEXT): tuple(t.shape) for name, t in model.state_dict().items() if TEXT in name
    }
    found: dict[str, torch.Tensor] = {}

    def add(name: str, shape: tuple[int, ...]) -> None:
        found["model." + name] = torch.randn(shape) if fill else torch.full(shape, torch.nan)

    def add_module(name: str, outputs: int, inputs: int) -> None:
        add(f"{name}.lora_A.weight", (RANK, inputs))
        add(f"{name}.lora_B.weight", (outputs, RANK))

    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if module.endswith(ATTENTION) and ".indexer." not in module:
            add_module(module, *shape)
        elif module.endswith(".indexer.q_proj"):
            add_module(module.replace(".q_proj", ".index_q_proj"), *shape)
        elif module.endswith("mlp.experts.gate_up_proj"):
            path = module.removesuffix("gate_up_proj")
            experts, both, hidden = shape
            add(path + "lora_gate_and_up_A", (experts, hidden, RANK))
            add(path + "lora_gate_and_up_B", (experts, RANK, both))
            add(path + "lora_down_A", (experts, both // 2, RANK))
            add(path + "lora_down_B", (experts, RANK, hidden))
        elif module.endswith("gate_up_proj"):
            path = module.removesuffix("gate_up_proj").replace(".mlp.shared_experts.", ".shared_experts.")
            for projection in ("gate_proj", "up_proj"):
                add_module(path + projection, shape[0] // 2, shape[1])
        elif module.endswith(("mlp.down_proj", "mlp.shared_experts.down_proj")):
            add_module(module.replace(".mlp.shared_experts.", ".shared_experts."), *shape)
    return found


def added_by(lora: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What these tensors add to each weight of the transformers model."""

    def of_module(name: str) -> torch.Tensor:
        return SCALING * lora[f"model.{name}.lora_B.weight"] @ lora[f"model.{name}.lora_A.weight"]

    added: dict[str, torch.Tensor] = {}
    for key in lora:
        name = key.removeprefix("model.")
        if name.endswith("lora_down_A"):
            path = name.removesuffix("lora_down_A")
            for projection, kind in (("gate_up_proj", "gate_and_up"), ("down_proj", "down")):
                a, b = (lora[f"model.{path}lora_{kind}_{letter}"] for letter in "AB")
                added[TEXT + path + projection] = SCALING * torch.stack(
                    [(x @ y).T for x, y in zip(a, b, strict=True)]
                )
        elif name.endswith(".gate_proj.lora_A.weight"):
            path = name.removesuffix("gate_proj.lora_A.weight")
            both = torch.cat([of_module(path + "gate_proj"), of_module(path + "up_proj")])
            in_model = path.replace(".shared_experts.", ".mlp.shared_experts.")
            added[f"{TEXT}{in_model}gate_up_proj.weight"] = both
        elif name.endswith(".lora_A.weight") and not name.endswith(".up_proj.lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            in_model = module.replace(".shared_experts.", ".mlp.shared_experts.").replace(".index_q_", ".q_")
            added[f"{TEXT}{in_model}.weight"] = of_module(module)
    return added


def assert_merged(
    before: dict[str, torch.Tensor], merged: torch.nn.Module, added: dict[str, torch.Tensor]
) -> None:
    after = merged.state_dict()
    assert after.keys() == before.keys()
    assert added.keys() <= before.keys()
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight + added.get(name, 0), rtol=1e-5, atol=1e-5, msg=name)
        if name in added:
            assert not torch.equal(after[name], weight), name


def copy_of(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state_dict.items()}


def fill_at_random(model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter)


def test_what_ours_writes_peft_merges_to_the_expected_weights(model: torch.nn.Module, tmp_path: Path):
    lora = trainers_tensors(model)
    before = copy_of(model.state_dict())
    sw.save_lora(lora, tmp_path, model="minimax_m3", alpha=ALPHA)
    with_adapter = PeftModel.from_pretrained(model, str(tmp_path))
    assert_merged(before, with_adapter.merge_and_unload(), added_by(lora))


def test_peft_finds_every_tensor_that_ours_writes_and_no_other(model: torch.nn.Module, tmp_path: Path):
    sw.save_lora(trainers_tensors(model), tmp_path, model="minimax_m3", alpha=ALPHA)
    with_adapter = get_peft_model(model, LoraConfig.from_pretrained(str(tmp_path)))
    result = with_adapter.load_adapter(str(tmp_path), "default")
    assert not result.unexpected_keys
    assert not [name for name in result.missing_keys if ".lora_" in name]


def test_only_one_of_the_experts_parameters(model: torch.nn.Module, tmp_path: Path):
    """Its wrapper then is the outer one, whichever it is."""
    before = copy_of(model.state_dict())
    for kind in ("gate_and_up", "down"):
        lora = {name: t for name, t in trainers_tensors(model).items() if f".lora_{kind}_" in name}
        sw.save_lora(lora, tmp_path / kind, model="minimax_m3", alpha=ALPHA)
        full = dict.fromkeys(trainers_tensors(model), torch.zeros(()))
        padded = {
            name: lora.get(name, torch.zeros_like(t))
            for name, t in trainers_tensors(model).items()
            if name in full
        }
        added = {name: t for name, t in added_by(padded).items() if t.any()}
        model.load_state_dict(before)
        with_adapter = PeftModel.from_pretrained(model, str(tmp_path / kind))
        model = with_adapter.merge_and_unload()
        assert_merged(before, model, added)
        again = {name: torch.full_like(t, torch.nan) for name, t in lora.items()}
        sw.load_lora(again, tmp_path / kind)
        assert all(torch.equal(again[name], lora[name]) for name in lora)


def test_rank_stabilised_adapters(model: torch.nn.Module, tmp_path: Path):
    lora = trainers_tensors(model)
    before = copy_of(model.state_dict())
    sw.save_lora(lora, tmp_path, model="minimax_m3", alpha=SCALING * RANK**0.5, use_rslora=True)
    assert_merged(before, PeftModel.from_pretrained(model, str(tmp_path)).merge_and_unload(), added_by(lora))
    again = trainers_tensors(model, fill=False)
    report = sw.load_lora(again, tmp_path)
    assert list(report.scaling.values()) == pytest.approx([SCALING] * len(report.scaling))


@pytest.mark.parametrize("what", ["modules", "parameters", "both"])
def test_what_peft_writes_loads_in_ours_with_equal_values_and_merges_equally(
    model: torch.nn.Module, tmp_path: Path, what: str
):
    before = copy_of(model.state_dict())
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=[] if what == "parameters" else rf"{TEXT}layers.*\.self_attn\.[qkvo]_proj",
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        if what != "modules"
        else None,
    )
    if what == "both":
        config.target_modules = [*ATTENTION[:1], "shared_experts.gate_up_proj", "shared_experts.down_proj"]
        config.exclude_modules = r".*(vision_tower|indexer).*"
    with_adapter = get_peft_model(model, config)
    fill_at_random(with_adapter)
    with_adapter.save_pretrained(str(tmp_path))
    theirs = peft.get_peft_model_state_dict(with_adapter)
    shared = [name for name in theirs if ".shared_experts.gate_up_proj." in name]

    lora = {}
    for name, tensor in trainers_tensors(model_of(with_adapter), fill=False).items():
        experts, attention = ".experts.lora_" in name, ".self_attn." in name and ".indexer." not in name
        wanted = {
            "modules": attention,
            "parameters": experts,
            "both": experts or ".shared_experts." in name or (attention and ".q_proj." in name),
        }[what]
        if wanted:
            lora[name] = tensor
    report = sw.load_lora(lora, tmp_path)
    assert not any(tensor.isnan().any() for tensor in lora.values())
    assert set(report.scaling.values()) == {SCALING}
    assert report.param_wrapper == (None if what == "modules" else "modern")
    for name in shared:  # gate and up have the A of the module that they are joined in
        ours = name.removeprefix("base_model.model.model.language_model.").replace(".mlp.shared_", ".shared_")
        if "lora_A" in name:
            assert torch.equal(lora["model." + ours.replace("gate_up_proj", "gate_proj")], theirs[name])
            assert torch.equal(lora["model." + ours.replace("gate_up_proj", "up_proj")], theirs[name])
    merged = with_adapter.merge_and_unload()
    assert_merged(before, merged, added_by(lora))


def model_of(with_adapter: torch.nn.Module) -> torch.nn.Module:
    """The model without wrappers, for the shapes of its weights."""
    base = with_adapter.get_base_model()
    with torch.device("meta"):
        return type(base)(base.config)


def test_text_only_models(checkpoint: Path, tmp_path: Path):
    config = AutoConfig.from_pretrained(checkpoint).get_text_config()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    before = copy_of(model.state_dict())
    renamed = torch.nn.Module()
    renamed.state_dict = lambda: {name.replace("model.", TEXT, 1): t for name, t in before.items()}  # type: ignore[method-assign]
    lora = trainers_tensors(renamed)
    sw.save_lora(lora, tmp_path, model="minimax_m3", alpha=ALPHA, text_only=True)
    merged = PeftModel.from_pretrained(model, str(tmp_path)).merge_and_unload()
    assert_merged(before, merged, {name.replace(TEXT, "model.", 1): t for name, t in added_by(lora).items()})


def test_the_files_are_those_of_peft(model: torch.nn.Module, tmp_path: Path):
    sw.save_lora(trainers_tensors(model), tmp_path / "ours", model="minimax_m3", alpha=ALPHA)
    with_adapter = PeftModel.from_pretrained(model, str(tmp_path / "ours"))
    with_adapter.save_pretrained(str(tmp_path / "theirs"))
    again = trainers_tensors(model_of(with_adapter), fill=False)
    ours = trainers_tensors(model_of(with_adapter), fill=False)
    sw.load_lora(again, tmp_path / "theirs")
    sw.load_lora(ours, tmp_path / "ours")
    assert all(torch.equal(again[name], tensor) for name, tensor in ours.items())
    config = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    assert config["r"] == RANK and config["lora_alpha"] == ALPHA
