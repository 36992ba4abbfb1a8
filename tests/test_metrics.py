"""Every step has one line in the file, whatever happened to the process that wrote it."""

import json

import jax.numpy as jnp
import numpy as np

from jaxgrpo import metrics
from jaxgrpo.metrics import Writer


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_step_is_a_line_of_valid_json(tmp_path, capsys):
    with Writer(tmp_path, steps=2) as writer:
        writer.write(
            1,
            {
                "reward/accuracy": jnp.float32(0.5),
                "policy/kl": np.float64("nan"),
                "time/step": 2,
            },
        )
        writer.write(
            2, {"reward/accuracy": np.float32(0.25), "update/loss": float("-inf")}
        )
    assert lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "reward/accuracy": 0.5, "policy/kl": None, "time/step": 2.0},
        {"step": 2, "reward/accuracy": 0.25, "update/loss": None},
    ]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split()[:2] == ["step", "reward"]
    assert shown[1].split() == [
        "1/2",
        "-",
        "0.50",
        "-",
        "-",
        "-",
        "-",
        "-",
        "-",
        "-",
        "2.0",
    ]
    assert shown[2].split()[:3] == ["2/2", "-", "0.25"]
    assert any((tmp_path / "tensorboard").iterdir())


def test_resuming_neither_loses_nor_doubles_a_step(tmp_path):
    with Writer(tmp_path) as writer:
        for step in range(5):
            writer.write(step, {"reward/accuracy": step / 10})
            writer.write_rollouts(step, [{"text": "안녕"}, {"text": "二"}])
    for name in ("metrics", "rollouts"):  # a SIGKILL can leave part of a line
        with (tmp_path / f"{name}.jsonl").open("a") as file:
            file.write('{"step": 2, "rew')
    with Writer(tmp_path, start_step=3) as writer:
        assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [0, 1, 2]
        for step in range(3, 6):
            writer.write(step, {"reward/accuracy": 1.0})
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [
        0,
        1,
        2,
        3,
        4,
        5,
    ]
    assert lines(tmp_path / "metrics.jsonl")[3]["reward/accuracy"] == 1.0
    assert [line["step"] for line in lines(tmp_path / "rollouts.jsonl")] == [
        0,
        0,
        1,
        1,
        2,
        2,
    ]
    assert "안녕" in (tmp_path / "rollouts.jsonl").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "metrics.jsonl",
        "rollouts.jsonl",
        "tensorboard",
    ]


def test_a_whole_line_without_its_end_is_written_again(tmp_path):
    """The step of such a line was never checkpointed: a flush would have written the line's end."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}')
    metrics.truncate(path, start_step=5)
    assert path.read_text() == '{"step": 0}\n'


def test_a_fresh_run_begins_with_empty_files(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n')
    Writer(tmp_path).close()
    assert metrics.read(tmp_path) == []


def test_processes_that_do_not_write_touch_nothing(tmp_path):
    with Writer(tmp_path / "out", active=False) as writer:
        writer.write(0, {"reward/accuracy": 1.0})
        writer.write_rollouts(0, [{}])
        writer.flush()
    assert not (tmp_path / "out").exists()
