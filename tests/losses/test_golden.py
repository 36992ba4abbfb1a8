"""Our losses, gradients and advantages against TRL's own, which tools/golden_trl.py wrote; 1e-5.

Where the two differ on purpose, the reason stands in DIFFERENT or OTHER_ADVANTAGES, and a test holds that they do.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo import losses
from jaxgrpo.losses import Corrected, Regularised, TokenInputs, advantages, batch_loss
from jaxgrpo.losses import token_weights as weights

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "trl.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}
INPUTS = GOLDEN["inputs"]
LENGTHS, FINISHED = np.array(INPUTS["lengths"]), ~np.array(INPUTS["truncated"])

DIFFERENT = {
    "rloo": "TRL clips the ratio of whole completions as PPO does; the paper (2402.14740) is REINFORCE, without a ratio",
    "rloo, clip higher": "the same",
    "rloo; truncated masked": "the same",
    "gspo; kl corrected": "TRL multiplies the KL by the sequence's ratio; the token's makes its gradient unbiased (2512.02556)",
    "gspo, the paper's range; kl corrected": "the same",
    "gspo; delta": "TRL bounds sequences' ratios, too; dual clipping (1912.09729) is of tokens, and here of PPO",
}

OTHER_ADVANTAGES = {
    "grpo group": "TRL divides by the sample deviation + 1e-4; here by the population's, and equal rewards give exactly 0",
    "grpo batch": "TRL divides by the deviation of the raw rewards of the batch, REINFORCE++ by that of the centred ones",
    "rloo normalised": "TRL normalises with the sample deviation + 1e-4 over the batch after leaving one out: no paper's",
}

ROWS_COUNTED = ("grpo", "gspo", "dr_grpo")
"""Where truncated completions are left out, TRL still divides by their number; here rows that count nothing are not counted."""


def objective_of(s: dict):
    """(objective, what its weights are made by) for TRL's settings."""
    low, high = s["epsilon"], s["epsilon_high"]
    if s["trainer"] == "RLOOTrainer":
        return losses.RLOO(), losses.RLOO()
    if s["importance_sampling_level"] == "sequence":
        inner = losses.GSPO(low, high)
    else:
        inner = {
            "grpo": losses.GRPO(low, high, kl=0.0),
            "bnpo": losses.DAPO(low, high),
            "dapo": losses.DAPO(low, high),
            "dr_grpo": losses.DrGRPO(float(s["max_completion_length"]), low, high),
            "cispo": losses.CISPO(clip_high=high - 1),
        }[s["loss_type"]]
    objective = (
        losses.PPO(low, high, s["delta"])
        if s["delta"] and not isinstance(inner, losses.GSPO)
        else inner
    )
    if s["use_vllm"]:
        level, mode = s["vllm_importance_sampling_mode"].split("_")
        bounds = {
            "high": s["vllm_importance_sampling_clip_max"],
            "low": s["vllm_importance_sampling_clip_min"] or 0.0,
        }
        objective = Corrected(objective, mode, level, **bounds)
    if s["beta"]:
        objective = Regularised(
            objective, kl=s["beta"], estimator="unbiased" if s["use_bias_correction_kl"] else "k3"
        )
    return objective, inner


@jax.jit
def value_and_gradient(objective, weights, inputs):
    loss = lambda logprobs: batch_loss(objective, weights, inputs._replace(logprobs=logprobs))[0]
    return jax.value_and_grad(loss)(inputs.logprobs)


def ours(s: dict):
    """Our loss and gradient for TRL's settings."""
    objective, weigh = objective_of(s)
    arrays = {
        name: jnp.array(INPUTS[name])
        for name in ("logprobs", "old_logprobs", "ref_logprobs", "sampler_logprobs")
    }
    if s["on_policy"]:
        arrays["old_logprobs"] = arrays["logprobs"]
    mask = jnp.arange(arrays["logprobs"].shape[1]) < LENGTHS[:, None]
    factor = 1.0
    if s["mask_truncated_completions"]:
        mask = weights.without_truncated(mask, jnp.array(FINISHED))
        factor = FINISHED.mean() if s.get("loss_type", "grpo") in ROWS_COUNTED else 1.0
    inputs = TokenInputs(**arrays, advantages=jnp.array(INPUTS["advantages"]), mask=mask)
    loss, gradient = value_and_gradient(objective, weigh.weights(mask), inputs)
    return loss * factor, gradient * factor


@pytest.mark.parametrize("name", [name for name in CASES if name not in DIFFERENT])
def test_losses_and_gradients_are_those_of_trl(name):
    case = CASES[name]
    loss, gradient = ours(case["settings"])
    np.testing.assert_allclose(gradient, case["gradient"], rtol=1e-5, atol=1e-5)
    if not name.startswith(
        "rloo"
    ):  # on policy the gradients are the same, the losses are not: see DIFFERENT
        np.testing.assert_allclose(loss, case["loss"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if name in DIFFERENT])
def test_what_differs_on_purpose_does(name):
    _, gradient = ours(CASES[name]["settings"])
    assert np.abs(gradient - np.array(CASES[name]["gradient"])).max() > 1e-4


def with_reference(rewards, beta):
    """RLOO's advantages of rewards that pay for a KL."""
    groups = lambda array: jnp.array(array).reshape(*rewards.shape, -1)
    mask = groups(np.arange(len(INPUTS["logprobs"][0])) < LENGTHS[:, None])
    kl = groups(
        np.array(INPUTS["old_logprobs"], np.float32) - np.array(INPUTS["ref_logprobs"], np.float32)
    )
    return losses.RLOO(kl=beta).advantages(rewards, mask, kl)


MADE = {
    "grpo none": lambda rewards, _: advantages.centred(rewards),
    "grpo group": lambda rewards, _: advantages.standardised(rewards),
    "rloo": lambda rewards, _: losses.RLOO().advantages(rewards),
    "rloo kl": lambda rewards, settings: with_reference(rewards, settings["beta"]),
    "rloo normalised": lambda rewards, _: advantages.batch_normalised(
        advantages.leave_one_out(rewards)
    ),
    "grpo batch": lambda rewards, _: advantages.batch_normalised(advantages.centred(rewards)),
}


def advantages_of(case):
    """(kind, the rewards, ours, TRL's), [P, G]."""
    kind, size = case["name"].split(";")[0], INPUTS["group_size"]
    rewards = jnp.array(np.array(INPUTS["rewards"][case["rewards"]], np.float32)).reshape(-1, size)
    return (
        kind,
        rewards,
        MADE[kind](rewards, case["settings"]),
        np.array(case["advantages"]).reshape(-1, size),
    )


@pytest.mark.parametrize("case", GOLDEN["advantages"], ids=lambda case: case["name"])
def test_advantages_are_those_of_trl(case):
    kind, rewards, found, theirs = advantages_of(case)
    if kind not in OTHER_ADVANTAGES:
        np.testing.assert_allclose(found, theirs, rtol=1e-5, atol=1e-5)
        return
    assert np.abs(found - theirs).max() > 1e-3
    if kind == "grpo group":  # the same, up to what OTHER_ADVANTAGES says
        present = (~np.isnan(rewards)).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(
            found * np.sqrt(np.maximum(present - 1, 0) / present), theirs, rtol=1e-3, atol=1e-5
        )
