"""A whole run, stopped and resumed in every way.

No step is lost, none is done twice, and nothing tells the difference.
"""

import dataclasses
import json
import os
import shutil
import signal
import sys
import time
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxgrpo import evaluate, metrics
from jaxgrpo.build import build_run, load_policy
from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.config import load, save
from jaxgrpo.config.command_line import run_main
from jaxgrpo.errors import UserError
from jaxgrpo.losses import Corrected
from jaxgrpo.models import hf_folder
from jaxgrpo.models.transformer import parameter_count
from jaxgrpo.problems import Weighted
from jaxgrpo.programs import compile_programs
from jaxgrpo.rollout.batch import make_batch
from jaxgrpo.rollout.collect import collect_groups
from jaxgrpo.rollout.judge import Judge
from jaxgrpo.rollout.report import MissingVerdictsError
from jaxgrpo.run_state import restore_or_start
from jaxgrpo.signals import noted_signals
from jaxgrpo.summary import TABLE_METRICS
from jaxgrpo.train import check_agreement, compile_update, main, train
from tests.compilations import noted_compilations
from tests.slow_rewards import Delayed
from tests.tiny_models import make_folder
from tests.tiny_runs import (
    ROOT,
    TEXT,
    comparable,
    config_file,
    lines,
    make_config,
    model_folder,
    share_programs,
    start,
)


@pytest.fixture(autouse=True)
def _programs(monkeypatch):
    share_programs(monkeypatch)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Returns the config of a run of 4 steps that nobody interrupted, and what it yielded."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        share_programs(monkeypatch, draws_plot=True)
        config = make_config(tmp_path_factory.mktemp("uninterrupted"))
        return config, list(train(config))


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path)


def out_of(config):
    return Path(config.out)


def state_of(config):
    """Returns the newest checkpoint: the train state, and what the host saved."""
    with build_run(config) as run:
        return jax.device_get(Checkpoints(config.out).restore(run.programs.state_like))


def summary_of(config):
    return json.loads((out_of(config) / "summary.json").read_text())


def largest_moves(params, before):
    """Returns how far the furthest number of each parameter has moved."""
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(before), strict=True)
    return [np.abs(leaf - old_leaf).max() for leaf, old_leaf in pairs]


def assert_same_run(config, other):
    """Asserts that two runs are equal bit for bit, but for the time that they took.

    Returns what the host saved.
    """
    for file in ("metrics.jsonl", "rollouts.jsonl"):
        records = comparable(lines(out_of(config) / file))
        assert records == comparable(lines(out_of(other) / file))
    state, host = state_of(config)
    other_state, other_host = state_of(other)
    for leaf, other_leaf in zip(
        jax.tree.leaves(state), jax.tree.leaves(other_state), strict=True
    ):
        assert leaf.tobytes() == other_leaf.tobytes()
    assert {**host, "seconds": 0} == {**other_host, "seconds": 0}
    assert {**summary_of(config), "seconds": 0} == {**summary_of(other), "seconds": 0}
    return host


def test_a_step_is_a_line_with_every_number(uninterrupted):
    config, yielded = uninterrupted
    assert [values["step"] for values in yielded] == [1, 2, 3, 4]
    assert lines(out_of(config) / "metrics.jsonl") == yielded
    for values in yielded:
        assert values.keys() >= {
            "reward/accuracy",
            "reward/mean",
            "reward/language",
            "filter/kept",
            "language/target_word_ratio",
            "policy/kl",
            "policy/entropy",
            "policy/logprob_gap",
            "rollout/tokens_per_s",
            "time/step",
            "update/grad_norm",
        }
        assert values["policy/logprob_gap"] < 1e-5
    assert yielded[0]["policy/kl"] < 1e-14  # one rounding of a log-probability, squared
    assert yielded[-1]["policy/kl"] > 0


def test_rates_are_the_work_of_the_step_over_its_time(uninterrupted):
    config, (first, *_) = uninterrupted
    shown = lines(out_of(config) / "rollouts.jsonl")
    with build_run(config) as run:
        parameters = parameter_count(run.programs.params_like)
        prompts = [
            run.engine.tokenizer.prompt(
                record["prompt"], config.system, record["language"]
            )
            for record in shown
            if record["step"] == 1
        ]
    assert len(prompts) == config.batch.groups
    rows = config.batch.groups * config.batch.group_size
    tokens = sum(map(len, prompts)) + rows * first["completion/tokens"]
    # Sampling 2, the reference 2, the update 6 a parameter and token.
    flops = 10 * parameters * tokens / jax.device_count()
    assert first["perf/flops_per_s"] * first["time/step"] == pytest.approx(flops)
    assert first["perf/decode_bandwidth"] > 0
    assert "perf/mfu" not in first  # nobody knows the peak of a CPU


def test_a_run_with_scanned_layers_and_half_width_numbers(
    tmp_path, uninterrupted, capsys
):
    """It evaluates its own checkpoint, too, whose sampling copy is laid out layer by layer."""
    config = make_config(
        tmp_path,
        "compute.scan_layers=True",
        "compute.remat=full",
        "steps=3",
        "evaluation.problems=2",
        "dtype=bfloat16",
        "optimizer.params_dtype=bfloat16",
        "optimizer.state_dtype=bfloat16",
    )
    first, *_, last = train(config)
    assert 0 <= first["policy/kl"] < 1e-14
    assert last["policy/kl"] > 0
    half = uninterrupted[1][0]["memory/parameters"] / 2
    assert first["memory/parameters"] == first["memory/reference"] == half
    assert "memory a device: parameters" in capsys.readouterr().out
    with build_run(config) as run:
        params, step = load_policy(run.programs, run.model_folder, False, config.out)
        assert step == 3
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
        after = summary_of(config)["after"]
        assert (
            evaluate.evaluate(run, params)["reward/accuracy"]
            == after["reward/accuracy"]
        )


def test_what_a_run_leaves(uninterrupted):
    config, _ = uninterrupted
    out = out_of(config)
    assert sorted(path.name for path in out.iterdir()) == [
        "before.json",
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "metrics.png",
        "rollouts.jsonl",
        "summary.json",
        "tensorboard",
    ]
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["3", "4"]
    shown = lines(out / "rollouts.jsonl")
    assert [record["step"] for record in shown] == [1, 1, 3, 3]
    assert shown[0].keys() >= {
        "id",
        "language",
        "level",
        "prompt",
        "completion",
        "answer",
        "rewards",
        "solved",
        "judged",
        "kept",
    }
    summary = summary_of(config)
    assert summary["accuracy_before"] == summary["before"]["reward/accuracy"]
    assert summary["accuracy_after"] == summary["after"]["reward/accuracy"]
    assert summary["steps"] == 4
    assert summary["seconds"] > 0
    assert set(summary["by_language"]) == {"en", "zh", "ko", "uk"} & set(
        summary["before"]["by_language"]
    )
    names = {f"{name}_{when}" for name in TABLE_METRICS for when in ("before", "after")}
    for language_metrics in summary["by_language"].values():
        assert set(language_metrics) == names


def test_training_moves_the_policy_and_leaves_the_reference(uninterrupted):
    config, _ = uninterrupted
    state, host = state_of(config)
    assert int(state.step) == host["step"] == 4
    assert min(largest_moves(state.params, hf_folder.load_params(model_folder()))) > 0
    assert host["order"]["position"] == 8
    assert sum(host["history"]["visits"].values()) == 8


def test_nothing_compiles_after_the_first_step(uninterrupted):
    config, _ = uninterrupted
    with build_run(config) as run:
        counts = [
            program.compiled for program in (run.programs.prefill, run.programs.update)
        ]
        assert counts == [1, 1]  # evaluation and training share the sampler's programs
        assert run.programs.decode.compiled <= len(run.programs.slot_counts)


def test_the_update_that_is_compiled_ahead_is_the_one_that_runs(uninterrupted):
    config, _ = uninterrupted
    with build_run(config) as run, Checkpoints(config.out) as checkpoints:
        run_state = restore_or_start(run, checkpoints, run.load_params(), 0.0)
        with noted_compilations() as compiled:
            compile_update(run, run_state)
            run.programs.update._ahead.result()
    assert compiled == []


def test_a_second_run_in_a_process_compiles_nothing(uninterrupted, config):
    """It learns what the first one did, and may have other numbers of steps and coefficients."""
    objective = dataclasses.replace(config.objective, clip_high=0.3)
    with noted_compilations() as compiled:
        first = next(train(dataclasses.replace(config, steps=2, objective=objective)))
    assert compiled == []
    assert comparable([first]) == comparable(uninterrupted[1][:1])


def test_stopping_and_going_on_changes_nothing(uninterrupted, config, capsys):
    config = dataclasses.replace(config, save_every=100)
    for values in train(config):
        if values["step"] == 2:
            break
    assert Checkpoints(config.out).latest() == 2
    assert not (out_of(config) / "summary.json").exists()
    assert [values["step"] for values in train(config)] == [3, 4]
    assert "going on from step 2 of 4" in capsys.readouterr().out
    assert_same_run(config, uninterrupted[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_a_whole_step(
    uninterrupted, tmp_path, monkeypatch, capfd, number
):
    path = config_file(tmp_path)
    write = metrics.Writer.write

    def write_and_kill(self, step, values):
        write(self, step, values)
        if step == 2:
            os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    monkeypatch.setattr(metrics.Writer, "write", write_and_kill)
    monkeypatch.setattr(
        sys, "argv", ["train", "--config", path, "--config.save_every=100"]
    )
    with pytest.raises(SystemExit) as stopped:
        run_main(main)
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) == handler
    shown = capfd.readouterr()
    assert "stopping after this step" in shown.err
    assert "stopped after step 2 of 4, which is saved in" in shown.out
    assert Checkpoints(tmp_path / "out").latest() == 2
    assert [record["step"] for record in lines(tmp_path / "out" / "metrics.jsonl")] == [
        1,
        2,
    ]
    if number == signal.SIGTERM:
        monkeypatch.setattr(metrics.Writer, "write", write)
        run_main(main)
        assert_same_run(make_config(tmp_path), uninterrupted[0])


def test_a_second_ctrl_c_acts_at_once():
    def press(arrived=lambda: False):
        os.kill(os.getpid(), signal.SIGINT)
        # The system may give the signal to another thread, and Python handles it later.
        for _ in range(500):
            if not arrived():
                time.sleep(0.01)

    # Started in the background by a shell, the tests would have Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with noted_signals() as signals:
            press(lambda: signals)
            assert signals == [signal.SIGINT]
            with pytest.raises(KeyboardInterrupt):
                press()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_finished_run_says_so_and_does_nothing(uninterrupted, monkeypatch, capsys):
    config, _ = uninterrupted

    def contents():
        files = (path for path in out_of(config).rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files}

    before = contents()
    monkeypatch.setattr("jaxgrpo.train.build_run", None)
    assert list(train(config)) == []
    assert capsys.readouterr().out.startswith(
        f"{config.out} is finished: 4 steps, accuracy 0.000 -> 0.000; to go on raise"
    )
    assert contents() == before


def test_a_finished_run_goes_on_for_more_steps(uninterrupted, config, monkeypatch):
    shutil.copytree(out_of(uninterrupted[0]), config.out)
    evaluations = []
    real_evaluate = evaluate.evaluate

    def counted_evaluate(*arguments):
        evaluations.append(1)
        return real_evaluate(*arguments)

    monkeypatch.setattr(evaluate, "evaluate", counted_evaluate)
    assert [
        values["step"] for values in train(dataclasses.replace(config, steps=5))
    ] == [5]
    assert [record["step"] for record in lines(out_of(config) / "metrics.jsonl")] == [
        1,
        2,
        3,
        4,
        5,
    ]
    assert summary_of(config)["steps"] == 5
    assert len(evaluations) == 1  # before.json is there already


def test_a_run_goes_on_with_another_evaluation(uninterrupted, config, capsys):
    """What the run began with is then measured again, by the same questions as what it becomes."""
    shutil.copytree(out_of(uninterrupted[0]), config.out)
    evaluation = dataclasses.replace(config.evaluation, samples=2)
    list(train(dataclasses.replace(config, steps=5, evaluation=evaluation)))
    said = capsys.readouterr().out
    assert "evaluation.samples (then 4, now 2): the policy that the run began" in said
    summary = summary_of(config)
    assert summary["before"]["samples"] == summary["after"]["samples"] == 2


def test_a_run_begins_with_anothers_parameters_and_moments(
    uninterrupted, config, tmp_path
):
    other = tmp_path / "other"
    shutil.copytree(out_of(uninterrupted[0]), other)
    config = dataclasses.replace(config, init_from=str(other), steps=1)
    theirs, _ = state_of(uninterrupted[0])
    with build_run(config) as run, Checkpoints(config.out) as none_yet:
        ours = restore_or_start(run, none_yet, run.load_params(), 0.0).state
    assert (int(theirs.step), int(ours.step)) == (4, 0)
    for part in ("params", "opt_state"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(ours, part), getattr(theirs, part)
        )
    (first,) = train(config)
    # The reference is still the model, and the evaluation before is of the policy.
    assert first["policy/kl"] > 1e-6
    assert summary_of(config)["before"] == summary_of(uninterrupted[0])["after"]
    # Once begun it needs the other no more, nor is it told again.
    shutil.rmtree(other)
    goes_on = train(dataclasses.replace(config, steps=2))
    assert [step["step"] for step in goes_on] == [2]


def test_a_run_to_begin_with_is_looked_for_first(config, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxgrpo.train.build_run", None)
    nowhere = dataclasses.replace(config, init_from=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"holds no run \(no config.json\)"):
        list(train(nowhere))
    begun = dataclasses.replace(config, out=str(tmp_path / "begun"))
    save(begun, begun.out)
    for changes, says in (
        ({}, "give the --config.init_from that has one"),
        ({"model": ""}, "other settings: model .* give another --config.init_from"),
    ):
        with pytest.raises(UserError, match=says):
            list(train(dataclasses.replace(config, init_from=begun.out, **changes)))


def test_a_quiet_run_prints_nothing_and_writes_the_same(uninterrupted, config, capfd):
    quiet = dataclasses.replace(config, quiet=True)
    list(train(quiet))
    assert list(train(quiet)) == []  # it is finished, and does not say so either
    assert capfd.readouterr().out == ""
    assert_same_run(quiet, uninterrupted[0])


def test_a_step_of_several_updates_is_a_step(config, tmp_path, capsys):
    """Stopping and going on changes nothing here, either."""
    batch = dataclasses.replace(config.batch, updates=2, epochs=2)
    config = dataclasses.replace(config, steps=2, batch=batch, save_every=100)
    records = list(train(config))
    said = capsys.readouterr().out
    assert (
        "2 prompts x 4 = 8 rows a step, 2 epochs of 2 updates of 4 rows, micro-batches of 4"
    ) in " ".join(said.split())
    assert [record["update/count"] for record in records] == [4, 4]
    for record in records:
        assert record["policy/ratio"] != 1
        assert record["policy/logprob_gap"] < 1e-4  # the first update's
        assert record["policy/kl_old_last"] > 1e-8
    stopped = dataclasses.replace(config, out=str(tmp_path / "stopped"))
    next(train(stopped))
    assert [record["step"] for record in train(stopped)] == [2]
    assert_same_run(stopped, config)


def test_a_run_has_a_teacher_in_the_references_place(config, tmp_path):
    """Its network is another one; what is evaluated before is the model itself."""
    teacher = make_folder(tmp_path / "teacher", num_hidden_layers=2, seed=3)
    config = dataclasses.replace(config, steps=2)
    with_teacher = dataclasses.replace(
        config, reference=str(teacher), out=str(tmp_path / "taught")
    )
    own, taught = list(train(config)), list(train(with_teacher))
    assert own[0]["policy/kl"] == pytest.approx(0, abs=1e-6)
    assert taught[0]["policy/kl"] > 0.01
    assert summary_of(with_teacher)["before"] == summary_of(config)["before"]


def test_without_evaluation(config, monkeypatch):
    monkeypatch.setattr(evaluate, "evaluate", None)
    monkeypatch.setattr(
        "jaxgrpo.data.arithmetic.Arithmetic.heldout", lambda self: 1 / 0
    )
    evaluation = dataclasses.replace(config.evaluation, problems=0)
    config = dataclasses.replace(config, steps=1, evaluation=evaluation)
    assert len(list(train(config))) == 1
    summary = summary_of(config)
    assert summary["accuracy_before"] is summary["accuracy_after"] is None
    assert summary["by_language"] == {}
    assert not (out_of(config) / "before.json").exists()
    assert list(train(config)) == []


def test_a_step_that_keeps_nothing_trains_on_nothing(tmp_path):
    """Random networks solve nothing.

    Without the language's reward all completions are equal, and the refill ends at its bound.
    """
    changes = (
        "filter.rule=band",
        "filter.max_prompts=2",
        "rewards.language.weight=0",
        "evaluation.problems=0",
        "steps=2",
    )
    config = make_config(tmp_path, *changes)
    yielded = list(train(config))
    assert [values["filter/groups"] for values in yielded] == [0, 0]
    assert [values["filter/asked"] for values in yielded] == [4, 4]
    state, host = state_of(config)
    assert int(state.step) == 2
    assert host["order"]["position"] == 8
    before = hf_folder.load_params(model_folder())
    for leaf, old_leaf in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(before), strict=True
    ):
        np.testing.assert_array_equal(leaf, old_leaf)


def test_a_run_whose_sampler_and_scorer_differ_is_stopped_at_its_first_step(config):
    sampling = dataclasses.replace(config.sampling, max_logprob_gap=1e-12)
    config = dataclasses.replace(config, sampling=sampling)
    with pytest.raises(
        UserError,
        match=r"differ from the scorer's by .* nats .* at most 1e-12: .*max_logprob_gap",
    ):
        list(train(config))
    assert not (out_of(config) / "checkpoints" / "1").exists()
    assert lines(out_of(config) / "metrics.jsonl") == []


def test_a_run_whose_first_log_probabilities_are_not_finite_is_stopped(
    config, monkeypatch
):
    def broken(*arguments):
        batch = make_batch(*arguments)
        batch.sampler_logprobs[batch.completion_mask] = np.nan
        return batch

    monkeypatch.setattr("jaxgrpo.train.make_batch", broken)
    with pytest.raises(
        UserError,
        match=r"log-probabilities are NaN or infinite, .* the step is not saved; the weights of",
    ):
        list(train(config))
    assert not (out_of(config) / "checkpoints" / "1").exists()


@pytest.mark.parametrize("gap", [float("nan"), float("inf")])
def test_a_gap_that_is_not_finite_is_no_agreement(config, gap):
    sampling = dataclasses.replace(config.sampling, max_logprob_gap=1e9)
    config = dataclasses.replace(config, sampling=sampling)
    with pytest.raises(UserError, match="NaN or infinite"):
        check_agreement(config, {"policy/logprob_gap_p99": gap})


def test_the_schedule_counts_the_steps_that_train_nothing(tmp_path, monkeypatch):
    """Of 4 steps only the last trains. Adam's first update moves what has a gradient by the
    rate."""

    def collect_last(stream, params, spec, step, weights):
        collected = collect_groups(stream, params, spec, step, weights)
        return collected if step == 4 else dataclasses.replace(collected, groups=[])

    monkeypatch.setattr("jaxgrpo.train.collect_groups", collect_last)
    # With this run's own optimizer, not with one that is shared.
    monkeypatch.setattr("jaxgrpo.build.compile_programs", compile_programs)
    config = make_config(
        tmp_path,
        "evaluation.problems=0",
        "optimizer.schedule=linear",
        "optimizer.warmup_steps=0",
    )
    list(train(config))
    state, _ = state_of(config)
    moves = largest_moves(state.params, hf_folder.load_params(model_folder()))
    np.testing.assert_allclose(
        max(moves), config.optimizer.learning_rate / 4, rtol=1e-3
    )


def keeping(config, **changes):
    """Returns the config as that of a run that keeps what is in flight."""
    return dataclasses.replace(
        config,
        objective=Corrected(config.objective),
        batch=dataclasses.replace(config.batch, old_logprobs="trainer"),
        sampling=dataclasses.replace(
            config.sampling, keep_in_flight=True, chunk=2, **changes
        ),
    )


@pytest.mark.parametrize("max_age", [1, 2])
def test_a_run_that_keeps_what_is_in_flight_trains_on_older_tokens(config, max_age):
    config = keeping(config, max_age=max_age)
    steps = list(train(config))
    ages = [values["rollout/age_max"] for values in steps]
    assert ages[0] == 0
    assert 0 < max(ages) <= max_age
    assert all(
        0 < values["rollout/in_flight"] <= max_age * config.batch.groups
        for values in steps
    )
    assert all(values["rollout/tokens_per_s"] > 0 for values in steps)
    for values in steps:
        shares = [values[f"rollout/age_{age}"] for age in range(max_age + 1)]
        assert sum(shares) == pytest.approx(1)
        mean_age = sum(age * share for age, share in enumerate(shares))
        assert mean_age == pytest.approx(values["rollout/age"])
    asked = sum(values["filter/asked"] for values in steps)
    # The problems that were in flight at the end will be asked again.
    assert state_of(config)[1]["order"]["position"] == asked


def test_older_completions_can_be_left_out_of_the_loss(config):
    config = keeping(config, max_age=2)
    batch = dataclasses.replace(config.batch, mask_older=0)
    config = dataclasses.replace(config, batch=batch)
    steps = list(train(config))
    # What is left was chosen by the step's own policy.
    ages = [values["rollout/age_max"] for values in steps]
    assert not any(age > 0 for age in ages)
    assert ages[0] == 0
    assert any(values["update/tokens"] < steps[0]["update/tokens"] for values in steps)


def test_a_run_that_keeps_what_is_in_flight_is_a_function_of_its_seed(tmp_path):
    """Rewards that are fast, slow, or now this and now that make the same run, bit for bit."""
    configs = []
    rollouts = []
    for min_seconds, max_seconds in ((0.0, 0.0), (0.1, 0.1), (0.0, 0.1)):
        folder = tmp_path / f"{min_seconds} {max_seconds}"
        folder.mkdir()
        changes = (
            "evaluation.problems=0",
            "filter.rule=dapo",
            "verifier.workers=2",
            "steps=5",
        )
        config = keeping(make_config(folder, *changes))
        reward = Weighted(Delayed(min_seconds, max_seconds))
        config = dataclasses.replace(config, rewards={"accuracy": reward})
        list(train(config))
        configs.append(config)
        steps = lines(out_of(config) / "metrics.jsonl")
        names = ("age", "age_max", "in_flight", "utilisation")
        rollouts.append(
            [[values[f"rollout/{name}"] for name in names] for values in steps]
        )
        assert_same_run(config, configs[0])
    assert rollouts[1:] == rollouts[:1] * 2
    assert max(age for _, age, *_ in rollouts[0]) > 0


STRATEGIES = (
    "filter.rule=band",
    "filter.low=0.5",
    "filter.high=0.75",
    "filter.move_steps=3",
    "filter.last_low=0.25",
    "filter.target_kept=0.6",
    "filter.early_verdicts=2",
    "filter.train_rows=2",
    "order.by=chance",
    "order.window=6",
    "order.share=0.5",
    "order.rest=1",
    "order.retire=0.75",
    "evaluation.problems=0",
    "show_rollouts_every=1",
    "save_rollouts=all",
    "steps=4",
)


def test_every_strategy_of_filter_and_order_survives_a_stop(tmp_path):
    """All of them together: what is asked, sampled further, kept and trained on is the same."""
    configs = []
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        config = make_config(tmp_path / name, *STRATEGIES)
        reward = Weighted(Delayed(0.0, 0.0))
        configs.append(dataclasses.replace(config, rewards={"accuracy": reward}))
    whole, parts = configs
    steps = list(train(whole))
    for values in train(parts):
        if values["step"] == 2:
            break
    list(train(parts))
    host = assert_same_run(parts, whole)
    # Groups were stopped after two completions, two of four were trained on, the band moved.
    rollouts = lines(out_of(whole) / "rollouts.jsonl")
    assert {record["samples"] for record in rollouts} == {2, 4}
    assert max(values["filter/stopped"] for values in steps) > 0
    kept = [record for record in rollouts if record["kept"]]
    trained = [record for record in kept if record["advantage"] is not None]
    assert len(kept) == 2 * len(trained) > 0
    assert host["margin"] != 0
    assert host["proposals"]["streaks"]
    asked = [values["filter/asked"] for values in steps]
    assert sum(asked) == sum(host["history"]["visits"].values())


def driven(folder, steps=4):
    """Returns the config of a run whose language reward is driven to a target.

    A random network misses the target.
    """
    text = TEXT.replace(
        "Weighted(languages.target_word_ratio)",
        "Driven(languages.target_word_ratio, target=0.9, rate=0.5)",
    )
    text = text.replace("import Weighted", "import Driven, Weighted")
    return dataclasses.replace(load(config_file(folder, text)), steps=steps)


def test_a_driven_weight_follows_what_is_measured_and_survives_a_stop(tmp_path):
    (tmp_path / "uninterrupted").mkdir()
    (tmp_path / "parts").mkdir()
    config = driven(tmp_path / "uninterrupted")
    parts = driven(tmp_path / "parts", 2)
    steps = list(train(config))
    assert steps[0]["weight/language"] == 1.0
    for last, now in pairwise(steps):
        expected = last["weight/language"] + 0.5 * (0.9 - last["reward/language"])
        assert now["weight/language"] == pytest.approx(expected)
    resumed = list(train(parts)) + list(train(dataclasses.replace(parts, steps=4)))
    weights = [step["weight/language"] for step in steps]
    assert [step["weight/language"] for step in resumed] == weights
    assert all("weight/accuracy" not in step for step in steps)


def test_a_driven_weight_follows_its_rewards_own_mean_though_it_is_the_one_that_solves(
    tmp_path,
):
    """The language's ratio is seldom exactly 1.0: its pass rate is not its mean."""
    # The only reward is the language's ratio, under the name "accuracy".
    text = TEXT.replace('"accuracy": Weighted(maths.accuracy),', "")
    text = text.replace('"language":', '"accuracy":')
    text = text.replace(
        "Weighted(languages.target_word_ratio)",
        "Driven(languages.target_word_ratio, target=0.9, rate=0.5)",
    )
    text = text.replace("import Weighted", "import Driven")
    text = text.replace("import languages, maths", "import languages")
    file = config_file(tmp_path, text)
    config = load(file, ["--config.steps=2", "--config.evaluation.problems=0"])
    first, second = train(config)
    assert first["reward/accuracy"] != first["language/target_word_ratio"]
    expected = 1.0 + 0.5 * (0.9 - first["language/target_word_ratio"])
    assert second["weight/accuracy"] == pytest.approx(expected)


def test_too_many_missing_verdicts_stop_a_run_that_goes_on_where_it_was(
    uninterrupted, config, monkeypatch
):
    other, _ = uninterrupted
    real_judge = Judge.judge
    asked = []

    def broken_judge(self, group, verdicts, weights):
        asked.append(group)
        if len(asked) > 6 + 2 * config.batch.groups:  # an evaluation, and two steps
            verdicts = [dict.fromkeys(row, "timeout") for row in verdicts]
        return real_judge(self, group, verdicts, weights)

    with monkeypatch.context() as context:
        context.setattr(Judge, "judge", broken_judge)
        with pytest.raises(
            MissingVerdictsError,
            match=r"verdicts are missing, more than verifier.max_missing=0.1",
        ):
            list(train(config))
    assert len(lines(out_of(config) / "missing.jsonl")) > 0
    assert [values["step"] for values in lines(out_of(config) / "metrics.jsonl")] == [
        1,
        2,
    ]
    list(train(config))
    assert_same_run(config, other)


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    """SIGKILL, and the same command again: every step from 1 to the last has exactly one line."""
    arguments = (
        "--config",
        config_file(tmp_path),
        "--config.steps=12",
        "--config.save_every=2",
        "--config.evaluation.problems=0",
    )
    cache = {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    out = tmp_path / "out"
    first = start("jaxgrpo.train", *arguments, **cache)
    deadline = time.monotonic() + 120
    while len(metrics.read(out)) < 3:
        assert first.poll() is None, first.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    first.kill()
    first.communicate()
    reached = metrics.read(out)
    assert 3 <= len(reached) < 12
    again = start("jaxgrpo.train", *arguments, **cache)
    shown, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert "going on from step" in shown
    records = lines(out / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 13))
    # The steps that were done again came out the same.
    assert comparable(records)[: len(reached)] == comparable(reached)
    assert json.loads((out / "summary.json").read_text())["steps"] == 12


def test_the_gsm8k_config_trains_on_rows_of_a_file(tmp_path, monkeypatch, capsys):
    """configs/gsm8k_tiny.py as it is, but for sizes that are compiled already."""
    rows = [
        {
            "question": f"Ann has {n} pears and buys 2. How many has she?",
            "answer": f"2+{n}\n#### {n + 2}",
        }
        for n in range(20)
    ]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    overrides = (
        "batch.groups=2",
        "batch.micro_batch=0",
        "sampling.prompt_width=80",
        "sampling.max_new_tokens=8",
        "evaluation.problems=2",
        "evaluation.samples=4",
        "verifier.workers=1",
        f"model={model_folder()}",
        f"data.path={tmp_path}/rows.jsonl",
        "data.heldout_size=4",
        "steps=1",
        f"out={tmp_path}/out",
    )
    flags = [f"--config.{override}" for override in overrides]
    file = str(ROOT / "configs" / "gsm8k_tiny.py")
    monkeypatch.setattr(sys, "argv", ["train", "--config", file, *flags])
    run_main(main)
    shown = lines(tmp_path / "out" / "rollouts.jsonl")
    assert {record["prompt"] for record in shown} <= {
        row["question"] for row in rows[:16]
    }
    assert {record["id"].split(":")[:2] == ["gsm8k", "train"] for record in shown} == {
        True
    }
    assert "1 step, accuracy" in capsys.readouterr().out
