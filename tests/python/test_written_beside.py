"""Files that integrations write beside a checkpoint: ours are replaced, those of others stay."""

import json
from pathlib import Path

import pytest
from shardwright import _core

OURS = {"config.json": b'{"a": 1}', "tokenizer.json": b"\xff no UTF-8"}


def expect_free(folder: Path, overwrite: bool | None = None, contents: dict | None = None) -> None:
    _core.expect_replaceable(folder, contents or {"config.json": b"new"}, overwrite, "Do this.")


def test_what_was_written_is_known_again_until_somebody_edits_it(tmp_path: Path):
    expect_free(tmp_path)
    _core.write_beside(tmp_path, OURS)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} | OURS == {
        **OURS,
        "shardwright.beside": (tmp_path / "shardwright.beside").read_bytes(),
    }
    expect_free(tmp_path)
    _core.write_beside(tmp_path, {"config.json": b"second"})
    assert (tmp_path / "config.json").read_bytes() == b"second"
    expect_free(tmp_path, contents={"config.json": None, "tokenizer.json": None})
    with pytest.raises(FileExistsError, match="config.json in .*written here before.*Do this."):
        expect_free(tmp_path, overwrite=False)
    (tmp_path / "config.json").write_bytes(b"edited")
    with pytest.raises(FileExistsError, match="config.json in"):
        expect_free(tmp_path)
    expect_free(tmp_path, overwrite=True)
    expect_free(tmp_path, contents={"config.json": b"edited"})  # it is that already


def test_the_file_before_is_known_where_a_job_ended_between_record_and_file(tmp_path: Path):
    _core.write_beside(tmp_path, {"config.json": b"first"})
    _core.write_beside(tmp_path, {"config.json": b"second"})
    (tmp_path / "config.json").write_bytes(b"first")
    expect_free(tmp_path)


@pytest.mark.parametrize(
    "record", [b"", b"[]", b"{", b"[" * 100_000, b'{"config.json": 7}', b'{"config.json": ["x", -1, {}]}']
)
def test_what_is_no_record_says_nothing(tmp_path: Path, record: bytes):
    (tmp_path / "config.json").write_bytes(b"theirs")
    (tmp_path / "shardwright.beside").write_bytes(record)
    with pytest.raises(FileExistsError, match="config.json in"):
        expect_free(tmp_path)
    _core.write_beside(tmp_path, {"config.json": b"ours"})
    assert list(json.loads((tmp_path / "shardwright.beside").read_bytes())) == ["config.json"]
    expect_free(tmp_path)


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path):
    (tmp_path / "theirs").write_bytes(b"theirs")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").symlink_to(tmp_path / "theirs")
    (folder / "other.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match=r"config.json, other.json in"):
        expect_free(folder, contents={"config.json": b"ours", "other.json": b"ours"})
    _core.write_beside(folder, {"config.json": b"ours"})
    assert (tmp_path / "theirs").read_bytes() == b"theirs" and not (folder / "config.json").is_symlink()


def test_what_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(OSError, match="config.json: cannot give a file this name"):
        _core.write_beside(tmp_path, {"config.json": b"ours"})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "shardwright.beside"]
    with pytest.raises(FileNotFoundError, match="absent"):
        _core.write_beside(tmp_path / "absent", {"config.json": b"ours"})
