"""The comparisons of settings over seeds (tools/compare)."""

import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest

from jaxgrpo.config import checks
from jaxgrpo.errors import UserError
from tools.compare import runs, table
from tools.compare.__main__ import write
from tools.compare.arms import COMPARISONS, TEACHERS, check_ready, teacher_folder
from tools.compare.table import Result, interval, markdown

RESULT = Result(
    before=0.5, after=0.6, tokens=2e6, clipped=0.0, words=0.9, entropy=0.2, seconds=60
)


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_arm_is_a_config_that_can_be_run(name, tmp_path):
    """Each has a folder of its own, and settings that hold together."""
    arms = COMPARISONS[name](tmp_path)
    folders = [arm.folder for arm in arms]
    assert len(set(folders)) == len(folders)
    for arm in arms:
        checks.validate(arm.config)


def test_objectives_are_compared_at_the_same_work(tmp_path):
    """The arms differ in the objective and in the number of updates of a batch, and else in
    nothing."""
    arms = COMPARISONS["objectives"](tmp_path)
    first = arms[0].config
    for arm in arms:
        batch = replace(arm.config.batch, updates=1)
        same = replace(arm.config, objective=first.objective, batch=batch)
        assert same == first
    assert {arm.config.batch.updates for arm in arms} == {1, 4}


def test_an_interval_holds_the_mean_as_often_as_it_says():
    """Of many samples of five, the interval covers the true mean in 95 %."""
    generator = np.random.default_rng(0)
    samples = generator.normal(0.3, 0.1, size=(4000, 5))
    covered = [abs(mean - 0.3) <= half for mean, half in map(interval, samples)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.01)
    mean, half = interval([0.2])
    assert mean == 0.2
    assert math.isnan(half)


def test_differences_are_seed_by_seed():
    """Where each seed gains the same over the first arm, the difference has no spread."""
    gains = {0: 0.1, 1: 0.3, 2: 0.2}
    results = {
        "first": {seed: replace(RESULT, after=0.5 + g) for seed, g in gains.items()},
        "second": {seed: replace(RESULT, after=0.51 + g) for seed, g in gains.items()},
    }
    first, second = markdown(results).splitlines()[2:]
    assert [cell.strip() for cell in first.split("|")[1:6]] == [
        "first",
        "3",
        "0.700 ± 0.248",
        "+0.200 ± 0.248",
        "",
    ]
    assert second.split("|")[5].strip() == "+0.010 ± 0.000"


def _finished(folder, steps):
    """Writes what a finished run leaves."""
    folder.mkdir(parents=True)
    after = {"language/target_word_ratio": 0.9}
    summary = {"accuracy_before": 0.5, "accuracy_after": 0.7, "seconds": 60.0}
    (folder / "summary.json").write_text(json.dumps({**summary, "after": after}))
    lines = [json.dumps({"step": number, **step}) for number, step in enumerate(steps)]
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))


def test_a_result_is_read_from_what_the_run_wrote(tmp_path):
    """Tokens are a rate times a time; a step without an update has no clip fraction."""
    (task, *_) = runs.make_tasks("in_flight", [0], tmp_path)
    assert not task.is_done
    sampled = {"rollout/tokens_per_s": 100.0, "time/rollout": 2.0, "time/step": 3.0}
    clipped = {"policy/clipped_low": 0.25, "policy/clipped_high": 0.5}
    updated = {**sampled, **clipped, "policy/entropy": 0.3}
    _finished(task.folder, [updated, sampled])
    result = table.read_result(task)
    assert task.is_done
    assert result.tokens == 400.0
    assert result.seconds == 3.0
    assert result.clipped == 0.75
    assert result.entropy == 0.3
    assert result.gain == pytest.approx(0.2)
    write([task], tmp_path / "to", "in_flight")
    assert (
        "| on policy | 1 | 0.700 | +0.200 |"
        in (tmp_path / "to/in_flight.md").read_text()
    )
    assert (tmp_path / "to/in_flight.png").stat().st_size > 1000


def test_runs_that_are_there_are_not_made_again(tmp_path, monkeypatch):
    """And one that fails ends the comparison with a line that says where its output is."""
    tasks = runs.make_tasks("in_flight", [0], tmp_path)
    for task in tasks[1:]:
        _finished(task.folder, [])
    # A program that ends at once and says that it failed.
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(UserError, match=r"on policy, seed 0 failed; see .*log.txt"):
        list(runs.run_all(tasks, 2, print))
    monkeypatch.setattr(sys, "executable", "true")
    assert [task.arm.name for task in runs.run_all(tasks, 2, print)] == ["on policy"]


def test_cores_are_divided():
    """No core is in two parts while there are enough of them."""
    (all_cores,) = runs._divide_cores(1)
    parts = runs._divide_cores(len(all_cores))
    assert sorted(core for part in parts for core in part) == all_cores
    assert all(runs._divide_cores(len(all_cores) + 1))


def test_a_teacher_that_is_missing_is_asked_for(tmp_path):
    """With the command that makes it, which names the folder where it is looked for."""
    for name in TEACHERS:
        with pytest.raises(UserError, match="there is no teacher in") as error:
            check_ready("distillation", tmp_path)
        folder = teacher_folder(tmp_path, name)
        assert str(error.value).endswith(str(folder))
        folder.mkdir()
    check_ready("distillation", tmp_path)
    check_ready("objectives", tmp_path / "nothing")
