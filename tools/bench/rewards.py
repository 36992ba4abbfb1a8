"""`python -m tools.bench rewards`: how many verdicts a second the pool gives for answers to GSM8K."""

import argparse
import statistics
import time

from jaxgrpo.problems import Problem, Weighted
from jaxgrpo.rewards.maths import verifier
from jaxgrpo.rewards.workers.pool import Pool
from tools.bench.turns import Result

GROUP = 8
SOLUTION = (
    "<think>Natalia sold 48/2 = <<48/2={half}>>{half} clips in May, which is half as many as in April.\n"
    "Altogether she sold 48 + {half} = <<48+{half}={total}>>{total} clips in April and May, so that is the total.</think>"
)
ANSWERS = (r"\boxed{{{total:,}}}", r"\boxed{{{total}.0}}", "#### {total}", r"\boxed{{\${total}}}", r"\boxed{{{wrong}}}",
           r"\boxed{{{total} \text{{ clips}}}}", r"\boxed{{\frac{{{total}}}{{1}}}}", "I do not know.")  # fmt: skip
VERDICTS = [1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0]


def group(index: int) -> tuple[Problem, list[str]]:
    """A problem and eight completions, six of them right, in the forms that models give answers."""
    half = 17 * index + 24
    numbers = {"half": half, "total": 48 + half, "wrong": 47 + half}
    texts = [(SOLUTION + "\n" + answer).format(**numbers) for answer in ANSWERS]
    return Problem(
        f"bench:{index}", "How many clips did Natalia sell altogether?", str(48 + half)
    ), texts


def bench_rewards(arguments: argparse.Namespace) -> Result:
    """Verdicts of rewards.math.accuracy on GSM8K-style completions, by workers that have started: how many a second."""
    groups = [group(index) for index in range(-(-arguments.verdicts // GROUP))]
    with Pool({"accuracy": Weighted(verifier.accuracy)}, arguments.workers, deadline=10.0) as pool:
        _, *seconds = [seconds_to_judge(pool, groups) for _ in range(1 + arguments.repeats)]
    median, verdicts = statistics.median(seconds), len(groups) * GROUP
    return {
        "verdicts": verdicts,
        "seconds": seconds,
        "median_s": median,
        "verdicts_per_s": verdicts / median,
    }


def seconds_to_judge(pool: Pool, groups: list[tuple[Problem, list[str]]]) -> float:
    """The time of a turn; RuntimeError if a verdict is not as expected."""
    begin = time.perf_counter()
    tickets = [pool.submit(problem, texts) for problem, texts in groups]
    values = [values["accuracy"] for ticket in tickets for values in pool.result(ticket)]
    seconds = time.perf_counter() - begin
    if values != VERDICTS * len(groups):
        raise RuntimeError("a verdict is not the expected one")
    return seconds
