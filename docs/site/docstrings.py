"""How the package's docstrings become pages: what mkdocstrings does not read as it stands is put as it does."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

from griffe import Attribute, Class, Extension, Object

_ROLE = re.compile(r":(?:class|func|meth):`(?:~?)([\w.]+)`")
_SEE = re.compile(r"see \[`(\w+)`\]\[[\w.]+\][.;]? ?(.*)$")
_ARGUMENTS = re.compile(r"^Args:\n(.*?)(?=^\S|\Z)", flags=re.MULTILINE | re.DOTALL)
_PACKAGE = Path(__file__).parents[2] / "python_shim" / "shardwright"
_TRAILING = re.compile(r"#: (.*)$")


class Docstrings(Extension):
    """Sphinx's roles as links, an entry for each argument, longer ``Raises``, and fields with ``#:`` beside."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _rewritten(obj.docstring.value)

    def on_class_members(self, *, cls: Class, **_: Any) -> None:
        """Fields are one list: each goes on from the one before it."""
        fields = {name: _comment_beside(field) for name, field in cls.attributes.items() if name[0] != "_"}
        listed = [
            f"    {name}: {text}" for name, text in fields.items() if text and "dataclass" in cls.labels
        ]
        if cls.docstring is not None and listed:
            cls.docstring.value += "\n\nAttributes:\n" + "\n".join(listed)


def _comment_beside(attribute: Attribute) -> str:
    """What stands behind an attribute, or above it, after ``#:``."""
    if attribute.lineno is None or attribute.endlineno is None:
        return ""
    lines = attribute.lines_collection[attribute.filepath]
    for line in lines[attribute.lineno - 1 : attribute.endlineno]:
        found = _TRAILING.search(line)
        if found:
            return found[1]
    above = []
    for line in reversed(lines[: attribute.lineno - 1]):
        if not line.strip().startswith("#: "):
            break
        above.insert(0, line.strip()[3:])
    return " ".join(above)


def _rewritten(text: str) -> str:
    text = _ROLE.sub(lambda role: _link(role[1]), text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    text = re.sub(r"^Raises, ([^\n]*):\n", r"Raised \1:\n\nRaises:\n", text, flags=re.MULTILINE)
    return _ARGUMENTS.sub(_split_arguments, text)


def _link(name: str) -> str:
    """To a public name; others have no page."""
    shown = name.removeprefix("shardwright.")
    return f"`{name}`" if "." in shown else f"[`{shown}`][shardwright.{shown}]"


def _split_arguments(section: re.Match[str]) -> str:
    """An entry for each of the arguments that share one. ``a, b: see ...`` is what is said of them there."""
    lines = [f"    {name}: {_said_there(name, what)}" for name, what in _arguments(section).items()]
    return "\n".join(["Args:", *lines]) + "\n\n"


def _said_there(name: str, what: str) -> str:
    see = _SEE.match(what)
    if see is None:
        return what
    there = _arguments_of(see[1])
    text = there.get(name) or there.get({"threads": "thread_count"}.get(name, ""), "")
    return f"{text} {see[2]}".strip() if text and not _SEE.match(text) else what


@cache
def _arguments_of(name: str) -> dict[str, str]:
    """What the docstring of a class or function says of each argument."""
    for path in sorted(_PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
                text = _ROLE.sub(lambda role: _link(role[1]), ast.get_docstring(node) or "")
                section = _ARGUMENTS.search(re.sub(r"``([^`]+)``", r"`\1`", text))
                return _arguments(section) if section else {}
    raise ValueError(f"a docstring refers to {name}, which is not there")


def _arguments(section: re.Match[str]) -> dict[str, str]:
    entries: list[str] = []
    for line in section[1].splitlines():
        if re.match(r" {4}\S", line) or not entries:
            entries.append(line.strip())
        elif line.strip():
            entries[-1] += " " + line.strip()
    return {
        name.strip(): what
        for names, _, what in (entry.partition(": ") for entry in entries)
        for name in names.split(",")
    }
