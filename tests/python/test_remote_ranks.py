"""Loads from a server by 1, 2 and 4 ranks. The checks are in workers/remote.py."""

import shutil
import uuid
from pathlib import Path

import pytest
import shardwright as sw
from object_server import serving
from outcomes import outcome_of

pytestmark = pytest.mark.ranks


def run(ranks: int, checkpoint: Path, folder: Path, checks: str, monkeypatch):
    """What the checks found wrong, and the server with its log."""
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    shutil.copytree(checkpoint, folder / "served" / bucket / "checkpoint")
    shutil.copytree(checkpoint, folder / "served" / bucket / "broken")
    for file in (folder / "served" / bucket / "broken").glob("*.safetensors"):
        content = bytearray(file.read_bytes())
        content[9:20] = b"no JSON at all"[:11]
        file.write_bytes(content)
    with serving(folder / "served") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("REMOTE_ADDRESS", f"s3://{bucket}")
        monkeypatch.setenv("REMOTE_FOLDER", str(folder / "served" / bucket))
        monkeypatch.setenv("REMOTE_CHECKS", checks)
        monkeypatch.setenv("SHARDWRIGHT_REMOTE_PATIENCE", "5")
        return outcome_of("remote.py", ranks, checkpoint, folder), server


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_load_and_resume_what_the_files_hold(ranks: int, tiny: Path, tmp_path: Path, monkeypatch):
    checks = "loads,loads_through_dcp,loads_together,resumes,one_message_on_every_rank"
    outcome, _ = run(ranks, tiny, tmp_path, checks, monkeypatch)
    assert len(outcome) == 5 and not any(outcome.values()), "\n".join(filter(None, outcome.values()))


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("checks", ["loads_together", "replicas_load_together"])
def test_ranks_that_read_together_ask_for_each_byte_once(
    ranks: int, checks: str, small: Path, tmp_path: Path, monkeypatch
):
    outcome, server = run(ranks, small, tmp_path, checks, monkeypatch)
    assert not any(outcome.values()), outcome
    needed = sum(tensor.end - tensor.begin for tensor in sw.read_catalog(small).tensors)
    assert server.bytes_asked("checkpoint") <= 1.02 * needed, (server.bytes_asked("checkpoint"), needed)
