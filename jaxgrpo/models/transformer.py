"""One decoder-only transformer for every family: RMS norms, rotary positions, grouped queries, a gated MLP.

The only file that imports Flax. Modules describe the network; parameters are a plain pytree that travels through the pure
functions at the end: `init`, `forward`, `output_embedding`. They have a leaf of each layer, `layers_3/mlp/up/kernel`, or one of
all, `layers/mlp/up/kernel`: `stack` and `unstack` go from one to the other, and over stacked layers `forward` scans. Shapes:
B rows, T columns, D model width, H query heads, K key-value heads, E head width, L layers, S columns of keys and values (T, or
a cache's width).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxgrpo.types import Params

KeyValues = tuple[tuple[Array, Array], ...] | tuple[Array, Array]
"""One (keys, values) a layer, each Float[B K S E]; where the parameters are stacked, one of all layers, Float[L B K S E]."""

REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""What the backward pass finds of a layer, besides its input; the rest it computes again."""


class Cache(NamedTuple):
    """What new tokens read: W columns of their prompt, then, if there are no recent ones, each other. With R recent columns
    there is a single new token, and `column` becomes its own."""

    prompt: KeyValues
    recent: KeyValues | None = None
    column: Int[Array, ""] | int = 0


@dataclass(frozen=True)
class ModelConfig:
    """What distinguishes one network from another. Family files make it from a Hugging Face config.json."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    norm_epsilon: float = 1e-6
    rope_theta: float = 10_000.0
    tied_embeddings: bool = False
    qkv_bias: bool = False


def rotate(x: Float[Array, "B n T E"], positions: Int[Array, "B T"], theta: float) -> Float[Array, "B n T E"]:
    """Rotary position embedding (arXiv 2104.09864), halves convention as in Hugging Face checkpoints; angles in float32."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[:, None, :, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)


def attend(
    queries: Float[Array, "B H T E"],
    parts: list[tuple[Float[Array, "B K _ E"], Float[Array, "B K _ E"]]],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B H T E"]:
    """Softmax attention of H query heads over K key-value heads; query head h reads key-value head h // (H / K).

    Keys and values come in parts of any widths, together S columns: put together, they would have to be copied. A query whose
    mask is all False reads the mean of the values: finite, and never looked at.
    """
    batch, heads, length, width = queries.shape
    kv_heads = parts[0][0].shape[1]
    grouped = queries.reshape(batch, kv_heads, -1, width)  # [B, K, H/K * T, E]: one product for a whole group of heads
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = jnp.concatenate([product("bkqe,bkse->bkqs", grouped, keys) for keys, _ in parts], axis=-1) * width**-0.5
    scores = scores.reshape(batch, heads, length, -1)
    scores = jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).reshape(batch, kv_heads, -1, scores.shape[-1])
    cuts = np.cumsum([values.shape[2] for _, values in parts])[:-1]
    shares = jnp.split(weights, cuts, axis=-1)
    read = [product("bkqs,bkse->bkqe", w.astype(v.dtype), v) for w, (_, v) in zip(shares, parts, strict=True)]
    return reduce(jnp.add, read).reshape(batch, heads, length, width).astype(queries.dtype)


class RMSNorm(nn.Module):
    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        return (normed * scale.astype(jnp.float32)).astype(x.dtype)


class Attention(nn.Module):
    config: ModelConfig
    whole: Callable | None

    @nn.compact
    def __call__(self, x, positions, mask, cache):
        config = self.config

        def project(name: str, heads: int) -> Float[Array, "B n T E"]:
            out = nn.Dense(heads * config.head_width, use_bias=config.qkv_bias, dtype=x.dtype, name=name)(x)
            return out.reshape(*x.shape[:2], heads, config.head_width).swapaxes(1, 2)

        queries = rotate(project("query", config.heads), positions, config.rope_theta)
        keys = rotate(project("key", config.kv_heads), positions, config.rope_theta)
        values = project("value", config.kv_heads)
        parts = [(keys, values)]
        if cache is not None:
            prompt, recent, column = cache
            if recent is not None:
                write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), column, axis=2)
                keys, values = write(recent[0], keys), write(recent[1], values)
            parts = [prompt, (keys, values)]
        out = self.whole(queries, parts) if self.whole else attend(queries, parts, mask)
        out = out.swapaxes(1, 2).reshape(*x.shape[:2], -1)
        return nn.Dense(config.width, use_bias=False, dtype=x.dtype, name="out")(out), (keys, values)


class MLP(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        def dense(width: int, name: str) -> nn.Dense:
            return nn.Dense(width, use_bias=False, dtype=x.dtype, name=name)

        gated = nn.silu(dense(self.config.mlp_width, "gate")(x)) * dense(self.config.mlp_width, "up")(x)
        return dense(self.config.width, "down")(gated)


class Layer(nn.Module):
    config: ModelConfig
    whole: Callable | None

    @nn.compact
    def __call__(self, x, positions, mask, cache):
        normed = RMSNorm(self.config.norm_epsilon, name="attention_norm")(x)
        attended, key_values = Attention(self.config, self.whole, name="attention")(normed, positions, mask, cache)
        x = x + attended
        x = x + MLP(self.config, name="mlp")(RMSNorm(self.config.norm_epsilon, name="mlp_norm")(x))
        return x, key_values


class Transformer(nn.Module):
    config: ModelConfig
    dtype: DTypeLike = jnp.float32
    whole: Callable | None = None
    remat: str = "none"

    @nn.compact
    def __call__(self, tokens, positions, mask, cache=None):
        config = self.config
        normal = nn.initializers.normal(0.02)
        embedding = self.param("embedding", normal, (config.vocab_size, config.width))
        if not config.tied_embeddings:
            self.param("output_embedding", normal, (config.vocab_size, config.width))
        x = embedding.astype(self.dtype)[tokens]
        scanned = self.has_variable("params", "layers")
        layers = self._scanned if scanned else self._unrolled
        layer: Any = Layer if self.remat == "none" else nn.remat(Layer, policy=REMAT[self.remat], prevent_cse=not scanned)
        x, key_values = layers(layer, x, positions, mask, cache)
        return RMSNorm(config.norm_epsilon, name="norm")(x), key_values

    def _unrolled(self, layer, x, positions, mask, cache):
        key_values = []
        for i in range(self.config.layers):
            layer_cache = None if cache is None else (cache.prompt[i], cache.recent and cache.recent[i], cache.column)
            x, layer_key_values = layer(self.config, self.whole, name=f"layers_{i}")(x, positions, mask, layer_cache)
            key_values.append(layer_key_values)
        return x, tuple(key_values)

    def _scanned(self, layer, x, positions, mask, cache):
        """One compiled layer for all. What differs between layers comes with axis 0: parameters, a part of the cache."""
        config, in_axes = self.config, (nn.broadcast, nn.broadcast, 0)
        over = nn.scan(layer, {"params": 0}, split_rngs={"params": False}, in_axes=in_axes, length=config.layers)
        layer_cache = None if cache is None else (cache.prompt, None, None)
        return over(config, self.whole, name="layers")(x, positions, mask, layer_cache)


def init(config: ModelConfig, key: Array) -> Params:
    """Random float32 parameters: embeddings normal(0.02), matrices LeCun normal, norms 1."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    return Transformer(config).init(key, tokens, tokens, jnp.ones((1, 1, 1), bool))["params"]


def shapes(config: ModelConfig) -> Params:
    """What `init` would make, as jax.ShapeDtypeStruct: no memory, no arithmetic."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def forward(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    mask: Bool[Array, "B T S"],
    cache: Cache | None = None,
    dtype: DTypeLike = jnp.float32,
    whole: Callable | None = None,
    remat: str = "none",
) -> tuple[Float[Array, "B T D"], KeyValues]:
    """The last hidden states, normed, and each layer's keys and values.

    Without a cache S = T: the sequence reads itself. With a prompt alone S = W + T: the sequence goes on from it. With recent
    columns T = 1 and S = W + R: the token's keys and values are written into the cache's column first, and what is returned is
    its recent part. `dtype` is what matrix products are computed in.
    whole: (queries, parts) -> what `attend` gives, in its place, as splash.attention makes it; it knows the mask.
    remat: what a backward pass finds of each layer, one of REMAT. Where the parameters are stacked, a cache has a prompt alone.
    """
    # Any: Flax also has it that a second result may be mutable collections, of which there are none.
    result: Any = Transformer(config, dtype, whole, remat).apply({"params": params}, tokens, positions, mask, cache)
    return result


def stack(params: Params) -> Params:
    """The same parameters with one leaf [L ...] where there was one of each layer; as they are if they are stacked."""
    names = [name for name in params if name.startswith("layers_")]
    if not names:
        return params
    layers = [params[f"layers_{i}"] for i in range(len(names))]
    rest = {name: value for name, value in params.items() if name not in names}
    return rest | {"layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}


def unstack(params: Params) -> Params:
    """The inverse of `stack`; as they are if they are not stacked."""
    if "layers" not in params:
        return params
    rest = {name: value for name, value in params.items() if name != "layers"}
    count = len(jax.tree.leaves(params["layers"])[0])
    return rest | {f"layers_{i}": jax.tree.map(itemgetter(i), params["layers"]) for i in range(count)}


def size(params: Params) -> int:
    """How many numbers the parameters are."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def output_embedding(params: Params) -> Float[Array, "V D"]:
    """The matrix whose product with a hidden state gives the logits; the input embedding where the two are tied."""
    return params.get("output_embedding", params["embedding"])


def sequence_mask(segments: Bool[Array, "B T"] | Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Which column reads which: those before it and itself within its own text. Segment 0 (or False) is padding."""
    length = segments.shape[1]
    same = segments[:, :, None] == segments[:, None, :]
    return jnp.tril(jnp.ones((length, length), bool)) & same & (segments != 0)[:, None, :]


def sequence_positions(segments: Bool[Array, "B T"] | Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Positions that count tokens, not columns: every text starts at 0, whatever stands before it in its row."""
    columns = jnp.arange(segments.shape[1])
    starts = jnp.concatenate([jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1)
    return columns - jax.lax.cummax(jnp.where(starts, columns, 0), axis=1)
