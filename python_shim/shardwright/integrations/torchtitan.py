"""torchtitan 0.3.0 with Shardwright's checkpoints: its checkpoint manager, whose saves, loads and exports are ours.

In a config, in place of torchtitan's::

    from shardwright.integrations.torchtitan import CheckpointManager

    checkpoint = CheckpointManager.Config(enable=True, interval=500)

Or on the command line, for any config, with no line of code::

    --override.imports shardwright.integrations.torchtitan.checkpoints

Nothing of torchtitan is patched: the class derives from its own, and takes the same options.
"""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shardwright import _core
from shardwright.catalog import read_catalog
from shardwright.checkpoints import step_path
from shardwright.dcp.fitting import with_hints
from shardwright.exporting import export
from shardwright.integrations.known_versions import expect_version
from shardwright.integrations.resumable_steps import Steps, in_the_way, steps_in
from shardwright.integrations.titan_adapters import adapters_in_weights, without_adapters
from shardwright.loading import is_of_trainer, load
from shardwright.local_path import lasting_path
from shardwright.ranks.together import failing_together, is_first, lacking_everywhere, of_first
from shardwright.saving import PendingSave, background_group, save
from shardwright.system_calls import is_there
from shardwright.weight_maps import weight_map_for

expect_version("torchtitan", ("0.3.0",))

from torchtitan.components.checkpointer import MODEL, AsyncMode  # noqa: E402
from torchtitan.components.checkpointer import CheckpointManager as TitanCheckpointManager  # noqa: E402
from torchtitan.config.override import derive, override  # noqa: E402
from torchtitan.tools.logging import logger  # noqa: E402
from torchtitan.tools.utils import GarbageCollection  # noqa: E402

__all__ = ["CheckpointManager", "checkpoints"]

#: Names in a message; more would hide the rest.
_TOLD = 8

#: Of the files beside weights that a released model consists of.
_ASSETS = (".json", ".jinja", ".model", ".txt")


class CheckpointManager(TitanCheckpointManager):
    """torchtitan's CheckpointManager with Shardwright beneath it. Options mean what they mean there; this differs:

    * A checkpoint ``step-N`` is there or it is not, whenever the job ends. torch and torchtitan's own manager read it.
    * The newest checkpoint is the one that was saved last, also after a training was rolled back to an earlier step.
      One of the model alone is none to go on from: it is passed over, which the log says.
    * ``initial_load_in_hf`` takes quantized checkpoints, too. The files say what is quantized;
      ``initial_load_in_hf_quantized`` is not needed. Tensors that the model has no place for are logged.
    * ``keep_latest_k`` goes by the order of saves, and deletes when the new checkpoint is there. It deletes what this
      manager has saved; what else is in the folder stays.
    * ``async_mode`` "async" and "async_with_pinned_mem" are the same: the state is copied before ``save`` returns (from
      devices by way of pinned memory), and a thread writes it.
    * ``last_save_in_hf`` writes the files of ``hf_assets_path`` anew, in their names, order and dtypes, with its config
      and tokenizer; LoRA adapters are added to the weights that they adapt. Where there are no weights, the export is
      in BF16, which ``export_dtype`` has to say.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(TitanCheckpointManager.Config):
        model: str = "auto"
        """The model's family or model_type; "auto": by the config.json of what is loaded, or by the names."""

        quantization: str | None = None
        """Encoding of ``last_save_in_hf``; see shardwright.export. None: what hf_assets_path has quantized becomes
        BF16."""

        verify: bool | None = None
        """Whether to check a checkpoint's checksums before it is resumed; see shardwright.load."""

        async_staging_bytes: int | None = None
        """The most memory that the copy for an asynchronous save may take on a rank; None: what it takes."""

    folder: str
    async_mode: AsyncMode

    def __init__(self, config: Config, **components: Any) -> None:
        super().__init__(config, **components)
        if not self.enable:
            return
        self.folder = lasting_path(self.folder)
        self.model, self.quantization, self.verify = config.model, config.quantization, config.verify
        self.async_staging_bytes = config.async_staging_bytes
        self._pending: PendingSave | None = None
        self._left_alone: list[int] = []
        self._group = background_group()
        if self.async_mode == AsyncMode.ASYNC_WITH_PINNED_MEM:
            self.async_mode = AsyncMode.ASYNC  # torchtitan's stager and process are not needed
        with failing_together(self._group):
            if self.last_save_in_hf:
                self._expect_exportable()

    # --- saving ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def dcp_save(
        self,
        state_dict: dict[str, Any],
        checkpoint_id: str,
        async_mode: AsyncMode,
        enable_garbage_collection: bool = False,
        to_hf: bool = False,
    ) -> Any:
        """Saves a state dict, or exports a model's. Raises what went wrong, the same on all ranks."""
        if to_hf:
            self._export(checkpoint_id)
            result = None
        else:
            saved = save(
                state_dict,
                checkpoint_id,
                asynchronous=async_mode != AsyncMode.DISABLED,
                process_group=self.pg,
                keep_last=self.keep_latest_k or None if self._is_of_training(state_dict) else None,
                async_staging_bytes=self.async_staging_bytes,
            )
            self._pending = saved if isinstance(saved, PendingSave) else None
            result = saved.future if isinstance(saved, PendingSave) else None
        if enable_garbage_collection:
            GarbageCollection.collect("GC collection invoked by checkpointer.")
        return result

    def _is_of_training(self, state_dict: dict[str, Any]) -> bool:
        return any(key in state_dict for key in self.states if key != MODEL)

    def _save_last_step(self, curr_step: int) -> None:
        if not self.last_save_in_hf:
            super()._save_last_step(curr_step)
            return
        # As the model holds the values: torchtitan would cast all of them first, also those that are stored in F32.
        logger.info(f"Exporting the model at last step, step {curr_step}.")
        self.dcp_save({}, self._create_checkpoint_id(curr_step), AsyncMode.DISABLED, True, to_hf=True)

    def _wait_for_saving(self) -> None:
        pending, self._pending, self.save_future = self._pending, None, None
        if pending is not None:
            pending.wait()

    def _purge_stale_checkpoints(self) -> None:
        """The writer has done it. What it leaves alone is said, once."""
        if not self._should_purge():
            return
        others = [step for step, path in self._steps() if not (_is_ours(path) or _is_being_saved(path))]
        kept = [step for step in others if step not in self._left_alone]
        if kept and len(others) > self.keep_latest_k:
            logger.warning(
                f"keep_latest_k={self.keep_latest_k}: {_steps(kept)} in {self.folder} stay, as this manager has not "
                "saved them; delete them if they are not needed"
            )
            self._left_alone = others

    def _close(self) -> None:
        """Waits for a save in the background, which would be lost."""
        if getattr(self, "_pending", None) is not None:
            try:
                self._wait_for_saving()
            except Exception as failure:
                logger.error(f"The last asynchronous save has failed: {failure}")
        super()._close()

    # --- loading -----------------------------------------------------------------------------------------------

    def load(self, step: int = -1) -> bool:
        """As torchtitan's. Raises FileExistsError on all ranks where later steps are in the way of saves."""
        with failing_together(self._group if self.enable else None):
            if self.enable and step >= 0 and is_first(self._group):
                self._expect_room_after(step, Path(self.folder))
        loaded: bool = super().load(step)
        return loaded

    def dcp_load(
        self, state_dict: dict[str, Any], checkpoint_id: str, from_hf: bool, from_quantized: bool
    ) -> None:
        """Loads a checkpoint into a state dict and the model. Raises on all ranks if it fails on one."""
        with failing_together(self._group):
            report = self._loaded(state_dict, checkpoint_id, from_hf)
        if MODEL in self.states:
            self.states[MODEL].load_state_dict(state_dict)
        self._tell_unused(checkpoint_id, lacking_everywhere(self._group, report.unused), from_hf)
        logger.info(
            f"Read {report.bytes_read:,} bytes of {report.tensors:,} tensors in {report.seconds['total']:.2f} seconds."
        )

    def _loaded(self, state_dict: dict[str, Any], path: str, from_hf: bool) -> Any:
        if from_hf:
            weights = without_adapters(state_dict, self.states[MODEL].model)
            return load(weights, path, model=self.model, layout="torchtitan")
        if not is_of_trainer(path):
            _core.read_catalog(path, 0)  # which says what is there, if that is nothing to load
            raise ValueError(
                f"{path} is a Hugging Face checkpoint, which has no state of a training; expected "
                "checkpoint.initial_load_in_hf=True, or another folder"
            )
        try:
            return load(state_dict, path, verify=self.verify)
        except _core.PlanError as error:
            raise with_hints(error, self._hints(str(error))) from None

    def _hints(self, misfit: str) -> list[str]:
        hints = []
        if "optimizer" in misfit and "found nothing of that name" in misfit:
            hints.append(
                "a checkpoint of the model alone (last_save_model_only) has no optimizer: go on from an earlier step "
                "with checkpoint.load_step, or begin with checkpoint.initial_load_path"
            )
        if "dataloader" in misfit:
            hints.append(
                "the state of a data loader is of one number of data-parallel ranks: go on with as many, or with "
                'checkpoint.exclude_from_loading=["dataloader"], which begins the data anew'
            )
        return hints

    def _tell_unused(self, path: str, unused: list[str], from_hf: bool) -> None:
        of_model = [name for name in unused if from_hf or not self._is_of_state(name)]
        if not of_model:
            return
        groups = _core.grouped_names(of_model)
        named = "; ".join(groups[:_TOLD]) + (" …" if len(groups) > _TOLD else "")
        if from_hf:
            logger.warning(f"{path} has {len(of_model)} tensors that the model has no place for: {named}")
            return
        raise _core.PlanError(
            f"{path} has {len(of_model)} tensors that the model does not have: {named}; it is the checkpoint of "
            "another model: expected one of this model, or the model that it was saved of"
        )

    def _is_of_state(self, name: str) -> bool:
        """True for a name of a checkpoint that is of the optimizer, the data loader, ..."""
        return name.partition(".")[0] in self.states.keys() - {MODEL}

    # --- which step --------------------------------------------------------------------------------------------

    def _find_load_step(self, folder: str = "") -> int:
        """The step to go on from, the same on all ranks; -1: there is none."""
        where = folder or self.folder

        def find() -> Steps:
            found = steps_in(Path(where), self._is_of_state)
            self._expect_room_after(found.newest, Path(where))
            return found

        steps = of_first(self._group, find)
        goes_on = f"training goes on from step-{steps.newest}" if steps.newest >= 0 else "there is no other"
        if steps.of_weights:
            logger.warning(
                f"{where}: passed over, with the model alone: {_steps(steps.of_weights)}; {goes_on}"
            )
        if steps.unfinished:
            logger.warning(f"{where}: passed over, without a whole checkpoint: {_steps(steps.unfinished)}")
        return steps.newest

    def _expect_room_after(self, step: int, folder: Path) -> None:
        """Before a training: it would come to a step whose save is refused, and end there."""
        others = [] if self.load_only else in_the_way(folder, step)
        if not others:
            return
        goes_on = f"goes on from step-{step}" if step >= 0 else "begins"
        raise FileExistsError(
            errno.EEXIST,
            f"{folder}: training {goes_on}, and its saves do not replace what is in "
            f"{_listed([entry.name for entry in others])}, exports or checkpoints of torch's. Move these folders away, "
            "or give another checkpoint.folder",
        )

    def _create_checkpoint_id(self, step: int, folder: str = "") -> str:
        """step-N as torchtitan calls it, or the folder of that step that is there, such as step-00000007."""
        root = Path(folder or self.folder)
        there = Path(step_path(root, step))
        return str(there if there.is_dir() else root / f"step-{step}")

    def _steps(self) -> list[tuple[int, Path]]:
        found = ((_core.step_of(entry), entry) for entry in Path(self.folder).iterdir() if entry.is_dir())
        return sorted((step, entry) for step, entry in found if step is not None)

    # --- exporting ---------------------------------------------------------------------------------------------

    def _export(self, path: str) -> None:
        model, template = self.states[MODEL], self._template()
        assets: dict[str, bytes] = {}
        with failing_together(self._group):
            if template is None and is_first(self._group):
                assets = self._assets()
                _core.expect_replaceable(path, assets, None, f"Move {path} away")
        with adapters_in_weights(model.model) as merged:
            weights = without_adapters(model.state_dict(), model.model)
            if template is None:  # the tables need sizes, which torchtitan's own adapter knows
                weights = self.sd_adapter.to_hf(weights)
            report = export(
                weights,
                path,
                quantization=self.quantization,
                template=template,
                model=self._family(),
                layout="huggingface" if template is None else "torchtitan",
            )
        with failing_together(self._group):
            if assets:
                _core.write_beside(path, assets)
        if merged:
            logger.info(f"The adapters of {merged} modules are in the weights that {path} has.")
        if report.left_out:
            logger.warning(f"Left out of {path}: {'; '.join(_core.grouped_names(report.left_out)[:_TOLD])}")
        if report.rounded:
            casts = sorted(set(report.rounded.values()))
            logger.info(f"{len(report.rounded)} tensors were rounded for {path}: {', '.join(casts)}")

    def _template(self) -> str | None:
        """hf_assets_path, if it holds a checkpoint."""
        assets = getattr(self.sd_adapter, "hf_assets_path", None)
        if not assets or not any(Path(assets).glob("*.safetensors")):
            return None
        return str(assets)

    def _family(self) -> str:
        """Whose names an export gets. Those of torchtitan's tensors may be several families'."""
        if self.model != "auto" or self._template() is not None:
            return self.model
        file = Path(getattr(self.sd_adapter, "hf_assets_path", None) or "", "config.json")
        family = json.loads(file.read_text()).get("model_type") if file.is_file() else None
        if not isinstance(family, str):
            raise ValueError(
                "checkpoint.last_save_in_hf: nothing says which family the model is of; expected the released "
                "config.json in hf_assets_path, or checkpoint.model"
            )
        return family

    def _assets(self) -> dict[str, bytes]:
        """What hf_assets_path has beside weights, for an export that has no template to take it from."""
        folder = Path(getattr(self.sd_adapter, "hf_assets_path", None) or "")
        assets = {
            file.name: file.read_bytes()
            for file in sorted(folder.glob("*.*") if folder.name else [])
            if file.is_file() and file.suffix in _ASSETS and not file.name.startswith(".")
        }
        if "config.json" not in assets:
            logger.warning(
                "The export has no config.json, as hf_assets_path has none; from_pretrained needs one"
            )
        return assets

    def _expect_exportable(self) -> None:
        """Before a training, what would keep its last step from being exported."""
        template = self._template()
        if template is not None:
            weight_map_for(read_catalog(template), self.model, "torchtitan")
            logger.info(f"last_save_in_hf takes dtypes from {template}, not from export_dtype.")
            return
        if self.export_dtype != torch.bfloat16:
            raise ValueError(
                f"checkpoint.last_save_in_hf with export_dtype {self.export_dtype}: without weights in hf_assets_path, "
                'whose dtypes are taken over, an export is in BF16; expected export_dtype="bfloat16"'
            )
        weight_map_for(None, self._family(), "huggingface")


def _is_ours(step: Path) -> bool:
    return bool(_core.has_manifest(str(step)))


def _is_being_saved(step: Path) -> bool:
    return is_there(step / _core.saving_name) or not any(step.iterdir())


def _steps(steps: list[int]) -> str:
    return _listed([f"step-{step}" for step in steps])


def _listed(names: list[str]) -> str:
    more = f", … {len(names)} in all" if len(names) > _TOLD else ""
    return ", ".join(names[:_TOLD]) + more


@override(target=TitanCheckpointManager.Config, exact=True, description="checkpoints by Shardwright")
def checkpoints(config: Any, **options: Any) -> Any:
    """For ``--override.imports``: torchtitan's config of a checkpoint manager, as one of ours. ``options`` are those of
    ``CheckpointManager.Config``."""
    return derive(config, CheckpointManager.Config, **options)
