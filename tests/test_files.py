"""A file is written whole or not at all."""

import json

import pytest

from jaxgrpo.files import write_atomically, write_json


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"text": "안녕", "value": 1.5})
    write_json(path, {"text": "二"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"text": "二"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_was_interrupted_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    write_atomically(path, b"old\n")

    def interrupted(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"new\n")
    assert path.read_bytes() == b"old\n"


def test_nan_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "summary.json", {"value": float("nan")})
    assert list(tmp_path.iterdir()) == []
