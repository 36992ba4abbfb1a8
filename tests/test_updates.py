"""Laws of several updates with a batch: mini-batches, epochs, the KL target."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrpo import losses
from jaxgrpo.device.learner import Updater, init_state, take_groups
from jaxgrpo.device.micro_batches import MicroBatches
from jaxgrpo.device.scorer import GroupScorer, Scorer, Scores, batch_logprobs
from jaxgrpo.distributed.mesh import make_mesh, to_device, to_host
from jaxgrpo.losses import GRPO
from jaxgrpo.losses.wrapper import Wrapper
from jaxgrpo.rollout.batch import make_batch
from jaxgrpo.rollout_records import completion_advantages
from jaxgrpo.types import TrainBatch
from jaxgrpo.updates import UpdateRule, merge_metrics, update_policy
from tests.losses.test_golden import GOLDEN, INPUTS, LENGTHS, objective_of
from tests.tiny_devices import output_on_devices
from tests.tiny_engines import NETWORK
from tests.tiny_models import random_params
from tests.tiny_programs import (
    GROUP,
    NUM_GROUPS,
    WIDTH,
    assert_close,
    assert_same_metrics,
    leaves,
    make_programs,
    place,
    sample,
)

SEVERAL = UpdateRule(NUM_GROUPS, updates=2, epochs=2)


@pytest.fixture(scope="module")
def programs():
    return make_programs()


@pytest.fixture(scope="module")
def params(programs):
    return place(programs, random_params(NETWORK))


@pytest.fixture(scope="module")
def other(programs):
    """Returns a reference that is not the policy."""
    return place(programs, random_params(NETWORK, seed=5))


@pytest.fixture(scope="module")
def batch(programs, params):
    host = make_batch(sample(programs, params), NUM_GROUPS)
    return to_device(host, programs.row_sharding)


def run(programs, params, other, batch, rule, objective=GRPO(), step=1):  # noqa: B008
    """Makes a step's updates from the beginning of a run."""
    return update_policy(
        programs, programs.init_state(params), other, batch, objective, 1.0, rule, step
    )


def test_an_epoch_has_every_group_once_in_an_order_of_its_own():
    rule = UpdateRule(groups=12, updates=3, epochs=2, seed=7)
    mini_batches = list(rule.mini_batches(step=5))
    assert [len(groups) for groups in mini_batches] == [4] * 6
    first, second = np.split(np.concatenate(mini_batches), 2)
    assert sorted(first) == sorted(second) == list(range(12))
    assert (first != second).any()


def test_the_order_is_a_function_of_seed_step_and_epoch():
    def order(seed: int, step: int) -> list[int]:
        rule = UpdateRule(groups=12, updates=3, seed=seed)
        return np.concatenate(list(rule.mini_batches(step))).tolist()

    assert order(7, 5) == order(7, 5)
    assert len({tuple(order(seed, step)) for seed in (7, 8) for step in (5, 6)}) == 4


def test_one_update_and_one_epoch_are_the_single_update_bit_for_bit(
    programs, params, other, batch
):
    state, metrics = run(programs, params, other, batch, UpdateRule(NUM_GROUPS))
    expected, expected_metrics = programs.update(
        programs.init_state(params), other, batch, GRPO(), 1.0
    )
    assert leaves(state) == leaves(expected)
    assert metrics == [{name: float(x) for name, x in expected_metrics.items()}]


@pytest.mark.parametrize("objective", [GRPO(), losses.DAPO(), losses.GSPO()])
def test_an_update_is_the_only_one_of_a_batch_that_holds_its_groups_alone(
    programs, params, other, batch, objective
):
    """Token weights are of the rows of the update: their sum is not that of the whole batch."""
    rule = UpdateRule(NUM_GROUPS, updates=NUM_GROUPS // 2)
    groups = next(rule.mini_batches(step=3))
    scored = programs.score(programs.init_state(params), other, batch, objective, 1.0)
    state, metrics = programs.update_scored(
        programs.init_state(params),
        other,
        programs.take_groups(scored, groups),
        np.int32(0),
        objective,
        1.0,
    )
    rows = (groups[:, None] * GROUP + np.arange(GROUP)).ravel()
    alone = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[rows]), batch)
    expected, expected_metrics = programs.update(
        programs.init_state(params), other, alone, objective, 1.0
    )
    assert_close(state.params, expected.params)
    assert_same_metrics(metrics, expected_metrics)


def test_the_order_of_groups_does_not_matter_to_an_update_with_all_of_them(
    programs, params, other, batch
):
    """The first of two epochs has all groups in another order, and is the single update."""
    _, updates = run(programs, params, other, batch, UpdateRule(NUM_GROUPS, epochs=2))
    _, single = run(programs, params, other, batch, UpdateRule(NUM_GROUPS))
    assert_same_metrics(updates[0], single[0])


@pytest.mark.parametrize("old_logprobs", ["sampler", "trainer"])
def test_the_old_policy_stays_the_same_over_all_updates(
    params, other, batch, old_logprobs
):
    """The first update's ratio is 1 and nothing is clipped; then the policy moves away from it."""
    # A rate that moves the policy, and a range that it leaves.
    programs = make_programs(optimizer=optax.sgd(1.0), old_logprobs=old_logprobs)
    objective = GRPO(clip_low=0.01, clip_high=0.01, kl=0.0)
    _, updates = run(programs, params, other, batch, SEVERAL, objective)
    first, *later = updates
    assert len(later) == 3
    assert first["policy/ratio"] == pytest.approx(1, abs=1e-5)
    assert first["policy/ratio_max"] == pytest.approx(1, abs=1e-4)
    assert first["policy/clipped_low"] == first["policy/clipped_high"] == 0
    assert first["policy/kl_old"] == pytest.approx(0, abs=1e-6)
    for metrics in later:
        assert metrics["policy/ratio_max"] > 1.01
        assert metrics["policy/clipped_low"] + metrics["policy/clipped_high"] > 0
    assert later[-1]["policy/kl_old"] > 1e-5


def test_the_trainers_old_logprobs_are_those_before_the_first_update(
    params, other, batch
):
    programs = make_programs(old_logprobs="trainer")
    shifted = batch._replace(sampler_logprobs=batch.sampler_logprobs - 0.5)
    state = programs.init_state(params)
    scored = programs.score(state, other, shifted, GRPO(), 1.0)
    mask = np.asarray(batch.completion_mask)
    np.testing.assert_allclose(
        np.asarray(scored.old_logprobs)[mask],
        np.asarray(batch.sampler_logprobs)[mask],
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "objective", [GRPO(), losses.DAPO(max_tokens=3.0, overlong_buffer=2.0)]
)
def test_the_advantages_that_are_shown_are_those_of_the_update(
    programs, params, other, objective
):
    """Of an underfull batch, too, whose empty places have none."""
    groups = sample(programs, params)[1:]
    host = make_batch(groups, NUM_GROUPS)
    scored = programs.score(
        programs.init_state(params),
        other,
        to_device(host, programs.row_sharding),
        objective,
        1.0,
    )
    used = np.asarray(scored.advantages).reshape(NUM_GROUPS, GROUP)[: len(groups)]
    shown = completion_advantages(objective, groups)
    np.testing.assert_allclose(shown, used, rtol=1e-6)
    assert np.abs(used).max() > 0


def test_advantages_of_tokens_are_shown_as_their_mean_and_those_of_the_kl_not(
    programs, params
):
    groups = sample(programs, params)
    shown = completion_advantages(losses.ReinforcePlusPlus(kl=None), groups)
    assert shown.shape == (NUM_GROUPS, GROUP)
    assert (shown[:, 0] > 0).all()
    assert (shown[:, 1] < 0).all()
    assert completion_advantages(losses.RLOO(kl=0.1), groups) is None
    assert completion_advantages(GRPO(), []) is None


def test_a_reference_can_be_another_network(params, batch):
    """Its log-probabilities are those of that network, which here is wider."""
    teacher = replace(NETWORK, mlp_width=2 * NETWORK.mlp_width)
    programs = make_programs(reference=teacher)
    loaded = to_device(
        jax.device_get(random_params(teacher, seed=9)),
        jax.tree.map(lambda leaf: leaf.sharding, programs.reference_like),
    )
    reference = programs.make_other_reference(loaded)
    scored = programs.score(programs.init_state(params), reference, batch, GRPO(), 1.0)
    micro_batches = MicroBatches(0, GROUP, 1).for_rows(len(batch.tokens))
    expected = batch_logprobs(
        GroupScorer(teacher, prompt_width=WIDTH), loaded, batch, 1.0, micro_batches
    )
    np.testing.assert_allclose(scored.ref_logprobs, expected, atol=1e-5)
    state, metrics = programs.update(
        programs.init_state(params), reference, batch, GRPO(), 1.0
    )
    assert metrics["policy/kl"] > 0.01
    # The policy is still the student's network.
    assert jax.tree.structure(state.params) == jax.tree.structure(
        programs.state_like.params
    )


def test_a_kl_target_ends_the_updates_of_a_batch_early(params, other, batch):
    programs = make_programs(optimizer=optax.sgd(1.0))
    rule = UpdateRule(NUM_GROUPS, updates=2, epochs=4)
    _, every = run(programs, params, other, batch, rule)
    seen = [metrics["policy/kl_old"] for metrics in every]
    assert len(seen) == 8
    # Between what the third update saw and what all before it did.
    target = (max(seen[:2]) + seen[2]) / 2
    assert seen[2] > target
    _, made = run(programs, params, other, batch, replace(rule, target_kl=target))
    assert [metrics["policy/kl_old"] for metrics in made] == seen[:3]


def test_the_updates_of_a_batch_are_one_step_of_the_learning_rate(params, other, batch):
    def update(gradient, state, params=None, *, step):
        return jax.tree.map(lambda g: jnp.full_like(g, step + 1.0), gradient), state

    programs = make_programs(
        optimizer=optax.GradientTransformationExtraArgs(lambda params: (), update)
    )
    state = programs.init_state(params)
    before = to_host(state.params)
    for step in (1, 2):
        state, _ = update_policy(
            programs, state, other, batch, GRPO(), 1.0, SEVERAL, step
        )
        assert int(state.step) == step
    # Four updates at step 0 and four at step 1.
    moved = jax.tree.map(np.subtract, to_host(state.params), before)
    for leaf in jax.tree.leaves(moved):
        np.testing.assert_allclose(leaf, 4 * 1.0 + 4 * 2.0, atol=1e-5)


def test_a_mini_batch_without_a_token_moves_nothing(programs, params, other, batch):
    empty = batch._replace(completion_mask=jnp.zeros_like(batch.completion_mask))
    state, updates = run(programs, params, other, empty, SEVERAL)
    assert leaves(state.params) == leaves(programs.init_state(params).params)
    assert int(state.step) == 1
    assert merge_metrics(updates)["update/tokens"] == 0


@pytest.mark.parametrize("micro_batch", [2, 4])
def test_micro_batches_do_not_change_the_updates(
    programs, params, other, batch, micro_batch
):
    expected, expected_updates = run(programs, params, other, batch, SEVERAL)
    small = make_programs(micro_batch=micro_batch)
    state, updates = run(small, params, other, batch, SEVERAL)
    assert_close(state.params, expected.params)
    for metrics, others in zip(updates, expected_updates, strict=True):
        assert_same_metrics(metrics, others)


def test_several_updates_compile_no_more_than_their_three_programs(
    params, other, batch
):
    programs = make_programs()
    state = programs.init_state(params)
    for step in (1, 2):
        state, _ = update_policy(
            programs, state, other, batch, GRPO(), 1.0, SEVERAL, step
        )
    assert programs.score.compiled == 1
    assert programs.update_scored.compiled == 1
    assert programs.update.compiled == 0


def test_metrics_of_a_step_are_means_over_the_tokens_of_its_updates():
    updates = [
        {
            "update/tokens": 3.0,
            "policy/kl": 1.0,
            "policy/ratio_max": 2.0,
            "policy/logprob_gap_p99": 0.1,
            "policy/kl_old": 0.0,
        },
        {
            "update/tokens": 1.0,
            "policy/kl": 5.0,
            "policy/ratio_max": 1.5,
            "policy/logprob_gap_p99": 7.0,
            "policy/kl_old": 0.4,
        },
    ]
    assert merge_metrics(updates) == pytest.approx(
        {
            "update/tokens": 4.0,
            "update/count": 2.0,
            "policy/kl": 2.0,
            "policy/ratio_max": 2.0,
            "policy/logprob_gap_p99": 0.1,
            "policy/kl_old": 0.1,
            "policy/kl_old_last": 0.4,
        }
    )


def test_an_update_without_a_token_says_nothing():
    """Neither first nor last does it stand for the others."""
    empty = {"update/tokens": 0.0, "policy/logprob_gap_p99": 0.0, "policy/kl_old": 0.0}
    full = {"update/tokens": 3.0, "policy/logprob_gap_p99": 0.2, "policy/kl_old": 0.4}
    assert merge_metrics([empty, full, empty]) == pytest.approx(
        {**full, "update/count": 3.0, "policy/kl_old_last": 0.4}
    )


@dataclass(frozen=True)
class Coin(Scorer):
    """Scores a policy over two tokens: params is the logit of token 1."""

    def __call__(self, params, batch, temperature, rows_per_prompt, entropy):
        """Returns log p(1) = log sigmoid(logit) where the token is 1, else log p(0)."""
        sign = 2.0 * batch.tokens - 1.0
        logprobs = jax.nn.log_sigmoid(sign * params["logit"])
        return Scores(logprobs, jnp.zeros_like(logprobs) if entropy else None, params)


@pytest.mark.parametrize(
    ("clip", "logit"),
    [
        # Both ratios have left 0.8 .. 1.2, in the direction of their advantages: no gradient.
        (0.2, 0.5),
        # -1/2 (1.2449187 * 0.3775407 + 0.7550813 * 0.6224593) = -0.4700074
        (0.3, 0.9700074),
    ],
)
def test_two_updates_by_hand(clip, logit):
    """Token 1 was right and token 0 wrong, both sampled at probability 1/2; SGD at rate 1.

    Advantages are 1 and -1, each token weighs 1/2. At ratio 1 the gradient of the logit is
    -1/2 (1 * 1/2 + 1 * 1/2) = -1/2, so the logit becomes 1/2, and p(1) = 0.6224593. The ratios are
    then 0.6224593 / 0.5 = 1.2449187 and 0.3775407 / 0.5 = 0.7550813.
    """
    batch = TrainBatch(
        tokens=jnp.array([[1], [0]]),
        segments=jnp.ones((2, 1), jnp.int32),
        completion_mask=jnp.ones((2, 1), bool),
        rewards=jnp.array([1.0, 0.0]),
        sampler_logprobs=jnp.full((2, 1), jnp.log(0.5)),
    )
    optimizer = optax.sgd(1.0)
    updater = Updater(Coin(NETWORK), optimizer, MicroBatches(0, 1, 1), group_size=2)
    objective = GRPO(clip_low=clip, clip_high=clip, kl=0.0)
    state = init_state(optimizer, {"logit": jnp.float32(0)}, "float32", "float32")
    scored = updater.score(state, None, batch, objective, 1.0)
    rows = take_groups(scored, jnp.array([0]), group_size=2)
    logits = []
    for index in range(2):
        state, metrics = updater.update_scored(
            state, None, rows, jnp.int32(index), objective, 1.0
        )
        logits.append(float(state.params["logit"]))
    np.testing.assert_allclose(logits, [0.5, logit], atol=1e-6)
    np.testing.assert_allclose(metrics["policy/ratio_max"], 1.2449187, rtol=1e-6)
    clipped = metrics["policy/clipped_low"] + metrics["policy/clipped_high"]
    assert clipped == (1.0 if clip == 0.2 else 0.0)


@dataclass(frozen=True)
class Table(Scorer):
    """Scores a policy whose parameters are the log-probabilities themselves, [B, T]."""

    def __call__(self, params, batch, temperature, rows_per_prompt, entropy):
        """Returns the parameters."""
        logprobs = params["logprobs"]
        return Scores(logprobs, jnp.zeros_like(logprobs) if entropy else None, params)


@losses.frozen_pytree
class WithAdvantages(Wrapper):
    """An objective whose advantages are given."""

    objective: losses.Objective
    values: jax.Array

    def advantages(self, rewards, mask=None, kl=None):
        """Returns the values."""
        return self.values.reshape(rewards.shape)

    def token_loss(self, inputs):
        """Returns the objective's loss."""
        return self.objective.token_loss(inputs)


@pytest.mark.parametrize("case", GOLDEN["iterations"], ids=lambda case: case["name"])
def test_two_updates_are_two_iterations_of_trl(case):
    """TRL's num_iterations=2: losses, and log-probabilities after gradient descent, to 1e-5."""
    arrays = {
        name: jnp.array(INPUTS[name], jnp.float32)
        for name in ("old_logprobs", "ref_logprobs", "advantages")
    }
    old = arrays["old_logprobs"]
    batch = TrainBatch(
        tokens=jnp.zeros(old.shape, jnp.int32),
        segments=jnp.ones(old.shape, jnp.int32),
        completion_mask=jnp.arange(old.shape[1]) < LENGTHS[:, None],
        rewards=jnp.zeros(len(old)),
        sampler_logprobs=old,
    )
    optimizer = optax.sgd(case["rate"])
    group_size = INPUTS["group_size"]
    updater = Updater(Table(NETWORK), optimizer, MicroBatches(0, 1, 1), group_size)
    objective = WithAdvantages(objective_of(case["settings"])[0], arrays["advantages"])
    reference = {"logprobs": arrays["ref_logprobs"]}
    state = init_state(optimizer, {"logprobs": old}, "float32", "float32")
    scored = updater.score(state, reference, batch, objective, 1.0)
    loss_values = []
    for index in range(2):
        state, metrics = updater.update_scored(
            state, reference, scored, jnp.int32(index), objective, 1.0
        )
        loss_values.append(metrics["update/loss"])
    np.testing.assert_allclose(loss_values, case["losses"], rtol=1e-5, atol=1e-5)
    mask = np.array(batch.completion_mask)
    np.testing.assert_allclose(
        np.array(state.params["logprobs"])[mask],
        np.array(case["logprobs"])[mask],
        rtol=1e-5,
        atol=1e-5,
    )


def compare_meshes():
    """Checks that meshes give what one device gives; runs in a process with eight devices."""
    params = random_params(NETWORK)
    other = random_params(NETWORK, seed=5)
    expected = None
    for sizes in ((1, 1, 1), (2, 2, 2), (1, 8, 1)):
        mesh = make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)])
        programs = make_programs(mesh)
        placed = place(programs, params)
        reference = programs.make_reference(place(programs, other))
        groups = sample(programs, placed)
        batch = to_device(make_batch(groups, NUM_GROUPS), programs.row_sharding)
        rule = UpdateRule(NUM_GROUPS, updates=2)
        state, updates = run(programs, placed, reference, batch, rule)
        result = to_host(state.params), updates
        expected = expected or result
        assert_close(result[0], expected[0], atol=2e-6)
        for metrics, others in zip(updates, expected[1], strict=True):
            assert_same_metrics(metrics, others)
        print("equal", *sizes)


def test_every_mesh_makes_the_same_updates():
    assert output_on_devices(compare_meshes).count("equal") == 3
