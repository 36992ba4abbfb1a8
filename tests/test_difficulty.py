"""Checks the difficulty filter: pass rates are counts, so no float's last digit decides."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest

from jaxgrpo.errors import UserError
from jaxgrpo.rollout.difficulty import (
    DifficultyFilter,
    History,
    reward_variance,
    variance,
)
from jaxgrpo.rollout.moving_band import MovingBand


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
        ("band", 0.5, 1.0, 4, [2, 3, 4]),  # one-sided: easy problems, all solved too
        ("band", 0.0, 0.5, 4, [0, 1, 2]),  # and hard ones
        ("variance", 0.5, 0.5, 4, [1, 2, 3]),
        ("variance", 0.0, 1.0, 1, []),
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
        UserError,
        match=r"filter\.rule is 'bend': it must be one of band, dapo, variance, off",
    ):
        DifficultyFilter("bend", 0.2, 0.8)


def test_variance_is_that_of_a_verdict():
    variances = [float(variance(solved, 4)) for solved in range(5)]
    assert variances == [0, 0.1875, 0.25, 0.1875, 0]
    assert variance(1, 3) == variance(2, 3)  # exactly: thirds have no float
    assert variance(0, 0) == 0


@pytest.mark.parametrize("group_size", [2, 3, 8, 16])
def test_the_first_and_the_last_pass_rates(group_size):
    """p = 0, 1 / G, (G - 1) / G and 1."""
    solved = [0, 1, group_size - 1, group_size]

    def kept(rule: DifficultyFilter) -> list[bool]:
        return [rule.accepts(count, group_size) for count in solved]

    assert kept(DifficultyFilter("dapo", 0.2, 0.8)) == [False, True, True, False]
    assert kept(DifficultyFilter("off", 0.2, 0.8)) == [True] * 4
    first = Fraction(1, group_size)
    ends = DifficultyFilter("band", first, 1 - first)
    assert kept(ends) == [False, True, True, False]
    inner = DifficultyFilter("band", first + Fraction(1, 1000), 1.0)
    assert kept(inner) == [False, False, group_size > 2, True]


def test_the_variance_of_rewards_is_that_of_advantages():
    """In float32: what differs by less has no variance, and what is missing is left out."""
    assert reward_variance(np.array([0.1] * 8)) == 0
    assert reward_variance(np.array([0.1 + 0.2, 0.3] * 4)) == 0
    assert reward_variance(np.array([1.0, math.nan])) == 0
    assert reward_variance(np.array([])) == 0
    assert reward_variance(np.array([1.0, 0.0, math.nan])) == 0.25
    assert reward_variance(np.array([1e-30, 0.0])) > 0
    rule = DifficultyFilter("variance", 0.0, 1.0, min_variance=0.05)
    assert rule.accepts(0, 8, np.array([0.0, 0.5]))  # 1/16, though none is solved
    assert not rule.accepts(4, 8, np.array([0.0, 0.4]))  # 1/25, though half are
    assert rule.accepts(1, 8)  # without rewards, verdicts: 7/64
    assert not rule.accepts(1, 32)


def test_ends_move_evenly_and_exactly():
    band = MovingBand(DifficultyFilter("band", 0.2, 0.8), 0.4, 0.6, steps=10)
    assert (band.at(1).low, band.at(1).high) == (Fraction(1, 5), Fraction(4, 5))
    # After 5 of 10 steps 0.3: the float between 0.2 and 0.4 is not.
    assert (band.at(6).low, band.at(6).high) == (Fraction(3, 10), Fraction(7, 10))
    assert band.at(6).accepts(3, 10)
    assert (band.at(11), band.at(500)) == (band.at(12), band.at(12))
    assert (band.at(11).low, band.at(11).high) == (Fraction(2, 5), Fraction(3, 5))
    still = MovingBand(DifficultyFilter("band", 0.2, 0.8))
    for solved in range(11):
        assert still.at(9).accepts(solved, 10) == still.first.accepts(solved, 10)
    assert still.next_margin(0.0, kept=0.1) == 0


def test_ends_move_until_the_share_that_is_kept_is_the_target():
    """Groups of 10 with all pass rates alike: the band of three of eleven is found and kept."""
    first = DifficultyFilter("band", 0.2, 0.8)
    band = MovingBand(first, target_kept=0.3, rate=0.1)
    margin = 0.0
    for step in range(1, 100):
        rule = band.at(step, margin)
        kept = sum(rule.accepts(solved, 10) for solved in range(11)) / 11
        margin = band.next_margin(margin, kept)
    assert kept == pytest.approx(0.3, abs=2 / 11)
    # However much is missing, all wrong and all right stay outside.
    wide = band.at(1, margin=0.5)
    assert not wide.accepts(0, 10)
    assert not wide.accepts(64, 64)
    assert wide.accepts(1, 64)
    assert band.next_margin(0.5, kept=0.0) == 0.5


def test_history_comes_back_from_json():
    history = History()
    history.record("arithmetic/1", 3, 8)
    history.record("문제", 0, 0)
    history.record("arithmetic/1", 5, 7)
    restored = History()
    restored.load(json.loads(json.dumps(history.state())))
    assert restored == history
    assert restored.visits == {"arithmetic/1": 2, "문제": 1}
    assert restored.solved == {"arithmetic/1": (5, 7), "문제": (0, 0)}
    restored.record("new", 1, 2)
    assert "new" not in history.visits
