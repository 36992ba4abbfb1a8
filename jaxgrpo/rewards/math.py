r"""Is the final answer right? Exact arithmetic on bounded text: nothing is evaluated, so nothing can hang.

    final_answer("... so he pays \boxed{1,234}.")   -> "1,234"
    same_number("1,234.0", "$1234")                 -> True
    same_number(r"\frac{1}{2}", "0.5")              -> True
"""

from fractions import Fraction

import regex as re

from jaxgrpo.problems import Problem

MAX_DIGITS = 1000
"""Numbers with more digits than this, written or as the value of a power, are compared as strings."""


def accuracy(problem: Problem, text: str) -> float:
    """1.0 if the completion's final answer equals `problem.answer`, else 0.0 (no answer included)."""
    answer = final_answer(text)
    return float(answer is not None and same_number(answer, problem.answer))


def final_answer(text: str) -> str | None:
    r"""The last balanced `\boxed{...}` or `#### ...` (to the end of its line), whichever comes last; None without one.

    Only what is said after thinking counts: what follows the last `</think>`, if there is one, and what precedes a
    `<think>` that is never closed.
    """
    said = text.rpartition("</think>")[2].partition("<think>")[0]
    found = [*boxes(said), *((match.start(), match[1]) for match in _HASHES.finditer(said))]
    return max(found)[1].strip() if found else None


_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*(\S.*)")
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def boxes(text: str) -> list[tuple[int, str]]:
    r"""(position, content) of each balanced `\boxed{...}`, inner ones included. One pass, however braces are nested."""
    found, opened = [], []
    for match in _BRACES.finditer(text):
        if match[0].endswith("{") and match[0] != r"\{":
            opened.append(match)
        elif match[0] == "}" and opened:
            start = opened.pop()
            if start[0] != "{":
                found.append((start.start(), text[start.end() : match.start()]))
    return found


def same_number(a: str, b: str) -> bool:
    r"""Whether two answers are the same number, exactly; where neither is one, the same text but for type and case.

    "1,234", "$5", "42.0", "1/2", "1 1/2", "2^{10}" and "3 \times 10^8" are numbers; a percent sign or a unit after one
    is ignored ("5%" is 5). A decimal comma is not understood ("3,5" is text). An empty answer equals nothing.
    """
    first, second = number(a), number(b)
    if first is None and second is None:
        return bool(_plain(a)) and _plain(a) == _plain(b)
    return first == second


def number(text: str) -> Fraction | None:
    """The number that an answer is, or None if it is none, has more than MAX_DIGITS digits, or divides by zero."""
    match = _NUMBER.fullmatch(_rewrite(text)) if len(text) <= MAX_DIGITS else None
    if match is None or _too_long(match):
        return None
    sign, whole, top, power, bottom, scale = match.groups()
    try:
        value = Fraction(int(whole or 0)) + _decimal(top) ** int(power or 1) / _decimal(bottom or "1")
    except ZeroDivisionError:
        return None
    return value * Fraction(10) ** int(scale or 0) * (-1 if sign == "-" else 1)


_DIGITS = r"(?:\d{1,3}(?:[, ]\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_EXPONENT = r"[-+]?\d{1,6}"  # a plain integer: a tower of powers is no number here
_NUMBER = re.compile(
    rf"([-+])?\s*(?:(\d+)\s+(?=\d+/))?({_DIGITS})(?:\^({_EXPONENT}))?(?:/({_DIGITS}))?(?:(?:\*10\^|[eE])({_EXPONENT}))?"
)


def _decimal(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").replace(" ", "").rstrip("."))


def _too_long(match: re.Match) -> bool:
    """Whether the value could have more than MAX_DIGITS digits; asked before it is computed."""
    _, _, top, power, _, scale = match.groups()
    return len(top) * abs(int(power or 1)) + abs(int(scale or 0)) > MAX_DIGITS


_FULL_WIDTH = {0xFEE0 + code: chr(code) for code in range(0x21, 0x7F)}  # common in Chinese and Japanese
_LOOKALIKES = {**dict.fromkeys("−–", "-"), **dict.fromkeys("×⋅·", "*"), **dict.fromkeys("\xa0\u2009\u202f~", " ")}  # noqa: RUF001
_TYPE = str.maketrans(_FULL_WIDTH | _LOOKALIKES)
_INVISIBLE = re.compile(r"\\(?:left|right|displaystyle)\b|\\[!;:()\[\]]|(?<!\\)\$")
_FONT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")


def _tidy(text: str) -> str:
    """Without what only sets type: delimiters of mathematics, spacing, full-width forms, a closing full stop."""
    text = re.sub(r"\{,\}|\\,(?=\d{3})", ",", text.translate(_TYPE)).replace(r"\ ", " ").replace(r"\,", " ")
    text = re.sub(r"\\[dt]frac", r"\\frac", _INVISIBLE.sub("", text))
    return text.strip().removesuffix(".").removesuffix("。").strip()


def _plain(text: str) -> str:
    """Text to compare as text. Spaces between digits stay: "1 2" is not 12."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", _FONT.sub(r"\1", _tidy(text))).casefold()


_CURRENCY = re.compile(r"\\\$|[€£¥₩₴₽฿]")
_FRACTION = re.compile(r"\\frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_OPERATORS = re.compile(r"\s*(\^|\*|/)\s*")


def _rewrite(text: str) -> str:
    r"""An answer in the notation that _NUMBER reads: `1 1/2` for `1\frac{1}{2}`, `2^10` for `2^{10}`, no unit."""
    text = _drop_unit(_CURRENCY.sub("", _tidy(text)).strip())
    text = re.sub(r"\^\{([^{}]*)\}", r"^\1", text)
    text = _FRACTION.sub(r" \1\2/\3\4", text).replace("- ", "-")
    text = re.sub(r"\\times|\\cdot", "*", text.replace("**", "^"))
    return _OPERATORS.sub(r"\1", text).strip()


# A unit is a percent or degree sign, anything set as text, or up to three words after a space: of 3 letters at least,
# for "5 x" is not 5. In scripts that use no spaces a unit may follow at once.
_UNIT = re.compile(
    r"""(?<=[\d.}])(?:
        \s*(?:\\?%|°|\^\{?\\circ\}?)
      | \s*\\(?:text|mathrm|mbox)\{[^{}\d]*\}(?:\^\{?[23]\}?)?
      | \s+(?:[cdkm]m|ft|in)(?:\^\{?[23]\}?|[²³])? | \s+(?:kg|mg|ml|lb|oz|mi|hr)
      | (?:\s+[\p{Latin}\p{Cyrillic}]{3,}){1,3}
      | \s*(?:(?!\d)[\p{Han}\p{Hangul}\p{Hiragana}\p{Katakana}\p{Thai}\p{M}])+
    )$""",
    re.VERBOSE,
)
# Words after a number that change it, or do not end what is said: "3 million", "42 or 43", "3만".
_NO_UNIT = re.compile(
    r"""\b(?:hundred|thousand|million|billion|trillion|dozen|half|halves|third|quarter|fourth|fifth|sixth|seventh|eighth
        |ninth|tenth|times|plus|minus|over|and|or|to|sqrt|pi|root|squared|cubed|mod
        |тис|міль|мілл|милл|млн|млрд|сот|сто|десят|дюжин|полов|трет|чверт|четверт|або|или|плюс|мінус|минус)
      | [十百千万萬亿億兆半割십백천만억조반] | สิบ|ร้อย|พัน|หมื่น|แสน|ล้าน|ครึ่ง""",  # noqa: RUF001
    re.VERBOSE | re.IGNORECASE,
)


def _drop_unit(text: str) -> str:
    unit = _UNIT.search(text)
    return text if unit is None or _NO_UNIT.search(unit[0]) else text[: unit.start()]
