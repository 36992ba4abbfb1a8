"""Laws of objectives that look at entropy, of coefficients that move, and of distillation."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo import losses
from tests.losses.cases import (
    VARIANTS,
    B,
    T,
    gradient,
    loss_of,
    make_inputs,
    metrics_of,
)

FULL = jnp.ones((B, T), bool)


# 1. Tokens of high entropy.


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 1.0])
def test_the_tokens_that_are_left_are_those_of_the_highest_entropy(fraction):
    inputs = make_inputs(log_ratio=None)._replace(mask=FULL)
    # Without a clip every token would have its gradient.
    found = gradient(losses.TopEntropy(losses.CISPO(), fraction), inputs)
    kept = found != 0
    # 48 tokens, none of which has another's entropy.
    assert kept.sum() == math.ceil(fraction * B * T)
    if fraction < 1:
        assert inputs.entropy[kept].min() > inputs.entropy[~kept].max()
    np.testing.assert_allclose(
        metrics_of(losses.TopEntropy(losses.CISPO(), fraction), inputs)[
            "policy/top_entropy"
        ],
        kept.mean(),
        rtol=1e-6,
    )


def test_the_loss_is_the_mean_over_the_tokens_that_are_left():
    """Equation 6 of arXiv 2506.01939."""
    inputs = make_inputs(log_ratio=None)
    objective = losses.TopEntropy(losses.DAPO(), fraction=0.3)
    advantages = jnp.broadcast_to(inputs.advantages[:, None], (B, T))
    token_loss, _ = losses.DAPO().token_loss(inputs._replace(advantages=advantages))
    quantile = np.quantile(inputs.entropy[inputs.mask], 0.7)
    left = inputs.mask & (inputs.entropy >= quantile)
    np.testing.assert_allclose(
        loss_of(objective, inputs), token_loss[left].mean(), rtol=1e-5
    )


def test_all_of_the_tokens_are_the_plain_objective():
    inputs = make_inputs(log_ratio=None)
    whole = losses.TopEntropy(losses.GRPO(), fraction=1.0)
    np.testing.assert_array_equal(
        gradient(whole, inputs), gradient(losses.GRPO(), inputs)
    )


def test_tokens_of_the_same_entropy_are_all_left():
    inputs = make_inputs(log_ratio=None)._replace(entropy=jnp.ones((B, T)))
    objective = losses.TopEntropy(losses.GRPO(), fraction=0.2)
    np.testing.assert_array_equal(
        gradient(objective, inputs), gradient(losses.GRPO(), inputs)
    )


def parts_of(objective, inputs, size):
    """Computes the sum of the losses of micro-batches of so many rows."""
    token_weights = objective.token_weights(inputs.mask)
    total = 0.0
    for start in range(0, B, size):
        rows = slice(start, start + size)
        part = losses.TokenInputs(*(array[rows] for array in inputs))
        total += losses.batch_loss(objective, token_weights[rows], part)[0]
    return total


def test_micro_batches_of_the_same_entropies_add_up_and_others_need_not():
    objective = losses.TopEntropy(losses.DAPO(), fraction=0.4)
    inputs = make_inputs(log_ratio=None)._replace(mask=FULL)
    entropy = inputs.entropy.at[B // 2 :].set(inputs.entropy[: B // 2])
    alike = inputs._replace(entropy=entropy)
    half = B // 2
    np.testing.assert_allclose(
        parts_of(objective, alike, half), loss_of(objective, alike), rtol=1e-5
    )
    # Of the second half no token is among the highest of the batch.
    apart = inputs._replace(entropy=entropy.at[half:].multiply(0.01))
    found = parts_of(objective, apart, half)
    assert abs(found - loss_of(objective, apart)) > 1e-3


# 2. An entropy bonus that is driven to a target.

TARGETED = losses.EntropyTargeted(
    losses.GRPO(), target=0.5, weight=0.02, rate=0.01, max_weight=0.05
)


@pytest.mark.parametrize(
    ("entropy", "expected"), [(0.4, 0.03), (0.6, 0.01), (0.5, 0.02), (math.nan, 0.02)]
)
def test_the_weight_goes_towards_the_target(entropy, expected):
    assert TARGETED.next_weight(entropy) == pytest.approx(expected)


def test_the_weight_stays_between_0_and_the_largest():
    for entropy, end in ((0.0, 0.05), (9.0, 0.0)):
        objective = TARGETED
        for _ in range(20):
            objective = objective.after_step({"policy/entropy": entropy})
            assert 0 <= objective.weight <= 0.05
        assert objective.weight == end


@pytest.mark.parametrize("begins_at", [0.1, 0.9])
def test_entropy_comes_to_its_target_and_stays_near(begins_at):
    """The policy loses entropy in every step, and a bonus gives it some back."""
    entropy = begins_at
    objective = losses.EntropyTargeted(
        losses.GRPO(), target=0.5, rate=0.002, max_weight=0.2
    )
    seen = []
    for _ in range(400):
        bonus = objective.weight if objective.last_entropy <= objective.target else 0.0
        entropy = max(0.0, entropy - 0.005 + 0.1 * bonus)
        seen.append(entropy)
        objective = objective.after_step({"policy/entropy": entropy})
    assert all(abs(late - 0.5) < 0.05 for late in seen[-100:])


def entropy_gradient(objective, inputs):
    """Computes the gradient of the loss for the entropies, [B, T]."""
    return jax.grad(
        lambda entropy: loss_of(objective, inputs._replace(entropy=entropy))
    )(inputs.entropy)


def test_the_bonus_acts_up_to_the_target_alone():
    inputs = make_inputs(log_ratio=None)
    weights = TARGETED.token_weights(inputs.mask)
    for last_entropy, weight in ((0.0, 0.02), (0.5, 0.02), (0.51, 0.0)):
        objective = dataclasses.replace(TARGETED, last_entropy=last_entropy)
        np.testing.assert_allclose(
            entropy_gradient(objective, inputs), -weight * weights, atol=1e-9
        )


@pytest.mark.parametrize(
    "metrics",
    [{}, {"policy/entropy": math.nan}, {"policy/entropy": 0.0, "update/tokens": 0.0}],
)
def test_a_step_without_tokens_moves_nothing(metrics):
    assert TARGETED.after_step(metrics) == TARGETED


def test_a_move_compiles_nothing():
    inputs = make_inputs(log_ratio=None)
    loss_of(TARGETED, inputs)
    programs = loss_of._cache_size()
    moved = losses.after_step(TARGETED, {"policy/entropy": 0.1})
    assert moved != TARGETED
    assert all(type(leaf) is float for leaf in jax.tree.leaves(moved))
    loss_of(moved, inputs)
    assert loss_of._cache_size() == programs


# 3. Coefficients that move, wherever they are.


def test_what_moves_moves_inside_other_objectives():
    outer = losses.Regularised(TARGETED, kl=0.1)
    moved = losses.after_step(outer, {"policy/entropy": 0.1})
    assert moved.kl == 0.1
    assert moved.objective == TARGETED.after_step({"policy/entropy": 0.1})
    both = losses.EntropyTargeted(TARGETED, target=0.2)
    values = losses.moving_values(losses.after_step(both, {"policy/entropy": 0.3}))
    assert values == {
        "weight": 0.0,
        "last_entropy": 0.3,
        "objective.weight": pytest.approx(0.03),
        "objective.last_entropy": 0.3,
    }


def test_moving_values_come_back_from_a_checkpoint():
    begun = losses.Regularised(TARGETED, kl=0.1)
    moved = losses.after_step(begun, {"policy/entropy": 0.1})
    saved = json.loads(json.dumps(losses.moving_values(moved)))
    assert losses.with_moving_values(begun, saved) == moved
    with pytest.raises(ValueError, match="do not fit"):
        losses.with_moving_values(begun, {"weight": 0.1})


@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "entropy_targeted"])
def test_all_others_stay_as_they_are(name):
    objective = VARIANTS[name]
    assert losses.after_step(objective, {"policy/entropy": 0.1}) == objective
    assert losses.moving_values(objective) == {}
    assert losses.with_moving_values(objective, {}) == objective


# 4. Distillation from the reference.


def kl(logits, others):
    """Computes the exact KL(softmax(logits) || softmax(others))."""
    p, q = jax.nn.log_softmax(logits), jax.nn.log_softmax(others)
    return jnp.sum(jnp.exp(p) * (p - q))


def test_distillation_alone_goes_down_the_reverse_kl_to_the_teacher():
    """Exact, over all tokens that the student may write."""
    student = jnp.array([0.3, -0.5, 1.1, 0.0])
    teacher = jnp.array([1.0, 0.2, -0.3, 0.5])
    objective = losses.Distilled(losses.PPO(), reward_weight=0.0)
    old = jax.nn.log_softmax(student)[:, None]  # [tokens, 1]: each is a completion
    reference = jax.nn.log_softmax(teacher)[:, None]
    mask = jnp.ones((4, 1), bool)
    rewards = jnp.array([[1.0], [0.0], [0.0], [5.0]])  # [P, 1]
    advantages = objective.advantages(
        rewards, mask[:, None], (old - reference)[:, None]
    )

    def loss(logits):
        logprobs = jax.nn.log_softmax(logits)[:, None]
        inputs = losses.TokenInputs(logprobs, old, reference, advantages[:, 0], mask)
        # In the place of token weights: how probable each completion is.
        return losses.batch_loss(objective, jnp.exp(old), inputs)[0]

    np.testing.assert_allclose(
        jax.grad(loss)(student), jax.grad(kl)(student, teacher), atol=1e-6
    )


def test_rewards_and_the_teacher_add_up():
    rewards = jnp.array([[1.0, 0.0, 0.5]])
    mask = jnp.array([[[True, True], [True, False], [True, True]]])
    log_ratio = jnp.array([[[0.2, -0.1], [0.3, 9.0], [0.0, 0.4]]])
    inner = losses.DrGRPO(budget=2.0)
    plain = inner.advantages(rewards)[..., None] * mask
    for weight, reward_weight in ((0.0, 1.0), (0.5, 2.0), (1.0, 0.0)):
        found = losses.Distilled(inner, weight, reward_weight).advantages(
            rewards, mask, log_ratio
        )
        expected = reward_weight * plain - weight * jnp.where(mask, log_ratio, 0.0)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_advantages_of_tokens_are_distilled_as_they_are():
    rewards = jnp.array([[1.0, 0.0]])
    mask = jnp.ones((1, 2, 3), bool)
    log_ratio = jnp.arange(6.0).reshape(1, 2, 3) / 10
    inner = losses.ReinforcePlusPlus(kl=0.1)
    found = losses.Distilled(inner, 0.5).advantages(rewards, mask, log_ratio)
    expected = inner.advantages(rewards, mask, log_ratio) - 0.5 * log_ratio
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    objective = losses.Distilled(losses.GRPO(kl=0.0), reward_weight=0.0)
    mask = jnp.ones((1, 2, 3), bool)
    found = objective.advantages(jnp.array([[1.0, 0.0]]), mask, jnp.zeros((1, 2, 3)))
    assert (found == 0).all()
