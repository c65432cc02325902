"""Rows of a weight map out of the correspondences of single tensors: what differs in numbers alone becomes one row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

_NUMBER = re.compile(r"(?<![^._])(?:0|[1-9][0-9]{0,8})(?![^._])")
_MORE = re.compile(r"\{[a-z]+([+-][0-9]+)\}")
_INDEX = re.compile(r"([0-9]+)/([0-9]+)")


class Row(NamedTuple):
    """See Rule in planner/names/weight_map.h. Of a single tensor, names are names; else patterns."""

    hf: str
    native: str
    axes: str = ""
    only_read: bool = False


def general_rows(rows: Iterable[Row]) -> list[Row]:
    """Rows of patterns that say the same of the tensors named, and of others that differ from them in numbers.

    A number that both names have, the native one that much less or more, is {layer}; one that is the index along the
    native tensor's first dimension, or so much more, is {expert}. The order is that of the rows given, but numbers that
    start later come first, as the first row that fits counts.
    """
    given = list(dict.fromkeys(rows))
    candidates = [list(_candidates(row)) for row in given]
    support = Counter(candidate for of_row in candidates for candidate in of_row)
    found: dict[Row, None] = {}
    for of_row in candidates:
        found.setdefault(max(of_row, key=lambda candidate: support[candidate]))
    return sorted(found, key=_starts_at)


def _starts_at(row: Row) -> int:
    return -sum(int(more) for more in _MORE.findall(row.hf))


def _candidates(row: Row) -> Iterator[Row]:
    """The row itself, first, and all patterns that have it among what they say."""
    for counted in _counted(row):
        yield counted
        yield from _layered(counted)


def _counted(row: Row) -> Iterator[Row]:
    yield row
    there, _, here = row.axes.partition(" -> ")
    if index := _INDEX.match(here):
        for number in _NUMBER.finditer(row.hf):
            more = int(number.group()) - int(index.group(1))
            if more >= 0:
                hf = _with(row.hf, number, _variable("{expert}", more))
                yield row._replace(hf=hf, axes=f"{there} -> {{expert}}{here[index.end() :]}")


def _layered(row: Row) -> Iterator[Row]:
    """Each number of the native name with each one of the HF name. Asked of every tensor of a checkpoint."""
    there = [
        (row.hf[: number.start()], int(number.group()), row.hf[number.end() :])
        for number in _NUMBER.finditer(row.hf)
    ]
    for here in _NUMBER.finditer(row.native):
        native = _with(row.native, here, "{layer}")
        index = int(here.group())
        for before, number, after in there:
            hf = before + _variable("{layer}", number - index) + after
            yield Row(hf, native, row.axes, row.only_read)


def _with(name: str, number: re.Match[str], variable: str) -> str:
    return name[: number.start()] + variable + name[number.end() :]


def _variable(name: str, more: int) -> str:
    return name if more == 0 else f"{name[:-1]}{more:+d}}}"


def general_names(names: Sequence[str]) -> list[str]:
    """Patterns of names: of those that differ in one number, {shard} stands for it."""
    candidates = [
        [name, *(_with(name, number, "{shard}") for number in _NUMBER.finditer(name))] for name in names
    ]
    support = Counter(candidate for of_name in candidates for candidate in of_name)
    return list(
        dict.fromkeys(max(of_name, key=lambda candidate: support[candidate]) for of_name in candidates)
    )
