"""Lines, durations and tables on the console."""

import pytest

from jaxgrpo import console


def test_progress_line_shows_what_there_is():
    line = console.progress_line(
        12,
        {"rollout/tokens_per_s": 1234.4, "reward/accuracy": 0.414, "other": 1.0},
        60,
        5 / 3,
    )
    assert line == "step 12/60  accuracy 0.41  1,234 tok/s  eta 1m20s"
    assert console.progress_line(60, {}, 60, 1.7) == "step 60/60"
    assert console.progress_line(3, {}) == "step 3"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (80.0, "1m20s"), (7500.0, "2h05m")],
)
def test_duration(seconds, text):
    assert console.format_duration(seconds) == text


def test_table_is_aligned():
    rows = [
        {"language": "en", "level": 1, "accuracy": 0.8125},
        {"language": "all", "accuracy": float("nan")},
    ]
    assert console.format_table(rows, ["language", "level", "accuracy"]) == (
        "language  level  accuracy\n"
        "en            1     0.812\n"
        "all           -         -"
    )  # fmt: skip
