"""Tests of rewards made of rewards: their values, and how they reach the workers."""

import math
from dataclasses import dataclass

import hostile_rewards
import pytest

from jaxgrpo.config import overrides
from jaxgrpo.errors import UserError
from jaxgrpo.problems import Completion, Problem, Reward, Weighted, batched
from jaxgrpo.rewards.gate import Gate
from jaxgrpo.rewards.languages.consistency import Threshold, target_word_ratio
from jaxgrpo.rewards.length import Cosine
from jaxgrpo.rewards.maths.verifier import Accuracy, accuracy
from jaxgrpo.rewards.workers.pool import Missing, Pool, reward_name
from jaxgrpo.rewards.workers.worker import find_reward

PROBLEM = Problem("1", "question", "42", language="ko")


def first_number(problem, text):
    return float(text.partition(" ")[0])


def second_number(problem, text):
    return float(text.partition(" ")[2])


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, -3.0])
@pytest.mark.parametrize("won", [0.0, 0.999, 1.0, 2.0, -1.0])
def test_a_reward_counts_where_the_other_is_won(value, won):
    gate = Gate(first_number, when=second_number)
    assert gate(PROBLEM, f"{value} {won}") == (value if won == 1.0 else 0.0)


def test_language_only_of_right_answers_and_answers_only_in_the_language():
    korean = "답은 사과 다섯 개입니다"
    english = "the answer is five apples"
    accuracy_in_language = Gate(accuracy, when=Threshold())
    language_of_right = Gate(target_word_ratio, when=accuracy)
    for text, language in ((korean, 1.0), (english, 0.0)):
        for number, right in ((42, 1.0), (41, 0.0)):
            completion = f"<think>{text}</think> \\boxed{{{number}}}"
            assert accuracy_in_language(PROBLEM, completion) == language * right
            assert language_of_right(PROBLEM, completion) == language * right


def test_what_is_missing_inside_is_missing_outside_by_its_reason():
    gates = {
        "reward": Gate(hostile_rewards.raise_error, hostile_rewards.is_answer),
        "when": Gate(hostile_rewards.half, hostile_rewards.raise_error),
        "nan": Gate(hostile_rewards.half, hostile_rewards.not_a_number),
        "none": Gate(hostile_rewards.half, hostile_rewards.nothing),
        "stuck": Gate(hostile_rewards.half, hostile_rewards.sleep_forever),
        "infinity": Gate(hostile_rewards.infinity, hostile_rewards.is_answer),
        "good": Gate(hostile_rewards.half, hostile_rewards.is_answer),
    }
    with Pool(
        {name: Weighted(gate) for name, gate in gates.items()}, 1, deadline=1.0
    ) as pool:
        won, not_won = pool.result(pool.submit(PROBLEM, ["42", "41"]))
    missing = {
        "when": "ZeroDivisionError",
        "nan": "ValueError",
        "none": "TypeError",
        "stuck": "timeout",
    }
    always = {name: Missing(reason) for name, reason in missing.items()}
    assert won == always | {
        "reward": Missing("ZeroDivisionError"),
        "infinity": Missing("not finite"),
        "good": 0.5,
    }
    assert not_won == always | {"reward": 0.0, "infinity": 0.0, "good": 0.0}


def test_a_reward_of_rewards_travels_with_their_settings():
    inner = Cosine(Accuracy(("boxed", "number"), 0.01), max_tokens=100)
    reward = Gate(inner, when=Gate(accuracy, Threshold(at_least=0.5)))
    assert find_reward(reward_name(reward)) == reward
    with Pool({"gate": Weighted(reward)}, 1, deadline=30.0) as pool:
        text = "답은 사과 다섯 개입니다 \\boxed{42}"
        assert pool.result(
            pool.submit(PROBLEM, [Completion(text, 0), "so \\boxed{42}"])
        ) == [
            {"gate": 2.0},
            {"gate": 0.0},
        ]


@dataclass(frozen=True)
class Best:
    """A reward with several rewards for a setting."""

    rewards: tuple[Reward, ...]
    scale: float = 1.0
    words: tuple[tuple[str, ...], ...] = (("a",), ("b", "c"))

    def __call__(self, problem, text):
        return self.scale * max(reward(problem, text) for reward in self.rewards)


def test_settings_may_be_tuples_of_rewards():
    reward = Best((hostile_rewards.half, hostile_rewards.is_answer), scale=2.0)
    assert find_reward(reward_name(reward)) == reward
    with Pool({"best": Weighted(reward)}, 1, deadline=10.0) as pool:
        assert pool.result(pool.submit(PROBLEM, ["41", "42"])) == [
            {"best": 1.0},
            {"best": 2.0},
        ]


@dataclass(frozen=True)
class WithSetting:
    """A reward with a setting that may be anything."""

    setting: object = math.pi

    def __call__(self, problem, text):
        return 1.0


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (Gate(lambda problem, text: 1.0, accuracy), "lambda"),
        (WithSetting(lambda problem, text: 1.0), "lambda"),
        (WithSetting({1, 2}), r"a reward's setting is \{1, 2\}"),
        (WithSetting([1, 2]), "finds another object"),
    ],
)
def test_what_cannot_travel_is_refused_in_one_line(reward, message):
    with pytest.raises(UserError, match=message) as error:
        reward_name(reward)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "named", ['"no_such_module:reward"', '"hostile_rewards:not_callable"', "3"]
)
def test_a_setting_that_names_no_reward_is_refused(named):
    settings = f'{{"reward": {{"reward": {named}}}, "when": {{"reward": "hostile_rewards:half"}}}}'
    with pytest.raises(UserError, match="cannot be made from its settings"):
        find_reward(f"jaxgrpo.rewards.gate:Gate{settings}")


@batched
def all_at_once(problem, completions):
    return [1.0] * len(completions)


@pytest.mark.parametrize(
    "make_gate",
    [lambda: Gate(all_at_once, accuracy), lambda: Gate(accuracy, all_at_once)],
)
def test_a_batched_reward_inside_a_gate_is_refused(make_gate):
    with pytest.raises(UserError, match="not a batched one"):
        make_gate()


def test_settings_inside_are_settings_of_the_command_line():
    tree = {"language": Weighted(Gate(target_word_ratio, Accuracy()), 0.3)}
    changed = overrides.override(
        tree, ["--config.language.function.when.tolerance=0.5"]
    )
    assert changed["language"].function == Gate(
        target_word_ratio, Accuracy(tolerance=0.5)
    )
    described = overrides.describe(changed)["language"]["function"]
    assert described["class"] == "jaxgrpo.rewards.gate:Gate"
    assert (
        described["reward"] == "jaxgrpo.rewards.languages.consistency:target_word_ratio"
    )
    assert described["when"]["tolerance"] == 0.5
