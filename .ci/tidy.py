#!/usr/bin/env python3
"""Runs clang-tidy on a file, and touches a stamp if it is clean: .ci/tidy.py FILE STAMP

ccache, where it is there, takes this program for a compiler and the stamp for an object: what was clean with the same
flags, rules and clang-tidy, and the same bytes of the file and of all that it includes, is not looked at again. What
gcc would not include (under __clang__, or a header that has come to be there since) is not seen to change.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

TIDY = "clang-tidy-14"

#: How far the static analyzer goes: with its own limits it takes nine tenths of the time of a large file.
ANALYZER = "c++-stdlib-inlining=false,max-nodes=40000"


def as_compiler(arguments: list[str]) -> None:
    """Writes the stamp, and the list of included files that ccache asks for."""
    stamp, included = (arguments[arguments.index(option) + 1] for option in ("-o", "-MF"))
    source = arguments[-1]
    flags = [flag for flag in arguments if flag not in ("-c", "-MD", "-MF", "-o", stamp, included, source)]
    analyzer = [f"--extra-arg={word}" for word in ("-Xclang", "-analyzer-config", "-Xclang", ANALYZER)]
    tidy = [TIDY, "--quiet", source, *analyzer, "--", *flags, "-Wno-unknown-warning-option"]
    checked = subprocess.run(tidy, capture_output=True, text=True)
    if checked.returncode:
        sys.exit(checked.stdout + checked.stderr)
    subprocess.run(["c++", *flags, "-M", "-MF", included, "-MT", stamp, source], check=True)
    Path(stamp).write_text("clean\n")


def compiles(file: str, source: str) -> bool:
    """Whether the file is the source, or one that CMake has made of several."""
    return file == source or ("/Unity/unity_" in file and f'#include "{source}"' in Path(file).read_text())


def main(source: str, stamp: str) -> None:
    commands = json.loads(Path("build/compile_commands.json").read_text())
    found = [
        shlex.split(one["command"]) for one in commands if compiles(one["file"], os.path.abspath(source))
    ]
    if len(found) != 1:
        sys.exit(f"{source}: expected one command in build/compile_commands.json, found {len(found)}")
    (command,) = found
    flags = command[1 : command.index("-o")]
    if "-include" in flags:  # what g++ has precompiled clang cannot read; each source includes what it uses
        at = flags.index("-include")
        flags = [flag for flag in flags[:at] + flags[at + 2 :] if flag != "-Winvalid-pch"]
    binary = os.path.realpath(shutil.which(TIDY) or sys.exit(f"{TIDY} is not there"))
    known_by = f"string:{binary} {os.stat(binary).st_size} {os.stat(binary).st_mtime_ns} {Path(__file__).read_text()}"
    os.environ |= {"CCACHE_DEPEND": "1", "CCACHE_COMPILERTYPE": "gcc", "CCACHE_COMPILERCHECK": known_by}
    os.environ["CCACHE_EXTRAFILES"] = os.path.abspath(".clang-tidy")
    ccache = [found] if (found := shutil.which("ccache")) else []
    run = [*ccache, os.path.abspath(__file__), *flags, "-MD", "-MF", f"{stamp}.d", "-o", stamp, "-c", source]
    sys.exit(subprocess.run(run).returncode)


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 3 else as_compiler(sys.argv[1:])
