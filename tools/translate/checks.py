"""Checks translations: every number is there, and the words are in the language."""

import re
import threading
from fractions import Fraction

from jaxgrpo.rewards.languages.consistency import word_ratios
from jaxgrpo.rewards.maths.normalization import readings
from jaxgrpo.rewards.maths.quantities import parse_number

Number = Fraction | str

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*|(?<!\d)[.,]\d+")
_SPACED_NUMBER = re.compile(r"\d{1,3}(?:[ \u00a0\u202f'’]\d{3})+(?:[.,]\d+)?")  # noqa: RUF001

# Words are counted with objects that only one thread may use.
_COUNTING = threading.Lock()


def missing_numbers(source: str, translation: str, language: str) -> list[str]:
    """Returns the numbers of an English text that its translation lacks, each as often as it does.

    A number may be written as the language writes it: 1,234.5 as 1.234,5 or 1 234,5 in German.
    """
    values = [_values(text, language) for text in _NUMBER.findall(translation)]
    spaced_values = [
        _values(text, language) for text in _SPACED_NUMBER.findall(translation)
    ]
    missing = []
    for text in _NUMBER.findall(source):
        value = _value(text)
        # "80 000" may be one number or two, so it is looked for as one only in the second place.
        if not (_take(value, values) or _take(value, spaced_values)):
            missing.append(text)
    return missing


def _values(text: str, language: str) -> set[Number]:
    """Returns the numbers that a text may mean: as English writes it, and as the language does."""
    return {_value(reading) for reading in readings(text, language)}


def _value(text: str) -> Number:
    """Returns the number that a text is, or the text where it is none, such as 1.2.3."""
    number = parse_number(text)
    return text if number is None else number


def _take(value: Number, candidates: list[set[Number]]) -> bool:
    """Removes a candidate that may be the value; returns whether there was one."""
    for candidate in candidates:
        if value in candidate:
            candidates.remove(candidate)
            return True
    return False


def complaint(source: str, translation: str, language: str, min_ratio: float) -> str:
    """Returns what is wrong with a translation, "" if nothing is.

    language: a code
    min_ratio: the least share of words in the language
    """
    if not translation:
        return "it was empty"
    missing = missing_numbers(source, translation, language)
    if missing:
        return f"it lacked these numbers, in digits: {', '.join(missing)}"
    # A solution beside the translation, or a text that never ends.
    if len(translation) > 4 * len(source) + 200:
        return "it was much longer than the problem"
    with _COUNTING:
        ratio = word_ratios(translation, language, "all").target
    if ratio < min_ratio:
        return f"only {ratio:.0%} of its words were in the language"
    return ""
