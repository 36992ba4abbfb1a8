"""The same metrics for the same policy, over as many problems and samples as were asked for."""

import dataclasses
import json
import sys

import pytest

from jaxgrpo import config, evaluate, train
from jaxgrpo.build import build_run
from jaxgrpo.config.command_line import run_main
from jaxgrpo.summary import tables
from tests.test_data import write_lines
from tests.tiny_runs import TEXT, config_file, make_config, model_folder, share_programs


@pytest.fixture(autouse=True)
def _programs(monkeypatch):
    share_programs(monkeypatch)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        share_programs(monkeypatch)
        with build_run(make_config(tmp_path_factory.mktemp("run"))) as run:
            yield run


def test_the_same_metrics_at_every_call(run):
    params = run.load_params()
    report = evaluate.evaluate(run, params)
    assert report == evaluate.evaluate(run, params)
    assert (report["problems"], report["samples"]) == (6, 4)
    assert sum(part["problems"] for part in report["by_language"].values()) == 6
    assert list(report["by_level"]) == ["1"]
    assert report["by_level"]["1"]["accuracy"] == report["reward/accuracy"]
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_problems_and_samples_are_those_asked_for(run):
    """5 problems in launches of 2: the last one is not full."""
    problems = run.heldout[:5]
    groups = list(evaluate.sample(run, run.load_params(), problems))
    assert [group.problem for group in groups] == problems
    assert {(len(group.texts), group.judged) for group in groups} == {(4, 4)}
    assert len({text for group in groups for text in group.texts}) > 15


def test_examples_are_the_first_of_each_language_and_the_same_at_every_call(run):
    heldout = run.config.data.heldout()
    problems = run.prompt_filter.take(heldout, 24)
    assert problems[:6] == run.heldout
    many = dataclasses.replace(run, heldout=problems)
    report = evaluate.evaluate(many, run.load_params())
    examples = report["examples"]
    languages = [example["language"] for example in examples]
    assert languages == sorted(languages)
    assert set(languages) == set(report["by_language"]) == {"en", "ko", "uk", "zh"}
    for language in report["by_language"]:
        shown = [
            example["id"] for example in examples if example["language"] == language
        ]
        assert (
            shown
            == [problem.id for problem in problems if problem.language == language][:2]
        )
    assert all(example["prompt"] and example["completion"] for example in examples)
    assert all(
        example["rewards"].keys() >= {"accuracy", "language"} for example in examples
    )


def test_more_problems_than_there_are_are_all(run):
    assert len(run.heldout) == run.config.evaluation.problems == 6
    assert run.prompt_filter.take(run.heldout, 100) == run.heldout


def make_report(accuracy, **languages):
    return {
        "reward/accuracy": accuracy,
        "language/target_word_ratio": 0.5,
        "language/english_word_ratio": None,
        "by_language": {
            name: {
                "accuracy": value,
                "target_word_ratio": 1.0,
                "english_word_ratio": 0.0,
            }
            for name, value in languages.items()
        },
        "by_level": {"1": {"accuracy": accuracy}, "2": {"accuracy": None}},
    }


def test_one_evaluation_as_tables():
    assert tables(make_report(0.25, en=0.5, ko=0.0)) == (
        "language  accuracy  target words  English words\n"
        "en           0.500         1.000          0.000\n"
        "ko           0.000         1.000          0.000\n"
        "all          0.250         0.500              -\n"
        "\n"
        "level  accuracy\n"
        "1         0.250\n"
        "2             -\n"
        "all       0.250"
    )


def test_two_evaluations_side_by_side():
    lines = tables(make_report(0.25, en=0.5), make_report(0.75, en=1.0)).splitlines()
    assert lines[0].split() == [
        "language",
        "accuracy",
        "target",
        "words",
        "English",
        "words",
    ]
    assert lines[1].split()[:4] == ["en", "0.500", "->", "1.000"]
    assert lines[2].split() == [
        "all",
        "0.250",
        "->",
        "0.750",
        "0.500",
        "->",
        "0.500",
        "-",
        "->",
        "-",
    ]
    assert lines[5].split() == ["1", "0.250", "->", "0.750"]
    assert max(map(len, lines)) < 80


def test_nan_becomes_null():
    nan = float("nan")
    assert evaluate._without_nan({"a": nan, "b": {"c": nan, "d": 0.5}, "e": 3}) == {
        "a": None,
        "b": {"c": None, "d": 0.5},
        "e": 3,
    }


def test_the_program_evaluates_the_model_itself_where_nothing_is_trained(
    tmp_path, monkeypatch, capsys, run
):
    monkeypatch.setattr(sys, "argv", ["evaluate", "--config", config_file(tmp_path)])
    run_main(evaluate.main)
    assert (
        "untrained: 6 held-out problems, 4 samples of each" in capsys.readouterr().out
    )
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written.pop("of").endswith("untrained")
    assert written.pop("policy") == str(model_folder())
    assert (written.pop("step"), written.pop("set")) == (None, "heldout")
    assert written == evaluate.evaluate(run, run.load_params())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "evaluation.json",
        "evaluation.jsonl",
        "evaluation.csv",
    }


def test_another_policy_than_the_runs_is_refused_before_anything_is_computed(
    tmp_path, monkeypatch, capsys
):
    file = config_file(tmp_path)
    saved = config.load(file, ["--config.lora.rank=2", "--config.lora.alpha=64"])
    config.save(saved, str(tmp_path / "out"))
    monkeypatch.setattr(evaluate, "build_run", None)
    monkeypatch.setattr(
        sys, "argv", ["evaluate", "--config", file, "--config.lora.rank=2"]
    )
    with pytest.raises(SystemExit) as stopped:
        run_main(evaluate.main)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/out holds a run whose policy has other settings: lora.alpha (then "
        "64.0, now 32.0); give another --config.out, or go back\n"
    )


def test_what_else_is_measured_than_by_the_run_is_said(
    tmp_path, monkeypatch, capsys, run
):
    file = config_file(tmp_path)
    config.save(config.load(file, ["--config.seed=3"]), str(tmp_path / "out"))
    monkeypatch.setattr(sys, "argv", ["evaluate", "--config", file])
    run_main(evaluate.main)
    shown = capsys.readouterr().out
    assert shown.startswith(
        f"measured with other settings than the run in {tmp_path}/out: seed (then 3, now 0)\n"
    )
    assert "untrained: 6 held-out problems" in shown


def test_no_problems_are_nothing_to_evaluate(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "evaluate",
            "--config",
            config_file(tmp_path),
            "--config.evaluation.problems=0",
        ],
    )
    with pytest.raises(SystemExit) as stopped:
        run_main(evaluate.main)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "error: evaluation.problems is 0: no evaluation; set --config.evaluation.problems=256\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_mistyped_folder_is_neither_evaluated_nor_made(tmp_path, monkeypatch, capsys):
    made = make_config(tmp_path)
    config.save(made, made.out)
    mistyped = str(tmp_path / "outt")
    arguments = ["--config", config_file(tmp_path), f"--config.out={mistyped}"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    with pytest.raises(SystemExit):
        run_main(evaluate.main)
    said = capsys.readouterr().err
    assert f"there is no such folder (did you mean {made.out}?); to evaluate" in said
    assert not (tmp_path / "outt").exists()


def test_a_set_to_evaluate_on_is_evaluated_and_not_trained_on(
    tmp_path, monkeypatch, capsys, run
):
    rows = [
        {"problem": f"{i} + 2?", "answer": str(i + 2), "level": 1, "unique_id": str(i)}
        for i in range(3)
    ]
    path = write_lines(tmp_path / "math500.jsonl", rows)
    text = TEXT.replace("Arithmetic(levels=(1,), size=24)", f"MATH500({path!r})")
    text = text.replace(
        "from jaxgrpo.data.arithmetic import Arithmetic",
        "from jaxgrpo.data.benchmarks import MATH500",
    )
    file = config_file(tmp_path, text)
    monkeypatch.setattr(sys, "argv", ["evaluate", "--config", file])
    run_main(evaluate.main)
    assert "untrained: 3 held-out problems" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written["by_level"]["1"]["problems"] == 3
    with pytest.raises(SystemExit) as stopped:
        run_main(train.main)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "error: MATH500 is a set to evaluate on and has nothing to train on; set config.data to "
        "one that has, such as GSM8K, or measure a policy: jaxgrpo evaluate\n"
    )
