"""transformers 5.23 with Shardwright: models made on meta and sharded are filled, and stored, in one call each.

::

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    load_pretrained(model, path)  # each rank reads its shards
    ...
    save_pretrained(model, "trained")  # each rank writes its shards; from_pretrained reads them

Models of peft are taken as well: their base model is loaded, and stored with or without the adapters in its weights;
``save_adapter`` writes the adapter.
"""

from __future__ import annotations

import copy
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from shardwright import _core
from shardwright.exporting import export
from shardwright.integrations.known_versions import expect_version
from shardwright.integrations.restored_weights import restored
from shardwright.loading import is_of_trainer, load
from shardwright.local_path import expect_overwrite, lasting_path
from shardwright.ranks.together import failing_together, is_first
from shardwright.report import LoadReport, SaveReport
from shardwright.saving import background_group

expect_version("transformers", ("5.23.0",))

from transformers import PreTrainedModel  # noqa: E402
from transformers.core_model_loading import build_glob_alternation  # noqa: E402

__all__ = ["load_pretrained", "save_adapter", "save_pretrained"]

#: What a buffer holds until its model computes it; no initialisation leaves all of a buffer so.
_UNSET = 0xA5

#: Of peft. The last one makes an adapter of them.
_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")

_ADVICE = "Give another path, or pass overwrite=True to replace it"


def load_pretrained(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    **options: Any,
) -> LoadReport:
    """Fills a model of transformers from a checkpoint, its shards alone, whatever the checkpoint quantizes.

    All ranks call it. What the model has on meta gets memory first. Then there are, as ``from_pretrained`` has them:
    weights and persistent buffers, from the files; buffers that no file has (rotary frequencies, position ids), by
    transformers' own initialisation; tied weights, which are one tensor again. A model of peft gets adapters as peft
    begins them (A random, the same on any sharding; B zero).

    Args:
        model: a ``PreTrainedModel``, or peft's around one; sharded or not, on meta or not.
        path: the checkpoint directory.
        device: where what is on meta goes; None: to the device of the shards' mesh, or the CPU.
        options: for :func:`shardwright.load`, such as ``threads`` or ``strict``.

    Returns:
        What the load did; ``unused`` are tensors of the checkpoint that the model has no place for.

    Raises, on all ranks:
        PlanError: model and checkpoint do not fit; lists what. Buffers and adapters may have been written by then.
        ValueError: the model is none of transformers', or has a buffer that nothing computes.
    """
    group = background_group()
    with failing_together(group):
        base = base_model_of(model)
        if is_of_trainer(path):
            raise ValueError(
                f"{os.fspath(path)} is a checkpoint of a training; resume it with shardwright.load"
                '({"model": model, ...}, path) once the model has memory'
            )
        fresh = [name for name, tensor in _tensors_of(model) if tensor.is_meta]
        if fresh:
            _keep_wide(base)
            _give_memory(model, device)
            compute_buffers(base)
    if fresh:
        _begin_adapters(model, {name for name in fresh if ".lora_" in name})
    with failing_together(group):
        options = {"model": base, "layout": "transformers"} | options
        return load(weights_of(model), path, **options)


def save_pretrained(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    merge_adapters: bool = False,
    **options: Any,
) -> SaveReport:
    """Writes a model of transformers as the files that ``from_pretrained`` reads: weights, config.json and, where it
    has one, generation_config.json. No tensor is gathered. All ranks call it.

    Of a model of peft the base model is written; ``save_adapter`` writes the adapter.

    Args:
        merge_adapters: whether the written weights have in them what peft's adapters add. The model itself stays as
            it is, bit for bit.
        options: for :func:`shardwright.export`, such as ``template`` (the released checkpoint, whose dtypes, order and
            files, the tokenizer among them, are taken over), ``quantization``, which needs one, or ``max_shard_size``.
            Without a template floats become BF16.

    Raises, on all ranks, what :func:`shardwright.export` raises, and
        FileExistsError: config.json or generation_config.json of others is there; ``overwrite=True`` replaces it.
    """
    group = background_group()
    path = lasting_path(path)
    configs: dict[str, bytes] = {}
    with failing_together(group):
        base = base_model_of(model)
        if options.get("quantization") not in (None, "none") and options.get("template") is None:
            raise ValueError(
                "quantization: expected template= as well, a release whose config.json says how weights are quantized"
            )
        if options.get("template") is None and is_first(group):
            configs = _configs_of(base)
            _core.expect_replaceable(path, configs, options.get("overwrite"), _ADVICE)
    with _adapters_in_weights(model) if merge_adapters else nullcontext():
        options = {"model": base, "layout": "transformers"} | options
        report = export(weights_of(model), path, **options)
    with failing_together(group):
        if configs:
            _core.write_beside(path, configs)
    return report


def save_adapter(
    model: Any,
    path: str | os.PathLike[str],
    adapter: str = "default",
    *,
    overwrite: bool | None = None,
) -> None:
    """Writes an adapter of a model of peft as ``PeftModel.from_pretrained`` reads it, by peft itself.

    All ranks call it. The adapter's tensors, and nothing else, are gathered, on each rank. Both files are written aside
    first; ``adapter_config.json`` gets its name last.

    Args:
        overwrite: None replaces an adapter that this function has written. True replaces any. False replaces none.

    Raises, on all ranks:
        ValueError: the model has no such adapter.
        FileExistsError: an adapter is there that may not be replaced; names its files.
    """
    group = background_group()
    path = Path(lasting_path(path))
    with failing_together(group):
        if not hasattr(model, "peft_config") or adapter not in model.peft_config:
            raise ValueError(
                f"expected a model of peft with the adapter {adapter!r}, found {type(model).__name__}"
            )
        expect_overwrite(overwrite)
        if is_first(group):
            _core.expect_replaceable(path, dict.fromkeys(_ADAPTER_FILES), overwrite, _ADVICE)
    whole = {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for name, tensor in model.state_dict().items()
        if f".{adapter}." in f"{name}."
    }
    with failing_together(group):
        if is_first(group):
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".adapter-", dir=path) as aside:
                model.save_pretrained(
                    aside, state_dict=whole, selected_adapters=[adapter], save_embedding_layers=False
                )
                written = Path(aside) if adapter == "default" else Path(aside, adapter)
                _core.write_beside(path, {name: (written / name).read_bytes() for name in _ADAPTER_FILES})


def base_model_of(model: nn.Module) -> PreTrainedModel:
    """The model of transformers, which peft may have wrapped.

    Raises:
        ValueError: it is none.
    """
    wrapped = getattr(model, "get_base_model", None)
    base = wrapped() if wrapped is not None else model
    if not isinstance(base, PreTrainedModel):
        raise ValueError(
            f"expected a model of transformers, or of peft around one, found {type(model).__name__}"
        )
    return base


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """The base model's state dict under its own names: without peft's prefixes and adapters, each tied tensor once."""
    base = base_model_of(model)
    kept: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in base.state_dict(keep_vars=True).items():
        if ".lora_" in name or id(tensor) in seen:
            continue
        if ".modules_to_save." in name or ".original_module." in name:
            raise ValueError(
                f"{name}: peft keeps modules_to_save twice; expected adapters alone, or the whole state dict with "
                "shardwright.save"
            )
        seen.add(id(tensor))
        kept[name.replace(".base_layer.", ".")] = tensor.detach()
    return kept


# --- memory, buffers and ties --------------------------------------------------------------------------------------


def _tensors_of(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _keep_wide(model: PreTrainedModel) -> None:
    """Gives what is on meta the dtype that ``from_pretrained`` has for it: some tensors of some models stay in F32.
    Warns of those that are sharded already, whose dtype is settled."""
    plan = model._get_dtype_plan(model.dtype)
    if not plan:
        return
    pattern, name_of_group, _ = build_glob_alternation(list(plan))
    settled = []
    for prefix, module in model.named_modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                matched = pattern.search(f"{prefix}.{name}")
                if tensor is None or matched is None or not tensor.is_meta or not tensor.is_floating_point():
                    continue
                dtype = plan[name_of_group[matched.lastgroup]]
                if isinstance(tensor, DTensor):
                    settled += [f"{prefix}.{name}"] if tensor.dtype != dtype else []
                    continue
                wide = torch.empty_like(tensor, dtype=dtype)
                tensors[name] = (
                    nn.Parameter(wide, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else wide
                )
    if settled:
        warnings.warn(
            f"{'; '.join(_core.grouped_names(settled))}: from_pretrained holds these in F32, and this model, which is "
            f"sharded, in {str(model.dtype).removeprefix('torch.')}; make it in F32, with a MixedPrecisionPolicy",
            stacklevel=3,
        )


def _give_memory(model: nn.Module, device: torch.device | str | None) -> None:
    """``to_empty``, after which what was one parameter in several modules is one again."""
    if device is None:
        meshes = [tensor.device_mesh for tensor in model.parameters() if isinstance(tensor, DTensor)]
        device = meshes[0].device_type if meshes else "cpu"
    place = torch.device(device)
    if place.type != "cpu" and place.index is None:
        place = torch.device(place.type, torch.accelerator.current_device_index())
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append((module, name))
    model.to_empty(device=place)
    for (first, its_name), *others in holders.values():
        for module, name in others:
            module._parameters[name] = first._parameters[its_name]


def compute_buffers(model: PreTrainedModel) -> None:
    """Computes the buffers that no checkpoint has, by transformers' own initialisation.

    Raises:
        ValueError: names those that it leaves as they are.
    """
    computed = dict(model.named_non_persistent_buffers())
    given = [
        tensor for _, tensor in _tensors_of(model) if not any(tensor is one for one in computed.values())
    ]
    with torch.no_grad():
        for buffer in computed.values():
            _bytes_of(buffer).fill_(_UNSET)
    for tensor in given:
        vars(tensor)["_is_hf_initialized"] = True  # transformers' sign for what is to stay
    for module in model.modules():
        module._is_hf_initialized = not any(True for _ in module._non_persistent_buffers_set)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module._is_hf_initialized = False
    model.initialize_weights()
    left = [name for name, buffer in model.named_non_persistent_buffers() if _is_unset(buffer)]
    if left:
        raise ValueError(
            f"{'; '.join(_core.grouped_names(left))}: no checkpoint has these buffers, and {type(model).__name__}"
            "._init_weights does not compute them; make the model with memory (not on meta) and load it then"
        )


def _bytes_of(buffer: torch.Tensor) -> torch.Tensor:
    local = buffer.to_local() if isinstance(buffer, DTensor) else buffer
    return local.view(torch.uint8) if local.dim() else local.reshape(1).view(torch.uint8)


def _is_unset(buffer: torch.Tensor) -> bool:
    data = _bytes_of(buffer)
    return data.numel() > 0 and bool((data == _UNSET).all())


# --- peft ----------------------------------------------------------------------------------------------------------


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if isinstance(getattr(module, "lora_A", None), Mapping | nn.ModuleDict) and hasattr(
            module, "scaling"
        ):
            yield name, module


def _begin_adapters(model: nn.Module, fresh: set[str]) -> None:
    """What peft does when it makes adapters, which on meta leads to nothing."""
    begun = set()
    for name, layer in _lora_layers(model):
        for adapter in layer.lora_A:
            a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            names = {f"{name}.lora_A.{adapter}.weight", f"{name}.lora_B.{adapter}.weight"}
            if not names & fresh:
                continue
            drawn = torch.empty(a.shape, dtype=torch.float32)
            nn.init.kaiming_uniform_(drawn, a=5**0.5)
            with torch.no_grad():
                drawn = drawn.to(a.dtype).to(a.device)
                # Of rank 0, whatever the others have drawn.
                a.copy_(
                    distribute_tensor(drawn, a.device_mesh, a.placements) if isinstance(a, DTensor) else drawn
                )
                b.zero_()
            begun |= names
    left = sorted(fresh - begun)
    if left:
        raise ValueError(
            f"{'; '.join(_core.grouped_names(left))}: expected adapters with weights lora_A and lora_B alone; make "
            "others when the base model has been loaded"
        )


@contextmanager
def _adapters_in_weights(model: nn.Module) -> Iterator[None]:
    """Within it the base weights have in them what the active adapters add; afterwards they are as they were."""
    layers = [layer for _, layer in _lora_layers(model)]
    with restored(layer.get_base_layer().weight for layer in layers):
        with torch.no_grad():
            for layer in layers:
                weight = layer.get_base_layer().weight
                for adapter in layer.active_adapters:
                    if adapter in layer.lora_A:
                        added = layer.get_delta_weight(adapter)
                        if isinstance(weight, DTensor):
                            added = added.redistribute(weight.device_mesh, weight.placements)
                        weight.add_(added.to(weight.dtype))
        yield


# --- files ---------------------------------------------------------------------------------------------------------


def _configs_of(model: PreTrainedModel) -> dict[str, bytes]:
    """config.json, which no longer calls the weights quantized, and generation_config.json."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__.removeprefix("FSDP")]
    for part in (config, config.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    with tempfile.TemporaryDirectory() as aside:
        config.save_pretrained(aside)
        generation = getattr(model, "generation_config", None)
        if model.can_generate() and generation is not None:
            generation.save_pretrained(aside)
        return {file.name: file.read_bytes() for file in Path(aside).glob("*.json")}
