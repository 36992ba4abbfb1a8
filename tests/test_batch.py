"""Laws of batches: which rows and tokens of the groups an update counts."""

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from jaxgrpo.rollout.batch import TrainedRows, ages_of_trained_tokens, make_batch
from jaxgrpo.rollout.down_sampling import max_variance_rows
from tests.tiny_rollouts import NEW, WIDTH, make_group


def test_missing_rewards_train_nothing_and_an_underfull_batch_is_padded():
    groups = [
        make_group("a", [1, 0, 1, 0], [1.0, math.nan, 0.5, 0.0]),
        make_group("b", [1, 0, 0, 0]),
    ]
    batch = make_batch(groups, count=3)
    assert batch.bins is None  # it is not packed
    assert {array.shape[0] for array in batch[:-1]} == {12}
    dtypes = [np.int32, np.int32, bool, np.float32, np.float32, bool]
    assert [array.dtype for array in batch[:-1]] == dtypes
    np.testing.assert_array_equal(
        batch.completion_mask.sum(axis=1), [1, 0, 3, 4, 1, 2, 3, 4, 0, 0, 0, 0]
    )
    np.testing.assert_array_equal(
        batch.rewards, [1, math.nan, 0.5, 0, *groups[1].rewards, *[math.nan] * 4]
    )
    np.testing.assert_array_equal(
        batch.tokens[:8], np.concatenate([group.tokens for group in groups])
    )
    np.testing.assert_array_equal(batch.segments[:4], groups[0].attention_mask)
    assert not batch.segments[8:].any()
    full = make_batch(groups, count=2)
    assert full.tokens.shape == (8, WIDTH + NEW)


def test_truncated_completions_train_nothing_where_they_are_masked():
    group = make_group("a", [1, 0, 1, 0])
    group = replace(group, finished=np.array([True, False, True, False]))
    batch = make_batch([group], 1)
    masked = make_batch([group], 1, TrainedRows(mask_truncated=True))
    assert batch.trained.all()
    np.testing.assert_array_equal(masked.trained, group.finished)
    # The others are still compared with them: with what they chose, too.
    for name in batch._fields:
        if name not in ("trained", "bins"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(masked, name))


def test_the_age_is_that_of_the_tokens_that_an_update_counts():
    """The row that was cut off counts unless it is masked, the one without a reward never."""
    group = make_group("a", [1, 0, 1, 0], [1.0, 0.0, math.nan, 0.0])
    policy_steps = group.policy_steps.copy()
    policy_steps[0] = 5
    policy_steps[1] = 3
    group = replace(group, policy_steps=policy_steps)
    for masked in (False, True):
        rule = TrainedRows(mask_truncated=masked)
        ages = ages_of_trained_tokens([group], 7, rule)
        assert ages.tolist() == [2, 4, 4] + [0] * 4 * (not masked)
        batch = make_batch([group], 1, rule)
        assert len(ages) == (batch.completion_mask & batch.trained[:, None]).sum()


def test_completions_with_a_token_that_is_too_old_train_nothing():
    """One old token is enough; the row is still compared with."""
    group = make_group("a", [1, 0, 1, 0])
    policy_steps = np.full_like(group.policy_steps, 7)
    policy_steps[2, WIDTH] = 4  # the first of row 2's tokens, the others are of step 7
    policy_steps[3] = 5
    policy_steps[1, -1] = 0  # no token was chosen there
    group = replace(group, policy_steps=policy_steps)
    for max_age, expected in ((3, [1, 1, 1, 1]), (2, [1, 1, 0, 1]), (1, [1, 1, 0, 0])):
        rule = TrainedRows(max_age=max_age)
        batch = make_batch([group], 1, rule, step=7)
        assert batch.trained.tolist() == [bool(row) for row in expected]
        assert batch.completion_mask.any(axis=1).all()
        assert ages_of_trained_tokens([group], 7, rule).max() <= max_age


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_rows_of_the_greatest_variance_are_those_of_all_choices(count):
    """No other choice of as many rows has more, as arXiv 2504.13818 proves."""
    random = np.random.default_rng(count)
    for rewards in [
        random.normal(size=6),
        random.integers(0, 2, 6).astype(float),
        np.array([0.0, 0.0, 0.0, 0.0, 0.1, 1.0]),
        np.ones(6),
    ]:
        rows = max_variance_rows(rewards, count)
        assert len(set(rows.tolist())) == count
        greatest = max(
            np.var(rewards[list(choice)]) for choice in combinations(range(6), count)
        )
        assert np.var(rewards[rows]) == pytest.approx(greatest, abs=1e-12)
        assert rows.tolist() == sorted(rows)


def test_missing_rewards_are_taken_last_and_halves_are_even():
    verdicts = np.array([1.0, math.nan, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0])
    for count in (4, 6):
        rows = max_variance_rows(verdicts, count)
        assert verdicts[rows].mean() == 0.5
    assert max_variance_rows(verdicts, 8).tolist() == list(range(8))
    missing = np.full(4, math.nan)
    assert max_variance_rows(missing, 2).tolist() == [0, 1]
    one = np.array([math.nan, 0.5, math.nan, math.nan])
    assert max_variance_rows(one, 2).tolist() == [0, 1]


def test_a_batch_of_some_rows_of_a_group():
    """Rows keep their order; what is missing of one is missing of it still."""
    group = make_group(
        "a",
        [1, 0, math.nan, 0, 1],
        missing={(2, "accuracy"): "timeout", (4, "shape"): "timeout"},
        shape=[0, 1, 2, 3, math.nan],
    )
    rule = TrainedRows(of_group=3)
    chosen = rule.select(group)
    places = rule.places(group).tolist()
    assert places == [1, 3, 4]
    np.testing.assert_array_equal(chosen.rewards, [0, 0, 1])
    np.testing.assert_array_equal(chosen.values["shape"], [1, 3, math.nan])
    assert chosen.missing == {(2, "shape"): "timeout"}
    assert chosen.texts == [group.texts[place] for place in places]
    batch = make_batch([group, group], 3, rule)
    assert batch.tokens.shape == (9, WIDTH + NEW)
    np.testing.assert_array_equal(batch.tokens[:3], group.tokens[places])
    assert not batch.completion_mask[6:].any()
    assert ages_of_trained_tokens([group], 7, rule).size == 2 + 4 + 1
