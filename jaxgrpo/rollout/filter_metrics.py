"""What a filter did in a step, and what its groups are worth by the theory of arXiv 2504.03380.

For the optimal policy pi* ~ pi_init exp(r / beta), with a reward r of 0 or 1 that pi_init earns
with probability p:

    log pi_init / pi* = log Z - r / beta,    Z = 1 - p + p exp(1 / beta)
    KL(pi_init || pi*) = log(1 - p + p exp(1 / beta)) - p / beta
                       = p (1 - p) / (2 beta^2) + O(1 / beta^3)
"""

import math
from collections.abc import Sequence

import numpy as np

from jaxgrpo.rollout import difficulty
from jaxgrpo.rollout.difficulty import DifficultyFilter
from jaxgrpo.rollout.groups import JudgedGroup
from jaxgrpo.rollout.report import mean

INNER_ENDS = (0.25, 0.5, 0.75)
"""Where the histogram of pass rates between 0 and 1 is cut; a bin has its lower end."""


def divergence(pass_rate: float, beta: float) -> float:
    """Returns KL(pi_init || pi*) of a problem whose reward is 0 or 1, in nats."""
    if pass_rate in (0.0, 1.0):
        return 0.0
    # exp(1 / beta) alone would overflow.
    log_partition = np.logaddexp(math.log1p(-pass_rate), math.log(pass_rate) + 1 / beta)
    return float(log_partition) - pass_rate / beta


def leading_term(variance: float, beta: float) -> float:
    """Returns Var(r) / (2 beta^2), to which the divergence goes for a great beta.

    It is no bound: at beta = 1 and p = 1/2 it is 0.125, and the divergence 0.120.
    """
    return variance / (2 * beta**2)


def filter_metrics(
    asked: Sequence[JudgedGroup],
    kept: Sequence[JudgedGroup],
    trained: Sequence[JudgedGroup],
    rule: DifficultyFilter,
    beta: float,
) -> dict[str, float]:
    """Returns the metrics of a step's filter.

        filter/kept: groups that passed, as a share of those that were asked
        filter/asked, filter/groups: groups that were asked, and that are trained on
        filter/oversampling: the first over the second; NaN where none is trained on
        filter/too_hard, filter/too_easy: shares of those asked, below and above the band
        filter/pass_rate/...: shares of those asked, by pass rate: none is solved, up to each of
            INNER_ENDS, below 1, and all are solved
        filter/variance, filter/variance_trained: the mean of p (1 - p), of those asked and trained
        filter/leading_term, filter/divergence: of those asked, the mean over the groups
        completion/tokens_trained: the mean length in the groups that are trained on, beside
            completion/tokens, which is that of all

    asked: every group that was judged
    beta: of the optimal policy
    """
    judged = [group for group in asked if group.judged]
    sides = [rule.side(group.solved, group.judged) for group in judged]
    pass_rates = [group.solved / group.judged for group in judged]
    variances = [_variance(group) for group in judged]
    shares = {
        f"filter/pass_rate/{name}": count / len(asked)
        for name, count in _histogram(pass_rates).items()
    }
    return shares | {
        "filter/kept": len(kept) / len(asked),
        "filter/asked": len(asked),
        "filter/groups": len(trained),
        "filter/oversampling": len(asked) / len(trained) if trained else math.nan,
        "filter/too_hard": sides.count(-1) / len(asked),
        "filter/too_easy": sides.count(1) / len(asked),
        "filter/variance": mean(variances),
        "filter/variance_trained": mean(map(_variance, trained)),
        "filter/leading_term": mean(leading_term(each, beta) for each in variances),
        "filter/divergence": mean(divergence(rate, beta) for rate in pass_rates),
        "completion/tokens_trained": mean(
            text.tokens for group in trained for text in group.texts
        ),
    }


def _variance(group: JudgedGroup) -> float:
    return float(difficulty.variance(group.solved, group.judged))


def _histogram(pass_rates: Sequence[float]) -> dict[str, int]:
    """Returns how many pass rates are 0, in each part between, and 1: "none", "0.25" ... "all"."""
    names = ["none", *(f"below_{end:g}" for end in (*INNER_ENDS, 1.0)), "all"]
    counts = dict.fromkeys(names, 0)
    for rate in pass_rates:
        place = int(np.searchsorted(INNER_ENDS, rate, side="right")) + 1
        counts[names[0 if rate == 0 else -1 if rate == 1 else place]] += 1
    return counts
