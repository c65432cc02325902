"""Folds a manifest (gzip'd JSON: name -> [dtype, shape]) into a short text: a line for each group of tensors that
differ in numbers only. `layers.{3-59}.experts.{0-127}.w1.weight F8_E4M3 3072,6144` stands for 57 x 128 tensors.

    python fold_manifest.py minimax_m3_vl.hf.json.gz > minimax_m3_vl.hf.txt
"""

import gzip
import itertools
import json
import math
import re
import sys

SAFETENSORS = {"bfloat16": "BF16", "float32": "F32", "uint8": "U8", "float8_e4m3fn": "F8_E4M3"}


def main():
    with gzip.open(sys.argv[1]) as file:
        manifest = json.load(file)
    groups = {}
    for name, (dtype, shape) in manifest.items():
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "{}", name)
        numbers = tuple(int(number) for number in re.findall(r"(?<=\.)\d+(?=\.)", name))
        groups.setdefault((pattern, dtype, tuple(shape)), set()).add(numbers)
    total = 0
    for (pattern, dtype, shape), numbers in groups.items():
        ranges = [(min(column), max(column)) for column in zip(*numbers, strict=True)]
        whole = set(itertools.product(*(range(first, last + 1) for first, last in ranges)))
        if numbers != whole:
            raise SystemExit(f"{pattern}: not a product of ranges: {len(numbers)} tensors in {ranges}")
        total += math.prod(last - first + 1 for first, last in ranges)
        folded = pattern.format(*(f"{{{first}-{last}}}" for first, last in ranges))
        print(folded, SAFETENSORS[dtype], ",".join(map(str, shape)))
    if total != len(manifest):
        raise SystemExit(f"folded {total} of {len(manifest)} tensors")


if __name__ == "__main__":
    main()
