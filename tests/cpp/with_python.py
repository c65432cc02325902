"""What C++ saves, Python resumes and verifies; what Python saves, C++ resumes. Takes the folder of the programs."""

import subprocess
import sys
import tempfile
from pathlib import Path

import shardwright as sw
import torch
from safetensors.torch import load_file

programs = Path(sys.argv[1])
matrix = torch.arange(48, dtype=torch.float32).view(6, 8) / 7
vector = torch.arange(5, dtype=torch.float32).to(torch.bfloat16)


def expect(holds: bool, claim: str) -> None:
    if not holds:
        sys.exit(f"not so: {claim}")


with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    subprocess.run([programs / "save", root], check=True)
    saved = root / "step-00000007"
    expect(sw.latest(root) == saved, "sw.latest finds what C++ saved")
    report = sw.verify(saved)
    expect(report.problems == [] and report.tensors == 3, "sw.verify finds nothing wrong with it")
    state = {
        "model": {"weight": torch.zeros(6, 8), "scale": torch.zeros(5, dtype=torch.bfloat16)},
        "step": torch.tensor(0),
    }
    sw.load(state, saved)
    expect(torch.equal(state["model"]["weight"], matrix), "the matrix comes back")
    expect(torch.equal(state["model"]["scale"], vector), "the vector comes back")
    expect(state["step"].item() == 7, "the step comes back")

    # A later save takes its place behind it, whoever makes it.
    state["comment"] = "an object, which C++ passes over and names"
    sw.save(state, root, step=5)
    expect(sw.latest(root) == root / "step-00000005", "a save of Python's comes after one of C++'s")
    subprocess.run([programs / "save", root], check=True)
    expect(sw.latest(root) == saved, "and one of C++'s after one of Python's")
    subprocess.run([programs / "resume", root / "step-00000005"], check=True)

    # Of one rank's tensors both write the same bytes, but for the random part of the files' names.
    whole = {"model": {"weight": matrix, "scale": vector}, "step": torch.tensor(7)}
    sw.save(whole, root / "by_python")
    ours, theirs = (sorted((root / name).glob("rank-*")) for name in ("alone", "by_python"))
    expect(len(ours) == len(theirs) == 1, "each of them writes one file")
    expect(ours[0].name[:17] == theirs[0].name[:17], "they call it alike")
    expect(ours[0].read_bytes() == theirs[0].read_bytes(), "they write the same bytes")

    # An export of C++'s save has C++'s values.
    sw.export(saved, root / "exported")
    (file,) = (root / "exported").glob("*.safetensors")
    found = load_file(file)
    expect(
        torch.equal(found["model.weight"], matrix) and torch.equal(found["model.scale"], vector), "exported"
    )
