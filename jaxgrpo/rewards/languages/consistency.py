r"""Which language does the model think in? Word ratios, and the language-consistency rewards made of them.

The first of them is the share of words of the chain of thought that are in the problem's language, as in DeepSeek-R1
(arXiv 2501.12948, section 2.3.2: "the proportion of target language words in the CoT"). That paper says no more, nor does
the one on cross-lingual collapse (arXiv 2506.05850); what follows is our definition:

1. The part. The chain of thought is the think block; without one, the whole text. The answer is what follows it.
2. What is no language goes: formulas ($..$, \(..\), \[..\], \boxed{..}), code, addresses, tags, commands. A formula of
   four words in a row is none: nothing hides there (`prose.strip_formulas`).
3. A word is a segment with letters of Unicode's word segmentation (UAX 29), with ICU's dictionaries for Chinese, Japanese,
   Thai, Lao, Khmer and Burmese, whose words have no spaces between: "我们用 average speed 计算" is 3 words and 2. A word of
   two scripts is of its last letter's. Numbers are no words, nor are single letters (Latin or Greek), signs of units
   ("km"), and what is written together with digits or an underscore in a script of variables ("x1", "5kg").
4. A script that one language uses decides (Hangul is Korean, kana are Japanese). Among the languages of another script
   all words of a sentence are in the language that is likeliest by three things: fastText's lid.176; clues (letters that a
   language never uses; some words that only English or Swahili has); how much of the text is in that language, as if
   30 letters more were in the target language and 30 in English. So few words go the way of the text, and many are believed.
5. Han characters are Japanese in a sentence with a tenth of hiragana; else by the characters that one language's standards
   alone have (们 in Chinese, 円 in Japanese); else Japanese beside katakana; else Chinese, if there are ten; else as the text.

So a foreign word in a sentence of the same script counts as that sentence's language, and a name in another script as a
word of the language it looks like, mostly English.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problem
from jaxgrpo.rewards import prose
from jaxgrpo.rewards.languages.identify import MIN_LETTERS, identify, languages
from jaxgrpo.rewards.languages.words import LANGUAGES, Piece, pieces
from jaxgrpo.rewards.prose import PARTS, strip_formulas
from jaxgrpo.text.language_codes import LANGUAGE_CODES, language_code

__all__ = [
    "LANGUAGES",
    "MIN_LETTERS",
    "PARTS",
    "Match",
    "Ratio",
    "Threshold",
    "WordRatios",
    "count_words",
    "english_word_ratio",
    "identify",
    "strip_formulas",
    "target_word_ratio",
    "word_ratios",
]

MAX_LENGTH = 1_000_000
"""Characters of a part that are read: far more than a completion has, so that no text takes more than seconds."""


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


@dataclass(frozen=True)
class Ratio:
    """A reward: the share of words in a language, from 0.0 to 1.0; 0.0 without words.

    part: what is read of a completion: think (all of it where there is no think block), answer or all
    language: a language's code or name, such as en for the share of English; empty: the problem's
    """

    part: str = "think"
    language: str = ""

    def __post_init__(self) -> None:
        _check_part(self.part)
        if self.language:
            object.__setattr__(self, "language", _known(self.language))

    def __call__(self, problem: Problem, text: str) -> float:
        return word_ratios(text, self.language or problem.language, self.part).target


@dataclass(frozen=True)
class Threshold:
    """A reward: 1.0 if at least such a share of words is in the problem's language, else, and without words, 0.0.

    part: what is read of a completion: think (all of it where there is no think block), answer or all
    at_least: the share, above 0 and at most 1
    """

    part: str = "think"
    at_least: float = 0.9

    def __post_init__(self) -> None:
        _check_part(self.part)
        if not 0 < self.at_least <= 1:
            raise UserError(
                f"a language threshold must be above 0 and at most 1, got at_least={self.at_least}"
            )

    def __call__(self, problem: Problem, text: str) -> float:
        return float(word_ratios(text, problem.language, self.part).target >= self.at_least)


@dataclass(frozen=True)
class Match:
    """A reward: 1.0 if the text as a whole is in the problem's language, else 0.0: more words are than in any other.

    part: what is read of a completion: think (all of it where there is no think block), answer or all
    """

    part: str = "think"

    def __post_init__(self) -> None:
        _check_part(self.part)

    def __call__(self, problem: Problem, text: str) -> float:
        counts = _counts(text, _known(problem.language), self.part)
        others = [count for language, count in counts.items() if language != problem.language]
        return float(counts[problem.language] > max(others, default=0))


def word_ratios(text: str, target: str, part: str = "think") -> WordRatios:
    """How much of a part of a completion is in the target language, and how much in English.

    Raises UserError if `target` is no language that can be told: its ratio would be 0.0 for ever;
    or if `part` is none of PARTS.
    """
    target = _known(target)
    counts = _counts(text, target, _check_part(part))
    words = counts.total()
    return WordRatios(words, counts[target] / max(words, 1), counts["en"] / max(words, 1))


@lru_cache(
    maxsize=8
)  # a text's rewards are computed one after the other, and most need the same counts
def _counts(text: str, target: str, part: str) -> Counter[str]:
    return count_words(strip_formulas(prose.part(text, part)[:MAX_LENGTH]), target)


def count_words(text: str, target: str) -> Counter[str]:
    """The number of words by language in a text without formulas; "" holds those that no language is found for."""
    counts: Counter[str] = Counter()
    sentences = list(pieces(text))
    for script in {script for sentence in sentences for script in sentence}:
        inside: list[Piece] = [sentence for sentence in sentences if script in sentence]
        for sentence, language in zip(inside, languages(script, inside, target), strict=True):
            counts[language] += len(sentence[script])
    return counts


def _known(language: str) -> str:
    code = language_code(language)
    if code is None:
        codes = " ".join(sorted(LANGUAGE_CODES))
        raise UserError(f"language {language!r} is not one that can be told: use one of {codes}")
    return code


def _check_part(part: str) -> str:
    if part not in PARTS:
        raise UserError(f"part is {part!r}: it must be one of {', '.join(PARTS)}")
    return part
