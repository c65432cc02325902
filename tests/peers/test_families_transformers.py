"""Layout "transformers" of every family is what transformers 5.23 itself loads. Run by `make compare`."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import shardwright as sw
import torch
from safetensors.torch import save_file
from tiny_models import TINY, Tensors, Tiny, held, with_experts_turned
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

each = pytest.mark.parametrize("tiny", TINY, ids=lambda tiny: tiny.id)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(
        a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8)
    )


def differing(found: Tensors, expected: Tensors) -> list[str]:
    assert found.keys() == expected.keys()
    return [name for name in expected if not same(found[name], expected[name])]


def model_of_tiny(tiny: Tiny, path: Path) -> torch.nn.Module:
    auto = AutoModelForImageTextToText if tiny.is_vision_model else AutoModelForCausalLM
    return auto.from_pretrained(path, dtype="auto")


def loaded_by_transformers(tiny: Tiny, path: Path) -> Tensors:
    auto = AutoModelForImageTextToText if tiny.is_vision_model else AutoModelForCausalLM
    model, info = auto.from_pretrained(path, dtype="auto", output_loading_info=True)
    assert not any(info.values()), info
    return model.state_dict()


@each
def test_a_load_gives_what_transformers_loads(tiny: Tiny, tmp_path: Path):
    tiny.write(tmp_path / "from")
    expected = loaded_by_transformers(tiny, tmp_path / "from")
    state = {name: torch.full_like(tensor, 7) for name, tensor in expected.items()}
    report = sw.load(state, tmp_path / "from", layout="transformers")
    assert differing(state, expected) == []
    assert report.unused == [] and report.unknown == [] and report.not_loaded == []

    empty = sw.empty_state_dict(tmp_path / "from", layout="transformers")
    assert {name: tensor.shape for name, tensor in empty.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    sw.export(state, tmp_path / "to", template=tmp_path / "from", layout="transformers")
    assert differing(held(tmp_path / "to"), held(tmp_path / "from")) == []


@each
def test_a_checkpoints_own_names_load_as_they_are(tiny: Tiny, tmp_path: Path):
    tiny.write(tmp_path)
    expected = held(tmp_path)
    state = {name: torch.full_like(tensor, 7) for name, tensor in expected.items()}
    sw.load(state, tmp_path, layout="huggingface")
    assert differing(state, expected) == []
    empty = sw.empty_state_dict(tmp_path, layout="huggingface")
    assert {name: tensor.shape for name, tensor in empty.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    some = dict(list(state.items())[::3])  # the others are known, if not asked for
    assert sw.load(some, tmp_path, layout="huggingface").unknown == []


@each
def test_a_load_fills_the_model_itself(tiny: Tiny, tmp_path: Path):
    """Tensors that are tied, and so share memory, are loaded once."""
    expected = {name: tensor.clone() for name, tensor in tiny.write(tmp_path).state_dict().items()}
    model = tiny.make(seed=1)
    sw.load(model.state_dict(), tmp_path, layout="transformers")
    assert differing(dict(model.state_dict()), expected) == []


def test_two_ranks_load_what_transformers_loads(tmp_path: Path):
    """Sharded by experts and by what matrices take in."""
    for number, tiny in enumerate(TINY):
        path = tmp_path / f"{number:02} {tiny.id}"
        tiny.write(path)
        expected = {name: tensor.clone() for name, tensor in loaded_by_transformers(tiny, path).items()}
        save_file(expected, tmp_path / f"{path.name}.safetensors")
    worker = Path(__file__).parent / "sharded_families.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, worker, tmp_path], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["", ""]


def test_square_experts_as_released_are_read_by_their_other_matrix(tmp_path: Path):
    """Where hidden is 2 x intermediate, transformers 5.23 takes the released [E, hidden, 2 x intermediate] for its own
    [E, 2 x intermediate, hidden], as the shape is the same, and turns down_proj alone. The release has both turned."""
    square = next(tiny for tiny in TINY if tiny.id == "qwen3_vl_moe, 2 intermediate is hidden")
    released = replace(square, released=with_experts_turned)
    expected = dict(released.write(tmp_path).state_dict())
    theirs = loaded_by_transformers(released, tmp_path)
    wrong = differing(theirs, expected)
    assert {name.rpartition(".")[2] for name in wrong} == {"gate_up_proj"}
    state = {name: torch.full_like(tensor, 7) for name, tensor in expected.items()}
    sw.load(state, tmp_path, layout="transformers")
    assert differing(state, expected) == []
