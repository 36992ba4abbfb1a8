"""Laws of collecting, with a policy and verifiers that are plain functions: no device, no worker processes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest

from jaxgrpo.mesh import make_mesh, rows_sharding
from jaxgrpo.problems import Problem, Weighted
from jaxgrpo.rewards.pool import Missing
from jaxgrpo.rollout import Group, Judge, Sampler, Wanted, collect, completion_key, make_batch, most_informative, summarise
from jaxgrpo.types import Rollout

WIDTH, NEW = 3, 4
WANTED = Wanted(groups=3, group_size=4, temperature=1.0, rule="band", low=0.2, high=0.8, most=12, launch=2)


def make_group(name: str, solved: Sequence[float], rewards: Sequence[float] = (), language: str = "en", **values) -> Group:
    """A judged group with the verdicts `solved` and completions of 1, 2, ... tokens."""
    correct = np.array(solved, float)
    size = len(correct)
    chosen = np.zeros((size, WIDTH + NEW), bool)
    for row in range(size):
        chosen[row, WIDTH : WIDTH + 1 + row % NEW] = True
    verdicts = {"accuracy": correct} | {name: np.array(column, float) for name, column in values.items()}
    return Group(
        problem=Problem(name, f"prompt {name}", "1", language),
        texts=[f"{name} {row}" for row in range(size)],
        tokens=np.arange(1, size * (WIDTH + NEW) + 1, dtype=np.int32).reshape(size, -1),
        attention_mask=chosen | (np.arange(WIDTH + NEW) < WIDTH),
        completion_mask=chosen,
        logprobs=np.where(chosen, -1.0, 0.0).astype(np.float32),
        finished=np.arange(size) % NEW != NEW - 1,
        values=verdicts,
        rewards=np.array(rewards if len(rewards) else correct, float),
        solved=int((correct == 1).sum()),
        judged=int((~np.isnan(correct)).sum()),
    )


@dataclass
class World:
    """Asks problems p0, p1, ..., samples and judges them: `script` says of each how many of its 4 completions are right.

    shaped: what a reward has besides the verdict, times the completion's place in its group.
    """

    script: Sequence[int]
    shaped: float = 0.0
    asked: list[str] = field(default_factory=list)
    launches: list[int] = field(default_factory=list)

    def ask(self, count: int) -> list[Problem]:
        names = [f"p{place}" for place in range(len(self.asked), len(self.asked) + count)]
        self.asked += names
        return [Problem(name, name, "1") for name in names]

    def __call__(self, params, problems, group_size, temperature, step, purpose) -> list[Group]:
        assert (params, group_size, temperature, step, purpose) == ("params", 4, 1.0, 7, "training")
        self.launches.append(len(problems))
        return [make_group(problem.id, [math.nan] * group_size) for problem in problems]

    def judge(self, groups: Sequence[Group]) -> None:
        for group in reversed(groups):  # the last one's verdicts come first
            right = self.script[int(group.problem.id[1:])]
            verdicts = [1.0] * right + [0.0] * (4 - right)
            judged = make_group(
                group.problem.id, verdicts, [verdict + self.shaped * row for row, verdict in enumerate(verdicts)]
            )
            vars(group).update(vars(judged))

    def collect(self, **changes):
        return collect(self, self.judge, "params", self.ask, replace(WANTED, **changes), 7)


def names(groups: Sequence[Group]) -> list[str]:
    return [group.problem.id for group in groups]


def test_the_batch_is_filled_in_the_order_of_asking():
    world = World(script=[2, 0, 4, 1, 3, 2, 2, 2])
    groups, metrics, asked = world.collect()
    assert names(groups) == ["p0", "p3", "p4"]
    assert names(asked) == world.asked == ["p0", "p1", "p2", "p3", "p4", "p5"]
    assert metrics["filter/asked"] == 6
    assert metrics["filter/kept"] == 4 / 6
    assert metrics["filter/surplus"] == 1  # p5 passed too
    assert metrics["filter/too_hard"] == metrics["filter/too_easy"] == 1 / 6
    assert metrics["filter/fallback"] == 0
    assert metrics["filter/groups"] == 3


@pytest.mark.parametrize("launch", [1, 2, 3, 5, 12])
def test_what_is_kept_does_not_depend_on_the_size_of_a_launch(launch):
    groups, metrics, _ = World(script=[0, 2, 4, 4, 1, 0, 3, 2, 2, 2, 2, 2]).collect(launch=launch)
    assert names(groups) == ["p1", "p4", "p6"]
    assert metrics["filter/groups"] == 3


def test_the_refill_is_bounded():
    world = World(script=[0] * 5)
    groups, metrics, asked = world.collect(most=5)
    assert groups == []
    assert len(asked) == 5
    assert world.launches == [2, 2, 1]
    assert metrics["filter/kept"] == metrics["filter/groups"] == 0
    assert metrics["filter/too_hard"] == 1


def test_at_the_bound_the_most_informative_of_the_others_fill_the_batch():
    """Outside a band of exactly 1/2: 1 and 3 of 4 have a variance; 0 and 4 have none, unless something else was rewarded."""
    script = [0, 1, 4, 2, 3, 0]
    groups, metrics, _ = World(script).collect(low=0.5, high=0.5, most=6)
    assert names(groups) == ["p3", "p1", "p4"]
    assert metrics["filter/kept"] == 1 / 6
    assert metrics["filter/fallback"] == 2
    groups, metrics, _ = World(script).collect(groups=6, low=0.5, high=0.5, most=6)
    assert names(groups) == ["p3", "p1", "p4"]
    assert metrics["filter/groups"] == 3
    groups, _, _ = World(script, shaped=0.01).collect(groups=6, low=0.5, high=0.5, most=6)
    assert names(groups)[:3] == ["p3", "p4", "p1"]  # of equal verdicts, the greater variance of the reward
    assert set(names(groups)) == {f"p{place}" for place in range(6)}


def test_equal_rewards_are_never_informative():
    """Eight times 0.1 may have a mean that is not 0.1, and sums of the same parts may differ in their last bit."""
    same = make_group("same", [0] * 8, [0.1] * 8)
    rounded = make_group("rounded", [0] * 8, [0.1 + 0.2, 0.3] * 4)
    absent = make_group("absent", [math.nan] * 8)
    one = make_group("one", [0, *[math.nan] * 7], [1.0, *[math.nan] * 7])
    different = make_group("different", [0] * 8, [0.1] * 7 + [0.2])
    assert names(most_informative([same, rounded, absent, one, different], 5)) == ["different"]
    assert most_informative([different], 0) == most_informative([different], -1) == []


def test_the_filter_sees_the_verdict_and_not_the_shaped_reward():
    plain, shaped = World([2, 0, 4, 1, 3, 2]), World([2, 0, 4, 1, 3, 2], shaped=-0.7)
    assert names(plain.collect()[0]) == names(shaped.collect()[0]) == ["p0", "p3", "p4"]


def test_dapo_and_off():
    script = [0, 1, 4, 3, 0, 2]
    assert names(World(script).collect(rule="dapo", low=0.5, high=0.5)[0]) == ["p1", "p3", "p5"]
    groups, metrics, _ = World(script).collect(rule="off", most=3)
    assert names(groups) == ["p0", "p1", "p2"]
    assert metrics["filter/kept"] == 1


def judge(solved_by: str = "accuracy", **weights: float) -> tuple[Judge, list[Group]]:
    """A judge whose pool knows the verdicts beforehand, and two groups for it."""
    verdicts = {
        "a": [
            {"accuracy": 1.0, "format": 0.5},
            {"accuracy": 0.0, "format": Missing("timeout")},
            {"accuracy": 0.999, "format": 1.0},
        ],
        "b": [
            {"accuracy": Missing("crash"), "format": 1.0},
            {"accuracy": 1.0, "format": 0.0},
            {"accuracy": 0.0, "format": 0.0},
        ],
    }
    pool = SimpleNamespace(submit=lambda problem, texts: problem.id, result=verdicts.__getitem__)
    rewards = {name: Weighted(len, weight) for name, weight in weights.items()}
    judge = object.__new__(Judge)  # its fields want a true pool
    for name, value in {"pool": pool, "rewards": rewards, "solved_by": solved_by}.items():
        object.__setattr__(judge, name, value)
    return judge, [make_group("a", [0] * 3), make_group("b", [0] * 3)]


def test_rewards_are_weighted_sums_and_pass_rates_are_not():
    judging, (a, b) = judge(accuracy=2.0, format=0.1)
    judging([a, b])
    np.testing.assert_allclose(a.rewards, [2.05, math.nan, 2.098])
    np.testing.assert_allclose(b.rewards, [math.nan, 2.0, 0.0])
    assert (a.solved, a.judged) == (1, 3)  # 0.999 is not solved
    assert (b.solved, b.judged) == (1, 2)  # the missing verdict is neither right nor wrong
    assert (a.missing, b.missing) == (["timeout"], ["crash"])


def test_a_missing_verdict_of_no_weight_costs_no_reward():
    judging, (a, b) = judge(accuracy=1.0, format=0.0)
    judging([a, b])
    np.testing.assert_allclose(a.rewards, [1.0, 0.0, 0.999])
    means = summarise([a, b])
    assert means["verdict/missing"] == 2 / 12
    assert means["verdict/missing/timeout"] == means["verdict/missing/crash"] == 1


def test_solved_by_another_reward():
    judging, (a, b) = judge(solved_by="format", accuracy=1.0, format=0.0)
    judging([a, b])
    assert [(group.solved, group.judged) for group in (a, b)] == [(1, 2), (1, 3)]


def test_missing_rewards_train_nothing_and_an_underfull_batch_is_padded():
    groups = [make_group("a", [1, 0, 1, 0], [1.0, math.nan, 0.5, 0.0]), make_group("b", [1, 0, 0, 0])]
    batch = make_batch(groups, count=3)
    assert {array.shape[0] for array in batch} == {12}
    assert [array.dtype for array in batch] == [np.int32, np.int32, bool, np.float32, np.float32]
    np.testing.assert_array_equal(batch.completion_mask.sum(axis=1), [1, 0, 3, 4, 1, 2, 3, 4, 0, 0, 0, 0])
    np.testing.assert_array_equal(batch.rewards, [1, math.nan, 0.5, 0, *groups[1].rewards, *[math.nan] * 4])
    np.testing.assert_array_equal(batch.tokens[:8], np.concatenate([group.tokens for group in groups]))
    np.testing.assert_array_equal(batch.segments[:4], groups[0].attention_mask)
    assert not batch.segments[8:].any()
    full = make_batch(groups, count=2)
    assert full.tokens.shape == (8, WIDTH + NEW)


def test_truncated_completions_train_nothing_where_they_are_masked():
    group = make_group("a", [1, 0, 1, 0])
    group.finished = np.array([True, False, True, False])
    assert make_batch([group], 1).completion_mask.any(axis=1).all()
    masked = make_batch([group], 1, mask_truncated=True)
    np.testing.assert_array_equal(masked.completion_mask.any(axis=1), group.finished)
    np.testing.assert_array_equal(masked.rewards, group.rewards)  # the others are still compared with them


def test_means_leave_out_what_is_missing_and_tell_languages_apart():
    ratio = {"language/target_word_ratio": [1.0, math.nan, 0.5]}
    groups = [
        make_group("a", [1, math.nan, 0], [1.0, math.nan, 0.2], "en", **ratio),
        make_group("b", [0, 0, 0], [0.0, 0.0, 0.0], "ko", **{"language/target_word_ratio": [0.0] * 3}, format=[1, 0, 0.5]),
        make_group("c", [math.nan] * 3, language="uk", **{"language/target_word_ratio": [math.nan] * 3}),
    ]
    means = summarise(groups)
    assert means["reward/mean"] == pytest.approx(1.2 / 5)
    assert means["reward/accuracy"] == 0.25  # a mean over problems: 1/2 and 0
    assert (means["accuracy/en"], means["accuracy/ko"]) == (0.5, 0.0)
    assert math.isnan(means["accuracy/uk"])
    assert means["language/target_word_ratio"] == pytest.approx(1.5 / 5)
    assert means["language/en/target_word_ratio"] == 0.75
    assert means["language/ko/target_word_ratio"] == 0.0
    assert math.isnan(means["language/uk/target_word_ratio"])
    assert means["reward/format"] == 0.5
    assert means["completion/tokens"] == 2
    assert means["verdict/missing"] == 0


def test_a_completions_key_is_a_function_of_its_arguments():
    arguments = {"seed": 0, "step": 1, "purpose": "training", "problem": "p/1", "sample": 0}
    others = {"seed": 1, "step": 2, "purpose": "evaluation", "problem": "p/2", "sample": 1}
    key = completion_key(**arguments)
    assert key.dtype == np.uint32
    assert key.shape == (2,)
    np.testing.assert_array_equal(key, completion_key(**arguments))
    keys = [key] + [completion_key(**{**arguments, name: other}) for name, other in others.items()]
    keys.append(completion_key(0, 1, "training", "p/11", 0))
    keys.append(completion_key(0, 1, "training", "p", 110))
    assert len({tuple(key) for key in keys}) == len(keys)


class Tokens:
    """A tokenizer: a prompt "3" is the ids 1 2 3, a text its ids in words."""

    pad = 0

    def prompt(self, prompt: str, system: str) -> list[int]:
        return list(range(1, int(prompt) + 1)) + [9] * len(system)

    def decode(self, ids) -> str:
        return " ".join(str(int(i)) for i in ids)


@pytest.fixture
def sampler():
    """A sampler over a program that chooses each key's first number, once for every token of the prompt."""
    calls = []

    def sample(params, prompts, temperature):
        calls.append(prompts)
        places, group_size, _ = prompts.keys.shape
        chosen = np.zeros((places * group_size, WIDTH + NEW), bool)
        lengths = np.repeat(np.asarray(prompts.attention_mask).sum(axis=1), group_size)
        chosen[:, WIDTH:] = np.arange(NEW) < lengths[:, None]
        first = np.asarray(prompts.keys)[..., 0].reshape(-1, 1) % 1000
        tokens = np.where(chosen, first, 0).astype(np.int32)
        return Rollout(tokens, chosen, chosen, np.zeros(chosen.shape, np.float32), np.ones(len(chosen), bool))

    made = object.__new__(Sampler)
    steps = SimpleNamespace(sample=sample, rows=rows_sharding(make_mesh()))
    fields = {"steps": steps, "tokenizer": Tokens(), "prompt_width": WIDTH, "rows": 7, "seed": 5, "system": ""}
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made, calls


def test_a_launch_has_a_fixed_shape_and_gives_each_problem_its_texts(sampler):
    sampler, calls = sampler
    problems = [Problem("x", "1", "1"), Problem("y", "3", "1")]
    groups = sampler({}, problems, 2, 1.0, 4, "training")
    assert names(groups) == ["x", "y"]
    assert [prompts.tokens.shape for prompts in calls] == [(3, WIDTH)]  # 7 rows have places for 3 groups of 2; 1 is filler
    np.testing.assert_array_equal(calls[0].attention_mask, [[0, 0, 1], [1, 1, 1], [0, 0, 0]])
    for group in groups:
        for row in range(2):
            number = completion_key(5, 4, "training", group.problem.id, row)[0] % 1000
            assert group.texts[row] == " ".join([str(number)] * int(group.problem.prompt))
    alone = sampler({}, problems[1:], 2, 1.0, 4, "training")
    assert alone[0].texts == groups[1].texts  # whatever its place in the launch
    with pytest.raises(ValueError, match="4 problems, but a launch has places for 3"):
        sampler({}, problems * 2, 2, 1.0, 4, "training")
