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
        model: a family or a model_type, "auto" for what config.json or the names say, or a config or a model class of
            transformers. The latter two stand for transformers' own mapping in layout "transformers", for the family
            of their model_type in others.
        layout: "automodel", "transformers", "torchtitan" or "huggingface". In layout "transformers" a family that has
            no table is transformers' own mapping, if it is installed and has the model.

    Raises:
        ValueError: the family or the layout is not known; says what to pass or to install.
        PlanError: nothing says which family it is, or transformers' mapping does what no rule says.
    """
    if layout == TRANSFORMERS and not isinstance(model, str):
        return _imported(catalog, model)
    spelled = model if isinstance(model, str) else _model_type_of(model)
    at_hand = _core.catalog_of_tensors([]) if catalog is None else catalog
    if (
        layout == TRANSFORMERS
        and not _core.has_table(at_hand, spelled, layout)
        and _may_import(at_hand, spelled)
    ):
        if find_spec("transformers") is not None:
            return _imported(catalog, spelled)
        try:
            return _core.weight_map(at_hand, spelled, layout)
        except ValueError as error:
            advice = (
                "or install transformers, 5 or later, whose own mapping says the layout of any model it has"
            )
            raise type(error)(f"{error}; {advice}") from None
    return _core.weight_map(at_hand, spelled, layout)


def export_map(template: Any, model: Any, layout: str) -> Any:
    """The WeightMap of an export where no table has it: to hand to ExportRequest. None: a table has."""
    if isinstance(model, str) and (
        layout != TRANSFORMERS
        or (template is None and model == "auto")
        or _core.has_table(_core.catalog_of_tensors([]) if template is None else template, model, layout)
    ):
        return None
    return weight_map_for(template, model, layout)


def _imported(catalog: Any, model: Any) -> Any:
    from shardwright.imported.transformers_mapping import imported_weight_map

    return imported_weight_map(catalog, model)


def _model_type_of(model: Any) -> str:
    from shardwright.imported.transformers_model import name_of

    return name_of(model)


def _may_import(catalog: Any, model: str) -> bool:
    """Whether anything says which model of transformers is meant; if not, the tables' error says what is known."""
    return bool(catalog.config) or model != "auto"
