"""torch_checkpointing 0.1.1 loads quantized releases, its own checkpoints and ours by our resharder, on two ranks."""

import json
from pathlib import Path

import pytest
import torch
from on_ranks import run_well
from safetensors.torch import save_file
from shardwright.integrations.torch_checkpointing import AnyCheckpoint, Resharder
from torch_checkpointing import CheckpointManager, ItemSpec, SyncCheckpointSaverConfig
from torch_checkpointing.storage.filesystem import LocalFileSystemStorage, LocalFileSystemStorageConfig

BLOCK = 128


def quantized(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """FP8 values, the F32 scale of each 128 × 128 block, and what they mean in BF16."""
    rows, columns = (-(-size // BLOCK) for size in tensor.shape)
    scales = torch.empty(rows, columns)
    stored = torch.empty(tensor.shape, dtype=torch.float8_e4m3fn)
    meant = torch.empty(tensor.shape)
    for row in range(rows):
        for column in range(columns):
            block = (slice(row * BLOCK, (row + 1) * BLOCK), slice(column * BLOCK, (column + 1) * BLOCK))
            scales[row, column] = tensor[block].abs().max() / 448
            stored[block] = (tensor[block] / scales[row, column]).to(torch.float8_e4m3fn)
            meant[block] = stored[block].float() * scales[row, column]
    return stored, scales, meant.to(torch.bfloat16)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> list[dict[str, list[str]]]:
    folder = tmp_path_factory.mktemp("reshard")
    (folder / "quantized").mkdir()
    generator = torch.Generator().manual_seed(0)
    stored: dict[str, torch.Tensor] = {}
    expected: dict[str, torch.Tensor] = {}
    for name, shape in (
        ("model.layers.0.self_attn.q_proj.weight", (150, 131)),  # no shard ends where a block does
        ("model.layers.0.mlp.up_proj.weight", (257, 64)),
    ):
        values = torch.randn(shape, generator=generator)
        stored[name], stored[name + "_scale_inv"], expected[name] = quantized(values)
    stored["model.norm.weight"] = expected["model.norm.weight"] = torch.randn(64).to(torch.bfloat16)
    save_file(stored, folder / "quantized" / "model.safetensors", metadata={"format": "pt"})
    (folder / "quantized" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file(expected, folder / "expected.safetensors")
    run_well("reshard_by_torch_checkpointing.py", folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_every_way_brings_the_decoded_values(outcomes: list[dict[str, list[str]]]):
    for wrong in outcomes:
        assert len(wrong) == 8
        assert {what: names for what, names in wrong.items() if names and what != "theirs"} == {}


def test_its_own_resharder_loads_the_bare_elements(outcomes: list[dict[str, list[str]]]):
    """Without a word; what the resharder is for."""
    assert all(wrong["theirs"] for wrong in outcomes)


def test_a_folder_without_a_checkpoint_is_none(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    storage = LocalFileSystemStorage(LocalFileSystemStorageConfig())
    assert AnyCheckpoint.maybe_load(tmp_path, storage) is None
    config = CheckpointManager.Config(
        items={"model": ItemSpec(resharder=Resharder())}, save=SyncCheckpointSaverConfig()
    )
    with pytest.raises(FileNotFoundError, match="AnyCheckpoint"):
        config.build().load(tmp_path, into={"model": {"a": torch.zeros(1)}}, metadata_format=AnyCheckpoint)


def test_files_elsewhere_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="expected LocalFileSystemStorage, found object"):
        AnyCheckpoint.maybe_load(tmp_path, object())
