"""Laws of the optimizer: its rate by step, the gradient's norm, which parameters decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrpo.device.learner import Updater
from jaxgrpo.device.micro_batches import MicroBatches
from jaxgrpo.device.optimizer import (
    Optimizer,
    adamw,
    cast,
    optimizer_updates,
    round_stochastically,
    schedule,
)
from jaxgrpo.device.scorer import RowScorer
from jaxgrpo.distributed.mesh import matrix_mask
from jaxgrpo.errors import UserError
from jaxgrpo.types import TrainState
from tests.tiny_models import NETWORK

PEAK = 3e-3


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [1, 2, 5])
def test_the_warmup_climbs_evenly_from_the_first_update_to_the_peak(kind, warmup):
    rates = [
        float(schedule(kind, PEAK, warmup, 20)(step)) for step in range(warmup + 1)
    ]
    expected = [PEAK * (step + 1) / warmup for step in range(warmup)]
    np.testing.assert_allclose(rates, [*expected, PEAK], rtol=1e-6)


@pytest.mark.parametrize("warmup", [0, 4])
def test_after_the_warmup(warmup):
    steps = 24
    middle = (steps + warmup) // 2
    constant = schedule("constant", PEAK, warmup, steps)
    linear = schedule("linear", PEAK, warmup, steps)
    cosine = schedule("cosine", PEAK, warmup, steps)
    for step in (warmup, middle, steps, 10 * steps):
        assert float(constant(step)) == pytest.approx(PEAK)
    for falling in (linear, cosine):
        assert float(falling(warmup)) == pytest.approx(PEAK)
        assert float(falling(middle)) == pytest.approx(PEAK / 2)
        assert float(falling(steps)) == pytest.approx(0, abs=1e-9)
        assert float(falling(10 * steps)) == pytest.approx(0, abs=1e-9)
    quarter = warmup + (steps - warmup) // 4
    assert float(cosine(quarter)) > float(linear(quarter))


def test_more_warmup_than_steps_never_falls():
    rates = [float(schedule("cosine", PEAK, 10, 5)(step)) for step in range(5)]
    assert rates == sorted(rates)
    assert rates[0] > 0


def test_an_unknown_schedule_lists_those_known():
    with pytest.raises(
        UserError, match=r"optimizer.schedule is 'step'.*constant, linear, cosine"
    ):
        schedule("step", PEAK, 0, 10)


def make_adamw(rate=0.1, weight_decay=0.0, max_grad_norm=1.0, b1=0.9) -> Optimizer:
    return adamw(optax.constant_schedule(rate), b1, 0.95, weight_decay, max_grad_norm)


def make_step(
    optimizer: Optimizer, state: TrainState, gradient, has_tokens: bool = True
) -> TrainState:
    """Returns the state after a step of the learner."""
    updater = Updater(RowScorer(NETWORK), optimizer, MicroBatches(0, 1, 1))
    return updater._step(state, gradient, jnp.bool_(has_tokens))


def make_steps(
    optimizer: Optimizer, gradient, params, steps: int, empty=()
) -> TrainState:
    """Returns the state after some steps of the learner.

    empty: the steps that have nothing to train on
    """
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    for step in range(steps):
        state = make_step(optimizer, state, gradient, step not in empty)
    return state


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_the_rate_is_that_of_the_step_whatever_the_steps_before_it_trained_on(
    kind, warmup
):
    """Gradients are 1, so that Adam moves by the rate."""
    rate = schedule(kind, PEAK, warmup, 8)
    params = {"a": jnp.zeros(3)}
    optimizer = adamw(rate, 0.0, 0.0, 0.0, 10.0)
    gradient = {"a": jnp.ones(3)}
    for step in range(8):
        empty = range(step) if step % 2 else range(0, step, 2)
        before = make_steps(optimizer, gradient, params, step, empty)
        after = make_steps(optimizer, gradient, params, step + 1, empty)
        np.testing.assert_allclose(
            before.params["a"] - after.params["a"], rate(step), rtol=1e-5
        )
        assert int(after.step) == step + 1


def test_where_every_step_trains_the_updates_are_those_of_optax_bit_for_bit():
    rng = np.random.default_rng(0)
    params = {
        "kernel": jnp.asarray(rng.normal(size=(5, 4)), jnp.float32),
        "scale": jnp.ones(4),
    }
    rate = schedule("cosine", PEAK, 3, 9)
    ours = adamw(rate, 0.9, 0.95, 0.1, 1.0)
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=0.1, mask=matrix_mask),
    )
    our_state = TrainState(jnp.int32(0), params, ours.init(params))
    their_params = params
    their_opt_state = theirs.init(params)

    def draw(leaf):
        return jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)

    @jax.jit  # as our step is: compiled arithmetic rounds in other places
    def make_their_step(gradient, opt_state, params):
        updates, opt_state = theirs.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for step in range(9):
        gradient = jax.tree.map(draw, params)
        our_state = make_step(ours, our_state, gradient)
        their_params, their_opt_state = make_their_step(
            gradient, their_opt_state, their_params
        )
        their_state = TrainState(jnp.int32(step + 1), their_params, their_opt_state)
        jax.tree.map(np.testing.assert_array_equal, our_state, their_state)


def test_the_correction_of_the_moments_bias_counts_updates():
    params = {"a": jnp.zeros(3)}
    state = make_steps(make_adamw(), {"a": jnp.ones(3)}, params, 5, empty=(0, 1, 3))
    counts = {
        jax.tree_util.keystr(path): int(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if leaf.dtype == jnp.int32
    }
    assert [count for path, count in counts.items() if path.startswith("[1][0]")] == [2]


def test_an_optimizer_that_knows_no_step_takes_one():
    updates, _ = optimizer_updates(
        optax.scale(-2.0), {"a": jnp.ones(2)}, optax.EmptyState(), None, jnp.int32(7)
    )
    np.testing.assert_array_equal(updates["a"], [-2.0, -2.0])


def first_moment(state):
    """Returns the first moment: (1 - b1) times the gradient after clipping."""
    return next(
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if "mu" in jax.tree_util.keystr(path)
    )


@pytest.mark.parametrize(("norm", "seen"), [(100.0, 1.0), (1.5, 1.0), (0.25, 0.25)])
def test_gradients_are_clipped_to_the_norm_and_small_ones_left(norm, seen):
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones(4)}
    gradient = jax.tree.map(
        lambda leaf: jnp.ones_like(leaf) * norm / jnp.sqrt(10.0), params
    )
    optimizer = make_adamw()
    _, state = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(first_moment(state), 0.1 * seen / np.sqrt(10), rtol=1e-5)


def test_only_matrices_decay():
    params = {
        "kernel": jnp.full((3, 2), 2.0),
        "scale": jnp.full(4, 2.0),
        "bias": jnp.full(1, 2.0),
    }
    optimizer = make_adamw(rate=0.1, weight_decay=0.5)
    no_gradient = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(no_gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5 * 2.0, rtol=1e-6)
    assert not updates["scale"].any()
    assert not updates["bias"].any()


def test_the_first_update_moves_each_parameter_by_the_rate_against_its_gradient():
    params = {"kernel": jnp.zeros((2, 2))}
    gradient = {"kernel": jnp.array([[0.3, -0.2], [0.01, -0.5]])}
    optimizer = make_adamw(rate=0.01)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(
        updates["kernel"], -0.01 * jnp.sign(gradient["kernel"]), rtol=1e-4
    )


def test_norms_of_stacked_layers_do_not_decay():
    params = {
        "layers": {
            "norm": {"scale": jnp.ones((2, 4))},
            "up": {"kernel": jnp.ones((2, 4, 3))},
        }
    }
    optimizer = make_adamw(weight_decay=0.5)
    no_gradient = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(no_gradient, optimizer.init(params), params)
    assert not updates["layers"]["norm"]["scale"].any()
    assert updates["layers"]["up"]["kernel"].all()


def test_storing_in_bfloat16_is_exact_on_average():
    numbers = jnp.repeat(jnp.array([1.001, -3.3e-7, 1.0, 0.0])[:, None], 20_000, axis=1)
    like = jnp.zeros(numbers.shape, jnp.bfloat16)
    stored = round_stochastically({"a": numbers}, {"a": like}, jax.random.key(7))["a"]
    assert stored.dtype == jnp.bfloat16
    wide = np.asarray(stored, np.float64)
    np.testing.assert_allclose(wide.mean(axis=1), numbers[:, 0], rtol=2e-4)
    assert [len(np.unique(row)) for row in wide] == [2, 2, 1, 1]
    assert np.abs(wide - np.asarray(numbers)).max() < 2**-7


def test_storing_is_a_function_of_the_step_and_the_place():
    tree = {"a": jnp.full(64, 1.001), "b": jnp.full(64, 1.001)}
    like = cast(tree, jnp.bfloat16)
    first = round_stochastically(tree, like, jax.random.key(1))
    again = round_stochastically(tree, like, jax.random.key(1))
    later = round_stochastically(tree, like, jax.random.key(2))
    assert (first["a"] == again["a"]).all()
    assert (first["a"] != later["a"]).any()
    assert (first["a"] != first["b"]).any()


def test_what_is_stored_as_it_is_stays_as_it_is():
    tree = {
        "a": jnp.array([1.001]),
        "count": jnp.int32(3),
        "bad": jnp.array([jnp.inf, -jnp.inf, jnp.nan]),
    }
    same = round_stochastically(tree, tree, jax.random.key(0))
    assert same["a"] is tree["a"]
    assert cast(tree, jnp.bfloat16)["count"].dtype == jnp.int32
    bad = round_stochastically(
        tree["bad"], tree["bad"].astype(jnp.bfloat16), jax.random.key(0)
    )
    np.testing.assert_array_equal(bad.astype(jnp.float32), tree["bad"])
