"""``shardwright families``."""

from __future__ import annotations

import argparse

from shardwright.cli.answer import Answer
from shardwright.cli.families import families, text_of

HELP = "list the model families that have tables, their layouts and what these are checked against"


def add_options(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(options: argparse.Namespace) -> Answer:
    facts = families()
    return Answer(facts, text_of(facts))
