"""Advantages, token weights, KL estimators and importance weights.

Examples are worked by hand; unbiasedness is by exact enumeration.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo import losses
from jaxgrpo.losses import advantages, terms, token_weights
from tests.losses.cases import make_inputs, metrics_of

NAN = float("nan")
MASK = jnp.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)


def test_standardised_with_the_population_deviation():
    # mean 0.25, population deviation sqrt(3)/4
    expected = [[-1 / 3**0.5, -1 / 3**0.5, 3**0.5, -1 / 3**0.5]]
    np.testing.assert_allclose(
        advantages.standardised(jnp.array([[0.0, 0, 1, 0]])), expected, rtol=1e-6
    )


def test_centred_and_leave_one_out():
    rewards = jnp.array([[1.0, 2.0, 6.0], [0.5, NAN, NAN]])
    np.testing.assert_allclose(
        advantages.centred(rewards), [[-2, -1, 3], [0, 0, 0]], atol=1e-6
    )
    # the others' means: 4, 3.5, 1.5
    np.testing.assert_allclose(
        advantages.leave_one_out(rewards), [[-3, -1.5, 4.5], [0, 0, 0]], atol=1e-6
    )


def test_batch_normalised_over_prompts_and_completions():
    # mean 1, deviation 1
    found = advantages.batch_normalised(jnp.array([[0.0, 2.0], [2.0, 0.0], [NAN, NAN]]))
    np.testing.assert_allclose(found, [[-1, 1], [1, -1], [0, 0]], atol=1e-6)


def test_standardised_does_not_depend_on_the_rewards_scale_or_place():
    rewards = jnp.array([[0.0, 1, 3, 7]])
    np.testing.assert_allclose(
        advantages.standardised(5 * rewards + 2),
        advantages.standardised(rewards),
        rtol=1e-5,
    )


def test_missing_rewards_are_as_if_they_had_not_been_asked():
    with_missing = advantages.standardised(jnp.array([[1.0, NAN, 0.0, 0.0]]))
    without = advantages.standardised(jnp.array([[1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(
        with_missing[0, jnp.array([0, 2, 3])], without[0], rtol=1e-6
    )
    np.testing.assert_array_equal(
        advantages.unchanged(jnp.array([[1.5, NAN]])), [[1.5, 0]]
    )


def test_soft_overlong_punishment():
    lengths = jnp.array([[0, 16, 17, 18, 20, 30]])
    np.testing.assert_allclose(
        advantages.soft_overlong(lengths, 20.0, 4.0), [[0, 0, -0.25, -0.5, -1, -1]]
    )
    np.testing.assert_allclose(
        advantages.soft_overlong(lengths, 18.0, 0.0), [[0, 0, 0, -1, -1, -1]]
    )
    for buffer in (0.0, 0.5, 1.0, 7.0, 18.0):
        punished = np.asarray(advantages.soft_overlong(lengths, 18.0, buffer))
        np.testing.assert_array_equal(punished == -1, lengths >= 18)
        np.testing.assert_array_equal(
            punished == 0, lengths <= 18 - buffer if buffer else lengths < 18
        )


def test_kl_in_the_reward():
    mask = jnp.array([[[True, True, False]]])
    kl = jnp.array([[[0.5, 1.0, 9.0]]])
    np.testing.assert_allclose(
        advantages.reward_minus_kl_to_go(jnp.array([[2.0]]), mask, kl, 0.1),
        [[[1.85, 1.9, NAN]]],
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        advantages.reward_minus_sequence_kl(jnp.array([[2.0]]), mask, kl, 0.1),
        [[1.85]],
        rtol=1e-6,
    )


def test_weights_sum_and_count_as_they_say():
    np.testing.assert_allclose(
        token_weights.per_sequence(MASK), [[0.25, 0.25, 0, 0], [0.5, 0, 0, 0], [0] * 4]
    )
    np.testing.assert_allclose(
        token_weights.per_token(MASK),
        [[1 / 3, 1 / 3, 0, 0], [1 / 3, 0, 0, 0], [0] * 4],
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        token_weights.per_budget(MASK, 4.0),
        [[0.125, 0.125, 0, 0], [0.125, 0, 0, 0], [0] * 4],
    )
    assert token_weights.per_budget(MASK, 4.0).sum() == (2 + 1) / 2 / 4
    for weigh in (
        token_weights.per_sequence,
        token_weights.per_token,
        lambda mask: token_weights.per_budget(mask, 4.0),
    ):
        assert (weigh(jnp.zeros((2, 3), bool)) == 0).all()


def test_truncated_completions_can_be_left_out():
    found = token_weights.without_truncated(MASK, jnp.array([True, False, True]))
    np.testing.assert_array_equal(found.sum(axis=1), [2, 0, 0])


def test_importance_weights():
    log_ratio = jnp.log(jnp.array([[1.5, 1.8, 5.0], [0.4, 3.0, 9.0]]))
    mask = jnp.array([[True, True, False], [True, True, False]])

    def weigh(**settings):
        return jnp.where(mask, terms.importance_weights(log_ratio, mask, **settings), 0)

    np.testing.assert_allclose(weigh(), [[1.5, 1.8, 0], [0.4, 2.0, 0]], rtol=1e-6)
    np.testing.assert_allclose(
        weigh(low=0.5), [[1.5, 1.8, 0], [0.5, 2.0, 0]], rtol=1e-6
    )
    np.testing.assert_allclose(
        weigh(mode="mask", low=0.5), [[1.5, 1.8, 0], [0, 0, 0]], rtol=1e-6
    )
    np.testing.assert_allclose(
        weigh(level="sequence"), [[2, 2, 0], [1.2, 1.2, 0]], rtol=1e-6
    )
    np.testing.assert_allclose(
        weigh(level="sequence", mode="mask", high=2.0),
        [[0, 0, 0], [1.2, 1.2, 0]],
        rtol=1e-6,
    )
    gradient = jax.grad(lambda x: terms.importance_weights(x, mask).sum())(log_ratio)
    assert (gradient == 0).all()


# A policy, the one that sampled, and the reference, over four tokens. Expectations are exact: sums
# over all tokens.
LOGITS = {
    "policy": jnp.array([0.3, -0.5, 1.1, 0.0]),
    "old": jnp.array([0.1, 0.4, 0.6, -0.7]),
    "reference": jnp.array([1.0, 0.2, -0.3, 0.5]),
}


def kl(logits, others):
    """Computes the exact KL(softmax(logits) || softmax(others))."""
    p = jax.nn.log_softmax(logits)
    q = jax.nn.log_softmax(others)
    return jnp.sum(jnp.exp(p) * (p - q))


def expected_gradient(term, sampler):
    """Computes the exact expected gradient of term(p, log r, q) for the policy's logits.

    The expectation is over tokens drawn from `sampler`.
    """
    old = jax.nn.log_softmax(LOGITS[sampler])
    q = jax.nn.log_softmax(LOGITS["reference"])

    def term_of_tokens(logits):
        p = jax.nn.log_softmax(logits)
        return term(p[None], (p - old)[None], q[None])[0]

    return jnp.exp(old) @ jax.jacobian(term_of_tokens)(LOGITS["policy"])


TRUE = jax.grad(kl)(LOGITS["policy"], LOGITS["reference"])
REVERSE = jax.grad(lambda logits: kl(LOGITS["reference"], logits))(LOGITS["policy"])


@pytest.mark.parametrize(
    ("estimator", "sampler", "expected"),
    [
        ("k2", "policy", TRUE),
        ("k3", "policy", REVERSE),
        ("unbiased", "policy", TRUE),
        ("unbiased", "old", TRUE),
    ],
)
def test_the_gradient_of_each_kl_loss_is_what_it_says(estimator, sampler, expected):
    found = expected_gradient(
        lambda p, log_ratio, q: terms.kl_loss(estimator, log_ratio, p, q), sampler
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_k1_as_a_loss_does_nothing_on_policy():
    np.testing.assert_allclose(
        expected_gradient(lambda p, log_ratio, q: terms.kl_k1(p, q), "policy"),
        0,
        atol=1e-6,
    )
    with pytest.raises(ValueError, match="k1 cannot be a loss"):
        terms.kl_loss("k1", *[jnp.zeros((1, 1))] * 3)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_off_policy_the_plain_estimators_are_biased(estimator):
    """This is why there is an unbiased one."""
    found = expected_gradient(
        lambda p, log_ratio, q: terms.kl_loss(estimator, log_ratio, p, q), "old"
    )
    assert np.abs(found - TRUE).max() > 0.01


@pytest.mark.parametrize("estimate", [terms.kl_k1, terms.kl_k3])
def test_estimates_are_unbiased_on_policy(estimate):
    p, q = (jax.nn.log_softmax(LOGITS[name])[None] for name in ("policy", "reference"))
    np.testing.assert_allclose(
        jnp.sum(jnp.exp(p) * estimate(p, q)),
        kl(LOGITS["policy"], LOGITS["reference"]),
        rtol=1e-5,
    )


def test_the_unbiased_estimate_is_unbiased_off_policy():
    p, old, q = (
        jax.nn.log_softmax(LOGITS[name])[None]
        for name in ("policy", "old", "reference")
    )
    found = jnp.sum(jnp.exp(old) * terms.kl_unbiased(p - old, p, q))
    np.testing.assert_allclose(
        found, kl(LOGITS["policy"], LOGITS["reference"]), rtol=1e-5
    )


def test_no_divergence_is_ever_negative():
    inputs = make_inputs()
    for estimate in (terms.kl_k2, terms.kl_k3):
        assert (estimate(inputs.logprobs, inputs.ref_logprobs) >= 0).all()
        assert (estimate(inputs.logprobs, inputs.logprobs) == 0).all()


def test_on_policy_the_metrics_say_so():
    inputs = make_inputs()
    inputs = inputs._replace(
        sampler_logprobs=inputs.old_logprobs, ref_logprobs=inputs.logprobs
    )
    found = metrics_of(losses.GRPO(), inputs)
    zero = (
        "kl",
        "kl_old",
        "logprob_gap",
        "logprob_gap_max",
        "clipped_low",
        "clipped_high",
    )
    assert all(found[f"policy/{name}"] == 0 for name in zero)
    one = ("ratio", "ratio_max", "effective_sample_size")
    np.testing.assert_allclose([found[f"policy/{name}"] for name in one], 1, rtol=1e-6)
    expected = jnp.sum(inputs.entropy * inputs.mask) / inputs.mask.sum()
    np.testing.assert_allclose(found["policy/entropy"], expected, rtol=1e-6)


def test_the_metrics_by_hand():
    inputs = losses.TokenInputs(
        logprobs=jnp.log(jnp.array([[0.2, 0.4]])),
        old_logprobs=jnp.log(jnp.array([[0.4, 0.4]])),
        ref_logprobs=jnp.log(jnp.array([[0.2, 0.2]])),
        advantages=jnp.array([-1.0]),
        mask=jnp.ones((1, 2), bool),
        sampler_logprobs=jnp.log(jnp.array([[0.4, 0.1]])),
    )
    found = metrics_of(losses.GRPO(), inputs)
    expected = {
        "ratio": 0.75,
        "ratio_max": 1.0,
        "clipped_low": 0.5,
        "clipped_high": 0.0,
        "kl": (0 + 0.5 - 1 + np.log(2)) / 2,
        "kl_old": (0.5 - 1 + np.log(2)) / 2,
        "logprob_gap": (np.log(2) + np.log(4)) / 2,
        "logprob_gap_max": np.log(4),
        "effective_sample_size": 4.5**2 / (2 * 16.25),  # weights 0.5 and 4
    }
    for name, value in expected.items():
        np.testing.assert_allclose(
            found[f"policy/{name}"], value, rtol=1e-5, err_msg=name
        )
