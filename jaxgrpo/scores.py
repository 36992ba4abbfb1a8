"""Scores of an evaluation by problem, and how sure they are: NumPy alone.

    accuracy    share of the samples that are right, avg@k
    pass@k      chance that one of k samples is right, unbiased (arXiv 2107.03374)
    maj@k       whether the most frequent answer of all k samples is right (arXiv 2203.11171)

A score is a mean over problems. Its interval is a percentile bootstrap over problems.
"""

import numpy as np
from jaxtyping import Float

RESAMPLES = 2000
"""Resamples of the bootstrap."""

LEVEL = 0.95
"""The share of intervals that hold the truth."""

NO_VOTE = -1.0
"""The vote of a completion without an answer."""

_INDICES_AT_ONCE = 2_000_000
"""Indices of resampled problems that are held at once, to bound the memory."""


def counts_of_samples(samples: int) -> list[int]:
    """Returns the k of pass@k: 1, 2, 4, ... up to the number of samples, and that number."""
    powers = [1 << exponent for exponent in range(samples.bit_length())]
    return sorted({*powers, samples})


def names(samples: int) -> list[str]:
    """Returns the names of the scores of so many samples, for each of which more is better."""
    passes = [f"pass_at_{k}" for k in counts_of_samples(samples)]
    # One sample has no majority.
    majority_names = [f"maj_at_{samples}"] if samples > 1 else []
    return ["accuracy", *passes, *majority_names]


def pass_at_k(right: int, samples: int, k: int) -> float:
    """Returns the unbiased estimate of the chance that one of k samples is right.

    It is 1 - C(n - c, k) / C(n, k): the share of all subsets of k samples that hold a right one.

    right: c, samples that are right
    samples: n, samples of which it is known whether they are right

    NaN with fewer than k of them.
    """
    if samples < k:
        return float("nan")
    if samples - right < k:
        return 1.0
    # The quotient as a product of k factors below 1: binomials themselves would overflow.
    sizes = np.arange(samples - k + 1, samples + 1)
    return float(1.0 - np.prod(1.0 - right / sizes))


def majority(votes: Float[np.ndarray, "G"], is_right: Float[np.ndarray, "G"]) -> float:
    """Returns maj@k of a problem: 1.0 if its most frequent answer is right, else 0.0.

    A completion without an answer has no vote; without any vote it is 0.0. Of several answers that
    are the most frequent, the share that is right: what choosing one of them at random comes to on
    average. An answer is as right as the first completion that gives it.

    votes: the same number for the same answer, NO_VOTE for none; NaN where it is not known
    is_right: 1.0 or 0.0; NaN where it is not known

    NaN where what decides is not known.
    """
    if np.isnan(votes).any():
        return float("nan")
    answers, firsts, counts = np.unique(
        votes[votes != NO_VOTE], return_index=True, return_counts=True
    )
    if not len(answers):
        return 0.0
    first_rows = np.flatnonzero(votes != NO_VOTE)[firsts]
    return float(np.mean(is_right[first_rows[counts == counts.max()]]))


def interval(
    values: Float[np.ndarray, "P"], resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Returns the ends of the 95 % interval of a mean over problems, by percentile bootstrap.

    Problems are resampled, not completions: samples of one problem are alike, and the next data set
    has other problems. The same values give the same interval.

    values: a score of each problem; NaN is left out

    NaN for both without values.
    """
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        return float("nan"), float("nan")
    rng = np.random.default_rng(0)
    rows = max(1, _INDICES_AT_ONCE // len(known))
    means = []
    for start in range(0, resamples, rows):
        shape = (min(rows, resamples - start), len(known))
        chosen = rng.integers(len(known), size=shape, dtype=np.int32)
        means.append(known[chosen].mean(axis=1))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)
