"""Laws of reports: means leave out what is missing, and too much that is missing ends a run."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from jaxgrpo.problems import Weighted
from jaxgrpo.rewards.workers.pool import Missing
from jaxgrpo.rollout.judge import Judge
from jaxgrpo.rollout.report import (
    MissingVerdictsError,
    check_missing_verdicts,
    shown_rollouts,
    summarise,
)
from tests.tiny_rollouts import Verdicts, judge_all, make_group, make_sampled_group


def test_means_leave_out_what_is_missing_and_tell_languages_apart():
    def word_ratio(*values):
        return {"language/target_word_ratio": values}

    groups = [
        make_group(
            "a",
            [1, math.nan, 0],
            [1.0, math.nan, 0.2],
            "en",
            **word_ratio(1.0, math.nan, 0.5),
        ),
        make_group(
            "b", [0] * 3, [0.0] * 3, "ko", **word_ratio(0, 0, 0), format=[1, 0, 0.5]
        ),
        make_group("c", [math.nan] * 3, language="uk", **word_ratio(*[math.nan] * 3)),
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


def test_all_completions_of_a_step_are_written_with_what_became_of_them():
    asked = [
        make_group("a", [1, 0], [1.0, 0.25], format=[0.5, math.nan]),
        make_group("b", [0, 0], [0.0, math.nan]),
        make_group("c", [1, 1]),
    ]
    kept = [asked[2], asked[0]]
    advantages = np.array([[0.5, -0.5], [1.0, -1.0]])
    written = list(shown_rollouts(asked, kept, advantages, whole=True))
    assert [
        (line["id"], line["sample"], line["kept"], line["advantage"])
        for line in written
    ] == [
        ("a", 0, True, 1.0),
        ("a", 1, True, -1.0),
        ("b", 0, False, None),
        ("b", 1, False, None),
        ("c", 0, True, 0.5),
        ("c", 1, True, -0.5),
    ]
    assert written[1]["completion"] == "a 1"
    assert written[1]["rewards"] == {"accuracy": 0.0, "format": None}
    assert [line["reward"] for line in written[:4]] == [1.0, 0.25, 0.0, None]
    assert [line["tokens"] for line in written[:2]] == [1, 2]
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    turns = [{"role": "user", "content": "1 + 1?"}]
    asked[1] = replace(asked[1], problem=replace(asked[1].problem, context=turns))
    contexts = [line["context"] for line in shown_rollouts(asked, [])]
    assert contexts == [[], turns, []]


def test_a_few_completions_have_the_form_of_all():
    asked = [make_group(name, [1, 0]) for name in "abcdef"]
    few = list(shown_rollouts(asked, asked, None))
    every = list(shown_rollouts(asked, asked, None, whole=True))
    assert [line["id"] for line in few] == ["a", "b", "c", "d"]
    assert few == [line for line in every if line["sample"] == 0][:4]


@pytest.mark.parametrize("max_share", [0.0, 0.2, 0.3])
def test_more_missing_verdicts_than_are_allowed_stop_the_run_and_leave_their_texts(
    tmp_path, max_share
):
    """Three of twelve: two of one reward for one reason, which come first."""

    def verdicts(problem, texts):
        first = (
            {"accuracy": Missing("crash"), "format": 1.0}
            if problem.id == "b"
            else {"accuracy": 1.0, "format": Missing("timeout")}
        )
        return [first, {"accuracy": 0.0, "format": 0.0}]

    judge = Judge(
        Verdicts(verdicts),
        {"accuracy": Weighted(len), "format": Weighted(len)},
        "accuracy",
    )
    groups = judge_all(judge, [make_sampled_group(name, 2) for name in ("b", "a", "c")])
    path = tmp_path / "out" / "missing.jsonl"
    if max_share > 3 / 12:
        check_missing_verdicts(groups, max_share, path)
        assert not path.exists()
        return
    with pytest.raises(
        MissingVerdictsError,
        match=r"3 of 12 verdicts are missing.*'format' for 'timeout', 2 times: .*jsonl",
    ):
        check_missing_verdicts(groups, max_share, path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [
        (line["reward"], line["missing"], line["id"], line["text"]) for line in lines
    ] == [
        ("format", "timeout", "a", "a 0"),
        ("format", "timeout", "c", "c 0"),
        ("accuracy", "crash", "b", "b 0"),
    ]
