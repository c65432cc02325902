"""What pages take from elsewhere in the tree when the site is built, so that each fact is written once.

@section(storage/README.md, Glossary)     a section of a page, with its heading
@file(CHANGELOG.md)                       a page without its title
@commands()                               the help of each command
@header(planner/error.h, what it holds)   a C++ header
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import types
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

TREE = Path(__file__).parents[2]

#: On which page a heading of storage/README.md is.
PAGE_OF = {"formats-on-disk": "formats.md", "the-life-of-a-byte": "byte.md", "glossary": "glossary.md"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    makers = {"section": _section, "file": _file, "commands": _commands, "header": _header}

    def made(line: re.Match[str]) -> str:
        arguments = [argument.strip() for argument in line[2].split(",", 1)] if line[2] else []
        return makers[line[1]](*arguments)

    return re.sub(r"^@(section|file|commands|header)\((.*)\)$", made, markdown, flags=re.MULTILINE)


def _section(path: str, heading: str) -> str:
    text = (TREE / path).read_text()
    found = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^\1 |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"{path}: expected a section {heading!r}, found none")
    body = found[2]
    page = PAGE_OF.get(_anchor(heading))

    def linked(link: re.Match[str]) -> str:
        anchor = link[1]
        for name, holds in PAGE_OF.items():
            of_page = {name, *_anchors_below(text, name)}
            if anchor in of_page:
                return f"](#{anchor})" if holds == page and anchor != name else f"]({holds}#{anchor})"
        raise ValueError(f"{path}: no page has #{anchor}")

    body = re.sub(r"\]\(#([\w-]+)\)", linked, body)
    body = _links_of_the_tree(body)
    return re.sub(r"^##(#+) ", r"#\1 ", body, flags=re.MULTILINE)  # the heading is the page's title


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-"))


def _anchors_below(text: str, name: str) -> set[str]:
    """The anchors of the headings in the section that has this one."""
    inside, anchors = False, set()
    for marks, heading in re.findall(r"^(##+) (.*)$", text, re.MULTILINE):
        if marks == "##":
            inside = _anchor(heading) == name
        elif inside:
            anchors.add(_anchor(heading))
    return anchors


def _file(path: str) -> str:
    return _links_of_the_tree(re.sub(r"\A# .*\n", "", (TREE / path).read_text()))


def _links_of_the_tree(text: str) -> str:
    """Links to files of docs/ lead to their pages; those to other files of the tree are names."""
    text = re.sub(r"\]\(docs/([^)]+)\)", r"](\1)", text)
    return re.sub(
        r"\[([^\]]+)\]\((?!#)(?:[\w./-]+/)?(?:README|SECURITY|CONTRIBUTING|CHANGELOG)\.md\)", r"`\1`", text
    )


def _header(path: str, holds: str) -> str:
    text = (TREE / path).read_text().partition("#pragma once\n")[2].strip()
    block = "\n".join(f"    {line}" for line in ["```cpp", *text.splitlines(), "```"])
    return f'??? header "`{path}`: {holds}"\n\n{block}'


def _rows(path: str, row: str) -> list[str]:
    """The names in a table of the sources: what the pattern has in brackets, row by row."""
    names = re.findall(row, (TREE / path).read_text())
    if not names:
        raise ValueError(f"{path}: expected a table with rows such as {row}, found none")
    return names


def _commands() -> str:
    """From the parser itself; the compiled module, which it asks for the names of encodings, need not be built."""
    os.environ["COLUMNS"] = "88"
    os.environ["NO_COLOR"] = "1"
    core = MagicMock(spec_set=None, __version__="")
    core.generated_encodings.return_value = _rows(
        "planner/models/stored_encodings.cpp", r'\{"(\w+)", "\w+", Names::'
    )
    core.quantizations.return_value = _rows(
        "planner/save/quantization.cpp", r'\{"([\w-]+)",\s+(?:EncodingRule::|int4)'
    )
    absent = types.ModuleType("shardwright._core")
    absent.__getattr__ = lambda name: getattr(core, name)  # type: ignore[method-assign]
    sys.modules["shardwright._core"] = absent
    sys.path.insert(0, str(TREE / "python_shim"))
    from shardwright.cli.command_line import parser as parser_of_all

    parser = parser_of_all()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    parts = []
    for what in commands._choices_actions:
        commands.choices[what.dest].description = None  # it is above the block
        text = commands.choices[what.dest].format_help()
        parts.append(
            f"## {what.dest}\n\n{what.help[0].upper()}{what.help[1:]}.\n\n```text\n{text.strip()}\n```\n"
        )
    return "\n".join(parts)
