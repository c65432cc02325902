"""State-dict adapters, whichever the model: what trainers that know such adapters ask of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.distributed.device_mesh import DeviceMesh


class StateDictAdapter:
    """Converts between the trainer's state dict and Hugging Face's; a model's adapter says how in ``_to_hf``."""

    supports_low_memory_dcp_load = False

    @property
    def checkpoint_key_aliases(self) -> dict[str, str]:
        return {}

    def iter_checkpoint_load_parts(
        self, model_state_dict: dict[str, Any], device_mesh: DeviceMesh | None = None
    ) -> Iterator[Any] | None:
        """For nemo-automodel: a quantized checkpoint in parts, of which each is read and decoded before the next.

        None, where nothing says what is quantized; the state dict is then loaded in one go.
        """
        knows, checkpoint = self._quantized_in()
        if not knows:
            return None
        from shardwright.models.load_parts import load_parts  # which needs nemo-automodel

        return load_parts(self, model_state_dict, checkpoint)

    def _quantized_in(self) -> tuple[bool, Any]:
        """Whether this adapter knows what is quantized, and the checkpoint that says it; None: its rule of names."""
        return True, None

    def map_peft_target_module_to_hf(self, name: str, *, v4_compatible: bool = False) -> str:
        return name

    def get_hf_state_dict_keys(self, state_dict: dict[str, Any]) -> list[str]:
        """The keys that ``to_hf`` gives, in its order; what it copies is let go tensor by tensor."""
        pairs = self._to_hf(state_dict, exclude_key_regex=r".*_extra_state.*", for_checkpoint_load=True)
        return [name for name, _ in pairs]

    def to_hf(
        self,
        state_dict: dict[str, Any],
        exclude_key_regex: str | None = None,
        quantization: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The state dict in HF's names and shapes, as far as this rank holds it.

        Without ``quantization``, to be saved or looked at: native tensors that are HF tensors already, themselves; of
        all others, such as experts, contiguous copies of this rank's part in the same dtype. For a model that is large,
        ``convert_single_tensor_to_hf`` holds the copies of one tensor at a time; ``shardwright.export`` none.
        An HF tensor that is made of several native ones, such as a fused ``qkv``, needs all of them in one call.

        With ``quantization`` it asks for what a checkpoint stores: block-scaled weights are FP8 tensors that lie as the
        native tensor does; each is followed by its scales, a plain tensor of global shape, all of them 1. All others
        are native tensors or views of them, or copies where none is a view. ``checkpoint`` (a directory, or a DCP
        storage reader of it) says which weights are block-scaled, and these are then empty, to be loaded into; without
        it, the documented rule of names says so, and these are casts. ``from_hf`` decodes what has been loaded into the
        native tensors given here. Empty tensors that nothing has been loaded into are refused; casts come back as
        tensors of their own.

        Args:
            exclude_key_regex: HF keys that match it from their start are left out, with their scales.
            for_checkpoint_load: the result is only written into: views in place of copies, and see
                ``view_loaded_native_keys``.
        """
        pairs = self._to_hf(
            state_dict, exclude_key_regex=exclude_key_regex, quantization=quantization, **kwargs
        )
        return dict(pairs)

    def convert_single_tensor_to_hf(self, fqn: str, tensor: Any, **kwargs: Any) -> list[tuple[str, Any]]:
        """``to_hf`` of one tensor, as (HF key, tensor) pairs."""
        return list(self._to_hf({fqn: tensor}, **kwargs))

    def _to_hf(self, state_dict: Mapping[str, Any], **options: Any) -> Iterator[tuple[str, Any]]:
        """``to_hf`` in pairs, as they are made."""
        raise NotImplementedError
