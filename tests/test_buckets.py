"""What is in a bucket is read and written as a folder is, and a run goes on from there."""

import os

import pytest

from jaxgrpo import files
from tests.buckets import BUCKET, serve_bucket


@pytest.fixture(scope="module")
def bucket():
    with serve_bucket():
        yield BUCKET


@pytest.fixture(autouse=True)
def own_machine(tmp_path, monkeypatch):
    """Each test is on a machine of its own, which has copies of nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "_runs", {})


def test_what_is_written_whole_is_in_the_bucket_at_once(bucket):
    folder = files.run_folder(f"{bucket}/whole")
    path = folder / "summary.json"
    files.write_json(path, {"steps": 2})
    assert (
        files.fetched_file(f"{bucket}/whole", "summary.json").read_bytes()
        == path.read_bytes()
    )
    files.remove(path)
    assert not files.fetched_file(f"{bucket}/whole", "summary.json").exists()


def test_what_grows_is_in_the_bucket_when_it_is_uploaded(bucket, monkeypatch):
    folder = files.run_folder(f"{bucket}/grows")
    path = folder / "inner" / "metrics.jsonl"
    path.parent.mkdir()
    for line in ("one\n", "two\n"):
        with path.open("a") as file:
            file.write(line)
        files.upload(folder)
    # Another machine
    monkeypatch.setattr(files, "_runs", {})
    assert (
        files.run_folder(f"{bucket}/grows") / "inner" / "metrics.jsonl"
    ).read_text() == "one\ntwo\n"


def test_a_copy_follows_the_bucket(bucket):
    folder = files.run_folder(f"{bucket}/data")
    for name in ("a.jsonl", "b.jsonl", "weights.bin"):
        files.write_atomically(folder / name, b"1")
    copy = files.fetched(f"{bucket}/data")
    assert sorted(os.listdir(copy)) == ["a.jsonl", "b.jsonl"]
    files.write_atomically(folder / "a.jsonl", b"2")
    files.remove(folder / "b.jsonl")
    assert files.fetched(f"{bucket}/data/") == copy
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == {
        "a.jsonl": b"2"
    }
