"""The command ``shardwright``."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

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
    name = "shardwright"
    known: set[str] = set()
    try:
        whole = parser()
        with _flushed():
            options = whole.parse_args(arguments)
        name = f"shardwright {options.command}"
        known = set(completion.commands_of(whole)[options.command]._option_string_actions)
        with shown():
            answer = COMMANDS[options.command].run(options)
        with _flushed():
            is_json = getattr(options, "json", False)
            print(json.dumps(answer.facts, indent=1) if is_json else _without_controls(answer.text))
    except BrokenPipeError:  # whoever read it has seen enough
        return 141
    except (OSError, ValueError, RuntimeError, ImportError, MemoryError) as error:
        return _fail(name, _in_options(_message_of(error), known))
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        return 130
    return _fail(name, answer.failure) if answer.failure else 0


def _take_any_text() -> None:
    """A character that a terminal's or file's encoding lacks is written by its number, and is no failure."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None, if it is closed
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def _flushed() -> Iterator[None]:
    """Has what the ``with`` block prints taken, or raises. What nobody takes is dropped: Python would try to
    write it once more when it ends, and fail with a trace and a status of its own."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


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
        if command is completion:
            one.set_defaults(whole=whole)  # whose commands and options it completes
        else:
            one.add_argument("--json", action="store_true", help="print one JSON object, and nothing else")
    return whole


class _WholeNames(argparse.HelpFormatter):
    """Wraps help between words alone, as names of encodings and options have hyphens and are to be copied."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


#: What errors say of arguments that are flags here.
_FLAGS = {"overwrite=True": "--overwrite", "strict=False": "--not-strict"}

_ADVICE = re.compile(
    r'(?:(?<=[\s(])|^)(?P<name>[a-z_]+)=(?P<value>True|False|"[^"]*"|(?=[\s,;.)]|$))(?=[\s,;.)]|$)'
)


def _in_options(message: str, known: set[str]) -> str:
    """Errors advise in Python's words, such as ``strict=False``: said as an option where the command has it. What has
    other signs around it may be a part of somebody's path, and stays."""

    def option(found: re.Match[str]) -> str:
        name = _FLAGS.get(found[0], "--" + found["name"].replace("_", "-"))
        value = found["value"].strip('"')
        if value in ("True", "False"):
            return name if found[0] in _FLAGS and name in known else found[0]
        return f"{name} {value}".strip() if name in known else found[0]

    return _ADVICE.sub(option, message)


def _message_of(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _without_controls(text: str) -> str:
    """The names in a checkpoint of strangers may hold what a terminal obeys: it is written by its number."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def _fail(name: str, message: str) -> int:
    """A message of several lines is summed up by its first one, below it."""
    message = _without_controls(message)
    first, _, rest = message.partition("\n")
    if rest:
        print(message, file=sys.stderr)
    print(f"{name}: {first.removesuffix(':')}", file=sys.stderr)
    return 1
