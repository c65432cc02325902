"""The command shardwright, called where the tests run: a process of its own imports torch first, for two seconds."""

import contextlib
import io
import subprocess
from pathlib import Path

from shardwright.cli.command_line import main


def shardwright(*arguments: str | Path) -> subprocess.CompletedProcess:
    """What a process that runs the command would have ended with and printed. What `main` does not catch is raised."""
    command = [*map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(command)
        except SystemExit as ended:  # argparse's, of help and of what it cannot read
            status = ended.code
    return subprocess.CompletedProcess(command, status, out.getvalue(), err.getvalue())


def output_of(*arguments: str | Path) -> str:
    run = shardwright(*arguments)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout
