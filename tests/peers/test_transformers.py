"""Layout "transformers" is what transformers itself loads. Run by `make compare`, which sets up what this needs."""

import itertools
import json
import re
from pathlib import Path

import pytest
import shardwright as sw
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig

RELEASED = Path(__file__).parent.parent / "data" / "minimax_m3_vl.transformers.txt"


@pytest.fixture(scope="module", params=["tiny", "small"])
def path(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("generated") / request.param
    sw.generate(path, preset=request.param, seed=0, values="any")
    return path


def text_only(path: Path, into: Path) -> Path:
    """The text part of a VL checkpoint, with the names and the config of a checkpoint of its own."""
    into.mkdir()
    for file in path.glob("*.safetensors"):
        tensors = {name: t for name, t in load_file(file).items() if name.startswith("language_model.")}
        if tensors:
            renamed = {name.removeprefix("language_model."): t for name, t in tensors.items()}
            save_file(renamed, into / file.name, metadata={"format": "pt"})
    weight_map = {name: file.name for file in into.iterdir() for name in load_file(file)}
    (into / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    whole = json.loads((path / "config.json").read_text())
    config = whole["text_config"] | {"architectures": ["MiniMaxM3VLForCausalLM"], "dtype": whole["dtype"]}
    config["quantization_config"] = whole["quantization_config"]
    (into / "config.json").write_text(json.dumps(config))
    return into


def loaded_by_transformers(path: Path) -> dict[str, torch.Tensor]:
    config = AutoConfig.from_pretrained(path)
    config.quantization_config["dequantize"] = True  # as it does by itself where there is no GPU
    model, info = AutoModelForImageTextToText.from_pretrained(
        path, config=config, dtype="auto", output_loading_info=True
    )
    assert not any(info.values()), info
    return model.state_dict()


def check_that_ours_equals(path: Path, model: torch.nn.Module, theirs: dict[str, torch.Tensor]) -> None:
    """Loads `path` into the model."""
    state_dict = model.state_dict()
    assert state_dict.keys() == theirs.keys()
    for tensor in state_dict.values():
        tensor.view(torch.uint8).fill_(0x5A)
    report = sw.load(state_dict, path, layout="transformers")
    assert all(".mtp." in name for name in report.unused)
    for name, tensor in theirs.items():
        ours = state_dict[name]
        assert (ours.dtype, ours.shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(ours.view(torch.uint8), tensor.contiguous().view(torch.uint8)), name

    empty = sw.empty_state_dict(path, layout="transformers")
    assert {name: t.shape for name, t in empty.items()} == {name: t.shape for name, t in theirs.items()}


def without_quantization(path: Path) -> PretrainedConfig:
    config = AutoConfig.from_pretrained(path)
    del config.quantization_config
    return config


def test_every_tensor_equals_what_transformers_loads_bit_for_bit(path: Path):
    model = AutoModelForImageTextToText.from_config(without_quantization(path), dtype=torch.bfloat16)
    check_that_ours_equals(path, model, loaded_by_transformers(path))


def test_a_text_only_checkpoint_fills_transformers_text_model_with_the_same_numbers(
    path: Path, tmp_path: Path
):
    """transformers 5.23 has the model, but cannot load such a checkpoint: its conversion speaks of VL names only."""
    text = text_only(path, tmp_path / "text")
    model = AutoModelForCausalLM.from_config(without_quantization(text), dtype=torch.bfloat16)
    of_vl = loaded_by_transformers(path)
    in_vl = {name: name.replace("model.", "model.language_model.", 1) for name in model.state_dict()}
    check_that_ours_equals(text, model, {name: of_vl[whole] for name, whole in in_vl.items()})


def unfold(name: str) -> list[str]:
    """ "layers.{3-5}.w" as layers.3.w, layers.4.w, layers.5.w."""
    parts = re.split(r"\{(\d+-\d+)\}", name)
    choices = [
        [part]
        if i % 2 == 0
        else [str(n) for n in range(int(part.split("-")[0]), int(part.split("-")[1]) + 1)]
        for i, part in enumerate(parts)
    ]
    return ["".join(choice) for choice in itertools.product(*choices)]


def test_the_list_of_the_released_models_tensors_is_transformers_own(tmp_path: Path):
    sw.generate(tmp_path / "full", preset="full", layout_only=True)
    config = AutoConfig.from_pretrained(tmp_path / "full")
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    listed = {}
    for line in RELEASED.read_text().splitlines():
        name, _, shape = line.split()
        listed |= dict.fromkeys(unfold(name), tuple(map(int, shape.split(","))))
    assert listed == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("quantization", [None, "mxfp8"])
def test_transformers_reads_what_is_exported(quantization: str | None, path: Path, tmp_path: Path):
    """The same numbers as from the checkpoint that the export's tensors were loaded from."""
    state_dict = sw.empty_state_dict(path)
    sw.load(state_dict, path)
    sw.export(state_dict, tmp_path / "to", quantization=quantization, template=path, max_shard_size="10MB")
    if quantization is None:
        model, info = AutoModelForImageTextToText.from_pretrained(
            tmp_path / "to", dtype="auto", output_loading_info=True
        )
        assert not any(info.values()), info
        found = model.state_dict()
    else:
        found = loaded_by_transformers(tmp_path / "to")
    expected = loaded_by_transformers(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(
            found[name].contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8)
        ), name
