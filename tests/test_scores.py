"""Laws of scores: pass@k is a share of subsets, maj@k a vote, intervals hold the truth."""

import itertools
import math

import numpy as np
import pytest

from jaxgrpo import scores
from jaxgrpo.problems import Completion, Problem
from jaxgrpo.rewards import languages, maths
from jaxgrpo.rewards.maths.votes import Votes, votes_of

NAN = math.nan


@pytest.mark.parametrize("samples", range(1, 9))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(samples):
    for right in range(samples + 1):
        is_right = [True] * right + [False] * (samples - right)
        for k in range(1, samples + 1):
            subsets = list(itertools.combinations(is_right, k))
            share = sum(any(subset) for subset in subsets) / len(subsets)
            assert scores.pass_at_k(right, samples, k) == pytest.approx(
                share, abs=1e-12
            )


def test_pass_at_k_of_many_samples_is_finite():
    """C(10,000, 1,000) has 1,400 digits."""
    assert scores.pass_at_k(0, 10_000, 1_000) == 0.0
    expected = 1 - 0.9 * (1 - 1_000 / 9_999)  # two right: neither is among the chosen
    assert scores.pass_at_k(2, 10_000, 1_000) == pytest.approx(expected)


def test_pass_at_more_samples_than_there_are_verdicts_is_not_known():
    assert math.isnan(scores.pass_at_k(3, 3, 4))


def test_the_ks_go_up_to_the_samples():
    assert scores.counts_of_samples(1) == [1]
    assert scores.counts_of_samples(8) == [1, 2, 4, 8]
    assert scores.counts_of_samples(6) == [1, 2, 4, 6]
    assert scores.names(1) == ["accuracy", "pass_at_1"]
    assert scores.names(4)[-2:] == ["pass_at_4", "maj_at_4"]


@pytest.mark.parametrize(
    ("votes", "is_right", "expected"),
    [
        ([0, 0, 2, 3], [1, 1, 0, 0], 1.0),
        ([0, 1, 1, 3], [1, 0, 0, 0], 0.0),
        ([0, 0, 2, 2], [1, 1, 0, 0], 0.5),  # a tie of a right and a wrong answer
        ([0, 1, 2, -1], [0, 1, 0, 0], 1 / 3),
        ([-1, -1, -1, 3], [0, 0, 0, 1], 1.0),  # no answer is no vote
        ([-1, -1, -1, -1], [0, 0, 0, 0], 0.0),
        ([NAN, NAN, NAN, NAN], [1, 1, 1, 1], NAN),
        ([0, 0, 2, -1], [NAN, 1, 0, 0], NAN),
        ([0, 0, 2, -1], [1, 1, NAN, 0], 1.0),  # what is not known decides nothing
    ],
)
def test_the_majority_is_right_or_wrong(votes, is_right, expected):
    found = scores.majority(np.array(votes, float), np.array(is_right, float))
    assert found == pytest.approx(expected, nan_ok=True)


def test_a_tie_counts_as_a_random_order_of_the_samples_would():
    """The field takes the answer that came first; on average over orders it is the same."""
    votes = [0, 0, 2, 2, 4]
    is_right = [1.0, 1.0, 0.0, 0.0, 0.0]
    firsts = []
    for order in itertools.permutations(range(5)):
        shuffled = [votes[index] for index in order]
        most_frequent = max(shuffled, key=shuffled.count)
        firsts.append(is_right[most_frequent])
    found = scores.majority(np.array(votes, float), np.array(is_right))
    assert found == pytest.approx(np.mean(firsts))


def test_95_percent_intervals_hold_the_truth():
    """1,000 evaluations of 150 problems with 4 samples, of a policy whose accuracy is known."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        rates = rng.beta(2, 1, size=150)  # of problems, with a mean of 2/3
        accuracy = rng.binomial(4, rates) / 4
        low, high = scores.interval(accuracy, resamples=500)
        held += low <= 2 / 3 <= high
    assert 930 <= held <= 970


def test_intervals_are_the_same_at_every_call_and_leave_out_what_is_missing():
    values = np.array([0, 1, 1, 0.5, NAN, 0.25])
    assert scores.interval(values) == scores.interval(values[~np.isnan(values)])
    assert scores.interval(np.array([0.5])) == (0.5, 0.5)
    assert all(map(math.isnan, scores.interval(np.array([NAN]))))


def test_an_interval_of_many_problems_does_not_depend_on_how_it_is_computed(
    monkeypatch,
):
    values = np.random.default_rng(0).random(50)
    whole = scores.interval(values)
    monkeypatch.setattr(scores, "_INDICES_AT_ONCE", 333)
    assert scores.interval(values) == whole


def votes(language, *answers, tolerance=0.0):
    texts = [Completion(f"so \\boxed{{{answer}}}", 3) for answer in answers]
    return Votes(tolerance=tolerance)(Problem("p", "?", "7", language), texts)


def test_answers_are_the_same_as_the_verifier_has_it():
    assert votes("en", "1/2", "0.5", "2", r"\frac{1}{2}", "2.0") == [0, 0, 2, 0, 2]
    assert votes("en", "x^2-1", "(x-1)(x+1)", "", "x") == [0, 0, -1, 3]
    assert votes("en", "100", "101", tolerance=0.02) == [0, 0]
    assert votes("de", "3,5", "7/2") == [0, 0]
    assert votes("en", "3,5", "7/2") == [0, 1]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (("7", "07", "-7", "", "7"), [0, 0, 2, -1, 0]),
        (("", ""), [-1, -1]),
        (("7", "7.0"), None),
        (("7", "1,234"), None),
        (("7" * 16, "7"), None),
        (("\u0667", "7"), None),
    ],
)
def test_plain_numbers_are_compared_at_once(answers, expected):
    texts = [Completion(f"so \\boxed{{{answer}}}", 3) for answer in answers]
    assert Votes().plain(texts) == expected
    assert Votes(tolerance=0.1).plain(texts) is None
    if expected is not None:
        assert votes("en", *answers) == expected


def test_votes_are_read_where_the_reward_reads():
    by_number = votes_of(maths.Accuracy(extract=("number",), tolerance=0.1))
    assert by_number == Votes(("number",), 0.1)
    assert by_number.read("it is 7 I think") == "7"
    assert votes_of(maths.accuracy).read("it is 7 I think") is None
    assert votes_of(languages.target_word_ratio) is None
