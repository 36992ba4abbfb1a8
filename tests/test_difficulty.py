"""Checks the difficulty filter: pass rates are counts, so no float's last digit decides."""

import json

import pytest

from jaxgrpo.errors import UserError
from jaxgrpo.rollout.difficulty import DifficultyFilter, History, variance


@pytest.mark.parametrize(
    ("rule", "low", "high", "judged", "kept"),
    [
        ("band", 0.2, 0.8, 5, [1, 2, 3, 4]),  # both ends belong to the band
        ("band", 0.2, 0.8, 8, [2, 3, 4, 5, 6]),
        ("band", 0.2, 0.8, 10, [2, 3, 4, 5, 6, 7, 8]),
        ("band", 0.3, 0.7, 10, [3, 4, 5, 6, 7]),  # neither end is the float next to it
        ("band", 0.1, 0.3, 10, [1, 2, 3]),  # 0.1 * 3 is more than 0.3
        # 0.29 * 100 and 0.57 * 100 are not 29 and 57
        ("band", 0.29, 0.57, 100, list(range(29, 58))),
        ("band", 0.0, 1.0, 3, [0, 1, 2, 3]),
        ("band", 0.5, 0.5, 8, [4]),
        ("band", 1e-3, 0.999, 2, [1]),
        ("dapo", 0.5, 0.5, 4, [1, 2, 3]),  # the band's ends are not for this rule
        ("off", 0.5, 0.5, 4, [0, 1, 2, 3, 4]),
        ("band", 0.0, 1.0, 1, []),  # a group of one has nothing to be compared with
        ("dapo", 0.0, 1.0, 1, []),
        ("off", 0.0, 1.0, 1, []),
        ("off", 0.0, 1.0, 0, []),
        ("band", 0.0, 1.0, 0, []),
    ],
)
def test_what_is_kept(rule, low, high, judged, kept):
    passes = DifficultyFilter(rule, low, high)
    assert [n for n in range(judged + 1) if passes.accepts(n, judged)] == kept


@pytest.mark.parametrize("group_size", range(2, 65))
def test_the_band_ends_are_exact_for_every_group_size(group_size):
    """p = k / n is in the band [a / 100, b / 100] when 100 k is in [a n, b n]: integers alone."""
    for low, high in ((20, 80), (30, 70), (7, 93), (58, 58)):
        passes = DifficultyFilter("band", low / 100, high / 100)
        for solved in range(group_size + 1):
            expected = low * group_size <= 100 * solved <= high * group_size
            assert passes.accepts(solved, group_size) == expected


def test_missing_verdicts_are_not_failures():
    """1 of 4 verdicts that could be had is a pass rate of a quarter, whatever the group's size."""
    assert DifficultyFilter("band", 0.25, 0.8).accepts(1, 4)
    assert not DifficultyFilter("band", 0.25, 0.8).accepts(1, 8)
    assert DifficultyFilter("dapo", 0.0, 1.0).accepts(1, 2)


def test_too_hard_and_too_easy_are_what_is_not_kept():
    def sides(rule: str, judged: int) -> list[int]:
        passes = DifficultyFilter(rule, 0.2, 0.8)
        return [passes.side(solved, judged) for solved in range(judged + 1)]

    assert sides("band", 10) == [-1, -1, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    assert sides("dapo", 3) == [-1, 0, 0, 1]
    assert sides("off", 3) == [0, 0, 0, 0]


def test_an_unknown_rule_is_refused():
    with pytest.raises(
        UserError, match=r"filter\.rule is 'bend': it must be one of band, dapo, off"
    ):
        DifficultyFilter("bend", 0.2, 0.8)


def test_variance_is_that_of_a_verdict():
    variances = [float(variance(solved, 4)) for solved in range(5)]
    assert variances == [0, 0.1875, 0.25, 0.1875, 0]
    assert variance(1, 3) == variance(2, 3)  # exactly: thirds have no float
    assert variance(0, 0) == 0


def test_history_comes_back_from_json():
    history = History()
    history.record("arithmetic/1", 3, 8)
    history.record("문제", 0, 0)
    history.record("arithmetic/1", 5, 7)
    restored = History.restore(json.loads(json.dumps(history.state())))
    assert restored == history
    assert restored.visits == {"arithmetic/1": 2, "문제": 1}
    assert restored.solved == {"arithmetic/1": (5, 7), "문제": (0, 0)}
    restored.record("new", 1, 2)
    assert "new" not in history.visits
