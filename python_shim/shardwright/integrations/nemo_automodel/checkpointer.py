"""nemo-automodel's Checkpointer, whose files Shardwright writes and reads."""

from __future__ import annotations

import errno
import glob
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from nemo_automodel.components.checkpoint import checkpointing
from nemo_automodel.components.checkpoint.checkpointing import Checkpointer as TheirCheckpointer
from nemo_automodel.components.checkpoint.state_dict_adapter import StateDictAdapter as TheirAdapter
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse
from torch.futures import Future

from shardwright.dcp.run_save import run_save
from shardwright.dcp.save_planner import SavePlanner
from shardwright.dcp.sharded_writer import ShardedStorageWriter
from shardwright.dcp.storage_writer import HuggingFaceStorageWriter
from shardwright.integrations.all_taken import expect_all_taken
from shardwright.integrations.nemo_automodel.consolidated import save_with_consolidated
from shardwright.integrations.nemo_automodel.released import load_released
from shardwright.integrations.nemo_automodel.trained_lora import load_trained_lora
from shardwright.loading import load
from shardwright.models.state_dict_adapter import StateDictAdapter
from shardwright.ranks.together import together
from shardwright.saving import PendingSave, begin_save, save

logger = logging.getLogger(__name__)
TheirAdapter.register(StateDictAdapter)  # so that isinstance() is true where it asks its own class


class Checkpointer(TheirCheckpointer):
    """Saves and loads as nemo-automodel's does, into the same folders and names.

    Weights and optimizer are published when every rank has written its part, with checksums, beside whatever else is in
    their folder. A load proves that it fills every tensor before it writes one, and each rank reads what it holds. What
    nemo-automodel warns of and trains on is an error: weights, adapters and optimizer states that a checkpoint lacks,
    or has too many of.

    Cloud paths (``msc://``) are nemo-automodel's own.
    """

    def __init__(
        self,
        config: Any,
        dp_rank: int,
        tp_rank: int,
        pp_rank: int,
        moe_mesh: Any = None,
        process_group: Any = None,
        pp_group: Any = None,
    ) -> None:
        # Without torch's stagers, which pin memory and start processes: our writers copy by themselves.
        is_async, config.is_async = config.is_async, False
        try:
            super().__init__(config, dp_rank, tp_rank, pp_rank, moe_mesh, process_group, pp_group)
        finally:
            config.is_async = is_async
        if is_async:
            self._model_ctx.process_group = checkpointing._new_gloo_process_group(process_group)
            self._optim_ctx.process_group = checkpointing._new_gloo_process_group(process_group)

    def save_model(
        self,
        model: Any,
        weights_path: str,
        peft_config: Any = None,
        tokenizer: Any = None,
        is_final_checkpoint: bool = False,
    ) -> None:
        """Saves weights to ``weights_path/model``: an adapter, or shards under Hugging Face's names, and where
        ``save_consolidated`` says so a Hugging Face checkpoint in ``model/consolidated``, written from the tensors."""
        config = self.config
        if (
            checkpointing._should_write_consolidated_safetensors(config, is_final_checkpoint)
            and not (config.is_async or config.single_rank_consolidation)
            and not checkpointing.is_cloud_path(weights_path)
        ):
            with torch.no_grad():
                save_with_consolidated(self, model, weights_path, tokenizer, is_final_checkpoint)
            return
        super().save_model(model, weights_path, peft_config, tokenizer, is_final_checkpoint)

    def load_model(
        self,
        model: Any,
        model_path: str,
        is_init_step: bool = False,
        use_checkpoint_id: bool = True,
        key_mapping: dict[str, str] | Callable[[str], str] | None = None,
        allow_checkpoint_key_subset: bool = False,
    ) -> None:
        """Loads a released checkpoint (``is_init_step``), or what ``save_model`` has saved, ours or nemo-automodel's.

        Raises:
            PlanError: model and checkpoint do not fit; lists what is wrong.
        """
        parts = [model] if isinstance(model, torch.nn.Module) else list(model)
        with torch.no_grad():
            if is_init_step and load_released(self, parts, model_path, allow_checkpoint_key_subset):
                return
            if self.config.is_peft and not is_init_step and load_trained_lora(self, parts, model_path):
                return
            super().load_model(
                model, model_path, is_init_step, use_checkpoint_id, key_mapping, allow_checkpoint_key_subset
            )

    def save_distributed_state(self, state: Any, state_name: str, path: str) -> None:
        """An object's sharded state, such as that of averaged weights, as a checkpoint of its own."""
        if checkpointing.is_cloud_path(path):
            super().save_distributed_state(state, state_name, path)
            return
        save(state.state_dict(), os.path.join(path, state_name), process_group=self.process_group)

    def load_distributed_state(self, state: Any, state_name: str, path: str) -> None:
        loaded = state.state_dict()
        self._do_load(loaded, os.path.join(path, state_name))
        state.load_state_dict(loaded)

    def load_on_global_ranks(self, state: Any, state_name: str, path: str) -> None:
        """Random numbers, of each rank its own. A rank that had none in the run that saved keeps its seed's."""
        saved = len(glob.glob(os.path.join(glob.escape(path), state_name, f"{state_name}_global_rank_*.pt")))
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        rank = dist.get_rank() if dist.is_initialized() else 0
        if saved not in (0, ranks) and rank == 0:
            logger.warning(
                "%s: %s was saved by %d ranks and is resumed by %d: ranks go on with other random numbers, and losses "
                "differ from those of the run that saved it",
                path,
                state_name,
                saved,
                ranks,
            )
        if saved == 0 or rank < saved:
            super().load_on_global_ranks(state, state_name, path)

    def load_on_dp_ranks(self, state: Any, state_name: str, path: str) -> None:
        """The place in the data, of each data-parallel rank its own.

        Raises:
            FileNotFoundError: on all ranks, where there is none for one: it would begin the data anew.
        """
        folder = os.path.join(path, state_name)
        saved = len(glob.glob(os.path.join(glob.escape(folder), f"{state_name}_dp_rank_*.pt")))

        def run() -> None:
            file = os.path.join(folder, f"{state_name}_dp_rank_{self.dp_rank}.pt")
            if not os.path.exists(file):
                raise FileNotFoundError(
                    errno.ENOENT,
                    f"no such file; the checkpoint has the place in the data of {saved} data-parallel ranks, and "
                    "this is one more. Resume with as many ranks, or without tracking the dataloader",
                    file,
                )

        together(self.process_group, f"loading {folder}", run)
        super().load_on_dp_ranks(state, state_name, path)

    # --- the ways to the disk, which nemo-automodel's own methods take ---------------------------------------------

    def _get_storage_writer(
        self,
        consolidated_output_path: str | None,
        fqn_to_index_mapping: dict[str, int] | None,
        fqn_to_dtype_mapping: dict[str, str] | None,
        model_path: str,
        consolidation_handled_externally: bool = False,
    ) -> Any:
        theirs = super()._get_storage_writer(
            consolidated_output_path,
            fqn_to_index_mapping,
            fqn_to_dtype_mapping,
            model_path,
            consolidation_handled_externally,
        )
        is_theirs = theirs is None or checkpointing.is_cloud_path(model_path)
        if is_theirs or (consolidated_output_path and not consolidation_handled_externally):
            return theirs  # its own writer consolidates on one rank, if told to
        return HuggingFaceStorageWriter(model_path, fqn_to_index_mapping, save_distributed=True)

    def _do_save(self, state_dict: dict[str, Any], path: str, storage_writer: Any = None) -> Any:
        is_model = checkpointing._is_model_checkpoint_path(path)
        is_theirs = storage_writer is not None and not isinstance(storage_writer, HuggingFaceStorageWriter)
        if is_theirs or checkpointing.is_cloud_path(path) or (self.config.is_peft and is_model):
            return super()._do_save(state_dict, path, storage_writer)
        writer = storage_writer or ShardedStorageWriter(path)
        if self.config.is_async:
            context = self._model_ctx if is_model else self._optim_ctx
            pending = begin_save(state_dict, writer, SavePlanner(), context.process_group, path)
            return AsyncSaveResponse(_done(), _Upload(pending))
        with _advising():
            run_save(state_dict, writer, SavePlanner(), self.process_group, f"saving {path}")
        return None

    def _do_load(
        self, state_dict: dict[str, Any], path: str, storage_reader: Any = None, is_init_step: bool = False
    ) -> dict[str, Any]:
        is_adapter = self.config.is_peft and checkpointing._is_model_checkpoint_path(path)
        if is_init_step or is_adapter or checkpointing.is_cloud_path(path):
            found: dict[str, Any] = super()._do_load(state_dict, path, storage_reader, is_init_step)
            return found
        report = together(
            self.process_group,
            f"loading {path}",
            lambda: load(
                state_dict,
                path,
                layout="huggingface",
                weights_only=not self.config.allow_legacy_pickle_restore,
            ),
        )
        names = [name for name in report.unused if not _is_extra_state(name)]
        expect_all_taken(path, names, self.process_group)
        logger.info("%s: %s", path, " ".join(str(report).split()))
        return state_dict


def _is_extra_state(name: str) -> bool:
    """Of modules such as Transformer Engine's, which nemo-automodel does not require."""
    return "_extra_state" in name


@contextmanager
def _advising() -> Iterator[None]:
    try:
        yield
    except FileExistsError as failure:
        advice = "nemo-automodel has no such option: move those files away, or save into another folder"
        raise FileExistsError(failure.errno, f"{failure.strerror}. {advice}") from failure.__cause__


def _done() -> Future[None]:
    done: Future[None] = Future()
    done.set_result(None)
    return done


class _Upload:
    """The end of a save in the background, as nemo-automodel waits for it."""

    def __init__(self, pending: PendingSave) -> None:
        self._pending = pending

    def done(self) -> bool:
        return self._pending.done()

    def result(self) -> None:
        """Raises what went wrong, the same on all ranks."""
        with _advising():
            self._pending.wait()
