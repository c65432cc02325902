"""What an export takes over from its template's folder: no weights, and nothing of the training that put it there."""

import shutil
from pathlib import Path

import pytest
import shardwright as sw
import torch

OF_THE_EXPORT = {
    "config.json",
    "model-00001-of-00001.safetensors",
    "model.safetensors.index.json",
    "shardwright.checksums",
}

TAKEN_OVER = """
    README.md README.pt.md LICENSE LICENSE.txt NOTICE Notice.pdf
    generation_config.json configuration_minimax.py modeling_minimax.py tokenization.py
    tokenizer.json tokenizer_config.json tokenizer.model spiece.model qwen.tiktoken vocab.json vocab.txt merges.txt
    added_tokens.json special_tokens_map.json tool_chat_template.jinja chat_template.jinja chat_template.json
    preprocessor_config.json processor_config.json video_preprocessor_config.json image_processing.py
    sentence_bert_config.json modules.json figure.png
    additional_chat_templates/tools.jinja
"""

LEFT_OUT = """
    shardwright.manifest rank-00000-00000-9751e63cd665.safetensors .metadata __0_0.distcp
    adapter_config.json adapter_model.safetensors adapter_model.bin automodel_peft_config.json
    old.safetensors model.safetensors.bak model.safetensors.index.json.old MODEL.SAFETENSORS.1
    pytorch_model.bin pytorch_model-00001-of-00002.bin pytorch_model.bin.index.json pytorch_model.bin.bak
    tf_model.h5 tf_model.h5.index.json flax_model.msgpack flax_model.msgpack.index.json rust_model.ot
    model.onnx model.onnx_data model.onnx.data model.onnx_data_1 model.tflite model.ckpt last.ckpt model.ckpt.index
    weights.npz weights.npy model.gguf model-Q4_K_M.gguf consolidated.00.pth model.pt model.pkl model.pickle
    model.pdparams model.nemo model.mlmodel
    optimizer.pt optimizer.bin scheduler.pt scaler.pt rng_state.pth rng_state_0.pth trainer_state.json
    training_args.bin latest zero_to_fp32.py random_states_0.pkl
    events.out.tfevents.1700000000.host.1.0
"""


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("released") / "tiny"
    sw.generate(path, "tiny")
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (path / name).unlink()  # each test adds what it is about
    return path


def loaded(path: Path) -> dict[str, torch.Tensor]:
    state = sw.empty_state_dict(path)
    sw.load(state, path)
    return state


def test_a_template_in_the_folder_of_a_saved_step(released: Path, tmp_path: Path):
    state = loaded(released)
    sw.save(state, tmp_path / "run", step=5)
    step = tmp_path / "run" / "step-00000005"
    shutil.copytree(released, step, dirs_exist_ok=True)
    (step / "optimizer.pt").write_text("of a trainer")

    sw.export(state, tmp_path / "to", template=step)
    assert {path.name for path in (tmp_path / "to").iterdir()} == OF_THE_EXPORT
    again = loaded(tmp_path / "to")
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)
    assert not sw.verify(tmp_path / "to").problems


def test_what_is_taken_over_and_what_is_left_out(released: Path, tmp_path: Path):
    state = loaded(released)
    template = Path(shutil.copytree(released, tmp_path / "template"))
    (template / "additional_chat_templates").mkdir()
    for name in (TAKEN_OVER + LEFT_OUT).split():
        # None of them is looked at as weights: those of the index are.
        (template / name).write_text(f"what is in {name}")

    sw.export(state, tmp_path / "to", template=template)
    found = {
        str(path.relative_to(tmp_path / "to")): path
        for path in (tmp_path / "to").rglob("*")
        if path.is_file()
    }
    taken = set(TAKEN_OVER.split())
    assert set(found) - OF_THE_EXPORT == taken
    assert all(found[name].read_text() == f"what is in {name}" for name in taken)
    again = loaded(tmp_path / "to")
    assert all(torch.equal(again[name], state[name]) for name in state)
