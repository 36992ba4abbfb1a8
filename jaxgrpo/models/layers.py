"""The layers of the transformer as Flax modules, and where their activations lie on a mesh.

Axes: B rows, T columns, D model width, H query heads, K key-value heads, E head width, S columns of
keys and values (T, or a cache's width).
"""

from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from jaxgrpo.models.attention import (
    AttentionFn,
    LayerKeyValues,
    RotaryTable,
    apply_rotary,
    attend,
)
from jaxgrpo.models.int8 import Int8Matrix, int8_matmul
from jaxgrpo.models.model_config import LayerConstants, ModelConfig, distinct_windows
from jaxgrpo.models.products import matmul, repeat_rows

PRODUCT = "product"
"""The name under which a product with a parameter can be kept for the backward pass."""

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "gelu_tanh": partial(nn.gelu, approximate=True),
}


def identity(x: Array) -> Array:
    """Returns its argument: the sharding constraint of an array that XLA may put anywhere."""
    return x


class ActivationShardings(NamedTuple):
    """Constraints on where activations lie on a mesh: each takes an array and returns it there.

    Without them XLA may spread a layer's input over the width, as the embedding is, and have every
    device compute all rows.
    """

    tokens: Callable[[Array], Array] = identity
    """Tokens [B T] whose rows of the embedding are looked up."""
    embedded: Callable[[Array], Array] = identity
    """What is looked up in the embedding, [B T D]; the embedding's gradient lies there, too."""
    layer: Callable[[Array], Array] = identity
    """A layer's input [B T D]."""
    projected: Callable[[Array], Array] = identity
    """Queries, keys and values as they are projected, [B T n*E]."""
    attended: Callable[[Array], Array] = identity
    """The output of attention, [B T H*E]."""
    products: Callable[[Array], Array] = identity
    """The products with the vocabulary, of which tokens are drawn, [V B]."""


UNCONSTRAINED = ActivationShardings()
"""For one device, or where XLA may decide."""


class LayerCache(NamedTuple):
    """One layer's part of a KVCache."""

    columns: LayerKeyValues
    ring_position: Int[Array, ""] | int | None = None


class LayerInputs(NamedTuple):
    """The part of a sequence's inputs that is the same for all layers."""

    rotary: RotaryTable
    """Of each of `distinct_ropes`, [R B 1 T half]."""
    mask: Bool[Array, "B T S"]
    distances: Int[Array, "B T S"] | None
    """How many tokens before a query a key stands; None where no layer has a window."""


class RMSNorm(nn.Module):
    """Root mean square norm (arXiv 1910.07467), computed in float32."""

    epsilon: float
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        ones = nn.initializers.constant(1.0 - self.offset)
        # Gemma stores scale - 1, which starts at 0: the offset adds the 1.
        scale = self.param("scale", ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(mean_square + self.epsilon)
        return (normed * (scale.astype(jnp.float32) + self.offset)).astype(x.dtype)


def make_norm(config: ModelConfig, name: str) -> RMSNorm:
    """Returns a norm as all of this network's are."""
    return RMSNorm(config.norm_epsilon, config.norm_offset, name=name)


class Dense(nn.Module):
    """A linear layer x W (+ b); with adapters beside W it adds (x A) B (see lora.py).

    With a scale beside W, W is int8 (see int8.py).
    """

    width: int
    bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B T _"]) -> Float[Array, "B T _"]:
        kernel = self.param(
            "kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.width)
        )
        if self.has_variable("params", "kernel_scale"):
            scale: Array = self.get_variable("params", "kernel_scale")
            out = int8_matmul(x, Int8Matrix(kernel, scale))
        else:
            out = checkpoint_name(matmul(x, kernel), PRODUCT)
        # Whether there are adapters is seen in the parameters: the reference has none.
        if self.has_variable("params", "lora_a"):
            lora_a: Array = self.get_variable("params", "lora_a")
            lora_b: Array = self.get_variable("params", "lora_b")
            low_rank = checkpoint_name(matmul(x, lora_a), PRODUCT)  # [B, T, rank]
            out = out + matmul(low_rank, lora_b)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.width,))
            # Added in float32, so that the bias's gradient, a sum over all tokens, is summed in
            # float32, too.
            wide = out.astype(jnp.float32) + bias.astype(jnp.float32).reshape(1, 1, -1)
            out = wide.astype(x.dtype)
        return out


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, over the sequence itself or a cache."""

    config: ModelConfig
    shardings: ActivationShardings

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        inputs: LayerInputs,
        cache: LayerCache | None,
        constants: LayerConstants,
        attention_fn: AttentionFn | None,
    ) -> tuple[Float[Array, "B T D"], LayerKeyValues]:
        config = self.config
        # 1. Project; rotate queries and keys by their positions.
        rotary = jax.tree.map(itemgetter(constants.rope_index), inputs.rotary)
        queries = apply_rotary(
            self._project("query", x, config.heads, config.head_norm), rotary
        )
        keys = apply_rotary(
            self._project("key", x, config.kv_heads, config.head_norm), rotary
        )
        keys = keys.swapaxes(2, 3)  # [B, K, E, T]
        values = self._project("value", x, config.kv_heads)  # [B, K, T, E]

        # 2. Put the cached columns before the new ones, or the new one among them.
        parts = [(keys, values)]
        if cache is not None and cache.ring_position is not None:
            keys, values = write_column(
                cache.columns, (keys, values), cache.ring_position
            )
            parts = [(keys, values)]
        elif cache is not None:
            # Cached rows are repeated here, and not before the layers, so that the copies of only
            # one layer are held at a time.
            cached_keys, cached_values = cache.columns
            copies = len(keys) // len(cached_keys)
            cached = (
                repeat_rows(cached_keys, copies),
                repeat_rows(cached_values, copies),
            )
            parts = [cached, (keys, values)]

        # 3. Attend, and project back to the width of the model.
        out = self._attend(queries, parts, inputs.mask, constants, attention_fn)
        out = out.swapaxes(1, 2).reshape(*x.shape[:2], -1)  # [B, T, H*E]
        out = self.shardings.attended(out)
        return Dense(config.width, config.out_bias, name="out")(out), (keys, values)

    def _project(
        self, name: str, x: Array, heads: int, head_norm: str = ""
    ) -> Float[Array, "B n T E"]:
        """Returns queries, keys or values, normed as the network's are."""
        config = self.config
        out = Dense(heads * config.head_width, config.qkv_bias, name=name)(x)
        out = self.shardings.projected(out)
        # OLMo 2 norms all heads together, Qwen3 and Gemma 3 each head by itself.
        if head_norm == "all":
            out = make_norm(config, f"{name}_norm")(out)
        out = out.reshape(*x.shape[:2], heads, config.head_width)
        if head_norm == "head":
            out = make_norm(config, f"{name}_norm")(out)
        return out.swapaxes(1, 2)

    @jax.named_scope("attend")
    def _attend(
        self,
        queries: Array,
        parts: list[LayerKeyValues],
        mask: Array,
        constants: LayerConstants,
        attention_fn: AttentionFn | None,
    ) -> Float[Array, "B H T E"]:
        scale = self.config.query_scale
        softcap = self.config.attention_softcap
        if attention_fn is None:
            return attend(queries, parts, mask, scale, softcap)
        # A kernel is compiled for each window; a scanned layer chooses its own as it runs.
        kernels = [
            partial(attention_fn, window=window, scale=scale, softcap=softcap)
            for window in distinct_windows(self.config)
        ]
        if len(kernels) == 1:
            return kernels[0](queries, parts)
        return jax.lax.switch(constants.window_index, kernels, queries, parts)


def write_column(
    ring: LayerKeyValues, column: LayerKeyValues, position: Array | int
) -> LayerKeyValues:
    """Returns a ring with one column of its keys and values replaced."""

    def write(ring: Array, column: Array, axis: int) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(
            ring, column.astype(ring.dtype), position, axis
        )

    return write(ring[0], column[0], 3), write(ring[1], column[1], 2)


class MLP(nn.Module):
    """A gated MLP: down(activation(gate(x)) * up(x))."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        width = self.config.mlp_width
        activation = ACTIVATIONS[self.config.activation]
        gated = activation(Dense(width, name="gate")(x)) * Dense(width, name="up")(x)
        return Dense(self.config.width, name="down")(gated)


class Layer(nn.Module):
    """Attention and MLP with their norms, for one sequence or for prompts and then completions.

    Prompts and completions pass through each layer together, so the backward pass forms each
    weight gradient once and FSDP gathers each weight once. A later sequence reads the keys and
    values of the one before it.

    attention_fns: the attention kernel of each sequence; None: `attend`
    """

    config: ModelConfig
    attention_fns: tuple[AttentionFn | None, ...]
    shardings: ActivationShardings

    @nn.compact
    def __call__(
        self,
        hidden: tuple[Array, ...],
        sequences: tuple[LayerInputs, ...],
        cache: LayerCache | None,
        constants: LayerConstants,
    ) -> tuple[tuple[Array, ...], LayerKeyValues]:
        config = self.config
        attention = Attention(config, self.shardings, name="attention")
        mlp = MLP(config, name="mlp")
        # Llama norms before attention and MLP, OLMo 2 after them, Gemma around them.
        has_norm_before = config.norms != "after"
        has_norm_after = config.norms != "before"
        # The modules are made once, so that both sequences share their parameters.
        attention_norm = self._norm("attention_norm", has_norm_before)
        mlp_norm = self._norm("mlp_norm", has_norm_before)
        attention_out_norm = self._norm("attention_out_norm", has_norm_after)
        mlp_out_norm = self._norm("mlp_out_norm", has_norm_after)
        outputs = []
        for x, inputs, attention_fn in zip(
            hidden, sequences, self.attention_fns, strict=True
        ):
            x = self.shardings.layer(x)
            # Layers differ in their windows, so each cuts the shared mask for itself.
            if inputs.distances is not None:
                inside_window = inputs.distances < constants.window
                inputs = inputs._replace(mask=inputs.mask & inside_window)
            attended, key_values = attention(
                attention_norm(x), inputs, cache, constants, attention_fn
            )
            x = x + attention_out_norm(attended)
            outputs.append(x + mlp_out_norm(mlp(mlp_norm(x))))
            # The next sequence goes on from this one.
            cache = LayerCache(key_values)
        return tuple(outputs), key_values

    def _norm(self, name: str, wanted: bool) -> Callable[[Array], Array]:
        return make_norm(self.config, name) if wanted else identity
