"""Laws of objectives, advantages and weights, and examples worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo import losses
from jaxgrpo.losses import GRPO, TokenInputs, advantages, terms, weights
from jaxgrpo.losses.sft import Supervised

NAN = float("nan")


def make_inputs(seed=0, rows=4, width=6, log_ratio=0.0):
    rng = np.random.default_rng(seed)
    logprobs = -rng.uniform(0.1, 3, (rows, width)).astype(np.float32)
    lengths = rng.integers(1, width, rows)
    mask = np.arange(width) < lengths[:, None]
    ref = logprobs + rng.normal(size=(rows, width)).astype(np.float32) * 0.3
    gain = rng.normal(size=rows).astype(np.float32)
    arrays = (logprobs, logprobs - np.float32(log_ratio), ref, gain, mask)
    return TokenInputs(*map(jnp.asarray, arrays))


# Compiled once for all tests: one program for each objective and shape, where eager JAX compiles every operation.
standardised, centred = jax.jit(advantages.standardised), jax.jit(advantages.centred)
batch_loss, kl_k3 = jax.jit(losses.batch_loss), jax.jit(terms.kl_k3)


@jax.jit
def loss_of(objective, inputs):
    return losses.batch_loss(objective, objective.weights(inputs.mask), inputs)[0]


@jax.jit
def gradient(objective, inputs):
    return jax.grad(lambda logprobs: loss_of(objective, inputs._replace(logprobs=logprobs)))(inputs.logprobs)


def test_standardised_by_hand():
    # mean 0.25, population deviation sqrt(3)/4
    expected = [[-1 / 3**0.5, -1 / 3**0.5, 3**0.5, -1 / 3**0.5]]
    np.testing.assert_allclose(standardised(jnp.array([[0.0, 0, 1, 0]])), expected, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.3, -7.7, 1e-8])
def test_equal_rewards_give_exactly_zero(value):
    rewards = jnp.full((2, 8), value)
    assert (standardised(rewards) == 0).all()
    assert (centred(rewards) == 0).all()


def test_a_missing_reward_has_no_advantage_and_no_say():
    with_missing = standardised(jnp.array([[1.0, NAN, 0.0, 0.0], [NAN] * 4]))
    without = standardised(jnp.array([[1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(with_missing[0, jnp.array([0, 2, 3])], without[0], rtol=1e-6)
    assert with_missing[0, 1] == 0
    assert (with_missing[1] == 0).all()


def test_advantages_do_not_depend_on_the_rewards_scale_or_place():
    rewards = jnp.array([[0.0, 1, 3, 7]])
    scaled = standardised(5 * rewards + 2)
    np.testing.assert_allclose(scaled, standardised(rewards), rtol=1e-5)
    np.testing.assert_allclose(standardised(rewards[:, ::-1])[:, ::-1], standardised(rewards), rtol=1e-6)


def test_weights_sum_to_one_and_count_as_they_say():
    mask = jnp.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
    np.testing.assert_allclose(weights.per_sequence(mask), [[0.25, 0.25, 0, 0], [0.5, 0, 0, 0], [0] * 4])
    np.testing.assert_allclose(weights.per_token(mask), [[1 / 3, 1 / 3, 0, 0], [1 / 3, 0, 0, 0], [0] * 4], rtol=1e-6)
    for weigh in (weights.per_sequence, weights.per_token):
        assert (weigh(jnp.zeros((2, 3), bool)) == 0).all()


def test_grpo_by_hand():
    inputs = TokenInputs(
        logprobs=jnp.log(jnp.array([[0.5, 0.3]])),
        old_logprobs=jnp.log(jnp.array([[0.4, 0.3]])),
        ref_logprobs=jnp.log(jnp.array([[0.25, 0.3]])),
        advantages=jnp.array([2.0]),
        mask=jnp.array([[True, True]]),
    )
    # token 0: ratio 1.25 clipped at 1.2 -> -2.4; k3 = 0.5 - 1 + ln 2. token 1: ratio 1 -> -2; k3 = 0.
    expected = ((-2.4 + 0.1 * (0.5 - 1 + np.log(2))) + -2.0) / 2
    loss, figures = batch_loss(GRPO(0.2, 0.2, 0.1), GRPO().weights(inputs.mask), inputs)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(figures["policy/clipped"], 1.0)


def test_at_ratio_one_the_gradient_is_the_policy_gradient():
    inputs, objective = make_inputs(), GRPO(kl=0.0)
    expected = -objective.weights(inputs.mask) * inputs.advantages[:, None]
    np.testing.assert_allclose(gradient(objective, inputs), expected, atol=1e-6)


@pytest.mark.parametrize(("log_ratio", "sign"), [(1.0, 1), (-1.0, -1)])
def test_the_clipped_side_has_no_gradient(log_ratio, sign):
    inputs = make_inputs(log_ratio=log_ratio)
    found = gradient(GRPO(kl=0.0), inputs)
    clipped = jnp.sign(inputs.advantages) == sign
    assert (found[clipped] == 0).all()
    assert (found[~clipped][inputs.mask[~clipped]] != 0).all()


@pytest.mark.parametrize("objective", [GRPO(kl=0.1), Supervised()])
def test_what_is_masked_counts_nothing(objective):
    inputs = make_inputs()
    junk = [jnp.where(inputs.mask, array, 50.0 * i) for i, array in enumerate(inputs[:3])]
    dirty = TokenInputs(*junk, inputs.advantages, inputs.mask)
    np.testing.assert_allclose(loss_of(objective, dirty), loss_of(objective, inputs), rtol=1e-6)
    found = gradient(objective, dirty)
    assert np.isfinite(found).all()
    assert (found[~inputs.mask] == 0).all()


@pytest.mark.parametrize("objective", [GRPO(kl=0.1), Supervised()])
def test_micro_batches_add_up(objective):
    inputs = make_inputs()
    whole = objective.weights(inputs.mask)
    parts = [batch_loss(objective, whole[rows], TokenInputs(*(x[rows] for x in inputs)))[0] for rows in (slice(1), slice(1, 4))]
    np.testing.assert_allclose(sum(parts), loss_of(objective, inputs), rtol=1e-6)


def test_k3_is_never_negative_and_its_gradient_points_to_the_reference():
    inputs = make_inputs()
    kl = kl_k3(inputs.logprobs, inputs.ref_logprobs)
    assert (kl >= 0).all()
    assert (kl_k3(inputs.logprobs, inputs.logprobs) == 0).all()
    slope = jax.grad(lambda p: kl_k3(p, inputs.ref_logprobs).sum())(inputs.logprobs)
    np.testing.assert_array_equal(jnp.sign(slope), jnp.sign(inputs.logprobs - inputs.ref_logprobs))


def test_k3_is_unbiased_on_policy():
    policy, reference = jnp.array([0.7, 0.2, 0.1]), jnp.array([0.2, 0.5, 0.3])
    exact = jnp.sum(policy * jnp.log(policy / reference))
    estimate = jnp.sum(policy * kl_k3(jnp.log(policy)[None], jnp.log(reference)[None])[0])
    np.testing.assert_allclose(estimate, exact, rtol=1e-5)


def test_coefficients_are_traced():
    compiled = jax.jit(loss_of)
    values = [float(compiled(GRPO(kl=kl), make_inputs())) for kl in (0.0, 0.5)]
    assert compiled._cache_size() == 1
    assert values[0] != values[1]


def test_what_people_import():
    assert {"GRPO", "batch_loss", "terms", "advantages", "weights"} <= set(losses.__all__)
    assert all(hasattr(losses, name) for name in losses.__all__)
