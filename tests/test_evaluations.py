"""Evaluations of several policies and data sets, stopped in the middle, and while training."""

import csv
import dataclasses
import itertools
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest

from jaxgrpo import evaluate, metrics, policies, summary, train
from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.data.arithmetic import Arithmetic
from jaxgrpo.errors import UserError
from jaxgrpo.problems import Completion, Problem, Weighted
from jaxgrpo.rewards import languages
from jaxgrpo.rollout.completions_file import CompletionsFile
from jaxgrpo.rollout.evaluated import Evaluated, row, score
from jaxgrpo.rollout.groups import JudgedTexts
from tests.tiny_devices import output_on_devices
from tests.tiny_rollouts import in_lockstep
from tests.tiny_runs import lines, make_config, model_folder, share_programs

TIMES = (
    "time/",
    "perf/",
    "memory/",
    "rollout/tokens_per_s",
    "rollout/idle",
    "rollout/in_flight",
    "rollout/utilisation",
)
"""Beginnings of the names of metrics that a clock decides: when verdicts come decides how much is
sampled that a step does not need."""


@pytest.fixture(autouse=True)
def _programs(monkeypatch):
    share_programs(monkeypatch)


# --- Scores ---


def make_evaluated(right, ratios, votes=None, language="ko", problem_id="p"):
    right = np.array(right, float)
    texts = [Completion(f"text {i}", 2 + i, i > 0) for i in range(len(right))]
    judged = JudgedTexts(
        problem=Problem(problem_id, "?", "7", language, 2),
        texts=texts,
        values={
            "accuracy": right,
            "language/target_word_ratio": np.array(ratios, float),
            "language/english_word_ratio": 1 - np.array(ratios, float),
        },
        missing={
            (index, "accuracy"): "timeout"
            for index, value in enumerate(right)
            if math.isnan(value)
        },
        rewards=right,
        solved=int(np.nansum(right)),
        judged=int((~np.isnan(right)).sum()),
    )
    answers = ["7" if value == 1 else None for value in right]
    votes = None if votes is None else np.array(votes, float)
    return Evaluated(judged, right, answers, votes)


def test_scores_of_problems():
    nan = math.nan
    found = score(
        [
            make_evaluated([1, 0, 0, 1], [1.0, 0.9, 0.2, 0.2], [0, 1, 1, 0]),
            make_evaluated([0, nan, 0, 0], [nan, 1.0, 0.5, 0.95], [-1, -1, -1, -1]),
        ]
    )
    assert found["problems"] == 2
    assert found["accuracy"] == found["pass_at_1"] == 0.25
    assert found["pass_at_2"] == pytest.approx((1 - 1 / 6) / 2)
    assert found["pass_at_4"] == 1.0  # of the second problem three verdicts are known
    assert found["maj_at_4"] == 0.25
    assert (found["tokens"], found["truncated"]) == (3.5, 0.25)
    assert found["missing"] == 1 / 24
    assert found["in_language"] == pytest.approx(4 / 7)
    assert found["accuracy_in_language"] == pytest.approx(1 / 3)  # 1, 0, unknown, 0
    for name in ("accuracy", "pass_at_2", "maj_at_4"):
        assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"]


def test_a_row_holds_all_completions():
    written = row(make_evaluated([1, math.nan], [1.0, 0.0]))
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    assert (written["language"], written["level"], written["judged"]) == ("ko", 2, 1)
    first, second = written["completions"]
    assert (first["text"], first["tokens"], first["finished"]) == ("text 0", 2, False)
    assert (first["answer"], second["answer"]) == ("7", None)
    assert first["rewards"]["accuracy"] == 1.0
    assert second["rewards"]["accuracy"] is None


def test_a_completion_is_of_its_prompt_and_the_messages_before_it(tmp_path):
    evaluated = make_evaluated([1, 0], [1.0, 1.0])
    written = evaluated.judged
    problem = written.problem
    turns = [{"role": "user", "content": "1 + 1?"}]
    asked = dataclasses.replace(problem, context=turns)
    file = CompletionsFile(tmp_path / "evaluation.jsonl", {"key": "policy"})
    file.append(written)
    assert file.texts([problem], 2) == {"p": written.texts}
    assert file.texts([asked], 2) == {}
    other = dataclasses.replace(written, problem=asked)
    file.append(other)
    assert file.texts([asked], 2) == {"p": written.texts}
    file.replace([row(dataclasses.replace(evaluated, judged=other))])
    assert file.texts([asked], 2) == {"p": written.texts}
    assert lines(tmp_path / "evaluation.jsonl")[0]["context"] == turns


def compare_answers(config, judged):
    with evaluate.answer_comparison(config) as comparison:
        for one in judged:
            comparison.add(one)
        return comparison.results(judged[::-1])[::-1]


def test_answers_that_need_algebra_are_compared_by_workers(tmp_path, monkeypatch):
    judged = []
    for answers in (("7", "8", "7", ""), ("1/2", "0.5", r"x^2-1", "(x-1)(x+1)")):
        one = make_evaluated([1, 0, 1, 0], [1.0] * 4, problem_id=answers[0]).judged
        texts = [Completion(f"so \\boxed{{{answer}}}", 3) for answer in answers]
        judged.append(dataclasses.replace(one, texts=texts))
    config = make_config(tmp_path)
    plain, algebra = compare_answers(config, judged)
    assert plain.votes.tolist() == [0, 1, 0, -1]
    assert plain.answers == ["7", "8", "7", None]
    assert algebra.votes.tolist() == [0, 0, 2, 2]
    assert algebra.is_right.tolist() == [1, 0, 1, 0]
    greedy = make_config(tmp_path, "evaluation.samples=1")
    assert compare_answers(greedy, judged)[0].votes is None
    # Each of two processes has one of them compared, and both know all.
    judged.append(dataclasses.replace(judged[1], problem=Problem("q", "?", "7")))
    found = in_lockstep(monkeypatch, 2, lambda _: compare_answers(config, judged))
    for process in found:
        votes = [one.votes.tolist() for one in process]
        assert votes == [[0, 1, 0, -1], [0, 0, 2, 2], [0, 0, 2, 2]]


def test_answers_that_nobody_could_compare_are_not_known(tmp_path):
    """A deadline that nothing can keep."""
    judged = make_evaluated([1, 0], [1.0] * 2).judged
    judged = dataclasses.replace(
        judged, texts=[Completion(f"\\boxed{{{n}}}", 3) for n in ("1/2", "x")]
    )
    config = make_config(tmp_path, "verifier.deadline=1e-9")
    (one,) = compare_answers(config, [judged])
    assert np.isnan(one.votes).all()
    assert math.isnan(score([one])["maj_at_2"])


def test_a_verifier_that_reads_no_answers_has_no_majority(tmp_path):
    config = make_config(tmp_path)
    rewards = {"accuracy": Weighted(languages.target_word_ratio)}
    config = dataclasses.replace(config, rewards=rewards)
    (report,) = evaluate.evaluate_all(config)
    assert "pass_at_4" in report["scores"]
    assert not [name for name in report["scores"] if name.startswith("maj")]
    settings = dataclasses.replace(config.evaluation, every=1, keep_best="maj_at_4")
    config = dataclasses.replace(config, evaluation=settings)
    with pytest.raises(UserError, match="reads no answers that could be counted"):
        next(train.train(config))


def print_evaluation():
    """Prints an evaluation and its completions, for a process with other devices."""
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(Path(folder), "evaluation.problems=8")
        (report,) = evaluate.evaluate_all(config)
        rows = lines(evaluate.completions_path(config))
    # Folders differ, and so does what is made of their names.
    for one in rows:
        del one["key"]
    for one in (report, *rows):
        del one["of"], one["policy"]
    print(json.dumps([report, rows]))


def test_the_same_evaluation_on_one_device_and_on_eight():
    """Every score, interval and completion; two processes: tests/test_processes.py."""
    one, eight = (
        json.loads(output_on_devices(print_evaluation, devices).splitlines()[-1])
        for devices in (1, 8)
    )
    assert one == eight
    report, rows = one
    assert report["problems"] == len(rows) == 8
    assert {"accuracy_low", "pass_at_4", "maj_at_4"} < report["scores"].keys()
    assert all(len(row_["completions"]) == 4 for row_ in rows)


# --- Files ---


@pytest.fixture
def sampled(monkeypatch):
    """The ids of problems, as they are sampled."""
    asked = []
    real = evaluate.sample

    def counted(run, params, problems, done=0):
        for group in real(run, params, problems, done):
            asked.append(group.problem.id)
            yield group

    monkeypatch.setattr(evaluate, "sample", counted)
    return asked


def test_what_is_there_is_not_sampled_again(tmp_path, monkeypatch, sampled):
    config = make_config(tmp_path)
    whole = evaluate.evaluate_all(make_config(tmp_path, f"out={tmp_path}/other"))
    assert len(sampled) == 6
    sampled.clear()
    counted = evaluate.sample

    def interrupted(run, params, problems, done=0):
        yield from itertools.islice(counted(run, params, problems, done), 4)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate_all(config)
    path = evaluate.completions_path(config)
    with path.open("ab") as file:
        file.write(b'{"key": "cut off')
    monkeypatch.setattr(evaluate, "sample", counted)
    assert evaluate.evaluate_all(config) == whole
    assert len(sampled) == len(set(sampled)) == 6
    # A second time nothing is sampled; more problems are only those that are new.
    assert evaluate.evaluate_all(config) == whole
    assert len(sampled) == 6
    evaluate.evaluate_all(make_config(tmp_path, "evaluation.problems=8"))
    assert len(sampled) == len(set(sampled)) == 8


def test_completions_of_other_settings_are_sampled_anew(tmp_path, sampled):
    evaluate.evaluate_all(make_config(tmp_path))
    greedy = make_config(tmp_path, "evaluation.temperature=0")
    (report,) = evaluate.evaluate_all(greedy)
    assert len(sampled) == 12
    rows = lines(evaluate.completions_path(greedy))
    assert [row["id"] for row in rows] == sampled[6:]  # the others are not kept
    for row_ in rows:
        assert len({text["text"] for text in row_["completions"]}) == 1
    assert report["scores"]["pass_at_4"] == report["scores"]["accuracy"]


def test_rewards_may_change_without_sampling_again(tmp_path, sampled):
    config = make_config(tmp_path)
    evaluate.evaluate_all(config)
    rewards = config.rewards | {"accuracy": Weighted(languages.target_word_ratio)}
    other = dataclasses.replace(config, rewards=rewards)
    (report,) = evaluate.evaluate_all(other)
    assert len(sampled) == 6
    assert report["reward/mean"] == pytest.approx(2 * report["reward/language"])


def test_several_policies_and_data_sets(tmp_path, capsys, sampled, monkeypatch):
    config = make_config(tmp_path, "steps=2", "evaluation.problems=4")
    list(train.train(config))
    sampled.clear()
    settings = dataclasses.replace(
        config.evaluation,
        sets={"sums": Arithmetic(levels=(1,), languages=("en",), size=24)},
        policies=(f"{config.out}/checkpoints/1", config.out, str(model_folder())),
    )
    config = dataclasses.replace(config, evaluation=settings)
    monkeypatch.setattr(evaluate, "parse_command_line", lambda *_, **__: config)
    evaluate.main([])
    said = capsys.readouterr().out
    reports = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    reports = reports["evaluations"]
    assert [(report["of"], report["set"]) for report in reports] == [
        (of, name)
        for of in (
            f"{config.out}, step 1",
            f"{config.out}, step 2",
            f"{model_folder()}, untrained",
        )
        for name in ("heldout", "sums")
    ]
    assert "step 1: 4 held-out problems of sums, 4 samples of each" in said
    assert len(sampled) == 24
    # The same policies as in training, before, after step 1 and at the end.
    by_name = {(r["of"], r["set"]): r["reward/mean"] for r in reports}
    for of, file in (("untrained", "before"), ("step 2", "summary")):
        saved = json.loads((tmp_path / "out" / f"{file}.json").read_text())
        saved = saved.get("after", saved)
        (found,) = (
            value
            for (name, set_), value in by_name.items()
            if name.endswith(of) and set_ == "heldout"
        )
        assert found == pytest.approx(saved["reward/mean"])
    # Every row has its table's values; every completion is there.
    with (tmp_path / "out" / "evaluation.csv").open() as file:
        table = list(csv.DictReader(file))
    wholes = [line for line in table if line["part"] == "all"]
    assert [(line["step"], line["set"]) for line in wholes] == [
        ("1", "heldout"), ("1", "sums"), ("2", "heldout"), ("2", "sums"),
        ("", "heldout"), ("", "sums"),
    ]  # fmt: skip
    for line, report in zip(wholes, reports, strict=True):
        assert float(line["tokens"]) == report["scores"]["tokens"]
    rows = lines(evaluate.completions_path(config))
    assert len(rows) == 24
    assert all(len(row_["completions"]) == 4 for row_ in rows)
    # The whole once more: nothing is sampled.
    assert [dict(report) for report in evaluate.evaluate_all(config)] == reports
    assert len(sampled) == 24


def test_a_policy_that_is_none_is_refused(tmp_path):
    def refused(path):
        config = make_config(tmp_path, f"evaluation.policies={path}")
        with pytest.raises(UserError) as caught:
            policies.find_policies(config)
        return str(caught.value)

    (tmp_path / "empty").mkdir()
    assert "OUT/checkpoints/STEP" in refused(tmp_path / "empty")
    assert "OUT/checkpoints/STEP" in refused(tmp_path / "nowhere")
    with Checkpoints(tmp_path / "run", keep=2) as checkpoints:
        for step in (3, 6):
            checkpoints.save(step, {"a": np.zeros(1)}, {})
    said = refused(tmp_path / "run" / "checkpoints" / "4")
    assert said.endswith("run/checkpoints has no step 4: it has 3, 6")
    config = make_config(tmp_path, f"evaluation.policies={tmp_path}/run")
    assert [policy.step for policy in policies.find_policies(config)] == [6]


# --- While training ---


def run_of(config):
    """Returns a run's metrics that no clock decides, without those of evaluations."""
    list(train.train(config))
    return [
        {
            name: value
            for name, value in step.items()
            if not name.startswith(("evaluation/", *TIMES))
        }
        for step in metrics.read(config.out)
    ]


@pytest.mark.parametrize("changes", [(), ("sampling.keep_in_flight=true",)])
def test_evaluations_change_no_training_metric(tmp_path, changes):
    without = make_config(tmp_path, "steps=4", f"out={tmp_path}/without", *changes)
    every = make_config(tmp_path, "steps=4", "evaluation.every=2", *changes)
    assert run_of(every) == run_of(without)
    # Those that there are: after steps 2 and 4, and the last is the one after training.
    found = [
        {name for name in step if name.startswith("evaluation/")}
        for step in metrics.read(every.out)
    ]
    assert [bool(names) for names in found] == [False, True, False, True]
    assert {"evaluation/accuracy", "evaluation/maj_at_4", "evaluation/ko/accuracy"} < (
        found[1]
    )
    folder = tmp_path / "out" / "evaluations"
    assert {path.name for path in folder.iterdir()} == {"2.json", "4.json"}
    after = json.loads((tmp_path / "out" / "summary.json").read_text())["after"]
    assert after == json.loads((folder / "4.json").read_text())
    other = json.loads((tmp_path / "without" / "summary.json").read_text())["after"]
    assert after == other


def test_the_best_checkpoint_is_kept(tmp_path, monkeypatch):
    """Evaluated are steps 2, 4 and 6, the first of them the best; saved is every third."""
    accuracies = {2: 0.9, 4: 0.1, 6: 0.3}
    real = evaluate.after_step

    def scored(run, params, step):
        found = real(run, params, step)
        return found | {"evaluation/accuracy": accuracies[step]} if found else found

    monkeypatch.setattr(evaluate, "after_step", scored)
    config = make_config(
        tmp_path,
        "steps=7",
        "save_every=3",
        "keep_checkpoints=1",
        "evaluation.every=2",
        "evaluation.problems=2",
        "evaluation.keep_best=accuracy",
    )
    # Interrupted after step 5: what goes on knows which was the best.
    for step_metrics in train.train(config):
        if step_metrics["step"] == 5:
            break
    with Checkpoints(config.out) as checkpoints:
        assert checkpoints.steps() == [2, 5]
    list(train.train(config))
    with Checkpoints(config.out) as checkpoints:
        assert checkpoints.steps() == [2, 7]


def test_the_line_of_an_evaluation():
    found = {
        "accuracy": 0.412,
        "accuracy_low": 0.371,
        "accuracy_high": 0.455,
        "pass_at_1": 0.412,
        "pass_at_1_low": 0.371,
        "pass_at_4": 0.6,
        "pass_at_4_low": 0.5,
        "tokens": 31.0,
    }
    assert summary.score_line(10, found) == (
        "step 10 evaluated: accuracy 0.412 (0.371 to 0.455)  pass@4 0.600"
    )
    many = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6}
    for name in ("pass_at_2", "pass_at_4", "pass_at_8", "maj_at_8"):
        many |= {name: 0.5, f"{name}_low": 0.4}
    assert summary.score_line(10, many) == (
        "step 10 evaluated: accuracy 0.500 (0.400 to 0.600)  pass@2 0.500  pass@4 0.500\n"
        "    pass@8 0.500  maj@8 0.500"
    )
    assert summary.score_line(10, {}) == "step 10 evaluated:"
