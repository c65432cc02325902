"""Where an adapter has each LoRA pair of a trainer, and what of it does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from shardwright import _core
from shardwright.lora.config import LoraConfig
from shardwright.lora.windows import LAYOUTS, PEFT_PREFIX, Family, Pair, Place, Spelling, Window
from shardwright.sharding import Sharding

#: What may be said of the sense of ParamWrappers.
SENSES = ("auto", "modern", "legacy")


def check_sense(param_wrapper: str) -> None:
    if param_wrapper not in SENSES:
        raise ValueError(f"param_wrapper: expected one of {', '.join(SENSES)}, found {param_wrapper!r}")


class Adapter(Protocol):
    """A file, or tensors in memory."""

    @property
    def path(self) -> Path | str:
        """As the head of a message calls it; its lines call it ``where``."""

    @property
    def where(self) -> str: ...
    @property
    def config(self) -> LoraConfig: ...
    @property
    def tensors(self) -> Mapping[str, Any]: ...

    def shape(self, name: str) -> list[int] | None:
        """The whole tensor's; None if there is no such tensor."""

    def raw(self, name: str) -> torch.Tensor:
        """Its values as they are stored."""


@dataclass
class Reading:
    """Finds the place of each pair in an adapter file, and all that does not fit."""

    file: Adapter
    shardings: dict[str, Sharding]
    families: tuple[Family, ...]  #: that the model may be of
    windows: list[Window] = field(default_factory=list)
    spread: list[Pair] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    layout: str = ""
    sense: str | None = None
    _places: list[Place] = field(default_factory=list)
    prefixes: tuple[str, ...] = (PEFT_PREFIX,)  #: what may stand before the names of the model's modules

    def __post_init__(self) -> None:
        self._spellings = [
            Spelling(family, layout, text, prefix)
            for prefix in self.prefixes
            for family in self.families
            for layout in LAYOUTS
            for text in family.texts
        ]

    def plan(self, pairs: list[Pair], sense: str, strict: bool) -> None:
        places = [self._place_of(pair) for pair in pairs]
        self.layout = next((place.spelling.layout for place in places if place), "")
        wrappers = {
            place.pair.weight: self._wrapper_of(place) for place in places if place and place.parameter
        }
        legacy = self._is_legacy([p for p in places if p and wrappers.get(p.pair.weight)], wrappers, sense)
        for pair, place in zip(pairs, places, strict=True):
            if place is None:
                keys = " and ".join(pair.keys.values())
                self.problems.append(
                    f"{keys}: {self.file.where} holds nothing for them; found {self._some_names()}"
                )
            elif place.parameter and not wrappers[pair.weight]:
                self.problems.append(
                    f"{pair.keys['A']}: expected a ParamWrapper of {place.parameter} in {self.file.where}, found "
                    f"{self._some_names(place.stack)}"
                )
            elif not place.parameter or legacy is not None:
                self._add(place, wrappers.get(pair.weight, ""), bool(legacy))
        if strict:
            self._note_the_rest([place for place in places if place])

    def scaling(self) -> dict[str, float]:
        found = {}
        for place in self._places:
            module = place.parameter or place.modules(0)[0].removeprefix(place.spelling.prefix)
            rank = place.file_rank(place.pair in self.spread)
            found[place.pair.weight] = self.file.config.scaling_of(module, rank)
        return found

    def refuse_if(self, problems: list[str]) -> None:
        if problems:
            raise _core.PlanError(
                f"the adapter {self.file.path} and the trainer's tensors do not fit; nothing has been written:\n  "
                + "\n  ".join(problems)
            )

    # --- where ---------------------------------------------------------------------------------------------------

    def _place_of(self, pair: Pair) -> Place | None:
        """The place in the spelling that the file has some of the pair's tensors in."""
        for spelling in self._spellings:
            place = spelling.place_of(pair)
            if place is not None and any(name in self.file.tensors for name in self._names(place)):
                self._spellings.remove(spelling)
                self._spellings.insert(0, spelling)  # most likely that of the next one, too
                return place
        return None

    def _names(self, place: Place) -> list[str]:
        if place.parameter:
            stems = [place.stack, place.stack + ".base_layer"]
        else:
            stems = [module for expert in range(place.pair.experts) for module in place.modules(expert)]
        return [f"{stem}.lora_{letter}.weight" for stem in stems for letter in "AB"]

    def _wrapper_of(self, place: Place) -> str:
        """The module in the file that is the parameter's ParamWrapper. Where both parameters of a module have one,
        peft wraps the wrapper of the first, which is the joined one, in that of the second."""
        has_inner = any(
            f"{place.stack}.base_layer.lora_{letter}.weight" in self.file.tensors for letter in "AB"
        )
        if has_inner:
            return place.stack + (".base_layer" if place.parts > 1 else "")
        targets = self.file.config.target_parameters
        is_target = any(_ends_with(place.parameter, name) for name in targets)
        return place.stack if is_target or not targets else ""

    def _is_legacy(self, places: list[Place], wrappers: dict[str, str], sense: str) -> bool | None:
        """The sense of the file's ParamWrappers; None if there is none or it cannot be told."""
        if not places:
            return None
        fits: dict[str, set[str]] = {}
        for place in places:
            pair, wrapper = place.pair, wrappers[place.pair.weight]
            a, b = (self.file.shape(f"{wrapper}.lora_{letter}.weight") for letter in "AB")
            if a is None or b is None:
                continue  # told as missing
            found = {
                name
                for name, (inner, outer) in (
                    ("modern", (pair.inputs, pair.outputs)),
                    ("legacy", (pair.outputs, pair.inputs)),
                )
                if len(a) == len(b) == 2 and (a[1], b[0]) == (inner, outer)
            }
            if not found:
                self.problems.append(
                    f"{pair.keys['A']} and {pair.keys['B']}: {wrapper}.lora_A.weight and lora_B.weight in "
                    f"{self.file.path} fit neither sense of a ParamWrapper; expected [r * {pair.experts}, "
                    f"{pair.inputs}] and [{pair.outputs}, r * {pair.experts}], or (peft before 0.19.1) "
                    f"[r * {pair.experts}, {pair.outputs}] and [{pair.inputs}, r * {pair.experts}], found {a} and {b}"
                )
            else:
                fits[wrapper] = found
        common = set.intersection(*fits.values()) if fits else {"modern"}
        if not common:
            lines = [
                f"{wrapper} only {next(iter(found))}" for wrapper, found in fits.items() if len(found) == 1
            ]
            self.problems.append(
                f"the ParamWrappers of {self.file.where} are not of one sense: " + ", ".join(lines)
            )
            return None
        if sense == "auto" and len(common) == 2:
            sense = self.file.config.param_wrapper
            if not sense:
                self.problems.append(
                    f"{', '.join(sorted(fits))} in {self.file.where}: the shapes fit both senses of a ParamWrapper, "
                    'and the adapter does not say for which version of peft it is; pass param_wrapper="modern" if peft '
                    '0.19.1 or later wrote it, param_wrapper="legacy" if an earlier one did'
                )
                return None
        if sense != "auto" and sense not in common:
            self.problems.append(
                f"{', '.join(sorted(fits))} in {self.file.where}: expected the sense param_wrapper={sense!r}, found "
                f'shapes that fit {next(iter(common))!r} only; pass that, or leave it to "auto"'
            )
            return None
        self.sense = next(iter(common)) if sense == "auto" else sense
        return self.sense == "legacy"

    # --- what fits -----------------------------------------------------------------------------------------------

    def _held(self, pair: Pair) -> list[int]:
        """The experts of which this rank holds a part."""
        held = {index for key in pair.keys.values() for index, _ in self.shardings[key].held(0)}
        return sorted(held) if pair.stacked else [0]

    def _add(self, place: Place, wrapper: str, legacy: bool) -> None:
        pair, experts = place.pair, self._held(place.pair)
        joined = max(place.of, place.parts)
        spread = not place.parameter and joined > 1 and self._is_spread(place, experts)
        windows = list(place.windows(experts, spread=spread, wrapper=wrapper, legacy=legacy))
        count = len(self.problems)
        self._check_shapes(place, windows, spread)
        if len(self.problems) > count:
            return
        if spread and place.of > 1:
            self._check_zeros(place)
        elif not spread and place.parts > 1 and not place.parameter:
            self._check_repeats(place, windows)
        self.windows += windows
        self._places.append(place)
        if spread:
            self.spread.append(pair)

    def _is_spread(self, place: Place, experts: list[int]) -> bool:
        ranks = {
            shape[0]
            for expert in experts
            for module in place.modules(expert)
            if (shape := self.file.shape(f"{module}.lora_A.weight"))
        }
        return ranks == {place.file_rank(spread=True)} and place.file_rank(spread=True) != place.pair.rank

    def _check_shapes(self, place: Place, windows: list[Window], spread: bool) -> None:
        pair, missing = place.pair, []
        both = " and ".join(pair.keys.values())
        wrong: list[tuple[Window, list[int]]] = []
        ranks = set()
        for window in windows:
            found = self.file.shape(window.name)
            if found is None:
                missing.append(window.name)
                continue
            if found != list(window.shape):
                wrong.append((window, found))
            if len(found) == 2:
                ranks.add(found[0 if window.name.endswith(".lora_A.weight") else 1])
        for name in _core.grouped_names(sorted(set(missing))):
            self.problems.append(
                f"{both}: expected {name} in {self.file.where}, found none; an adapter has to have all projections of "
                "the experts that it has, or of none"
                if pair.stacked
                else f"{both}: expected {name} in {self.file.where}, found none"
            )
        if wrong and len(ranks) > 1 and not place.parameter:
            self.problems.append(
                f"{both}: expected one rank for all modules, {place.file_rank(spread)}, found ranks "
                f"{', '.join(map(str, sorted(ranks)))} in {self.file.where}; the trainer's tensor has one rank: pad "
                "the smaller with zeros, or train with one rank"
            )
        for window, found in wrong:
            letter = "A" if window.key == pair.keys["A"] else "B"
            self.problems.append(
                f"{window.key}: {window.name} in {self.file.where}: expected shape {list(window.shape)} for the "
                f"trainer's {list(pair.shapes[letter])}, found {found}"
            )

    def _check_repeats(self, place: Place, windows: list[Window]) -> None:
        """Gate and up have one A here: they must have the same in the file."""
        of_box = {(w.key, w.native_offset): w for w in windows if not w.repeats}
        for window in windows:
            if not window.repeats:
                continue
            first = of_box[window.key, window.native_offset]
            if not _same_bytes(self.file.raw(first.name), self.file.raw(window.name)):
                self.problems.append(
                    f"{window.key}: {first.name} and {window.name} in {self.file.where} differ; expected the same A, "
                    f"as the trainer's {list(place.pair.shapes['A'])} has one for both: train them with one, or give "
                    f"tensors of rank {place.pair.rank * place.parts}, which have room for both"
                )

    def _check_zeros(self, place: Place) -> None:
        """Of a pair that peft joined, B is zero but for the blocks on its diagonal."""
        name = f"{place.module}.lora_B.weight"
        rows, rank = place.pair.outputs, place.pair.rank
        mine = self.file.raw(name)[place.part * rows : (place.part + 1) * rows]
        others = torch.cat([mine[:, : place.part * rank], mine[:, (place.part + 1) * rank :]], 1)
        if others.count_nonzero():
            self.problems.append(
                f"{place.pair.keys['B']}: {name} in {self.file.where} has rank {place.file_rank(True)} and is not "
                f"block-diagonal; expected zeros outside of the blocks, as the trainer's rank {rank} has no room for "
                f"more: give tensors of rank {place.file_rank(True)}"
            )

    def _note_the_rest(self, places: list[Place]) -> None:
        known = {name for place in places for name in self._names(place) if not place.parameter}
        for place in places:
            if place.parameter and (wrapper := self._wrapper_of(place)):
                known |= {f"{wrapper}.lora_{letter}.weight" for letter in "AB"}
        rest = [name for name in self.file.tensors if name not in known]
        for name in _core.grouped_names(rest):
            self.problems.append(
                f"{name} in {self.file.where}: the state dict has no LoRA tensors for it; strict=False leaves it out"
            )

    def _some_names(self, start: str = "") -> str:
        names = [name for name in self.file.tensors if name.startswith(start)]
        return (
            ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
            if names
            else "none"
        )


def _ends_with(name: str, ending: str) -> bool:
    return name == ending or name.endswith("." + ending)


def _same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    row_major = torch.contiguous_format
    left, right = (tensor.clone(memory_format=row_major).view(torch.uint8) for tensor in (a, b))
    return bool(torch.equal(left, right))
