"""Laws of the forecasts beside the planner's bounds."""

import dataclasses
import json

import jax
import pytest

from jaxgrpo.config import load
from jaxgrpo.plan import (
    chips,
    command,
    compiled,
    forecast,
    planner,
    report,
    times,
    trial,
)
from tests import tiny_runs

ASSUMED = times.Assumptions(4, 1.0)


@pytest.fixture(scope="module")
def config_path(tmp_path_factory):
    return tiny_runs.config_file(tmp_path_factory.mktemp("forecast"))


@pytest.fixture(scope="module")
def plan(config_path):
    config = load(config_path)
    target = planner.make_target(config, None, None)
    return planner.make_plan(config, target, compiled.Compiler())


@pytest.mark.parametrize("chip", chips.CHIPS.values(), ids=chips.CHIPS)
def test_a_published_forecast_is_above_the_bound(plan, chip):
    bounds = times.step_times(plan.config, plan.inputs, plan.compiled, chip, ASSUMED)
    published = forecast.published_forecast(plan, chip, ASSUMED)
    assert published.seconds.keys() == bounds.keys()
    for name, (fewest, most) in published.seconds.items():
        assert bounds[name]["seconds"] < fewest < most


def test_a_chip_without_published_training_takes_the_range_of_all(plan):
    forecasts = [
        forecast.published_forecast(plan, chip, ASSUMED)
        for chip in chips.CHIPS.values()
    ]
    assert "training on v5e" in forecasts[0].basis
    assert "39 to 71% of the peak FLOP/s" in forecasts[-1].basis
    assert "training on other TPUs" in forecasts[-1].basis


def test_a_measured_forecast_is_calls_times_their_seconds(plan):
    once = dict.fromkeys(plan.compiled, 2.0)
    calls = times.calls_per_step(plan.config, plan.inputs, ASSUMED)
    measured = forecast.measured_forecast(plan, once, ASSUMED)
    for name, (fewest, most) in measured.seconds.items():
        assert fewest == 2.0 * calls[name]
        # Slots wait for the longest row, of 8 tokens where 4 are assumed.
        assert most == (2 * fewest if name == "decode" else fewest)
    total = sum(fewest for fewest, _ in measured.seconds.values())
    assert measured.total[0] == total


def test_a_row_needs_as_many_steps_as_it_has_tokens(plan):
    """More slots than rows do not make a step of decode shorter."""
    slots = plan.inputs.programs.slot_counts[0]
    more = dataclasses.replace(
        plan.inputs.programs, slot_counts=(4 * slots,), ring_lengths=(8,)
    )
    inputs = dataclasses.replace(plan.inputs, programs=more)
    calls = times.calls_per_step(plan.config, inputs, ASSUMED)
    assert calls["decode"] == ASSUMED.mean_new


@pytest.mark.parametrize("flags", [[], ["--config.batch.pack=96"]])
def test_every_program_is_timed_in_one_version(config_path, flags):
    config = load(config_path, flags)
    target = planner.make_target(config, None, None)
    made = planner.make_plan(config, target, compiled.Compiler())
    programs = {name: call.program for name, call in made.inputs.calls.items()}
    # Other tests may have compiled versions of the same function.
    before = {name: program.compiled for name, program in programs.items()}
    seconds = trial.time_calls(made)
    assert seconds.keys() == made.compiled.keys()
    for name in seconds:
        assert programs[name].compiled <= before[name] + 1
    assert all(value > 0 for value in seconds.values())


def test_all_slots_are_busy_while_a_decode_is_timed(plan):
    call = plan.inputs.calls["decode"]
    arguments = jax.tree.map(trial._zeros, call.arguments)
    _, output = call.program(*trial._all_busy(*arguments))
    chunk = output.tokens.shape[1]
    assert int(output.num_steps) > 1
    assert int(output.num_steps) <= chunk


def test_what_is_bound_and_what_forecast_is_said(
    monkeypatch, capsys, plan, config_path
):
    monkeypatch.setattr(command, "make_plan", lambda *_: plan)
    monkeypatch.setattr(
        command, "time_calls", lambda _: dict.fromkeys(plan.compiled, 1.0)
    )
    command.main(["--config", config_path])
    shown = capsys.readouterr().out
    assert "no bound: peak figures of these devices are not known" in shown
    assert "a GRPO step, forecast: " in shown
    assert "each program was timed here just now" in shown

    v5e = chips.CHIPS["v5e"]
    elsewhere = dataclasses.replace(plan.target, chip=v5e, is_here=False)
    planned = dataclasses.replace(plan, target=elsewhere)
    monkeypatch.setattr(command, "make_plan", lambda *_: planned)
    command.main(["--config", config_path])
    shown = capsys.readouterr().out
    assert "a GRPO step, bound: " in shown
    assert "not measured; at 38 to 52% of the rate of HBM" in shown


def test_json_holds_the_forecast(plan):
    measured = forecast.measured_forecast(plan, {"update": 3.0}, ASSUMED)
    shown = json.loads(report.plan_json(plan, [], ASSUMED, measured))["forecast"]
    assert shown["seconds"] == {"update": [3.0, 3.0]}
