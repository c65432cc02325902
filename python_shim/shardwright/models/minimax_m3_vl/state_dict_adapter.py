"""Converts the state dicts of MiniMax M3, text and VL, between Hugging Face's names and shapes and the trainer's.

The three-step way of loading::

    hf = adapter.to_hf(model_state, quantization=True, checkpoint=path)  # what to ask for; nothing is cast
    dcp.load(hf, storage_reader=sw.HuggingFaceStorageReader(path))       # or torch's reader
    native = adapter.from_hf(hf, device_mesh=expert_mesh)                # decoded into model_state's own memory

Names and shapes are those of the one table in planner/models, decoding is that of ``shardwright.load``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from shardwright import _core
from shardwright.adapters.hf_to_native import native_tensors
from shardwright.adapters.lora_state_dict import lora_from_hf, lora_in, lora_to_hf, sense_of
from shardwright.adapters.native_to_hf import Native, Origins, catalog_of_checkpoint, hf_tensors
from shardwright.models.minimax_m3_vl.mxfp8 import (
    _MXFP8_QUANT_KEY_RE,
    _MXFP8_SCALE_INV_IDENTITY,
    FAMILY,
    MXFP8_BLOCK_SIZE,
    _dequantize_mxfp8_local,
    _should_quantize_mxfp8_key,
    _slice_mxfp8_scale_for_dtensor,
    create_mxfp8_scale_inv,
    dequantize_mxfp8,
)
from shardwright.models.state_dict_adapter import StateDictAdapter
from shardwright.sharding import Sharding, local_part

__all__ = [
    "MXFP8_BLOCK_SIZE",
    "_MXFP8_QUANT_KEY_RE",
    "_MXFP8_SCALE_INV_IDENTITY",
    "MiniMaxM3StateDictAdapter",
    "MiniMaxM3VLStateDictAdapter",
    "_dequantize_mxfp8_local",
    "_should_quantize_mxfp8_key",
    "_slice_mxfp8_scale_for_dtensor",
    "create_mxfp8_scale_inv",
    "dequantize_mxfp8",
]


class MiniMaxM3StateDictAdapter(StateDictAdapter):
    """The text model. HF names may begin with ``model.`` or not; native names then begin alike.

    Args:
        config: with ``num_mtp_modules`` (0 or missing: the model has no MTP) and, where ``moe_config`` is None,
            ``num_local_experts``.
        moe_config: with ``n_routed_experts``.
        backend: not used; kept as an attribute.
        dtype: of decoded weights and of grouped experts.
        layout: the trainer's names and shapes, as for :class:`shardwright.LoadPlanner`.
    """

    def __init__(
        self,
        config: Any,
        moe_config: Any,
        backend: Any = None,
        dtype: torch.dtype = torch.bfloat16,
        *,
        layout: str = "automodel",
    ) -> None:
        self.config = config
        self.moe_config = moe_config
        self.backend = backend
        self.dtype = dtype
        self.layout = layout
        self._uses_model_prefix = True
        self._view_loaded_native_keys: set[str] = set()
        self._origins = Origins()
        self._uneven = Origins()  # DTensors whose experts are not those that torch.chunk deals out

    @property
    def _expert_path_segment(self) -> str:
        return "mlp.experts"

    @property
    def _mtp_enabled(self) -> bool:
        return int(_setting(self.config, "num_mtp_modules") or 0) > 0

    @property
    def view_loaded_native_keys(self) -> set[str]:
        """Native tensors that the last ``from_hf`` found loaded already, through the views that
        ``to_hf(for_checkpoint_load=True)`` gave of them, and therefore left out of its result."""
        return self._view_loaded_native_keys

    @property
    def _experts(self) -> int:
        """How many experts a layer has over all ranks; -1: the configs do not say."""
        for config, name in (
            (self.moe_config, "n_routed_experts"),
            (self.config, "num_local_experts"),
            (self.config, "n_routed_experts"),
        ):
            count = _setting(config, name)
            if count is not None:
                return int(count)
        return -1

    #: What a trainer that knows it from elsewhere says about the sense of ParamWrappers: "peft-0.19.1" or "peft-0.18".
    _paramwrapper_layout_hint: str | None = None

    @property
    def _expert_width(self) -> int | None:
        """How wide an expert is inside; None: the configs do not say."""
        width = _setting(self.moe_config, "moe_inter_dim")
        return int(width) if width is not None else None

    # --- to HF -----------------------------------------------------------------------------------------------

    def _mtp_tensor_to_hf(self, fqn: str, tensor: Any, **kwargs: Any) -> list[tuple[str, Any]]:
        return self.convert_single_tensor_to_hf(fqn, tensor, **kwargs)

    def _to_hf(
        self,
        state_dict: Mapping[str, Any],
        *,
        exclude_key_regex: str | None = None,
        quantization: bool = False,
        checkpoint: Any = None,
        for_checkpoint_load: bool = False,
        hf_prefix: str = "",
        **kwargs: Any,
    ) -> Iterator[tuple[str, Any]]:
        catalog = None if checkpoint is None else catalog_of_checkpoint(checkpoint)
        lora = lora_in(state_dict, self.layout)
        for is_bare in (False, True):
            of_them = {key: value for key, value in lora.items() if self._is_bare(key) == is_bare}
            for name, tensor in lora_to_hf(of_them, FAMILY, "" if is_bare else hf_prefix + "model."):
                if not (exclude_key_regex and re.match(exclude_key_regex, name)):
                    yield name, tensor
        state_dict = {key: value for key, value in state_dict.items() if key not in lora}
        maps = {False: self._map_for(catalog, [hf_prefix + "model."])}
        if any(self._is_bare(key) for key in state_dict):
            maps[True] = self._map_for(catalog, ["layers."])
        for is_bare, weight_map in maps.items():
            natives = []
            for key, value in state_dict.items():
                if self._is_bare(key) != is_bare:
                    continue
                fqn = "model." + key if is_bare else key
                names = _core.hf_names_of(weight_map, fqn)
                if names and isinstance(value, torch.Tensor):
                    natives.append(Native(fqn, value, self._sharding_of(fqn, value)))
                else:
                    name = names[0] if names else self._hf_prefix(hf_prefix) + key
                    if not (exclude_key_regex and re.match(exclude_key_regex, name)):
                        yield name, value
            for _, name, tensor in hf_tensors(
                natives,
                weight_map,
                catalog=catalog if quantization else None,
                quantization=quantization,
                exclude_key_regex=exclude_key_regex,
                for_checkpoint_load=for_checkpoint_load,
                origins=self._origins,
            ):
                yield name, tensor

    def _map_for(self, catalog: Any, hf_names: list[str]) -> Any:
        if catalog is not None:
            return _core.weight_map(catalog, FAMILY, self.layout)
        return _core.weight_map_for_names(hf_names, FAMILY, self.layout)

    def _is_bare(self, key: str) -> bool:
        """True for a native name of the text part without ``model.`` before it."""
        return self.layout == "automodel" and key.startswith(("layers.", "mtp.", "embed_tokens.", "norm."))

    def _hf_prefix(self, hf_prefix: str) -> str:
        """What stands before a native name that no rule knows, to make an HF name of it."""
        return hf_prefix if self.layout == "automodel" else ""

    def _sharding_of(self, fqn: str, tensor: torch.Tensor) -> Sharding:
        """How a native tensor lies, its experts as its local part says."""
        sharding = Sharding.of(fqn, tensor)
        if "." + self._expert_path_segment + "." not in fqn or not sharding.shape or "lora_" in fqn:
            return sharding
        if self._experts >= 0 and sharding.shape[0] != self._experts:
            raise ValueError(
                f"{fqn}: expected the config's {self._experts} experts on dimension 0, found shape {sharding.shape}"
            )
        return _with_experts(fqn, sharding, tensor, self._uneven.get(tensor))

    # --- from HF ---------------------------------------------------------------------------------------------

    def from_hf(
        self, hf_state_dict: dict[str, Any], device_mesh: DeviceMesh | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The native state dict; whatever comes with scales is decoded to ``dtype``.

        A rank converts, and must be given, the experts that it holds: those of the tensors that ``to_hf`` made
        ``hf_state_dict`` from; else those that ``device_mesh`` (``ep``, ``ep_shard``, ``ep_replicate``) gives it, the
        first ``experts mod ranks`` ranks holding one more; all of them without a mesh. HF tensors are removed from
        ``hf_state_dict`` once they have been decoded.

        Memory beyond ``hf_state_dict``: none where it is a request of ``to_hf`` (``quantization`` or
        ``for_checkpoint_load``) for tensors of ``dtype``, which are filled in place; otherwise the decoded tensors, 256
        MiB of them at a time while their HF tensors go. CUDA tensors pass through buffers in CPU memory of at most that
        size or one tensor's.

        Raises:
            RuntimeError: weights of experts that this rank holds are missing.
            PlanError: the tensors do not fit together.
        """
        self._uses_model_prefix = any(key.startswith("model.") for key in hf_state_dict)
        return self._from_hf(hf_state_dict, device_mesh, consume=True, mtp=self._mtp_enabled, **kwargs)

    def _mtp_from_hf(self, mtp_keys: dict[str, Any], device_mesh: DeviceMesh | None = None) -> dict[str, Any]:
        """The native MTP tensors of HF's, whether or not the model has MTP."""
        return self._from_hf(mtp_keys, device_mesh, consume=False, mtp=True)

    def _from_hf(
        self,
        hf_state_dict: dict[str, Any],
        device_mesh: DeviceMesh | None,
        *,
        consume: bool,
        mtp: bool,
        param_wrapper: str = "auto",
        **kwargs: Any,
    ) -> dict[str, Any]:
        has_prefix = self.layout != "automodel" or any(
            key.startswith(("model.", "language_model.")) for key in hf_state_dict
        )
        weights, lora = hf_state_dict, lora_in(hf_state_dict, self.layout)
        if lora:
            weights = {name: value for name, value in hf_state_dict.items() if name not in lora}
            lora = {name: value for name, value in lora.items() if mtp or ".mtp." not in name}
        natives = native_tensors(
            weights,
            dtype=self.dtype,
            weight_map_of=lambda memory: memory.weight_map(FAMILY, self.layout),
            experts=self._experts,
            device_mesh=device_mesh,
            origins=self._origins,
            wanted=lambda fqn: mtp or ".mtp." not in "." + fqn,
            consume=consume,
        )
        for fqn, experts in natives.uneven.items():
            if fqn in natives.tensors:
                self._uneven[natives.tensors[fqn]] = experts
        self._view_loaded_native_keys = {_spelled(fqn, has_prefix) for fqn in natives.loaded_through_views}
        tensors = natives.tensors | lora_from_hf(
            lora,
            FAMILY,
            experts=self._experts,
            intermediate=self._expert_width,
            sense=sense_of(param_wrapper, self._paramwrapper_layout_hint),
            device_mesh=device_mesh,
        )
        return {_spelled(fqn, has_prefix): tensor for fqn, tensor in tensors.items()}

    def _dequantize(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Decodes, in the dict given, all that has scales; the scales go."""
        natives = native_tensors(
            state_dict, dtype=self.dtype, weight_map_of=lambda memory: _core.unchanged_names(), consume=True
        )
        state_dict.update(natives.tensors)
        return state_dict

    # --- names -----------------------------------------------------------------------------------------------

    def _hf_key_to_native(self, key: str) -> str:
        """The native name of an HF key, any prefix kept. Single experts are named as if they were modules of their own:
        ``mlp.experts.E.gate_proj.weight``; scales after their weights."""
        weight = _core.weight_name_of(key)
        prefix, rest = _split_at_layers(weight)
        place = _core.native_place(_plain_names(), _HF_TEXT + rest) if rest else None
        if place is None:
            return key
        fqn, expert, part = place
        native: str = fqn.removeprefix(_NATIVE_TEXT)
        if expert >= 0:
            stack, _, projections = native.rpartition(".")
            native = f"{stack}.{expert}.{_core.projection_names(projections)[part]}.weight"
        return prefix + native + key.removeprefix(weight)

    def _native_key_to_hf(self, key: str) -> str:
        """The inverse of ``_hf_key_to_native``; a stack of experts, which has no HF name, keeps its own."""
        weight = _core.weight_name_of(key)
        prefix, rest = _split_at_layers(weight)
        names: list[str] = []
        single = re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)\.weight", rest)
        if single:
            stack, expert, projection = single.groups()
            for projections in ("gate_and_up_projs", "down_projs"):
                if projection in _core.projection_names(projections):
                    all_names = _core.hf_names_of(
                        _plain_names(), f"{_NATIVE_TEXT}{stack}.{projections}", int(expert)
                    )
                    names = [all_names[_core.projection_names(projections).index(projection)]]
        elif rest and not rest.endswith("_projs"):
            names = _core.hf_names_of(_plain_names(), _NATIVE_TEXT + rest)
        return prefix + names[0].removeprefix(_HF_TEXT) + key.removeprefix(weight) if names else key


class MiniMaxM3VLStateDictAdapter(StateDictAdapter):
    """The whole model: text under ``language_model.`` in HF's names, vision, projector and patch merger beside it.

    ``config`` has the text model's config as ``text_config``; the other arguments are those of
    :class:`MiniMaxM3StateDictAdapter`, which ``text_adapter`` is.
    """

    def __init__(
        self,
        config: Any,
        moe_config: Any,
        backend: Any = None,
        dtype: torch.dtype = torch.bfloat16,
        *,
        layout: str = "automodel",
    ) -> None:
        self.config = config
        text_config = _setting(config, "text_config")
        self.text_adapter = MiniMaxM3StateDictAdapter(
            config if text_config is None else text_config, moe_config, backend, dtype, layout=layout
        )

    @property
    def view_loaded_native_keys(self) -> set[str]:
        """See :attr:`MiniMaxM3StateDictAdapter.view_loaded_native_keys`."""
        return set(self.text_adapter.view_loaded_native_keys)

    @property
    def _paramwrapper_layout_hint(self) -> str | None:
        return self.text_adapter._paramwrapper_layout_hint

    @_paramwrapper_layout_hint.setter
    def _paramwrapper_layout_hint(self, hint: str | None) -> None:
        self.text_adapter._paramwrapper_layout_hint = hint

    @staticmethod
    def _map_non_text_from_hf(key: str) -> str | None:
        """The native name of an HF key outside the text part; None for one that the model does not use."""
        if ".mtp." in "." + key or _core.is_ignored(_plain_names(), key):
            return None
        place = _core.native_place(_plain_names(), key)
        return place[0] + key.removeprefix(_core.weight_name_of(key)) if place else key

    @staticmethod
    def _map_non_text_to_hf(key: str) -> str:
        """The HF name of a native key outside the text part."""
        names = _core.hf_names_of(_plain_names(), key) if key.startswith("vision_tower.") else []
        return names[0] if names else key

    def _to_hf(self, state_dict: Mapping[str, Any], **options: Any) -> Iterator[tuple[str, Any]]:
        return self.text_adapter._to_hf(state_dict, hf_prefix="language_model.", **options)

    def from_hf(
        self, hf_state_dict: dict[str, Any], device_mesh: DeviceMesh | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """See :meth:`MiniMaxM3StateDictAdapter.from_hf`; ``hf_state_dict`` is left as it is."""
        text = self.text_adapter
        return text._from_hf(hf_state_dict, device_mesh, consume=False, mtp=text._mtp_enabled, **kwargs)


#: How the text part's names begin in the table, on either side.
_HF_TEXT = "language_model.model."
_NATIVE_TEXT = "model."


def _plain_names() -> Any:
    """The table in the spelling of the released VL checkpoint."""
    return _core.weight_map_for_names([_HF_TEXT], FAMILY)


def _setting(config: Any, name: str) -> Any:
    """A value of a config, be it an object or a dict; None if it is not there."""
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def _spelled(fqn: str, has_prefix: bool) -> str:
    return fqn if has_prefix else fqn.removeprefix(_NATIVE_TEXT)


def _split_at_layers(key: str) -> tuple[str, str]:
    """The prefix, and the rest from ``layers.`` or ``mtp.layers.`` on; an empty rest if there is none."""
    found = re.search(r"(?:^|(?<=\.))(?:mtp\.)?layers\.\d+\.", key)
    return (key[: found.start()], key[found.start() :]) if found else (key, "")


def _with_experts(fqn: str, sharding: Sharding, tensor: torch.Tensor, experts: range | None) -> Sharding:
    """The sharding of a stack, checked against what its local part holds of dimension 0."""
    if sharding.mesh is None or experts is not None:
        return Sharding(sharding.shape, sharding.mesh, sharding.placements, experts)
    found = local_part(tensor).shape[0]
    if found != sharding.local_shape[0]:
        raise ValueError(
            f"{fqn}: expected {sharding.local_shape[0]} of {sharding.shape[0]} experts on this rank, as its placements "
            f"{sharding.placements} deal them out, found {found}"
        )
    return sharding
