"""``shardwright completion``."""

from __future__ import annotations

import argparse

from shardwright.cli.answer import Answer
from shardwright.cli.completion import SCRIPTS

HELP = "print the lines by which a shell completes this command"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "shell",
        choices=sorted(SCRIPTS),
        help="bash or zsh: put `source <(shardwright completion bash)` into its file of settings; fish: "
        "`shardwright completion fish > ~/.config/fish/completions/shardwright.fish`",
    )


def run(options: argparse.Namespace) -> Answer:
    from shardwright.cli.command_line import parser

    return Answer(text=SCRIPTS[options.shell](parser()))
