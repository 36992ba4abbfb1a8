r"""Checks the verifier of mathematics against the gold answers of data sets.

    python -m tools.check_math --data DIR

DIR holds some of gsm8k_train.jsonl, gsm8k_test.jsonl, mgsm_*.tsv, math500.jsonl, amc23.jsonl,
aime24.jsonl, minerva_math.jsonl and olympiadbench.jsonl, in their official formats. For each set it
prints how many golds are right as a completion in the set's official form, how many still are when
equal text does not count ("computed"), and how many are wrong for the next problem whose gold is
another text. Exceptions are listed by id.

Exit code 1: a set is below 99.5 %, or an official solution of GSM8K is not right.
"""

import argparse
import csv
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from jaxgrpo.problems import Problem
from jaxgrpo.rewards.maths import verifier
from jaxgrpo.rewards.maths.extraction import DEFAULT_METHODS, extract_answer
from jaxgrpo.rewards.maths.normalization import normalize, text_key

MIN_SHARE = 0.995


@dataclass(frozen=True)
class Case:
    """A problem and a completion that is right: its gold answer in the set's official form."""

    problem: Problem
    completion: str
    extract: tuple[str, ...] = DEFAULT_METHODS


# --- data sets ------------------------------------------------------------------------------------


def gsm8k(path: Path) -> Iterator[Case]:
    """Yields the official solutions, which end in "#### 42"."""
    for line, row in enumerate(_rows(path), start=1):
        _, _, gold = row["answer"].rpartition("####")
        gold = gold.replace(",", "").strip()
        yield Case(Problem(f"{path.stem}:{line}", row["question"], gold), row["answer"])


def mgsm(path: Path) -> Iterator[Case]:
    """Yields the golds in a box; the file's name ends in the language."""
    language = path.stem.removeprefix("mgsm_")
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        for line, (question, gold) in enumerate(rows, start=1):
            answer = gold.replace(",", "")
            problem = Problem(f"{path.stem}:{line}", question, answer, language)
            yield Case(problem, rf"\boxed{{{gold}}}")


def math500(path: Path) -> Iterator[Case]:
    """Yields the official solutions, whose last box holds the answer."""
    for row in _rows(path):
        yield Case(
            Problem(row["unique_id"], row["problem"], row["answer"]), row["solution"]
        )


def with_answer(path: Path) -> Iterator[Case]:
    """Yields the golds in a box, for sets without solutions."""
    for row in _rows(path):
        gold = str(row["answer"])
        problem = Problem(f"{path.stem}:{row['id']}", row["problem"], gold)
        yield Case(problem, rf"\boxed{{{gold}}}")


def minerva(path: Path) -> Iterator[Case]:
    """Yields the official solutions; the gold is their last box, as in lm-evaluation-harness."""
    for row in _rows(path):
        # A row without a box has no gold, and is reported as one that is not itself.
        gold = extract_answer(row["solution"], ("boxed",)) or ""
        yield Case(
            Problem(f"minerva_math:{row['idx']}", row["problem"], gold), row["solution"]
        )


def olympiadbench(path: Path) -> Iterator[Case]:
    """Yields sentences with all golds of a problem in one box, before the unit."""
    for row in _rows(path):
        # Several golds are one set: all of them have to be given.
        gold = ", ".join(row["final_answer"])
        unit = f" {row['unit']}" if row["unit"] else ""
        box = rf"\boxed{{{gold.replace('$', '')}}}"
        problem = Problem(f"olympiadbench:{row['id']}", row["question"], gold)
        yield Case(problem, f"So the answer is ${box}${unit}.")


READERS: dict[str, Callable[[Path], Iterator[Case]]] = {
    "gsm8k_*.jsonl": gsm8k,
    "mgsm_*.tsv": mgsm,
    "math500.jsonl": math500,
    "amc23.jsonl": with_answer,
    "aime24.jsonl": with_answer,
    "minerva_math.jsonl": minerva,
    "olympiadbench.jsonl": olympiadbench,
}


def _rows(path: Path) -> Iterator[Mapping]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


# --- checks ---------------------------------------------------------------------------------------


@dataclass
class Report:
    """The counts of a data set, and a line for every exception."""

    problems: int
    right: int = 0
    computed: int = 0
    wrong: int = 0
    exceptions: list[str] = field(default_factory=list)


def check(cases: list[Case]) -> Report:
    """Returns how many golds of a data set the verifier judges as it should."""
    report = Report(len(cases))
    for index, case in enumerate(cases):
        problem = case.problem
        reward = verifier.Accuracy(case.extract)
        is_right = reward(problem, case.completion) == 1.0
        # Without equal text, numbers, parts and formulas have to be read.
        with mock.patch.object(verifier, "text_key", _unique_key):
            is_computed = verifier.same_answer(
                problem.answer, problem.answer, problem.language
            )
        # Another problem's answer must not pass.
        other = next_other(cases, index)
        is_wrong = reward(problem, other.completion) == 0.0
        # Counts of three laws: a gold is itself, by computing it, and no other problem's.
        report.right += is_right
        report.computed += is_computed
        report.wrong += is_wrong
        if not is_right:
            report.exceptions.append(f"{problem.id}: {problem.answer!r} is not itself")
        if not is_wrong:
            equal = f"{other.problem.answer!r} of {other.problem.id}"
            report.exceptions.append(
                f"{problem.id}: {problem.answer!r} is also {equal}"
            )
    return report


_counter = itertools.count()


def _unique_key(text: str) -> str:
    """Returns a key that is never equal to any other, and never empty."""
    return f"{text} {next(_counter)}"


def next_other(cases: list[Case], index: int) -> Case:
    """Returns the next case, around the end, whose gold answer is another text."""
    key = _gold_key(cases[index])
    following = cases[index + 1 :] + cases[:index]
    return next(other for other in following if _gold_key(other) != key)


def _gold_key(case: Case) -> str:
    return text_key(normalize(case.problem.answer))


def main(argv: list[str] | None = None) -> int:
    """Prints a line for each data set of the folder; returns the exit code."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument(
        "--data", type=Path, required=True, help="the folder with the data sets"
    )
    folder = parser.parse_args(argv).data
    files = [
        (path, reader)
        for pattern, reader in READERS.items()
        for path in sorted(folder.glob(pattern))
    ]
    if not files:
        print(f"{folder} holds none of {', '.join(READERS)}", file=sys.stderr)
        return 2
    passed = [check_file(path, reader) for path, reader in files]
    return 0 if all(passed) else 1


def check_file(path: Path, reader: Callable[[Path], Iterator[Case]]) -> bool:
    """Prints the report of a data set; returns whether its shares are large enough."""
    started_at = time.monotonic()
    report = check(list(reader(path)))
    seconds = time.monotonic() - started_at
    size = report.problems
    counts = {"right": report.right, "computed": report.computed, "wrong": report.wrong}
    shares = "  ".join(
        f"{name} {count} ({count / size:.2%})" for name, count in counts.items()
    )
    print(f"{path.stem:14} {size:5} problems  {shares}  {seconds:.1f} s", flush=True)
    for line in report.exceptions:
        print(f"    {line}", flush=True)
    # The training set's solutions are what models imitate: all of them have to be right.
    min_right = size if path.stem == "gsm8k_train" else MIN_SHARE * size
    return report.right >= min_right and report.wrong >= MIN_SHARE * size


if __name__ == "__main__":
    sys.exit(main())
