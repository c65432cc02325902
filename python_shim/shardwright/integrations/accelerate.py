"""accelerate 1.15 with Shardwright: ``save_state``, ``load_state`` of FSDP2 models, and transformers' Trainer on them.

::

    from shardwright.integrations import accelerate

    accelerate.install()

From then on the folders of shards (``pytorch_model_fsdp_0``, ``optimizer_0``) are written and read by Shardwright. They
have the names that accelerate looks for, and accelerate alone reads them. ``uninstall`` undoes it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shardwright import _core
from shardwright.integrations.all_taken import expect_all_taken
from shardwright.integrations.known_versions import expect_version
from shardwright.loading import is_of_trainer, load
from shardwright.ranks.together import failing_together, of_first
from shardwright.saving import background_group, save

expect_version("accelerate", ("1.15.0",))

from accelerate.utils import fsdp_utils  # noqa: E402
from accelerate.utils.constants import FSDP_MODEL_NAME, OPTIMIZER_NAME  # noqa: E402
from torch.distributed.checkpoint.state_dict import (  # noqa: E402
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import StateDictType  # noqa: E402

__all__ = ["install", "uninstall"]

#: The object of an optimizer's checkpoint that says which model it was saved with: the SHA-256 of its manifest.
_MODEL_SUM = "shardwright_model"


def install() -> None:
    """Puts our four functions in place of accelerate's, in every module that has imported them. Twice is once."""
    _replace(_THEIRS, _OURS)


def uninstall() -> None:
    """Puts accelerate's back, in every module."""
    _replace(_OURS, _THEIRS)


def _replace(present: dict[str, Callable[..., Any]], wanted: dict[str, Callable[..., Any]]) -> None:
    for module in list(sys.modules.values()):
        for name, function in present.items():
            if getattr(module, "__dict__", {}).get(name) is function and module is not sys.modules[__name__]:
                setattr(module, name, wanted[name])


def _is_sharded(plugin: Any, use_dcp: bool) -> bool:
    """Whether it is for us. Whole state dicts on rank 0, files of each rank and FSDP1 stay accelerate's, as they were
    asked for by name."""
    sharded = plugin.state_dict_type == StateDictType.SHARDED_STATE_DICT
    return bool(use_dcp and sharded and plugin.fsdp_version == 2)


def save_fsdp_model(
    plugin: Any,
    accelerator: Any,
    model: Any,
    output_dir: str,
    model_index: int = 0,
    adapter_only: bool = False,
    use_dcp: bool = True,
) -> None:
    """The model, whole or not there at all."""
    if not _is_sharded(plugin, use_dcp):
        _THEIRS["save_fsdp_model"](plugin, accelerator, model, output_dir, model_index, adapter_only, use_dcp)
        return
    options = fsdp_utils._prepare_sd_options(plugin)
    state = fsdp_utils._get_model_state_dict(model, adapter_only=adapter_only, sd_options=options)
    _save({"model": state}, Path(output_dir, f"{FSDP_MODEL_NAME}_{model_index}"))


def load_fsdp_model(
    plugin: Any,
    accelerator: Any,
    model: Any,
    input_dir: str,
    model_index: int = 0,
    adapter_only: bool = False,
    use_dcp: bool = True,
) -> Any:
    """Raises on all ranks what keeps one from loading, for a checkpoint of another model, and for one whose optimizer
    was never finished, or is of another save."""
    if not _is_sharded(plugin, use_dcp):
        return _THEIRS["load_fsdp_model"](
            plugin, accelerator, model, input_dir, model_index, adapter_only, use_dcp
        )
    path = _folder(input_dir, f"{FSDP_MODEL_NAME}_{model_index}")
    options = fsdp_utils._prepare_sd_options(plugin)
    state = {"model": fsdp_utils._get_model_state_dict(model, adapter_only=adapter_only, sd_options=options)}
    with failing_together(background_group()):
        _expect_finished(path)
        if accelerator._optimizers and path != Path(input_dir):
            optimizer = _folder(input_dir, f"{OPTIMIZER_NAME}_{model_index}")
            _expect_finished(optimizer)
            _expect_one_save(path, optimizer)
        report = load(state, path)
    expect_all_taken(path, report.unused, background_group())
    return fsdp_utils._set_model_state_dict(
        model, state["model"], adapter_only=adapter_only, sd_options=options
    )


def save_fsdp_optimizer(
    plugin: Any,
    accelerator: Any,
    optimizer: Any,
    model: Any,
    output_dir: str,
    optimizer_index: int = 0,
    use_dcp: bool = True,
) -> None:
    """The optimizer's state, whole or not there at all."""
    if not _is_sharded(plugin, use_dcp):
        _THEIRS["save_fsdp_optimizer"](
            plugin, accelerator, optimizer, model, output_dir, optimizer_index, use_dcp
        )
        return
    options = fsdp_utils._prepare_sd_options(plugin)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    saved_with = _sum_of_saved_model(Path(output_dir, f"{FSDP_MODEL_NAME}_{optimizer_index}"))
    _save(
        {"optimizer": state} | ({_MODEL_SUM: saved_with} if saved_with else {}),
        Path(output_dir, f"{OPTIMIZER_NAME}_{optimizer_index}"),
    )


def load_fsdp_optimizer(
    plugin: Any,
    accelerator: Any,
    optimizer: Any,
    model: Any,
    input_dir: str,
    optimizer_index: int = 0,
    adapter_only: bool = False,
    use_dcp: bool = True,
) -> None:
    """Raises on all ranks what keeps one from loading, and for a checkpoint of another optimizer."""
    if not _is_sharded(plugin, use_dcp):
        _THEIRS["load_fsdp_optimizer"](
            plugin, accelerator, optimizer, model, input_dir, optimizer_index, adapter_only, use_dcp
        )
        return
    path = _folder(input_dir, f"{OPTIMIZER_NAME}_{optimizer_index}")
    options = fsdp_utils._prepare_sd_options(plugin)
    state = {"optimizer": get_optimizer_state_dict(model, optimizer, options=options)}
    with failing_together(background_group()):
        _expect_finished(path)
        report = load(state, path)
    unused = [name for name in report.unused if name != _MODEL_SUM]
    expect_all_taken(path, unused, background_group())
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)


def _save(state: dict[str, Any], path: Path) -> None:
    try:
        save(state, path)
    except FileExistsError as error:
        raise FileExistsError(
            error.errno,
            f"{error.strerror}. accelerate's save_state takes no overwrite=: remove {path}, or save to another folder",
        ) from None


def _folder(given: str, name: str) -> Path:
    path = Path(given)
    return path if path.name == name else path / name


def _expect_finished(path: Path) -> None:
    if not is_of_trainer(path):
        raise FileNotFoundError(
            2,
            f"{os.fspath(path)}: expected the checkpoint of a training, found none; the save of {path.parent.name} has "
            "not ended: go on from an earlier one",
        )


def _expect_one_save(model: Path, optimizer: Path) -> None:
    """A save into a folder that has one already replaces first the model, then the optimizer. What accelerate alone has
    saved does not say what it was saved with."""
    if not _core.has_manifest(str(optimizer)):
        return
    if _MODEL_SUM not in {name for name, *_ in _core.read_manifest(str(optimizer)).objects}:
        return
    state = {_MODEL_SUM: ""}
    load(state, optimizer)
    if state[_MODEL_SUM] != _sum_of(model):
        raise ValueError(
            f"{optimizer.name} in {model.parent} was saved with another model than {model.name} there is: a save into "
            "this folder has ended between the two. Go on from an earlier one, and save each state into its own folder"
        )


def _sum_of_saved_model(model: Path) -> str:
    """That of rank 0, on all ranks."""
    return of_first(background_group(), lambda: _sum_of(model))


def _sum_of(checkpoint: Path) -> str:
    """Empty where Shardwright has saved nothing."""
    if not _core.has_manifest(str(checkpoint)):
        return ""
    return hashlib.sha256((checkpoint / _core.manifest_name).read_bytes()).hexdigest()


_OURS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (save_fsdp_model, load_fsdp_model, save_fsdp_optimizer, load_fsdp_optimizer)
}
_THEIRS: dict[str, Callable[..., Any]] = {name: getattr(fsdp_utils, name) for name in _OURS}
