"""Laws of the compiled programs: how rows are cut, padded, masked or spread over devices does not change an update."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrpo import losses
from jaxgrpo.device import learner
from jaxgrpo.device.logprobs import token_logprobs
from jaxgrpo.distributed.mesh import make_mesh, named_leaves, to_device, to_host
from jaxgrpo.losses import GRPO
from jaxgrpo.models import attention, transformer
from jaxgrpo.problems import Completion, Problem
from jaxgrpo.programs import compile_programs
from jaxgrpo.rollout.collect import make_batch
from jaxgrpo.rollout.engine import Draw, Engine, Group
from tests.tiny_devices import output_on_devices
from tests.tiny_engines import (
    ENDS,
    NETWORK,
    TOKENIZER,
    assert_same_texts,
    completions,
    make_problems,
)
from tests.tiny_models import random_params

WIDTH, NEW, PLACES, GROUP = 5, 6, 8, 2
ROWS = PLACES * GROUP
MESHES = ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2))
SCANNED = (2, 2, 2)
"""Where the update is also made with its layers scanned."""


def make_steps(mesh=None, micro_batch=0, **changes):
    # Adam with a large epsilon: with the usual one, rounding in a gradient near 0 decides which way a parameter goes.
    adam = optax.adamw(2e-3, b1=0.9, b2=0.95, eps=1e-2, weight_decay=0.1)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), adam)
    shapes = {
        "prompt_width": WIDTH,
        "new_tokens": NEW,
        "ends": ENDS,
        "slots": 16,
        "chunk": 4,
        "group_size": GROUP,
    }
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    return compile_programs(NETWORK, optimizer, mesh, micro_batch=micro_batch, **shapes, **changes)


def sample(steps, params):
    """Groups in which the first completion was right and the second wrong."""
    engine = Engine(steps, TOKENIZER, WIDTH, NEW, seed=0)
    groups = engine(params, make_problems(PLACES, longest=WIDTH), GROUP, Draw(), 1, "training")
    for group in groups:
        group.rewards = np.array([1.0, 0.0])
    return groups


@pytest.fixture(scope="module")
def steps():
    return make_steps()


def place(steps, params):
    """Where `steps` wants parameters: placed otherwise, they would have it compile once more."""
    return to_device(
        jax.device_get(params), jax.tree.map(lambda leaf: leaf.sharding, steps.params_like)
    )


@pytest.fixture(scope="module")
def params(steps):
    return place(steps, random_params(NETWORK))


@pytest.fixture(scope="module")
def other(steps):
    """A reference that is not the policy."""
    return place(steps, random_params(NETWORK, seed=5))


@pytest.fixture(scope="module")
def batch(steps, params):
    return make_batch(sample(steps, params), PLACES)


@pytest.fixture(scope="module")
def updated(steps, params, other, batch):
    """What an update makes of the whole batch."""
    return jax.device_get(steps.update(steps.init(params), other, batch, GRPO(), 1.0))


def leaves(tree):
    """Bit for bit comparable."""
    return {name: np.asarray(leaf).tobytes() for name, leaf in named_leaves(tree).items()}


def assert_close(a, b, atol=1e-6):
    for name, leaf in named_leaves(a).items():
        np.testing.assert_allclose(leaf, named_leaves(b)[name], rtol=0, atol=atol, err_msg=name)


def assert_same_metrics(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_scanning_the_layers_and_keeping_little_do_not_change_the_update(
    params, other, batch, updated
):
    steps = make_steps(scan_layers=True, remat="full")
    state, metrics = steps.update(steps.init(params), steps.refer(other), batch, GRPO(), 1.0)
    assert "layers" in state.params
    assert_close(transformer.unstack(state.params), updated[0].params)
    assert_same_metrics(metrics, updated[1])
    assert leaves(steps.publish(steps.init(params).params)) == leaves(params)


def test_parameters_and_moments_can_be_stored_in_bfloat16(params, other, batch, updated):
    steps = make_steps(params_dtype=jnp.bfloat16, state_dtype=jnp.bfloat16)
    state, metrics = steps.update(steps.init(params), other, batch, GRPO(), 1.0)
    for path, leaf in named_leaves((state.params, state.opt_state)).items():
        assert leaf.dtype == (jnp.int32 if path.endswith("count") else jnp.bfloat16), path
    kept = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), state.params)
    assert_close(kept, updated[0].params, atol=0.01)
    np.testing.assert_allclose(
        metrics["update/grad_norm"], updated[1]["update/grad_norm"], rtol=0.1
    )
    memory = steps.memory(other, batch, GRPO(), 1.0)
    assert (
        memory["memory/reference"]
        == 2 * memory["memory/parameters"]
        == sum(leaf.nbytes for leaf in jax.tree.leaves(other))
    )
    assert memory["memory/temporaries"] > 0
    assert steps.update.compiled == 1


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_microbatches_do_not_change_the_update(params, other, batch, updated, micro_batch):
    steps = make_steps(micro_batch=micro_batch)
    state, metrics = steps.update(steps.init(params), other, batch, GRPO(), 1.0)
    assert_close(state.params, updated[0].params)
    assert_same_metrics(metrics, updated[1])


def test_empty_rows_change_nothing(steps, params, other, batch):
    """An underfull batch is filled with rows whose mask is empty, whatever else they hold."""
    kept = ROWS - 4
    underfull = jax.tree.map(lambda x: x[:kept], batch)
    filled = jax.tree.map(np.copy, batch)
    filled.completion_mask[kept:] = False
    filled.segments[kept:] = 0
    filled.rewards[kept:] = np.nan
    filled.sampler_logprobs[kept:] = np.inf
    alone, alone_metrics = steps.update(steps.init(params), other, underfull, GRPO(), 1.0)
    state, metrics = steps.update(steps.init(params), other, filled, GRPO(), 1.0)
    assert_close(state.params, alone.params)
    assert_same_metrics(metrics, alone_metrics)


def test_an_empty_batch_changes_nothing_but_the_step(steps, params, other, batch):
    state, _ = steps.update(steps.init(params), other, batch, GRPO(), 1.0)  # there is momentum
    before = jax.device_get(state)
    empty = batch._replace(completion_mask=np.zeros_like(batch.completion_mask))
    after, metrics = steps.update(state, other, empty, GRPO(), 1.0)
    assert leaves(after.params) == leaves(before.params)
    assert leaves(after.opt_state) == leaves(before.opt_state)
    assert int(after.step) == int(before.step) + 1
    assert all(float(value) == 0 for value in metrics.values())


def test_what_no_mask_covers_does_not_matter(steps, params, other, batch, updated):
    rng = np.random.default_rng(1)
    ids = rng.integers(0, NETWORK.vocab_size, batch.tokens.shape, dtype=np.int32)
    numbers = rng.choice(np.array([np.nan, np.inf, -7.0], np.float32), ids.shape)
    scrambled = batch._replace(
        tokens=np.where(batch.segments > 0, batch.tokens, ids),
        sampler_logprobs=np.where(batch.completion_mask, batch.sampler_logprobs, numbers),
    )
    assert (scrambled.tokens != batch.tokens).any()
    state, metrics = steps.update(steps.init(params), other, scrambled, GRPO(), 1.0)
    assert leaves(state.params) == leaves(updated[0].params)
    assert leaves(metrics) == leaves(updated[1])


@pytest.mark.parametrize("micro_batch", [0, 4])
def test_rows_that_are_not_trained_on_move_nothing(params, other, batch, micro_batch):
    """For an objective whose advantages do not look at the mask they are as rows without a
    token."""
    steps = make_steps(micro_batch=micro_batch)
    trained = np.arange(ROWS) % 3 != 1
    left_out = batch._replace(trained=trained)
    emptied = batch._replace(completion_mask=batch.completion_mask & trained[:, None])
    ours, metrics = steps.update(steps.init(params), other, left_out, GRPO(), 1.0)
    theirs, their_metrics = steps.update(steps.init(params), other, emptied, GRPO(), 1.0)
    assert leaves(ours) == leaves(theirs)
    assert leaves(metrics) == leaves(their_metrics)
    assert metrics["update/tokens"] == batch.completion_mask[trained].sum()


@pytest.mark.parametrize(
    "objective",
    [
        losses.DAPO(max_tokens=6.0, overlong_buffer=3.0),
        losses.RLOO(kl=0.1),
        losses.ReinforcePlusPlus(kl=0.1),
        GRPO(),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_rows_that_are_not_trained_on_are_still_compared_with(objective):
    """What they chose, their lengths and their KL: the others' advantages are as if all were
    trained on."""
    rng = np.random.default_rng(2)
    lengths = np.array([3, 6, 6, 2])
    mask = np.arange(8) < lengths[:, None]
    noise = rng.normal(size=mask.shape).astype(np.float32)
    group = Group(
        Problem("p", "p", "1"),
        [Completion("", int(length)) for length in lengths],
        np.ones(mask.shape, np.int32),
        mask,
        mask,
        noise,
        np.zeros(mask.shape, int),
        lengths < 6,
        rewards=np.array([0.0, 1.0, 0.0, 1.0]),
    )
    batches = [
        jax.tree.map(jnp.asarray, make_batch([group], 1, masked)) for masked in (False, True)
    ]
    reference = jnp.asarray(noise - 0.5)
    all_rows, finished = (learner._advantages(objective, each, reference, 4) for each in batches)
    np.testing.assert_array_equal(finished, all_rows)
    assert (np.asarray(all_rows) != 0).any()


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_log_probability_that_is_not_finite_is_not_taken_for_agreement(
    steps, params, other, batch, broken
):
    numbers = batch.sampler_logprobs.copy()
    row = int(np.flatnonzero(batch.completion_mask.any(axis=1))[0])
    numbers[row, np.flatnonzero(batch.completion_mask[row])[0]] = broken
    _, metrics = steps.update(
        steps.init(params), other, batch._replace(sampler_logprobs=numbers), GRPO(), 1.0
    )
    assert not np.isfinite(metrics["policy/logprob_gap_p99"])


def test_the_reference_outlives_the_update(steps, batch):
    reference = place(steps, random_params(NETWORK))  # in place: nothing but a copy sets them apart
    before = leaves(reference)
    state = steps.init(reference)
    state, _ = steps.update(state, reference, batch, GRPO(), 1.0)
    steps.update(state, reference, batch, GRPO(), 1.0)
    assert leaves(reference) == before
    with pytest.raises(RuntimeError, match="deleted"):
        jax.tree.map(np.asarray, state.params)  # the state, though, was given away


def test_settings_compile_nothing(steps, params, other, batch):
    steps.update(steps.init(params), other, batch, GRPO(), 1.0)
    before = leaves(steps.update(steps.init(params), other, batch, GRPO(), 1.0)[0].params)
    programs = steps.update.compiled
    for objective, temperature in ((GRPO(kl=0.5), 1.0), (GRPO(clip_high=0.3), 1.0), (GRPO(), 0.6)):
        state, _ = steps.update(steps.init(params), other, batch, objective, temperature)
    assert steps.update.compiled == programs
    assert leaves(state.params) != before


def test_the_first_step_is_on_policy(steps, params, batch):
    """The sampler's log-probabilities are the scorer's, and a policy is at no distance from itself."""
    _, metrics = steps.update(steps.init(params), params, batch, GRPO(), 1.0)
    # What is scored is the same bit for bit (below); XLA may compute its last step anew where it takes the difference.
    rounding = np.finfo(np.float32).eps * np.abs(batch.sampler_logprobs).max()
    assert 0 <= metrics["policy/kl"] <= rounding**2 / 2
    assert metrics["policy/clipped_low"] == metrics["policy/clipped_high"] == 0
    np.testing.assert_allclose(metrics["policy/effective_sample_size"], 1, rtol=1e-5)
    assert metrics["policy/logprob_gap"] < 1e-5
    assert metrics["policy/logprob_gap_max"] < 1e-4
    assert metrics["update/tokens"] == batch.completion_mask.sum()
    assert metrics["update/grad_norm"] > 0


@pytest.mark.parametrize("micro_batch", [0, 4])
def test_policy_and_reference_are_scored_bit_for_bit_alike(params, batch, micro_batch):
    """Though one has a gradient, an entropy and a loss, and the other has none."""
    read = partial(learner.group_hidden_states, WIDTH, whole=lambda *_: None)
    cut = learner.MicroBatches(micro_batch, GROUP, 1).fitted(ROWS)
    score = partial(
        learner.score, partial(transformer.forward_with_prompts, NETWORK), read, {}, cut.together
    )

    def as_policy(params, batch, temperature):
        def loss(params, rows):
            logprobs, entropy = score(params, rows, temperature, entropy=True)
            return jnp.sum(jnp.exp(logprobs - rows.sampler_logprobs) * rows.completion_mask), (
                logprobs,
                entropy,
            )

        gradient, (logprobs, _) = learner.accumulate_gradients(loss, params, batch, cut)
        return cut.joined(logprobs), gradient

    as_reference = partial(learner.reference_logprobs, score, cut=cut)
    expected = jax.jit(as_reference)(params, batch, 1.0)
    np.testing.assert_array_equal(jax.jit(as_policy)(params, batch, 1.0)[0], expected)
    assert np.abs(expected).max() > 1


def test_a_prompt_that_is_read_once_for_its_group_is_read_as_in_each_row(
    params, other, batch, updated
):
    steps = make_steps(score_from=WIDTH)
    state, metrics = steps.update(steps.init(params), other, batch, GRPO(), 1.0)
    assert_close(state.params, updated[0].params)
    assert_same_metrics(metrics, updated[1])


def test_the_gap_shows_a_sampler_at_another_temperature(steps, params, batch):
    _, metrics = steps.update(steps.init(params), params, batch, GRPO(), 0.5)
    assert metrics["policy/logprob_gap"] > 0.1


@jax.jit
def completion_logprobs(params, batch):
    """The mean log-probability of a completion's tokens, for each row."""
    segments = jnp.asarray(batch.segments)
    positions, mask = attention.sequence_positions(segments), attention.sequence_mask(segments)
    hidden, _ = transformer.forward(NETWORK, params, jnp.asarray(batch.tokens), positions, mask)
    embedding, cap = transformer.output_embedding(params), NETWORK.logit_softcap
    logprobs, _ = token_logprobs(hidden, embedding, jnp.asarray(batch.tokens), 1.0, softcap=cap)
    return jnp.sum(logprobs * batch.completion_mask, axis=1) / batch.completion_mask.sum(axis=1)


def test_what_was_rewarded_becomes_likelier_and_what_was_punished_less(steps, params, batch):
    state, values = steps.init(params), []
    before = completion_logprobs(state.params, batch)
    for _ in range(12):
        state, metrics = steps.update(state, params, batch, GRPO(), 1.0)
        values.append(float(metrics["update/loss"]))
    gain = np.asarray(completion_logprobs(state.params, batch) - before)
    assert gain[0::2].mean() > 0.02
    assert gain[1::2].mean() < -0.02
    assert values[-1] < values[0] - 0.02
    assert metrics["policy/kl"] > 0
    assert int(state.step) == 12


def test_no_reference_is_no_kl(steps, params, other, batch):
    without, metrics = steps.update(steps.init(params), None, batch, GRPO(), 1.0)
    unweighted, _ = steps.update(steps.init(params), other, batch, GRPO(kl=0.0), 1.0)
    assert_close(without.params, unweighted.params)
    assert metrics["policy/kl"] == 0


def test_bfloat16_stays_near_float32(params, other, batch, updated):
    steps = make_steps(dtype=jnp.bfloat16)
    state, metrics = steps.update(steps.init(params), other, batch, GRPO(), 1.0)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    for name in ("update/loss", "update/grad_norm", "policy/kl", "policy/entropy"):
        np.testing.assert_allclose(
            metrics[name], updated[1][name], rtol=0.1, atol=0.02, err_msg=name
        )
    assert 0 < metrics["policy/logprob_gap"] < 0.1
    moves, expected = (
        np.concatenate(
            [
                np.ravel(leaf)
                for leaf in jax.tree.leaves(jax.tree.map(np.subtract, tree, jax.device_get(params)))
            ]
        )
        for tree in (jax.device_get(state.params), updated[0].params)
    )
    assert moves @ expected / np.linalg.norm(moves) / np.linalg.norm(expected) > 0.9


def test_a_kl_in_the_reward_is_the_same_in_micro_batches(params, other, batch):
    """It needs the reference's log-probabilities of the whole batch before any gradient."""
    results = []
    for micro_batch in (0, 4):
        steps = make_steps(micro_batch=micro_batch)
        state, metrics = steps.update(
            steps.init(params), other, batch, losses.ReinforcePlusPlus(kl=0.1), 1.0
        )
        results.append((jax.device_get(state.params), metrics))
    assert_close(results[0][0], results[1][0])
    assert_same_metrics(results[0][1], results[1][1])
    without, _ = steps.update(
        steps.init(params), other, batch, losses.ReinforcePlusPlus(kl=0.0), 1.0
    )
    assert leaves(without.params) != leaves(results[1][0])


def test_with_the_trainers_own_logprobs_the_ratio_is_one_and_the_gap_is_corrected(params, batch):
    """Sampled at temperature 1, trained at 0.5: a gap that somebody made."""
    steps = make_steps(old_logprobs="trainer")
    plain, metrics = steps.update(steps.init(params), None, batch, GRPO(), 0.5)
    assert metrics["policy/ratio"] == metrics["policy/ratio_max"] == 1
    assert metrics["policy/logprob_gap"] > 0.1
    assert metrics["policy/effective_sample_size"] < 0.9
    corrected, metrics = steps.update(
        steps.init(params), None, batch, losses.Corrected(GRPO()), 0.5
    )
    assert 0 < metrics["policy/correction"] < 2
    assert leaves(corrected.params) != leaves(plain.params)


def look_for_matrices_that_move():
    """Run in a process with eight devices: what a token of each row gathers is no matrix, whole or of a tensor's part."""
    rows = 40  # so many that nothing else is as large as a matrix
    matrices = {
        16 * columns // parts for columns in (8, 16, 24, NETWORK.vocab_size) for parts in (1, 2)
    }
    for sizes in ((1, 8, 1), (1, 4, 2), (2, 2, 2)):
        steps = make_steps(make_mesh(*sizes, devices=jax.devices()))
        like = lambda program, *given: arrays_like(program.trace(*given).lower().out_info)
        published, slots = (
            like(steps.publish, steps.params_like),
            like(steps.empty, rows, steps.rings[-1]),
        )
        halt, how = np.zeros(rows, bool), tuple(np.float32(0) for _ in range(5))
        text = (
            steps.decode.trace(published, slots, halt, how, np.int32(4), np.int32(0))
            .lower()
            .compile()
            .as_text()
        )
        gathered = re.findall(r"= \w+\[([\d,]+)\]\S* all-gather\(", text)
        moved = [
            shape
            for shape in gathered
            if np.prod([int(size) for size in shape.split(",")]) in matrices
        ]
        assert gathered
        assert not moved, (sizes, moved)
        print("still", *sizes)


def arrays_like(info):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), info
    )


def test_decoding_moves_no_matrix():
    assert output_on_devices(look_for_matrices_that_move).count("still") == 3


def compare_meshes():
    """Run in a process with eight devices: every mesh gives what one device gives."""
    params, other = random_params(NETWORK), random_params(NETWORK, seed=5)
    expected = None
    for sizes in ((1, 1, 1), *MESHES):
        mesh = make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)])
        steps = make_steps(mesh, micro_batch=8)
        placed, reference = place(steps, params), place(steps, other)
        groups = sample(steps, placed)
        scanned = [make_steps(mesh, micro_batch=8, scan_layers=True)] if sizes == SCANNED else []
        for each in (steps, *scanned):
            state = each.init(placed)
            for _ in range(2):
                batch = to_device(make_batch(groups, PLACES), steps.rows)
                state, metrics = each.update(state, each.refer(reference), batch, GRPO(), 1.0)
            for like, leaf in zip(
                jax.tree.leaves(each.state_like), jax.tree.leaves(state), strict=True
            ):
                assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim), (
                    leaf.sharding,
                    like.sharding,
                )
            result = (
                completions(groups),
                transformer.unstack(to_host(state.params)),
                to_host(metrics),
            )
            expected = expected or result
            assert_same_texts(result[0], expected[0])
            assert_close(result[1], expected[1], atol=2e-6)
            assert_same_metrics(result[2], expected[2])
            print("equal", *sizes)


def test_every_mesh_gives_the_same_samples_and_updates():
    assert output_on_devices(compare_meshes).count("equal") == 2 + len(MESHES)
