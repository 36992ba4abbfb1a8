# ruff: noqa: RUF001, RUF002  (look-alikes are what is read)
r"""One notation for answers that differ only in typography.

normalize(r"$\dfrac{１}{2}$.")      -> r"\frac{1}{2}"
readings("1.234,5", "de")          -> ["1.234,5", "1234.5"]
text_key(r"\text{Evelyn}")         -> "evelyn"
"""

import unicodedata

import regex as re

# --- characters -----------------------------------------------------------------------------------

# The full-width forms of ASCII, U+FF01 to U+FF5E: common in Chinese and Japanese.
_FULL_WIDTH = {0xFEE0 + code: chr(code) for code in range(0x21, 0x7F)}
_LOOKALIKES = {
    **dict.fromkeys("−–‒﹣", "-"),
    **dict.fromkeys("×⋅·∙✕", "*"),
    **dict.fromkeys("∕⁄÷", "/"),
    **dict.fromkeys("\xa0\u2002\u2003\u2007\u2008\u2009\u200a\u202f\u3000~", " "),
    **dict.fromkeys("\u200b\u200c\u200e\u200f\u2060\ufeff", ""),
    "٫": ".",
    "٬": ",",
    "٪": "%",
    "、": ",",
    "【": "[",
    "】": "]",
}
_SYMBOLS = {
    "π": r"\pi ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "⩽": r"\le ",
    "⩾": r"\ge ",
    "≠": r"\ne ",
    "∈": r"\in ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "±": r"\pm ",
    "∓": r"\mp ",
    "≈": r"\approx ",
    "θ": r"\theta ",
    "α": r"\alpha ",
    "β": r"\beta ",
    "λ": r"\lambda ",
    "∅": r"\emptyset ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
}
_CHARACTERS = str.maketrans(_FULL_WIDTH | _LOOKALIKES | _SYMBOLS)
# A digit of another script than ASCII: "४", "٤"
_OTHER_DIGIT = re.compile(r"[^\P{Nd}0-9]")
# "²", "⁻¹"
_SUPERSCRIPT = re.compile("[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_SUPERSCRIPT_DIGITS = str.maketrans("⁻⁺⁰¹²³⁴⁵⁶⁷⁸⁹", "-+0123456789")
# "½", "⅔"
_VULGAR_FRACTION = re.compile("[¼-¾⅐-⅞]")
# "√(x+1)", "√{x+1}", "√12", "√x"
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+|\p{L}))")


def _to_ascii(text: str) -> str:
    """Returns the text with digits of any script as 0-9, and signs as LaTeX writes them.

    That goes for full-width forms, superscripts, fractions in one character, roots and symbols.
    """
    if text.isascii():
        return text.replace("~", " ")
    text = _SUPERSCRIPT.sub(_superscript_as_power, text)
    # "2½" becomes "2 1/2": NFKC makes three characters, the space keeps the whole part apart.
    text = _VULGAR_FRACTION.sub(
        lambda match: " " + unicodedata.normalize("NFKC", match[0]), text
    )
    text = _ROOT.sub(
        lambda match: rf"\sqrt{{{match[1] or match[2] or match[3]}}}", text
    )
    text = _OTHER_DIGIT.sub(lambda match: str(unicodedata.decimal(match[0])), text)
    return text.translate(_CHARACTERS)


def _superscript_as_power(match: re.Match) -> str:
    return f"^{{{match[0].translate(_SUPERSCRIPT_DIGITS)}}}"


# --- LaTeX ----------------------------------------------------------------------------------------

_INVISIBLE = re.compile(
    # Sizes and styles, and the dot of "\left.": "\left", "\displaystyle", "\Bigr", "\qquad"
    r"\\(?:left|right|displaystyle|textstyle|[bB]ig{1,2}[lr]?|limits|q?quad)(?![A-Za-z])\.?"
    # Thin spaces and delimiters of formulas: "\!", "\;", "\(", "\]"
    r"|(?<!\\)\\[!;:()\[\]]"
    r"|(?<!\\)\$"
    # Markdown's emphasis around the whole
    r"|^\s*\*\*|\*\*\s*$"
)
# Signs between groups of three digits: "1{,}234", "10,\!080", "10\,080"
_GROUP_SIGN = re.compile(r"\{,\}|,\\!\s*(?=\d{3})|\\,(?=\d{3})")
# "\ ", "\,", a tab, the end of a line
_SPACE = re.compile(r"(?<!\\)\\[ ,]|[\t\n\r]")
# "\dfrac", "\tfrac", "\cfrac"
_SIZED_FRACTION = re.compile(r"\\[dtc]frac(?![A-Za-z])")


def normalize(text: str) -> str:
    """Returns the text without what only sets type.

    That is: delimiters of formulas, spacing, full-width forms, a full stop at the end.
    """
    text = _to_ascii(text)
    text = _GROUP_SIGN.sub(",", text)
    text = _SPACE.sub(" ", text)
    text = _INVISIBLE.sub("", text)
    text = _SIZED_FRACTION.sub(r"\\frac", text)
    return text.strip().removesuffix(".").removesuffix("。").strip()


# "\text{cm}", "\mathrm{m}", "\rm {x}"
_FONT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|mbox|rm)\s*\{([^{}]*)\}"
)


def strip_fonts(text: str) -> str:
    r"""Returns the text without commands that choose a font: "cm" for "\text{cm}"."""
    return _FONT.sub(r"\1", text)


# Spaces that do not stand between two digits
_LOOSE_SPACE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")
# "(C)": a choice
_CHOICE = re.compile(r"\(([A-Za-z])\)")
# "x_{1}", "x^{2}"
_BRACED_CHARACTER = re.compile(r"([_^])\{(\w)\}")
# Letters only: "East", "l'eau"
_WORDS = re.compile(r"[\p{L}\p{M}'’.-]*")


def text_key(text: str) -> str:
    """Returns what is equal for two normalized texts that are the same text.

    Words are compared without regard to case, formulas are not. Spaces between digits stay: "1 2"
    is not 12.
    """
    text = _LOOSE_SPACE.sub("", strip_fonts(text)).rstrip(".")
    choice = _CHOICE.fullmatch(text)
    text = choice[1] if choice else _BRACED_CHARACTER.sub(r"\1\2", text)
    return text.casefold() if _WORDS.fullmatch(text) else text


# --- how languages write numbers ------------------------------------------------------------------

_LANGUAGES_OF_STYLES = {
    "comma and dot": "de es it pt nl vi id tr da el ro hr sl sr bs mk ca gl eu is az",
    "comma and space": "fr uk ru be pl cs sk sv no nb nn fi et lv lt hu bg ka hy kk ky uz",
    "lakhs": "hi bn te ta mr gu kn ml pa ur ne or as si",
}
_STYLE_OF_LANGUAGE = {
    language: style
    for style, languages in _LANGUAGES_OF_STYLES.items()
    for language in languages.split()
}
# "1.234.567"
_DOT_GROUPS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:\.\d{3})+(?![\d.])")
# "12,34,567"
_LAKH_GROUPS = re.compile(r"(?<![\d.,])\d{1,2}(?:,\d{2})+,\d{3}(?![\d,])")
# The comma of "3,5"
_DECIMAL_COMMA = re.compile(r"(?<=\d),(?=\d)")


def readings(text: str, language: str) -> list[str]:
    """Returns the normalized text, and its translation to English number style if that differs.

    Where the decimal sign is a comma, "3,5" becomes "3.5"; in half of these languages dots group,
    and "1.234.567,8" becomes "1234567.8". In South Asia "12,34,567" becomes "1234567". Spaces and
    apostrophes group in every language.
    """
    text = normalize(text)
    style = _STYLE_OF_LANGUAGE.get(language, "")
    translated = text
    if style == "lakhs":
        translated = _LAKH_GROUPS.sub(lambda match: match[0].replace(",", ""), text)
    if style == "comma and dot":
        translated = _DOT_GROUPS.sub(lambda match: match[0].replace(".", ""), text)
    if style.startswith("comma"):
        translated = _DECIMAL_COMMA.sub(".", translated)
    return [text] if translated == text else [text, translated]
