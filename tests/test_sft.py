"""Packing loses nothing and changes nothing.

A packed batch trains as its examples would, each in a row of its own.
"""

import itertools

import jax
import numpy as np
import pytest

from jaxgrpo.data.examples import Example
from jaxgrpo.device.optimizer import adamw, schedule
from jaxgrpo.device.specs import ModelSpec, SamplingSpec, UpdateSpec
from jaxgrpo.distributed.mesh import make_mesh, named_leaves, to_device
from jaxgrpo.losses.sft import Supervised
from jaxgrpo.programs import compile_programs
from jaxgrpo.sft.packing import count_batches, count_examples, pack
from tests.tiny_models import NETWORK, random_params

ROWS = 4
WIDTH = 16
PAD = 0


def make_examples(count, seed=0, longest=WIDTH):
    """Returns examples of at most `longest` tokens.

    Ids start at the pad id, which may well be a real token.
    """
    rng = np.random.default_rng(seed)

    def draw(length: int) -> list[int]:
        return rng.integers(PAD, NETWORK.vocab_size, length).tolist()

    examples = []
    for _ in range(count):
        length = int(rng.integers(2, longest + 1))
        prompt = int(rng.integers(1, length))
        examples.append(Example(draw(prompt), draw(length - prompt)))
    return examples


def unpack(batch):
    """Yields the examples of a batch, row by row, from its segments and mask."""
    rows = zip(batch.tokens, batch.segments, batch.completion_mask, strict=True)
    for tokens, segments, mask in rows:
        for segment in range(1, segments.max() + 1):
            ids = tokens[segments == segment]
            chosen = mask[segments == segment]
            yield Example(ids[~chosen].tolist(), ids[chosen].tolist())


@pytest.mark.parametrize("seed", range(5))
def test_packing_loses_and_doubles_nothing(seed):
    examples = make_examples(60, seed)
    batches = list(pack(examples, ROWS, WIDTH, PAD))
    unpacked = [list(unpack(batch)) for batch in batches]
    assert sorted(itertools.chain(*unpacked)) == sorted(examples)
    position = 0
    for inside in unpacked:  # a batch holds the examples that were next
        assert sorted(inside) == sorted(examples[position : position + len(inside)])
        position += len(inside)
    assert len(batches) < 60 / ROWS  # the point of it
    assert [count_examples(batch) for batch in batches] == list(map(len, unpacked))
    lengths = [len(example.ids) for example in examples]
    assert count_batches(lengths, ROWS, WIDTH) == len(batches)


@pytest.mark.parametrize("seed", range(5))
def test_an_example_is_whole_and_prompts_come_first(seed):
    for batch in pack(make_examples(60, seed), ROWS, WIDTH, PAD):
        rows = zip(batch.tokens, batch.segments, batch.completion_mask, strict=True)
        for tokens, segments, mask in rows:
            used = np.count_nonzero(segments)
            assert (np.diff(segments[:used]) >= 0).all()
            assert not segments[used:].any()
            assert (tokens[used:] == PAD).all()
            assert not mask[used:].any()
            for segment in range(1, segments.max() + 1):
                chosen = mask[segments == segment]
                assert (np.diff(chosen.astype(int)) >= 0).all()
                assert not chosen[0]
                assert chosen[-1]


def test_one_row_keeps_the_very_order():
    examples = make_examples(20, longest=6)
    unpacked = map(unpack, pack(examples, 1, WIDTH, PAD))
    assert list(itertools.chain(*unpacked)) == examples


def test_batches_share_no_memory_and_come_as_they_fill():
    drawn = []

    def stream():
        for example in make_examples(1000):
            drawn.append(example)
            yield example

    packed = pack(stream(), ROWS, WIDTH, PAD)
    first = next(packed)
    assert len(drawn) < 50
    copy = jax.tree.map(np.copy, first)
    next(packed)
    jax.tree.map(np.testing.assert_array_equal, first, copy)


def test_what_fills_a_row_fits_and_what_is_longer_is_refused():
    full = Example([5] * 6, [6] * (WIDTH - 6))
    assert list(unpack(next(pack([full], 1, WIDTH, PAD)))) == [full]
    with pytest.raises(
        ValueError, match=rf"{WIDTH + 1} tokens does not fit into rows of {WIDTH}"
    ):
        list(pack([Example([5] * 6, [6] * (WIDTH - 5))], ROWS, WIDTH, PAD))


def test_a_completion_needs_a_prompt():
    """In a packed row its first token would be predicted from another example's last."""
    with pytest.raises(ValueError, match="no prompt"):
        list(pack([Example([], [6, 7])], ROWS, WIDTH, PAD))


def test_no_examples_no_batches():
    assert list(pack([], ROWS, WIDTH, PAD)) == []
    assert count_batches([], ROWS, WIDTH) == 0


@pytest.fixture(scope="module")
def programs():
    optimizer = adamw(
        schedule("constant", 3e-3, 0, 100),
        b1=0.9,
        b2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
    )
    return compile_programs(
        ModelSpec(NETWORK, make_mesh()),
        SamplingSpec(prompt_width=1, new_tokens=1, slots=1, eos_ids=(7,)),
        UpdateSpec(micro_batch=ROWS, prompt_width=None, old_logprobs="trainer"),
        optimizer,
    )


def test_a_packed_batch_trains_as_its_examples_would_alone(programs):
    examples = make_examples(ROWS, longest=WIDTH // 2)
    packed = next(pack(examples, ROWS, WIDTH, PAD))
    assert np.count_nonzero(packed.segments.any(axis=1)) == ROWS / 2
    rows = [next(pack([example], 1, WIDTH, PAD)) for example in examples]
    unpacked = jax.tree.map(lambda *arrays: np.concatenate(arrays), *rows)
    params = random_params(NETWORK)

    def update(batch):
        placed = to_device(batch, programs.row_sharding)
        state = programs.init_state(params)
        return jax.device_get(programs.update(state, None, placed, Supervised(), 1.0))

    state, metrics = update(packed)
    expected_state, expected_metrics = update(unpacked)
    for name in ("update/loss", "update/grad_norm", "update/tokens", "policy/entropy"):
        np.testing.assert_allclose(
            metrics[name], expected_metrics[name], rtol=1e-5, err_msg=name
        )
    # The gradient, as the optimizer's moments remember it.
    expected = named_leaves(expected_state.opt_state)
    for name, leaf in named_leaves(state.opt_state).items():
        np.testing.assert_allclose(
            leaf, expected[name], rtol=0, atol=1e-6, err_msg=name
        )


def test_the_loss_falls_and_is_the_mean_over_completion_tokens(programs):
    """A completion counts wherever it stands in its row."""
    batch = next(pack(make_examples(10), ROWS, WIDTH, PAD))
    placed = to_device(batch, programs.row_sharding)
    state = programs.init_state(random_params(NETWORK))
    losses = []
    for _ in range(20):
        scored = programs.score(state, None, placed, Supervised(), 1.0)
        logprobs = np.asarray(scored.old_logprobs)[batch.completion_mask]
        state, metrics = programs.update(state, None, placed, Supervised(), 1.0)
        losses.append(float(metrics["update/loss"]))
        assert losses[-1] == pytest.approx(-logprobs.mean(), rel=1e-5)
    assert losses[-1] < losses[0] - 0.3
    assert float(metrics["update/tokens"]) == batch.completion_mask.sum()
    assert programs.update.compiled == programs.score.compiled == 1
