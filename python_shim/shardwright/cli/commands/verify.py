"""``shardwright verify``."""

from __future__ import annotations

import argparse

from shardwright.checkpoints import expect_no_steps, verify
from shardwright.cli.answer import Answer
from shardwright.cli.options import number_of_threads
from shardwright.cli.table import table
from shardwright.local_path import shown

HELP = "check headers, index, coverage, checksums and scales; exit status 1 if something is wrong"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path")
    parser.add_argument("--threads", type=number_of_threads)


def run(options: argparse.Namespace) -> Answer:
    expect_no_steps(options.path)
    report = verify(options.path, options.threads)
    facts = {
        "kind": report.kind,
        "files": report.files,
        "tensors": report.tensors,
        "objects": report.objects,
        "bytes_hashed": report.bytes_hashed,
    }
    lines = [table([(what.replace("_", " "), fact) for what, fact in facts.items()])]
    lines += report.problems
    lines += [f"damaged: {name}" for name in report.damaged]
    failure = ""
    if report.problems:
        failure = (
            f"{shown(options.path)}: {len(report.problems)} problem{'s' * (len(report.problems) > 1)} found"
        )
    else:
        sums = "" if report.bytes_hashed else "; no checksums to check"
        lines.append(f"nothing wrong was found{sums}")
    return Answer(facts | {"damaged": report.damaged, "problems": report.problems}, "\n".join(lines), failure)
