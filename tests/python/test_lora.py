"""LoRA adapters between a trainer's tensors and adapter files, against plain index arithmetic."""

import json
import math
from pathlib import Path

import pytest
import shardwright as sw
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_reference import Sizes, file_tensors, nan_like, read_adapter, trainers, write_adapter
from reference import differing

LAYOUTS = ("transformers", "huggingface", "automodel")
SENSES = ("modern", "legacy")


def loaded(
    directory: Path, like: dict[str, torch.Tensor], **options
) -> tuple[dict[str, torch.Tensor], sw.LoraReport]:
    state_dict = nan_like(like)
    report = sw.load_lora(state_dict, directory, **options)
    return state_dict, report


sizes = st.builds(
    Sizes,
    experts=st.integers(1, 5),
    hidden=st.integers(1, 9),
    inter=st.integers(1, 7),
    rank=st.integers(1, 4),
    dense=st.integers(1, 6),
)


@given(
    sizes=sizes,
    layout=st.sampled_from(LAYOUTS),
    sense=st.sampled_from(SENSES),
    text_only=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    prefix=st.sampled_from(["", "base_model.model."]),
)
def test_saving_gives_the_tensors_of_the_definition_and_loading_gives_them_back(
    tmp_path_factory, sizes: Sizes, layout: str, sense: str, text_only: bool, dtype: torch.dtype, prefix: str
):
    lora = {prefix + name: tensor for name, tensor in trainers(sizes, dtype=dtype).items()}
    bare = {name.removeprefix(prefix): tensor for name, tensor in lora.items()}
    path = tmp_path_factory.mktemp("lora")
    sw.save_lora(lora, path, alpha=8, layout=layout, param_wrapper=sense, text_only=text_only)
    expected = file_tensors(bare, layout, text_only=text_only, legacy=sense == "legacy")
    assert differing(read_adapter(path), expected) == []
    again, report = loaded(path, lora)
    assert differing(again, lora) == []
    assert list(report.scaling.values()) == pytest.approx([8 / sizes.rank] * len(report.scaling))


@given(sizes=sizes, layout=st.sampled_from(LAYOUTS), sense=st.sampled_from(SENSES), text_only=st.booleans())
def test_files_of_others_load(tmp_path_factory, sizes: Sizes, layout: str, sense: str, text_only: bool):
    lora = trainers(sizes)
    tensors = file_tensors(lora, layout, text_only=text_only, legacy=sense == "legacy")
    path = write_adapter(tmp_path_factory.mktemp("lora"), tensors, r=sizes.rank)
    assert differing(loaded(path, lora, param_wrapper=sense)[0], lora) == []


@pytest.mark.parametrize("sense", SENSES)
def test_shapes_tell_the_sense_of_a_wrapper(tmp_path: Path, sense: str):
    lora = trainers()
    write_adapter(tmp_path, file_tensors(lora, "transformers", legacy=sense == "legacy"))
    again, report = loaded(tmp_path, lora)
    assert report.param_wrapper == sense
    assert differing(again, lora) == []


def test_one_wrapper_whose_shapes_tell_speaks_for_all(tmp_path: Path):
    """As in the released M3, where hidden = 2 · intermediate: gate and up fit both senses, down does not."""
    lora = trainers(Sizes(hidden=12, inter=6))
    for sense in SENSES:
        write_adapter(tmp_path / sense, file_tensors(lora, "transformers", legacy=sense == "legacy"))
        assert differing(loaded(tmp_path / sense, lora)[0], lora) == []


def only(lora: dict[str, torch.Tensor], *endings: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in lora.items() if name.endswith(endings)}


def lone_wrappers(lora: dict[str, torch.Tensor], legacy: bool) -> dict[str, torch.Tensor]:
    """Of gate and up alone: peft wraps nothing around it."""
    tensors = file_tensors(lora, "transformers", legacy=legacy)
    inner = {name: tensor for name, tensor in tensors.items() if ".base_layer." in name}
    return {name.replace(".base_layer", ""): tensor for name, tensor in inner.items()}


@pytest.mark.parametrize(
    ("stamp", "sense"),
    [
        ({"peft_version": "0.19.0"}, "legacy"),
        ({"peft_version": "0.18.1"}, "legacy"),
        ({"peft_version": "0.19.1"}, "modern"),
        ({"peft_version": "0.21.2.dev0"}, "modern"),
        ({"paramwrapper_layout": "peft-0.18"}, "legacy"),
        ({"paramwrapper_layout": "peft-0.19.1"}, "modern"),
    ],
)
def test_where_shapes_cannot_tell_the_writers_version_does(tmp_path: Path, stamp: dict[str, str], sense: str):
    lora = trainers(Sizes(hidden=12, inter=6))
    mine = only(lora, "lora_gate_and_up_A", "lora_gate_and_up_B")
    write_adapter(
        tmp_path,
        lone_wrappers(lora, sense == "legacy"),
        target_parameters=["mlp.experts.gate_up_proj"],
        **{key: value for key, value in stamp.items() if key == "peft_version"},
    )
    if "paramwrapper_layout" in stamp:
        (tmp_path / "automodel_peft_config.json").write_text(json.dumps(stamp))
    again, report = loaded(tmp_path, mine)
    assert report.param_wrapper == sense
    assert differing(again, mine) == []


def test_only_one_parameter_of_the_experts(tmp_path: Path):
    lora = trainers()
    for kind, parameter in (("gate_and_up", "gate_up_proj"), ("down", "down_proj")):
        mine = only(lora, f"lora_{kind}_A", f"lora_{kind}_B")
        path = tmp_path / kind
        sw.save_lora(mine, path, alpha=8, model="minimax_m3")
        names = list(read_adapter(path))
        assert not any(".base_layer." in name for name in names)
        assert json.loads((path / "adapter_config.json").read_text())["target_parameters"] == [
            f"model.language_model.layers.{layer}.mlp.experts.{parameter}" for layer in (1, 2)
        ]
        assert differing(loaded(path, mine)[0], mine) == []


def test_a_joined_module_with_one_a_gives_it_to_both(tmp_path: Path):
    """peft trains one pair for gate_up_proj; the trainer has a pair for each."""
    lora = only(trainers(), "layers.0.mlp.gate_proj.lora_A.weight", "layers.0.mlp.gate_proj.lora_B.weight")
    lora |= only(trainers(), "layers.0.mlp.up_proj.lora_B.weight")
    lora["model.layers.0.mlp.up_proj.lora_A.weight"] = lora["model.layers.0.mlp.gate_proj.lora_A.weight"]
    module = "base_model.model.model.language_model.layers.0.mlp.gate_up_proj"
    both = torch.cat([lora[f"model.layers.0.mlp.{name}_proj.lora_B.weight"] for name in ("gate", "up")])
    a = lora["model.layers.0.mlp.gate_proj.lora_A.weight"]
    write_adapter(tmp_path, {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": both})
    assert differing(loaded(tmp_path, lora)[0], lora) == []


def test_experts_whose_gate_and_up_have_an_a_each_fill_tensors_of_twice_the_rank(tmp_path: Path):
    sizes = Sizes(experts=2, rank=2)
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    e, h, i, r = sizes.experts, sizes.hidden, sizes.inter, sizes.rank
    stack = "language_model.model.layers.1.block_sparse_moe.experts"
    expected_a, expected_b = torch.zeros(e, h, 2 * r), torch.zeros(e, 2 * r, 2 * i)
    for expert in range(e):
        for part, name in enumerate(("w1", "w3")):
            a, b = torch.randn(r, h, generator=generator), torch.randn(i, r, generator=generator)
            tensors[f"base_model.model.{stack}.{expert}.{name}.lora_A.weight"] = a
            tensors[f"base_model.model.{stack}.{expert}.{name}.lora_B.weight"] = b
            expected_a[expert, :, part * r : (part + 1) * r] = a.T
            expected_b[expert, part * r : (part + 1) * r, part * i : (part + 1) * i] = b.T
            delta = expected_a[expert] @ expected_b[expert]
            torch.testing.assert_close(delta[:, part * i : (part + 1) * i], (b @ a).T)
    expected = {
        "model.layers.1.mlp.experts.lora_gate_and_up_A": expected_a,
        "model.layers.1.mlp.experts.lora_gate_and_up_B": expected_b,
    }
    write_adapter(tmp_path, tensors)
    again, report = loaded(tmp_path, expected)
    assert differing(again, expected) == []
    assert report.scaling == {"model.layers.1.mlp.experts.gate_and_up_projs": 8 / r}


def test_values_are_rounded_once_to_the_trainers_dtype(tmp_path: Path):
    lora = trainers()
    write_adapter(tmp_path, file_tensors(lora, "transformers"))
    state_dict = {name: tensor.to(torch.bfloat16).fill_(torch.nan) for name, tensor in lora.items()}
    sw.load_lora(state_dict, tmp_path)
    assert differing(state_dict, {name: tensor.to(torch.bfloat16) for name, tensor in lora.items()}) == []


def test_scaling_follows_patterns_as_peft_reads_them(tmp_path: Path):
    lora = trainers()
    write_adapter(
        tmp_path,
        file_tensors(lora, "huggingface"),
        alpha_pattern={
            "q_proj": 3,
            "^language_model.model.layers.1.block_sparse_moe.experts.0.w1": 5,
            r".*\.w2": 7,
        },
    )
    report = loaded(tmp_path, lora)[1]
    assert report.scaling["model.layers.0.self_attn.q_proj.weight"] == 3 / 2
    assert report.scaling["model.layers.1.mlp.experts.gate_and_up_projs"] == 5 / 2
    assert report.scaling["model.layers.1.mlp.experts.down_projs"] == 7 / 2
    assert report.scaling["model.layers.0.mlp.down_proj.weight"] == 8 / 2


def test_rslora_divides_by_the_root(tmp_path: Path):
    sw.save_lora(trainers(), tmp_path, alpha=8, use_rslora=True)
    report = loaded(tmp_path, trainers())[1]
    assert list(report.scaling.values()) == pytest.approx([8 / math.sqrt(2)] * len(report.scaling))


def test_the_config_names_every_module_that_the_file_has_and_no_other(tmp_path: Path):
    for layout in LAYOUTS:
        path = tmp_path / layout
        sw.save_lora(trainers(), path, alpha=8, layout=layout, base_model="some/model")
        config = json.loads((path / "adapter_config.json").read_text())
        targets = set(config["target_modules"])
        for parameter in config["target_parameters"] or []:
            module, _, name = parameter.rpartition(".")
            targets.add(module + (".base_layer" if name == "gate_up_proj" else ""))
        modules = {
            name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in read_adapter(path)
        }
        assert targets == modules
        assert (config["r"], config["lora_alpha"], config["bias"]) == (2, 8, "none")
        assert config["base_model_name_or_path"] == "some/model"


def test_a_save_replaces_what_was_there_and_leaves_nothing_else(tmp_path: Path):
    sw.save_lora(trainers(seed=1), tmp_path, alpha=8)
    sw.save_lora(trainers(seed=2), tmp_path, alpha=8)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert differing(loaded(tmp_path, trainers())[0], trainers(seed=2)) == []


def test_other_tensors_of_the_state_dict_are_left_alone(tmp_path: Path):
    lora = trainers()
    write_adapter(tmp_path, file_tensors(lora, "transformers"))
    weight = torch.full((3,), 7.0)
    sw.load_lora(nan_like(lora) | {"model.norm.weight": weight, "step": 3}, tmp_path)
    assert torch.equal(weight, torch.full((3,), 7.0))
