"""`sw.pieces` in one process: its pieces, put together, are the tensors of the files that `sw.export` writes."""

from pathlib import Path

import pytest
import shardwright as sw
import torch
from handed_over import exported, put_together, wrong_tensors


@pytest.mark.parametrize("quantization", [None, "mxfp8", "template"])
def test_they_are_the_files_of_an_export(small: Path, tmp_path: Path, quantization: str | None):
    state = sw.empty_state_dict(small)
    sw.load(state, small)
    found = put_together(sw.pieces(state, quantization=quantization, template=small, bucket_bytes="2MiB"))
    sw.export(state, tmp_path / "to", quantization=quantization, template=small)
    assert wrong_tensors(found, exported(tmp_path / "to")) == []
