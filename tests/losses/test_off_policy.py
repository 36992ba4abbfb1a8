"""Laws of what keeps an update near the policy that sampled: DPPO, masks and corrections."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo import losses
from jaxgrpo.losses import terms
from tests.losses.cases import B, gradient, make_inputs, metrics_of

KINDS = pytest.mark.parametrize("kind", terms.BINARY_DIVERGENCES)

EXACT = {
    "tv": lambda old, new: jnp.abs(old - new).sum() / 2,
    "kl": lambda old, new: jnp.sum(old * jnp.log(old / new)),
}
"""Divergences of whole distributions."""


def distributions(seed, size):
    """Returns two random distributions over so many tokens."""
    rng = np.random.default_rng(seed)
    return [jax.nn.softmax(jnp.asarray(rng.normal(0, 1.5, size))) for _ in range(2)]


@KINDS
def test_of_two_tokens_the_binary_divergence_is_exact(kind):
    old, new = distributions(0, 2)
    found = terms.binary_divergence(kind, jnp.log(new)[None], jnp.log(old)[None])
    # The other token of two is all others.
    np.testing.assert_allclose(found[0], EXACT[kind](old, new), rtol=1e-4)


@KINDS
@pytest.mark.parametrize("seed", range(5))
def test_of_more_tokens_it_is_a_lower_bound(kind, seed):
    old, new = distributions(seed, 8)
    found = terms.binary_divergence(kind, jnp.log(new)[None], jnp.log(old)[None])
    assert (found <= EXACT[kind](old, new) + 1e-6).all()
    assert (found >= 0).all()


@KINDS
def test_nothing_has_moved_where_both_are_the_same(kind):
    # Also for a token that is certain, or impossible.
    logprobs = jnp.array([[0.0, -1e-9, -0.7, -30.0, -1e30]])
    assert (terms.binary_divergence(kind, logprobs, logprobs) == 0).all()
    certain = terms.binary_divergence(kind, jnp.array([[0.0]]), jnp.array([[-40.0]]))
    assert np.isfinite(certain).all()


@pytest.mark.parametrize("divergence", terms.BINARY_DIVERGENCES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_dppo_stops_what_has_moved_too_far_and_moves_on(divergence, sign):
    objective = losses.DPPO(threshold=0.05, divergence=divergence)
    inputs = make_inputs(log_ratio=None)._replace(advantages=jnp.full(B, sign))
    moved = terms.binary_divergence(divergence, inputs.logprobs, inputs.old_logprobs)
    away = sign * (inputs.logprobs - inputs.old_logprobs) > 0
    stopped = inputs.mask & away & (moved > 0.05)
    assert stopped.any()
    assert (inputs.mask & ~away & (moved > 0.05)).any()
    found = gradient(objective, inputs)
    assert (found[stopped] == 0).all()
    assert (found[inputs.mask & ~stopped] != 0).all()
    name = "policy/clipped_high" if sign > 0 else "policy/clipped_low"
    np.testing.assert_allclose(
        metrics_of(objective, inputs)[name], stopped.sum() / inputs.mask.sum()
    )


def test_dppo_frees_rare_tokens_and_holds_frequent_ones_where_ppo_does_not():
    # A rare token is a hundred times as likely, a frequent one a quarter less.
    inputs = losses.TokenInputs(
        logprobs=jnp.log(jnp.array([[1e-2], [0.7]])),
        old_logprobs=jnp.log(jnp.array([[1e-4], [0.9]])),
        ref_logprobs=jnp.zeros((2, 1)),
        advantages=jnp.array([1.0, -1.0]),
        mask=jnp.ones((2, 1), bool),
    )
    dppo = gradient(losses.DPPO(threshold=0.15), inputs)
    ppo = gradient(losses.PPO(clip_low=0.25, clip_high=0.28), inputs)
    assert [bool(row) for row in dppo[:, 0] != 0] == [True, False]
    assert [bool(row) for row in ppo[:, 0] != 0] == [False, True]


def drifted(drift, lengths):
    """Returns inputs whose sampler is `drift` nats a token from the policy, and their advantages.

    drift: log(sampler / policy) of each row, [B]
    """
    inputs = make_inputs()
    mask = jnp.arange(inputs.mask.shape[1]) < jnp.array(lengths)[:, None]
    sampler = inputs.logprobs + jnp.array(drift)[:, None]
    return inputs._replace(sampler_logprobs=sampler, mask=mask)


def test_bad_completions_far_off_policy_have_no_gradient_and_others_all_of_theirs():
    inputs = drifted(
        [0.6, 0.6, 0.4, 0.4, -0.6, -0.6, 0.6, 0.0], [6, 1, 6, 1, 6, 1, 3, 3]
    )
    inputs = inputs._replace(advantages=jnp.array([-1.0, -2, -1, -2, -1, -2, 1, -1]))
    plain = losses.DAPO()
    found = gradient(losses.OffPolicyMasked(plain, threshold=0.5), inputs)
    # Bad, and the sampler's far above the policy's: whatever its length. A completion that is
    # likelier now, or good, is left as it is.
    masked = np.array([True, True] + [False] * 6)
    assert (found[masked] == 0).all()
    np.testing.assert_array_equal(found[~masked], gradient(plain, inputs)[~masked])
    assert (found[~masked][inputs.mask[~masked]] != 0).all()
    metric = metrics_of(losses.OffPolicyMasked(plain, 0.5), inputs)
    np.testing.assert_allclose(metric["policy/off_policy_masked"], 7 / 27, rtol=1e-6)


def test_without_the_samplers_own_the_mask_takes_the_old_log_probabilities():
    inputs = make_inputs(log_ratio=-0.6)
    objective = losses.OffPolicyMasked(losses.PPO(), threshold=0.5)
    expected = gradient(
        objective, inputs._replace(sampler_logprobs=inputs.old_logprobs)
    )
    found = gradient(objective, inputs._replace(sampler_logprobs=None))
    np.testing.assert_array_equal(found, expected)
    bad = inputs.advantages < 0
    assert (found[bad] == 0).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_completion_leaves_the_trust_region_by_one_token_or_by_their_mean(sign):
    inputs = drifted([0.0] * B, [6] * B)
    # One token of row 0 has moved by 1 nat, and all of row 1 by half.
    log_ratio = jnp.zeros((B, 6)).at[0, 2].set(sign).at[1].set(sign / 2)
    inputs = inputs._replace(sampler_logprobs=inputs.logprobs - log_ratio)
    plain = gradient(losses.DAPO(), inputs)
    for criterion, threshold, masked in (
        ("max", 0.99, [0]),
        ("max", 0.49, [0, 1]),
        ("max", 1.01, []),
        # k3 of half a nat is 0.149 and 0.107; of a nat, over six tokens, 0.120 and 0.061
        ("mean", 0.09 if sign < 0 else 0.13, [1]),
        ("mean", 0.05, [0, 1]),
        ("mean", 0.2, []),
    ):
        objective = losses.TrustRegionMasked(losses.DAPO(), threshold, criterion)
        found = gradient(objective, inputs)
        expected = plain.at[jnp.array(masked, int)].set(0.0)
        np.testing.assert_array_equal(found, expected)
        share = metrics_of(objective, inputs)["policy/trust_region_masked"]
        np.testing.assert_allclose(share, len(masked) / B, rtol=1e-6)


def test_a_kl_around_the_mask_is_left_as_it_is():
    inputs = drifted([1.0] * B, [6] * B)._replace(advantages=jnp.full(B, -1.0))
    masked = losses.OffPolicyMasked(losses.DAPO(), threshold=0.5)
    assert (gradient(masked, inputs) == 0).all()
    with_kl = gradient(losses.Regularised(masked, kl=0.1), inputs)
    assert (with_kl[inputs.mask] != 0).all()


@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_a_geometric_weight_does_not_depend_on_the_length(mode):
    mask = jnp.arange(6) < jnp.array([1, 2, 6])[:, None]
    log_ratio = jnp.full((3, 6), 0.2)
    found = terms.importance_weights(log_ratio, mask, mode, "geometric", 2.0, 0.5)
    np.testing.assert_allclose(found[mask], np.exp(0.2), rtol=1e-6)
    # The product does: that of six tokens is above 2.
    product = terms.importance_weights(log_ratio, mask, mode, "sequence", 2.0, 0.5)
    assert product[2, 0] == (2.0 if mode == "truncate" else 0.0)


def test_levels_are_the_same_for_one_token_and_powers_of_each_other_for_more():
    log_ratio = make_inputs(log_ratio=None).logprobs / 10
    one = jnp.arange(6) < jnp.ones((B, 1))
    tokens, products, means = (
        terms.importance_weights(log_ratio, one, level=level, high=9.0)[:, 0]
        for level in ("token", "sequence", "geometric")
    )
    np.testing.assert_allclose(products, tokens, rtol=1e-6)
    np.testing.assert_allclose(means, tokens, rtol=1e-6)
    six = jnp.ones((B, 6), bool)
    product = terms.importance_weights(log_ratio, six, level="sequence", high=9.0)
    mean = terms.importance_weights(log_ratio, six, level="geometric", high=9.0)
    np.testing.assert_allclose(mean**6, product, rtol=1e-5)


def test_geometric_bounds_truncate_or_drop_whole_completions():
    mask = jnp.array([[True, True, False], [True, True, True]])
    log_ratio = jnp.log(jnp.array([[1.1, 1.3, 9.0], [1.0, 0.9, 1.0]]))
    mean = np.sqrt(1.1 * 1.3)
    kept = terms.importance_weights(
        log_ratio, mask, "mask", "geometric", mean + 0.01, 0.9
    )
    np.testing.assert_allclose(kept[0, :2], mean, rtol=1e-6)
    dropped = terms.importance_weights(log_ratio, mask, "mask", "geometric", 1.1, 0.9)
    assert (dropped[0, :2] == 0).all()
    cut = terms.importance_weights(log_ratio, mask, "truncate", "geometric", 1.1, 0.98)
    np.testing.assert_allclose(cut[0, :2], 1.1, rtol=1e-6)
    np.testing.assert_allclose(cut[1], 0.98, rtol=1e-6)
