"""The command line prints for people and for programs; a failure is a message and an exit code."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import reference
import shardwright as sw
from checkpoints import Tensor, config_of, made_up_m3, without, write_checkpoint
from command import output_of, shardwright
from shardwright import _core
from shardwright.cli.command_line import main

TENSORS_OF_M3 = 46_521


def numbers_in(text: str) -> str:
    """Without thousands separators."""
    return text.replace(",", "").replace("_", "").replace("\u202f", "")


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("full") / "m3"
    output_of("generate", path, "--preset", "full", "--layout-only")
    return path


def test_generate_writes_a_checkpoint_and_takes_a_seed(tiny: Path, tmp_path: Path):
    output_of("generate", tmp_path / "a", "--preset", "tiny", "--values", "any")
    output_of("generate", tmp_path / "b", "--preset", "tiny", "--values", "any", "--seed", "5")
    contents = [
        {file.name: file.read_bytes() for file in path.iterdir()}
        for path in (tiny, tmp_path / "a", tmp_path / "b")
    ]
    assert contents[0] == contents[1] != contents[2]


def test_the_full_layout_has_all_tensors_and_takes_little_room(full: Path):
    assert len(reference.read_checkpoint(full)) == TENSORS_OF_M3
    size = sum(file.stat().st_size for file in full.iterdir())
    room = sum(file.stat().st_blocks * 512 for file in full.iterdir())
    assert size > 440e9 and room < 40e6


def test_inspect_counts_the_tensors(full: Path, tiny: Path):
    assert str(TENSORS_OF_M3) in numbers_in(output_of("inspect", full))
    assert str(len(reference.read_checkpoint(tiny))) in output_of("inspect", tiny)


def test_inspect_names_the_encodings(tiny: Path, tmp_path: Path):
    weights = sum(tensor.dtype == "F8_E4M3" for tensor in reference.read_checkpoint(tiny).values())
    for encoding in ("block_fp8", "tensor_fp8"):
        output_of("generate", tmp_path / encoding, "--encoding", encoding)
    mixed = made_up_m3(scale_suffix="_scale") | {
        "language_model.model.layers.0.self_attn.q_proj.weight_scale": Tensor("F32", (5,), bytes(20))
    }
    write_checkpoint(tmp_path / "mixed", mixed, config=config_of())
    write_checkpoint(tmp_path / "plain", made_up_m3(quantized=False), config=config_of(quantized=False))
    for path, expected in (
        (tiny, {"mxfp8": weights}),
        (tmp_path / "block_fp8", {"block_fp8": weights}),
        (tmp_path / "tensor_fp8", {"tensor_fp8": weights}),
        (tmp_path / "mixed", {"mxfp8": sum(t.dtype == "F8_E4M3" for t in mixed.values()) - 1, "unknown": 1}),
        (tmp_path / "plain", {}),
    ):
        facts = json.loads(output_of("inspect", path, "--json"))
        assert facts["encodings"] == expected and facts["block_scaled_weights"] == sum(expected.values())
        text = ", ".join(f"{count} {name}" for name, count in expected.items()) or "none"
        assert text in output_of("inspect", path)


def test_plan_says_what_a_rank_would_read(full: Path):
    # Two of 128 experts of each of 58 layers: w1, w2, w3 and their scales. All else is replicated.
    others = sum(
        stored.nbytes for name, stored in reference.read_checkpoint(full).items() if ".experts." not in name
    )
    needed = others + 58 * 2 * 3 * (3072 * 6144 + 3072 * 6144 // 32)
    arguments = ["plan", full, "--mesh", "ep=64", "--rank", "7"]
    plan = json.loads(output_of(*arguments, "--json"))
    assert plan["rank"] == 7 and plan["bytes_needed"] == needed
    assert str(needed) in numbers_in(output_of(*arguments))


def test_plan_says_what_a_rank_holds_where_weights_stay_packed(tmp_path: Path):
    sw.generate(tmp_path / "from", "tiny", encoding="nvfp4_modelopt")
    state = sw.empty_state_dict(tmp_path / "from", dtype="packed")
    experts = "model.layers.1.mlp.experts.gate_and_up_projs"
    arguments = ["plan", tmp_path / "from", "--packed"]
    facts = json.loads(output_of(*arguments, "--json"))
    assert facts["bytes_needed"] == facts["bytes_written"] == sum(tensor.nbytes for tensor in state.values())
    assert facts["bytes_needed"] == sum(of["bytes"] for of in facts["packed"])
    held = {(of["holds"], of["dtype"]): (of["tensors"], of["bytes"]) for of in facts["packed"]}
    for ending, dtype, kind in (("_scale_2", "F32", "_scale_2"), ("_scale", "F8_E4M3", "_scale")):
        of_kind = [tensor for name, tensor in state.items() if name.endswith(f"_projs{ending}")]
        assert held[kind, dtype] == (len(of_kind), sum(tensor.nbytes for tensor in of_kind))
    codes = [tensor for name, tensor in state.items() if name.endswith("_projs")]
    assert held["codes", "U8"] == (len(codes), sum(tensor.nbytes for tensor in codes))
    assert "_scale_2" in output_of(*arguments)
    half = json.loads(output_of(*arguments, "--mesh", "ep=2", "--rank", "1", "--json"))
    of_half = {(of["holds"], of["dtype"]): of["bytes"] for of in half["packed"]}
    assert of_half["codes", "U8"] == held["codes", "U8"][1] // 2
    explained = output_of(*arguments, "--explain", f"{experts}_scale")
    assert experts in explained and "w1.weight_scale" in explained


def test_plan_tells_scales_of_activations_from_what_is_not_packed(tmp_path: Path):
    sw.generate(tmp_path / "from", family="qwen3_5_moe", form="nvfp4", layout_only=True)
    state = sw.empty_state_dict(tmp_path / "from", dtype="packed")
    facts = json.loads(output_of("plan", tmp_path / "from", "--packed", "--json"))
    held = {(of["holds"], of["dtype"]): (of["tensors"], of["bytes"]) for of in facts["packed"]}
    scales = [tensor for name, tensor in state.items() if name.endswith(".input_scale")]
    assert scales and held["input_scale", "F32"] == (len(scales), sum(tensor.nbytes for tensor in scales))
    assert ("not packed", "F32") not in held


@pytest.mark.parametrize("ranks", ["1", pytest.param("2", marks=pytest.mark.ranks)])
def test_load_loads_on_one_rank_and_on_two(ranks: str, tiny: Path):
    text = output_of("load", tiny, *([] if ranks == "1" else ["--ranks", ranks]))
    assert "tensors" in text.lower() and "read" in text.lower()


@pytest.mark.parametrize("command", ["inspect", "plan", "load", "generate"])
def test_every_command_explains_itself(command: str):
    assert "usage" in output_of(command, "--help").lower()
    assert command in output_of("--help")


@pytest.mark.parametrize(
    "command, names",
    [
        ("generate", _core.generated_encodings()),
        ("convert", [*sw.quantizations(), "--quantized-weights"]),
        ("export", [*sw.quantizations(), "--quantized-weights"]),
    ],
)
def test_help_fits_a_terminal_and_has_names_in_one_piece(command: str, names: list[str], capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) < 80
    assert {word.strip(",.[]") for line in lines for word in line.split()} >= set(names)


def assert_fails(*arguments: str | Path, words: list[str]) -> None:
    run = shardwright(*arguments)
    assert run.returncode > 0
    assert "Traceback" not in run.stderr
    missing = [word for word in words if word not in run.stderr]
    assert not missing, run.stderr


@pytest.mark.parametrize("command", ["inspect", "plan", "load"])
def test_a_missing_directory_is_named(command: str, tmp_path: Path):
    mesh = ["--mesh", "ep=2", "--rank", "0"] if command == "plan" else []
    assert_fails(command, tmp_path / "nowhere", *mesh, words=[str(tmp_path / "nowhere")])


def test_a_malformed_file_is_named(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    assert_fails("inspect", tmp_path, words=["model.safetensors"])


def test_a_missing_scale_is_named(tmp_path: Path):
    scale = "language_model.model.layers.0.self_attn.q_proj.weight_scale_inv"
    path = write_checkpoint(tmp_path, without(made_up_m3(), scale), config=config_of())
    assert_fails("load", path, words=[scale])


@pytest.mark.parametrize(
    "mesh, rank, words",
    [
        ("ep=4", "4", ["4"]),
        ("ep=4", "-1", ["-1"]),
        ("ep=0", "0", ["ep"]),
        ("ep", "0", ["ep"]),
        ("sideways=2", "0", ["sideways"]),
    ],
)
def test_a_mesh_or_rank_that_makes_no_sense_is_refused(mesh: str, rank: str, words: list[str], tiny: Path):
    assert_fails("plan", tiny, "--mesh", mesh, f"--rank={rank}", words=words)


def test_a_used_directory_is_not_overwritten(tiny: Path):
    assert_fails("generate", tiny, "--preset", "tiny", words=[str(tiny)])


def test_an_unknown_command_or_preset_is_refused(tmp_path: Path):
    assert_fails("dance", words=["dance"])
    assert_fails("generate", tmp_path / "new", "--preset", "huge", words=["huge"])


def test_a_kept_plan_is_the_same_again_and_not_that_of_another_rank(tiny: Path, tmp_path: Path):
    kept = tmp_path / "plan"
    arguments = ["plan", tiny, "--mesh", "ep=2", "--rank"]
    assert shardwright(*arguments, "1", "--save", kept).returncode == 0
    assert shardwright(*arguments, "1", "--compare", kept).returncode == 0
    assert_fails(*arguments, "0", "--compare", kept, words=[str(kept)])
    kept.write_bytes(kept.read_bytes()[:-3])
    assert_fails(*arguments, "1", "--compare", kept, words=["cut short"])


@pytest.mark.ranks
def test_a_kept_plan_is_replayed_by_its_own_rank_only(tiny: Path, tmp_path: Path):
    for rank in ("0", "1"):
        output_of("plan", tiny, "--mesh", "shard=2", "--rank", rank, "--save", tmp_path / rank)
    output_of("load", tiny, "--ranks", "2", "--plan", tmp_path / "{rank}")
    assert_fails("load", tiny, "--ranks", "2", "--plan", tmp_path / "0", words=["{rank}"])
    (tmp_path / "0").write_bytes((tmp_path / "1").read_bytes())
    words = ["lm_head.weight", "[64:128, 0:64]", "[0:64, 0:64]", "a plan is for one rank"]
    assert_fails("load", tiny, "--ranks", "2", "--plan", tmp_path / "{rank}", words=words)
    (tmp_path / "0").write_bytes((tmp_path / "1").read_bytes()[:-3])
    assert_fails("load", tiny, "--ranks", "2", "--plan", tmp_path / "{rank}", words=["cut short"])


def test_a_plan_explains_a_tensor_by_either_of_its_names(tiny: Path):
    mesh = ["--mesh", "ep=2,ep_shard=2", "--rank", "3"]
    native = output_of("plan", tiny, *mesh, "--explain", "model.layers.1.mlp.experts.down_projs")
    assert "BF16 [2, 16, 64] of [4, 32, 64]" in native and "holds [2:4, 16:32, 0:64]" in native
    expert = "language_model.model.layers.1.block_sparse_moe.experts.3.w2.weight"
    stored = f"F8_E4M3 {expert} [0:64, 16:32] in model-00001-of-00004.safetensors"
    assert stored in native and f"scaled by {expert}_scale_inv [0:64, 0:1]" in native
    by_weight = output_of("plan", tiny, *mesh, "--explain", expert)
    assert stored in by_weight and "down_projs [1:2, 0:16, 0:64], transposed" in by_weight
    assert by_weight == output_of("plan", tiny, *mesh, "--explain", expert + "_scale_inv")
    assert "nothing" in output_of("plan", tiny, "--mesh", "ep=4", "--explain", expert)
    assert_fails("plan", tiny, "--explain", "no.such", words=["no.such", "neither"])


def test_the_version_is_that_of_the_project():
    declared = (Path(__file__).parents[2] / "CMakeLists.txt").read_text()
    assert f"project(shardwright VERSION {sw.__version__} " in declared
    assert output_of("--version") == f"shardwright {sw.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "DIR", "--layers", "99999999999"),
        ("generate", "DIR", "--layers", "0"),
        ("generate", "DIR", "--seed", str(1 << 63)),
        ("plan", "DIR", "--rank", str(1 << 31)),
        ("simulate", "DIR", "--sample", "-1"),
        ("simulate", "DIR", "--ranks-per-node", str(1 << 40)),
        ("simulate", "DIR", "--threads", "0"),
        ("load", "DIR", "--threads", "9223372036854775807"),
        ("load", "DIR", "--threads", "0"),
        ("load", "DIR", "--ranks", "0"),
        ("load", "DIR", "--staging-bytes", str(1 << 49)),
        ("verify", "DIR", "--threads", "1025"),
        ("convert", "DIR", "DIR", "--threads", "9" * 5000),
        ("export", "DIR", "DIR", "--threads", "two"),
    ],
    ids=lambda arguments: " ".join(arguments)[:50],
)
def test_a_number_out_of_its_bounds_is_refused_with_them(arguments: tuple[str, ...], capsys, tmp_path: Path):
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "new") if part == "DIR" else part for part in arguments])
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {arguments[-2]}: expected a whole number from " in last
    assert len(last) < 200 + len(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (
            ("simulate", "--preset", "tiny", "--read-bandwidth", "fast"),
            "expected a number above 0, found 'fast'",
        ),
        (
            ("simulate", "--preset", "tiny", "--read-bandwidth", "nan"),
            "expected a number above 0, found 'nan'",
        ),
        (("generate", "DIR", "--config", "[1]"), "expected a JSON object"),
        (("generate", "DIR", "--config", "[" * 100_000), "expected a JSON object: "),
    ],
    ids=lambda part: part[-1][:20] if isinstance(part, tuple) else "",
)
def test_a_value_of_another_kind_is_refused(
    arguments: tuple[str, ...], expected: str, capsys, tmp_path: Path
):
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "new") if part == "DIR" else part for part in arguments])
    assert ended.value.code == 2
    assert f"argument {arguments[-2]}: {expected}" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("mesh", ["dp=9223372036854775808", "dp=" + "9" * 5000, "dp=-1", "dp=0"])
def test_a_mesh_size_out_of_its_bounds_is_refused(mesh: str, tiny: Path, capsys):
    for command in ("plan", "simulate"):
        assert main([command, str(tiny), "--mesh", mesh]) == 1
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"shardwright {command}: ")


def in_shell(line: str, tiny: Path, **environment: str) -> subprocess.CompletedProcess:
    command = f"{shlex.quote(sys.executable)} -m shardwright"
    return subprocess.run(
        ["bash", "-c", line.replace("shardwright", command).replace("TINY", shlex.quote(str(tiny)))],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.process
@pytest.mark.parametrize("command", ["inspect TINY", "inspect TINY --json", "--help", "plan --help"])
def test_a_stdout_that_is_closed_is_no_failure(command: str, tiny: Path):
    found = in_shell(f"shardwright {command} >&-", tiny)
    assert (found.returncode, found.stdout) == (0, "")
    assert "Traceback" not in found.stderr and ("help" in command or not found.stderr)  # help goes there then
    found = in_shell(f"shardwright {command} | true; echo ${{PIPESTATUS[0]}}", tiny)
    assert (found.stdout, found.stderr) in (("141\n", ""), ("0\n", ""))


@pytest.mark.process
@pytest.mark.parametrize("command", ["inspect TINY", "inspect TINY --json", "--help"])
def test_what_a_full_disk_does_not_take_is_a_failure(command: str, tiny: Path):
    found = in_shell(f"shardwright {command} >/dev/full", tiny, PYTHONUNBUFFERED="")
    name = "shardwright" if command == "--help" else "shardwright inspect"
    assert (found.returncode, found.stderr) == (1, f"{name}: No space left on device\n")


@pytest.mark.process
@pytest.mark.parametrize(
    "command", ["--help", "plan --help", "simulate TINY --mesh ep=2,ep_shard=2", "inspect /ä×"]
)
def test_an_encoding_that_lacks_a_character_is_no_failure(command: str, tiny: Path):
    found = in_shell(f"shardwright {command}", tiny, PYTHONIOENCODING="ascii")
    assert "Traceback" not in found.stderr and "codec" not in found.stderr
    assert found.returncode == (1 if "inspect" in command else 0)
    assert ("\\xd7" in found.stdout + found.stderr) == ("help" not in command)


def test_advice_names_the_options_that_the_command_has(tmp_path: Path):
    copy = write_checkpoint(tmp_path / "copy", made_up_m3(), config=config_of())
    found = shardwright("convert", copy, copy, "--quantization", "bf16")
    assert found.returncode == 1 and "or pass --overwrite to replace it" in found.stderr
    odd = made_up_m3() | {"odd.table": Tensor("F32", (1,), bytes(4))}
    write_checkpoint(copy, odd, config=config_of())
    assert "--not-strict leaves such tensors out" in shardwright("load", copy).stderr
    with pytest.raises(sw.PlanError, match="strict=False leaves such tensors out"):  # as Python says it
        sw.load(sw.empty_state_dict(copy), copy)
    odd_path = tmp_path / "runs" / "overwrite=True,template=" / "strict=False"  # as Hydra names folders
    assert f"{odd_path}: no such directory" in shardwright("load", odd_path).stderr
