"""cuDNN's attention computes what `attention.attend` computes, and is lowered for CUDA.

Its steps are those of XLA here; no GPU is needed.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from jaxgrpo.device.optimizer import adamw, schedule
from jaxgrpo.device.specs import ModelSpec, Precision, SamplingSpec, UpdateSpec
from jaxgrpo.distributed.mesh import make_mesh
from jaxgrpo.errors import UserError
from jaxgrpo.losses import GRPO
from jaxgrpo.models import attention, cudnn
from jaxgrpo.programs import compile_programs
from jaxgrpo.types import TrainBatch
from tests.tiny_engines import ENDS, NETWORK

WIDTH, NEW, GROUP = 4, 6, 2
WIDE_HEADS = replace(NETWORK, head_width=8)
BFLOAT16 = Precision(compute=jnp.bfloat16)


@pytest.fixture
def mesh():
    return make_mesh(devices=jax.devices()[:1])


@pytest.mark.parametrize("offset", [0, 6])
@pytest.mark.parametrize("settings", [{}, {"window": 4, "scale": 0.4}])
def test_values_and_gradients_are_those_of_dense_attention(mesh, offset, settings):
    """Of rows with padding, and with two texts; after a prompt keys come in two parts."""
    columns = np.arange(16)
    segments = jnp.asarray([columns >= 5, np.where(columns < 9, 1, 2)], jnp.int32)
    keys_of = jax.random.split(jax.random.key(0), 3)
    queries, keys, values = (
        jax.random.normal(key, (2, heads, 16, 8))
        for key, heads in zip(keys_of, (4, 2, 2), strict=True)
    )
    cuts = [slice(0, offset), slice(offset, None)] if offset else [slice(0, None)]

    def parts(keys, values):
        return [(keys[:, :, cut].swapaxes(2, 3), values[:, :, cut]) for cut in cuts]

    kernel = cudnn.attention(mesh, segments, offset)
    kernel = replace(kernel, implementation="xla")
    distances = columns[:, None] - columns
    in_window = distances < settings.get("window", 99)
    mask = (attention.sequence_mask(segments) & in_window)[:, offset:]

    def fused(queries, keys, values):
        return kernel(queries, parts(keys, values), **settings)

    def dense(queries, keys, values):
        return attention.attend(
            queries, parts(keys, values), mask, settings.get("scale")
        )

    arrays = (queries[:, :, offset:], keys, values)
    is_token = (segments != 0)[:, None, offset:, None]

    def number(attend):
        def of(*arrays):
            return jnp.where(is_token, attend(*arrays) ** 2, 0).sum()

        return jax.jit(jax.grad(of, (0, 1, 2)))

    np.testing.assert_allclose(
        jnp.where(is_token, fused(*arrays), 0),
        jnp.where(is_token, dense(*arrays), 0),
        atol=1e-5,
    )
    gradients = number(fused)(*arrays)
    for gradient, expected in zip(gradients, number(dense)(*arrays), strict=True):
        np.testing.assert_allclose(gradient, expected, atol=1e-4)


def test_prefill_and_update_are_lowered_for_cuda(mesh, monkeypatch):
    """A layer has four calls forward, prompts and completions by reference and policy, and two
    backward.
    """
    monkeypatch.setattr(cudnn, "check", lambda *arguments: None)
    monkeypatch.setattr(
        fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000
    )
    programs = compile_programs(
        ModelSpec(WIDE_HEADS, mesh, BFLOAT16, attention="cudnn"),
        SamplingSpec(WIDTH, NEW, slots=4, eos_ids=ENDS, group_size=GROUP),
        UpdateSpec(group_size=GROUP, prompt_width=WIDTH),
        adamw(schedule("constant", 1e-3, 0, 1), 0.9, 0.999, 0.0, 1.0),
    )
    rows = jax.ShapeDtypeStruct((4, WIDTH + NEW), jnp.int32)
    numbers = jax.ShapeDtypeStruct(rows.shape, jnp.float32)
    batch = TrainBatch(
        tokens=rows,
        segments=rows,
        completion_mask=jax.ShapeDtypeStruct(rows.shape, jnp.bool),
        rewards=jax.ShapeDtypeStruct((4,), jnp.float32),
        sampler_logprobs=numbers,
    )
    reference = programs.publish.trace(programs.state_like.params).out_info
    traced = programs.update.trace(programs.state_like, reference, batch, GRPO(), 1.0)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    sequences = 2 * WIDE_HEADS.layers
    assert text.count("@__cudnn$fmhaScaleBiasSoftmax(") == 2 * sequences
    assert text.count("@__cudnn$fmhaScaleBiasSoftmaxBackward(") == sequences

    prompts = jax.ShapeDtypeStruct((2, WIDTH), jnp.int32)
    mask = jax.ShapeDtypeStruct((2, WIDTH), jnp.bool)
    traced = programs.prefill.trace(reference, prompts, mask)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__cudnn$fmhaScaleBiasSoftmax(") == WIDE_HEADS.layers


H100 = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("network", "dtype", "expected"),
    [
        (NETWORK, jnp.bfloat16, "heads are 4 wide: it needs a multiple of 8"),
        (replace(NETWORK, head_width=256), jnp.bfloat16, "heads are 256 wide"),
        (WIDE_HEADS, jnp.float32, "dtype is float32: it needs bfloat16"),
        (
            replace(WIDE_HEADS, attention_softcap=50.0),
            jnp.bfloat16,
            "the network caps its scores at 50",
        ),
    ],
)
def test_networks_that_it_cannot_attend_for_are_refused(network, dtype, expected):
    with pytest.raises(UserError, match=expected):
        cudnn.check(network, dtype, H100)


def test_it_attends_on_nvidias_devices_in_bfloat16():
    cudnn.check(WIDE_HEADS, jnp.bfloat16, H100)
    with pytest.raises(UserError, match="the devices are cpu"):
        cudnn.check(WIDE_HEADS, jnp.bfloat16, "cpu")


def test_it_needs_even_numbers_of_columns(mesh):
    with pytest.raises(UserError, match="here 5 read 9: change sampling"):
        cudnn.attention(mesh, jnp.ones((1, 9), jnp.int32), 4)
    with pytest.raises(UserError, match="here 7 read 10"):
        cudnn.attention(mesh, jnp.ones((1, 10), jnp.int32), 3)
    positions = jnp.zeros((1, 5), jnp.int32)
    with pytest.raises(UserError, match=r"here 5 read 5: .* or packing\.width"):
        cudnn.CudnnAttention(mesh, jnp.ones((1, 5, 5), bool), positions)
