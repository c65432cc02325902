"""The command ``shardwright``."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import textwrap

from shardwright import _core
from shardwright.cli.commands import (
    completion,
    convert,
    export,
    families,
    generate,
    inspect,
    load,
    plan,
    simulate,
    verify,
)
from shardwright.cli.progress import shown

#: Each has HELP, add_options(parser) and run(options), which returns an Answer.
COMMANDS = {
    "generate": generate,
    "inspect": inspect,
    "families": families,
    "plan": plan,
    "simulate": simulate,
    "load": load,
    "verify": verify,
    "convert": convert,
    "export": export,
    "completion": completion,
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status. The last line on stderr says what failed, if anything did."""
    _take_any_text()
    try:
        options = parser().parse_args(arguments)
    except SystemExit:
        if not _is_flushed():  # a help that nobody reads to its end
            return 141
        raise
    try:
        with shown():
            answer = COMMANDS[options.command].run(options)
        print(json.dumps(answer.facts, indent=1) if getattr(options, "json", False) else answer.text)
        if not _is_flushed():
            return 141
    except BrokenPipeError:
        _drop_output()
        return 141
    except (OSError, ValueError, RuntimeError, ImportError, MemoryError) as error:
        return _fail(options.command, _message_of(error))
    except KeyboardInterrupt:
        print(f"shardwright {options.command}: stopped", file=sys.stderr)
        return 130
    return _fail(options.command, answer.failure) if answer.failure else 0


def _take_any_text() -> None:
    """A character that a terminal's or file's encoding lacks is written by its number, and is no failure."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None, if it is closed
            stream.reconfigure(errors="backslashreplace")


def _is_flushed() -> bool:
    """Whether what was printed has been taken; False: whoever read it has seen enough, and closed it."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return False
    return True


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="shardwright",
        description="Loads released checkpoints into sharded tensors, and saves and exports these.",
    )
    whole.add_argument("--version", action="version", version=f"shardwright {_core.__version__}")
    commands = whole.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, command in COMMANDS.items():
        one = commands.add_parser(
            name,
            help=command.HELP,
            description=f"{command.HELP[0].upper()}{command.HELP[1:]}.",
            formatter_class=_WholeNames,
        )
        command.add_options(one)
        if command is not completion:
            one.add_argument("--json", action="store_true", help="print one JSON object, and nothing else")
    return whole


class _WholeNames(argparse.HelpFormatter):
    """Wraps help between words alone, as names of encodings and options have hyphens and are to be copied."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def _message_of(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _fail(command: str, message: str) -> int:
    """A message of several lines is summed up by its first one, below it."""
    first, _, rest = message.partition("\n")
    if rest:
        print(message, file=sys.stderr)
    print(f"shardwright {command}: {first.removesuffix(':')}", file=sys.stderr)
    return 1
