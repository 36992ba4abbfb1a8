"""One decoder-only transformer for every family: RMS norms, rotary positions, grouped queries, a gated MLP.

The only file that imports Flax. Modules describe the network; parameters are a plain pytree that travels through the pure
functions at the end: `init`, `forward`, `output_embedding`. They have a leaf of each layer, `layers_3/mlp/up/kernel`, or one of
all, `layers/mlp/up/kernel`: `stack` and `unstack` go from one to the other, and over stacked layers `forward` scans. Shapes:
B rows, T columns, D model width, H query heads, K key-value heads, E head width, L layers, S columns of keys and values (T, or
a cache's width).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxgrpo.models.rope import Rope
from jaxgrpo.types import Params

KeyValues = tuple[tuple[Array, Array], ...] | tuple[Array, Array]
"""One (keys, values) a layer, Float[B K E S] and Float[B K S E], as one query reads them best: its products with keys and with
values are then both along memory. Where the parameters are stacked, one of all layers, with an axis [L] in front."""

PRODUCT = "product"
"""The name under which a product with a parameter can be kept for the backward pass."""

REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""What the backward pass finds of a layer, besides its input; the rest it computes again."""


class KVCache(NamedTuple):
    """What new tokens read: W columns of their prompt, then, if there are no recent ones, each other. With R recent columns
    there is a single new token, and `column` becomes its own. Where there are n times as many rows as prompts, each prompt is
    that of n rows beside each other."""

    prompt: KeyValues
    recent: KeyValues | None = None
    column: Int[Array, ""] | int = 0


class SequenceInputs(NamedTuple):
    """What a network reads, as the arguments of `forward`."""

    tokens: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    mask: Bool[Array, "B T S"]
    key_positions: Int[Array, "B S"] | None = None


class ActivationShardings(NamedTuple):
    """Where activations lie on a mesh: x -> the same there. Left to itself XLA may spread a layer's input over the width, as
    the embedding is, and have every device compute all rows."""

    embedded: Callable = lambda x: x
    """The rows of the embedding that tokens are looked up in, [B T D]; its gradient lies there, too."""
    layer: Callable = lambda x: x
    """A layer's input [B T D]."""
    projected: Callable = lambda x: x
    """Queries, keys and values as they are projected, [B T n*E]."""
    attended: Callable = lambda x: x
    """What attention has read, [B T H*E]."""
    logits: Callable = lambda x: x
    """What tokens are drawn from, [B V]."""


UNCONSTRAINED = ActivationShardings()
"""On one device, or wherever XLA will have them."""


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
    rope: Rope = field(default_factory=Rope)
    local_rope: Rope | None = None
    """Of the layers that have a window; None: as the others."""
    windows: tuple[int, ...] = ()
    """How many columns back each layer reads, itself included; 0 (or no entry): all."""
    tied_embeddings: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    head_norm: str = ""
    """What of queries and keys is normed: each "head" for itself, "all" heads together, or nothing."""
    norms: str = "before"
    """Where attention and MLP have a norm: "before" them, "after" them, or "around" them."""
    norm_offset: float = 0.0
    """What is added to the scale of every norm."""
    activation: str = "silu"
    embedding_scale: float = 1.0
    query_scale: float | None = None
    """What the products of queries and keys are multiplied by; None: head_width ** -0.5."""
    attention_softcap: float | None = None
    """The bound c of these, as c * tanh(products / c)."""
    logit_softcap: float | None = None
    unused_ids: tuple[tuple[int, int], ...] = ()
    """Rows of the embedding that no token of the tokenizer has, as (first, end) pairs: never drawn, in no softmax."""

    def __post_init__(self) -> None:
        # Windows that are all alike, written in one way: configs that mean the same are equal.
        object.__setattr__(self, "windows", self.windows if any(self.windows) else ())
        if self.windows and len(self.windows) != self.layers:
            raise ValueError(f"{len(self.windows)} windows for {self.layers} layers: each has one")

    @property
    def kinds(self) -> tuple[tuple[int, Rope], ...]:
        """The window and the rotary positions of each layer."""
        windows = self.windows or (0,) * self.layers
        return tuple(
            (window, self.local_rope if window and self.local_rope else self.rope)
            for window in windows
        )


ACTIVATIONS: dict[str, Callable] = {
    "silu": nn.silu,
    "gelu_tanh": partial(nn.gelu, approximate=True),
}

EVERYTHING = 2**30
"""As a window: wider than any text."""


class LayerConstants(NamedTuple):
    """What a layer does not share with the others, besides its parameters; of all layers, with an axis of them in front."""

    window: Int[Any, "*L"]
    """How many columns back it reads, itself included."""
    which: Int[Any, "*L"]
    """The place of its window among those that the network has."""
    rope: Int[Any, "*L"]
    """The place of its rotary positions among those that the network has."""


def layer_constants(config: ModelConfig) -> LayerConstants:
    """What each layer has of its own: a constant, and so NumPy's."""
    windows, ropes = distinct_windows(config), distinct_ropes(config)
    return LayerConstants(
        np.array([window or EVERYTHING for window, _ in config.kinds], np.int32),
        np.array([windows.index(window) for window, _ in config.kinds], np.int32),
        np.array([ropes.index(rope) for _, rope in config.kinds], np.int32),
    )


def distinct_windows(config: ModelConfig) -> list[int]:
    """The windows that there are, each once; 0: all columns."""
    return sorted({window for window, _ in config.kinds})


def distinct_ropes(config: ModelConfig) -> list[Rope]:
    """The rotary positions that there are, each once."""
    return list(dict.fromkeys(rope for _, rope in config.kinds))


class RotaryTable(NamedTuple):
    """How far positions turn; made once for all layers, for cosines cost more than what is multiplied by them."""

    cos: Float[Array, "*R B 1 T half"]
    sin: Float[Array, "*R B 1 T half"]


def rotary_table(rope: Rope, head_width: int, positions: Int[Array, "B T"]) -> RotaryTable:
    """Angles are in float32 whatever the network is computed in."""
    angles = positions[:, None, :, None].astype(jnp.float32) * rope.frequencies(head_width)
    return RotaryTable(jnp.cos(angles) * rope.magnitude(), jnp.sin(angles) * rope.magnitude())


def apply_rotary(x: Float[Array, "B n T E"], turns: RotaryTable) -> Float[Array, "B n T E"]:
    """Rotary position embedding (arXiv 2104.09864), halves convention as in Hugging Face checkpoints."""
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    halves = [left * turns.cos - right * turns.sin, right * turns.cos + left * turns.sin]
    return jnp.concatenate(halves, axis=-1).astype(x.dtype)


def attend(
    queries: Float[Array, "B H T E"],
    parts: list[tuple[Float[Array, "B K E _"], Float[Array, "B K _ E"]]],
    mask: Bool[Array, "B T S"],
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Array, "B H T E"]:
    """Softmax attention of H query heads over K key-value heads; query head h reads key-value head h // (H / K).

    Keys and values come in parts of any widths, together S columns: put together, they would have to be copied. A query whose
    mask is all False reads the mean of the values: finite, and never looked at.

    scale: of the products of queries and keys; None: E ** -0.5. softcap: their bound (arXiv 2408.00118); None: none
    """
    batch, heads, length, width = queries.shape
    kv_heads = parts[0][0].shape[1]
    grouped = queries.reshape(
        batch, kv_heads, -1, width
    )  # [B, K, H/K * T, E]: one product for a whole group of heads
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = jnp.concatenate(
        [product("bkqe,bkes->bkqs", grouped, keys) for keys, _ in parts], axis=-1
    )
    scores = scores * (width**-0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = scores.reshape(batch, heads, length, -1)
    scores = jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).reshape(batch, kv_heads, -1, scores.shape[-1])
    cuts = np.cumsum([values.shape[2] for _, values in parts])[:-1]
    shares = jnp.split(weights, cuts, axis=-1)
    read = [
        product("bkqs,bkse->bkqe", w.astype(v.dtype), v)
        for w, (_, v) in zip(shares, parts, strict=True)
    ]
    return reduce(jnp.add, read).reshape(batch, heads, length, width).astype(queries.dtype)


# What follows has a gradient of its own, because JAX's would sum over tokens in the dtype of the activations. A bfloat16 sum
# stops growing at 256 times what is added, so the gradient of a frequent token's embedding would mostly be lost.


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def embed(
    embedding: Float[Array, "V D"], tokens: Int[Array, "B T"], dtype: DTypeLike
) -> Float[Array, "B T D"]:
    """Returns the tokens' rows of the embedding in dtype. The gradient is summed over tokens in float32."""
    return embedding[tokens].astype(dtype)


def _embed_forward(
    embedding: Array, tokens: Array, dtype: DTypeLike
) -> tuple[Array, tuple[Array, Array]]:
    return embed(embedding, tokens, dtype), (embedding, tokens)


def _embed_backward(
    dtype: DTypeLike, residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, None]:
    embedding, tokens = residuals
    zeros = jnp.zeros(embedding.shape, jnp.float32)
    return zeros.at[tokens].add(gradient.astype(jnp.float32)).astype(embedding.dtype), None


embed.defvjp(_embed_forward, _embed_backward)


@jax.custom_vjp
def matmul(x: Float[Array, "B T I"], kernel: Float[Array, "I O"]) -> Float[Array, "B T O"]:
    """Returns x W in the dtype of x. The gradient of W is summed over tokens, and over devices, in float32."""
    return x @ kernel.astype(x.dtype)


def _matmul_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return matmul(x, kernel), (x, kernel)


def _matmul_backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    d_x = jnp.einsum("bto,io->bti", gradient, kernel.astype(x.dtype))
    d_kernel = jnp.einsum("bti,bto->io", x, gradient, preferred_element_type=jnp.float32)
    return d_x, d_kernel.astype(kernel.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def repeat_rows(x: Float[Array, "A *rest"], count: int) -> Float[Array, "B *rest"]:
    """Returns each row `count` times, copies beside each other. The gradient is summed over copies in float32."""
    return jnp.repeat(x, count, axis=0)


def _repeat_forward(x: Array, count: int) -> tuple[Array, None]:
    return repeat_rows(x, count), None


def _repeat_backward(count: int, _: None, gradient: Array) -> tuple[Array]:
    copies = gradient.reshape(-1, count, *gradient.shape[1:])
    return (copies.sum(axis=1, dtype=jnp.float32).astype(gradient.dtype),)


repeat_rows.defvjp(_repeat_forward, _repeat_backward)


class RMSNorm(nn.Module):
    epsilon: float
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        scale = self.param("scale", nn.initializers.constant(1.0 - self.offset), (x.shape[-1],))
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        return (normed * (scale.astype(jnp.float32) + self.offset)).astype(x.dtype)


def norm(config: ModelConfig, name: str) -> RMSNorm:
    """A norm as all of this network's are."""
    return RMSNorm(config.norm_epsilon, config.norm_offset, name=name)


class Dense(nn.Module):
    """Computes x W, + b with a bias; where the parameters hold adapters beside W, + (x A) B (see lora.py)."""

    width: int
    bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B T _"]) -> Float[Array, "B T _"]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.width))
        out = checkpoint_name(matmul(x, kernel), PRODUCT)
        if self.has_variable("params", "lora_a"):
            low_rank = checkpoint_name(
                matmul(x, self.get_variable("params", "lora_a")), PRODUCT
            )  # [B, T, rank]
            out = out + matmul(low_rank, self.get_variable("params", "lora_b"))
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.width,))
            # Added in float32: then the bias's gradient, a sum over all tokens, is summed in float32, too.
            out = (out.astype(jnp.float32) + bias.astype(jnp.float32).reshape(1, 1, -1)).astype(
                x.dtype
            )
        return out


class Attention(nn.Module):
    config: ModelConfig
    places: ActivationShardings

    @nn.compact
    def __call__(self, x, turns, mask, cache, own, whole):
        config = self.config
        turn = partial(apply_rotary, turns=jax.tree.map(itemgetter(own.rope), turns))
        queries = turn(self._project("query", x, config.heads, config.head_norm))
        keys = turn(self._project("key", x, config.kv_heads, config.head_norm)).swapaxes(2, 3)
        values = self._project("value", x, config.kv_heads)
        parts = [(keys, values)]
        if cache is not None:
            prompt, recent, column = cache
            if recent is not None:
                write = lambda old, new, axis: jax.lax.dynamic_update_slice_in_dim(
                    old, new.astype(old.dtype), column, axis
                )
                keys, values = write(recent[0], keys, 3), write(recent[1], values, 2)
            # Here, and not before the layers: so that the copies of one layer are held at a time.
            spread = partial(repeat_rows, count=len(keys) // len(prompt[0]))
            parts = [(spread(prompt[0]), spread(prompt[1])), (keys, values)]
        out = self._read(queries, parts, mask, own, whole)
        out = self.places.attended(out.swapaxes(1, 2).reshape(*x.shape[:2], -1))
        return Dense(config.width, config.out_bias, name="out")(out), (keys, values)

    def _project(
        self, name: str, x: Array, heads: int, normed: str = ""
    ) -> Float[Array, "B n T E"]:
        config = self.config
        out = self.places.projected(Dense(heads * config.head_width, config.qkv_bias, name=name)(x))
        if normed == "all":
            out = norm(config, f"{name}_norm")(out)
        out = out.reshape(*x.shape[:2], heads, config.head_width)
        if normed == "head":
            out = norm(config, f"{name}_norm")(out)
        return out.swapaxes(1, 2)

    def _read(
        self, queries: Array, parts: list, mask: Array, own: LayerConstants, whole: Callable | None
    ) -> Float[Array, "B H T E"]:
        config = self.config
        how = {"scale": config.query_scale, "softcap": config.attention_softcap}
        if not whole:
            return attend(queries, parts, mask, **how)
        reads = [partial(whole, window=window, **how) for window in distinct_windows(config)]
        return (
            jax.lax.switch(own.which, reads, queries, parts)
            if len(reads) > 1
            else reads[0](queries, parts)
        )


class MLP(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        width, activation = self.config.mlp_width, ACTIVATIONS[self.config.activation]
        gated = activation(Dense(width, name="gate")(x)) * Dense(width, name="up")(x)
        return Dense(self.config.width, name="down")(gated)


class Layer(nn.Module):
    """Of texts, each of which goes on from the one before it. Both in one layer, and not one after the other in all, is what
    has a backward pass make each matrix's gradient once, and a mesh gather each matrix once.

    wholes: what attends in each text. With each text come its distances, how many tokens before a column's own token one lies
    that it may read; None where no layer has a window.
    """

    config: ModelConfig
    wholes: tuple[Callable | None, ...]
    places: ActivationShardings

    @nn.compact
    def __call__(self, xs, texts, cache, own):
        config, out = self.config, []
        attention, mlp = Attention(config, self.places, name="attention"), MLP(config, name="mlp")
        parts = "attention", "mlp"
        norms = lambda kind, wanted: [
            norm(config, f"{part}_{kind}") if wanted else lambda x: x for part in parts
        ]
        before, after = (
            norms("norm", config.norms != "after"),
            norms("out_norm", config.norms != "before"),
        )
        for x, (turns, mask, distances), whole in zip(xs, texts, self.wholes, strict=True):
            x = self.places.layer(x)
            if distances is not None:
                mask = mask & (distances < own.window)
            attended, key_values = attention(before[0](x), turns, mask, cache, own, whole)
            x = x + after[0](attended)
            out.append(x + after[1](mlp(before[1](x))))
            cache = key_values, None, None
        return tuple(out), key_values


class Transformer(nn.Module):
    config: ModelConfig
    dtype: DTypeLike = jnp.float32
    wholes: tuple[Callable | None, ...] = (None,)
    remat: str = "none"
    places: ActivationShardings = UNCONSTRAINED

    @nn.compact
    def __call__(self, texts, cache=None):
        config = self.config
        normal = nn.initializers.normal(0.02)
        embedding = self.param("embedding", normal, (config.vocab_size, config.width))
        if not config.tied_embeddings:
            self.param("output_embedding", normal, (config.vocab_size, config.width))
        scale = jnp.asarray(config.embedding_scale, self.dtype)
        xs = tuple(self._looked_up(embedding, text.tokens) * scale for text in texts)
        where = tuple((self._turns(text), text.mask, self._distances(text)) for text in texts)
        scanned = self.has_variable("params", "layers")
        layers = self._scanned if scanned else self._unrolled
        layer: Any = (
            Layer
            if self.remat == "none"
            else nn.remat(Layer, policy=REMAT[self.remat], prevent_cse=not scanned)
        )
        xs, key_values = layers(layer, xs, where, cache)
        last = norm(config, "norm")
        return tuple(last(x) for x in xs), key_values

    def _looked_up(self, embedding: Array, tokens: Array) -> Float[Array, "B T D"]:
        """Returns the tokens' rows of the embedding, as a layer's input lies on the mesh."""
        rows = self.places.embedded(embed(embedding, tokens, self.dtype))
        # Before a scan over layers, not only in each: XLA has what it carries lie where it began.
        return self.places.layer(rows)

    def _turns(self, text: SequenceInputs) -> RotaryTable:
        every = [
            rotary_table(rope, self.config.head_width, text.positions)
            for rope in distinct_ropes(self.config)
        ]
        return jax.tree.map(lambda *each: jnp.stack(each), *every)

    def _distances(self, text: SequenceInputs) -> Int[Array, "B T S"] | None:
        if not self.config.windows:
            return None
        keys = text.positions if text.key_positions is None else text.key_positions
        return text.positions[:, :, None] - keys[:, None]

    def _unrolled(self, layer, xs, where, cache):
        every, key_values = layer_constants(self.config), []
        for i in range(self.config.layers):
            layer_cache = (
                None
                if cache is None
                else (cache.prompt[i], cache.recent and cache.recent[i], cache.column)
            )
            own = jax.tree.map(itemgetter(i), every)
            one = layer(self.config, self.wholes, self.places, name=f"layers_{i}")
            xs, layer_key_values = one(xs, where, layer_cache, own)
            key_values.append(layer_key_values)
        return xs, tuple(key_values)

    def _scanned(self, layer, xs, where, cache):
        """One compiled layer for all. What differs from layer to layer comes with axis 0: parameters, prompt, and its own."""
        over = nn.scan(
            layer,
            {"params": 0},
            split_rngs={"params": False},
            in_axes=(nn.broadcast, 0, 0),
            length=self.config.layers,
        )
        layer_cache = None if cache is None else (cache.prompt, None, None)
        return over(self.config, self.wholes, self.places, name="layers")(
            xs, where, layer_cache, layer_constants(self.config)
        )


def init(config: ModelConfig, key: Array) -> Params:
    """Random float32 parameters: embeddings normal(0.02), matrices LeCun normal, norms 1."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    return Transformer(config).init(
        key, [SequenceInputs(tokens, tokens, jnp.ones((1, 1, 1), bool))]
    )["params"]


def shapes(config: ModelConfig) -> Params:
    """What `init` would make, as jax.ShapeDtypeStruct: no memory, no arithmetic."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def forward(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    mask: Bool[Array, "B T S"],
    cache: KVCache | None = None,
    dtype: DTypeLike = jnp.float32,
    whole: Callable | None = None,
    remat: str = "none",
    places: ActivationShardings = UNCONSTRAINED,
    key_positions: Int[Array, "B S"] | None = None,
) -> tuple[Float[Array, "B T D"], KeyValues]:
    """The last hidden states, normed, and each layer's keys and values.

    Without a cache S = T: the sequence reads itself. With a prompt alone S = W + T: the sequence goes on from it. With recent
    columns T = 1 and S = W + R: the token's keys and values are written into the cache's column first, and what is returned is
    its recent part. `dtype` is what matrix products are computed in.
    whole: (queries, parts) -> what `attend` gives, in its place, as splash.attention makes it; it knows the mask.
    places: where activations lie on a mesh.
    remat: what a backward pass finds of each layer, one of REMAT. Where the parameters are stacked, a cache has a prompt alone.
    key_positions: of the columns that a cache makes longer than the sequence, in whatever order they are; windows need them.
    """
    if config.windows and cache is not None and key_positions is None:
        raise ValueError(
            "this network has windows: with a cache they need key_positions, the positions of its columns"
        )
    # Any: Flax also has it that a second result may be mutable collections, of which there are none.
    network = Transformer(config, dtype, (whole,), remat, places)
    result: Any = network.apply(
        {"params": params}, [SequenceInputs(tokens, positions, mask, key_positions)], cache
    )
    (hidden,), key_values = result
    return hidden, key_values


def forward_with_prompts(
    config: ModelConfig,
    params: Params,
    prompts: SequenceInputs,
    texts: SequenceInputs,
    dtype: DTypeLike = jnp.float32,
    wholes: tuple[Callable | None, Callable | None] = (None, None),
    remat: str = "none",
    places: ActivationShardings = UNCONSTRAINED,
) -> tuple[Float[Array, "A W D"], Float[Array, "B T D"]]:
    """The last hidden states, normed, of prompts and of texts that go on from them, S = W + T: as `forward` gives them for the
    prompts, and then with these as its cache. wholes: of each. The other arguments are those of `forward`."""
    network = Transformer(config, dtype, wholes, remat, places)
    result: Any = network.apply({"params": params}, [prompts, texts])
    return result[0]


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
    return rest | {
        f"layers_{i}": jax.tree.map(itemgetter(i), params["layers"]) for i in range(count)
    }


def parameter_count(params: Params) -> int:
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
    starts = jnp.concatenate(
        [jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1
    )
    return columns - jax.lax.cummax(jnp.where(starts, columns, 0), axis=1)
