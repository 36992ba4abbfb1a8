"""Measures how many verdicts a second the pool gives for answers to a problem of GSM8K.

python -m tools.bench rewards
"""

import argparse
import statistics
import time

from jaxgrpo.problems import Problem, Weighted
from jaxgrpo.rewards.maths import verifier
from jaxgrpo.rewards.workers.pool import Pool
from tools.bench.turns import Result

# As long as a short chain of thought of GSM8K, with its calculator marks.
SOLUTION = (
    "<think>Natalia sold 48/2 = <<48/2={half}>>{half} clips in May, which is half as many as in "
    "April.\n"
    "Altogether she sold 48 + {half} = <<48+{half}={total}>>{total} clips in April and May, so "
    "that is the total.</think>"
)

ANSWERS = (
    (r"\boxed{{{total:,}}}", 1.0),
    (r"\boxed{{{total}.0}}", 1.0),
    ("#### {total}", 1.0),
    (r"\boxed{{\${total}}}", 1.0),
    (r"\boxed{{{wrong}}}", 0.0),
    (r"\boxed{{{total} \text{{ clips}}}}", 1.0),
    (r"\boxed{{\frac{{{total}}}{{1}}}}", 1.0),
    ("I do not know.", 0.0),
)
"""Answers in the forms that models give, and the verdict that each must have."""

GROUP_SIZE = len(ANSWERS)


def make_group(index: int) -> tuple[Problem, list[str]]:
    """Returns a problem and a completion with each of ANSWERS, six of them right."""
    # Other numbers for every problem, so that no cache of a verifier helps.
    half = 17 * index + 24
    numbers = {"half": half, "total": 48 + half, "wrong": 47 + half}
    texts = [f"{SOLUTION}\n{answer}".format(**numbers) for answer, _ in ANSWERS]
    problem = Problem(
        f"bench:{index}", "How many clips did Natalia sell altogether?", str(48 + half)
    )
    return problem, texts


def bench_rewards(arguments: argparse.Namespace) -> Result:
    """Measures verdicts a second of rewards.maths.verifier.accuracy on GSM8K-style completions.

    The workers have started when the clock starts.
    """
    num_groups = -(-arguments.verdicts // GROUP_SIZE)  # rounded up
    groups = [make_group(index) for index in range(num_groups)]
    with Pool(
        {"accuracy": Weighted(verifier.accuracy)}, arguments.workers, deadline=10.0
    ) as pool:
        seconds_to_judge(pool, groups)  # warms up, and is not counted
        seconds = [seconds_to_judge(pool, groups) for _ in range(arguments.repeats)]
    median = statistics.median(seconds)
    num_verdicts = num_groups * GROUP_SIZE
    return {
        "verdicts": num_verdicts,
        "seconds": seconds,
        "median_s": median,
        "verdicts_per_s": num_verdicts / median,
    }


def seconds_to_judge(pool: Pool, groups: list[tuple[Problem, list[str]]]) -> float:
    """Returns the seconds that the verdicts of all groups take.

    Raises RuntimeError if a verdict is not the expected one.
    """
    begin = time.perf_counter()
    # All are submitted before the first is waited for, as a run does.
    tickets = [pool.submit(problem, texts) for problem, texts in groups]
    verdicts = [
        values["accuracy"] for ticket in tickets for values in pool.result(ticket)
    ]
    seconds = time.perf_counter() - begin
    # A fast verifier that is wrong would be no result.
    expected = [verdict for _, verdict in ANSWERS] * len(groups)
    if verdicts != expected:
        raise RuntimeError("a verdict is not the expected one")
    return seconds
