"""The stub of the compiled module, from the signatures that pybind11 writes into it.

python .ci/core_stub.py           writes python_shim/shardwright/_core.pyi
python .ci/core_stub.py --check   fails if that is not what it would write
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STUB = ROOT / "python_shim" / "shardwright" / "_core.pyi"
#: A parameter's type, but no path and no key.
_TEXT = re.compile(r"(?<!PathLike\[)(?<!Mapping\[)\bstr\b")
HEAD = "# Written by .ci/core_stub.py: `make stub`. Functions and classes are documented in python_shim/bindings/.\n"


def stub() -> str:
    with tempfile.TemporaryDirectory() as folder:
        stubgen = Path(sys.executable).with_name("stubgen")  # as a module it cannot be run: it is compiled
        command = [stubgen, "--inspect-mode", "-m", "shardwright._core", "-o", folder]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        text = Path(folder, "shardwright", "_core.pyi").read_text()
    for found, meant in (
        ("typing.SupportsInt | typing.SupportsIndex", "int"),
        ("typing.SupportsFloat | typing.SupportsIndex", "float"),
        ("str | os.PathLike | bytes", "str | os.PathLike[str]"),
        ("template: Catalog,", "template: Catalog | None,"),  # a pointer, which pybind11 does not tell
    ):
        text = text.replace(found, meant)
    text = re.sub(r"os\.PathLike(?!\[)", "os.PathLike[str]", text)
    text = re.sub(r"collections\.abc\.Callable(?!\[)", "collections.abc.Callable[..., typing.Any]", text)
    text = re.sub(
        r"\b(list|dict|tuple)(?=[\],)]| ->|$|:| \|)", lambda found: _whole(found[1]), text, flags=re.M
    )
    # What C++ takes as a string may be bytes.
    text = re.sub(r"(?<=def )\w+\(.*?\)(?= ->)", lambda found: re.sub(_TEXT, "str | bytes", found[0]), text)
    text = re.sub(
        r"def (\w+)\(self, \*args, \*\*kwargs\)",
        r"def \1(self, *args: typing.Any, **kwargs: typing.Any)",
        text,
    )
    formatted = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(STUB), "-"],
        input=HEAD + text,
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return formatted.stdout


def _whole(name: str) -> str:
    return {
        "list": "list[typing.Any]",
        "dict": "dict[typing.Any, typing.Any]",
        "tuple": "tuple[typing.Any, ...]",
    }[name]


def main() -> int:
    text = stub()
    if "--check" not in sys.argv:
        STUB.write_text(text)
        return 0
    if text == STUB.read_text():
        return 0
    print(f"{STUB.relative_to(ROOT)} is not what the module says of itself; `make stub` writes it anew")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
