"""LoRA: adapters change nothing at first, learn alone, and may be merged into their matrices."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxgrpo import evaluate, export, sample
from jaxgrpo.build import build_run, load_policy
from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.device.specs import ModelSpec, SamplingSpec, UpdateSpec
from jaxgrpo.distributed.mesh import make_mesh, named_leaves, to_device, to_host
from jaxgrpo.errors import UserError
from jaxgrpo.language_model import LanguageModel
from jaxgrpo.losses import GRPO
from jaxgrpo.models import attention, hf_folder, lora, transformer
from jaxgrpo.models.lora import Lora
from jaxgrpo.models.transformer import SequenceInputs
from jaxgrpo.programs import Programs, compile_programs
from jaxgrpo.train import train
from jaxgrpo.types import TrainBatch
from tests.tiny_devices import output_on_devices
from tests.tiny_engines import NETWORK
from tests.tiny_models import random_params
from tests.tiny_runs import make_config, share_programs

ADAPTERS = Lora(rank=2, alpha=3.0, targets=("query", "value", "out", "up", "down"))
ROWS = 8
WIDTH = 5
LENGTH = 11


def make_programs(adapters=ADAPTERS, mesh=None) -> Programs:
    """Compiles programs with plain gradient descent at rate 1: an update is the gradient."""
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    return compile_programs(
        ModelSpec(NETWORK, mesh, adapters=adapters),
        SamplingSpec(WIDTH, LENGTH - WIDTH, slots=8, eos_ids=(7,), group_size=2),
        UpdateSpec(group_size=2, prompt_width=WIDTH, old_logprobs="trainer"),
        optax.sgd(1.0),
    )


@pytest.fixture(scope="module")
def programs():
    return make_programs()


@pytest.fixture(scope="module")
def base():
    return random_params(NETWORK)


@pytest.fixture(scope="module")
def trained(programs):
    return random_adapters(programs)


def random_adapters(programs):
    """Returns adapters that have learned something."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), leaf.dtype),
        programs.state_like.params,
    )


def make_batch():
    """Returns groups of two completions of which the first was right."""
    shape = (ROWS, LENGTH)
    tokens = np.random.default_rng(0).integers(
        0, NETWORK.vocab_size, shape, dtype=np.int32
    )
    tokens[1::2, :WIDTH] = tokens[0::2, :WIDTH]
    return TrainBatch(
        tokens=tokens,
        segments=np.ones(shape, np.int32),
        completion_mask=np.broadcast_to(np.arange(LENGTH) >= WIDTH, shape),
        rewards=np.tile(np.float32([1, 0]), ROWS // 2),
        sampler_logprobs=np.full(shape, -3.0, np.float32),
    )


@jax.jit
def hidden(params):
    tokens = jnp.asarray(make_batch().tokens)
    segments = jnp.ones_like(tokens)
    positions = attention.sequence_positions(segments)
    mask = attention.sequence_mask(segments)
    return transformer.forward(
        NETWORK, params, SequenceInputs(tokens, positions, mask)
    )[0]


def same(tree, other):
    """Returns whether two trees have the same leaves bit for bit."""
    leaves = named_leaves(tree)
    other_leaves = named_leaves(other)
    if leaves.keys() != other_leaves.keys():
        return False
    return all(
        np.asarray(leaf).tobytes() == np.asarray(other_leaves[name]).tobytes()
        for name, leaf in leaves.items()
    )


def test_at_first_the_policy_is_the_base(programs, base):
    policy = lora.attach(base, programs.init_state(base).params)
    assert not same(policy, base)
    assert same(hidden(policy), hidden(base))
    assert same(hidden(programs.publish(policy)), hidden(base))


def test_adapters_stand_beside_their_targets_alone(base):
    adapters = lora.init_trainable(
        Lora(3, targets=("key", "gate")), base, jax.random.key(0)
    )
    assert {name: leaf.shape for name, leaf in named_leaves(adapters).items()} == {
        "layers_0/attention/key/lora_a": (16, 3),
        "layers_0/attention/key/lora_b": (3, 8),
        "layers_0/mlp/gate/lora_a": (16, 3),
        "layers_0/mlp/gate/lora_b": (3, 24),
    }


def test_the_first_adapters_are_a_function_of_the_seed_and_each_its_own(programs, base):
    draws = [
        programs.init_state(base, np.uint32(seed)).params for seed in (0, 0, 2**32 - 1)
    ]
    assert same(draws[0], draws[1])
    leaves = []
    for draw in draws[1:]:
        leaves += [
            leaf for name, leaf in named_leaves(draw).items() if name.endswith("lora_a")
        ]
    distinct = {np.asarray(leaf).tobytes() for leaf in leaves}
    assert len(distinct) == len(leaves) == 2 * len(ADAPTERS.targets)


def test_first_adapters_are_uniform_as_pefts():
    """torch's kaiming_uniform_(a=sqrt(5)) for a matrix with n inputs: within +-1 / sqrt(n)."""
    adapters = lora.init_trainable(
        Lora(64, targets=("up",)),
        {"up": {"kernel": jnp.zeros((100, 7))}},
        jax.random.key(0),
    )
    drawn = np.asarray(adapters["up"]["lora_a"]) * 10.0
    assert 0.99 < np.abs(drawn).max() <= 1
    np.testing.assert_allclose([drawn.mean(), drawn.var()], [0, 1 / 3], atol=0.02)


def test_merged_and_beside_are_the_same_policy(base, trained):
    scale = ADAPTERS.scale
    beside = lora.attach(base, lora.scale_adapters(trained, scale))
    merged = lora.merge(lora.attach(base, trained), scale)
    assert scale == 1.5
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    np.testing.assert_allclose(hidden(beside), hidden(merged), rtol=0, atol=1e-5)
    scanned = hidden(transformer.stack(beside))
    np.testing.assert_allclose(scanned, hidden(merged), rtol=0, atol=1e-5)
    assert np.abs(hidden(merged) - hidden(base)).max() > 0.1


def test_layers_may_be_an_axis():
    """Each of the stacked layers has its own pair."""
    rng = np.random.default_rng(0)
    kernels = jnp.asarray(rng.normal(size=(3, 5, 4)), jnp.float32)
    pair = lora.init_trainable(
        ADAPTERS, {"up": {"kernel": kernels}}, jax.random.key(0)
    )["up"]
    assert {name: leaf.shape for name, leaf in pair.items()} == {
        "lora_a": (3, 5, 2),
        "lora_b": (3, 2, 4),
    }
    a, b = (rng.normal(size=leaf.shape).astype(np.float32) for leaf in pair.values())
    policy = lora.attach(
        {"up": {"kernel": kernels}}, {"up": {"lora_a": a, "lora_b": b}}
    )
    merged = lora.merge(policy, 0.5)["up"]["kernel"]
    for layer in range(3):
        expected = kernels[layer] + 0.5 * a[layer] @ b[layer]
        np.testing.assert_allclose(merged[layer], expected, atol=1e-6)


def test_an_update_is_the_gradient_by_the_chain_rule_and_the_base_stays(
    programs, base, trained
):
    """dL/dA = scale * G B^T and dL/dB = scale * A^T G, G being that of the merged matrix."""
    policy = lora.attach(base, trained)
    before = jax.device_get(base)
    full = make_programs(lora.NO_LORA)
    merged = lora.merge(policy, ADAPTERS.scale)
    moved, metrics = full.update(
        full.init_state(merged), base, make_batch(), GRPO(kl=0.1), 1.0
    )
    gradient = named_leaves(jax.tree.map(jnp.subtract, merged, moved.params))
    state = programs.init_state(base)._replace(params=jax.tree.map(jnp.copy, trained))
    state, lora_metrics = programs.update(state, base, make_batch(), GRPO(kl=0.1), 1.0)
    moves = named_leaves(jax.tree.map(jnp.subtract, trained, state.params))
    assert len(moves) == 2 * len(ADAPTERS.targets)
    for name, move in moves.items():
        module = name.rpartition("/")[0]
        g = gradient[f"{module}/kernel"]
        a = named_leaves(trained)[f"{module}/lora_a"]
        b = named_leaves(trained)[f"{module}/lora_b"]
        expected = g @ b.T if name.endswith("lora_a") else a.T @ g
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(
            move, ADAPTERS.scale * expected, rtol=0, atol=2e-6, err_msg=name
        )
    for name in ("update/loss", "policy/kl", "policy/entropy"):
        np.testing.assert_allclose(
            lora_metrics[name], metrics[name], rtol=1e-4, err_msg=name
        )
    assert same(base, before)


def learn_on_meshes():
    """Checks that adapters are divided as their matrices are, and learn what one device learns.

    It runs in a process with eight devices.
    """
    expected = None
    for sizes in ((1, 1, 1), (2, 2, 2)):
        programs = make_programs(
            mesh=make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)])
        )
        kernels = named_leaves(programs.params_like)
        base = to_device(
            jax.device_get(random_params(NETWORK)),
            jax.tree.map(lambda leaf: leaf.sharding, programs.params_like),
        )
        state = programs.init_state(base, np.uint32(3))
        for _ in range(2):
            state, metrics = programs.update(
                state,
                base,
                to_device(make_batch(), programs.row_sharding),
                GRPO(kl=0.1),
                1.0,
            )
        for name, leaf in named_leaves(state.params).items():
            kernel = kernels[name.rpartition("/")[0] + "/kernel"]
            inputs, outputs = kernel.sharding.spec
            is_a = name.endswith("lora_a")
            spec = PartitionSpec(inputs, None) if is_a else PartitionSpec(None, outputs)
            sharding = NamedSharding(leaf.sharding.mesh, spec)
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim), name
        result = named_leaves(
            to_host(
                (
                    state.params,
                    programs.publish(lora.attach(base, state.params)),
                    metrics,
                )
            )
        )
        expected = expected or result
        for name, leaf in result.items():
            np.testing.assert_allclose(
                leaf, expected[name], rtol=1e-4, atol=2e-6, err_msg=name
            )
        print("equal", *sizes)


def test_spread_over_devices_they_learn_the_same():
    assert output_on_devices(learn_on_meshes).count("equal") == 2


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("lora.rank=-1", "lora.rank is -1: it must be at least 0"),
        ("lora.alpha=0", "lora.alpha is 0.0: it must be above 0"),
        (
            "lora.targets=query,q_proj",
            "there is no 'q_proj'; choose of query, key, value, out, gate, up, down",
        ),
        (
            "lora.targets=()",
            "nothing would be trained; choose of query, key, value, out, gate, up, down",
        ),
    ],
)
def test_bad_settings_are_refused(tmp_path, override, says):
    with pytest.raises(UserError) as error:
        make_config(tmp_path, override)
    assert says in str(error.value)


SETTINGS = (
    "lora.rank=2",
    "lora.alpha=4",
    "lora.targets=value,up",
    "steps=3",
    "seed=1",
    "evaluation.problems=2",
    "sampling.slots=5",  # an odd number is never halved: one program decodes
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Yields the config of a run with LoRA that nobody interrupted, and what it yielded."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        share_programs(monkeypatch)
        config = make_config(tmp_path_factory.mktemp("lora"), *SETTINGS)
        yield config, list(train(config))


def restored(config):
    with build_run(config) as run, Checkpoints(config.out) as checkpoints:
        return jax.device_get(checkpoints.restore(run.programs.state_like)[0])


def test_a_run_begins_at_its_reference_and_learns(run):
    _, yielded = run
    assert yielded[0]["policy/kl"] < 1e-14  # one rounding of a log-probability, squared
    assert yielded[-1]["policy/kl"] > 1e-9
    assert max(values["policy/logprob_gap"] for values in yielded) < 1e-5


def test_a_checkpoint_holds_adapters_alone(run):
    state = restored(run[0])
    assert sorted(named_leaves(state.params)) == [
        "layers_0/attention/value/lora_a",
        "layers_0/attention/value/lora_b",
        "layers_0/mlp/up/lora_a",
        "layers_0/mlp/up/lora_b",
    ]
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 4 * trained


def test_going_on_changes_nothing(run, tmp_path):
    config = dataclasses.replace(run[0], out=str(tmp_path / "out"), save_every=100)
    for values in train(config):
        if values["step"] == 1:
            break
    assert [values["step"] for values in train(config)] == [2, 3]
    assert same(restored(config), restored(run[0]))


def test_what_reads_a_run_finds_the_policy(run, tmp_path, capsys):
    """The evaluation after it, a sample and an export are of one policy."""
    config, _ = run
    out = Path(config.out)
    with build_run(config) as built:
        params, step = load_policy(built.programs, built.model_folder, True, out)
        assert step == 3
        report = evaluate.evaluate(built, params)
    assert report == json.loads((out / "summary.json").read_text())["after"]

    export.export(out, tmp_path / "merged")
    published = named_leaves(lora.merge(built.programs.publish(params), 1.0))
    for name, leaf in named_leaves(hf_folder.load_params(tmp_path / "merged")).items():
        np.testing.assert_allclose(
            leaf, published[name], rtol=0, atol=1e-6, err_msg=name
        )

    assert same(LanguageModel.load(config.out).params, params)
    flags = ["--samples", "1", "--max-tokens", "6", "--prompt", "2 + 3", "--json"]
    sample.main([*flags, "--run", config.out])
    assert json.loads(capsys.readouterr().out)["tokens"] <= 6


def test_in_bfloat16_the_sampler_stays_with_the_trainer(tmp_path, monkeypatch):
    """Sixteen updates later their log-probabilities differ no more than before the first."""
    share_programs(monkeypatch)
    flags = (
        "dtype=bfloat16",
        "lora.rank=2",
        "optimizer.learning_rate=0.003",
        "steps=17",
        "evaluation.problems=0",
    )
    yielded = list(
        train(make_config(tmp_path, *flags, "save_every=100", "show_rollouts_every=0"))
    )
    gaps = [values["policy/logprob_gap"] for values in yielded]
    assert yielded[-1]["policy/kl"] > 0.1
    assert gaps[-1] <= max(gaps[0], 1e-5)
