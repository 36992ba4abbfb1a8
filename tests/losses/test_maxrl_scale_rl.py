"""Laws of MaxRL and of ScaleRL: what their advantages and their token weights are for."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo import losses
from jaxgrpo.losses import advantages, token_weights
from tests.losses.cases import G, P, gradient, loss_of, make_inputs

NAN = float("nan")
LOGITS = jnp.array([0.3, -0.5, 1.1])
"""A policy over three answers, of which the first is right."""


def pass_at_k(logits, k):
    """Computes the probability that one of k answers is right."""
    return 1 - (1 - jax.nn.softmax(logits)[0]) ** k


def expected_gradient(objective, group_size):
    """Computes the exact expected gradient of the loss, over all groups of answers."""

    def loss(logits, answers):
        logprobs = jax.nn.log_softmax(logits)[answers][:, None]  # [G, 1]
        rewards = (answers == 0).astype(jnp.float32)[None]  # [1, G]
        constant_logprobs = jax.lax.stop_gradient(logprobs)
        inputs = losses.TokenInputs(
            logprobs=logprobs,
            old_logprobs=constant_logprobs,
            ref_logprobs=constant_logprobs,
            advantages=objective.advantages(rewards).reshape(-1),
            mask=jnp.ones(logprobs.shape, bool),
        )
        return loss_of(objective, inputs)

    answers = jnp.array(list(itertools.product(range(3), repeat=group_size)))
    probabilities = jax.nn.softmax(LOGITS)[answers].prod(axis=1)
    return probabilities @ jax.vmap(jax.grad(loss), (None, 0))(LOGITS, answers)


@pytest.mark.parametrize("group_size", [2, 3, 4])
def test_maxrl_climbs_the_first_terms_of_the_log_likelihood(group_size):
    def terms_of_log_likelihood(logits):
        return sum(pass_at_k(logits, k) / k for k in range(1, group_size))

    np.testing.assert_allclose(
        expected_gradient(losses.MaxRL(), group_size),
        -jax.grad(terms_of_log_likelihood)(LOGITS),
        atol=1e-6,
    )


def test_maxrl_climbs_pass_at_1_alone_with_two_completions_as_dr_grpo_does():
    found = expected_gradient(losses.MaxRL(), 2)
    expected = -jax.grad(lambda logits: pass_at_k(logits, 1))(LOGITS)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # Dr. GRPO subtracts a mean that the completion is part of: (G - 1) / G of the gradient.
    dr_grpo = expected_gradient(losses.DrGRPO(budget=1.0), 2)
    np.testing.assert_allclose(2 * dr_grpo, expected, atol=1e-6)


def test_advantages_over_the_mean():
    rewards = jnp.array([[1.0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, NAN, NAN, 0]])
    expected = [[3, -1, -1, -1], [1 / 3, 1 / 3, 1 / 3, -1], [0] * 4, [1, 0, 0, -1]]
    np.testing.assert_allclose(advantages.over_mean(rewards), expected, rtol=1e-6)


def test_advantages_over_the_mean_do_not_depend_on_the_rewards_scale():
    rewards = jnp.array([[0.0, 1, 3, 7]])
    np.testing.assert_allclose(
        advantages.over_mean(5 * rewards), advantages.over_mean(rewards), rtol=1e-5
    )


def test_below_zero_there_is_no_mean_to_divide_by():
    assert (advantages.over_mean(jnp.array([[-1.0, -3.0], [1.0, -1.0]])) == 0).all()


def test_advantages_over_the_batchs_deviation():
    # centred: -1, 1 and -3, 3; their deviation is sqrt(5)
    rewards = jnp.array([[0.0, 2, NAN], [4, 10, NAN]])
    expected = np.array([[-1, 1, 0], [-3, 3, 0]]) / 5**0.5
    for objective in (losses.ScaleRL(3), losses.ReinforcePlusPlusBaseline()):
        np.testing.assert_allclose(
            objective.advantages(rewards), expected, rtol=1e-6, atol=1e-6
        )


def test_prompts_count_alike_however_long_their_completions_are():
    mask = make_inputs().mask
    found = token_weights.per_prompt(mask, G).reshape(P, -1)
    np.testing.assert_allclose(found.sum(axis=1), 1 / P, rtol=1e-6)
    # Within a prompt, tokens count alike.
    for row, chosen in zip(found, mask.reshape(P, -1), strict=True):
        np.testing.assert_allclose(row[chosen], 1 / P / chosen.sum(), rtol=1e-6)


def test_a_prompt_without_tokens_is_not_counted():
    mask = jnp.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0]], bool)
    found = token_weights.per_prompt(mask, 2)
    np.testing.assert_allclose(
        found, [[0.25] * 3, [0.25, 0, 0], [0] * 3, [0] * 3], rtol=1e-6
    )
    assert (token_weights.per_prompt(jnp.zeros((4, 3), bool), 2) == 0).all()


def test_weights_of_prompts_are_those_of_rows_and_of_tokens_at_the_ends():
    mask = make_inputs().mask
    np.testing.assert_allclose(
        token_weights.per_prompt(mask, 1), token_weights.per_sequence(mask), rtol=1e-6
    )
    np.testing.assert_allclose(
        token_weights.per_prompt(mask, len(mask)),
        token_weights.per_token(mask),
        rtol=1e-6,
    )


def test_permuting_prompts_permutes_the_gradient_and_nothing_else():
    objective = losses.ScaleRL(G)
    inputs = make_inputs(log_ratio=None)
    order = np.concatenate([np.arange(G, 2 * G), np.arange(G)])
    moved = losses.TokenInputs(*(array[order] for array in inputs))
    np.testing.assert_allclose(
        loss_of(objective, moved), loss_of(objective, inputs), rtol=1e-5
    )
    np.testing.assert_allclose(
        gradient(objective, moved), gradient(objective, inputs)[order], atol=1e-7
    )


def test_scale_rl_bounds_the_ratio_from_above_alone():
    for log_ratio, weight in ((-3.0, np.exp(-3)), (1.0, np.exp(1)), (3.0, 5.0)):
        inputs = make_inputs(log_ratio=log_ratio)
        objective = losses.ScaleRL(G, max_ratio=5.0)
        token_weight = objective.token_weights(inputs.mask)
        np.testing.assert_allclose(
            gradient(objective, inputs),
            -weight * token_weight * inputs.advantages[:, None],
            rtol=1e-4,
        )
