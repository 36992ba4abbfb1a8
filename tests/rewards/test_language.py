# ruff: noqa: RUF001  (letters of other scripts that look like Latin ones are what is tested)
"""The laws of the language rewards in sixteen languages, and that no text breaks or stalls them."""

import itertools
import pickle
import time
import unicodedata
from collections import Counter

import hypothesis
import pytest
from hypothesis import strategies as st
from language_texts import TEXTS

from jaxgrpo.config import overrides
from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problem, Weighted
from jaxgrpo.rewards.languages.consistency import (
    LANGUAGES,
    MAX_LENGTH,
    PARTS,
    Match,
    Ratio,
    Threshold,
    count_words,
    english_word_ratio,
    locate_words,
    strip_formulas,
    target_word_ratio,
    word_ratios,
)
from jaxgrpo.rewards.prose import part
from jaxgrpo.text.language_codes import LANGUAGE_CODES
from tools.check_language import NOISES

WHOLE = {language: "\n".join(sentences) for language, sentences in TEXTS.items()}
SAME_SCRIPT = [
    ("uk", "ru"),
    ("zh", "ja"),
    *itertools.combinations(["en", "de", "fr", "es", "sw", "vi"], 2),
]


PIECES = (
    *itertools.chain(*TEXTS.values()),
    r"$x = \text{cm}$",
    r"\boxed{the same number of apples}",
    "so.Then",
    "`code` ",
    "e\u0301te\u0301",
    "\ud800",
    "\n",
)
"""What texts are made of that hold several languages, formulas and code."""


def problem(language):
    return Problem("1", "question", "42", language)


@pytest.mark.parametrize("language", TEXTS)
def test_a_text_is_in_its_own_language_and_in_no_other(language):
    for target in TEXTS:
        ratio = target_word_ratio(problem(target), WHOLE[language])
        assert ratio >= 0.97 if target == language else ratio <= 0.03, (target, ratio)
        english = english_word_ratio(problem(target), WHOLE[language])
        assert english >= 0.97 if language == "en" else english <= 0.03, (
            target,
            english,
        )


@pytest.mark.parametrize(
    ("first", "second"), SAME_SCRIPT + [(b, a) for a, b in SAME_SCRIPT]
)
def test_a_sentence_is_enough_to_tell_languages_of_one_script_apart(first, second):
    right = [word_ratios(sentence, first).target > 0.5 for sentence in TEXTS[first]]
    wrong = [word_ratios(sentence, second).target > 0.5 for sentence in TEXTS[first]]
    assert (all(right), any(wrong)) == (True, False)


@pytest.mark.parametrize("first", TEXTS)
def test_a_mix_scores_the_share_of_its_words(first):
    for second in TEXTS:
        if second != first:
            words = word_ratios(WHOLE[first], first).words
            others = word_ratios(WHOLE[second], second).words
            share = words / (words + others)
            for text in (
                f"{WHOLE[first]}\n{WHOLE[second]}",
                f"{WHOLE[second]} {WHOLE[first]}",
            ):
                assert word_ratios(text, first).target == pytest.approx(
                    share, abs=0.05
                ), second


@pytest.mark.parametrize("language", TEXTS)
def test_formulas_digits_and_code_change_nothing(language):
    sentences = TEXTS[language]
    before = word_ratios(WHOLE[language], language)
    for noise in NOISES:
        text = "\n".join(f"{noise} {sentence} {noise}" for sentence in sentences)
        after = word_ratios(text, language)
        assert after.target == pytest.approx(before.target, abs=0.01), noise
        assert after.english == pytest.approx(before.english, abs=0.01), noise


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("我们用 average speed 计算", {"zh": 3, "en": 2}),
        ("ตลาดเกษตรกร market", {"th": 2, "en": 1}),
        ("彼女は毎日市場で働きます", {"ja": 7}),
        ("사과는 API를", {"ko": 2, "en": 1}),
        ("so don't give apples", {"en": 4}),
        ("п'ять яблук", {"uk": 2}),
        ("x y2 12 3.5 5kg 10 km π α we_go ১২ ๑๒ १२", {}),
        ("", {}),
    ],
)
def test_what_a_word_is(text, words):
    assert count_words(text, "uk") == Counter(words)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        (
            "Der Zug nach Birmingham fährt 240 km. "
            "Michael Johnson und Jennifer Williams kaufen je 5 kg Äpfel.",
            "de",
        ),
        (
            "Jennifer Williams ana kilo 5 za machungwa. "
            "Je, Michael Johnson ana machungwa mangapi zaidi ya Jennifer?",
            "sw",
        ),
        ("合計金額\nりんごの値段は、一個あたり百円なので、", "ja"),
        ("合計金額は円である\n合計", "ja"),
        ("アキコ和小明一起们去了商店", "zh"),
        ("У Києві живе п'ять моїх друзів.", "uk"),
        ("В городе Київ живут мои друзья, и они любят яблоки.", "ru"),
        ("这是我们的钱", "zh"),
        ("Отже", "uk"),
        ("Итак", "ru"),
    ],
)
def test_names_units_and_headings_do_not_turn_a_text(text, target):
    assert word_ratios(text, target).target > 0.8


def test_the_part_that_is_asked_for():
    text = f"{TEXTS['en'][0]}<think>{TEXTS['ko'][0]}</think>{TEXTS['th'][0]}"
    assert [word_ratios(text, "ko", name).target for name in PARTS[:2]] == [1.0, 0.0]
    assert word_ratios(text, "th", "answer").target == 1.0
    words = [word_ratios(text, "ko", name).words for name in ("all", "think", "answer")]
    assert words[0] > words[1] + words[2]
    with pytest.raises(UserError, match="'thought'"):
        word_ratios(text, "ko", "thought")


@pytest.mark.parametrize(
    ("text", "think", "answer"),
    [
        ("a", "a", "a"),
        ("a<think>b</think>c", "b", "c"),
        ("b</think>c", "b", "c"),
        ("a<think>b", "b", "a"),
        ("<think>b</think>c</think>d", "b</think>c", "d"),
        ("<think>b</think>c<think>d", "b", "c"),
        ("<think></think>c", "", "c"),
        ("<think></think>", "", ""),
        ("", "", ""),
    ],
)
def test_parts(text, think, answer):
    assert [part(text, name) for name in PARTS] == [think, answer, text]


MIXED = f"<think>{TEXTS['ko'][0]} {TEXTS['en'][1]}</think> {TEXTS['ko'][3]}"


def test_the_three_rewards():
    ratio = Ratio()(problem("ko"), MIXED)
    assert ratio == target_word_ratio(problem("ko"), MIXED)
    assert 0.3 < ratio < 0.7
    assert Ratio(language="en")(problem("ko"), MIXED) == pytest.approx(1 - ratio)
    assert english_word_ratio(problem("ko"), MIXED) == pytest.approx(1 - ratio)
    assert Threshold(at_least=ratio)(problem("ko"), MIXED) == 1.0
    assert Threshold(at_least=ratio + 1e-6)(problem("ko"), MIXED) == 0.0
    assert Threshold("answer", 1.0)(problem("ko"), MIXED) == 1.0
    assert Match()(problem("ko"), MIXED) == float(ratio > 0.5)
    assert Match()(problem("ko"), MIXED) + Match()(problem("en"), MIXED) == 1.0
    assert (
        Match("all")(problem("ko"), MIXED)
        == Match("answer")(problem("ko"), MIXED)
        == 1.0
    )


@pytest.mark.parametrize(
    "reward",
    [
        Ratio(),
        Threshold(),
        Match(),
        Ratio("answer"),
        Threshold("all", 1e-9),
        Match("all"),
    ],
)
def test_no_words_earn_nothing(reward):
    for text in ("", "12 + 7", r"$\text{sum}$", "<think></think>"):
        assert reward(problem("en"), text) == 0.0


def test_settings_that_cannot_be_are_refused():
    for make in (Ratio, Threshold, Match):
        with pytest.raises(UserError, match="part is 'thoughts'"):
            make(part="thoughts")
    for share in (0.0, 1.1, float("nan")):
        with pytest.raises(UserError, match="at_least"):
            Threshold(at_least=share)
    for reward in (Ratio(), Threshold(), Match()):
        with pytest.raises(UserError, match="'xx'"):
            reward(problem("xx"), "text")
    with pytest.raises(UserError, match="'xx'"):
        Ratio(language="xx")


def test_a_language_goes_by_any_of_its_codes_and_names():
    assert Ratio(language="English") == Ratio(language="en-US") == Ratio(language="en")
    assert word_ratios(WHOLE["zh"], "cmn") == word_ratios(WHOLE["zh"], "zh")
    for reward in (target_word_ratio, Ratio(), Threshold(), Match()):
        assert (
            reward(problem("zh_Hans"), WHOLE["zh"])
            == reward(problem("zh"), WHOLE["zh"])
            > 0
        )


def test_the_languages_with_names_are_those_told_apart():
    assert {code for codes in LANGUAGES.values() for code in codes} == LANGUAGE_CODES


def test_a_reward_is_a_value_with_settings():
    for reward in (Ratio("answer"), Threshold(at_least=0.5), Match("all")):
        assert pickle.loads(pickle.dumps(reward)) == reward
    tree = {"language": Weighted(Threshold(), 0.3)}
    changed = overrides.override(
        tree,
        [
            "--config.language.function.at_least=0.5",
            "--config.language.function.part=all",
        ],
    )
    assert changed["language"].function == Threshold("all", 0.5)
    described = overrides.describe(changed)["language"]["function"]
    assert described == {
        "class": "jaxgrpo.rewards.languages.consistency:Threshold",
        "part": "all",
        "at_least": 0.5,
    }
    assert all(
        field.doc for field in overrides.fields(tree["language"].function).values()
    )


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (r"a $\frac{1}{2}$ b", "a b"),
        (r"a $$\begin{array}{c} x \\ y \end{array}$$ b", "a b"),
        (r"a \boxed{\frac{1}{2}} b", "a b"),
        (r"a \boxed{ b", "a b"),
        ("a $ b", "a b"),
        ("a $x\n$ b", "a x b"),
        ("pays $5 for lunch and $6 for dinner", "pays 5 for lunch and 6 for dinner"),
        (r"pays \$5 and \$6", "pays 5 and 6"),
        (r"\textbf{Total:} five", "Total: five"),
        ("a ```x = 1\n``` b `y` c", "a b c"),
        ("a www.site.org/path?q=1，你好", "a ，你好"),
        ("cats.Dogs", "cats. Dogs"),
        (
            r"\text{here are four words} and $\text{here are four words}$",
            "here are four words and here are four words",
        ),
    ],
)
def test_strip_formulas(text, left):
    assert (
        " ".join(strip_formulas(text).replace("{", " ").replace("}", " ").split())
        == left
    )


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(st.lists(st.sampled_from(PIECES), max_size=8).map(" ".join))
def test_words_are_found_where_they_stand(text):
    text = unicodedata.normalize("NFC", text)
    words = locate_words(text, "en")
    counts = count_words(strip_formulas(text), "en")
    assert Counter(word.language for word in words) == counts
    assert all(first.end <= second.start for first, second in itertools.pairwise(words))
    for word in words:
        segment = text[word.start : word.end]
        assert segment.strip() == segment != ""
        assert any(map(str.isalpha, segment))


def test_words_of_another_language_are_told_where_they_stand():
    text = "사과는 $x$ 개. We add the apples together.\n그래서 답은 \\boxed{7} 입니다."
    words = [
        (text[word.start : word.end], word.language)
        for word in locate_words(text, "ko")
    ]
    english = ["We", "add", "the", "apples", "together"]
    korean = ["사과는", "개", "그래서", "답은", "입니다"]
    assert Counter(words) == Counter(
        [(word, "en") for word in english] + [(word, "ko") for word in korean]
    )


LATEX = (
    "$",
    "$$",
    r"\(",
    r"\)",
    r"\[",
    r"\]",
    "{",
    "}",
    r"\boxed{",
    r"\begin{a}",
    r"\end{a}",
    r"\text{",
    "\\",
)
MARKUP = (
    "`",
    "```",
    "<think>",
    "</think>",
    "<a",
    "http://",
    "'",
    " ",
    "\n",
    "\x00",
    "\ud800",
    "\u200d",
    "e\u0301",
    "ー",
    "々",
)
FRAGMENTS = st.sampled_from([*LATEX, *MARKUP, *NOISES, *WHOLE.values()])
TEXT = st.text(st.characters()) | st.lists(
    FRAGMENTS | st.text(st.characters(), max_size=5), max_size=20
).map("".join)


@hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
@hypothesis.given(TEXT, st.sampled_from(list(TEXTS)), st.sampled_from(PARTS))
def test_any_text_has_a_score_between_0_and_1(text, language, name):
    ratios = word_ratios(text, language, name)
    assert 0.0 <= ratios.target <= 1.0
    assert 0.0 <= ratios.english <= 1.0
    assert ratios.words >= 0
    assert language == "en" or ratios.target + ratios.english <= 1.0 + 1e-9
    for reward in (Ratio(name), Threshold(name), Match(name)):
        assert 0.0 <= reward(problem(language), text) <= 1.0


WORDS = (
    "aa.bb:",
    "aa ",
    "aa. ",
    "abcdefghijkl. ",
    "https://x",
    "www.",
    "a'",
    "<a ",
    "ก",
    "漢",
    "あ",
)
HOSTILE = (
    *LATEX,
    *MARKUP,
    *WORDS,
    "$a",
    "$$ a",
    r"\[x",
    r"\boxed{four words are here ",
)


@pytest.mark.parametrize("piece", HOSTILE)
def test_no_text_takes_more_than_linear_time(piece):
    length = 30_000  # quadratic time would be minutes
    before = time.process_time()
    for end in ("", "}" * 10_000):
        word_ratios(piece * (length // len(piece)) + end, "en", "all")
    assert time.process_time() - before < 5


@pytest.mark.parametrize(
    ("piece", "size"), [("{", 10**6), ("$", 10**7), (r"\boxed{", 10**7)]
)
def test_megabytes_take_seconds(piece, size):
    before = time.process_time()
    assert word_ratios(piece * (size // len(piece)), "en") == word_ratios("", "en")
    assert time.process_time() - before < 20


def test_what_is_longer_than_the_bound_is_not_read():
    assert word_ratios("x " * (MAX_LENGTH // 2) + TEXTS["en"][0], "en").words == 0
