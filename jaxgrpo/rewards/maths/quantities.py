# ruff: noqa: RUF001  (look-alikes are what is read)
r"""Numbers as people and models write them, read exactly: what decides most answers, without computer algebra.

quantity("$1,234.50")     -> Quantity(2469/2, "")
quantity("5.4 cents")     -> Quantity(27/5, "cents")
number(r"1\frac{1}{2}")   -> Fraction(3, 2)
forms("1.234,5", "de")    -> ["1.234,5", "1234.5"]
"""

import unicodedata
from dataclasses import dataclass
from fractions import Fraction

import regex as re

MAX_DIGITS = 1000
"""Numbers with more digits than this, written or as the value of a power, are compared as strings."""

DIGITS = r"(?:(?!0)\d{1,3}(?:[, '’]\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+"
"""Digits in English style: groups of three after commas, spaces or apostrophes, then a decimal point."""


# --- characters -------------------------------------------------------------------------------------------------------

_FULL_WIDTH = {
    0xFEE0 + code: chr(code) for code in range(0x21, 0x7F)
}  # common in Chinese and Japanese
_LOOKALIKES = {
    **dict.fromkeys("−–‒﹣", "-"),
    **dict.fromkeys("×⋅·∙✕", "*"),
    **dict.fromkeys("∕⁄÷", "/"),
    **dict.fromkeys("\xa0\u2002\u2003\u2007\u2008\u2009\u200a\u202f\u3000~", " "),
    **dict.fromkeys("\u200b\u200c\u200e\u200f\u2060\ufeff", ""),
} | {"٫": ".", "٬": ",", "٪": "%", "、": ",", "【": "[", "】": "]"}
_SYMBOLS = {
    "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ", "∈": r"\in ",
    "∪": r"\cup ", "∩": r"\cap ", "±": r"\pm ", "∓": r"\mp ", "≈": r"\approx ", "θ": r"\theta ", "α": r"\alpha ",
    "β": r"\beta ", "λ": r"\lambda ", "∅": r"\emptyset ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ",
    "⌉": r"\rceil ",
}  # fmt: skip
_TYPE = str.maketrans(_FULL_WIDTH | _LOOKALIKES | _SYMBOLS)
_DIGIT = re.compile(r"[^\P{Nd}0-9]")
_SUPERSCRIPT = re.compile("[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_SUPERSCRIPTS = str.maketrans("⁻⁺⁰¹²³⁴⁵⁶⁷⁸⁹", "-+0123456789")
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+|\p{L}))")


def ascii_digits(text: str) -> str:
    """Digits of any script as 0-9, and full-width forms, superscripts and symbols as LaTeX writes them."""
    if text.isascii():
        return text.replace("~", " ")
    text = _SUPERSCRIPT.sub(lambda match: f"^{{{match[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _VULGAR.sub(lambda match: " " + unicodedata.normalize("NFKC", match[0]), text)
    text = _ROOT.sub(lambda match: rf"\sqrt{{{match[1] or match[2] or match[3]}}}", text)
    return _DIGIT.sub(lambda match: str(unicodedata.decimal(match[0])), text).translate(_TYPE)


_INVISIBLE = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|[bB]ig{1,2}[lr]?|limits|q?quad)(?![A-Za-z])\.?|(?<!\\)\\[!;:()\[\]]|(?<!\\)\$|^\s*\*\*|\*\*\s*$"
)
_GROUP = re.compile(r"\{,\}|,\\!\s*(?=\d{3})|\\,(?=\d{3})")
_SPACE = re.compile(r"(?<!\\)\\[ ,]|[\t\n\r]")
_FRACTIONS = re.compile(r"\\[dtc]frac(?![A-Za-z])")


def tidy(text: str) -> str:
    """Without what only sets type: delimiters of mathematics, spacing, full-width forms, a closing full stop."""
    text = _SPACE.sub(" ", _GROUP.sub(",", ascii_digits(text)))
    text = _FRACTIONS.sub(r"\\frac", _INVISIBLE.sub("", text))
    return text.strip().removesuffix(".").removesuffix("。").strip()


# --- how languages write numbers --------------------------------------------------------------------------------------

_STYLES = {
    "comma and dot": "de es it pt nl vi id tr da el ro hr sl sr bs mk ca gl eu is az",
    "comma and space": "fr uk ru be pl cs sk sv no nb nn fi et lv lt hu bg ka hy kk ky uz",
    "lakhs": "hi bn te ta mr gu kn ml pa ur ne or as si",
}
_STYLE = {language: style for style, languages in _STYLES.items() for language in languages.split()}
_DOT_GROUPS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:\.\d{3})+(?![\d.])")
_LAKH_GROUPS = re.compile(r"(?<![\d.,])\d{1,2}(?:,\d{2})+,\d{3}(?![\d,])")
_DECIMAL_COMMA = re.compile(r"(?<=\d),(?=\d)")


def forms(text: str, language: str) -> list[str]:
    """The tidy text as it is, and, where that is another, rewritten from the language's style of numbers to English.

    Where the decimal sign is a comma, "3,5" becomes "3.5"; in half of these languages dots group, and "1.234.567,8"
    becomes "1234567.8". In South Asia "12,34,567" becomes "1234567". Spaces and apostrophes group in every language.
    """
    text = tidy(text)
    style, rewritten = _STYLE.get(language, ""), text
    if style == "lakhs":
        rewritten = _LAKH_GROUPS.sub(lambda match: match[0].replace(",", ""), text)
    if style == "comma and dot":
        rewritten = _DOT_GROUPS.sub(lambda match: match[0].replace(".", ""), text)
    if style.startswith("comma"):
        rewritten = _DECIMAL_COMMA.sub(".", rewritten)
    return [text] if rewritten == text else [text, rewritten]


# --- quantities -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quantity:
    """A number and what is said after it: "%", a unit, or ""."""

    value: Fraction
    unit: str = ""


def number(text: str) -> Fraction | None:
    """The number that an answer is, or None if it is none, has more than MAX_DIGITS digits, or divides by zero."""
    found = quantity(tidy(text)) if len(text) <= MAX_DIGITS else None
    return found.value if found else None


def quantity(text: str) -> Quantity | None:
    """The number that a tidy text is, exactly, and its unit. None as in `number`."""
    text, unit = split_unit(text)
    match = _NUMBER.fullmatch(_rewrite(text)) if len(text) <= MAX_DIGITS else None
    if match is None or _too_long(match):
        return None
    sign, whole, top, power, bottom, scale = match.groups()
    try:
        value = Fraction(int(whole or 0)) + _decimal(top) ** int(power or 1) / _decimal(
            bottom or "1"
        )
    except ZeroDivisionError:
        return None
    return Quantity(value * Fraction(10) ** int(scale or 0) * (-1 if sign == "-" else 1), unit)


def is_written_number(text: str) -> bool:
    """Whether a tidy text has a number's form, be it one that has no value or too many digits."""
    return _NUMBER.fullmatch(_rewrite(split_unit(text[: 2 * MAX_DIGITS])[0])) is not None


_EXPONENT = r"[-+]?\d{1,6}"  # a plain integer: a tower of powers is no number here
_NUMBER = re.compile(
    rf"([-+])?\s*(?:(\d+)\s+(?=\d+/))?({DIGITS})(?:\^({_EXPONENT}))?(?:/({DIGITS}))?(?:(?:\*10\^|[eE])({_EXPONENT}))?"
)


def _decimal(digits: str) -> Fraction:
    return Fraction(re.sub("[, '’]", "", digits).rstrip("."))


def _too_long(match: re.Match) -> bool:
    """Whether the value could have more than MAX_DIGITS digits; asked before it is computed."""
    _, _, top, power, _, scale = match.groups()
    return len(top) * abs(int(power or 1)) + abs(int(scale or 0)) > MAX_DIGITS


_CURRENCY = re.compile(r"\\\$|[€£¥₩₴₽฿₹₫₦]|\bUSD\b|\bRs\.?(?=\s?\d)")
_FRACTION = re.compile(r"\\frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_OPERATORS = re.compile(r"\s*(\^|\*|/)\s*")


def _rewrite(text: str) -> str:
    r"""A number in the notation that _NUMBER reads: `1 1/2` for `1\frac{1}{2}`, `2^10` for `2^{10}`."""
    text = re.sub(r"\^\{([^{}]*)\}", r"^\1", text)
    text = _FRACTION.sub(r" \1\2/\3\4", text).replace("- ", "-")
    text = re.sub(r"\\times(?![A-Za-z])|\\cdot(?![A-Za-z])", "*", text.replace("**", "^"))
    return _OPERATORS.sub(r"\1", text).strip()


# A unit is a percent or degree sign, anything set as text, or up to three words after a space: of 3 letters at least,
# for "5 x" is not 5. In scripts that use no spaces a unit may follow at once.
_UNIT = re.compile(
    r"""(?<=[\d.}])(?:
        \s*(?:\\?%|°|\^\{?\\circ\}?)
      | \s*\\(?:text|mathrm|mbox|textrm)\s*\{[^{}\d]*\}(?:\^\{?[23]\}?)?
      | \s*(?:[cdkm]m|ft|in)(?:\^\{?[23]\}?) | \s+(?:[cdkm]m|ft|in) | \s*(?:k?m|ft|mi)/(?:s|h|hr|min)
      | \s+(?:kg|mg|ml|lb|oz|mi|hr) | \s*(?:cm|mm|km|kg)
      | \s*(?:[кмсд]?м|к?г|м?л|грн|руб|год|хв|шт|ч|с)(?![\p{L}])
      | (?:\s+[\p{Latin}\p{Cyrillic}]{3,}){1,3}
      | \s*(?:(?!\d)[\p{Han}\p{Hangul}\p{Hiragana}\p{Katakana}\p{Thai}\p{M}])+
      | (?:\s*-?(?:(?!\d)[\p{Devanagari}\p{Bengali}\p{Telugu}\p{Tamil}\p{Arabic}\p{M}])+){1,4}
    )$""",
    re.VERBOSE,
)
# Words after a number that change it, or do not end what is said: "3 million", "42 or 43", "3만".
_NO_UNIT = re.compile(
    r"""\b(?:hundred|thousand|million|billion|trillion|dozen|half|halves|third|quarter|fourth|fifth|sixth|seventh|eighth
        |ninth|tenth|times|plus|minus|over|and|or|to|sqrt|pi|root|squared|cubed|mod|not|base
        |mille|milliard|cents?\ mille|douzaine|demi|tausend|milliarde|hundert|dutzend|halb|oder|und|mal
        |mil|millones|millón|medio|media|docena|elfu|milioni|laki|mia
        |nghìn|ngàn|triệu|trăm|rưỡi|hoặc
        |тис|тыс|міль|мілл|милл|млн|млрд|сот|сто|десят|дюжин|полов|трет|чверт|четверт|або|или|плюс|мінус|минус)
      | [十百千万萬亿億兆半割십백천만억조반或和또] | สิบ|ร้อย|พัน|หมื่น|แสน|ล้าน|ครึ่ง|หรือ|และ
      | हज़ार|हजार|लाख|करोड़|सौ|दर्जन|आधा|হাজার|লাখ|লক্ষ|কোটি|শত|অর্ধ|వేల|లక్ష|కోటి|వంద|ألف|آلاف|مليون|مئة|مائة|نصف|أو|या|বা""",
    re.VERBOSE | re.IGNORECASE,
)


def is_multiplier(word: str) -> bool:
    """Whether a word after a number changes it ("million") or goes on with another ("or")."""
    return _NO_UNIT.match(word) is not None


def split_unit(text: str) -> tuple[str, str]:
    """(rest, unit) of a tidy text, the sign of a currency left out; ("3 million", "") where the words are no unit."""
    text = _CURRENCY.sub("", text).strip()
    unit = _UNIT.search(text, max(0, len(text) - 100))
    if unit is None or _NO_UNIT.search(unit[0]):
        return text, ""
    return text[: unit.start()], _FONT.sub(r"\1", unit[0]).strip()


_FONT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|mbox|rm)\s*\{([^{}]*)\}"
)


def plain(text: str) -> str:
    """A tidy text to compare as text: words without regard to case. Spaces between digits stay: "1 2" is not 12."""
    text = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", _FONT.sub(r"\1", text)).rstrip(".")
    choice = re.fullmatch(r"\(([A-Za-z])\)", text)
    text = choice[1] if choice else re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    return text.casefold() if _WORDS.fullmatch(text) else text


_WORDS = re.compile(r"[\p{L}\p{M}'’.-]*")


# --- equality ---------------------------------------------------------------------------------------------------------

_SIZES = {
    "length": {"mm": "1/1000", "cm": "1/100", "dm": "1/10", "m": "1", "km": "1000", "in": "127/5000", "ft": "381/1250",
               "yard": "1143/1250", "mi": "201168/125", "millimeter": "1/1000", "centimeter": "1/100", "meter": "1",
               "kilometer": "1000", "inch": "127/5000", "inche": "127/5000", "foot": "381/1250", "feet": "381/1250",
               "mile": "201168/125", "centimetre": "1/100", "metre": "1", "kilometre": "1000"},
    "mass": {"mg": "1/1000", "g": "1", "kg": "1000", "gram": "1", "kilogram": "1000", "milligram": "1/1000"},
    "time": {"s": "1", "sec": "1", "second": "1", "min": "60", "minute": "60", "h": "3600", "hr": "3600",
             "hour": "3600", "day": "86400", "week": "604800"},
    "volume": {"ml": "1/1000", "l": "1", "liter": "1", "litre": "1", "milliliter": "1/1000"},
    "money": {"cent": "1/100", "dollar": "1"},
}  # fmt: skip
_UNITS = {
    unit: (kind, Fraction(size)) for kind, sizes in _SIZES.items() for unit, size in sizes.items()
}


def same_quantity(answer: Quantity, gold: Quantity, tolerance: float = 0.0) -> bool:
    """Whether two quantities are equal, exactly or within a share `tolerance` of the gold.

    Where but one has a percent sign, it may mean percent ("50%" is 1/2) or be left out ("50%" is 50). Two units of the
    table are converted, and differ where they measure different things; any other unit is ignored.
    """
    first, second = answer.value, gold.value
    percent = answer.unit.endswith("%"), gold.unit.endswith("%")
    if percent == (True, False):
        return _close(first, second, tolerance) or _close(first / 100, second, tolerance)
    if percent == (False, True):
        return _close(first, second, tolerance) or _close(first, second / 100, tolerance)
    (kind, size), (gold_kind, gold_size) = _measure(answer.unit), _measure(gold.unit)
    if kind and gold_kind:
        return kind == gold_kind and _close(first * size, second * gold_size, tolerance)
    return _close(first, second, tolerance)


def _close(answer: Fraction, gold: Fraction, tolerance: float) -> bool:
    return answer == gold or (
        tolerance > 0 and abs(answer - gold) <= Fraction(tolerance) * abs(gold)
    )


def _measure(unit: str) -> tuple[str, Fraction]:
    """(what it measures, how large it is) of a unit of the table, squares and cubes too; ("", 1) of any other."""
    word, _, power = unit.partition("^")
    word = word.strip().lower()
    kind, size = _UNITS.get(word) or _UNITS.get(word.removesuffix("s")) or ("", Fraction(1))
    times = int(power.strip("{}")) if power.strip("{}") in ("2", "3") else 1
    return (f"{kind}{times}" if kind else ""), size**times
