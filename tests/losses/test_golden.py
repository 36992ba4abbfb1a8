"""Losses, gradients and advantages against TRL's own, which tools/golden_trl.py wrote; 1e-5.

Where the two differ on purpose, the reason stands in DIFFERENT or OTHER_ADVANTAGES, and a test
holds that they do.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo import losses
from jaxgrpo.losses import (
    Corrected,
    Regularised,
    TokenInputs,
    advantages,
    batch_loss,
    token_weights,
)

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "trl.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}
INPUTS = GOLDEN["inputs"]
LENGTHS = np.array(INPUTS["lengths"])
FINISHED = ~np.array(INPUTS["truncated"])

DIFFERENT = {
    "rloo": "TRL clips the ratio of whole completions as PPO does; the paper (2402.14740) is "
    "REINFORCE, without a ratio",
    "rloo, clip higher": "the same",
    "rloo; truncated masked": "the same",
    "gspo; kl corrected": "TRL multiplies the KL by the sequence's ratio; the token's makes its "
    "gradient unbiased (2512.02556)",
    "gspo, the paper's range; kl corrected": "the same",
    "gspo; delta": "TRL bounds sequences' ratios, too; dual clipping (1912.09729) is of tokens, "
    "and here of PPO",
}

OTHER_ADVANTAGES = {
    "grpo group": "TRL divides by the sample deviation + 1e-4; here by the population's, and equal "
    "rewards give exactly 0",
    "grpo batch": "TRL divides by the deviation of the raw rewards of the batch, REINFORCE++ by "
    "that of the centred ones, and so does ScaleRL",
    "rloo normalised": "TRL normalises with the sample deviation + 1e-4 over the batch after "
    "leaving one out: no paper's",
}

ROWS_COUNTED = ("grpo", "gspo", "dr_grpo")
"""Losses of TRL that, where truncated completions are left out, are still divided by their number.
Here rows that count nothing are not counted."""


def inner_objective(s: dict):
    """Returns the objective of TRL's settings, without corrections and KL; RLOO aside."""
    low, high = s["epsilon"], s["epsilon_high"]
    if s["importance_sampling_level"] == "sequence":
        return losses.GSPO(low, high)
    if s["loss_type"] == "grpo":
        return losses.GRPO(low, high, kl=0.0)
    if s["loss_type"] in ("bnpo", "dapo"):
        return losses.DAPO(low, high)
    if s["loss_type"] == "dr_grpo":
        return losses.DrGRPO(float(s["max_completion_length"]), low, high)
    assert s["loss_type"] == "cispo"
    return losses.CISPO(clip_high=high - 1)


def objective_of(s: dict):
    """Returns the objective of TRL's settings, and the one that makes its token weights."""
    if s["trainer"] == "RLOOTrainer":
        return losses.RLOO(), losses.RLOO()
    inner = inner_objective(s)
    objective = inner
    if s["delta"] and not isinstance(inner, losses.GSPO):
        objective = losses.PPO(s["epsilon"], s["epsilon_high"], s["delta"])
    if "off_policy_mask_threshold" in s:
        threshold = s["off_policy_mask_threshold"]
        objective = losses.OffPolicyMasked(objective, threshold)
    if "top_entropy_quantile" in s:
        objective = losses.TopEntropy(objective, s["top_entropy_quantile"])
    if s["use_vllm"]:
        level, mode = s["vllm_importance_sampling_mode"].split("_")
        objective = Corrected(
            objective,
            mode,
            level,
            high=s["vllm_importance_sampling_clip_max"],
            low=s["vllm_importance_sampling_clip_min"] or 0.0,
        )
    if s["beta"]:
        estimator = "unbiased" if s["use_bias_correction_kl"] else "k3"
        objective = Regularised(objective, kl=s["beta"], estimator=estimator)
    return objective, inner


@jax.jit
def value_and_gradient(objective, weights, inputs):
    """Computes the loss, and its gradient for the policy's log-probabilities."""

    def loss(logprobs):
        return batch_loss(objective, weights, inputs._replace(logprobs=logprobs))[0]

    return jax.value_and_grad(loss)(inputs.logprobs)


def our_loss(s: dict):
    """Computes our loss and gradient for TRL's settings."""
    objective, weighing_objective = objective_of(s)
    arrays = {
        name: jnp.array(INPUTS[name])
        for name in ("logprobs", "old_logprobs", "ref_logprobs", "sampler_logprobs")
    }
    arrays["entropy"] = jnp.array(INPUTS["entropies"])
    if s["on_policy"]:
        arrays["old_logprobs"] = arrays["logprobs"]
    mask = jnp.arange(arrays["logprobs"].shape[1]) < LENGTHS[:, None]
    factor = 1.0
    if s["mask_truncated_completions"]:
        mask = token_weights.without_truncated(mask, jnp.array(FINISHED))
        if s.get("loss_type", "grpo") in ROWS_COUNTED:
            factor = FINISHED.mean()
    if "top_entropy_quantile" in s:
        factor *= share_of_top_entropy(s["top_entropy_quantile"], np.array(mask))
    inputs = TokenInputs(
        **arrays, advantages=jnp.array(INPUTS["advantages"]), mask=mask
    )
    weights = weighing_objective.token_weights(mask)
    loss, gradient = value_and_gradient(objective, weights, inputs)
    return loss * factor, gradient * factor


def share_of_top_entropy(fraction, mask):
    """Computes the share of the tokens that are left.

    TRL divides by the number of all of them, the paper (2506.01939, equation 6) by that of those
    that are left.
    """
    entropies = np.array(INPUTS["entropies"])[mask]
    return np.mean(entropies >= np.quantile(entropies, 1 - fraction))


@pytest.mark.parametrize("name", [name for name in CASES if name not in DIFFERENT])
def test_losses_and_gradients_are_those_of_trl(name):
    case = CASES[name]
    loss, gradient = our_loss(case["settings"])
    np.testing.assert_allclose(gradient, case["gradient"], rtol=1e-5, atol=1e-5)
    # RLOO's gradients are the same on policy, its losses are not: see DIFFERENT.
    if not name.startswith("rloo"):
        np.testing.assert_allclose(loss, case["loss"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if name in DIFFERENT])
def test_what_differs_on_purpose_does(name):
    _, gradient = our_loss(CASES[name]["settings"])
    assert np.abs(gradient - np.array(CASES[name]["gradient"])).max() > 1e-4


def with_reference(rewards, beta):
    """Computes RLOO's advantages of rewards that pay for a KL."""
    mask = np.arange(len(INPUTS["logprobs"][0])) < LENGTHS[:, None]
    old = np.array(INPUTS["old_logprobs"], np.float32)
    reference = np.array(INPUTS["ref_logprobs"], np.float32)
    shape = (*rewards.shape, -1)
    return losses.RLOO(kl=beta).advantages(
        rewards,
        jnp.array(mask).reshape(shape),
        jnp.array(old - reference).reshape(shape),
    )


ADVANTAGES = {
    "grpo none": lambda rewards, _: advantages.centred(rewards),
    "grpo group": lambda rewards, _: advantages.standardised(rewards),
    "rloo": lambda rewards, _: losses.RLOO().advantages(rewards),
    "rloo kl": lambda rewards, settings: with_reference(rewards, settings["beta"]),
    "rloo normalised": lambda rewards, _: advantages.batch_normalised(
        advantages.leave_one_out(rewards)
    ),
    "grpo batch": lambda rewards, _: advantages.centred_over_batch_deviation(rewards),
}
"""Our advantages for each kind of TRL's, from rewards [P, G] and TRL's settings."""


@pytest.mark.parametrize("case", GOLDEN["advantages"], ids=lambda case: case["name"])
def test_advantages_are_those_of_trl(case):
    kind = case["name"].split(";")[0]
    shape = (-1, INPUTS["group_size"])
    rewards = jnp.array(
        np.array(INPUTS["rewards"][case["rewards"]], np.float32)
    ).reshape(shape)
    ours = ADVANTAGES[kind](rewards, case["settings"])
    theirs = np.array(case["advantages"]).reshape(shape)
    if kind not in OTHER_ADVANTAGES:
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
        return
    assert np.abs(ours - theirs).max() > 1e-3
    if kind == "grpo group":
        # The same, up to what OTHER_ADVANTAGES says.
        present = (~np.isnan(rewards)).sum(axis=1, keepdims=True)
        sample_over_population = np.sqrt(np.maximum(present - 1, 0) / present)
        np.testing.assert_allclose(
            ours * sample_over_population, theirs, rtol=1e-3, atol=1e-5
        )
