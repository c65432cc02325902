"""The README's Python examples run. Marked are those whose first line is `# runs in tests`."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_the_examples_of_the_readme_run(tmp_path: Path, monkeypatch):
    """One after another in one directory, as a reader would type them."""
    blocks = re.findall(
        r"^```python\n# runs in tests\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL
    )
    assert blocks
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "readme"}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"README.md, marked example {number}", "exec"), names)


def test_the_cpp_of_the_readme_is_compiled_and_run():
    """It stands in a program that the C++ tests build and run, letter for letter."""
    (block,) = re.findall(r"^```cpp\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    program = (README.parent / "tests" / "cpp" / "load.cpp").read_text()
    (tested,) = re.findall(r"// README: C\+\+\n(.*?) *// README: end\n", program, re.DOTALL)
    assert "".join(block.split()) == "".join(tested.split())  # clang-format wraps by the indent
