r"""Does the verifier agree with the data sets? Every gold answer against itself, and against another problem's.

    python -m tools.check_math --data DIR

DIR holds some of gsm8k_train.jsonl, gsm8k_test.jsonl, mgsm_*.tsv, math500.jsonl, amc23.jsonl, aime24.jsonl,
minerva_math.jsonl and olympiadbench.jsonl, in their official formats. For each set it prints how many golds are right as
a completion in the set's official form, how many still are when equal text does not count ("computed"), and how many
are wrong for the next problem whose gold is another text. Exceptions are listed by id. Exit code 1: a set is below
99.5 %, or an official solution of GSM8K is not right.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from jaxgrpo.problems import Problem
from jaxgrpo.rewards.maths import verifier
from jaxgrpo.rewards.maths.quantities import plain, tidy

ENOUGH = 0.995


@dataclass(frozen=True)
class Case:
    """A problem and a completion that is right: its gold answer in the set's official form."""

    problem: Problem
    completion: str
    extract: tuple[str, ...] = verifier.MARKS


def gsm8k(path: Path) -> Iterator[Case]:
    """The official solutions themselves: they end in "#### 42"."""
    for line, row in enumerate(_rows(path), start=1):
        gold = row["answer"].rpartition("####")[2].replace(",", "").strip()
        yield Case(Problem(f"{path.stem}:{line}", row["question"], gold), row["answer"])


def mgsm(path: Path) -> Iterator[Case]:
    language = path.stem.removeprefix("mgsm_")
    with path.open(encoding="utf-8", newline="") as file:
        for line, (question, gold) in enumerate(
            csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), start=1
        ):
            yield Case(
                Problem(f"{path.stem}:{line}", question, gold.replace(",", ""), language),
                rf"\boxed{{{gold}}}",
            )


def math500(path: Path) -> Iterator[Case]:
    """The official solutions: the answer is what their last box holds."""
    for row in _rows(path):
        yield Case(Problem(row["unique_id"], row["problem"], row["answer"]), row["solution"])


def with_answer(path: Path) -> Iterator[Case]:
    for row in _rows(path):
        yield Case(
            Problem(f"{path.stem}:{row['id']}", row["problem"], str(row["answer"])),
            rf"\boxed{{{row['answer']}}}",
        )


def minerva(path: Path) -> Iterator[Case]:
    """The gold answer is the solution's last box, as lm-evaluation-harness takes it; the completion is the solution."""
    for row in _rows(path):
        gold = verifier.final_answer(row["solution"], ("boxed",)) or ""
        yield Case(Problem(f"minerva_math:{row['idx']}", row["problem"], gold), row["solution"])


def olympiadbench(path: Path) -> Iterator[Case]:
    for row in _rows(path):
        gold = ", ".join(row["final_answer"])
        unit = f" {row['unit']}" if row["unit"] else ""
        box = rf"\boxed{{{gold.replace('$', '')}}}"
        yield Case(
            Problem(f"olympiadbench:{row['id']}", row["question"], gold),
            f"So the answer is ${box}${unit}.",
        )


READERS: dict[str, Callable[[Path], Iterator[Case]]] = {
    "gsm8k_*.jsonl": gsm8k,
    "mgsm_*.tsv": mgsm,
    "math500.jsonl": math500,
    "amc23.jsonl": with_answer,
    "aime24.jsonl": with_answer,
    "minerva_math.jsonl": minerva,
    "olympiadbench.jsonl": olympiadbench,
}


def _rows(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def check(cases: list[Case]) -> tuple[dict[str, int], list[str]]:
    """({what: how many}, a line for every exception) of a set's cases."""
    counts = {"problems": len(cases), "right": 0, "computed": 0, "wrong": 0}
    exceptions = []
    for index, case in enumerate(cases):
        reward = verifier.Accuracy(case.extract)
        right = reward(case.problem, case.completion) == 1.0
        # Without equal text numbers, parts and formulas have to be read.
        with mock.patch.object(verifier, "plain", _different):
            computed = verifier.same(
                case.problem.answer, case.problem.answer, case.problem.language
            )
        other = next_other(cases, index)
        wrong = reward(case.problem, other.completion) == 0.0
        counts["right"] += right
        counts["computed"] += computed
        counts["wrong"] += wrong
        if not right:
            exceptions.append(f"{case.problem.id}: {case.problem.answer!r} is not itself")
        if not wrong:
            also = f"{other.problem.answer!r} of {other.problem.id}"
            exceptions.append(f"{case.problem.id}: {case.problem.answer!r} is also {also}")
    return counts, exceptions


_calls = iter(range(sys.maxsize))


def _different(text: str) -> str:
    """In place of `plain`: never equal to anything, and never empty."""
    return f"{text} {next(_calls)}"


def next_other(cases: list[Case], index: int) -> Case:
    """The next problem, around the end, whose gold answer is another text."""
    own = plain(tidy(cases[index].problem.answer))
    order = (cases[(index + step) % len(cases)] for step in range(1, len(cases)))
    return next(other for other in order if plain(tidy(other.problem.answer)) != own)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder with the data sets")
    folder = parser.parse_args(argv).data
    files = [
        (path, reader)
        for pattern, reader in READERS.items()
        for path in sorted(folder.glob(pattern))
    ]
    if not files:
        print(f"{folder} holds none of {', '.join(READERS)}", file=sys.stderr)
        return 2
    failed = False
    for path, reader in files:
        before = time.monotonic()
        counts, exceptions = check(list(reader(path)))
        size, seconds = counts["problems"], time.monotonic() - before
        enough = size if path.stem == "gsm8k_train" else ENOUGH * size
        failed |= counts["right"] < enough or counts["wrong"] < ENOUGH * size
        shares = "  ".join(
            f"{what} {counts[what]} ({counts[what] / size:.2%})"
            for what in ("right", "computed", "wrong")
        )
        print(f"{path.stem:14} {size:5} problems  {shares}  {seconds:.1f} s", flush=True)
        for line in exceptions:
            print(f"    {line}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
