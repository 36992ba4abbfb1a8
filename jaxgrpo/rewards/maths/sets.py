# ruff: noqa: RUF001  (look-alikes are what is read)
r"""Answers with several parts: tuples, sets, lists, intervals, unions; and answers with a name.

parse_composite(r"\{1\pm\sqrt{5},-2\}")   -> ("{}", [r"1+\sqrt{5}", r"1-\sqrt{5}", "-2"])
parse_composite("(3, 4]")                 -> ("(]", ["3", "4"])
parse_composite(r"x \ge 2")               -> ("[)", ["2", r"\infty"])
parse_composite("x + 1")                  -> None
strip_name("x = 5", "5")                  -> ("5", "5")
"""

from collections.abc import Iterator
from typing import NamedTuple

import regex as re

from jaxgrpo.rewards.maths.normalization import text_key


class CompositeAnswer(NamedTuple):
    """An answer with several parts."""

    kind: str
    """The two brackets of a tuple, list or interval; "{}" for a set or what has no brackets, where
    order does not matter; "cup" for a union."""
    parts: list[str]


# "\quad" or "\therefore" before an answer
_LEADING_COMMAND = re.compile(r"^\\(?:quad|therefore)\b\s*")


def parse_composite(text: str) -> CompositeAnswer | None:
    """Returns the parts of a normalized text; None if it is a single thing."""
    text = _LEADING_COMMAND.sub("", text.strip())
    interval = _parse_inequality(text)
    if interval:
        return interval
    members = _split_outside_brackets(text, r"\cup")
    if len(members) > 1:
        return CompositeAnswer("cup", members)
    bracketed = _strip_brackets(text)
    if bracketed:
        kind, inside = bracketed
        parts = _split_parts(inside)
        # Brackets around a single thing, such as "((1, 2))", do not make it a composite.
        return (
            CompositeAnswer(kind, parts) if len(parts) > 1 else parse_composite(inside)
        )
    parts = _split_parts(text)
    return CompositeAnswer("{}", parts) if len(parts) > 1 else None


def unwrap(text: str) -> str:
    """Returns a normalized text without brackets around a single thing.

    So a set of one is that one.
    """
    bracketed = _strip_brackets(text)
    if bracketed is None:
        return text
    _, inside = bracketed
    return inside if inside and len(_split_parts(inside)) == 1 else text


# --- names ----------------------------------------------------------------------------------------

# "x", "\theta"; not the commands of formulas
_LETTER = (
    r"(?:[A-Za-z]|"
    r"\\(?!frac|sqrt|pi\b|infty|left|right|log|ln|sin|cos|tan|text|begin)[A-Za-z]+)"
)
_NAMED = re.compile(
    rf"""(?P<name>
          {_LETTER}(?:_(?:\w|\{{[^{{}}]*\}}))?'? (?:\([^()=]{{1,10}}\))?    # "x_1", "y'", "f(x)"
        | \({_LETTER}(?:,\s*{_LETTER}){{1,3}}\)                             # "(x, y)"
        | (?=[^=<>]*\p{{L}}{{3}})[\p{{L}}\p{{M}}\s]{{3,40}}                 # "the area"
        | \\angle[\w\s_{{}}]{{1,20}}                                        # "\angle ABC"
        )
        \s*(?:=|:|\\in(?![A-Za-z])|\\approx(?![A-Za-z]))\s*(?P<value>[^=]+)""",
    re.VERBOSE,
)


def strip_name(answer: str, gold: str) -> tuple[str, str]:
    r"""Returns both without a name that only one of them has, or that both have alike.

    A name is `x =`, `f(x) =`, `x \in`. Different names stay: x = 5 is not y = 5.
    """
    named_answer = _NAMED.fullmatch(answer)
    named_gold = _NAMED.fullmatch(gold)
    if named_answer and named_gold:
        if text_key(named_answer["name"]) != text_key(named_gold["name"]):
            return answer, gold
    # Two equations, or an equation and a list of them: their names are part of what they say.
    elif (named_answer and "=" in gold) or (named_gold and "=" in answer):
        return answer, gold
    answer_value = named_answer["value"].strip() if named_answer else answer
    gold_value = named_gold["value"].strip() if named_gold else gold
    return answer_value, gold_value


# --- inequalities as intervals --------------------------------------------------------------------

_LESS_OR_EQUAL = re.compile(r"\\(?:leqslant|leq|le)(?![A-Za-z])|<=")
_GREATER_OR_EQUAL = re.compile(r"\\(?:geqslant|geq|ge)(?![A-Za-z])|>=")
_LESS = re.compile(r"\\lt(?![A-Za-z])")
_GREATER = re.compile(r"\\gt(?![A-Za-z])")
# "x < 3"
_VARIABLE_FIRST = re.compile(rf"({_LETTER})\s*([<>≤≥])\s*([^<>≤≥=,]+)")
# "3 > x"
_VARIABLE_LAST = re.compile(rf"([^<>≤≥=,]+?)\s*([<>≤≥])\s*({_LETTER})")
# "2 ≤ x < 3"
_TWO_SIDED = re.compile(
    rf"([^<>≤≥=,]+?)\s*([<>≤≥])\s*{_LETTER}\s*([<>≤≥])\s*([^<>≤≥=,]+)"
)
_TURNED = str.maketrans("<>≤≥", "><≥≤")


def _parse_inequality(text: str) -> CompositeAnswer | None:
    r"""Returns `x < 3` as (-\infty, 3), and `-2 \le x < 3` as [-2, 3)."""
    text = _LESS_OR_EQUAL.sub("≤", text)
    text = _GREATER_OR_EQUAL.sub("≥", text)
    text = _LESS.sub("<", text)
    text = _GREATER.sub(">", text)
    if not re.search("[<>≤≥]", text):
        return None
    two_sided = _TWO_SIDED.fullmatch(text)
    if two_sided:
        return _two_sided_interval(*two_sided.groups())
    variable_first = _VARIABLE_FIRST.fullmatch(text)
    if variable_first:
        _, sign, bound = variable_first.groups()
        return _one_sided_interval(sign, bound)
    variable_last = _VARIABLE_LAST.fullmatch(text)
    if variable_last:
        bound, sign, _ = variable_last.groups()
        return _one_sided_interval(sign.translate(_TURNED), bound)
    return None


def _two_sided_interval(
    low: str, low_sign: str, high_sign: str, high: str
) -> CompositeAnswer | None:
    """Returns the interval of `low < x < high`; None of signs that make none: `2 < x > 3`."""
    if low_sign in ">≥":
        # Read from the right: 4 > x ≥ 3 is 3 ≤ x < 4.
        low, high = high, low
        low_sign, high_sign = high_sign.translate(_TURNED), low_sign.translate(_TURNED)
    if low_sign not in "<≤" or high_sign not in "<≤":
        return None
    opening = "[" if low_sign == "≤" else "("
    closing = "]" if high_sign == "≤" else ")"
    return CompositeAnswer(opening + closing, [low.strip(), high.strip()])


def _one_sided_interval(sign: str, bound: str) -> CompositeAnswer:
    """Returns the interval of `x < bound`."""
    if sign in "<≤":
        return CompositeAnswer(
            "(]" if sign == "≤" else "()", [r"-\infty", bound.strip()]
        )
    return CompositeAnswer("[)" if sign == "≥" else "()", [bound.strip(), r"\infty"])


# --- brackets and commas --------------------------------------------------------------------------

_BRACKET_KINDS = {
    (r"\{", r"\}"): "{}",
    (r"\lbrace", r"\rbrace"): "{}",
    (r"\langle", r"\rangle"): "()",
    ("(", ")"): "()",
    ("[", "]"): "[]",
    ("(", "]"): "(]",
    ("[", ")"): "[)",
}
# A bracket, or an escaped character
_BRACKET = re.compile(
    r"\\(?:lbrace|langle)(?![A-Za-z])|\\(?:rbrace|rangle)(?![A-Za-z])|\\.|[(){}\[\]]",
    re.DOTALL,
)
_OPENING_BRACKETS = {"(", "[", "{", r"\{", r"\lbrace", r"\langle"}
_CLOSING_BRACKETS = {")", "]", "}", r"\}", r"\rbrace", r"\rangle"}


def _strip_brackets(text: str) -> tuple[str, str] | None:
    """Returns (kind, inside) of a text that one pair of brackets encloses; None of another."""
    for (opening, closing), kind in _BRACKET_KINDS.items():
        is_enclosed = text.startswith(opening) and text.endswith(closing)
        if is_enclosed and len(text) >= len(opening) + len(closing):
            inside = text[len(opening) : -len(closing)]
            # In "(1, 2) and (3, 4)" the first bracket is closed before the end.
            if all(depth >= 0 for _, depth in _bracket_depths(inside)):
                return kind, inside.strip()
    return None


def _bracket_depths(text: str) -> Iterator[tuple[re.Match, int]]:
    """Yields every bracket, and how many are open after it.

    Any bracket closes any other: [0, 1) is an interval, not a mistake.
    """
    depth = 0
    for match in _BRACKET.finditer(text):
        if match[0] in _OPENING_BRACKETS:
            depth += 1
        elif match[0] in _CLOSING_BRACKETS:
            depth -= 1
        yield match, depth


# Words between the parts of a list: "and", "\text{ or }", "\lor", "和"; short ones, such as Spanish
# "y" and "o", only between a number and a number or command
_AND = re.compile(
    r"""\s*,?\s*(?:
        \\text\s*\{\s*(?:and|or)\s*\}
      | \\(?:quad\s*)?(?:lor|vee)(?![A-Za-z])
      | \b(?:and|or|und|oder|et|ou|та|або|и|или|và|hoặc)\b
      | (?<=\d\s+)(?:y|o|e|na|au|і|й|و)(?=\s+[-\d\\])
      | 和|或|及|및|또는|または|และ|หรือ|और|या|এবং|మరియు|లేదా|أو
    )\s*""",
    re.VERBOSE,
)
# The comma of "1,234"
_THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def _split_parts(text: str) -> list[str]:
    r"""Returns what stands between commas, "and" or "or"; between semicolons, if there are any.

    A part with `\pm` becomes two. Where a comma with a space separates, one between groups of three
    digits does not: "1,234, 5,678" are two.
    """
    text = _AND.sub(", ", text).strip(" ,")
    parts = _split_outside_brackets(text, ";")
    if len(parts) == 1:
        if ", " in text:
            text = _THOUSANDS_COMMA.sub("", text)
        parts = _split_outside_brackets(text, ",")
    return [signed for part in parts for signed in _expand_plus_minus(part)]


_PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])")
_MINUS_PLUS = re.compile(r"\\mp(?![A-Za-z])")


def _expand_plus_minus(part: str) -> list[str]:
    r"""Returns a part once with the upper signs of `\pm` and `\mp` and once with the lower ones."""
    if not _PLUS_MINUS.search(part) and not _MINUS_PLUS.search(part):
        return [part]
    upper = _MINUS_PLUS.sub("-", _PLUS_MINUS.sub("+", part))
    lower = _MINUS_PLUS.sub("+", _PLUS_MINUS.sub("-", part))
    return [upper.removeprefix("+").strip(), lower.strip()]


def _split_outside_brackets(text: str, separator: str) -> list[str]:
    """Returns the text cut at every separator that no bracket encloses.

    The pieces are stripped, and none is empty.
    """
    # 1. The spans from an outermost bracket to the one that closes it.
    spans = []
    enclosed_from = None
    for match, depth in _bracket_depths(text):
        if depth > 0 and enclosed_from is None:
            enclosed_from = match.start()
        elif depth <= 0 and enclosed_from is not None:
            spans.append((enclosed_from, match.end()))
            enclosed_from = None
    # 2. The start and end of each piece.
    bounds = [0]
    for match in re.finditer(re.escape(separator), text):
        # After a bracket that is never closed, everything is enclosed.
        if enclosed_from is not None and match.start() >= enclosed_from:
            break
        if not any(start <= match.start() < end for start, end in spans):
            bounds += [match.start(), match.end()]
    bounds.append(len(text))
    pieces = [
        text[start:end].strip()
        for start, end in zip(bounds[::2], bounds[1::2], strict=True)
    ]
    return [piece for piece in pieces if piece] or [text]
