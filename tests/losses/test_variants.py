"""Laws that every objective obeys, and one example of each worked by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo import losses
from jaxgrpo.losses import TokenInputs
from tests.losses.cases import (
    BY_MICRO_BATCH,
    BY_PROMPT,
    CLIPPING,
    VARIANTS,
    B,
    G,
    P,
    advantages_of,
    gradient,
    loss_of,
    make_inputs,
    metrics_of,
)

every = pytest.mark.parametrize("name", VARIANTS)
of_rows = pytest.mark.parametrize(
    "name", [name for name in VARIANTS if name not in BY_PROMPT]
)
of_tokens = pytest.mark.parametrize(
    "name", [name for name in VARIANTS if name not in BY_MICRO_BATCH]
)
NAN = float("nan")


def without_kl(name):
    """Returns the variant with no KL and no bonus, which leaves the policy gradient."""
    objective = VARIANTS[name]
    changes = {}
    for field in ("kl", "entropy", "weight"):
        if getattr(objective, field, None) is not None:
            changes[field] = 0.0
    if hasattr(objective, "objective"):
        changes["objective"] = losses.GRPO(kl=0.0)
    return dataclasses.replace(objective, **changes)


@of_tokens
def test_at_ratio_one_the_gradient_is_the_policy_gradient(name):
    objective = without_kl(name)
    inputs = make_inputs()
    inputs = inputs._replace(sampler_logprobs=inputs.old_logprobs)
    expected = -objective.token_weights(inputs.mask) * inputs.advantages[:, None]
    np.testing.assert_allclose(gradient(objective, inputs), expected, atol=1e-6)


@pytest.mark.parametrize("name", CLIPPING)
@pytest.mark.parametrize(("log_ratio", "sign"), [(1.0, 1), (-1.0, -1)])
def test_the_clipped_side_has_no_gradient(name, log_ratio, sign):
    inputs = make_inputs(log_ratio=log_ratio)
    d_logprobs = gradient(without_kl(name), inputs)
    on_side = (jnp.sign(inputs.advantages) == sign)[:, None] & inputs.mask
    assert (d_logprobs[on_side] == 0).all()
    assert (d_logprobs[~on_side & inputs.mask] != 0).all()
    metric = "policy/clipped_high" if sign > 0 else "policy/clipped_low"
    clip_fraction = metrics_of(VARIANTS[name], inputs)[metric]
    np.testing.assert_allclose(
        clip_fraction, on_side.sum() / inputs.mask.sum(), rtol=1e-6
    )


@every
def test_what_is_masked_counts_nothing(name):
    objective = VARIANTS[name]
    inputs = make_inputs(log_ratio=None)
    rubbish = {
        "logprobs": np.nan,
        "old_logprobs": np.inf,
        "ref_logprobs": -np.inf,
        "sampler_logprobs": 50.0,
        "entropy": 1e30,
    }
    dirty = inputs
    for field, value in rubbish.items():
        spoilt = jnp.where(inputs.mask, getattr(inputs, field), value)
        dirty = dirty._replace(**{field: spoilt})
    dirty = dirty._replace(
        advantages=jnp.where(inputs.mask.any(axis=1), inputs.advantages, jnp.nan)
    )
    assert loss_of(objective, dirty) == loss_of(objective, inputs)
    np.testing.assert_array_equal(
        gradient(objective, dirty), gradient(objective, inputs)
    )
    assert (gradient(objective, dirty)[~inputs.mask] == 0).all()
    assert metrics_of(objective, dirty) == metrics_of(objective, inputs)


@of_rows
def test_empty_rows_count_nothing(name):
    objective = VARIANTS[name]
    inputs = make_inputs(log_ratio=None)
    full = inputs.mask.any(axis=1)
    without = TokenInputs(*(array[full] for array in inputs))
    assert not full.all()
    np.testing.assert_allclose(
        loss_of(objective, without), loss_of(objective, inputs), rtol=1e-5
    )


@jax.jit
def part_of(objective, token_weights, inputs):
    """Computes ((loss, info), gradient) of some rows, with the whole batch's token weights."""

    def loss(logprobs):
        return losses.batch_loss(
            objective, token_weights, inputs._replace(logprobs=logprobs)
        )

    return jax.value_and_grad(loss, has_aux=True)(inputs.logprobs)


@of_tokens
@pytest.mark.parametrize("size", [1, 4])
def test_micro_batches_add_up(name, size):
    objective = VARIANTS[name]
    inputs = make_inputs(log_ratio=None)
    token_weights = objective.token_weights(inputs.mask)
    values, infos, gradients = [], [], []
    for start in range(0, B, size):
        rows = slice(start, start + size)
        part = TokenInputs(*(array[rows] for array in inputs))
        (value, info), d_logprobs = part_of(objective, token_weights[rows], part)
        values.append(value)
        infos.append(info)
        gradients.append(d_logprobs)
    np.testing.assert_allclose(
        sum(values), loss_of(objective, inputs), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        jnp.concatenate(gradients), gradient(objective, inputs), atol=1e-6
    )
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *infos)
    expected = metrics_of(objective, inputs)
    for key, value in losses.report(losses.merge(stacked)).items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-5, err_msg=key)


@of_rows
def test_permuting_rows_permutes_the_gradient_and_nothing_else(name):
    objective = VARIANTS[name]
    inputs = make_inputs(log_ratio=None)
    order = np.random.default_rng(1).permutation(B)
    moved = TokenInputs(*(array[order] for array in inputs))
    np.testing.assert_allclose(
        loss_of(objective, moved), loss_of(objective, inputs), rtol=1e-5, atol=1e-7
    )
    np.testing.assert_allclose(
        gradient(objective, moved), gradient(objective, inputs)[order], atol=1e-7
    )


@every
def test_permuting_a_group_permutes_its_advantages_and_nothing_else(name):
    objective = VARIANTS[name]
    inputs = make_inputs(log_ratio=None)
    rewards = jnp.asarray(np.random.default_rng(2).uniform(size=(P, G)), jnp.float32)
    order = np.array([2, 0, 3, 1])
    rows = np.concatenate([order, np.arange(G, B)])
    moved = TokenInputs(*(array[rows] for array in inputs))
    before = advantages_of(objective, rewards, inputs)
    after = advantages_of(objective, rewards.at[0].set(rewards[0, order]), moved)
    np.testing.assert_allclose(after[0], before[0, order], atol=1e-5)
    np.testing.assert_allclose(after[1], before[1], atol=1e-5)


# PPO's advantages are the rewards themselves.
@pytest.mark.parametrize("name", [name for name in VARIANTS if "ppo" not in name])
def test_equal_rewards_give_no_advantage(name):
    objective = VARIANTS[name]
    inputs = make_inputs()
    # The same length and the same KL: the completions differ in nothing.
    equal = inputs._replace(
        mask=jnp.ones_like(inputs.mask), ref_logprobs=inputs.old_logprobs
    )
    for value in (0.0, 0.1, -7.7, 1e-8):
        assert (advantages_of(objective, jnp.full((P, G), value), equal) == 0).all()


@every
def test_a_missing_reward_has_no_advantage_and_no_say(name):
    objective = VARIANTS[name]
    inputs = make_inputs(log_ratio=None)
    inputs = inputs._replace(mask=inputs.mask.at[1].set(False).at[2].set(False))
    rewards = jnp.array([[1.0, NAN, NAN, 0.0], [0.3, 0.1, 0.7, 0.2]])
    found = advantages_of(objective, rewards, inputs)
    assert np.isfinite(found).all()
    assert (found[0, 1:3] == 0).all()
    changed = advantages_of(
        objective,
        rewards,
        inputs._replace(ref_logprobs=inputs.ref_logprobs.at[1].add(1.0)),
    )
    np.testing.assert_array_equal(found, changed)
    assert (advantages_of(objective, jnp.full((P, G), NAN), inputs) == 0).all()


@every
@pytest.mark.parametrize("scale", [50.0, 1e30])
def test_all_is_finite_for_extreme_log_ratios(name, scale):
    objective = VARIANTS[name]
    inputs = make_inputs()
    for sign in (1.0, -1.0):
        wild = inputs._replace(
            old_logprobs=inputs.old_logprobs + sign * scale,
            ref_logprobs=inputs.ref_logprobs - sign * scale,
            sampler_logprobs=inputs.sampler_logprobs - sign * scale,
        )
        assert np.isfinite(loss_of(objective, wild))
        assert np.isfinite(gradient(objective, wild)).all()
        assert all(np.isfinite(value) for value in metrics_of(objective, wild).values())


def test_no_two_objectives_are_the_same_pytree():
    """If two were, a compiled function would now and then run one's program for the other."""
    classes = {
        jax.tree.structure(objective): type(objective)
        for objective in VARIANTS.values()
    }
    for name, objective in VARIANTS.items():
        structure = jax.tree.structure(objective)
        same = [cls for other, cls in classes.items() if other == structure]
        assert same == [type(objective)], name
        assert jax.tree.map(lambda x: x, objective) == objective


@every
def test_coefficients_are_traced(name):
    objective = VARIANTS[name]
    inputs = make_inputs(log_ratio=None)
    loss_of(objective, inputs)
    advantages_of(objective, jnp.zeros((P, G)), inputs)
    programs = (loss_of._cache_size(), advantages_of._cache_size())
    halved = jax.tree.map(lambda x: x / 2, objective)
    loss_of(halved, inputs)
    advantages_of(halved, jnp.zeros((P, G)), inputs)
    assert (loss_of._cache_size(), advantages_of._cache_size()) == programs
    assert jax.tree.leaves(halved) != jax.tree.leaves(objective)


def cell(probability):
    """Returns a probability's logarithm, [1, 1]."""
    return jnp.log(jnp.array([[probability]]))


def one_token(logprob, old, ref=None, advantage=1.0, **others):
    """Returns the inputs of a single token, from probabilities."""
    return TokenInputs(
        cell(logprob),
        cell(old),
        cell(ref or old),
        jnp.array([advantage]),
        jnp.array([[True]]),
        **others,
    )


@pytest.mark.parametrize(
    ("objective", "inputs", "expected"),
    [
        # ratio 1.25, clipped at 1.2; k3 of 0.25 against 0.5 is 0.5 - 1 + ln 2
        (
            losses.GRPO(kl=0.1),
            one_token(0.5, 0.4, 0.25, 2.0),
            -2.4 + 0.1 * (0.5 - 1 + np.log(2)),
        ),
        (losses.DrGRPO(budget=10.0), one_token(0.5, 0.4, advantage=2.0), -0.24),
        (losses.DAPO(), one_token(0.5, 0.4), -1.25),
        (losses.DAPO(), one_token(0.52, 0.4), -1.28),
        (losses.GSPO(0.2, 0.2), one_token(0.5, 0.4), -1.2),
        (losses.GSPOToken(0.2, 0.2), one_token(0.44, 0.4), -1.1),
        (losses.RLOO(), one_token(0.5, 0.4, advantage=3.0), 3 * np.log(2)),
        (losses.ReinforcePlusPlus(), one_token(0.2, 0.4, advantage=-1.0), 0.8),
        # k2 of 0.5 against 0.25: (ln 2)^2 / 2
        (
            losses.ReinforcePlusPlusBaseline(kl=2.0),
            one_token(0.5, 0.5, 0.25),
            -1 + np.log(2) ** 2,
        ),
        (losses.CISPO(clip_high=0.2), one_token(0.5, 0.4), 1.2 * np.log(2)),
        (losses.PPO(), one_token(0.5, 0.1, advantage=-1.0), 5.0),
        (losses.PPO(dual_clip=3.0), one_token(0.5, 0.1, advantage=-1.0), 3.0),
        (
            losses.Regularised(losses.PPO(), entropy=0.1),
            one_token(0.5, 0.5, entropy=jnp.array([[2.0]])),
            -1.2,
        ),
        # ratio 1.25 times k3
        (
            losses.Regularised(losses.PPO(), kl=1.0),
            one_token(0.5, 0.4, 0.25),
            -1.2 + 1.25 * (np.log(2) - 0.5),
        ),
        (
            losses.Corrected(losses.PPO()),
            one_token(0.5, 0.5, sampler_logprobs=cell(0.4)),
            -1.25,
        ),
        (
            losses.Corrected(losses.PPO()),
            one_token(0.5, 0.5, sampler_logprobs=cell(0.1)),
            -2.0,
        ),
        (losses.Supervised(), one_token(0.5, 0.4), np.log(2)),
        (losses.MaxRL(), one_token(0.5, 0.4, advantage=3.0), -3.6),
        (losses.ScaleRL(group_size=1), one_token(0.5, 0.4), 1.25 * np.log(2)),
        (losses.ScaleRL(group_size=1), one_token(0.5, 0.05), 5 * np.log(2)),
        # the probability has moved by 0.1, and by 0.2
        (losses.DPPO(), one_token(0.5, 0.4), -1.25),
        (losses.DPPO(), one_token(0.6, 0.4), 0.0),
        (losses.DPPO(), one_token(0.6, 0.4, advantage=-1.0), 1.5),
        (losses.DPPO(budget=4.0), one_token(0.5, 0.4), -1.25 / 4),
        # 0.4 ln(0.4 / 0.5) + 0.6 ln(0.6 / 0.5) = 0.020, and 0.081
        (losses.DPPO(0.05, "kl"), one_token(0.5, 0.4), -1.25),
        (losses.DPPO(0.05, "kl"), one_token(0.6, 0.4), 0.0),
        # and without a threshold the authors' of that divergence
        (losses.DPPO(divergence="kl"), one_token(0.5, 0.4), -1.25),
        (losses.DPPO(divergence="kl"), one_token(0.6, 0.4), 0.0),
        # ln(0.5 / 0.2) = 0.92 nats
        (
            losses.OffPolicyMasked(losses.PPO(), 0.9),
            one_token(0.2, 0.2, advantage=-1.0, sampler_logprobs=cell(0.5)),
            0.0,
        ),
        (
            losses.OffPolicyMasked(losses.PPO(), 1.0),
            one_token(0.2, 0.2, advantage=-1.0, sampler_logprobs=cell(0.5)),
            1.0,
        ),
        (
            losses.EntropyTargeted(
                losses.PPO(), target=1.0, weight=0.1, max_weight=0.1
            ),
            one_token(0.5, 0.5, entropy=jnp.array([[2.0]])),
            -1.2,
        ),
        (
            losses.EntropyTargeted(
                losses.PPO(), target=1.0, weight=0.1, max_weight=0.1, last_entropy=1.1
            ),
            one_token(0.5, 0.5, entropy=jnp.array([[2.0]])),
            -1.0,
        ),
    ],
)
def test_by_hand(objective, inputs, expected):
    np.testing.assert_allclose(loss_of(objective, inputs), expected, rtol=1e-6)


def test_gspo_moves_a_whole_completion_by_its_mean_log_ratio():
    log_ratio = jnp.array([[0.3, -0.1, 7.0]])
    mask = jnp.array([[True, True, False]])
    inputs = TokenInputs(
        log_ratio, jnp.zeros((1, 3)), jnp.zeros((1, 3)), jnp.array([1.0]), mask
    )
    np.testing.assert_allclose(
        loss_of(losses.GSPO(1.0, 1.0), inputs), -np.exp(0.1), rtol=1e-6
    )


def test_gspo_token_is_gspo_where_advantages_are_equal():
    inputs = make_inputs(log_ratio=None)
    for compute in (loss_of, gradient):
        by_token = compute(losses.GSPOToken(0.2, 0.2), inputs)
        by_sequence = compute(losses.GSPO(0.2, 0.2), inputs)
        np.testing.assert_allclose(by_token, by_sequence, atol=1e-6)


def test_cispo_leaves_every_token_its_gradient():
    for log_ratio in (2.0, -2.0):
        inputs = make_inputs(log_ratio=log_ratio)
        assert (gradient(losses.CISPO(), inputs)[inputs.mask] != 0).all()


def test_advantages_may_differ_by_token():
    inputs = make_inputs(log_ratio=None)
    per_token = jnp.broadcast_to(inputs.advantages[:, None], inputs.mask.shape)
    for objective in (losses.PPO(), losses.GSPOToken()):
        assert loss_of(objective, inputs._replace(advantages=per_token)) == loss_of(
            objective, inputs
        )
    halved = per_token.at[1, 3:].multiply(0.5)
    assert loss_of(losses.PPO(), inputs._replace(advantages=halved)) != loss_of(
        losses.PPO(), inputs
    )


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: losses.Regularised(losses.GRPO(), kl=0.1, estimator="k1"),
            "expected gradient .* is zero",
        ),
        (
            lambda: losses.Regularised(losses.GRPO(), estimator="k4"),
            "must be one of k2, k3, unbiased",
        ),
        (
            lambda: losses.Corrected(losses.GRPO(), mode="clip"),
            "must be one of truncate, mask",
        ),
        (
            lambda: losses.Corrected(losses.GRPO(), level="row"),
            "must be one of token, sequence, geometric",
        ),
        (lambda: losses.DPPO(divergence="js"), "must be one of tv, kl"),
        (lambda: losses.Distilled(losses.GSPO()), "take GSPOToken"),
        (
            lambda: losses.EntropyTargeted(losses.GRPO(), weight=0.1),
            "begins with weight 0.1, above max_weight, 0.005",
        ),
        (
            lambda: losses.TrustRegionMasked(losses.GRPO(), 0.1, "min"),
            "must be one of max, mean",
        ),
        (
            lambda: losses.DAPO(max_tokens=6.0).advantages(jnp.zeros((1, 2))),
            "needs the completions' mask",
        ),
        (lambda: losses.RLOO(kl=0.1).advantages(jnp.zeros((1, 2))), "mask and kl"),
        (
            lambda: losses.ReinforcePlusPlus().advantages(jnp.zeros((1, 2))),
            "normalises over tokens",
        ),
        (
            lambda: loss_of(losses.Corrected(losses.GRPO()), one_token(0.5, 0.5)),
            "needs TokenInputs.sampler_logprobs",
        ),
        (
            lambda: loss_of(
                losses.Regularised(losses.GRPO(), entropy=0.1), one_token(0.5, 0.5)
            ),
            "needs TokenInputs.entropy",
        ),
        (
            lambda: loss_of(losses.EntropyTargeted(losses.GRPO()), one_token(0.5, 0.5)),
            "needs TokenInputs.entropy",
        ),
        (
            lambda: loss_of(losses.TopEntropy(losses.GRPO()), one_token(0.5, 0.5)),
            "needs TokenInputs.entropy",
        ),
        (
            lambda: losses.Distilled(losses.GRPO()).advantages(jnp.zeros((1, 2))),
            "mask and kl",
        ),
        (
            lambda: loss_of(losses.ScaleRL(group_size=2), one_token(0.5, 0.5)),
            "1 rows are no whole number of groups of 2 completions",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_what_people_import():
    assert set(losses.__all__) <= set(dir(losses))
    variants = {
        "GRPO",
        "DrGRPO",
        "DAPO",
        "GSPO",
        "GSPOToken",
        "RLOO",
        "ReinforcePlusPlus",
        "CISPO",
        "PPO",
        "MaxRL",
        "DPPO",
        "ScaleRL",
    }
    assert variants <= set(losses.__all__)
