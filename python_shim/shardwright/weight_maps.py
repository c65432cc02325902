"""The rules for a checkpoint and a trainer: of a table, or of transformers' own mapping."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from shardwright import _core

TRANSFORMERS = "transformers"


def weight_map_for(catalog: Any, model: Any = "auto", layout: str = "automodel") -> Any:
    """The WeightMap of a checkpoint for a native layout.

    Args:
        catalog: of the checkpoint; None where there is none, which needs a ``model`` other than "auto".
        model: a family or a model_type; "auto" for what config.json or the names say; or a config, a class or a model
            of transformers. Those stand for transformers' own mapping in layout "transformers", and for the family of
            their model_type in others.
        layout: "automodel", "transformers", "torchtitan" or "huggingface". In layout "transformers" the rules of a
            family that has no table are transformers' own mapping, if it is installed and has the model.

    Raises:
        ValueError: the family or the layout is not known; says what to pass or to install.
        PlanError: nothing says which family it is, or transformers' mapping does what no rule says.
    """
    at_hand = _core.catalog_of_tensors([]) if catalog is None else catalog
    if _is_imported(at_hand, model, layout):
        if not isinstance(model, str) or find_spec("transformers") is not None:
            from shardwright.imported.transformers_mapping import imported_weight_map

            return imported_weight_map(catalog, model)
        try:
            return _core.weight_map(at_hand, model, layout)
        except ValueError as error:
            advice = (
                "or install transformers, 5 or later, whose own mapping says the layout of any model it has"
            )
            raise type(error)(f"{error}; {advice}") from None
    return _core.weight_map(at_hand, model_name(model), layout)


def imported_map(catalog: Any, model: Any, layout: str) -> Any:
    """The WeightMap where no table has it; None where one has, or nothing says which model it is."""
    at_hand = _core.catalog_of_tensors([]) if catalog is None else catalog
    return weight_map_for(catalog, model, layout) if _is_imported(at_hand, model, layout) else None


def model_name(model: Any) -> str:
    """The model_type of a config, a class or a model of transformers; text as it is."""
    if isinstance(model, str):
        return model
    config = getattr(model, "config_class" if isinstance(model, type) else "config", model)
    named = getattr(config, "model_type", None)
    if not isinstance(named, str):
        raise ValueError(
            "model: expected a family, a model_type, or a config, a class or a model of transformers, found "
            f"{model!r}"
        )
    return named


def _is_imported(catalog: Any, model: Any, layout: str) -> bool:
    """Whether transformers' mapping is asked: it is named by its own objects, or a model_type that no table has."""
    if layout != TRANSFORMERS:
        return False
    if not isinstance(model, str):
        return True
    is_named = model != "auto" or '"model_type"' in catalog.config
    return is_named and not _core.has_table(catalog, model, layout)
