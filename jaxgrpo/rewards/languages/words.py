"""Splits a text into words, sentence by sentence and script by script.

The definition of a word is at the head of `consistency`. For example:

    text:               "She has 12 apples. 사과 5개"
    sentences(text):    {"Latin": ["She", "has", "apples"]}, {"Hangul": ["사과", "개"]}
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

import regex as re
from icu4py.breakers import WordBreaker

_LANGUAGES = {
    "Latin": (
        "en de fr es pt it nl ca gl ro pl cs sk sl hr bs sq da no nn sv is fi et lv lt hu tr az uz"
        " tk vi id ms tl jv su sw af ht eo eu cy ga gd la mt lb so mg yo"
    ),
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
LANGUAGES = {
    script: tuple(languages.split()) for script, languages in _LANGUAGES.items()
}
"""The languages that are told apart, by script.

They are those of fastText's lid.176, without small relatives of other languages and constructed
languages, which cost accuracy.
"""

WordsByScript = dict[str, list[str]]
"""The words of one sentence, by their script."""

_MAX_SENTENCES = 2000
"""About how many sentences of a text are kept apart; in a longer text neighbours are merged."""

MAX_WORDS = 50_000
"""The most words of a text that `split` returns.

It is far more than a completion has, and bounds the time that a text takes to seconds.
"""

_MAX_LETTERS = 40
"""Only the last letters of a longer word are looked at, so that the cache stays small."""

_SENTENCE_ENDS = frozenset(".!?\n。！？．｡।॥؟۔…") | {"\r\n", "\u2028", "\u2029"}  # noqa: RUF001

_SENTENCE_END = "end"
"""The kind of a segment that ends a sentence, where a word's kind is its script."""

_UNIT_SIGNS = (
    "mm cm dm km mg kg ml cl dl kl lb lbs oz ft yd sq kW kWh mph kmh Hz kHz MHz GHz "
    "KB MB GB TB"
)
_UNITS = frozenset(_UNIT_SIGNS.split())
_VARIABLE_SCRIPTS = ("Latin", "Greek")
"""Scripts in which a single letter is a variable, not a word."""

_UNIT_SCRIPTS = ("Latin", "Greek", "Cyrillic")
"""Scripts of units and of variables with digits: "km", "5kg", "x_1"."""

# Matches one letter; the name of the group that matched is the letter's script. Hiragana and
# katakana together are "Kana"; "other" holds the letters of scripts that LANGUAGES does not have.
_SCRIPT_OF_LETTER = re.compile(
    r"(?P<Kana>[\p{Hiragana}\p{Katakana}&&\p{L}])|"
    + "|".join(
        rf"(?P<{script}>[\p{{{script}}}&&\p{{L}}])"
        for script in LANGUAGES
        if script != "Kana"
    )
    + r"|(?P<other>[\p{L}--\p{Common}])",
    re.VERSION1,
)


def sentences(text: str) -> Iterator[WordsByScript]:
    """Yields the words of each sentence that has words."""
    text = _normalize(text)
    # A sentence of fewer letters is merged with the next one, in texts of many sentences.
    min_letters = len(text) // _MAX_SENTENCES
    words: defaultdict[str, list[str]] = defaultdict(list)
    num_letters = 0
    for segment in WordBreaker(text, "root"):
        kind = _classify(segment[-_MAX_LETTERS:])
        if kind == _SENTENCE_END:
            # Without words, an ellipsis or an empty line for example, there is nothing to yield.
            if words and num_letters >= min_letters:
                yield words
                words = defaultdict(list)
                num_letters = 0
        elif kind:
            words[kind].append(segment)
            num_letters += len(segment)
    if words:
        yield words


def located_words(text: str) -> Iterator[tuple[int, str, str]]:
    """Yields the position, the segment and the script of each word of `sentences`, in order.

    text: in Unicode's composed form, as positions count its characters
    """
    position = 0
    for segment in WordBreaker(_normalize(text), "root"):
        kind = _classify(segment[-_MAX_LETTERS:])
        if kind and kind != _SENTENCE_END:
            yield position, segment, kind
        position += len(segment)


def split(text: str) -> list[str]:
    """Returns the segments of a text in their order, case folded and without white space.

    Numbers and signs are segments, too:

        split("She's got 12: 사과와苹果")    -> ["she's", "got", "12", ":", "사과와", "苹果"]
    """
    segments = WordBreaker(_normalize(text), "root")
    words = (segment.casefold() for segment in segments if not segment.isspace())
    return list(islice(words, MAX_WORDS))


def _normalize(text: str) -> str:
    """Returns the text in Unicode's composed form, without lone surrogates, which ICU rejects."""
    return unicodedata.normalize("NFC", text.encode(errors="replace").decode())


@lru_cache(maxsize=1 << 16)
def _classify(segment: str) -> str:
    """Returns a word's script, _SENTENCE_END for what ends a sentence, and "" for all else."""
    if segment in _SENTENCE_ENDS:
        return _SENTENCE_END
    scripts = [match.lastgroup for match in _SCRIPT_OF_LETTER.finditer(segment)]
    if not scripts:
        return ""
    if "Kana" in scripts:
        return "Kana"
    # The last letter decides: in "API를" it belongs to a Korean suffix.
    script = scripts[-1] or ""
    if len(scripts) == 1 and script in _VARIABLE_SCRIPTS:
        return ""
    if script in _UNIT_SCRIPTS and (
        segment in _UNITS or re.search(r"[\p{N}_]", segment)
    ):
        return ""
    return script
