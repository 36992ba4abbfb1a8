"""Laws of the compiled programs.

How rows are cut into micro-batches, padded, masked or spread over devices changes no update.
"""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrpo import losses
from jaxgrpo.device.gradients import accumulate_gradients
from jaxgrpo.device.learner import Updater
from jaxgrpo.device.logprobs import token_logprobs
from jaxgrpo.device.micro_batches import MicroBatches
from jaxgrpo.device.optimizer import adamw, schedule
from jaxgrpo.device.scorer import GroupScorer, RowScorer, batch_logprobs
from jaxgrpo.device.specs import ModelSpec, Precision, SamplingSpec, UpdateSpec
from jaxgrpo.distributed.mesh import make_mesh, named_leaves, to_device, to_host
from jaxgrpo.losses import GRPO
from jaxgrpo.models import attention, transformer
from jaxgrpo.models.transformer import SequenceInputs
from jaxgrpo.problems import Completion, Problem
from jaxgrpo.programs import compile_programs
from jaxgrpo.rollout.batch import TrainedRows, make_batch
from jaxgrpo.rollout.groups import Group
from jaxgrpo.types import SamplingParams
from tests.tiny_devices import output_on_devices
from tests.tiny_engines import (
    ENDS,
    NETWORK,
    assert_same_texts,
    completions,
)
from tests.tiny_models import random_params
from tests.tiny_programs import (
    GROUP,
    NEW,
    NUM_GROUPS,
    ROWS,
    WIDTH,
    assert_close,
    assert_same_metrics,
    leaves,
    make_programs,
    place,
    sample,
    with_rewards,
)

MESHES = ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2))
SCANNED_MESH = (2, 2, 2)
"""The mesh on which the update is also made with its layers scanned."""


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
    return make_batch(sample(programs, params), NUM_GROUPS)


@pytest.fixture(scope="module")
def updated(programs, params, other, batch):
    """Returns the state and the metrics of an update on the whole batch."""
    return jax.device_get(
        programs.update(programs.init_state(params), other, batch, GRPO(), 1.0)
    )


def test_scanning_the_layers_and_keeping_little_do_not_change_the_update(
    params, other, batch, updated
):
    programs = make_programs(scan_layers=True, remat="full")
    state, metrics = programs.update(
        programs.init_state(params), programs.make_reference(other), batch, GRPO(), 1.0
    )
    assert "layers" in state.params
    assert_close(transformer.unstack(state.params), updated[0].params)
    assert_same_metrics(metrics, updated[1])
    assert leaves(programs.publish(programs.init_state(params).params)) == leaves(
        params
    )


def test_parameters_and_moments_can_be_stored_in_bfloat16(
    params, other, batch, updated
):
    programs = make_programs(
        precision=Precision(params=jnp.bfloat16, optimizer=jnp.bfloat16)
    )
    state, metrics = programs.update(
        programs.init_state(params), other, batch, GRPO(), 1.0
    )
    for path, leaf in named_leaves((state.params, state.opt_state)).items():
        assert leaf.dtype == (jnp.int32 if path.endswith("count") else jnp.bfloat16), (
            path
        )
    kept = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), state.params)
    assert_close(kept, updated[0].params, atol=0.01)
    np.testing.assert_allclose(
        metrics["update/grad_norm"], updated[1]["update/grad_norm"], rtol=0.1
    )
    memory = programs.memory(programs.update, other)
    assert (
        memory["memory/reference"]
        == 2 * memory["memory/parameters"]
        == sum(leaf.nbytes for leaf in jax.tree.leaves(other))
    )
    assert memory["memory/temporaries"] > 0
    assert programs.update.compiled == 1


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_microbatches_do_not_change_the_update(
    params, other, batch, updated, micro_batch
):
    programs = make_programs(micro_batch=micro_batch)
    state, metrics = programs.update(
        programs.init_state(params), other, batch, GRPO(), 1.0
    )
    assert_close(state.params, updated[0].params)
    assert_same_metrics(metrics, updated[1])


def test_empty_rows_change_nothing(programs, params, other, batch):
    """An underfull batch is filled with rows whose mask is empty, whatever else they hold."""
    kept = ROWS - 4
    underfull = jax.tree.map(lambda x: x[:kept], batch)
    filled = jax.tree.map(np.copy, batch)
    filled.completion_mask[kept:] = False
    filled.segments[kept:] = 0
    filled.rewards[kept:] = np.nan
    filled.sampler_logprobs[kept:] = np.inf
    alone, alone_metrics = programs.update(
        programs.init_state(params), other, underfull, GRPO(), 1.0
    )
    state, metrics = programs.update(
        programs.init_state(params), other, filled, GRPO(), 1.0
    )
    assert_close(state.params, alone.params)
    assert_same_metrics(metrics, alone_metrics)


def test_an_empty_batch_changes_nothing_but_the_step(programs, params, other, batch):
    state, _ = programs.update(
        programs.init_state(params), other, batch, GRPO(), 1.0
    )  # there is momentum
    before = jax.device_get(state)
    empty = batch._replace(completion_mask=np.zeros_like(batch.completion_mask))
    after, metrics = programs.update(state, other, empty, GRPO(), 1.0)
    assert leaves(after.params) == leaves(before.params)
    assert leaves(after.opt_state) == leaves(before.opt_state)
    assert int(after.step) == int(before.step) + 1
    assert all(float(value) == 0 for value in metrics.values())


def test_what_no_mask_covers_does_not_matter(programs, params, other, batch, updated):
    rng = np.random.default_rng(1)
    ids = rng.integers(0, NETWORK.vocab_size, batch.tokens.shape, dtype=np.int32)
    numbers = rng.choice(np.array([np.nan, np.inf, -7.0], np.float32), ids.shape)
    scrambled = batch._replace(
        tokens=np.where(batch.segments > 0, batch.tokens, ids),
        sampler_logprobs=np.where(
            batch.completion_mask, batch.sampler_logprobs, numbers
        ),
    )
    assert (scrambled.tokens != batch.tokens).any()
    state, metrics = programs.update(
        programs.init_state(params), other, scrambled, GRPO(), 1.0
    )
    assert leaves(state.params) == leaves(updated[0].params)
    assert leaves(metrics) == leaves(updated[1])


@pytest.mark.parametrize("micro_batch", [0, 4])
def test_rows_that_are_not_trained_on_move_nothing(params, other, batch, micro_batch):
    """They are as rows without a token, for an objective whose advantages ignore the mask."""
    programs = make_programs(micro_batch=micro_batch)
    trained = np.arange(ROWS) % 3 != 1
    left_out = batch._replace(trained=trained)
    emptied = batch._replace(completion_mask=batch.completion_mask & trained[:, None])
    ours, metrics = programs.update(
        programs.init_state(params), other, left_out, GRPO(), 1.0
    )
    theirs, their_metrics = programs.update(
        programs.init_state(params), other, emptied, GRPO(), 1.0
    )
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
    """The others' advantages are as if all were trained on.

    What the rows chose, their lengths and their KL go into the comparison.
    """
    rng = np.random.default_rng(2)
    lengths = np.array([3, 6, 6, 2])
    mask = np.arange(8) < lengths[:, None]
    noise = rng.normal(size=mask.shape).astype(np.float32)
    group = Group(
        problem=Problem("p", "p", "1"),
        texts=[Completion("", int(length)) for length in lengths],
        tokens=np.ones(mask.shape, np.int32),
        attention_mask=mask,
        completion_mask=mask,
        logprobs=noise,
        policy_steps=np.zeros(mask.shape, int),
        finished=lengths < 6,
    )
    judged = with_rewards(group, [0.0, 1.0, 0.0, 1.0])
    updater = Updater(
        RowScorer(NETWORK), optax.identity(), MicroBatches(0, 1, 1), group_size=4
    )
    ref_logprobs = jnp.asarray(noise - 0.5)

    def advantages(mask_truncated: bool):
        batch = jax.tree.map(
            jnp.asarray, make_batch([judged], 1, TrainedRows(mask_truncated))
        )
        return updater._advantages(objective, batch, ref_logprobs)

    of_all_rows = advantages(mask_truncated=False)
    np.testing.assert_array_equal(advantages(mask_truncated=True), of_all_rows)
    assert (np.asarray(of_all_rows) != 0).any()


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_log_probability_that_is_not_finite_is_not_taken_for_agreement(
    programs, params, other, batch, broken
):
    numbers = batch.sampler_logprobs.copy()
    row = int(np.flatnonzero(batch.completion_mask.any(axis=1))[0])
    numbers[row, np.flatnonzero(batch.completion_mask[row])[0]] = broken
    _, metrics = programs.update(
        programs.init_state(params),
        other,
        batch._replace(sampler_logprobs=numbers),
        GRPO(),
        1.0,
    )
    assert not np.isfinite(metrics["policy/logprob_gap_p99"])


def test_the_reference_outlives_the_update(programs, batch):
    reference = place(
        programs, random_params(NETWORK)
    )  # in place: nothing but a copy sets them apart
    before = leaves(reference)
    state = programs.init_state(reference)
    state, _ = programs.update(state, reference, batch, GRPO(), 1.0)
    programs.update(state, reference, batch, GRPO(), 1.0)
    assert leaves(reference) == before
    with pytest.raises(RuntimeError, match="deleted"):
        jax.tree.map(np.asarray, state.params)  # the state, though, was given away


def test_settings_compile_nothing(programs, params, other, batch):
    programs.update(programs.init_state(params), other, batch, GRPO(), 1.0)
    before = leaves(
        programs.update(programs.init_state(params), other, batch, GRPO(), 1.0)[
            0
        ].params
    )
    num_compiled = programs.update.compiled
    for objective, temperature in (
        (GRPO(kl=0.5), 1.0),
        (GRPO(clip_high=0.3), 1.0),
        (GRPO(), 0.6),
    ):
        state, _ = programs.update(
            programs.init_state(params), other, batch, objective, temperature
        )
    assert programs.update.compiled == num_compiled
    assert leaves(state.params) != before


def test_the_first_step_is_on_policy(programs, params, batch):
    """The sampler's log-probabilities are the scorer's, and the policy's KL to itself is 0."""
    _, metrics = programs.update(
        programs.init_state(params), params, batch, GRPO(), 1.0
    )
    # The scores are the same bit for bit (next test), but XLA may compute their last step anew
    # where it takes the difference.
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
    scorer = GroupScorer(NETWORK, prompt_width=WIDTH)
    micro_batches = MicroBatches(micro_batch, GROUP, devices=1).for_rows(ROWS)

    @jax.jit
    def as_policy(params, batch):
        def loss(params, rows):
            scores = scorer(
                params, rows, 1.0, micro_batches.rows_per_prompt, entropy=True
            )
            ratio = jnp.exp(scores.logprobs - rows.sampler_logprobs)
            value = jnp.sum(ratio * rows.completion_mask)
            return value, scores.logprobs, scores.params

        gradient, logprobs = accumulate_gradients(loss, params, batch, micro_batches)
        return micro_batches.merge(logprobs), gradient

    @jax.jit
    def as_reference(params, batch):
        return batch_logprobs(scorer, params, batch, 1.0, micro_batches)

    expected = as_reference(params, batch)
    np.testing.assert_array_equal(as_policy(params, batch)[0], expected)
    assert np.abs(expected).max() > 1


def test_a_prompt_that_is_read_once_for_its_group_is_read_as_in_each_row(
    params, other, batch, updated
):
    programs = make_programs(prompt_width=None)
    state, metrics = programs.update(
        programs.init_state(params), other, batch, GRPO(), 1.0
    )
    assert_close(state.params, updated[0].params)
    assert_same_metrics(metrics, updated[1])


@pytest.mark.parametrize(("is_tied", "most"), [(True, 2.5), (False, 4.5)])
def test_an_embedding_has_one_gradient_and_the_optimizer_copies_nothing(
    batch, is_tied, most
):
    """Counted in embeddings: each one's gradient, and what is added to it or clipped of it.

    A gradient for each use and copies of the moments would make three of two, and five of four.
    """
    network = replace(NETWORK, vocab_size=2**15, width=64, tied_embeddings=is_tied)
    programs = compile_programs(
        ModelSpec(network, make_mesh(devices=jax.devices()[:1])),
        SamplingSpec(WIDTH, NEW, slots=16, eos_ids=ENDS, group_size=GROUP),
        UpdateSpec(micro_batch=GROUP, group_size=GROUP, prompt_width=WIDTH),
        adamw(schedule("constant", 1e-3, 0, 1), 0.9, 0.999, 0.0, 1.0),
    )
    traced = programs.update.trace(programs.state_like, None, batch, GRPO(), 1.0)
    memory = traced.lower().compile().memory_analysis()
    embedding_bytes = network.vocab_size * network.width * 4
    assert memory.temp_size_in_bytes < most * embedding_bytes


def test_the_gap_shows_a_sampler_at_another_temperature(programs, params, batch):
    _, metrics = programs.update(
        programs.init_state(params), params, batch, GRPO(), 0.5
    )
    assert metrics["policy/logprob_gap"] > 0.1


@jax.jit
def completion_logprobs(params, batch):
    """Returns the mean log-probability of the completion's tokens, for each row."""
    tokens = jnp.asarray(batch.tokens)
    segments = jnp.asarray(batch.segments)
    inputs = SequenceInputs(
        tokens,
        attention.sequence_positions(segments),
        attention.sequence_mask(segments),
    )
    hidden, _ = transformer.forward(NETWORK, params, inputs)
    # From the prompt's last column on, which decides the first token of the completion.
    logprobs, _ = token_logprobs(
        hidden[:, WIDTH - 1 :],
        transformer.output_embedding(params),
        tokens[:, WIDTH - 1 :],
        1.0,
        softcap=NETWORK.logit_softcap,
    )
    mask = batch.completion_mask[:, WIDTH - 1 :]
    return jnp.sum(logprobs * mask, axis=1) / mask.sum(axis=1)


def test_what_was_rewarded_becomes_likelier_and_what_was_punished_less(
    programs, params, batch
):
    state = programs.init_state(params)
    loss_values = []
    before = completion_logprobs(state.params, batch)
    for _ in range(12):
        state, metrics = programs.update(state, params, batch, GRPO(), 1.0)
        loss_values.append(float(metrics["update/loss"]))
    gain = np.asarray(completion_logprobs(state.params, batch) - before)
    assert gain[0::2].mean() > 0.02
    assert gain[1::2].mean() < -0.02
    assert loss_values[-1] < loss_values[0] - 0.02
    assert metrics["policy/kl"] > 0
    assert int(state.step) == 12


def test_no_reference_is_no_kl(programs, params, other, batch):
    without, metrics = programs.update(
        programs.init_state(params), None, batch, GRPO(), 1.0
    )
    unweighted, _ = programs.update(
        programs.init_state(params), other, batch, GRPO(kl=0.0), 1.0
    )
    assert_close(without.params, unweighted.params)
    assert metrics["policy/kl"] == 0


def test_bfloat16_stays_near_float32(params, other, batch, updated):
    programs = make_programs(precision=Precision(compute=jnp.bfloat16))
    state, metrics = programs.update(
        programs.init_state(params), other, batch, GRPO(), 1.0
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {
        jnp.dtype("float32")
    }
    for name in ("update/loss", "update/grad_norm", "policy/kl", "policy/entropy"):
        np.testing.assert_allclose(
            metrics[name], updated[1][name], rtol=0.1, atol=0.02, err_msg=name
        )
    assert 0 < metrics["policy/logprob_gap"] < 0.1
    before = jax.device_get(params)

    def movement(params) -> np.ndarray:
        moves = jax.tree.map(np.subtract, params, before)
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(moves)])

    moved = movement(jax.device_get(state.params))
    expected = movement(updated[0].params)
    assert moved @ expected / np.linalg.norm(moved) / np.linalg.norm(expected) > 0.9


def test_a_kl_in_the_reward_is_the_same_in_micro_batches(params, other, batch):
    """It needs the reference's log-probabilities of the whole batch before any gradient."""
    results = []
    for micro_batch in (0, 4):
        programs = make_programs(micro_batch=micro_batch)
        state, metrics = programs.update(
            programs.init_state(params),
            other,
            batch,
            losses.ReinforcePlusPlus(kl=0.1),
            1.0,
        )
        results.append((jax.device_get(state.params), metrics))
    assert_close(results[0][0], results[1][0])
    assert_same_metrics(results[0][1], results[1][1])
    without, _ = programs.update(
        programs.init_state(params), other, batch, losses.ReinforcePlusPlus(kl=0.0), 1.0
    )
    assert leaves(without.params) != leaves(results[1][0])


def test_with_the_trainers_own_logprobs_the_ratio_is_one_and_the_gap_is_corrected(
    params, batch
):
    """Sampled at temperature 1 and trained at 0.5, so that there is a gap."""
    programs = make_programs(old_logprobs="trainer")
    plain, metrics = programs.update(
        programs.init_state(params), None, batch, GRPO(), 0.5
    )
    assert metrics["policy/ratio"] == metrics["policy/ratio_max"] == 1
    assert metrics["policy/logprob_gap"] > 0.1
    assert metrics["policy/effective_sample_size"] < 0.9
    corrected, metrics = programs.update(
        programs.init_state(params), None, batch, losses.Corrected(GRPO()), 0.5
    )
    assert 0 < metrics["policy/correction"] < 2
    assert leaves(corrected.params) != leaves(plain.params)


def look_for_matrices_that_move():
    """Checks that decoding gathers no matrix, whole or a tensor shard of it.

    It gathers activations of a token of each row. It runs in a process with eight devices.
    """
    rows = 40  # so many that no activation is as large as a matrix
    matrix_sizes = {
        16 * columns // shards
        for columns in (8, 16, 24, NETWORK.vocab_size)
        for shards in (1, 2)
    }
    int8 = Precision(int8_sampler=True)
    for sizes, precision in (
        ((1, 8, 1), Precision()),
        ((1, 4, 2), Precision()),
        ((2, 2, 2), Precision()),
        ((1, 4, 2), int8),
    ):
        mesh = make_mesh(*sizes, devices=jax.devices())
        programs = make_programs(mesh, precision)
        published = output_of(programs.publish, programs.params_like)
        state = output_of(programs.empty_state, rows, programs.ring_lengths[-1])
        traced = programs.decode.trace(
            published,
            state,
            np.zeros(rows, bool),
            SamplingParams().as_arrays(),
            np.int32(4),
            np.int32(0),
        )
        text = traced.lower().compile().as_text()
        gathered = re.findall(r"= \w+\[([\d,]+)\]\S* all-gather\(", text)
        moved = [
            shape
            for shape in gathered
            if np.prod([int(size) for size in shape.split(",")]) in matrix_sizes
        ]
        assert gathered
        assert not moved, (sizes, moved)
        print("still", *sizes)


def output_of(program, *arguments):
    """Returns a program's output as jax.ShapeDtypeStruct, without running it."""
    output = program.trace(*arguments).lower().out_info

    def with_sharding(leaf) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    return jax.tree.map(with_sharding, output)


def test_decoding_moves_no_matrix():
    assert output_on_devices(look_for_matrices_that_move).count("still") == 4


def compare_meshes():
    """Checks that every mesh gives what one device gives; runs in a process with eight devices."""
    params = random_params(NETWORK)
    other = random_params(NETWORK, seed=5)
    expected = None
    for sizes in ((1, 1, 1), *MESHES):
        mesh = make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)])
        programs = make_programs(mesh, micro_batch=8)
        placed = place(programs, params)
        placed_other = place(programs, other)
        groups = sample(programs, placed)
        layouts = [programs]
        if sizes == SCANNED_MESH:
            layouts.append(make_programs(mesh, micro_batch=8, scan_layers=True))
        for layout in layouts:
            state = layout.init_state(placed)
            for _ in range(2):
                reference = layout.make_reference(placed_other)
                batch = to_device(make_batch(groups, NUM_GROUPS), programs.row_sharding)
                state, metrics = layout.update(state, reference, batch, GRPO(), 1.0)
            assert_sharded_alike(state, layout.state_like)
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


def assert_sharded_alike(state, state_like):
    for leaf, like in zip(
        jax.tree.leaves(state), jax.tree.leaves(state_like), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim), (
            leaf.sharding,
            like.sharding,
        )


def test_every_mesh_gives_the_same_samples_and_updates():
    assert output_on_devices(compare_meshes).count("equal") == 2 + len(MESHES)
