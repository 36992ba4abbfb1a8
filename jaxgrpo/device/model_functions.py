"""Functions of one model's parameters: what is trained, copied, sampled from and scored with.

programs.py compiles them. They differ from those of sampler.py and scorer.py in that a model and
its fixed shapes are given beforehand.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Int

from jaxgrpo.device import activation_shardings, sampler
from jaxgrpo.device.optimizer import cast
from jaxgrpo.device.packed_scorer import MakeMaskedAttention, PackedScorer
from jaxgrpo.device.sampler import DecodeSpec, DecodeState, Prefilled
from jaxgrpo.device.scorer import GroupScorer, MakeAttention, RowScorer, Scorer
from jaxgrpo.device.specs import ModelSpec, SamplingSpec, UpdateSpec
from jaxgrpo.models import cudnn, lora, splash, transformer
from jaxgrpo.models.int8 import quantize_params
from jaxgrpo.types import DecodeOutput, Params, SamplingParams


def init_trained(model: ModelSpec, params: Params, seed: int | Array = 0) -> Params:
    """Returns what is trained, before it is rounded to the dtype it is stored in."""
    return lora.init_trainable(
        model.adapters, model.layout(params), jax.random.key(seed)
    )


def trained_as_stored(model: ModelSpec, params: Params) -> Params:
    """Returns what is trained, as checkpoints have it."""
    return cast(init_trained(model, params), model.precision.params)


def with_adapters(model: ModelSpec, params: Params) -> Params:
    """Returns parameters with adapters beside their matrices, if there are any."""
    return lora.attach(
        params, lora.init_trainable(model.adapters, params, jax.random.key(0))
    )


def forward_copy(params: Params, dtype: DTypeLike) -> Params:
    """Returns a copy for forward passes: matrices in dtype; the rest is small, and exact."""

    # Norms and biases are small, and stay exact, as int8 matrices do. jit gives every result a
    # buffer of its own.
    def copy(x: Array) -> Array:
        is_matrix = x.ndim > 1 and x.dtype != jnp.int8
        return x.astype(dtype) if is_matrix else jnp.copy(x)

    return jax.tree.map(copy, transformer.unstack(params))


def make_reference(model: ModelSpec, params: Params) -> Params:
    """Returns the reference: a copy for forward passes, laid out as the update has its own."""
    return model.layout(forward_copy(params, model.precision.compute))


def publish(model: ModelSpec, policy: Params) -> Params:
    """Returns the copy of a policy that decoding reads, a leaf of each layer."""
    policy = transformer.unstack(lora.scale_adapters(policy, model.adapters.scale))
    if model.precision.int8_sampler:
        # From the policy itself: a matrix rounded to bfloat16 before would be rounded twice.
        policy = quantize_params(policy)
    return forward_copy(policy, model.precision.compute)


@dataclass(frozen=True)
class SamplingFunctions:
    """The functions of sampling from a model, in fixed shapes."""

    model: ModelSpec
    spec: SamplingSpec

    def prefill(
        self, params: Params, tokens: Int[Array, "A W"], mask: Bool[Array, "A W"]
    ) -> Prefilled:
        """Runs the model on prompts."""
        mesh = self.model.mesh
        return sampler.prefill(
            self.model.network,
            params,
            tokens,
            mask,
            dtype=self.model.precision.compute,
            attention_fn=attention_kernel(self.model)(mask),
            shardings=activation_shardings.by_rows(mesh),
        )

    def empty_state(self, slots: int, ring_length: int) -> DecodeState:
        """Returns slots of which none is active."""
        return sampler.empty_state(
            self.model.network,
            slots=slots,
            ring_length=ring_length,
            dtype=self.model.precision.compute,
        )

    def decode(
        self,
        params: Params,
        state: DecodeState,
        stopped: Bool[Array, "S"],
        sampling: SamplingParams,
        max_steps: Int[Array, ""],
        leave_at: Int[Array, ""],
    ) -> tuple[DecodeState, DecodeOutput]:
        """Chooses tokens for all active rows."""
        spec = DecodeSpec(
            chunk=self.spec.chunk,
            eos_ids=self.spec.eos_ids,
            dtype=self.model.precision.compute,
            shardings=activation_shardings.for_decode(self.model.mesh),
            writes_first=not self._reads_first(),
        )
        return sampler.decode(
            self.model.network,
            params,
            state,
            stopped,
            sampling,
            max_steps,
            leave_at,
            spec=spec,
        )

    def _reads_first(self) -> bool:
        """Returns whether a decode step reads the ring before it writes its column.

        For heads that do not fill the 128 lanes of a TPU's tiles, XLA takes a ring that was written
        to on-chip memory and all of it back, for the sake of one column. Elsewhere it writes the
        column in place, and would copy a ring that is written after it was read.
        """
        is_tpu = self.model.mesh.devices.flat[0].platform == "tpu"
        return is_tpu and self.model.network.head_width % 128 != 0


def grow(state: DecodeState, ring_length: int) -> DecodeState:
    """Returns the same rows with a longer ring."""
    return sampler.grow(state, ring_length=ring_length)


def attention_kernel(model: ModelSpec) -> MakeAttention:
    """Returns what makes the attention of whole sequences.

    Raises UserError where cuDNN is asked for and cannot attend.
    """
    if model.attention != "cudnn":
        return partial(splash.attention, model.mesh)
    device_kind = model.mesh.devices.flat[0].device_kind
    cudnn.check(model.network, model.precision.compute, device_kind)
    return partial(cudnn.attention, model.mesh)


def masked_attention_kernel(model: ModelSpec) -> MakeMaskedAttention:
    """Returns what makes attention by a mask."""
    kernel = (
        cudnn.CudnnAttention if model.attention == "cudnn" else splash.masked_attention
    )
    return partial(kernel, model.mesh)


def make_scorer(model: ModelSpec, update: UpdateSpec) -> Scorer:
    """Returns the scorer of policy and reference."""
    mesh = model.mesh
    shared = {
        "network": model.network,
        "dtype": model.precision.compute,
        "remat": update.remat,
        "shardings": activation_shardings.for_update(mesh, model.network.vocab_size),
        "make_attention": attention_kernel(model),
        "vocabulary_shards": mesh.shape["tensor"],
    }
    if update.prompt_width is None:
        return RowScorer(**shared)
    if update.pack:
        return PackedScorer(
            **shared,
            prompt_width=update.prompt_width,
            group_size=update.group_size,
            make_masked_attention=masked_attention_kernel(model),
        )
    return GroupScorer(**shared, prompt_width=update.prompt_width)
