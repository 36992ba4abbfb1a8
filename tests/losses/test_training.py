"""Every variant drives a whole run on the embedded model, from a config file."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from jaxgrpo import losses
from jaxgrpo.config import load
from jaxgrpo.errors import UserError
from jaxgrpo.models import hf_folder
from jaxgrpo.train import train
from tests.losses.cases import VARIANTS
from tests.tiny_runs import config_file, make_config, share_programs

# Of two settings of the same objective, one.
SECOND_SETTINGS = (
    "dapo_overlong",
    "ppo_dual",
    "regularised_k2",
    "corrected_mask",
    "corrected_geometric",
    "dppo_kl",
    "trust_region_mean",
)
ONE_EACH = [name for name in VARIANTS if name not in SECOND_SETTINGS]


@pytest.mark.parametrize("name", ONE_EACH)
def test_ten_steps(name, tmp_path, monkeypatch):
    share_programs(monkeypatch)
    old_logprobs = "trainer" if "corrected" in name else "sampler"
    config = make_config(
        tmp_path,
        "steps=10",
        "batch.micro_batch=4",
        f"batch.old_logprobs={old_logprobs}",
        "evaluation.problems=0",
        "save_every=10",
        "compute.scan_layers=True",
        f"model={hf_folder.EMBEDDED}",
    )
    config.objective = VARIANTS[name]
    steps = list(train(config))
    assert [values["step"] for values in steps] == list(range(1, 11))
    for values in steps:
        learning = [
            value
            for key, value in values.items()
            if key.startswith(("update/", "policy/"))
        ]
        assert np.isfinite(learning).all()
    assert any(values["update/grad_norm"] > 0 for values in steps)
    assert {
        "policy/ratio_max",
        "policy/effective_sample_size",
        "policy/entropy",
        "policy/kl",
    } <= set(steps[0])


def test_a_config_file_sets_any_objective_and_the_command_line_its_numbers(tmp_path):
    path = Path(config_file(tmp_path))
    setting = (
        "objective=losses.Regularised(losses.DAPO(), kl=0.1, entropy=0.01),\n        "
    )
    text = path.read_text().replace("data=", setting + "data=", 1)
    path.write_text("from jaxgrpo import losses\n" + text)
    changes = ("objective.clip_high=0.35", "estimator=k2", "kl=none")
    config = load(str(path), [f"--config.objective.{change}" for change in changes])
    assert config.objective.objective.clip_high == 0.35
    assert config.objective.kl is None
    assert config.objective.estimator == "k2"
    assert config.objective.entropy == 0.01
    with pytest.raises(UserError, match="k1 cannot be a loss"):
        load(str(path), ["--config.objective.estimator=k1"])


def test_an_objective_of_groups_of_another_size_is_refused(tmp_path):
    inner = losses.ScaleRL(group_size=3)
    objective = losses.Regularised(inner, kl=0.1)
    config = dataclasses.replace(make_config(tmp_path), objective=objective)
    with pytest.raises(UserError, match=r"ScaleRL.group_size=3, and batch.group_size"):
        next(train(config))


def test_coefficients_move_from_step_to_step_and_survive_a_stop(tmp_path, monkeypatch):
    share_programs(monkeypatch)
    objective = losses.EntropyTargeted(
        losses.GRPO(kl=0.0), target=100.0, rate=1e-3, max_weight=2.5e-3
    )
    config = dataclasses.replace(
        make_config(tmp_path, "evaluation.problems=0"), objective=objective
    )
    for values in train(config):
        if values["step"] == 2:
            break
    records = [values, *train(config)]
    # The entropy never reaches the target: the weight of the bonus goes up to its bound.
    weights = [record["objective/weight"] for record in records]
    assert weights == pytest.approx([1e-3, 2e-3, 2.5e-3])
    seen = [record["policy/entropy"] for record in records]
    last = [record["objective/last_entropy"] for record in records]
    assert last[1:] == seen[:-1]


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        (losses.DPPO(threshold=0.0), "objective.threshold is 0.0: it must be above 0"),
        (
            losses.TopEntropy(losses.GRPO(), 1.5),
            "fraction is 1.5: it must be at most 1",
        ),
        (
            losses.Distilled(losses.GRPO(), -1.0),
            "weight is -1.0: it must be at least 0",
        ),
        (
            losses.OffPolicyMasked(losses.GRPO(), 0.0),
            "threshold is 0.0: it must be above",
        ),
        (losses.ScaleRL(8, max_ratio=0.0), "max_ratio is 0.0: it must be above 0"),
    ],
)
def test_bounds_stand_beside_the_coefficients(objective, says, tmp_path):
    config = dataclasses.replace(make_config(tmp_path), objective=objective)
    with pytest.raises(UserError, match=says):
        next(train(config))


def test_a_correction_without_anything_to_correct_is_refused(tmp_path):
    config = dataclasses.replace(make_config(tmp_path), objective=VARIANTS["corrected"])
    with pytest.raises(UserError, match=r"set batch.old_logprobs to 'trainer'"):
        next(train(config))
