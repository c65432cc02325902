"""`shardwright convert --quantization`: between the encodings of Hugging Face checkpoints, a few rows at a time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import shardwright as sw
import torch
from safetensors.torch import save_file
from shardwright.cli.command_line import main
from slow_rules import RULES, decoded
from test_rules import weights
from test_template_encodings import differing, held

DRAW = torch.Generator().manual_seed(9)
VALUES = weights(DRAW, 300, 256, torch.bfloat16)
PLAIN = {"b.weight": weights(DRAW, 40, 96, torch.float32), "norm.weight": torch.ones(96)}


def source_in(path: Path, stored: dict[str, torch.Tensor]) -> Path:
    path.mkdir()
    save_file(stored | PLAIN, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps({"x": 1}))
    (path / "tokenizer.json").write_text("{}")
    return path


@pytest.mark.parametrize("rule", RULES)
def test_bf16_to_an_encoding_and_back(rule: str, tmp_path: Path):
    source = source_in(tmp_path / "source", {"a.weight": VALUES})
    report = sw.convert(
        source, tmp_path / "to", quantization=rule, quantized_weights=["a.*"], buffer_bytes=1 << 16
    )
    stored = RULES[rule]("a.weight", VALUES)
    assert differing(held(tmp_path / "to"), stored | PLAIN) == []
    assert sw.verify(tmp_path / "to").problems == [] and report.bytes_written > 0
    config = json.loads((tmp_path / "to" / "config.json").read_text())
    assert config["x"] == 1 and config["quantization_config"]
    assert (tmp_path / "to" / "tokenizer.json").exists()
    sw.convert(tmp_path / "to", tmp_path / "back", quantization="bf16")
    values = {"a.weight": decoded(rule, "a.weight", stored, torch.bfloat16)}
    assert differing(held(tmp_path / "back"), values | PLAIN) == []
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == {"x": 1}


@pytest.mark.parametrize("buffer_bytes", [1 << 14, 1 << 30])
def test_blocks_of_gpt_oss_are_of_the_transposes_of_its_bf16_matrices(buffer_bytes: int, tmp_path: Path):
    name = "model.layers.0.mlp.experts.down_proj"
    stack = torch.stack([weights(DRAW, 64, 160, torch.bfloat16) for _ in range(3)])  # [experts, in, out]
    source = source_in(tmp_path / "source", {name: stack})
    blocks = RULES["mxfp4-gpt-oss"](name, stack.transpose(1, 2).contiguous())
    sw.convert(
        source,
        tmp_path / "to",
        quantization="mxfp4-gpt-oss",
        quantized_weights=["*_proj"],
        buffer_bytes=buffer_bytes,
    )
    assert differing(held(tmp_path / "to"), blocks | PLAIN) == []
    sw.convert(tmp_path / "to", tmp_path / "back", quantization="bf16", buffer_bytes=buffer_bytes)
    matrices = [
        decoded("mxfp4-gpt-oss", name, {end: tensor[e] for end, tensor in blocks.items()}, torch.bfloat16).T
        for e in range(3)
    ]
    assert differing(held(tmp_path / "back"), {name: torch.stack(matrices)} | PLAIN) == []


def test_stacks_in_mxfp8_become_blocks_of_gpt_oss(tmp_path: Path):
    """Their scales have the name that those of the blocks have, until files call them otherwise."""
    name = "layers.0.experts.gate_up_proj"
    matrices = [weights(DRAW, 64, 160, torch.bfloat16) for _ in range(3)]
    encoded = [RULES["mxfp8"](name, matrix) for matrix in matrices]
    source = source_in(
        tmp_path / "source", {end: torch.stack([one[end] for one in encoded]) for end in encoded[0]}
    )
    stack = torch.stack([decoded("mxfp8", name, one, torch.bfloat16) for one in encoded])
    blocks = RULES["mxfp4-gpt-oss"](name, stack.transpose(1, 2).contiguous())
    sw.convert(source, tmp_path / "to", quantization="mxfp4-gpt-oss", quantized_weights=["*_proj"])
    assert differing(held(tmp_path / "to"), blocks | PLAIN) == []


@pytest.mark.ranks
def test_the_command_line_on_two_ranks(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    source = source_in(tmp_path / "source", RULES["mxfp8"]("a.weight", VALUES))
    command = [
        "convert",
        str(source),
        str(tmp_path / "to"),
        "--quantization",
        "nvfp4-modelopt",
        "--ranks",
        "2",
    ]
    assert main(command) in (0, None)
    assert "bytes written" in capfd.readouterr().out
    values = decoded("mxfp8", "a.weight", RULES["mxfp8"]("a.weight", VALUES), torch.bfloat16)
    assert differing(held(tmp_path / "to"), RULES["nvfp4-modelopt"]("a.weight", values) | PLAIN) == []


def test_a_checkpoint_of_training_is_exported(tmp_path: Path):
    sw.save({"a.weight": VALUES}, tmp_path / "saved")
    sw.convert(tmp_path / "saved", tmp_path / "to", quantization="mxfp4-ocp", quantized_weights=["a.weight"])
    assert differing(held(tmp_path / "to"), RULES["mxfp4-ocp"]("a.weight", VALUES)) == []


def test_fp8_without_scales_is_refused_by_name_and_not_by_where_it_would_be_written(tmp_path: Path):
    sw.save({"a.weight": torch.ones(128, 128).to(torch.float8_e4m3fn)}, tmp_path / "saved")
    for write in (
        lambda: sw.convert(tmp_path / "saved", tmp_path / "to", quantization="bf16"),
        lambda: sw.export(tmp_path / "saved", tmp_path / "to", layout="huggingface"),
    ):
        with pytest.raises(
            sw.PlanError, match="(?s)the checkpoint that is to be written.*a.weight"
        ) as refused:
            write()
        assert "shardwright.saving" not in str(refused.value)


def test_an_adapter_is_not_converted(tmp_path: Path):
    module = "model.layers.0.self_attn.o_proj"
    lora = {f"{module}.lora_{x}.weight": torch.ones(4, 4) for x in "AB"}
    sw.save_lora(lora, tmp_path / "adapter", alpha=8, model="minimax_m3")
    with pytest.raises(ValueError, match="holds a LoRA adapter"):
        sw.convert(tmp_path / "adapter", tmp_path / "to", quantization="bf16")
    assert not (tmp_path / "to").exists()


def saved_training(folder: Path) -> Path:
    """A model's experts in stacks of their transposes, gates and ups joined, and what else a training holds."""
    sw.generate(folder / "released", "tiny")
    state = sw.empty_state_dict(folder / "released")
    sw.load(state, folder / "released")
    masters = {name: tensor.float() if "layers.2." in name else tensor for name, tensor in state.items()}
    sw.save({"model": masters, "step": 3, "other": {"x": torch.ones(5)}}, folder / "saved")
    return folder / "saved"


@pytest.mark.parametrize("quantization", ["mxfp8", "block_fp8", "mxfp4-ocp", "nvfp4-modelopt", "bf16"])
def test_a_checkpoint_of_training_becomes_what_its_export_is(quantization: str, tmp_path: Path):
    source = saved_training(tmp_path)
    how = {
        "quantized_weights": None
        if quantization in ("mxfp8", "bf16")
        else ["*.experts.*", "*.self_attn.*_proj.*"]
    }
    expected = sw.export(
        source, tmp_path / "exported", quantization="none" if quantization == "bf16" else quantization, **how
    )
    report = sw.convert(source, tmp_path / "to", quantization=quantization, buffer_bytes=1, **how)
    assert report.left_out == expected.left_out
    found, wanted = held(tmp_path / "to"), held(tmp_path / "exported")
    assert found.keys() == wanted.keys() and differing(found, wanted) == []
    config = [(tmp_path / name / "config.json") for name in ("to", "exported")]
    assert config[0].exists() == config[1].exists()
    assert not config[0].exists() or config[0].read_bytes() == config[1].read_bytes()
    assert sw.verify(tmp_path / "to").problems == []


@pytest.mark.parametrize("format", ["shardwright", "torch"])
def test_a_checkpoint_of_training_is_never_replaced_by_what_is_made_of_it(format: str, tmp_path: Path):
    source = saved_training(tmp_path)
    if format == "torch":
        sw.convert(source, tmp_path / "torch", format="torch")
        source = tmp_path / "torch"
    link = tmp_path / "link"
    link.symlink_to(source)
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    for to in (source, link):
        for make in (
            lambda to=to: sw.convert(source, to, quantization="bf16", overwrite=True),
            lambda to=to: sw.export(source, to, overwrite=True),
        ):
            with pytest.raises(FileExistsError, match="optimizer.*Give another path"):
                make()
            assert {path.name: path.read_bytes() for path in source.iterdir()} == before


@pytest.mark.ranks
def test_ranks_convert_a_checkpoint_of_training_between_them(tmp_path: Path):
    source = saved_training(tmp_path)
    sw.export(
        source,
        tmp_path / "exported",
        quantization="block_fp8",
        quantized_weights=["*.experts.*", "*_proj.weight"],
    )
    command = ["convert", str(source), str(tmp_path / "to"), "--quantization", "block_fp8", "--ranks", "3"]
    command += ["--quantized-weights", "*.experts.*", "*_proj.weight"]
    done = subprocess.run([sys.executable, "-m", "shardwright", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert differing(held(tmp_path / "to"), held(tmp_path / "exported")) == []


MEASURED = """
import sys, shardwright as sw
from shardwright.peak_memory import measure_peak_memory
sw.convert(sys.argv[1], sys.argv[2] + "/warm", quantization="mxfp8", quantized_weights=["layers.0.weight"])
with measure_peak_memory() as peak:
    sw.convert(sys.argv[1], sys.argv[2] + "/to", quantization="mxfp8", quantized_weights=["*"], buffer_bytes=1 << 20)
print(peak.bytes)
"""


@pytest.mark.process
def test_a_checkpoint_of_training_takes_memory_for_its_largest_matrix(tmp_path: Path):
    sw.save(
        {f"layers.{n}.weight": torch.zeros(1024, 1024, dtype=torch.bfloat16) for n in range(64)},
        tmp_path / "saved",
    )
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "saved"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32 << 20  # of 128 MiB


def test_a_damaged_checkpoint_of_training_is_not_converted(tmp_path: Path):
    source = saved_training(tmp_path)
    file = max(source.iterdir(), key=lambda one: one.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) * 3 // 4] ^= 0x10
    file.write_bytes(data)
    refused("damaged", source, tmp_path / "to", quantization="mxfp8")


def refused(message: str, source: Path, to: Path, **options) -> None:
    with pytest.raises(ValueError, match=message):
        sw.convert(source, to, **options)
    assert not to.exists() or not list(to.glob("*.safetensors"))


def test_an_unknown_rule(tmp_path: Path):
    source = source_in(tmp_path / "source", {"a.weight": VALUES})
    refused(r"'awq'; expected one of mxfp8, .*nvfp4-modelopt", source, tmp_path / "to", quantization="awq")


def test_which_weights_has_to_be_known(tmp_path: Path):
    source = source_in(tmp_path / "source", {"a.weight": VALUES})
    refused(
        "name those that are meant with quantized_weights=", source, tmp_path / "to", quantization="mxfp8"
    )


@pytest.mark.parametrize("rule", ["nvfp4-modelopt", "mxfp4-ocp", "block_fp8"])
def test_a_value_that_is_not_finite(rule: str, tmp_path: Path):
    values = VALUES.clone()
    values[299, 255] = float("inf")
    source = source_in(tmp_path / "source", {"a.weight": values})
    refused(r"a\.weight.*infini", source, tmp_path / "to", quantization=rule, quantized_weights=["a.weight"])


def test_onto_itself(tmp_path: Path):
    source = source_in(tmp_path / "source", RULES["mxfp8"]("a.weight", VALUES))
    before = held(source)
    with pytest.raises(OSError):
        sw.convert(source, source, quantization="bf16")
    assert differing(held(source), before) == []


def test_onto_itself_with_overwrite_is_what_it_is_elsewhere(tmp_path: Path):
    source = source_in(tmp_path / "source", RULES["mxfp8"]("a.weight", VALUES))
    sw.convert(source, tmp_path / "to", quantization="bf16")
    sw.convert(source, source, quantization="bf16", overwrite=True)
    assert differing(held(source), held(tmp_path / "to")) == []
    assert not (source / "model.safetensors").exists() and (source / "tokenizer.json").exists()
    assert sw.verify(source).problems == []


def test_onto_itself_what_fails_leaves_the_source(tmp_path: Path):
    values = VALUES.clone()
    values[299, 255] = float("inf")
    source = source_in(tmp_path / "source", {"a.weight": values})
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    with pytest.raises(ValueError, match=r"a\.weight.*infini"):
        sw.convert(source, source, quantization="block_fp8", quantized_weights=["a.weight"], overwrite=True)
    assert {file.name: file.read_bytes() for file in source.iterdir()} == before


KILLED = """
import sys, shardwright as sw
onto_itself = sys.argv[1] == sys.argv[2]
how = {"quantization": "nvfp4-modelopt", "quantized_weights": ["*"], "overwrite": True if onto_itself else None}
sw.convert(sys.argv[1], sys.argv[2], buffer_bytes=1 << 16, **how)
"""


def files_below(folder: Path) -> list[str]:
    """Shards, also of a folder that changes meanwhile."""
    return [name for _, _, files in os.walk(folder) for name in files if name.endswith(".safetensors")]


@pytest.mark.ranks
def test_a_kill_at_any_moment_leaves_no_checkpoint(tmp_path: Path):
    large = {f"layers.{n}.weight": torch.randn(512, 512, generator=DRAW).bfloat16() for n in range(40)}
    source = source_in(tmp_path / "source", large)
    killed = 0
    for moment in range(3):
        to = tmp_path / f"to{moment}"
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, source, to], env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        while not files_below(to) and process.poll() is None:
            time.sleep(0.002)
        time.sleep(0.05 * moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (to / "model.safetensors.index.json").exists():  # it was done before
            assert sw.verify(to).problems == []
        else:
            killed += process.returncode == -signal.SIGKILL
    assert killed > 0
    sw.convert(source, tmp_path / "to0", quantization="nvfp4-modelopt", quantized_weights=["layers.*"])
    assert sw.verify(tmp_path / "to0").problems == []


@pytest.mark.ranks
def test_onto_itself_a_kill_leaves_the_source(tmp_path: Path):
    large = {f"layers.{n}.weight": torch.randn(512, 512, generator=DRAW).bfloat16() for n in range(40)}
    source = source_in(tmp_path / "source", large)
    before = held(source)
    for _ in range(5):  # a slow machine may see it too late
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, source, source], env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        while len(files_below(source)) < 2 and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        process.wait()
        if not (source / "model.safetensors.index.json").exists():
            break
        shutil.rmtree(source)
        source_in(source, large)
    assert process.returncode == -signal.SIGKILL
    assert differing(held(source), before) == []
    sw.convert(source, source, quantization="nvfp4-modelopt", quantized_weights=["layers.*"], overwrite=True)
    assert sw.verify(source).problems == [] and not (source / "model.safetensors").exists()


@pytest.mark.ranks
def test_a_kill_of_four_ranks_in_the_middle_leaves_no_checkpoint(tmp_path: Path):
    large = {f"layers.{n}.weight": torch.randn(1024, 512, generator=DRAW).bfloat16() for n in range(60)}
    source = source_in(tmp_path / "source", large)
    command = [sys.executable, "-m", "shardwright", "convert", str(source), str(tmp_path / "to")]
    command += [
        "--quantization",
        "nvfp4-compressed-tensors",
        "--quantized-weights",
        "layers.*",
        "--ranks",
        "4",
    ]
    for _ in range(5):  # a slow machine may see it too late
        shutil.rmtree(tmp_path / "to", ignore_errors=True)
        process = subprocess.Popen(command, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        try:
            while not files_below(tmp_path / "to") and process.poll() is None:
                time.sleep(0.002)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not (tmp_path / "to" / "model.safetensors.index.json").exists():
            break
        assert sw.verify(tmp_path / "to").problems == []
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "to" / "model.safetensors.index.json").exists()
    assert not list((tmp_path / "to").glob("*.json"))
    sw.convert(
        source, tmp_path / "to", quantization="nvfp4-compressed-tensors", quantized_weights=["layers.*"]
    )
    assert sw.verify(tmp_path / "to").problems == []
