"""Every step has one line, whatever happened to the process that wrote it."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo import metrics
from jaxgrpo.metrics import Writer


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_step_is_a_line_of_valid_json(tmp_path, capsys):
    with Writer(tmp_path, steps=2) as writer:
        writer.write(
            1, {"reward/accuracy": jnp.float32(0.5), "policy/kl": np.float64("nan"), "time/step": 2}
        )
        writer.write(2, {"reward/accuracy": np.float32(0.25), "update/loss": float("-inf")})
    assert lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "reward/accuracy": 0.5, "policy/kl": None, "time/step": 2.0},
        {"step": 2, "reward/accuracy": 0.25, "update/loss": None},
    ]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("step 1/2  accuracy 0.50  kl nan  2.0 s  eta ")
    assert shown[1] == "step 2/2  accuracy 0.25  loss -inf"
    assert any((tmp_path / "tensorboard").iterdir())


def test_resuming_neither_loses_nor_doubles_a_step(tmp_path):
    with Writer(tmp_path) as writer:
        for step in range(5):
            writer.write(step, {"reward/accuracy": step / 10})
            writer.rollouts(step, [{"text": "안녕"}, {"text": "二"}])
    for name in ("metrics", "rollouts"):  # what a SIGKILL leaves
        with (tmp_path / f"{name}.jsonl").open("a") as file:
            file.write('{"step": 2, "rew')
    with Writer(tmp_path, start_step=3) as writer:
        assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [0, 1, 2]
        for step in range(3, 6):
            writer.write(step, {"reward/accuracy": 1.0})
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3, 4, 5]
    assert lines(tmp_path / "metrics.jsonl")[3]["reward/accuracy"] == 1.0
    assert [line["step"] for line in lines(tmp_path / "rollouts.jsonl")] == [0, 0, 1, 1, 2, 2]
    assert "안녕" in (tmp_path / "rollouts.jsonl").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "metrics.jsonl",
        "rollouts.jsonl",
        "tensorboard",
    ]


def test_a_whole_line_without_its_end_is_written_again(tmp_path):
    """Its step may be before the checkpoint only if it was flushed, and then the end of the line was too."""
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
        writer.rollouts(0, [{}])
        writer.flush()
    assert not (tmp_path / "out").exists()


def test_progress_line_shows_what_there_is():
    line = metrics.progress_line(
        12, {"rollout/tokens_per_s": 1234.4, "reward/accuracy": 0.414, "other": 1.0}, 60, 5 / 3
    )
    assert line == "step 12/60  accuracy 0.41  1,234 tok/s  eta 1m20s"
    assert metrics.progress_line(60, {}, 60, 1.7) == "step 60/60"
    assert metrics.progress_line(3, {}) == "step 3"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (80.0, "1m20s"), (7500.0, "2h05m")],
)
def test_duration(seconds, text):
    assert metrics.duration(seconds) == text


def test_table_is_aligned():
    rows = [
        {"language": "en", "level": 1, "accuracy": 0.8125},
        {"language": "all", "accuracy": float("nan")},
    ]
    assert metrics.table(rows, ["language", "level", "accuracy"]) == (
        "language  level  accuracy\n"
        "en            1     0.812\n"
        "all           -         -"
    )  # fmt: skip


def test_running_mean_skips_what_is_missing():
    values = np.array([1.0, np.nan, 3.0, 5.0, np.nan, np.nan])
    np.testing.assert_allclose(metrics.running_mean(values, 2), [1, 1, 3, 4, 5, np.nan])


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    assert metrics.plot(tmp_path) is None
    with Writer(tmp_path) as writer:
        writer.write(0, {"reward/accuracy": 0.5, "policy/kl": float("nan")})
        writer.write(1, {"policy/entropy": 0.5})
    (tmp_path / "summary.json").write_text(
        '{"before": {"reward/accuracy": 0.1}, "after": {"reward/accuracy": 0.2}}'
    )
    assert metrics.plot(tmp_path).read_bytes().startswith(b"\x89PNG")
