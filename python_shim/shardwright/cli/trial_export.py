"""An export of a checkpoint, on one or several ranks."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from shardwright.cli.answer import Answer
from shardwright.cli.of_ranks import answer_of, on_each_rank
from shardwright.exporting import export
from shardwright.loading import is_of_trainer


def trial_export(options: argparse.Namespace) -> Answer:
    """Raises what the load or the export raised, in one process or on the rank that failed first."""
    return answer_of(on_each_rank(options.ranks, _export, options))


def _export(rank: int, options: argparse.Namespace) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    template = options.template or (None if is_of_trainer(options.source) else options.source)
    report = export(
        options.source,
        options.destination,
        quantization=options.quantization,
        quantized_weights=options.quantized_weights,
        max_shard_size=options.max_shard_size,
        template=template,
        model=options.model,
        layout=options.layout,
        strict=not options.not_strict,
        threads=options.threads,
        key=options.key,
        overwrite=options.overwrite,
        strict_dtypes=options.strict_dtypes,
    )
    return dataclasses.asdict(report), report.rows()
