r"""Compares an answer with the gold answer: the reward `accuracy`.

Numbers are compared exactly, lists and intervals part by part, the rest by computer algebra.

    same_answer("1,234.0", "$1234")                                 -> True
    same_answer("3,5", r"\frac{7}{2}", language="uk")               -> True
    same_answer(r"\{1+\sqrt{5}, 1-\sqrt{5}\}", r"1\pm\sqrt{5}")     -> True
    same_answer("(-2, 7]", r"-2 < x \le 7")                         -> True

Nothing a model writes is evaluated by Python, and nothing that would take long is computed: see
`symbolic`. There is no alarm: whoever needs a deadline calls this in a `pool`, which enforces it
from outside.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from jaxgrpo.errors import UserError
from jaxgrpo.problems import OTHER_ANSWERS, Problem
from jaxgrpo.rewards.maths.extraction import (
    DEFAULT_METHODS,
    EXTRACTION_METHODS,
    extract_answer,
    parse_gold,
)
from jaxgrpo.rewards.maths.normalization import normalize, readings, text_key
from jaxgrpo.rewards.maths.quantities import (
    looks_like_number,
    parse_number,
    parse_quantity,
    same_quantity,
)
from jaxgrpo.rewards.maths.sets import (
    CompositeAnswer,
    parse_composite,
    strip_name,
    unwrap,
)
from jaxgrpo.rewards.maths.symbolic import same_expression
from jaxgrpo.rewards.maths.units import split_unit

MAX_ANSWER_LENGTH = 1000
"""Answers with more characters than this are compared as text."""


@dataclass(frozen=True)
class Accuracy:
    """A reward: 1.0 if the completion's final answer is the problem's, else 0.0.

    The problem's are `problem.answer` and its other answers: see `gold_answers`.

    extract: where the answer may stand: boxed, hashes, phrase, number (see extraction.py)
    tolerance: how far a number may be off, as a share of the gold (0.01: 1 %)
    """

    extract: tuple[str, ...] = DEFAULT_METHODS
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        unknown = set(self.extract) - set(EXTRACTION_METHODS)
        if unknown or not self.extract:
            raise UserError(
                f"extract is {self.extract}: it must name some of {', '.join(EXTRACTION_METHODS)}"
            )
        if not 0 <= self.tolerance < 1:
            raise UserError(
                f"tolerance is {self.tolerance}: "
                "it must be a share of the gold in [0, 1), for example 0.01"
            )

    def __call__(self, problem: Problem, text: str) -> float:
        answer = extract_answer(text, self.extract)
        if answer is None:
            return 0.0
        is_right = any(
            same_answer(answer, gold, problem.language, self.tolerance)
            for gold in gold_answers(problem)
        )
        return float(is_right)


_DEFAULT_ACCURACY = Accuracy()


def accuracy(problem: Problem, text: str) -> float:
    r"""Returns 1.0 if what the last `\boxed{}` or `####` says is right, else 0.0.

    The same as `Accuracy()`. A completion without an answer gets 0.0, too.
    """
    return _DEFAULT_ACCURACY(problem, text)


def gold_answers(problem: Problem) -> list[str]:
    r"""Returns `problem.answer` and `problem.meta["other_answers"]`, one of which is enough.

    A gold that is a box, a whole solution or "#### 19" is read as a completion is: see
    `extraction.parse_gold`.
    """
    others = problem.meta.get(OTHER_ANSWERS)
    golds = [
        problem.answer,
        *(others if isinstance(others, list | tuple) else [others]),
    ]
    texts = [str(gold) for gold in golds if gold is not None]
    return [answer for text in texts for answer in parse_gold(text)]


def same_number(a: str, b: str) -> bool:
    r"""Returns whether two answers are the same number, exactly, without computer algebra.

    "1,234", "$5", "42.0", "1/2", "1 1/2", "2^{10}" and "3 \times 10^8" are numbers. Where neither
    is one, the answers have to be the same text but for typography and case. An empty answer equals
    nothing.
    """
    first = parse_number(a)
    second = parse_number(b)
    if first is None and second is None:
        key = text_key(normalize(a))
        return key != "" and key == text_key(normalize(b))
    return first == second


def same_answer(
    answer: str, gold: str, language: str = "en", tolerance: float = 0.0
) -> bool:
    """Returns whether an answer to a problem in a language is the gold answer.

    A number may be written as the problem's language writes it or as English does; it is right if
    one of the two readings is the gold. So "1.234" may be 1234 in German and never in English,
    Ukrainian or French, where dots do not group; "3,5" may be 3.5 in German, Ukrainian and French
    and never in English. A gold is read as English, as data sets write numbers, and in the
    language's way only where that gives no number. An empty answer is wrong.
    """
    if max(len(answer), len(gold)) > MAX_ANSWER_LENGTH:
        return text_key(normalize(answer)) == text_key(normalize(gold)) != ""
    is_gold_number = parse_number(gold) is not None
    gold_readings = [normalize(gold)] if is_gold_number else readings(gold, language)
    answer_readings = readings(answer, language)
    return any(
        _same_normalized(answer_reading, gold_reading, tolerance)
        for gold_reading in gold_readings
        for answer_reading in answer_readings
    )


_MAX_DEPTH = 4  # of lists in lists; tuples in a set in an equation are 3


def _same_normalized(answer: str, gold: str, tolerance: float, depth: int = 0) -> bool:
    """Returns what `same_answer` does, for normalized texts in English style.

    depth: how many composites and names have been taken apart around the two
    """
    # 1. The same text.
    gold_key = text_key(gold)
    if text_key(answer) == gold_key:
        return gold_key != ""
    # 2. Two numbers.
    answer_quantity = parse_quantity(answer)
    gold_quantity = parse_quantity(gold)
    if answer_quantity and gold_quantity:
        return same_quantity(answer_quantity, gold_quantity, tolerance)
    if depth > _MAX_DEPTH:
        return False
    # A number without a value, such as 1/0 or one with too many digits, equals its own text only.
    if looks_like_number(answer) and not answer_quantity:
        return False
    # 3. Answers with a name, "x = 5", or with brackets around a single thing.
    unnamed = strip_name(unwrap(answer), unwrap(gold))
    if unnamed != (answer, gold):
        return _same_normalized(*unnamed, tolerance, depth + 1)
    # 4. Answers with several parts. A number is not one, whatever commas it has.
    answer_parts = None if answer_quantity else parse_composite(answer)
    gold_parts = None if gold_quantity else parse_composite(gold)
    if answer_parts and gold_parts:
        return _same_composite(answer_parts, gold_parts, tolerance, depth + 1)
    if answer_parts or gold_parts:
        return False
    # 5. Formulas.
    answer_formula, _ = split_unit(answer)
    gold_formula, _ = split_unit(gold)
    return same_expression(answer_formula, gold_formula)


def _same_composite(
    answer: CompositeAnswer, gold: CompositeAnswer, tolerance: float, depth: int
) -> bool:
    """Returns whether two answers have the same brackets and parts.

    The parts have to be in the same order, but for sets and unions.
    """
    if answer.kind != gold.kind or len(answer.parts) != len(gold.parts):
        return False
    if answer.kind not in ("{}", "cup"):
        return all(
            _same_normalized(part, gold_part, tolerance, depth)
            for part, gold_part in zip(answer.parts, gold.parts, strict=True)
        )
    remaining = list(gold.parts)
    return all(
        _remove_equal(part, remaining, tolerance, depth) for part in answer.parts
    )


_MAX_CANDIDATES = 66
"""Parts of a gold set that a part of the answer is compared with, to bound the time."""


def _remove_equal(
    part: str, remaining: list[str], tolerance: float, depth: int
) -> bool:
    """Removes from `remaining` a part that equals `part`; returns False if there is none."""
    for candidate in _same_text_first(part, remaining)[:_MAX_CANDIDATES]:
        if _same_normalized(part, candidate, tolerance, depth):
            remaining.remove(candidate)
            return True
    return False


def _same_text_first(part: str, candidates: Iterable[str]) -> list[str]:
    """Returns the candidates, those with the same text first: most match, at no cost."""
    key = text_key(part)
    return sorted(candidates, key=lambda candidate: text_key(candidate) != key)
