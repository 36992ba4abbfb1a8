"""A text's words, sentence by sentence and script by script. What a word is: see `language`.

list(pieces("She has 12 apples. 사과 5개"))    -> [{"Latin": ["She", "has", "apples"]}, {"Hangul": ["사과", "개"]}]
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

import regex as re
from icu4py.breakers import WordBreaker

_LANGUAGES = {
    "Latin": "en de fr es pt it nl ca gl ro pl cs sk sl hr bs sq da no nn sv is fi et lv lt hu tr az uz tk vi id ms tl"
    " jv su sw af ht eo eu cy ga gd la mt lb so mg yo",
    "Cyrillic": "ru uk be bg mk sr kk ky tg tt mn ba cv",
    "Arabic": "ar fa ur ps ug sd ckb",
    "Devanagari": "hi mr ne sa",
    "Hebrew": "he yi",
    "Bengali": "bn as",
    "Han": "zh ja",
    "Kana": "ja",
    "Hangul": "ko",
    "Thai": "th",
    "Lao": "lo",
    "Khmer": "km",
    "Myanmar": "my",
    "Georgian": "ka",
    "Armenian": "hy",
    "Greek": "el",
    "Ethiopic": "am",
    "Tamil": "ta",
    "Telugu": "te",
    "Kannada": "kn",
    "Malayalam": "ml",
    "Gujarati": "gu",
    "Gurmukhi": "pa",
    "Oriya": "or",
    "Sinhala": "si",
    "Tibetan": "bo",
}
LANGUAGES = {script: tuple(languages.split()) for script, languages in _LANGUAGES.items()}
"""By script, the languages told apart: lid.176's without small relatives and made-up ones, which cost accuracy."""

Piece = dict[str, list[str]]
"""A sentence's words, by script."""

PIECES = 2000
"""At most about so many sentences are kept apart: in a text of more, neighbours go together."""

_SENTENCE_ENDS = frozenset(".!?\n。！？．｡।॥؟۔…") | {"\r\n", "\u2028", "\u2029"}  # noqa: RUF001


def pieces(text: str) -> Iterator[Piece]:
    """The words of each sentence; sentences without words are left out."""
    text = _for_icu(text)
    words: defaultdict[str, list[str]] = defaultdict(list)
    length, enough = 0, len(text) // PIECES
    for segment in WordBreaker(text, "root"):
        kind = _kind(segment[-_LONGEST:])
        if kind == _END and words and length >= enough:
            yield words
            words, length = defaultdict(list), 0
        elif kind and kind != _END:
            words[kind].append(segment)
            length += len(segment)
    if words:
        yield words


MAX_WORDS = 50_000
"""How many words of a text `split` gives: far more than a completion has, so that no text takes more than seconds."""


def split(text: str) -> list[str]:
    """The words of a text in their order, case folded: its segments but for white space, so numbers and signs, too.

    split("She's got 12: 사과와苹果")    -> ["she's", "got", "12", ":", "사과와", "苹果"]
    """
    segments = WordBreaker(_for_icu(text), "root")
    return list(
        islice((segment.casefold() for segment in segments if not segment.isspace()), MAX_WORDS)
    )


def _for_icu(text: str) -> str:
    """Composed, and without lone surrogates, which ICU does not take."""
    return unicodedata.normalize("NFC", text.encode(errors="replace").decode())


_END = "end"
_LONGEST = 40
"""A longer word is judged by its last letters, so that the cache stays small."""

_UNITS = frozenset(
    word
    for units in (
        "mm cm dm km mg kg ml cl dl kl lb lbs oz ft yd sq",
        "kW kWh mph kmh Hz kHz MHz GHz KB MB GB TB",
    )
    for word in units.split()
)
_OF_VARIABLES = ("Latin", "Greek")
_OF_UNITS = ("Latin", "Greek", "Cyrillic")
_SCRIPT = re.compile(
    r"(?P<Kana>[\p{Hiragana}\p{Katakana}&&\p{L}])|"
    + "|".join(
        rf"(?P<{script}>[\p{{{script}}}&&\p{{L}}])" for script in LANGUAGES if script != "Kana"
    )
    + r"|(?P<other>[\p{L}--\p{Common}])",
    re.VERSION1,
)


@lru_cache(maxsize=1 << 16)
def _kind(segment: str) -> str:
    """A word's script; _END for what ends a sentence; "" for what is neither."""
    if segment in _SENTENCE_ENDS:
        return _END
    scripts = [match.lastgroup for match in _SCRIPT.finditer(segment)]
    if not scripts or "Kana" in scripts:
        return "Kana" if scripts else ""
    script = scripts[-1] or ""  # a suffix decides
    variable = len(scripts) == 1 and script in _OF_VARIABLES
    unit = script in _OF_UNITS and (segment in _UNITS or re.search(r"[\p{N}_]", segment))
    return "" if variable or unit else script
