"""Weight maps out of transformers' own conversion mapping.

transformers says in data how the names of a checkpoint become those of a model, and by which operations tensors are
regrouped on the way (conversion_mapping.py, core_model_loading.py). Its renaming is run over the checkpoint's names,
and its operations over tensors that record what becomes of their elements. What comes out are single rows, and then
patterns that say the same; the planner proves them as it does its own.
"""

from __future__ import annotations

import copy
import re
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from shardwright import _core
from shardwright._core import NoBox
from shardwright.imported.recorded_tensor import RecordedTensor
from shardwright.imported.transformers_model import model_without_elements, transformers_at_hand

LAYOUT = "transformers"

Shapes = dict[str, list[int]]


class Row(NamedTuple):
    """See ImportedRow in planner/models/imported_rules.h."""

    hf: str
    native: str
    axes: str = ""
    only_read: bool = False


@dataclass
class Conversion:
    """What transformers makes of the tensors of a checkpoint."""

    rows: list[Row] = field(default_factory=list)  #: of single tensors
    shapes: Shapes = field(default_factory=dict)  #: of the native tensors
    sizes: dict[str, int] = field(default_factory=dict)  #: that the axes of the rows name
    ignored: list[str] = field(default_factory=list)  #: HF names that the model leaves out knowingly
    unknown: list[str] = field(default_factory=list)  #: other HF names that have no place in the model
    problems: list[str] = field(default_factory=list)
    layers: str = ""  #: how the native names of the decoder's layers begin; "": no such layers
    after_layers: tuple[str, ...] = ()  #: how those begin that come after the last layer


#: Operations that ask for nothing but the tensors: those of alike tensors do alike, whatever the names.
_NAMELESS = {"MergeModulelist", "Concatenate", "Transpose", "Chunk"}


@dataclass
class Group:
    """Tensors of a checkpoint that one converter takes together."""

    converter: Any
    sources: dict[str, list[str]] = field(default_factory=dict)  #: names, by the pattern that they fit

    @property
    def names(self) -> list[str]:
        return [name for names in self.sources.values() for name in names]

    def like(self, shapes: Mapping[str, Sequence[int]]) -> Any:
        """Equal for groups that become tensors in one way; None: each becomes one in its own."""
        if any(type(operation).__name__ not in _NAMELESS for operation in self.converter.operations):
            return None
        of_patterns = [
            (pattern, tuple(tuple(shapes[name]) for name in names)) for pattern, names in self.sources.items()
        ]
        return id(self.converter), tuple(of_patterns)

    def filled(self, shapes: Mapping[str, Sequence[int]]) -> Any:
        """The converter with the tensors, which record what becomes of them."""
        converter = copy.deepcopy(self.converter)
        for pattern, names in self.sources.items():
            for name in names:
                recorded = RecordedTensor.of_source(name, shapes[name])
                converter.collected_tensors[pattern].append(recorded)
        return converter


def imported_weight_map(catalog: Any, model: Any = "auto") -> Any:
    """The WeightMap of layout "transformers" for a checkpoint, out of transformers' mapping for its model.

    ``model``: see :func:`model_without_elements`. ``catalog`` None stands for what transformers itself would save.

    Raises:
        ValueError: transformers is missing, or does not know the model.
        PlanError: the mapping does what no rule says, naming operation and tensor, or the checkpoint's tensors do not
            fit it; lists what does not.
    """
    transformers_model = model_without_elements(model, "" if catalog is None else catalog.config)
    if catalog is None:
        shapes = saved_shapes(transformers_model)
        names = sorted(shapes, key=str.encode)  # as a catalog orders them
        catalog = _core.catalog_of_tensors(
            [(name, "BF16", shapes[name], [0] * len(shapes[name])) for name in names]
        )
    conversion = converted(transformers_model, weight_shapes(catalog))
    model_type = transformers_model.config.model_type
    if conversion.problems:
        raise _core.PlanError(
            _core.in_lines(
                f"cannot make rules of transformers' mapping for {type(transformers_model).__name__} and these "
                "tensors; nothing has been written:",
                conversion.problems,
            )
        )
    return weight_map_of(catalog, conversion, model_type)


def weight_shapes(catalog: Any) -> Shapes:
    """The tensors of a checkpoint but the scales of its weights."""
    shapes: Shapes = {name: shape for name, _, shape in catalog.whole_tensors}
    return {
        name: shape
        for name, shape in shapes.items()
        if not (_core.is_scale_name(name) and _core.weight_name_of(name) in shapes) and "{" not in name
    }


def converted(model: Any, shapes: Mapping[str, Sequence[int]]) -> Conversion:
    """Runs the mapping for a model over tensors of these names, in transformers' own order."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    converter_of = {pattern: one for one in converters for pattern in one.source_patterns}
    in_model = model.state_dict()
    prefix = model.base_model_prefix
    result = Conversion()
    result.layers, result.after_layers = _pipeline_of(model)
    regrouped: dict[str, Group] = {}
    made_before: dict[Any, tuple[list[int], list[tuple[int, str]]]] = {}
    sources: dict[str, list[str]] = {}
    is_ignored = _pattern_of_ignored(model)
    for name in sorted(shapes, key=dot_natural_key):
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, in_model)
        if renamed not in in_model and name in in_model:
            renamed, pattern = rename_source_key(name, [], [], prefix, in_model)
        if renamed not in in_model:
            (result.ignored if is_ignored.search(renamed) else result.unknown).append(name)
            continue
        sources.setdefault(renamed, []).append(name)
        if pattern is not None:
            group = regrouped.setdefault(renamed, Group(converter_of[pattern]))
            group.sources.setdefault(pattern, []).append(name)
        elif renamed in result.shapes or renamed in regrouped:
            result.problems.append(_given_twice(renamed, sources[renamed][0], name))
        else:
            result.rows.append(Row(name, renamed))
            result.shapes[renamed] = list(shapes[name])
    for first, group in regrouped.items():
        like = group.like(shapes)
        expected = list(in_model[first].shape)
        if like in made_before and made_before[like][0] == expected and first not in result.shapes:
            result.rows += [Row(group.names[index], first, axes) for index, axes in made_before[like][1]]
            result.shapes[first] = expected
            continue
        before = len(result.rows)
        _convert(result, group.filled(shapes), first, model, in_model, sources[first])
        rows = result.rows[before:]
        if like is not None and rows and all(row.native == first for row in rows):
            numbers = {name: number for number, name in enumerate(group.names)}
            made_before[like] = (expected, [(numbers[row.hf], row.axes) for row in rows])
    _add_tied(result, model)
    for name, tensor in in_model.items():
        if name not in result.shapes and name not in shapes:
            result.rows.append(Row(name, name))  # which the checkpoint lacks, and is told so
            result.shapes[name] = list(tensor.shape)
    return result


def _given_twice(native: str, first: str, second: str) -> str:
    return f"{native}: expected one source for it, found both {first} and {second}; remove what is not meant"


def _pipeline_of(model: Any) -> tuple[str, tuple[str, ...]]:
    """How the native names of a decoder's layers begin, and those of what follows the layers."""
    names = {id(module): f"{name}." if name else "" for name, module in model.named_modules()}
    decoder: Any = model.get_decoder() if hasattr(model, "get_decoder") else None
    prefix = names.get(id(decoder))
    parts = [name for name, _ in decoder.named_children()] if prefix is not None else []
    if prefix is None or "layers" not in parts:
        return "", ()
    after = [f"{prefix}{name}." for name in parts[parts.index("layers") + 1 :]]
    head = names.get(id(model.get_output_embeddings()))
    return f"{prefix}layers.", (*after, head) if head else tuple(after)


def _pattern_of_ignored(model: Any) -> re.Pattern[str]:
    """Of names that transformers passes over without a word: see its _adjust_missing_and_unexpected_keys."""
    patterns = {*(model._keys_to_ignore_on_load_unexpected or ())}
    buffers = [name for name, _ in model.named_buffers()]
    if any(name.endswith("rotary_emb.inv_freq") for name in buffers):
        patterns.add(r"rotary_emb\.inv_freq")
    if any(name.endswith("position_ids") for name in buffers):
        patterns.add(r"(^|\.)position_ids$")
    return re.compile("|".join(f"({pattern})" for pattern in sorted(patterns)) or r"(?!)")


def _convert(
    result: Conversion, converter: Any, first: str, model: Any, in_model: Mapping[str, Any], names: list[str]
) -> None:
    """Adds what a converter makes of the tensors that it has collected."""
    try:
        made = converter.convert(first, model=model, config=model.config)
        tensors = {name: one[0] if isinstance(one, list) else one for name, one in made.items()}
        for native, tensor in tensors.items():
            _add_made(result, native, tensor, in_model, names)
    except NoBox as error:
        result.problems.append(f"{first}: {_operation_in(error)} of transformers {error}, which no rule says")
    except Exception as error:
        result.problems.append(
            f"{first}: {_operation_in(error)} of transformers refuses {', '.join(names[:3])}"
            f"{', ...' if len(names) > 3 else ''}: {type(error).__name__}: {error}"
        )


def _operation_in(error: Exception) -> str:
    """The name of the operation that an error comes from."""
    from transformers.core_model_loading import ConversionOps

    for frame, _ in traceback.walk_tb(error.__traceback__):
        operation = frame.f_locals.get("self")
        if isinstance(operation, ConversionOps):
            return type(operation).__name__
    return "the mapping"


def _add_made(
    result: Conversion, native: str, tensor: Any, in_model: Mapping[str, Any], names: list[str]
) -> None:
    shape = list(tensor.shape)
    expected = in_model.get(native)
    if not isinstance(tensor, RecordedTensor):
        raise NoBox(f"makes {native} of no tensor of the checkpoint")
    if expected is None or list(expected.shape) != shape:
        found = "none of that name" if expected is None else f"{list(expected.shape)} in the model"
        result.problems.append(
            f"{native}: expected the shape {shape} that {len(names)} HF tensors from {names[0]} to {names[-1]} make, "
            f"found {found}"
        )
        return
    if native in result.shapes:
        other = next(row.hf for row in result.rows if row.native == native)
        result.problems.append(_given_twice(native, other, names[0]))
        return
    if sum(part.elements for part in tensor.parts) != tensor.numel():
        raise NoBox(f"leaves parts of {native} empty, or fills them twice")
    result.shapes[native] = shape
    for part in tensor.parts:
        axes, sizes = part.axis_text()
        result.rows.append(Row(part.source, native, axes))
        result.sizes |= sizes


def _add_tied(result: Conversion, model: Any) -> None:
    """Tensors of the model that are others under another name: those that the checkpoint lacks are read from those
    that it has, whichever they are, as transformers does."""
    others: dict[str, list[str]] = {}
    for target, source in (model.all_tied_weights_keys or {}).items():
        others.setdefault(source, [source]).append(target)
    for names in others.values():
        there = next((name for name in names if name in result.shapes), None)
        if there is None:
            continue
        of_source = [row for row in result.rows if row.native == there]
        for name in names:
            if name in result.shapes:
                continue
            result.rows += [Row(row.hf, name, row.axes, only_read=True) for row in of_source]
            result.shapes[name] = result.shapes[there]


def weight_map_of(catalog: Any, conversion: Conversion, family: str) -> Any:
    """The rows as patterns, as far as the patterns say just what they do of the checkpoint's tensors."""
    return _core.general_map(
        catalog,
        family,
        LAYOUT,
        conversion.rows,
        conversion.shapes,
        conversion.sizes,
        conversion.ignored,
        conversion.unknown,
        conversion.layers,
        list(conversion.after_layers),
    )


def saved_shapes(model: Any) -> Shapes:
    """The names and shapes under which transformers saves a model that was made from its config."""
    from transformers.core_model_loading import revert_weight_conversion

    tied = set(model.all_tied_weights_keys or {})
    ignored = set(model._keys_to_ignore_on_save or ())
    tensors = {
        name: RecordedTensor.of_source(name, tensor.shape)
        for name, tensor in model.state_dict().items()
        if name not in tied and name not in ignored
    }
    try:
        saved = revert_weight_conversion(model, tensors)
    except Exception as error:
        raise _core.PlanError(
            f"cannot tell how transformers {transformers_at_hand().__version__} saves a {type(model).__name__}: "
            f"{_operation_in(error)}: {error}; give a checkpoint of it"
        ) from error
    return {name: list(tensor.shape) for name, tensor in saved.items()}
