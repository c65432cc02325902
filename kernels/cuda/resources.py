"""Prints what each kernel for GPUs takes of a multiprocessor, as Markdown: python kernels/cuda/resources.py

Registers are those that ptxas reports; occupancy follows from them and from the shared memory of a launch.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
THREADS = 256
REGISTERS = 65536
#: Architecture: bytes of shared memory and threads of a multiprocessor. A block takes 1 KiB of shared memory more.
ARCHITECTURES = {80: (164 << 10, 2048), 90: (228 << 10, 2048), 100: (228 << 10, 2048)}
UNITS = {"unsigned char": 1, "unsigned short": 2, "unsigned int": 4, "unsigned long": 8}
SQUARE = 64
CHUNK = 16


def shared_bytes(kernel: str, size: int) -> int:
    """place_in_square() and encoding_shared_bytes(), written again."""
    if kernel == "place_straight":
        return 0
    square = (SQUARE - 1) * (SQUARE * size + max(4, size)) + (SQUARE // CHUNK - 1) * 16 + SQUARE * size
    return square + (SQUARE * SQUARE // CHUNK * 4 if kernel == "encode" else 0)


def registers_of(source: Path, architecture: int) -> dict[tuple[str, int], tuple[int, int]]:
    """Registers and spilled bytes by kernel and size of element."""
    command = ["nvcc", "-std=c++20", "-O3", "--fmad=false", "-Xptxas", "-v", f"-I{FOLDER.parent.parent}"]
    command += [f"-gencode=arch=compute_{architecture},code=sm_{architecture}"]
    command += ["-c", str(source), "-o", "/dev/null"]
    output = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True).stderr
    output = subprocess.run(["c++filt"], input=output, check=True, stdout=subprocess.PIPE, text=True).stdout
    pattern = r"Compiling entry.*?::(\w+)_kernel<([a-z ]+)>.*?(\d+) bytes spill stores.*?Used (\d+) registers"
    return {
        (kernel, UNITS[unit]): (int(registers), int(spilled))
        for kernel, unit, spilled, registers in re.findall(pattern, output, re.DOTALL)
    }


def blocks_of(registers: int, shared: int, architecture: int) -> int:
    memory, threads = ARCHITECTURES[architecture]
    by_registers = REGISTERS // (-(-registers // 8) * 8 * THREADS)
    return min(by_registers, memory // (shared + 1024), threads // THREADS)


def main() -> None:
    found = {
        architecture: {
            kernel: figures
            for source in sorted(FOLDER.glob("*.cu"))
            for kernel, figures in registers_of(source, architecture).items()
        }
        for architecture in ARCHITECTURES
    }
    titles = [f"sm_{architecture}: registers, occupancy" for architecture in ARCHITECTURES]
    print("| kernel, bytes of an element | shared memory |", " | ".join(titles), "|")
    print("| --- " * (2 + len(titles)) + "|")
    spilled = 0
    for kernel, size in sorted(found[80]):
        shared = shared_bytes(kernel, size)
        cells = []
        for architecture, kernels in found.items():
            registers, spilled_here = kernels[kernel, size]
            spilled += spilled_here
            warps = blocks_of(registers, shared, architecture) * THREADS // 32
            cells.append(f"{registers}, {warps} of 64 warps")
        print(f"| {kernel}, {size} | {shared} |", " | ".join(cells), "|")
    print(f"\n{spilled} bytes are spilled.", file=sys.stderr)


if __name__ == "__main__":
    main()
