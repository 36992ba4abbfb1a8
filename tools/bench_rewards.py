"""How many verdicts a second the pool gives for answers to GSM8K.

python -m tools.bench_rewards --verdicts 5000 --workers 2 [--json]
"""

import argparse
import json
import sys
import time
from typing import Any

from jaxgrpo.problems import Problem, Weighted
from jaxgrpo.rewards import math
from jaxgrpo.rewards.pool import Pool

GROUP = 8
SOLUTION = (
    "<think>Natalia sold 48/2 = <<48/2={half}>>{half} clips in May, which is half as many as in April.\n"
    "Altogether she sold 48 + {half} = <<48+{half}={total}>>{total} clips in April and May, so that is the total.</think>"
)
ANSWERS = (r"\boxed{{{total:,}}}", r"\boxed{{{total}.0}}", "#### {total}", r"\boxed{{\${total}}}", r"\boxed{{{wrong}}}",
           r"\boxed{{{total} \text{{ clips}}}}", r"\boxed{{\frac{{{total}}}{{1}}}}", "I do not know.")  # fmt: skip


def group(index: int) -> tuple[Problem, list[str]]:
    """A problem and eight completions, six of them right, in the forms that models give answers."""
    half = 17 * index + 24
    numbers = {"half": half, "total": 48 + half, "wrong": 47 + half}
    texts = [(SOLUTION + "\n" + answer).format(**numbers) for answer in ANSWERS]
    return Problem(f"bench:{index}", "How many clips did Natalia sell altogether?", str(48 + half)), texts


def run(verdicts: int = 5000, workers: int = 2) -> dict[str, Any]:
    """The figures of `verdicts` verdicts on `workers` workers that have started; RuntimeError if one is not as expected."""
    groups = [group(index) for index in range(-(-verdicts // GROUP))]
    with Pool({"accuracy": Weighted(math.accuracy)}, workers, deadline=10.0) as pool:
        before = time.monotonic()
        tickets = [pool.submit(problem, texts) for problem, texts in groups]
        values = [values["accuracy"] for ticket in tickets for values in pool.result(ticket)]
        seconds = time.monotonic() - before
    if values != [1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0] * len(groups):
        raise RuntimeError("a verdict is not the expected one")
    return {
        "what": "verdicts of rewards.math.accuracy on GSM8K-style completions",
        "verdicts": len(values),
        "workers": workers,
        "seconds": round(seconds, 3),
        "verdicts_per_s": round(len(values) / seconds, 1),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--verdicts", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    options = parser.parse_args(argv)
    figures = run(options.verdicts, options.workers)
    if options.json:
        print(json.dumps(figures))
    else:
        print(f"{figures['what']}: {figures['verdicts']} on {figures['workers']} workers in {figures['seconds']} s, "
              f"{figures['verdicts_per_s']:,} a second")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
