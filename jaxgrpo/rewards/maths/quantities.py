# ruff: noqa: RUF001  (look-alikes are what is read)
r"""Numbers as people and models write them, read exactly.

They decide most answers, without computer algebra.

parse_quantity("$1,234.50")     -> Quantity(Fraction(2469, 2), "")
parse_quantity("5.4 cents")     -> Quantity(Fraction(27, 5), "cents")
parse_number(r"1\frac{1}{2}")   -> Fraction(3, 2)
"""

from dataclasses import dataclass
from fractions import Fraction

import regex as re

from jaxgrpo.rewards.maths.normalization import normalize
from jaxgrpo.rewards.maths.units import measure, split_unit

MAX_DIGITS = 1000
"""Numbers with more digits than this, written or as the value of a power, are compared as text."""

DIGITS = r"(?:(?!0)\d{1,3}(?:[, '’]\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+"
"""Digits in English style, such as 1,234.5 and .5: groups of three after commas, spaces or
apostrophes, then a decimal point."""


@dataclass(frozen=True)
class Quantity:
    """A number and what is said after it: "%", a unit, or ""."""

    value: Fraction
    unit: str = ""


def parse_number(text: str) -> Fraction | None:
    """Returns the number that an answer is.

    None if it is no number, has more than MAX_DIGITS digits, or divides by zero.
    """
    if len(text) > MAX_DIGITS:
        return None
    quantity = parse_quantity(normalize(text))
    return quantity.value if quantity else None


def parse_quantity(text: str) -> Quantity | None:
    """Returns the exact number that a normalized text is, and its unit.

    None where `parse_number` gives None.
    """
    text, unit = split_unit(text)
    match = (
        _NUMBER.fullmatch(_to_plain_notation(text)) if len(text) <= MAX_DIGITS else None
    )
    if match is None or _may_be_too_long(match):
        return None
    sign, whole, numerator, power, denominator, scale = match.groups()
    try:
        value = Fraction(int(whole or 0)) + (
            _parse_decimal(numerator) ** int(power or 1)
            / _parse_decimal(denominator or "1")
        )
    except ZeroDivisionError:
        return None
    value *= Fraction(10) ** int(scale or 0)
    return Quantity(-value if sign == "-" else value, unit)


def looks_like_number(text: str) -> bool:
    """Returns whether a normalized text has a number's form.

    That may be one that has no value, such as 1/0, or too many digits.
    """
    # The cut bounds the time that a long text takes.
    rest, _ = split_unit(text[: 2 * MAX_DIGITS])
    return _NUMBER.fullmatch(_to_plain_notation(rest)) is not None


# A plain integer: towers of powers are not read as numbers.
_EXPONENT = r"[-+]?\d{1,6}"
_NUMBER = re.compile(
    r"([-+])?\s*"
    r"(?:(\d+)\s+(?=\d+/))?"  # the whole part of "1 1/2"
    rf"({DIGITS})(?:\^({_EXPONENT}))?"  # "1,234.5", "2^10"
    rf"(?:/({DIGITS}))?"  # a denominator
    rf"(?:(?:\*10\^|[eE])({_EXPONENT}))?"  # "*10^8", "e8"
)


def _parse_decimal(digits: str) -> Fraction:
    return Fraction(re.sub("[, '’]", "", digits).rstrip("."))


def _may_be_too_long(match: re.Match) -> bool:
    """Returns whether the value could have more than MAX_DIGITS digits, before it is computed."""
    _, _, numerator, power, _, scale = match.groups()
    return len(numerator) * abs(int(power or 1)) + abs(int(scale or 0)) > MAX_DIGITS


# "2^{10}"
_BRACED_POWER = re.compile(r"\^\{([^{}]*)\}")
# "\frac{1}{2}", "\frac12", "\frac{270}7"
_FRACTION = re.compile(r"\\frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_TIMES = re.compile(r"\\times(?![A-Za-z])|\\cdot(?![A-Za-z])")
_OPERATOR = re.compile(r"\s*(\^|\*|/)\s*")


def _to_plain_notation(text: str) -> str:
    r"""Returns a number as _NUMBER reads it: `1 1/2` for `1\frac{1}{2}`, `2^10` for `2^{10}`."""
    text = _BRACED_POWER.sub(r"^\1", text)
    text = _FRACTION.sub(r" \1\2/\3\4", text)
    text = text.replace("- ", "-").replace("**", "^")
    text = _TIMES.sub("*", text)
    return _OPERATOR.sub(r"\1", text).strip()


def same_quantity(answer: Quantity, gold: Quantity, tolerance: float = 0.0) -> bool:
    """Returns whether two quantities are equal, or within a share `tolerance` of the gold.

    A percent sign that only one of them has may mean percent ("50%" is 1/2) or be superfluous
    ("50%" is 50). Two units that are known are converted, and differ where they measure different
    things. Any other unit is ignored.
    """
    is_percent = answer.unit.endswith("%")
    is_gold_percent = gold.unit.endswith("%")
    if is_percent != is_gold_percent:
        answer_share = answer.value / 100 if is_percent else answer.value
        gold_share = gold.value / 100 if is_gold_percent else gold.value
        is_same_without_sign = _is_close(answer.value, gold.value, tolerance)
        return is_same_without_sign or _is_close(answer_share, gold_share, tolerance)
    dimension, size = measure(answer.unit)
    gold_dimension, gold_size = measure(gold.unit)
    if dimension and gold_dimension:
        if dimension != gold_dimension:
            return False
        return _is_close(answer.value * size, gold.value * gold_size, tolerance)
    return _is_close(answer.value, gold.value, tolerance)


def _is_close(answer: Fraction, gold: Fraction, tolerance: float) -> bool:
    if answer == gold:
        return True
    return tolerance > 0 and abs(answer - gold) <= Fraction(tolerance) * abs(gold)
