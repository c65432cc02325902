"""Handing weights to an engine: what arrives are the slices of the files that `sw.export` writes, bit for bit.

The ranks are threads of one process here; test_refit_ranks.py has real ones.
"""

from pathlib import Path

import pytest
import shardwright as sw
from handed_over import exported
from refit_ranks import Side, hand_over, random_engine, request_of


@pytest.mark.parametrize("quantization", [None, "mxfp8", "template"])
def test_an_engine_gets_slices_of_the_files_of_an_export(
    small: Path, tmp_path: Path, quantization: str | None
):
    state = sw.empty_state_dict(small)
    sw.load(state, small)
    sw.export(state, tmp_path / "to", quantization=quantization, template=small)
    engine = random_engine(exported(tmp_path / "to"), 3, seed=1)
    trainer = Side(state)
    trainer.describe()
    sides = [trainer, *[Side(None, rank.engine) for rank in engine]]
    outcomes = hand_over(sides, request_of(small, quantization or "none"))
    for outcome, rank in zip(outcomes[1:], engine, strict=True):
        outcome.expect_success()
        assert rank.wrong() == []
        assert outcome.left == [] and outcome.bytes_received > 0
