"""Forms of checkpoints that the peers read, beside those that they write. Run by `make compare`."""

from pathlib import Path

import pytest
import shardwright as sw
import torch
from safetensors.torch import save_file
from test_families_automodel import CASES, Case, adapter_of, write
from test_families_transformers import differing, model_of_tiny
from tiny_models import TINY, Tensors, held

TIED = next(tiny for tiny in TINY if tiny.id == "qwen3, tied")


@pytest.mark.parametrize("is_same", [True, False])
def test_a_stored_head_that_config_ties_is_loaded_as_transformers_does(is_same: bool, tmp_path: Path):
    """transformers warns and does not tie a head of other values; it ties one of the same."""
    TIED.write(tmp_path)
    stored = held(tmp_path)
    embedding = stored["model.embed_tokens.weight"]
    stored["lm_head.weight"] = embedding.clone() if is_same else embedding + 1
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    expected = model_of_tiny(TIED, tmp_path).state_dict()
    state = {name: torch.full_like(tensor, 7) for name, tensor in expected.items()}
    sw.load(state, tmp_path, layout="transformers")
    assert differing(state, dict(expected)) == []


def test_an_export_without_a_template_has_the_names_that_transformers_stores(tmp_path: Path):
    model = TIED.make()
    model.save_pretrained(tmp_path / "theirs")
    sw.export(model.state_dict(), tmp_path / "ours", model="qwen3", layout="transformers")
    assert differing(held(tmp_path / "ours"), held(tmp_path / "theirs")) == []
    sw.export(model.state_dict(), tmp_path / "auto", layout="transformers")
    assert differing(held(tmp_path / "auto"), held(tmp_path / "theirs")) == []


def renamed(tensors: Tensors, old: str, new: str) -> Tensors:
    found = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    assert found.keys() != tensors.keys()
    return found


def with_latent(tensors: Tensors) -> Tensors:
    generator = torch.Generator().manual_seed(9)
    more = {
        f"layers.1.ffn.{name}_latent_proj.weight": torch.randn(shape, generator=generator).bfloat16()
        for name, shape in (("fc1", (8, 24)), ("fc2", (24, 8)))
    }
    more |= {"vision.proj.weight": torch.ones(4, 4).bfloat16(), "image_start": torch.ones(24).bfloat16()}
    return tensors | more


def projector(tensors: Tensors) -> Tensors:
    for old, new in (("proj.0.", "linear_1."), ("proj.2.", "linear_2."), ("pre_norm.", "pre_norm.")):
        tensors = renamed(tensors, "mm_projector." + old, "multi_modal_projector." + new)
    return tensors


ACCEPTED = {
    "nemotron_v3": lambda tensors: renamed(tensors, "backbone.embeddings.", "backbone.embedding."),
    "kimi_k25_vl": projector,
    "deepseek_v4": with_latent,
}


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.module in ACCEPTED], ids=lambda case: case.id
)
def test_names_that_nemo_automodel_reads_are_read(case: Case, tmp_path: Path):
    stored = {name: t.contiguous() for name, t in ACCEPTED[case.module](write(case, tmp_path)).items()}
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    expected = {name: t.contiguous() for name, t in adapter_of(case, tmp_path).from_hf(dict(stored)).items()}
    state = {name: torch.full_like(tensor, 7) for name, tensor in expected.items()}
    report = sw.load(state, tmp_path)
    assert differing(state, expected) == [] and report.unknown == []
    sw.export(state, tmp_path / "to", template=tmp_path)
    assert differing(held(tmp_path / "to"), stored) == []
