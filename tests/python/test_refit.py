"""Handing weights to an engine: what arrives are the slices of the files that `sw.export` writes, bit for bit.

The ranks are threads of one process here; test_refit_ranks.py has real ones.
"""

from pathlib import Path

import pytest
import shardwright as sw
import torch
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


def test_a_rank_alone_is_told_what_is_wrong_and_nothing_has_been_written():
    names = ["model.layers.0.w.weight", "model.layers.1.w.weight"]
    state = {name: torch.ones(8, 16).bfloat16() for name in names}
    first = torch.zeros(8, 16).bfloat16()
    whole = sw.EngineTensor("first", first, names[:1])
    on_meta = sw.EngineTensor("second", torch.zeros(8, 16, device="meta").bfloat16(), names[1:])
    wrong = [
        ({"engine": [whole, on_meta]}, "second: expected CPU memory, found it on meta"),
        ({"engine": [whole, first]}, "expected a list of shardwright.EngineTensor, found Tensor"),
        ({"engine": first}, "expected a list of shardwright.EngineTensor, found Tensor"),
        ({"engine": [whole], "staging_bytes": 0}, "staging_bytes is 0"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            sw.refit(state, layout="huggingface", **arguments)
    assert not first.any()
    sw.refit(state, [whole], layout="huggingface")
    assert (first == 1).all()
