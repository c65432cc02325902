"""The state-dict adapter of any family that has a table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from shardwright import _core
from shardwright.adapters.hf_to_native import native_tensors
from shardwright.adapters.lora_state_dict import lora_from_hf, lora_in, lora_to_hf, sense_of
from shardwright.adapters.native_to_hf import Native, Origins, catalog_of_checkpoint, hf_tensors
from shardwright.dcp.storage_reader import HuggingFaceStorageReader
from shardwright.models.state_dict_adapter import StateDictAdapter
from shardwright.sharding import Sharding
from shardwright.weight_maps import imported_map, model_name, weight_map_for


class FamilyStateDictAdapter(StateDictAdapter):
    """Converts state dicts in memory as :func:`shardwright.load` and :func:`shardwright.export` do.

    In layout "automodel" it converts LoRA, too: to a module for each expert, and from these or ParamWrappers.

    Args:
        model: the family, such as "qwen3_moe". Where no table has it in layout "transformers": a config or a model of
            transformers.
        layout: the trainer's names and shapes, as for :class:`shardwright.LoadPlanner`.
        experts: how many a layer has over all ranks; -1: as many as a state dict brings. LoRA of experts in peft's
            ParamWrappers needs the number.
        dtype: of decoded weights and of grouped experts.
        checkpoint: a directory, or a DCP storage reader of it, with the names and the config.json of the state dicts
            that are converted. Needed where a family has several forms, or the layout needs sizes of the config.
    """

    #: What a trainer that knows it from elsewhere says about the sense of ParamWrappers: "peft-0.19.1" or "peft-0.18".
    _paramwrapper_layout_hint: str | None = None

    def __init__(
        self,
        model: Any,
        *,
        layout: str = "automodel",
        experts: int = -1,
        dtype: torch.dtype = torch.bfloat16,
        checkpoint: Any = None,
    ) -> None:
        self.model = model
        self.checkpoint = checkpoint
        self.layout = layout
        self.experts = experts
        self.dtype = dtype
        self._origins = Origins()
        self.hf_assets_path: str | None = None  #: torchtitan asks for it
        self.fqn_to_index_mapping: dict[Any, int] | None = None  #: torchtitan asks for it; None: one file

    def get_hf_storage_reader(self, path: str, from_quantized: bool = False) -> HuggingFaceStorageReader:
        """What ``dcp.load`` fills ``to_hf``'s tensors with, in torchtitan's protocol.

        Raises:
            ValueError: ``from_quantized``, which torchtitan decodes on the way. ``to_hf(quantization=True,
                checkpoint=path)`` asks for the tensors as they are stored, and ``from_hf`` decodes them.
        """
        if from_quantized:
            raise ValueError(
                "from_quantized: the reader decodes nothing for this adapter; ask for the stored tensors with "
                "to_hf(state_dict, quantization=True, checkpoint=path), or load in one step with shardwright.load"
            )
        return HuggingFaceStorageReader(path)

    @cached_property
    def _catalog(self) -> Any:
        return None if self.checkpoint is None else catalog_of_checkpoint(self.checkpoint)

    @cached_property
    def _given(self) -> Any:
        """The weight map, where it does not come from the names at hand."""
        if self._catalog is not None:
            return weight_map_for(self._catalog, self.model, self.layout)
        return imported_map(None, self.model, self.layout)

    def _quantized_in(self) -> tuple[bool, Any]:
        return self.checkpoint is not None, self.checkpoint

    def _weight_map_of(self, memory: Any) -> Any:
        return self._given or memory.weight_map(model_name(self.model), self.layout)

    def _to_hf(
        self,
        state_dict: Mapping[str, Any],
        *,
        exclude_key_regex: str | None = None,
        quantization: bool = False,
        checkpoint: Any = None,
        for_checkpoint_load: bool = False,
        **kwargs: Any,
    ) -> Iterator[tuple[str, Any]]:
        catalog = None if checkpoint is None else catalog_of_checkpoint(checkpoint)
        shapes = self._catalog if catalog is None else catalog
        if catalog is None:
            weight_map = self._given or _core.weight_map_for_natives(
                list(state_dict), model_name(self.model), self.layout
            )
        else:
            weight_map = weight_map_for(catalog, self.model, self.layout)
        lora = lora_in(state_dict, self.layout)
        for name, tensor in lora_to_hf(lora, model_name(self.model), ""):
            if not (exclude_key_regex and re.match(exclude_key_regex, name)):
                yield name, tensor
        natives = []
        for fqn, value in state_dict.items():
            if fqn in lora:
                continue
            if isinstance(value, torch.Tensor) and _core.hf_names_of(weight_map, fqn):
                natives.append(Native(fqn, value, Sharding.of(fqn, value)))
            else:
                yield fqn, value
        for _, name, tensor in hf_tensors(
            natives,
            weight_map,
            catalog=catalog if quantization else None,
            shapes=shapes,
            quantization=quantization,
            exclude_key_regex=exclude_key_regex,
            for_checkpoint_load=for_checkpoint_load,
            origins=self._origins,
        ):
            yield name, tensor

    def from_hf(
        self, hf_state_dict: dict[str, Any], device_mesh: DeviceMesh | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The native state dict; whatever comes with scales is decoded to ``dtype``.

        A rank converts, and must be given, the experts that it holds: those of the tensors that ``to_hf`` made
        ``hf_state_dict`` from, else those that ``device_mesh`` (``ep``, ``ep_shard``, ``ep_replicate``) gives it.

        Raises:
            RuntimeError: weights of experts that this rank holds are missing.
            PlanError: the tensors do not fit together, or nothing has been loaded into a request.
        """
        lora = lora_in(hf_state_dict, self.layout)
        weights = {name: value for name, value in hf_state_dict.items() if name not in lora}
        natives = native_tensors(
            weights,
            dtype=self.dtype,
            weight_map_of=self._weight_map_of,
            experts=self.experts,
            device_mesh=device_mesh,
            origins=self._origins,
        )
        return natives.tensors | lora_from_hf(
            lora,
            model_name(self.model),
            experts=self.experts,
            intermediate=None,
            sense=sense_of("auto", self._paramwrapper_layout_hint),
            device_mesh=device_mesh,
        )
