r"""Language-consistency rewards: how many of a completion's words are in the problem's language.

The first of them is the share of the chain of thought's words that are in the problem's language,
as in DeepSeek-R1 (arXiv 2501.12948, section 2.3.2: "the proportion of target language words in
the CoT"). That paper says no more, nor does the one on cross-lingual collapse (arXiv 2506.05850).
What follows is our definition:

1. The part. The chain of thought is the think block; without one, it is the whole text. The
   answer is what follows it.
2. What is not language is removed: formulas ($..$, \(..\), \[..\], \boxed{..}), code, addresses,
   tags, commands. A formula that holds four words in a row is kept: nothing may hide there
   (`prose.strip_formulas`).
3. A word is a segment with letters of Unicode's word segmentation (UAX 29). Chinese, Japanese,
   Thai, Lao, Khmer and Burmese have no spaces between words, and are segmented with ICU's
   dictionaries: "我们用 average speed 计算" is 3 Chinese words and 2 English ones. A word of two
   scripts belongs to the script of its last letter. These are not words: numbers; single letters
   (Latin or Greek); signs of units ("km"); and what is written together with digits or an
   underscore in a script that variables are written in ("x1", "5kg").
4. A script that one language uses decides (Hangul is Korean, kana are Japanese). Where languages
   share a script, all words of a sentence are in the language that is likeliest by three things:
   - fastText's lid.176;
   - clues: letters that a language never uses, and some words that only English or Swahili has;
   - how much of the text is in that language, as if 30 letters more were in the target language and
     30 in English.
   So a few words go with the rest of the text, and many words are believed. `identify` has the
   formulas.
5. Han characters are Japanese in a sentence with a tenth as much hiragana. Else those characters
   decide that the standards of one language alone have (们 in Chinese, 円 in Japanese). Else they
   are Japanese if there is katakana in the sentence, and Chinese if there are ten of them. Else
   they are in the language of all Han characters of the text.

So a foreign word in a sentence of the same script counts as that sentence's language, and a name in
another script counts as a word of the language that it looks like, mostly English.
"""

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from jaxgrpo.errors import UserError, check_choice
from jaxgrpo.problems import Problem
from jaxgrpo.rewards import prose
from jaxgrpo.rewards.languages.identify import MIN_LETTERS, identify, identify_sentences
from jaxgrpo.rewards.languages.words import LANGUAGES, located_words, sentences
from jaxgrpo.rewards.prose import PARTS, strip_formulas
from jaxgrpo.text.language_codes import LANGUAGE_CODES, language_code

__all__ = [
    "LANGUAGES",
    "MIN_LETTERS",
    "PARTS",
    "LocatedWord",
    "Match",
    "Ratio",
    "Threshold",
    "WordRatios",
    "count_words",
    "english_word_ratio",
    "identify",
    "locate_words",
    "strip_formulas",
    "target_word_ratio",
    "word_ratios",
]

MAX_LENGTH = 1_000_000
"""The most characters of a part that are read.

It is far more than a completion has, and bounds the time that a text takes to seconds.
"""


# --- Rewards ---


def target_word_ratio(problem: Problem, text: str) -> float:
    """Returns the share of the chain of thought's words that are in `problem.language`.

    Returns 0.0 for a text without words: saying nothing must not be the way to a full reward.
    """
    return word_ratios(text, problem.language).target


def english_word_ratio(problem: Problem, text: str) -> float:
    """Returns the share of the chain of thought's words that are English; 0.0 without words."""
    return word_ratios(text, problem.language).english


@dataclass(frozen=True)
class Ratio:
    """A reward: the share of words in a language, from 0.0 to 1.0; 0.0 without words.

    part: what is read: think (all of the text where there is no think block), answer or all
    language: a language's code or name, such as en for the share of English; empty: the problem's
    """

    part: str = "think"
    language: str = ""

    def __post_init__(self) -> None:
        check_choice("part", self.part, PARTS)
        if self.language:
            object.__setattr__(self, "language", _checked_code(self.language))

    def __call__(self, problem: Problem, text: str) -> float:
        return word_ratios(text, self.language or problem.language, self.part).target


@dataclass(frozen=True)
class Threshold:
    """A reward: 1.0 if at least a given share of words is in the problem's language, else 0.0.

    Without words it is 0.0.

    part: what is read: think (all of the text where there is no think block), answer or all
    at_least: the share, above 0 and at most 1
    """

    part: str = "think"
    at_least: float = 0.9

    def __post_init__(self) -> None:
        check_choice("part", self.part, PARTS)
        if not 0 < self.at_least <= 1:
            raise UserError(
                f"a language threshold must be above 0 and at most 1, got at_least={self.at_least}"
            )

    def __call__(self, problem: Problem, text: str) -> float:
        return float(
            word_ratios(text, problem.language, self.part).target >= self.at_least
        )


@dataclass(frozen=True)
class Match:
    """A reward: 1.0 if more words are in the problem's language than in any other, else 0.0.

    part: what is read: think (all of the text where there is no think block), answer or all
    """

    part: str = "think"

    def __post_init__(self) -> None:
        check_choice("part", self.part, PARTS)

    def __call__(self, problem: Problem, text: str) -> float:
        counts = _count_words_of_part(text, _checked_code(problem.language), self.part)
        other_counts = [
            count for code, count in counts.items() if code != problem.language
        ]
        return float(counts[problem.language] > max(other_counts, default=0))


# --- Counts of words, which the rewards are made of ---


@dataclass(frozen=True)
class WordRatios:
    """The shares of a text's words that are in two languages, both 0.0 where there are no words.

    words: how many words there are
    target: the share in the target language
    english: the share in English
    """

    words: int
    target: float
    english: float


def word_ratios(text: str, target: str, part: str = "think") -> WordRatios:
    """Returns the shares of a completion's words that are in the target language and in English.

    target: code or name of a language
    part: which part of the completion is read, one of PARTS

    Raises UserError if `target` is no language that can be told apart, for its ratio would be 0.0
    for ever, or if `part` is none of PARTS.
    """
    target = _checked_code(target)
    check_choice("part", part, PARTS)
    counts = _count_words_of_part(text, target, part)
    words = counts.total()
    divisor = max(words, 1)  # without words all counts are 0, and so are the shares
    return WordRatios(words, counts[target] / divisor, counts["en"] / divisor)


# A text's rewards are computed one after the other, and most of them need the same counts.
@lru_cache(maxsize=8)
def _count_words_of_part(text: str, target: str, part: str) -> Counter[str]:
    prose_text = strip_formulas(prose.part(text, part)[:MAX_LENGTH])
    return count_words(prose_text, target)


def count_words(text: str, target: str) -> Counter[str]:
    """Returns the number of words in each language.

    text: a text without formulas
    target: ISO 639-1 code of the language that the text should be in

    The key "" holds the words for which no language is found.
    """
    counts: Counter[str] = Counter()
    for languages in _languages_by_script(text, target).values():
        counts.update(languages)
    return counts


def _languages_by_script(text: str, target: str) -> dict[str, list[str]]:
    """Returns the language of each word of a text: script -> its words' languages, in order."""
    all_sentences = list(sentences(text))
    scripts = {script for sentence in all_sentences for script in sentence}
    by_script = {}
    # A sentence may have words of several scripts, and each script's words a language of their own.
    for script in scripts:
        with_script = [sentence for sentence in all_sentences if script in sentence]
        languages = identify_sentences(script, with_script, target)
        by_script[script] = [
            language
            for sentence, language in zip(with_script, languages, strict=True)
            for _ in sentence[script]
        ]
    return by_script


class LocatedWord(NamedTuple):
    """A word, and where it stands in its text.

    language: ISO 639-1 code, "" where none is found
    """

    start: int
    end: int
    language: str


def locate_words(text: str, target: str) -> list[LocatedWord]:
    """Returns the words that `word_ratios` counts in a whole text, with their languages.

    text: in Unicode's composed form (NFC), as positions count its characters
    target: ISO 639-1 code of the language that the text should be in
    """
    words: list[LocatedWord] = []
    pieces = prose.prose_pieces(text)
    stripped = strip_formulas(text)
    by_script = _languages_by_script(stripped, target)
    remaining = {script: iter(languages) for script, languages in by_script.items()}
    # Where each piece begins in the stripped text, in which a space follows each.
    starts = [0]
    for piece in pieces:
        length = piece.end - piece.start + len(piece.stop)
        starts.append(starts[-1] + length + 1)
    for position, segment, script in located_words(stripped):
        index = bisect_right(starts, position) - 1
        start = pieces[index].start + position - starts[index]
        language = next(remaining[script])
        words.append(LocatedWord(start, start + len(segment), language))
    return words


def _checked_code(language: str) -> str:
    """Returns the ISO 639-1 code of a language's code or name. Raises UserError if it has none."""
    code = language_code(language)
    if code is None:
        codes = " ".join(sorted(LANGUAGE_CODES))
        raise UserError(
            f"language {language!r} is not one that can be told: use one of {codes}"
        )
    return code
