"""Checks problems, completions and weighted rewards."""

import copy
import json
import math
import pickle

import pytest

from jaxgrpo.errors import UserError
from jaxgrpo.problems import Completion, Driven, Problem, Scheduled
from jaxgrpo.text.language_codes import LANGUAGE_CODES, language_code

LANGUAGES = {
    "en": "en EN en-US en_US.UTF-8 eng English ENGLISH",
    "pt": "pt-BR pt_PT por Português portugues",
    "zh": "zh-CN zh_Hans zh-Hant-TW cmn yue zho chi Chinese 中文 中文（繁體）",  # noqa: RUF001
    "no": "no nb nb-NO nob Norwegian Bokmål",
    "nn": "nn nno Nynorsk",
    "id": "in id Indonesian",
    "he": "iw heb",
    "yi": "ji",
    "ar": "arb_Arab ar-EG العربية",
    "ko": "kor 한국어",
    "hi": "हिन्दी हिंदी",
    "fr": "fr-CA fr-FR",
    "sr": "sr sr-Cyrl-RS",
    "ckb": "ckb Sorani",
}
NAMES = {
    "zh": [
        "Chinese (Simplified)",
        "Simplified Chinese",
        "Mandarin Chinese",
        " Chinese ",
    ],
    "pt": ["Portuguese (Brazil)", "Portuguese, Brazilian", "Brazilian Portuguese"],
    "en": ["English (US)", "English language", "English-US"],
    "es": ["Spanish; Castilian", "Spanish (Latin America)"],
    "el": ["Greek, Modern (1453-)"],
    "nn": ["Norwegian (Nynorsk)"],
    "uk": ["українська мова"],
}
NONE = ["", " ", "xx", "Klingon", "tlh", "und", "-", "12", "e\ud83d"]
SEVERAL = ["en, fr", "English, French", "English and French"]
IN_ANOTHER_SCRIPT = ["sr-Latn", "sr_RS@latin", "Serbian (Latin)", "hi-Latn", "uz-Cyrl"]


def named(languages):
    """Returns pairs of a text and the code it stands for."""
    pairs = []
    for code, texts in languages.items():
        if isinstance(texts, str):
            texts = texts.split()
        pairs += [(text, code) for text in texts]
    return pairs


@pytest.mark.parametrize(("text", "code"), named(LANGUAGES) + named(NAMES))
def test_a_language_goes_by_one_code_however_it_is_called(text, code):
    assert Problem("1", "question", "42", text).language == code


def test_codes_stay_as_they_are():
    assert all(language_code(code) == code for code in LANGUAGE_CODES)


@pytest.mark.parametrize("text", [*NONE, *SEVERAL, *IN_ANOTHER_SCRIPT])
def test_what_names_no_language_that_can_be_told_is_left_for_the_run_to_refuse(text):
    assert language_code(text) is language_code(None) is None
    assert Problem("1", "question", "42", text).language == text


def test_half_a_surrogate_pair_becomes_a_character():
    problem = Problem("\ud83d1", "a \udc00 b", "7\ud83d", meta={"n": 1})
    assert problem == Problem("\ufffd1", "a \ufffd b", "7\ufffd", meta={"n": 1})
    assert Problem("1", "\U0001f600", "42").prompt == "\U0001f600"


def test_a_completion_is_its_text_for_whoever_asks_no_more():
    completion = Completion("42", tokens=3, finished=False)
    assert completion == "42"
    assert {completion: 1}["42"] == 1
    assert json.dumps([completion]) == '["42"]'
    assert (completion.tokens, completion.finished) == (3, False)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda text: pickle.loads(pickle.dumps(text))]
)
def test_a_copy_of_a_completion_knows_as_much(copied):
    copied = copied(Completion("\ud800 é", tokens=3, finished=False))
    assert (copied, copied.tokens, copied.finished) == ("\ud800 é", 3, False)


def test_a_scheduled_weight_goes_evenly_to_its_end_and_stays():
    reward = Scheduled(len, 1.0, end=0.2, steps=5)
    weights = [
        reward.next_weight(step, math.nan, math.nan) for step in (1, 2, 3, 4, 5, 6, 99)
    ]
    assert weights == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2])


def test_a_driven_weight_grows_below_its_target_and_falls_above_it():
    reward = Driven(len, 0.5, target=0.9, rate=2.0, max_weight=1.0)
    assert reward.next_weight(2, 0.5, 0.8) == pytest.approx(0.7)
    assert reward.next_weight(2, 0.5, 0.95) == pytest.approx(0.4)
    assert reward.next_weight(2, 0.5, 0.9) == 0.5
    assert reward.next_weight(2, 0.9, 0.1) == 1.0
    assert reward.next_weight(2, 0.1, 1.0) == 0.0
    assert reward.next_weight(2, 0.3, math.nan) == 0.3  # no verdict says nothing


def test_a_driven_weight_settles_where_the_target_is_met():
    """A policy whose mean reward is 1 - exp(-weight) answers to the weight."""
    reward = Driven(len, 0.0, target=0.9, rate=1.0)
    weight = 0.0
    for step in range(2, 200):
        weight = reward.next_weight(step, weight, 1 - math.exp(-weight))
    assert 1 - math.exp(-weight) == pytest.approx(0.9, abs=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Scheduled(len, steps=1),
        lambda: Driven(len, -0.1),
        lambda: Driven(len, 2.0, max_weight=1.0),
        lambda: Driven(len, rate=0.0),
    ],
    ids=["steps", "weight", "most", "rate"],
)
def test_impossible_weights_are_refused(make):
    with pytest.raises(UserError, match="weight"):
        make()
