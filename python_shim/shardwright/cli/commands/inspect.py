"""``shardwright inspect``."""

from __future__ import annotations

import argparse

from shardwright import _core
from shardwright.checkpoints import expect_no_steps
from shardwright.cli.answer import Answer
from shardwright.cli.holdings import of_hugging_face, of_sharded, of_torch, text_of
from shardwright.local_path import beside, location
from shardwright.system_calls import is_file

HELP = "say what a checkpoint holds, from headers, index and metadata"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="a checkpoint: Hugging Face, or of training (sharded, .distcp)")


def run(options: argparse.Namespace) -> Answer:
    options.path = location(options.path)
    expect_no_steps(options.path)
    if _core.has_manifest(options.path):
        facts = of_sharded(options.path)
    elif is_file(beside(options.path, ".metadata")):
        facts = of_torch(options.path)
    else:
        facts = of_hugging_face(options.path)
    return Answer(facts, text_of(facts))
