"""``shardwright families``: the model families that have tables, for people and for programs."""

from __future__ import annotations

import argparse
from typing import Any

from shardwright import _core
from shardwright.cli.answer import Answer

HELP = "list the model families that have tables, their layouts and what these are checked against"

#: What `make compare` checks each layout against, by the package's own code.
PEERS = {
    "automodel": "nemo-automodel 0.7.0",
    "transformers": "transformers 5.23",
    "torchtitan": "torchtitan 0.3.0",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(options: argparse.Namespace) -> Answer:
    facts = families()
    return Answer(facts, _text_of(facts))


def families() -> dict[str, Any]:
    """What there is, and what holds for all of it."""
    return {
        "families": [
            {
                "family": one.name,
                "model_types": one.model_types,
                "layouts": {layout: checked_against(one, layout) for layout in one.layouts},
                "refused": dict(one.refused),
                "forms": _core.sample_forms(one.name),
            }
            for one in _core.families()
        ],
        "encodings": _core.encodings(),
    }


def checked_against(family: _core.Family, layout: str) -> str:
    as_transformers = layout == "automodel" and family.trained_as_transformers
    return PEERS["transformers" if as_transformers else layout]


def _text_of(facts: dict[str, Any]) -> str:
    lines = []
    for one in facts["families"]:
        others = [name for name in one["model_types"] if name != one["family"]]
        lines.append(one["family"] + (f" (also {', '.join(others)})" if others else ""))
        lines += [f"  {layout:<13} checked against {peer}" for layout, peer in one["layouts"].items()]
        lines += [f"  {layout:<13} refused: {reason}" for layout, reason in one["refused"].items()]
        lines.append(f"  generated in  {', '.join(one['forms'])}")
    encodings = ", ".join(facts["encodings"])
    return (
        "\n".join(lines)
        + f"""

All of them also in layout huggingface, the checkpoint's own names and shapes, and with LoRA adapters.
Encodings of weights, of any family: {encodings}, or none.
Other families: layout transformers, by the conversion mapping of the installed package transformers (5 or later)."""
    )
