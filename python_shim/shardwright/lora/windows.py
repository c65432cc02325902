"""Which part of a trainer's LoRA tensor is which part of an adapter file's.

A LoRA pair A, B adds ``scaling · B A`` to a weight, and its place follows from the weight's own in the table of
planner/models. The trainer (nemo-automodel) holds ``<module>.lora_A.weight`` [r, in] and ``lora_B.weight`` [out, r],
and for stacked experts ``lora_gate_and_up_A`` [experts, in, r], ``lora_gate_and_up_B`` [experts, r, out],
``lora_down_A`` and ``lora_down_B``. An adapter file (peft) is for a model in some layout: what is a module there has a
pair [r, in] and [out, r]; a stack of experts that is one parameter there has a "ParamWrapper", see
:func:`_wrapper_windows`.

Where one side joins several matrices (gate and up) and the other does not, either all pairs have one A, which the
joined pair has once ("shared"), or the joined pair has the sum of the ranks: A one below the other, B block-diagonal
("spread", as peft joins them too).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from shardwright import _core
from shardwright.sharding import Sharding

#: What peft puts before the names of the model's modules.
PEFT_PREFIX = "base_model.model."

#: Of the models that adapters are for.
LAYOUTS = ("transformers", "huggingface", "automodel")

_STACKED = re.compile(r"(.*\.)lora_([a-z_]+)_([AB])")
_SINGLE = re.compile(r"(.*)\.lora_([AB])\.weight")


@dataclass(frozen=True)
class Family:
    """A model family, and how HF's names of its text part begin."""

    name: str
    text_prefix: str  #: which a text-only checkpoint leaves out; "": nothing is left out

    @property
    def texts(self) -> tuple[str, ...]:
        """As the released checkpoint begins; as a text-only one does; as one does that lacks "model." too."""
        return (f"{self.text_prefix}model.", "model.", "") if self.text_prefix else ("model.",)

    @cached_property
    def names(self) -> Any:
        """The table between the trainer's names and those of the released checkpoint."""
        return _core.weight_map_for_names([self.texts[0]], self.name)


def families(model: str = "auto") -> tuple[Family, ...]:
    """The families that a model may be of: all, or the one that is named.

    Raises:
        ValueError: there is none of that name, or none whose adapters are known.
    """
    known = tuple(Family(name, prefix) for name, prefix in _core.families_with_lora())
    if model == "auto":
        return known
    name = _core.family_named(model)
    found = tuple(family for family in known if family.name == name)
    if not found:
        raise ValueError(
            f"LoRA adapters of {name} cannot be loaded or saved: its modules are not those of a file one by one. "
            f"Known: {', '.join(family.name for family in known)}"
        )
    return found


def weight_of(key: str) -> tuple[str, str, str] | None:
    """(prefix, FQN of the weight, "A" or "B") of a trainer's LoRA tensor; None for any other name."""
    prefix = PEFT_PREFIX if key.startswith(PEFT_PREFIX) else ""
    name = key.removeprefix(prefix)
    if name.startswith(("layers.", "mtp.")):  # a text model's own names, or an MTP beside the model
        name = "model." + name
    if found := _STACKED.fullmatch(name):
        return prefix, f"{found[1]}{found[2]}_projs", found[3]
    if found := _SINGLE.fullmatch(name):
        return prefix, f"{found[1]}.weight", found[2]
    return None


@dataclass(frozen=True)
class Pair:
    """The A and B of one weight of the trainer: their keys in its state dict and global shapes."""

    weight: str
    keys: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of_one(cls, weight: str, letter: str, key: str, shape: tuple[int, ...]) -> Pair:
        """For looking at one of the two: the other is as small as can be, and has no key."""
        other: tuple[int, ...]
        if weight.endswith(".weight"):
            other = (shape[-1], 1) if letter == "B" else (1, shape[0])
        else:
            other = (shape[0], 1, shape[1]) if letter == "B" else (shape[0], shape[-1], 2)
        letters = {letter: shape, "AB".replace(letter, ""): other}
        return cls(weight, {"A": "", "B": "", letter: key}, letters)

    @cached_property
    def stacked(self) -> bool:
        return not self.weight.endswith(".weight")

    @property
    def experts(self) -> int:
        return self.shapes["A"][0] if self.stacked else 1

    @property
    def rank(self) -> int:
        return self.shapes["A"][2 if self.stacked else 0]

    @property
    def inputs(self) -> int:
        return self.shapes["A"][1]

    @property
    def outputs(self) -> int:
        return self.shapes["B"][2 if self.stacked else 0]

    def fault(self) -> str:
        """What is wrong with the shapes; empty if nothing is."""
        dimensions = 3 if self.stacked else 2
        a, b = self.shapes["A"], self.shapes["B"]
        if len(a) == len(b) == dimensions:
            expected = (a[0], a[2], b[2]) if self.stacked else (b[0], a[0])
            if b == expected and self.rank > 0:
                return ""
        what = "A [experts, in, r] and B [experts, r, out]" if self.stacked else "A [r, in] and B [out, r]"
        return f"{self.keys['A']} and {self.keys['B']}: expected {what}, found {list(a)} and {list(b)}"

    def box(
        self, letter: str, expert: int, ranks: tuple[int, int], features: tuple[int, int]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(offset, size) of some ranks and some features (inputs of A, outputs of B), as (first, number) each."""
        rank_first = (letter == "A") != self.stacked
        order = (ranks, features) if rank_first else (features, ranks)
        stack = ((expert, 1),) if self.stacked else ()
        first, number = zip(*stack, *order, strict=True)
        return first, number

    @cached_property
    def matrix_axes(self) -> tuple[int, int]:
        """Dimension i of one matrix in a file, [r, in] or [out, r], runs along dimension axes[i] here."""
        return (2, 1) if self.stacked else (0, 1)


@dataclass(frozen=True)
class Window:
    """A box of a trainer's LoRA tensor, and the box of a file's tensor that is the same numbers."""

    key: str  #: in the trainer's state dict
    native_offset: tuple[int, ...]
    native_size: tuple[int, ...]
    name: str  #: in the file
    shape: tuple[int, ...]  #: of all of the file's tensor, as stored
    seen: tuple[int, ...]  #: the same elements in a shape that tells experts and ranks apart
    offset: tuple[int, ...]  #: of the box, in ``seen``
    axes: tuple[int, ...]  #: dimension i of ``seen`` runs along the trainer's dimension axes[i]
    repeats: bool = False  #: another window has these numbers already: to be written, and equal when read

    def parts(self, sharding: Sharding, local: torch.Tensor) -> Iterator[tuple[list[int], torch.Tensor]]:
        """(offset in ``seen``, view of the local tensor in the file's order) of all that this rank holds of it."""
        for box in sharding.boxes:
            view, shift = local, []
            for d, (first, number) in enumerate(zip(self.native_offset, self.native_size, strict=True)):
                begin = max(first, box.offset[d])
                count = min(first + number, box.offset[d] + box.size[d]) - begin
                if count <= 0:
                    break
                view = view.narrow(d, box.local_offset[d] + begin - box.offset[d], count)
                shift.append(begin - first)
            else:
                order = [d for d in range(view.dim()) if d not in self.axes] + list(self.axes)
                view = view.permute(order)
                for _ in range(view.dim() - len(self.axes)):
                    view = view.select(0, 0)
                yield [at + shift[d] for at, d in zip(self.offset, self.axes, strict=True)], view

    def view(self, sharding: Sharding, local: torch.Tensor, index_of: Mapping[int, int]) -> torch.Tensor:
        """What this rank holds of it, in the file's order, in one piece: of experts whole or sharded inside.

        ``index_of`` has the local index of each expert that the rank holds.
        """
        for d in range(local.dim() - 1, -1, -1):
            if d not in self.axes:
                local = local.select(d, index_of[self.native_offset[d]])
            elif self.native_size[d] != sharding.shape[d]:
                local = local.narrow(d, self.native_offset[d], self.native_size[d])
        dropped = len(self.native_size) - len(self.axes)
        return local.permute([d - dropped for d in self.axes])


@dataclass(frozen=True)
class Spelling:
    """How an adapter file names modules: for a model in ``layout``, HF's names of whose text part begin with ``text``.

    Layout "automodel" is what nemo-automodel writes: HF's names, but experts are ``mlp.experts.E.gate_proj``.
    """

    family: Family
    layout: str
    text: str
    prefix: str = PEFT_PREFIX  #: before the names of the model's modules

    @cached_property
    def weight_map(self) -> Any:
        layout = "transformers" if self.layout == "transformers" else "automodel"
        return _core.weight_map_for_names([self.text or "layers."], self.family.name, layout)

    def module(self, name: str) -> str:
        return self.prefix + name.removesuffix(".weight")

    def place_of(self, pair: Pair) -> Place | None:
        """Where the model of the file has that weight; None if it has none."""
        weight = self.weight_of(pair)
        parts = len(projection_names(weight.rpartition(".")[2])) if pair.stacked else 1
        if self.layout != "transformers":
            hf_names = _core.hf_names_of(self.weight_map, weight)
            if not hf_names:
                return None
            is_parameter = pair.stacked and hf_names == _core.hf_names_of(self.weight_map, weight, 1)
            if is_parameter and self.layout == "huggingface":
                return Place(self, pair, parameter=hf_names[0], parts=parts)
            return Place(self, pair, parts=parts if pair.stacked else len(hf_names))
        released = self.family.texts[0]
        hf_names = [
            self.text + name.removeprefix(released) if name.startswith(released) else name
            for name in _core.hf_names_of(self.family.names, weight)
        ]
        found = _core.native_place(self.weight_map, hf_names[0]) if hf_names else None
        if found is None:
            return None
        fqn, _, part = found
        if pair.stacked:
            return Place(self, pair, parameter=fqn, parts=parts)
        return Place(
            self, pair, module=self.module(fqn), part=part, of=len(_core.hf_names_of(self.weight_map, fqn))
        )

    def weight_of(self, pair: Pair) -> str:
        """The weight by the name that the family's table has for it."""
        beside = pair.weight.removeprefix("model.")
        has_mtp_beside = beside.startswith("mtp.") and bool(_core.hf_names_of(self.family.names, beside))
        return beside if has_mtp_beside and self.family.text_prefix == "" else pair.weight


@dataclass(frozen=True)
class Place:
    """Where the model that a file is for has the weight of a pair."""

    spelling: Spelling
    pair: Pair
    parameter: str = ""  #: the parameter that all experts are, if they are one there
    module: str = ""  #: the module, if it is one of its own or part of one
    part: int = 0  #: which part of that module, of how many
    of: int = 1
    parts: int = 1  #: how many modules of the file this weight of the trainer joins

    @property
    def stack(self) -> str:
        """The module that holds the parameter."""
        return self.spelling.prefix + self.parameter.rpartition(".")[0]

    def modules(self, expert: int) -> list[str]:
        """The modules that the weight, or this expert of it, consists of."""
        if self.module:
            return [self.module]
        weight = self.spelling.weight_of(self.pair)
        if self.spelling.layout == "automodel" and self.pair.stacked:
            path, _, projections = weight.removeprefix("model.").rpartition(".")
            stack = self.spelling.module(self.spelling.text + path)
            return [f"{stack}.{expert}.{name}" for name in projection_names(projections)]
        return [
            self.spelling.module(name) for name in _core.hf_names_of(self.spelling.weight_map, weight, expert)
        ]

    def windows(
        self, experts: Iterable[int], *, spread: bool, wrapper: str = "", legacy: bool = False
    ) -> Iterator[Window]:
        """All of these experts. ``wrapper`` is the name of the ParamWrapper, if it is one."""
        if self.parameter:
            return _wrapper_windows(self.pair, wrapper, legacy)
        if self.of > 1:
            return _windows_of_part(self, spread)
        return _windows_of_modules(self, experts, spread)

    def file_rank(self, spread: bool) -> int:
        """The rank of the file's pairs."""
        if not spread:
            return self.pair.rank
        return self.pair.rank * self.of // self.parts


def projection_names(stack: str) -> list[str]:
    """["gate_proj", "up_proj"] for "gate_and_up_projs": what the parts of a stack are called one by one."""
    return [name + "_proj" for name in stack.removesuffix("_projs").split("_and_")]


def _windows_of_modules(place: Place, experts: Iterable[int], spread: bool) -> Iterator[Window]:
    """The trainer's weight is one module of the file, or joins several, for each expert."""
    pair, parts, rank = place.pair, place.parts, place.file_rank(spread)
    outputs = pair.outputs // parts
    for expert in experts if pair.stacked else (0,):
        for part, module in enumerate(place.modules(expert)):
            ranks = (part * rank if spread else 0, rank)
            boxes = {
                "A": (pair.box("A", expert, ranks, (0, pair.inputs)), (rank, pair.inputs)),
                "B": (pair.box("B", expert, ranks, (part * outputs, outputs)), (outputs, rank)),
            }
            for letter, ((offset, size), shape) in boxes.items():
                repeats = letter == "A" and part > 0 and not spread
                name = f"{module}.lora_{letter}.weight"
                yield Window(
                    pair.keys[letter], offset, size, name, shape, shape, (0, 0), pair.matrix_axes, repeats
                )


def _windows_of_part(place: Place, spread: bool) -> Iterator[Window]:
    """The trainer's weight is some rows of a module of the file."""
    pair, part, rank = place.pair, place.part, place.file_rank(spread)
    first_rank = part * pair.rank if spread else 0
    boxes = {
        "A": ((first_rank, 0), (rank, pair.inputs)),
        "B": ((part * pair.outputs, first_rank), (place.of * pair.outputs, rank)),
    }
    for letter, (offset, shape) in boxes.items():
        name = f"{place.module}.lora_{letter}.weight"
        yield Window(pair.keys[letter], (0, 0), pair.shapes[letter], name, shape, shape, offset, (0, 1))


def _wrapper_windows(pair: Pair, wrapper: str, legacy: bool) -> Iterator[Window]:
    """peft's ParamWrapper for a parameter [experts, out, in]: lora_A.weight is [experts · r, in], an expert's ranks
    together, and lora_B.weight [out, r · experts], a rank's experts together (peft/tuners/lora/layer.py, since 0.19.1).
    Before, peft took such a parameter for [experts, in, out], so that A and B change places."""
    e, r, i, o = pair.experts, pair.rank, pair.inputs, pair.outputs
    first, second = ("B", "A") if legacy else ("A", "B")
    inner, outer = (o, i) if legacy else (i, o)
    seen = {first: (e, r, inner), second: (outer, r, e)}
    # The trainer's A is [e, in, r], its B [e, r, out].
    axes = {first: (0, 1, 2), second: (1, 2, 0)} if legacy else {first: (0, 2, 1), second: (2, 1, 0)}
    shape = {first: (e * r, inner), second: (outer, r * e)}
    for letter, in_file in ((first, "A"), (second, "B")):
        yield Window(
            pair.keys[letter],
            (0, 0, 0),
            pair.shapes[letter],
            f"{wrapper}.lora_{in_file}.weight",
            shape[letter],
            seen[letter],
            (0, 0, 0),
            axes[letter],
        )
