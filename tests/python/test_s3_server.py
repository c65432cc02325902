"""Saves and exports against moto's server of S3, which is not ours: what the protocol of S3 makes of them."""

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import shardwright as sw
import torch
from test_uploads import export, state, weights
from torch.distributed.checkpoint import FileSystemReader

pytestmark = pytest.mark.process

SERVER = Path(__file__).with_name("moto_server.py")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, str(SERVER)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        server.terminate()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch):
    """An empty bucket, as boto3 sees it, which takes half a second to import: not where tests are only collected."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = boto3.resource("s3").Bucket(f"bucket-{uuid.uuid4().hex[:12]}")
    bucket.create()
    yield bucket
    assert list(bucket.multipart_uploads.all()) == [], "multipart uploads were neither finished nor aborted"


def names(bucket, folder: str = "run") -> list[str]:
    return sorted(one.key.removeprefix(f"{folder}/") for one in bucket.objects.filter(Prefix=f"{folder}/"))


def downloaded(bucket, directory: Path, folder: str = "run") -> Path:
    for name in names(bucket, folder):
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        bucket.download_file(f"{folder}/{name}", str(file))
    return directory


def expect_holds(loaded: dict, value: float) -> None:
    for name, held in state(value).items():
        assert torch.equal(loaded[name], held) if torch.is_tensor(held) else loaded[name] == held, name


def blank() -> dict:
    tensors = {name: torch.zeros_like(held) for name, held in state().items() if torch.is_tensor(held)}
    return tensors | {"step": {"number": 0, "value": 0.0}}


@pytest.mark.parametrize("format", ["torch", "safetensors"])
def test_a_training_is_saved_resumed_and_kept(bucket, tmp_path: Path, format: str):
    address = f"s3://{bucket.name}/run"
    for step in range(4):
        sw.save(state(step + 1.0), address, step=step, keep_last=2, format=format)
    assert sw.latest(address) == f"{address}/step-00000003"
    assert {name.partition("/")[0] for name in names(bucket)} == {"step-00000002", "step-00000003"}
    assert sw.verify(f"{address}/step-00000003").problems == []
    loaded = blank()
    sw.load(loaded, sw.latest(address))
    expect_holds(loaded, 4.0)
    there = downloaded(bucket, tmp_path / "there", "run/step-00000003")
    assert sw.verify(there).problems == []
    if format == "torch":
        assert set(FileSystemReader(there).read_metadata().state_dict_metadata) >= {"w", "turned"}


def test_an_export_is_that_of_a_folder(bucket, tmp_path: Path):
    held = weights()
    export(held, f"s3://{bucket.name}/run")
    export(held, tmp_path / "local")
    there = downloaded(bucket, tmp_path / "there")
    assert {file.name: file.read_bytes() for file in there.iterdir()} == {
        file.name: file.read_bytes() for file in (tmp_path / "local").iterdir()
    }
    assert sw.verify(f"s3://{bucket.name}/run").problems == []
    loaded = {name: torch.zeros_like(tensor) for name, tensor in held.items()}
    sw.load(loaded, f"s3://{bucket.name}/run", layout="huggingface")
    assert all(torch.equal(loaded[name], held[name]) for name in held)
    export(weights(2.0), f"s3://{bucket.name}/run")
    assert sw.verify(f"s3://{bucket.name}/run").problems == []
    assert len(names(bucket)) == len(list(there.iterdir()))


def test_a_save_that_fails_leaves_what_was_there(bucket):
    address = f"s3://{bucket.name}/run"
    sw.save(state(1.0), address)
    before = names(bucket)
    with pytest.raises(ValueError, match="object"):
        sw.save({**state(2.0), "object": lambda: None}, address)
    assert names(bucket) == before
    assert sw.verify(address).problems == []
    with pytest.raises(FileNotFoundError, match="no such bucket"):
        sw.save(state(1.0), "s3://no-such-bucket-here/run")
