"""Laws of int8 matrices, and of sampling from them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo.config import Sampling
from jaxgrpo.device.logits import dot_products, vocabulary_products
from jaxgrpo.device.model_functions import publish, with_adapters
from jaxgrpo.device.specs import ModelSpec, Precision
from jaxgrpo.distributed.mesh import make_mesh, named_leaves, to_device
from jaxgrpo.errors import UserError
from jaxgrpo.losses import Corrected
from jaxgrpo.models import int8, products, transformer
from jaxgrpo.models.int8 import Int8Matrix
from jaxgrpo.models.lora import Lora
from jaxgrpo.rollout.engine import Engine
from jaxgrpo.train import check_agreement, train
from tests import tiny_engines
from tests.test_train import comparable
from tests.tiny_devices import output_on_devices
from tests.tiny_engines import GROUP, KEY_NAME, NETWORK, PROBLEMS, TOKENIZER
from tests.tiny_models import random_params
from tests.tiny_runs import make_config, share_programs

INT8 = Precision(int8_sampler=True)
MESHES = ((1, 1, 1), (2, 1, 2), (1, 2, 2), (2, 2, 2))


def make_matrix(dtype=jnp.float32):
    """Returns a matrix [12, 10] whose outputs, its columns, differ in size; the last is zero."""
    rng = np.random.default_rng(0)
    sizes = np.append(10.0 ** np.arange(-6, 3), 0.0)
    return jnp.asarray(rng.normal(size=(12, 10)) * sizes, dtype)


def dequantized(matrix: Int8Matrix, input_axis: int):
    """Returns the matrix whose products are those of an int8 one, in float32."""
    return matrix.values * jnp.expand_dims(matrix.scale, input_axis)


def dequantized_params(params):
    """Returns parameters whose matrices are, in float32, those of `quantize_params`."""

    def restore(part):
        restored = {}
        for name, leaf in part.items():
            if isinstance(leaf, dict):
                restored[name] = restore(leaf)
            elif name in int8.INPUT_AXES:
                matrix = Int8Matrix(leaf, part[f"{name}_scale"])
                restored[name] = dequantized(matrix, int8.INPUT_AXES[name])
            elif not name.endswith("_scale"):
                restored[name] = leaf
        return restored

    return restore(int8.quantize_params(params))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("input_axis", [0, 1])
def test_a_matrix_is_off_by_half_a_scale_at_most(dtype, input_axis):
    """The largest weight of each output is exact, but for rounding, and zeros stay zeros."""
    matrix = make_matrix(dtype)
    matrix = matrix.T if input_axis else matrix
    quantized = int8.quantize(matrix, input_axis)
    wide = np.asarray(matrix, np.float64)
    scale = np.expand_dims(np.asarray(quantized.scale, np.float64), input_axis)
    values = np.asarray(quantized.values, np.float64)
    assert quantized.values.dtype == jnp.int8
    # The division is rounded, so that a weight half-way may go either way.
    assert (np.abs(wide - values * scale) <= scale / 2 * (1 + 1e-4)).all()
    largest = np.abs(wide).max(axis=input_axis)
    np.testing.assert_allclose(scale.squeeze(), largest / int8.LARGEST, rtol=1e-6)
    assert np.abs(values).max(axis=input_axis).tolist() == [127] * 9 + [0]


def test_logits_are_off_by_half_a_scale_for_each_input_at_most():
    """|h . (w - w')| <= sum |h| * scale / 2; an entry that is zero has the logit 0."""
    hidden = jax.random.normal(jax.random.key(1), (3, 12))
    embedding = make_matrix().T
    quantized = int8.quantize(embedding, input_axis=1)
    logits = vocabulary_products(hidden, quantized).T
    error = np.abs(logits - dot_products(hidden, embedding), dtype=float)
    sums = np.abs(hidden).sum(axis=1, keepdims=True)
    assert (error <= sums * np.asarray(quantized.scale) / 2 * 1.001).all()
    assert error[:, :-1].min() > 0
    assert not error[:, -1].any()


@pytest.mark.parametrize(
    ("dtype", "rtol"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2**-6)]
)
def test_products_are_those_of_the_matrix_that_is_stored(dtype, rtol):
    """Within rounding of the sum's largest terms: int8 itself is exact in bfloat16."""
    x = jnp.ones((1, 2, 12), dtype)
    quantized = int8.quantize(jnp.abs(make_matrix()), input_axis=0)
    expected = products.matmul(
        x.astype(jnp.float32), dequantized(quantized, input_axis=0)
    )
    product = int8.int8_matmul(x, quantized)
    assert product.dtype == dtype
    np.testing.assert_allclose(product.astype(jnp.float32), expected, rtol=rtol)


def test_what_is_published_is_quantized_from_the_policy_itself():
    """Matrices in int8; adapters, and the embedding that is looked up, in the compute dtype.

    The rest is exact, and a scanned update's stacked layers come to the same.
    """
    precision = dataclasses.replace(INT8, compute=jnp.bfloat16)
    mesh = make_mesh(devices=jax.devices()[:1])
    model = ModelSpec(NETWORK, mesh, precision, Lora(rank=2))
    policy = with_adapters(model, random_params(NETWORK))
    published = named_leaves(publish(model, policy))
    stacked = named_leaves(publish(model, transformer.stack(policy)))
    quantized = named_leaves(int8.quantize_params(policy))
    assert {"output_embedding", "embedding"} < published.keys()
    for name, leaf in published.items():
        is_int8 = name.endswith("kernel") or name == "output_embedding"
        is_rounded = name == "embedding" or "lora_" in name
        assert (leaf.dtype == jnp.int8) == is_int8
        assert (leaf.dtype == jnp.bfloat16) == is_rounded
        np.testing.assert_array_equal(leaf, stacked[name])
        if not is_rounded:
            np.testing.assert_array_equal(leaf, quantized[name], name)


def compare_meshes():
    """Compares every mesh with rows written by the matrices that int8 ones stand for.

    Their tokens and log-probabilities are the same: draws are exact for what is stored. It runs in
    a process with eight devices.
    """
    params = random_params(NETWORK)
    expected = tiny_engines.written_without_a_cache(
        dequantized_params(params), PROBLEMS, GROUP, KEY_NAME
    )
    for sizes in MESHES:
        mesh = make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)])
        programs = tiny_engines.make_programs(16, 8, mesh, precision=INT8)
        programs = dataclasses.replace(programs, slot_counts=(16,))
        shardings = jax.tree.map(lambda leaf: leaf.sharding, programs.params_like)
        engine = Engine(
            programs, TOKENIZER, tiny_engines.WIDTH, tiny_engines.NEW, seed=3
        )
        groups = tiny_engines.ask(engine, params=to_device(params, shardings))
        tiny_engines.assert_same_texts(tiny_engines.completions(groups), expected)
        print("equal", *sizes)


def test_every_mesh_draws_exactly_from_what_int8_stands_for():
    assert output_on_devices(compare_meshes).count("equal") == len(MESHES)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Returns the config of a run of three steps that samples in int8."""
    share_programs(monkeypatch)
    config = make_config(
        tmp_path, "steps=3", "sampling.weights=int8", "evaluation.problems=0"
    )
    return dataclasses.replace(
        config,
        objective=Corrected(config.objective),
        batch=dataclasses.replace(config.batch, old_logprobs="trainer"),
    )


def test_int8_may_differ_by_more_than_rounding_and_not_by_all(config):
    check_agreement(config, {"policy/logprob_gap_p99": 0.4})
    with pytest.raises(UserError, match=r"in int8 they should by at most 0\.5"):
        check_agreement(config, {"policy/logprob_gap_p99": 0.6})
    exact = dataclasses.replace(config, sampling=Sampling())
    with pytest.raises(UserError, match="in float32 they should"):
        check_agreement(exact, {"policy/logprob_gap_p99": 0.4})


def test_each_step_samples_from_its_own_policy_and_a_resumed_run_goes_on(
    config, tmp_path
):
    """A copy of an older policy would differ by what the updates moved since, and not by int8."""
    steps = list(train(config))
    assert len(steps) == config.steps
    gaps = [step["policy/logprob_gap"] for step in steps]
    assert min(gaps) > 0
    assert max(gaps) < 2 * gaps[0]
    assert steps[-1]["policy/kl"] > 0.01
    resumed = dataclasses.replace(config, out=str(tmp_path / "resumed"))
    parts = list(train(dataclasses.replace(resumed, steps=1))) + list(train(resumed))
    assert comparable(parts) == comparable(steps)
