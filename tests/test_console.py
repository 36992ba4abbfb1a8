"""Lines, durations and tables on the console."""

import re

import pytest

from jaxgrpo import console

METRICS = {column.metric: 0.414 for column in console.COLUMNS}


def cells(line, steps=60):
    """Returns what a step's line shows, by the label above it."""
    header = console.progress_header(steps)
    places = [match.end() for match in re.finditer(r"\S+", header)]
    starts = [0, *places[:-1]]
    values = [line[a:b].strip() for a, b in zip(starts, places, strict=True)]
    return dict(zip(header.split(), values, strict=True))


def test_a_steps_line_shows_what_there_is():
    metrics = METRICS | {"rollout/tokens_per_s": 21234.4, "time/step": 2.0, "x": 1.0}
    shown = cells(console.progress_line(12, metrics, 60, 5 / 3))
    assert shown == {
        "step": "12/60",
        "reward": "0.41",
        "acc": "0.41",
        "words": "0.41",
        "len": "0",
        "cut": "0.41",
        "kept": "0.41",
        "kl": "0.4140",
        "ent": "0.41",
        "tok/s": "21,234",
        "sec": "2.0",
        "eta": "1m20s",
    }
    nothing = cells(console.progress_line(60, {"policy/kl": float("nan")}, 60, 1.7))
    assert {*nothing.values()} == {"60/60", "-", ""}
    assert console.progress_line(3, {}).split()[0] == "3"


def test_a_steps_line_has_80_columns_at_most():
    large = METRICS | {
        "reward/mean": -10.25,
        "completion/tokens": 16384.0,
        "rollout/tokens_per_s": 123456.0,
        "time/step": 999.9,
    }
    line = console.progress_line(9999, large, 20000, 3.0)
    assert len(line) == len(console.progress_header(20000)) <= 80


def test_the_remaining_time_leaves_out_the_first_step(monkeypatch, capsys):
    """It had to compile. Labels are shown anew under twenty lines."""
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: False)
    clock = iter([100.0, 102.0, *range(104, 200, 2)])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    progress = console.Progress(1, 60)
    for step in range(1, 23):
        progress.show(step, METRICS)
    lines = capsys.readouterr().out.splitlines()
    assert [lines.index(lines[0], start) for start in (0, 1)] == [0, 21]
    assert cells(lines[1])["eta"] == ""
    assert cells(lines[2])["eta"] == "1m56s"
    assert cells(lines[23])["eta"] == "1m16s"


def test_quiet_progress_prints_nothing(capsys):
    progress = console.Progress(1, 60, quiet=True)
    progress.show(1, METRICS)
    progress.print_line("x")
    progress.close()
    assert capsys.readouterr() == ("", "")


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
