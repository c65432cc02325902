"""Which of the checkpoints that a trainer has left in a folder is the one to go on from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from shardwright import _core
from shardwright.checkpoints import latest
from shardwright.dcp.torch_metadata import METADATA_NAME, read_torch_metadata
from shardwright.system_calls import is_file, is_folder, is_there, uninterrupted


@dataclass
class Steps:
    """What is in a folder of steps, by what it is; each list is sorted by step."""

    #: the checkpoint to go on from: of those that hold more than the model, what was saved last
    newest: int = -1
    of_weights: list[int] = field(default_factory=list)  #: later ones of the model alone, exports among them
    unfinished: list[int] = field(default_factory=list)  #: no checkpoint, or one whose save has not ended


def steps_in(folder: Path, is_of_training: Callable[[str], bool]) -> Steps:
    """Looks at every folder step-<number>.

    Args:
        is_of_training: whether a name of a checkpoint, such as "optimizer.state.w.exp_avg", is of more than the model.

    Raises:
        ValueError: ``folder`` is a checkpoint itself, two folders are of one step, or nothing says which was
            saved last.
        CheckpointFormatError: the newest checkpoint is damaged.
    """
    steps = Steps()
    if not is_folder(folder):
        return steps
    _expect_no_checkpoint(folder)
    last = latest(folder)
    ours: dict[int, Path] = {}
    others: dict[int, Path] = {}
    for entry in uninterrupted(lambda: list(folder.iterdir())):
        step = _core.step_of(entry)
        if step is None or not is_folder(entry):
            continue
        if _core.has_manifest(str(entry)):
            ours[step] = entry
        elif is_file(entry / METADATA_NAME) and not is_there(entry / _core.saving_name):
            others[step] = entry
        else:
            (steps.of_weights if _is_export(entry) else steps.unfinished).append(step)
    saved_last = None if last is None else _core.step_of(Path(last))
    # What ends a training may hold the model alone. Steps beyond it are of a training that was rolled back.
    candidates = sorted((s for s in ours if saved_last is None or s <= saved_last), reverse=True)
    of_ours = _first_of_training(candidates, ours, is_of_training, steps.of_weights)
    beyond = sorted((s for s in others if s > of_ours), reverse=True)
    of_others = _first_of_training(beyond, others, is_of_training, steps.of_weights)
    if of_ours >= 0 and of_others >= 0:
        raise ValueError(
            f"{folder}: step-{of_ours} was saved last by Shardwright, and step-{of_others}, which does not say when it "
            "was saved, by torch; say which one to go on from (torchtitan: checkpoint.load_step)"
        )
    steps.newest = max(of_ours, of_others)
    steps.of_weights = sorted(step for step in steps.of_weights if step > steps.newest)
    steps.unfinished.sort()
    return steps


def in_the_way(folder: Path, step: int) -> list[Path]:
    """The folders of later steps that a save of that step would refuse to replace: exports and checkpoints of torch's,
    sorted by step."""
    if not is_folder(folder):
        return []
    found = [(_core.step_of(entry), entry) for entry in uninterrupted(lambda: list(folder.iterdir()))]
    later = sorted((number, entry) for number, entry in found if number is not None and number > step)
    return [entry for _, entry in later if is_folder(entry) and _stays(entry)]


def _stays(folder: Path) -> bool:
    if _core.has_manifest(str(folder)):
        return False
    is_of_torch = is_file(folder / METADATA_NAME) and not is_there(folder / _core.saving_name)
    return is_of_torch or _is_export(folder)


def _first_of_training(
    candidates: list[int],
    paths: dict[int, Path],
    is_of_training: Callable[[str], bool],
    of_weights: list[int],
) -> int:
    """The first candidate that holds more than the model; -1: none does. Step 0 is what trainings begin with."""
    for step in candidates:
        if step == 0 or any(is_of_training(name) for name in names_in(paths[step])):
            return step
        of_weights.append(step)
    return -1


def names_in(checkpoint: Path) -> list[str]:
    """What a checkpoint of a trainer holds."""
    if _core.has_manifest(str(checkpoint)):
        manifest = _core.read_manifest(str(checkpoint))
        return [name for name, *_ in [*manifest.objects, *manifest.tensors]]
    if is_file(checkpoint / METADATA_NAME):
        return list(read_torch_metadata(checkpoint).state_dict_metadata)
    return [tensor.name for tensor in _core.read_catalog(str(checkpoint), 0).tensors]


def _is_export(folder: Path) -> bool:
    return any(is_file(folder / f"model.safetensors{ending}") for ending in ("", ".index.json"))


def _expect_no_checkpoint(folder: Path) -> None:
    if _core.has_manifest(str(folder)) or is_file(folder / METADATA_NAME) or _is_export(folder):
        raise ValueError(
            f"{folder} is a checkpoint itself; expected the folder that holds those of all steps (to begin with this "
            "one, name it as what is loaded first; torchtitan: checkpoint.initial_load_path)"
        )
