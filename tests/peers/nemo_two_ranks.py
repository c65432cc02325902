"""The checks of test_integration_nemo_automodel.py that need ranks. Run under torchrun: FOLDER RESULT."""

import json
import logging
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import shardwright as sw
import shardwright.integrations.nemo_automodel as automodel
import torch
import torch.distributed as dist
from nemo_automodel.components.checkpoint.checkpointing import Checkpointer as Theirs
from nemo_automodel.components.checkpoint.config import CheckpointingConfig
from nemo_automodel.components.models.qwen3.model import Qwen3ForCausalLM
from nemo_training import Trainer, config_of, ep_mesh, leave, m3_config, model_of, qwen3_config, sharded
from safetensors.torch import load_file
from shardwright.adapters import StateDictAdapter
from shardwright.integrations.nemo_automodel import released
from shardwright.models.minimax_m3_vl import state_dict_adapter as m3_adapters
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

Check = Callable[[Path], None]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


def trained(folder: Path, **options: Any) -> tuple[Trainer, list[float]]:
    """Two steps, a save, and the losses of two steps more."""
    trainer = Trainer(folder, **options)
    trainer.train(2)
    trainer.save()
    return trainer, trainer.train(2)


def resumed(folder: Path, **options: Any) -> list[float]:
    trainer = Trainer(folder, **options)
    trainer.load_checkpoint()
    return trainer.train(2)


def refusal(function: Callable[[], Any]) -> str:
    """What it raises, which has to be the same on all ranks."""
    text = ""
    try:
        function()
    except (ValueError, OSError) as error:
        text = f"{type(error).__name__}: {error}"
    texts: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(texts, text)
    assert len(set(texts)) == 1 and text, texts
    return text


# --- resuming ------------------------------------------------------------------------------------------------------


def expect_same_losses(folder: Path, **options: Any) -> None:
    with automodel.installed():
        trainer, losses = trained(folder, **options)
        assert isinstance(trainer.checkpointer, automodel.Checkpointer)
        assert resumed(folder, **options) == losses


@check
def a_resumed_run_has_the_losses_of_one_that_went_on(folder: Path) -> None:
    expect_same_losses(folder)
    model = folder / "epoch_0_step_2" / "model"
    assert (model / "shardwright.manifest").is_file() and (model / "consolidate.sh").is_file()


@check
def so_it_has_from_torch_files(folder: Path) -> None:
    expect_same_losses(folder, model_save_format="torch_save")


@check
def so_it_has_from_a_save_in_the_background(folder: Path) -> None:
    expect_same_losses(folder, is_async=True)


@check
def so_has_lora(folder: Path) -> None:
    expect_same_losses(folder, lora={})


@check
def what_was_saved_resumes_without_shardwright(folder: Path) -> None:
    with automodel.installed():
        _, losses = trained(folder / "a")
        _, of_torch_files = trained(folder / "b", model_save_format="torch_save")
    assert len(list(folder.glob("*/epoch_*/*/shardwright.manifest"))) == 4
    assert resumed(folder / "a") == losses
    assert resumed(folder / "b", model_save_format="torch_save") == of_torch_files


@check
def what_nemo_automodel_saved_resumes_here(folder: Path) -> None:
    trainer, losses = trained(folder / "a")
    assert not isinstance(trainer.checkpointer, automodel.Checkpointer)
    _, of_torch_files = trained(folder / "b", model_save_format="torch_save")
    _, of_lora = trained(folder / "c", lora={})
    with automodel.installed():
        assert resumed(folder / "a") == losses
        assert resumed(folder / "b", model_save_format="torch_save") == of_torch_files
        assert resumed(folder / "c", lora={}) == of_lora


@check
def an_adapter_of_ours_in_the_model_resumes_lora_too(folder: Path) -> None:
    """nemo-automodel's writer and our adapter: by its own load 40 names would miss, and it would train on."""
    _, losses = trained(folder, lora={})

    def resumed_by_ours() -> list[float]:
        trainer = Trainer(folder, lora={})
        trainer.model.state_dict_adapter = StateDictAdapter("qwen3_moe", experts=4)
        trainer.load_checkpoint()
        return trainer.train(2)

    assert resumed_by_ours() == losses
    with automodel.installed():
        assert resumed_by_ours() == losses


# --- exporting -----------------------------------------------------------------------------------------------------


def consolidated(folder: Path) -> dict[str, torch.Tensor]:
    files = (folder / "epoch_0_step_2" / "model" / "consolidated").glob("*.safetensors")
    return {name: value for file in files for name, value in load_file(file).items()}


@check
def the_consolidated_checkpoint_is_the_one_of_nemo_automodel(folder: Path) -> None:
    trained(folder / "theirs", save_consolidated=True)
    with automodel.installed():
        trained(folder / "ours", save_consolidated=True)
    assert len(list(folder.glob("ours/epoch_*/model/consolidated/shardwright.checksums"))) == 1
    theirs, ours = consolidated(folder / "theirs"), consolidated(folder / "ours")
    assert theirs.keys() == ours.keys() and len(ours) > 40
    assert [n for n in ours if ours[n].dtype != theirs[n].dtype or not torch.equal(ours[n], theirs[n])] == []
    sw.verify(folder / "ours" / "epoch_0_step_2" / "model" / "consolidated")


@check
def a_consolidated_checkpoint_has_the_dtypes_of_the_base(folder: Path) -> None:
    """Trained in F32, released in BF16."""
    base = folder / "base"
    config = qwen3_config(dtype="float32")
    if dist.get_rank() == 0:
        torch.manual_seed(5)
        released = model_of(qwen3_config())
        weights = released.state_dict_adapter.to_hf(released.state_dict())
        sw.export(
            {n: v.contiguous() for n, v in weights.items()}, base, layout="huggingface", process_group=SELF
        )
        config.to_json_file(base / "config.json")
    dist.barrier()
    options = {"config": config, "save_consolidated": True, "model_repo_id": str(base)}
    trained(folder / "theirs", **options)
    with automodel.installed():
        trained(folder / "ours", **options)
    theirs, ours = consolidated(folder / "theirs"), consolidated(folder / "ours")
    assert {value.dtype for value in ours.values()} == {torch.bfloat16}
    assert theirs.keys() == ours.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# --- released checkpoints ------------------------------------------------------------------------------------------


def base_checkpointer(mesh: Any, **options: Any) -> Any:
    return CheckpointingConfig(save_consolidated=False, **options).build(dist.get_rank(), 0, 0, moe_mesh=mesh)


def loaded(config: Any, path: Path, adapter: Any = None) -> dict[str, torch.Tensor]:
    mesh = ep_mesh(2)
    model = sharded(model_of(config), mesh)
    if adapter is not None:
        model.state_dict_adapter = adapter
    base_checkpointer(mesh).load_base_model(model, torch.device("cpu"), "", str(path))
    return {
        name: (value.to_local() if hasattr(value, "to_local") else value).clone()
        for name, value in model.state_dict().items()
        if isinstance(value, torch.Tensor)
    }


def expect_loaded_alike(config: Callable[[], Any], path: Path, adapter: Any = None) -> None:
    theirs = loaded(config(), path)
    with automodel.installed(), patch.object(released, "load", wraps=sw.load) as load:
        ours = loaded(config(), path)
    assert load.call_count == 1
    assert theirs.keys() == ours.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    if adapter is not None:
        in_parts = Theirs._load_model_in_parts
        with patch.object(Theirs, "_load_model_in_parts", autospec=True, side_effect=in_parts) as calls:
            by_adapter = loaded(config(), path, adapter)
        assert calls.call_count == 1
        assert [name for name in ours if not torch.equal(ours[name], by_adapter[name])] == []


def generated(path: Path, family: str, **options: Any) -> Path:
    if dist.get_rank() == 0:
        sw.generate(path, family=family, **options)
    dist.barrier()
    return path


@check
def a_released_bf16_checkpoint_loads_as_by_nemo_automodel(folder: Path) -> None:
    path = generated(folder / "qwen3", "qwen3_moe")
    expect_loaded_alike(lambda: config_of(path), path)


@check
def so_does_a_released_fp8_checkpoint_also_in_parts_through_our_adapter(folder: Path) -> None:
    path = generated(folder / "deepseek", "deepseek_v3", config={"num_nextn_predict_layers": 0})
    adapter = StateDictAdapter("deepseek_v3", checkpoint=path)
    expect_loaded_alike(lambda: config_of(path), path, adapter)


@check
def so_does_m3_in_mxfp8_also_in_parts_through_our_adapter(folder: Path) -> None:
    path = generated(folder / "m3", "minimax_m3")
    theirs = model_of(m3_config(path)).state_dict_adapter
    text = theirs.text_adapter
    made = getattr(m3_adapters, type(theirs).__name__)(
        theirs.config, text.moe_config, text.backend, text.dtype
    )
    expect_loaded_alike(lambda: m3_config(path), path, made)


def loaded_dense(model: torch.nn.Module, path: Path) -> dict[str, torch.Tensor]:
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    base_checkpointer(None).load_base_model(model, torch.device("cpu"), "", str(path))
    return {name: value.to_local().clone() for name, value in model.state_dict().items()}


@check
def models_of_transformers_and_models_without_an_adapter_load_too(folder: Path) -> None:
    """With a tied head, which the file lacks; the first in layout "transformers", the second in the release's."""
    path = generated(folder / "qwen3", "qwen3", config={"tie_word_embeddings": True})
    config = config_of(path)
    for make in (AutoModelForCausalLM.from_config, Qwen3ForCausalLM):
        theirs = loaded_dense(make(config), path)
        with automodel.installed(), patch.object(released, "load", wraps=sw.load) as load:
            ours = loaded_dense(make(config), path)
        assert load.call_count == 1, make
        assert theirs.keys() == ours.keys() and len(ours) > 20
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == [], make


@check
def a_checkpoint_of_another_kind_of_model_is_left_to_nemo_automodel(folder: Path) -> None:
    path = generated(folder / "qwen3", "qwen3_moe")
    config = config_of(path)
    config.model_type = "another"
    with automodel.installed(), patch.object(released, "load", wraps=sw.load) as load:
        model = model_of(config_of(path))
        model.config = config
        loaded_by_theirs = base_checkpointer(None)
        loaded_by_theirs.load_model(model, str(path), is_init_step=True)
    assert load.call_count == 0
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    sw.load(state, path)
    assert [name for name in state if not torch.equal(state[name], model.state_dict()[name])] == []


@check
def a_released_checkpoint_of_another_size_is_refused(folder: Path) -> None:
    path = generated(folder / "qwen3", "qwen3_moe")
    with automodel.installed():
        text = refusal(lambda: loaded(qwen3_config(), path))
    assert text.startswith("PlanError") and "model.embed_tokens.weight" in text


# --- what may go wrong ---------------------------------------------------------------------------------------------


@check
def a_checkpoint_with_more_layers_is_refused(folder: Path) -> None:
    """nemo-automodel trains on with half of the model."""
    trained(folder, config=qwen3_config(num_hidden_layers=3))
    fewer = Trainer(folder, qwen3_config())
    fewer.load_checkpoint(restore_from="epoch_0_step_2")  # without a word
    with automodel.installed():
        fewer = Trainer(folder, qwen3_config())
        text = refusal(lambda: fewer.load_checkpoint(restore_from="epoch_0_step_2"))
    assert text.startswith("PlanError") and "model.layers.2.mlp.gate.weight" in text


@check
def a_checkpoint_with_fewer_layers_is_refused(folder: Path) -> None:
    trained(folder, config=qwen3_config(num_hidden_layers=1))
    with automodel.installed():
        text = refusal(lambda: Trainer(folder, qwen3_config()).load_checkpoint("epoch_0_step_2"))
    assert text.startswith("PlanError") and "model.layers.1." in text


@check
def an_adapter_that_lacks_parameters_is_refused(folder: Path) -> None:
    trained(folder, lora={})
    with automodel.installed():
        other = {"target_modules": ["*q_proj", "*k_proj", "*o_proj", "*experts"]}
        text = refusal(lambda: Trainer(folder, lora=other).load_checkpoint("epoch_0_step_2"))
    assert text.startswith("PlanError") and "k_proj" in text


@check
def an_adapter_of_another_alpha_is_refused(folder: Path) -> None:
    trained(folder, lora={})
    with automodel.installed():
        text = refusal(lambda: Trainer(folder, lora={"alpha": 16}).load_checkpoint("epoch_0_step_2"))
    assert text.startswith("PlanError") and "alpha / r = 4" in text and "found 2" in text


@check
def our_writers_in_its_own_checkpointer_go_where_it_resets_them(folder: Path) -> None:
    """With its own planners, which keep the plans of the save before."""
    mesh = ep_mesh(2)
    model = sharded(model_of(qwen3_config()), mesh)
    theirs = base_checkpointer(mesh)
    assert not isinstance(theirs, automodel.Checkpointer)
    state = dict(model.state_dict())
    writers = {
        "torch": lambda: sw.ShardedStorageWriter(folder / "elsewhere"),
        "safetensors": lambda: sw.HuggingFaceStorageWriter(folder / "elsewhere", save_distributed=True),
    }
    for name, writer in writers.items():
        path = folder / name / "model"
        path.mkdir(parents=True, exist_ok=True)
        if dist.get_rank() == 0:
            (path / "of_others.json").write_text("{}")
        dist.barrier()
        different = []
        for _ in range(2):
            theirs._do_save(state, str(path), writer())
            found = {key: torch.zeros_like(value) for key, value in state.items()}
            theirs._do_load(found, str(path), sw.ShardedStorageReader(folder / "elsewhere"))
            different += [key for key in state if not torch.equal(local(found[key]), local(state[key]))]
        assert different == []
        assert (path / "of_others.json").read_text() == "{}" and not (folder / "elsewhere").exists()


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


@check
def a_rank_without_a_place_in_the_data_is_told_on_all_ranks(folder: Path) -> None:
    class Place:
        def state_dict(self) -> dict[str, int]:
            return {"position": 3}

        def load_state_dict(self, state: dict[str, int]) -> None:
            assert state == {"position": 3}

    with automodel.installed():
        checkpointer = base_checkpointer(None)
    checkpointer.save_on_dp_ranks(Place(), "dataloader", str(folder))
    dist.barrier()
    checkpointer.load_on_dp_ranks(Place(), "dataloader", str(folder))
    if dist.get_rank() == 1:
        (folder / "dataloader" / "dataloader_dp_rank_1.pt").unlink()
    dist.barrier()
    text = refusal(lambda: checkpointer.load_on_dp_ranks(Place(), "dataloader", str(folder)))
    assert text.startswith("FileNotFoundError") and "of 1 data-parallel ranks" in text


@check
def a_damaged_shard_is_refused(folder: Path) -> None:
    """nemo-automodel loads it."""
    with automodel.installed():
        trained(folder)
        if dist.get_rank() == 0:
            shard = next((folder / "epoch_0_step_2" / "model").glob("shard-00001-*"))
            data = bytearray(shard.read_bytes())
            data[-1] ^= 1
            shard.write_bytes(data)
        dist.barrier()
        text = refusal(lambda: Trainer(folder).load_checkpoint("epoch_0_step_2"))
    assert "is damaged" in text and "shard-00001-model-00001-of-00001.safetensors" in text


@check
def a_folder_with_nothing_to_load_is_refused(folder: Path) -> None:
    with automodel.installed():
        trainer, _ = trained(folder)
        (folder / "epoch_9_step_9" / "model").mkdir(parents=True, exist_ok=True)
        dist.barrier()
        text = refusal(
            lambda: trainer.checkpointer.load_model(trainer.model, folder / "epoch_9_step_9" / "model")
        )
    assert "epoch_9_step_9/model" in text


@check
def files_of_others_stay(folder: Path) -> None:
    with automodel.installed():
        trainer = Trainer(folder)
        model = folder / "run" / "model"
        for name in ("notes.txt", "sub/deep.bin", "shard-00001-model-00001-of-00001.safetensors"):
            (model / name).parent.mkdir(parents=True, exist_ok=True)
            if dist.get_rank() == 0:
                (model / name).write_bytes(b"mine")
        dist.barrier()
        text = refusal(lambda: trainer.checkpointer.save_model(trainer.model, str(folder / "run")))
        assert text.startswith("FileExistsError") and "move those files away" in text, text
        for name in ("notes.txt", "sub/deep.bin", "shard-00001-model-00001-of-00001.safetensors"):
            assert (model / name).read_bytes() == b"mine", name
        dist.barrier()
        if dist.get_rank() == 0:
            (model / "shard-00001-model-00001-of-00001.safetensors").unlink()
        dist.barrier()
        trainer.checkpointer.save_model(trainer.model, str(folder / "run"))
        trainer.checkpointer.save_model(trainer.model, str(folder / "run"))  # replaces what it has written
        trainer.checkpointer.load_model(trainer.model, str(model))
        assert (model / "notes.txt").read_bytes() == (model / "sub/deep.bin").read_bytes() == b"mine"
        assert len(list(model.glob("shard-*"))) == 2


SELF: Any = None


def main() -> None:
    global SELF
    folder, result = Path(sys.argv[1]), Path(sys.argv[2])
    logging.disable(logging.WARNING)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))  # a check may end on one rank alone
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    SELF = groups[dist.get_rank()]
    outcome = {}
    chosen = sys.argv[3:]
    for one in CHECKS:
        if chosen and one.__name__ not in chosen:
            continue
        failure = ""
        own = folder / one.__name__
        own.mkdir(parents=True, exist_ok=True)
        try:
            one(own)
        except BaseException:
            failure = f"rank {dist.get_rank()}: {traceback.format_exc()}"
        failures: list[str] = [""] * dist.get_world_size()
        dist.all_gather_object(failures, failure)
        outcome[one.__name__] = "\n".join(filter(None, failures))
        if chosen and dist.get_rank() == 0:
            print(one.__name__, outcome[one.__name__] or "ok", flush=True)
    if dist.get_rank() == 0:
        result.write_text(json.dumps(outcome))
    leave()


if __name__ == "__main__":
    main()
