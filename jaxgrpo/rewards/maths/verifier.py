r"""Is the final answer right? Numbers exactly, lists and intervals part by part, the rest by computer algebra.

    same("1,234.0", "$1234")                                 -> True
    same("3,5", r"\frac{7}{2}", language="uk")               -> True
    same(r"\{1+\sqrt{5}, 1-\sqrt{5}\}", r"1\pm\sqrt{5}")     -> True
    same("(-2, 7]", r"-2 < x \le 7")                         -> True

Nothing a model writes is evaluated by Python, and nothing that would take long is computed: see `symbolic`. There is
no alarm: whoever needs a deadline calls this in a `pool`, which enforces it from outside.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from jaxgrpo.errors import UserError
from jaxgrpo.problems import OTHER_ANSWERS, Problem
from jaxgrpo.rewards.maths.extraction import EXTRACT, MARKS, boxes, final_answer, gold_readings
from jaxgrpo.rewards.maths.quantities import (
    MAX_DIGITS,
    forms,
    is_written_number,
    number,
    plain,
    quantity,
    same_quantity,
    split_unit,
    tidy,
)
from jaxgrpo.rewards.maths.sets import as_collection, strip_name, unwrap
from jaxgrpo.rewards.maths.symbolic import same_expression

__all__ = [
    "MAX_DIGITS",
    "Accuracy",
    "accuracy",
    "boxes",
    "final_answer",
    "number",
    "same",
    "same_number",
]

MAX_LENGTH = 1000
"""Answers with more characters than this are compared as text."""


@dataclass(frozen=True)
class Accuracy:
    """A reward: 1.0 if the completion's final answer is `problem.answer` or one of its other answers, else 0.0.

    extract: where the answer may stand: boxed, hashes, phrase, number (see answers.final_answer)
    tolerance: how far a number may be off, as a share of the gold (0.01: 1 %)
    """

    extract: tuple[str, ...] = MARKS
    tolerance: float = 0.0

    def __post_init__(self):
        unknown = sorted(set(self.extract) - set(EXTRACT))
        if unknown or not self.extract:
            raise UserError(f"extract is {self.extract}: it must name some of {', '.join(EXTRACT)}")
        if not 0 <= self.tolerance < 1:
            raise UserError(
                f"tolerance is {self.tolerance}: it must be a share of the gold in [0, 1), for example 0.01"
            )

    def __call__(self, problem: Problem, text: str) -> float:
        answer = final_answer(text, self.extract)
        if answer is None:
            return 0.0
        return float(
            any(
                same(answer, gold, problem.language, self.tolerance)
                for gold in gold_answers(problem)
            )
        )


_DEFAULT = Accuracy()


def accuracy(problem: Problem, text: str) -> float:
    r"""`Accuracy()`: 1.0 if what the last `\boxed{}` or `####` says is right, else 0.0 (no answer included)."""
    return _DEFAULT(problem, text)


def gold_answers(problem: Problem) -> list[str]:
    r"""Returns `problem.answer` and `problem.meta["other_answers"]`, one of which is enough.

    A gold that is a box, a whole solution or "#### 19" is read as a completion is: see
    `answers.gold_readings`.
    """
    others = problem.meta.get(OTHER_ANSWERS)
    golds = [problem.answer, *(others if isinstance(others, list | tuple) else [others])]
    texts = [str(gold) for gold in golds if gold is not None]
    return [answer for text in texts for answer in gold_readings(text)]


def same_number(a: str, b: str) -> bool:
    r"""Whether two answers are the same number, exactly; where neither is one, the same text but for type and case.

    "1,234", "$5", "42.0", "1/2", "1 1/2", "2^{10}" and "3 \times 10^8" are numbers. An empty answer equals nothing.
    """
    first, second = number(a), number(b)
    if first is None and second is None:
        return bool(plain(tidy(a))) and plain(tidy(a)) == plain(tidy(b))
    return first == second


def same(answer: str, gold: str, language: str = "en", tolerance: float = 0.0) -> bool:
    """Whether an answer to a problem in a language is the gold answer.

    A number may be written as the problem's language writes it or as English does; it is right if one of the two
    readings is the gold. So "1.234" may be 1234 in German and never in English, Ukrainian or French, where dots do not
    group; "3,5" may be 3.5 in German, Ukrainian and French and never in English. A gold is read as English, as data sets
    write numbers, and in the language's way only where that gives no number. An empty answer is wrong.
    """
    if max(len(answer), len(gold)) > MAX_LENGTH:
        return plain(tidy(answer)) == plain(tidy(gold)) != ""
    golds = [tidy(gold)] if number(gold) is not None else forms(gold, language)
    return any(
        _same(form, wanted, tolerance) for wanted in golds for form in forms(answer, language)
    )


_MAX_DEPTH = 4  # of lists in lists; tuples in a set in an equation are 3


def _same(answer: str, gold: str, tolerance: float, depth: int = 0) -> bool:
    """`same` for tidy texts in English style."""
    if plain(answer) == plain(gold):
        return plain(gold) != ""
    first, second = quantity(answer), quantity(gold)
    if first and second:
        return same_quantity(first, second, tolerance)
    if depth > _MAX_DEPTH or (is_written_number(answer) and not first):
        return False
    unnamed = strip_name(unwrap(answer), unwrap(gold))
    if unnamed != (answer, gold):
        return _same(*unnamed, tolerance, depth + 1)
    if first is None and (parts := as_collection(answer)):
        wanted = None if second else as_collection(gold)
        return wanted is not None and _same_parts(parts, wanted, tolerance, depth + 1)
    if second is None and as_collection(gold):
        return False
    return same_expression(split_unit(answer)[0], split_unit(gold)[0])


def _same_parts(
    answer: tuple[str, list[str]], gold: tuple[str, list[str]], tolerance: float, depth: int
) -> bool:
    """Whether two collections have the same brackets and parts: in order, but for sets and unions."""
    (kind, parts), (gold_kind, wanted) = answer, gold
    if kind != gold_kind or len(parts) != len(wanted):
        return False
    if kind not in ("{}", "cup"):
        return all(
            _same(part, want, tolerance, depth) for part, want in zip(parts, wanted, strict=True)
        )
    left = list(wanted)
    return all(_take(part, left, tolerance, depth) for part in parts)


def _take(part: str, left: list[str], tolerance: float, depth: int) -> bool:
    """Remove from `left` what is the same as `part`; False if nothing is."""
    for index, want in enumerate(_nearest_first(part, left)):
        if _same(part, want, tolerance, depth):
            left.remove(want)
            return True
        if index > 64:
            break
    return False


def _nearest_first(part: str, left: Iterable[str]) -> list[str]:
    """Those that are the same text first: most are, and comparing texts costs nothing."""
    return sorted(left, key=lambda want: plain(want) != plain(part))
