"""What the generator writes is M3's, can be trained or exercises the formats, and is the same each time."""

import json
from pathlib import Path

import numpy as np
import pytest
import reference
import shardwright as sw
import torch
from checkpoints import INDEX


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_equal_seeds_give_equal_bytes(tiny: Path, tmp_path: Path):
    sw.generate(tmp_path / "again", preset="tiny", seed=0, values="any")
    sw.generate(tmp_path / "other", preset="tiny", seed=1, values="any")
    assert contents(tmp_path / "again") == contents(tiny)
    assert contents(tmp_path / "other") != contents(tiny)


def test_the_index_names_each_tensor_and_its_file(tiny: Path):
    index = json.loads((tiny / INDEX).read_text())
    stored = reference.read_checkpoint(tiny)
    assert index["weight_map"] == {name: tensor.file.name for name, tensor in stored.items()}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in stored.values())
    assert len(set(index["weight_map"].values())) > 1


def test_the_config_is_m3s(tiny: Path):
    config = json.loads((tiny / "config.json").read_text())
    assert config["model_type"] == "minimax_m3_vl"
    assert config["text_config"]["hidden_size"] == 64
    assert config["quantization_config"]["weight_block_size"] == [1, 32]


def test_every_fp8_code_but_nan_comes_up_and_scales_range_widely(small: Path):
    stored = reference.read_checkpoint(small)
    codes, scales = np.zeros(256, dtype=int), set()
    for name, tensor in stored.items():
        if tensor.dtype == "F8_E4M3":
            codes += np.bincount(tensor.raw().ravel(), minlength=256)
            scales |= set(stored[name + "_scale_inv"].raw().ravel().tolist())
    assert np.flatnonzero(codes == 0).tolist() == [0x7F, 0xFF]
    assert max(scales) - min(scales) > 16


def test_names_shapes_and_dtypes_are_those_of_the_released_model(tiny: Path):
    stored = reference.read_checkpoint(tiny)
    found = {name: (tensor.dtype, tensor.shape) for name, tensor in stored.items()}
    layer = "language_model.model.layers.1"
    for name, dtype, shape in (
        (f"{layer}.self_attn.q_proj.weight", "F8_E4M3", (64, 64)),
        (f"{layer}.self_attn.k_proj.weight_scale_inv", "U8", (32, 2)),
        (f"{layer}.self_attn.q_norm.weight", "BF16", (16,)),
        (f"{layer}.block_sparse_moe.experts.3.w1.weight", "F8_E4M3", (32, 64)),
        (f"{layer}.block_sparse_moe.experts.3.w2.weight", "F8_E4M3", (64, 32)),
        (f"{layer}.block_sparse_moe.e_score_correction_bias", "F32", (4,)),
        ("language_model.model.layers.0.mlp.up_proj.weight", "F8_E4M3", (96, 64)),
        ("language_model.model.mtp.layers.0.eh_proj.weight", "F8_E4M3", (64, 128)),
        ("language_model.model.mtp.layers.0.eh_proj.weight_scale_inv", "U8", (64, 4)),
        ("language_model.lm_head.weight", "BF16", (128, 64)),
        ("vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight", "BF16", (128, 32)),
    ):
        assert found[name] == (dtype, shape), name
    assert "BF16" in {dtype for dtype, _ in found.values()}


def test_a_directory_that_holds_a_checkpoint_is_refused(tiny: Path):
    before = contents(tiny)
    with pytest.raises((FileExistsError, ValueError), match=str(tiny)):
        sw.generate(tiny, preset="tiny")
    assert contents(tiny) == before


def test_files_of_a_model_do_not_go_among_those_of_a_training(tmp_path: Path):
    sw.save({"w": torch.ones(3)}, tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match="found one of training"):
        sw.generate(tmp_path / "run", preset="tiny")
    assert contents(tmp_path / "run") == before


def test_what_was_made_goes_when_the_disk_is_full(tmp_path: Path):
    with pytest.raises(OSError, match="bytes of free space"):
        sw.generate(tmp_path / "above" / "new", preset="full")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(OSError, match="bytes of free space"):
        sw.generate(tmp_path / "mine", preset="full")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_unknown_preset_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="(?s)huge.*tiny"):
        sw.generate(tmp_path / "new", preset="huge")


def test_layout_only_takes_no_room(tmp_path: Path):
    sw.generate(tmp_path, preset="small", layout_only=True)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) > 10_000_000
    assert sum(file.stat().st_blocks * 512 for file in tmp_path.iterdir()) < 2_000_000


@pytest.mark.parametrize("encoding", ["mxfp8", "block_fp8", "tensor_fp8", "nvfp4_modelopt"])
def test_values_are_of_the_size_that_a_trained_model_has(encoding: str, tmp_path: Path):
    sw.generate(tmp_path, encoding=encoding)
    weights = sw.empty_state_dict(tmp_path)
    sw.load(weights, tmp_path)
    encoded = 0
    for name, weight in weights.items():
        numbers = weight.double()
        assert numbers.isfinite().all(), name
        if weight.dim() == 1 and name.endswith(".weight"):
            assert abs(numbers.mean() - 1) < 0.02 and numbers.std() < 0.05, name
        elif weight.numel() > 1000:
            assert abs(numbers.mean()) < 0.003, name
            # 4-bit weights are any of 16 codes, of deviation 2.93 for the 3 that is reckoned with.
            assert 0.014 < numbers.std() < 0.026, (name, numbers.std())
            encoded += weight.dim() == 3
    assert encoded > 0
    tiny = torch.cat([weight.double().flatten() for weight in weights.values() if weight.dim() > 1])
    assert len(tiny.unique()) > 500  # no two places are likely to be confused unseen


def alphabet_of_bytes() -> dict[int, str]:
    """GPT-2's: what prints stands for itself, and the rest follows from 256 on."""
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in prints]
    return {byte: chr(byte) for byte in prints} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@pytest.mark.parametrize("vocabulary", [3, 5, 96, 257, 300])
def test_the_tokenizer_has_a_token_for_each_number_that_it_can(vocabulary: int, tmp_path: Path):
    config = {"vocab_size": vocabulary, "bos_token_id": 2, "eos_token_id": 1}
    sw.generate(tmp_path, family="llama", config=config)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    assert sorted(vocab.values()) == list(range(min(vocabulary, 3 + 1 + 256)))
    marks = {mark["content"]: mark["id"] for mark in tokenizer["added_tokens"]}
    assert marks == {token: id for token, id in vocab.items() if len(token) > 1}
    assert (marks["<pad>"], marks["</s>"], marks["<s>"]) == (0, 1, 2)
    bytes_there = set(vocab) - set(marks)
    alphabet = alphabet_of_bytes()
    assert bytes_there <= set(alphabet.values()) and len(bytes_there) == max(0, min(vocabulary - 4, 256))
    if vocabulary >= 96 + 4:
        assert {alphabet[byte] for byte in range(32, 127)} <= bytes_there
    names = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert names["eos_token"] == "</s>" and names["model_max_length"] == 64
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 1 and generation["bos_token_id"] == 2


def test_a_tokenizer_that_is_there_is_not_replaced(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text("mine")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        sw.generate(tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_values_of_another_kind_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="values 'huge': expected trained or any"):
        sw.generate(tmp_path / "new", values="huge")
