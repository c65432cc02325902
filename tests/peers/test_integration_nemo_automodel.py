"""nemo-automodel trains, saves, is killed, resumes, loads and exports through Shardwright. Run by `make compare`.

Its whole recipe asks for CUDA and torchao, so two Gloo ranks run what that is made of: BaseRecipe, Checkpointer,
models, expert parallelism, FSDP2 and LoRA.
"""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
import shardwright as sw
import shardwright.integrations.nemo_automodel as automodel
import torch
from nemo_automodel.components.checkpoint import checkpointing
from nemo_automodel.components.checkpoint.config import CheckpointingConfig
from nemo_automodel.components.checkpoint.state_dict_adapter import StateDictAdapter as TheirAdapter
from nemo_training import model_of, qwen3_config
from nemo_two_ranks import CHECKS
from safetensors.torch import load_file
from shardwright.adapters import StateDictAdapter
from shardwright.integrations.known_versions import expect_version
from shardwright.models.minimax_m3_vl.state_dict_adapter import MiniMaxM3StateDictAdapter
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent


def run(ranks: int, script: str | Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [*command, script if script == "-m" else str(HERE / script), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=800,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("two_ranks")


@pytest.fixture(scope="module")
def outcome(folder: Path) -> dict[str, str]:
    done = run(2, "nemo_two_ranks.py", folder, folder / "result.json")
    assert done.returncode == 0, done.stdout
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("name", [check.__name__ for check in CHECKS])
def test_on_two_ranks(outcome: dict[str, str], name: str):
    assert outcome[name] == ""


def test_the_example_goes_on_where_it_was_and_transformers_reads_what_it_exports(tmp_path: Path):
    example = HERE.parent.parent / "examples" / "train_nemo_automodel.py"

    def steps(folder: str, number: int) -> list[str]:
        done = run(2, example, tmp_path / folder, number)
        assert done.returncode == 0, done.stdout
        return [line for line in done.stdout.splitlines() if line.startswith("step ")]

    whole = steps("whole", 3)
    assert len(whole) == 3 and steps("run", 1) + steps("run", 3) == whole
    model = tmp_path / "run" / "epoch_0_step_3" / "model" / "consolidated"
    _, info = AutoModelForCausalLM.from_pretrained(model, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


# --- killed --------------------------------------------------------------------------------------------------------


def test_a_run_that_is_killed_in_a_save_goes_on_from_the_one_before(tmp_path: Path):
    whole = run(2, "nemo_killed_run.py", tmp_path / "whole", 6, tmp_path / "whole.json")
    assert whole.returncode == 0, whole.stdout
    killed = run(2, "nemo_killed_run.py", tmp_path / "run", 6, tmp_path / "killed.json", 4)
    assert killed.returncode != 0 and not (tmp_path / "killed.json").exists()
    left = tmp_path / "run" / "epoch_0_step_4"
    assert (left / ".incomplete").exists() and not (left / "optim" / "shardwright.manifest").exists()
    again = run(2, "nemo_killed_run.py", tmp_path / "run", 6, tmp_path / "again.json")
    assert again.returncode == 0, again.stdout
    expected = json.loads((tmp_path / "whole.json").read_text())
    found = json.loads((tmp_path / "again.json").read_text())
    assert (expected["begun_at"], found["begun_at"]) == (0, 2)
    assert found["losses"] == expected["losses"][2:]
    more = run(4, "nemo_other_ranks.py", tmp_path / "run")
    assert more.returncode == 0, more.stdout
    one = run(1, "nemo_other_ranks.py", tmp_path / "run")
    assert one.returncode == 0, one.stdout
    assert "random numbers" in more.stdout
    sums = [line for out in (more, one) for line in out.stdout.splitlines() if line.startswith("sums ")]
    assert len(sums) == 2 and sums[0] == sums[1]


# --- what others read ----------------------------------------------------------------------------------------------


def test_transformers_reads_the_consolidated_checkpoint(outcome: dict[str, str], folder: Path):
    name = "the_consolidated_checkpoint_is_the_one_of_nemo_automodel"
    assert outcome[name] == ""
    path = folder / name / "ours" / "epoch_0_step_2" / "model" / "consolidated"
    model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    stored = {key: value for file in path.glob("*.safetensors") for key, value in load_file(file).items()}
    assert torch.equal(model.lm_head.weight.detach(), stored["lm_head.weight"])


def test_peft_reads_the_adapter_and_adds_what_the_trainer_did(outcome: dict[str, str], folder: Path):
    peft = pytest.importorskip("peft")
    assert outcome["so_has_lora"] == ""
    path = folder / "so_has_lora" / "epoch_0_step_2" / "model"
    torch.manual_seed(0)
    theirs = model_of(qwen3_config())
    base = AutoModelForCausalLM.from_config(qwen3_config())
    weights = theirs.state_dict_adapter.to_hf(theirs.state_dict())
    sw.export({n: v.contiguous() for n, v in weights.items()}, folder / "base", layout="huggingface")
    sw.load(state := dict(base.state_dict()), folder / "base", model="qwen3_moe", layout="transformers")
    base.load_state_dict(state)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    model = peft.PeftModel.from_pretrained(base, path).merge_and_unload()
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert len(changed) == 8 and any("experts.down_proj" in name for name in changed)


# --- installing ----------------------------------------------------------------------------------------------------


def made() -> object:
    return CheckpointingConfig(save_consolidated=False).build(0, 0, 0)


def test_one_line_puts_ours_in_its_place_and_another_takes_it_back(monkeypatch):
    importer = ModuleType("nemo_automodel.that_has_imported_it_before")  # as its infrastructure has
    importer.Checkpointer = checkpointing.Checkpointer
    monkeypatch.setitem(sys.modules, importer.__name__, importer)
    assert not isinstance(made(), automodel.Checkpointer)
    automodel.install()
    automodel.install()
    try:
        assert isinstance(made(), automodel.Checkpointer)
        assert importer.Checkpointer is checkpointing.Checkpointer is automodel.Checkpointer
    finally:
        automodel.uninstall()
    assert not isinstance(made(), automodel.Checkpointer)
    assert importer.Checkpointer is checkpointing.Checkpointer


def test_adapters_are_its_own_to_nemo_automodel():
    assert issubclass(StateDictAdapter, TheirAdapter)
    assert issubclass(MiniMaxM3StateDictAdapter, TheirAdapter)
    public = {name for name in vars(TheirAdapter) if not name.startswith("_")}
    assert [name for name in public if not hasattr(StateDictAdapter, name)] == []


@pytest.mark.parametrize("found", ["0.6.0", "1.0", None])
def test_a_release_that_nobody_has_looked_at_is_refused_by_name(found: str | None, monkeypatch):
    def version(name: str) -> str:
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(ImportError, match=f"expected nemo-automodel 0.7.0, found {found or 'none'}"):
        expect_version("nemo-automodel", ("0.7.0",))


def test_the_command_of_nemo_automodel_runs_with_ours_in_its_place(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("recipe: nemo_stub_recipe.Recipe\n")
    done = run(1, "-m", "shardwright.integrations.nemo_automodel", tmp_path / "run.yaml")
    assert done.returncode == 0, done.stdout
    assert "checkpointer of shardwright.integrations.nemo_automodel.checkpointer" in done.stdout


def test_the_command_without_torchrun_is_refused_as_it_would_start_processes_without_ours(tmp_path: Path):
    command = [sys.executable, "-m", "shardwright.integrations.nemo_automodel", "run.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "torchrun --nproc-per-node N -m shardwright" in done.stderr
