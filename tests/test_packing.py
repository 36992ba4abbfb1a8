"""Laws of packing: bins hold every row once, and an update on them is the one on padded rows."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrpo import losses
from jaxgrpo.device.packed_scorer import PackedScorer
from jaxgrpo.device.specs import ModelSpec, Precision, SamplingSpec, UpdateSpec
from jaxgrpo.distributed.mesh import make_mesh, named_leaves, to_device, to_host
from jaxgrpo.losses import GRPO
from jaxgrpo.models import lora, splash, transformer
from jaxgrpo.models.lora import Lora
from jaxgrpo.models.products import take_columns
from jaxgrpo.programs import Programs, compile_programs
from jaxgrpo.rollout.packing import Packer, UnpackedGroup, pack_groups
from jaxgrpo.train import train
from jaxgrpo.types import NO_ENTRY, TrainBatch
from jaxgrpo.updates import UpdateRule, update_policy
from tests.tiny_devices import output_on_devices
from tests.tiny_models import NETWORK, random_params
from tests.tiny_runs import make_config, share_programs

WIDTH = 5
NEW = 7
GROUP = 3
NUM_GROUPS = 8
ROWS = NUM_GROUPS * GROUP
LENGTH = WIDTH + NEW
ADAPTERS = Lora(rank=2, alpha=3.0, targets=("query", "value", "out", "up", "down"))
GEMMA = dataclasses.replace(
    NETWORK, windows=(3, 0), attention_softcap=2.0, logit_softcap=3.0, head_norm="head"
)
"""A network with what of Gemma's may depend on where a token stands."""


def random_batch(
    seed: int = 0, num_groups: int = NUM_GROUPS, group: int = GROUP, new: int = NEW
) -> TrainBatch:
    """Returns groups with prompts and completions of random lengths, padded as rollouts are.

    Some rows have no token, some all; some have no reward, and so an empty mask.
    """
    rng = np.random.default_rng(seed)
    rows = num_groups * group
    shape = (rows, WIDTH + new)
    columns = np.arange(WIDTH + new)
    prompts = np.repeat(rng.integers(1, WIDTH + 1, num_groups), group)
    lengths = rng.integers(0, new + 1, rows)
    lengths[:2] = (new, 0)
    is_completion = (columns >= WIDTH) & (columns < WIDTH + lengths[:, None])
    is_prompt = (columns >= WIDTH - prompts[:, None]) & (columns < WIDTH)
    tokens = rng.integers(0, NETWORK.vocab_size, shape, dtype=np.int32)
    tokens[:, :WIDTH] = np.repeat(tokens[::group, :WIDTH], group, axis=0)
    rewards = rng.integers(0, 2, rows).astype(np.float32)
    rewards[rng.random(rows) < 0.1] = np.nan
    logprobs = rng.normal(-2.0, 0.5, shape).astype(np.float32)
    return TrainBatch(
        tokens=tokens,
        segments=(is_prompt | is_completion).astype(np.int32),
        completion_mask=is_completion & ~np.isnan(rewards)[:, None],
        rewards=rewards,
        sampler_logprobs=np.where(is_completion, logprobs, 0).astype(np.float32),
        trained=rng.random(rows) < 0.9,
    )


def make_programs(network=NETWORK, adapters=lora.NO_LORA, mesh=None, **update):
    """Returns programs with plain gradient descent at rate 1: an update is the gradient."""
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    scan_layers = update.pop("scan_layers", False)
    precision = update.pop("precision", Precision())
    model = ModelSpec(network, mesh, precision, adapters, scan_layers)
    sampling = SamplingSpec(WIDTH, NEW, slots=8, eos_ids=(7,), group_size=GROUP)
    spec = UpdateSpec(**({"group_size": GROUP, "prompt_width": WIDTH} | update))
    return compile_programs(model, sampling, spec, optax.sgd(1.0))


def packer(columns: int, group: int = GROUP, bins_at_once: int = 1) -> Packer:
    return Packer(group, WIDTH, columns, bins_at_once)


def step(programs: Programs, network, batch: TrainBatch, objective=None):
    """Returns the change of the parameters, unstacked, and the metrics of an update."""
    params = random_params(network)
    reference = programs.make_reference(random_params(network, seed=5))
    state = programs.init_state(params)
    before = jax.device_get(state.params)
    objective = GRPO(kl=0.1) if objective is None else objective
    state, metrics = programs.update(state, reference, batch, objective, 0.9)
    change = jax.tree.map(np.subtract, jax.device_get(state.params), before)
    return change, jax.device_get(metrics)


def assert_same_step(ours, theirs, rtol=1e-6):
    """Checks that gradients are the same to rtol of their norm, and the metrics of the policy."""
    theirs_by_name = named_leaves(theirs[0])
    squares = [np.sum(np.square(leaf)) for leaf in theirs_by_name.values()]
    norm = np.sqrt(sum(squares))
    assert norm > 1e-3
    for name, leaf in named_leaves(ours[0]).items():
        np.testing.assert_allclose(
            leaf, theirs_by_name[name], rtol=0, atol=rtol * norm, err_msg=name
        )
    assert ours[1].keys() == theirs[1].keys()
    for name in ours[1].keys() - {"update/utilisation"}:
        np.testing.assert_allclose(
            ours[1][name], theirs[1][name], rtol=1e-4, atol=1e-6, err_msg=name
        )


# 1. Bins, on the host.


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("columns", [LENGTH, LENGTH + 1, 3 * LENGTH])
def test_bins_hold_every_row_once_and_its_prompt_before_it(seed, columns):
    batch = random_batch(seed)
    bins = packer(columns)(batch).bins
    assert bins.shape == (ROWS, columns)
    has_choice = batch.completion_mask.any(axis=1)
    seen = []
    for line in bins:
        used = np.flatnonzero(line != NO_ENTRY)
        assert list(used) == list(range(len(used)))  # what is unused comes last
        entries = line[used]
        prompt_row = 0
        groups = []
        # A run of entries of one row: the first of a group has the prompt, too.
        for row, run in itertools.groupby(entries, key=lambda entry: entry // LENGTH):
            tokens = np.flatnonzero(batch.segments[row])
            if not groups or groups[-1] != row // GROUP:
                groups.append(row // GROUP)
                prompt_row = row
            expected = tokens if row == prompt_row else tokens[tokens >= WIDTH]
            assert [entry % LENGTH for entry in run] == list(expected)
            seen.append(row)
        assert len(set(groups)) == len(groups)
    assert sorted(seen) == list(np.flatnonzero(has_choice))


def test_bins_are_the_same_each_time_and_whole_micro_batches_are_filled_in_turn():
    batch = random_batch(3)
    one_by_one = packer(2 * LENGTH)(batch).bins
    np.testing.assert_array_equal(one_by_one, packer(2 * LENGTH)(batch).bins)
    pairs = packer(2 * LENGTH, bins_at_once=2)(batch).bins
    # Micro-batch m of M has the bins m and M + m.
    m_first = pairs.reshape(2, -1, 2 * LENGTH).swapaxes(0, 1).reshape(-1, 2 * LENGTH)
    np.testing.assert_array_equal(m_first, one_by_one)
    assert packer(LENGTH, bins_at_once=16).num_bins(ROWS) == 32


def test_long_tailed_lengths_leave_little_unused():
    """Of bins twice as long as a row; the padded rows are 86 % padding."""
    lengths = np.minimum(np.random.default_rng(1).geometric(1 / 48, (32, 8)), 384)
    groups = [
        UnpackedGroup(64, dict(enumerate(sorted(row, reverse=True))))
        for row in lengths.tolist()
    ]
    tokens = sum(group.columns() for group in groups)
    num_bins = len(list(pack_groups(groups, 2 * (64 + 384))))
    assert tokens / (num_bins * 2 * (64 + 384)) > 0.9


# 2. Updates.


@pytest.fixture(scope="module")
def padded():
    """Returns the update of the tiny network on padded rows."""
    return make_programs()


@pytest.fixture(scope="module")
def packed():
    return make_programs(pack=2 * LENGTH)


@pytest.mark.parametrize("seed", range(3))
def test_a_packed_update_is_the_padded_one_and_compiles_once(padded, packed, seed):
    batch = random_batch(seed)
    bins = packer(2 * LENGTH)
    ours = step(packed, NETWORK, bins(batch))
    assert_same_step(ours, step(padded, NETWORK, batch))
    assert packed.update.compiled == 1


@pytest.mark.parametrize(
    "objective",
    [
        losses.GSPO(clip_low=0.3, clip_high=0.3),
        losses.Regularised(losses.DAPO(max_tokens=7.0), kl=0.1, entropy=0.05),
        losses.ReinforcePlusPlus(kl=0.1),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_any_objective_sees_whole_rows(padded, packed, objective):
    """One of whole completions, one of tokens with an entropy, one with a KL in the reward."""
    batch = random_batch(1)
    ours = step(packed, NETWORK, packer(2 * LENGTH)(batch), objective)
    assert_same_step(ours, step(padded, NETWORK, batch, objective))


@pytest.mark.parametrize(
    ("network", "settings"),
    [
        (GEMMA, {"micro_batch": 3, "pack": 3 * LENGTH}),
        (GEMMA, {"scan_layers": True, "remat": "full", "pack": LENGTH}),
        (NETWORK, {"adapters": ADAPTERS, "micro_batch": 2, "pack": 2 * LENGTH}),
        (NETWORK, {"remat": "dots", "old_logprobs": "trainer", "pack": LENGTH}),
    ],
)
def test_whatever_else_an_update_does_it_does_packed(network, settings):
    batch = random_batch(2)
    bins = packer(settings["pack"], bins_at_once=settings.get("micro_batch", 1))
    without = settings | {"pack": 0, "micro_batch": 0}
    ours = step(make_programs(network, **settings), network, bins(batch))
    assert_same_step(ours, step(make_programs(network, **without), network, batch))


@pytest.mark.parametrize("is_scanned", [False, True])
def test_the_splash_kernel_scores_bins_as_dense_attention_does(is_scanned):
    """With windows, which count positions, through a scan over layers, too."""
    rows = random_batch(8, num_groups=16)
    batch = jax.tree.map(jnp.asarray, packer(128, bins_at_once=2)(rows))
    # The first micro-batch: two bins with something in them.
    batch = batch._replace(bins=batch.bins[:: len(batch.bins) // 2])
    assert (batch.bins != NO_ENTRY).any(axis=1).all()
    dense = PackedScorer(GEMMA, prompt_width=WIDTH, group_size=GROUP, remat="full")
    kernel = partial(
        splash.masked_attention,
        make_mesh(devices=jax.devices()[:1]),
        interpret=True,
    )
    sparse = dataclasses.replace(dense, make_masked_attention=kernel)
    params = random_params(GEMMA)
    if is_scanned:
        params = transformer.stack(params)

    @partial(jax.jit, static_argnums=0)
    def with_gradient(scorer, params):
        def loss(params):
            scores = scorer(params, batch, 0.9, 1, entropy=True)
            return (scores.logprobs + 0.1 * scores.entropy).sum()

        return jax.value_and_grad(loss)(params)

    value, gradient = with_gradient(sparse, params)
    expected, expected_gradient = with_gradient(dense, params)
    assert abs(expected) > 100
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert_same_step((gradient, {}), (expected_gradient, {}), rtol=3e-6)


@pytest.mark.parametrize("group", [1, 2])
def test_groups_of_one_and_a_bin_for_each_row(group):
    batch = random_batch(4, group=group)
    programs = make_programs(group_size=group, pack=LENGTH)
    objective = losses.PPO()
    ours = step(programs, NETWORK, packer(LENGTH, group)(batch), objective)
    theirs = make_programs(group_size=group)
    batch_of_rows = step(theirs, NETWORK, batch, objective)
    assert_same_step(ours, batch_of_rows)


def test_the_gradient_of_a_prompt_is_summed_in_float32():
    """A prompt's last hidden state decides the first token of 600 completions."""

    def loss(x):
        return take_columns(x, jnp.zeros((1, 600), int)).sum().astype(jnp.float32)

    gradient = jax.grad(loss)(jnp.ones((1, 1, 2), jnp.bfloat16))
    np.testing.assert_array_equal(np.asarray(gradient, np.float32), 600)


def test_bins_of_nothing_change_nothing_but_the_step(packed):
    batch = random_batch(0)
    empty = batch._replace(completion_mask=np.zeros_like(batch.completion_mask))
    change, metrics = step(packed, NETWORK, packer(2 * LENGTH)(empty))
    assert all(not leaf.any() for leaf in jax.tree.leaves(change))
    assert all(float(value) == 0 for value in metrics.values())


def test_utilisation_counts_tokens_once_and_the_columns_that_are_computed(
    padded, packed
):
    batch = random_batch(5)._replace(trained=np.ones(ROWS, bool))
    has_choice = batch.completion_mask.any(axis=1)
    is_token = (batch.segments > 0) & has_choice[:, None]
    prompts = is_token[:, :WIDTH].reshape(-1, GROUP, WIDTH).any(axis=1).sum()
    tokens = prompts + is_token[:, WIDTH:].sum()
    _, metrics = step(padded, NETWORK, batch)
    columns = NUM_GROUPS * WIDTH + ROWS * NEW
    np.testing.assert_allclose(metrics["update/utilisation"], tokens / columns)
    bins = packer(2 * LENGTH)(batch)
    _, metrics = step(packed, NETWORK, bins)
    num_filled = (bins.bins != NO_ENTRY).any(axis=1).sum()
    np.testing.assert_allclose(
        metrics["update/utilisation"], tokens / (num_filled * 2 * LENGTH)
    )


@pytest.mark.parametrize("epochs", [1, 2])
def test_each_of_several_updates_has_bins_of_its_own(padded, packed, epochs):
    batch = random_batch(7)
    rule = UpdateRule(NUM_GROUPS, updates=2, epochs=epochs)
    reference = padded.make_reference(random_params(NETWORK, seed=5))
    results = []
    for programs, packer_or_none in ((padded, None), (packed, packer(2 * LENGTH))):
        # A small step, so that the second update does not magnify what rounding does to the first.
        params = jax.tree.map(lambda x: 0.3 * x, random_params(NETWORK))
        state, made = update_policy(
            programs,
            programs.init_state(params),
            reference,
            batch,
            GRPO(kl=0.1),
            1.0,
            dataclasses.replace(rule, packer=packer_or_none),
            step=1,
        )
        change = jax.tree.map(np.subtract, jax.device_get(state.params), params)
        results.append((change, made))
    (theirs, their_metrics), (ours, our_metrics) = results
    assert len(our_metrics) == len(their_metrics) == 2 * epochs
    for our, their in zip(our_metrics, their_metrics, strict=True):
        assert_same_step((ours, our), (theirs, their), rtol=1e-5)


def test_a_run_learns_from_bins_what_it_learns_from_rows(tmp_path, monkeypatch):
    share_programs(monkeypatch)
    runs = []
    for pack in (0, 200):
        folder = tmp_path / str(pack)
        folder.mkdir()
        config = make_config(
            folder, f"batch.pack={pack}", "steps=3", "evaluation.problems=0"
        )
        runs.append(list(train(config)))
    for rows, bins in zip(*runs, strict=True):
        for name in ("update/loss", "update/grad_norm", "update/tokens", "policy/kl"):
            np.testing.assert_allclose(bins[name], rows[name], rtol=1e-3, atol=1e-6)
        assert bins["update/utilisation"] > rows["update/utilisation"] > 0


def compare_meshes():
    """Checks that bins on every mesh give the padded update of one device; with 8 devices."""
    batch = random_batch(6)
    devices = jax.devices()
    expected = step(make_programs(), NETWORK, batch)
    for sizes in ((8, 1, 1), (2, 2, 2), (1, 4, 2)):
        mesh = make_mesh(*sizes, devices=devices)
        at_once = sizes[0] * sizes[1]
        scan = sizes == (2, 2, 2)
        programs = make_programs(mesh=mesh, pack=2 * LENGTH, scan_layers=scan)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, programs.params_like)
        params = to_device(jax.device_get(random_params(NETWORK)), shardings)
        other = to_device(jax.device_get(random_params(NETWORK, seed=5)), shardings)
        bins = packer(2 * LENGTH, bins_at_once=at_once)(batch)
        placed = to_device(bins, programs.row_sharding)
        state = programs.init_state(params)
        before = to_host(state.params)
        reference = programs.make_reference(other)
        state, metrics = programs.update(state, reference, placed, GRPO(kl=0.1), 0.9)
        change = jax.tree.map(np.subtract, to_host(state.params), before)
        if scan:
            change = transformer.unstack(change)
        assert_same_step((change, to_host(metrics)), expected)
        print("equal", *sizes)


def test_every_mesh_gives_the_same_packed_update():
    assert output_on_devices(compare_meshes).count("equal") == 3
