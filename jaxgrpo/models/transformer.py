"""One decoder-only transformer for every family: RMS norms, rotary positions, grouped queries,
a gated MLP.

Flax modules describe the network; parameters are a plain pytree that travels through the pure
functions at the end: `init`, `forward` to sample, `forward_sequences` to learn, `output_embedding`.
They have a leaf of each layer, `layers_3/mlp/up/kernel`, or one of all layers,
`layers/mlp/up/kernel`: `stack` and `unstack` go from one to the other, and stacked layers are
scanned. Axes as in layers.py.
"""

import functools
from operator import itemgetter
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxgrpo.models.attention import (
    AttentionFn,
    KeyValues,
    KVCache,
    LayerKeyValues,
    RotaryTable,
    rotary_table,
)
from jaxgrpo.models.int8 import Int8Matrix
from jaxgrpo.models.layer_scan import scan_layers
from jaxgrpo.models.layers import (
    PRODUCT,
    UNCONSTRAINED,
    ActivationShardings,
    Layer,
    LayerCache,
    LayerInputs,
    make_norm,
)
from jaxgrpo.models.model_config import (
    LayerConstants,
    ModelConfig,
    distinct_ropes,
    layer_constants,
)
from jaxgrpo.models.products import embed
from jaxgrpo.types import Params

REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""What is kept of a layer for the backward pass, besides its input; it computes the rest again."""


class SequenceInputs(NamedTuple):
    """The tokens that a network reads, where they stand, and what each of them may read."""

    tokens: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    mask: Bool[Array, "B T S"]
    key_positions: Int[Array, "B S"] | None = None
    """Positions of the S columns of keys; None: they are the tokens themselves."""
    embedded: Float[Array, "B T D"] | None = None
    """The tokens' rows of the embedding; None: the network looks them up (see `look_up`)."""


class Outputs(NamedTuple):
    """What a network returns."""

    hidden: tuple[Float[Array, "B T D"], ...]
    """The last hidden states of each sequence, normed."""
    key_values: KeyValues | None
    """Each layer's keys and values; None where `scan_layers` is used."""
    layers: Params | None
    """The layers' parameters for their next use; None where `scan_layers` is not used."""


class Transformer(nn.Module):
    """The network from tokens to the last hidden states.

    attention_fns: the attention kernel of each sequence; None: `attend`
    remat: what is kept for the backward pass, one of REMAT
    """

    config: ModelConfig
    dtype: DTypeLike = jnp.float32
    attention_fns: tuple[AttentionFn | None, ...] = (None,)
    remat: str = "none"
    shardings: ActivationShardings = UNCONSTRAINED

    @nn.compact
    def __call__(
        self, sequences: list[SequenceInputs], cache: KVCache | None = None
    ) -> Outputs:
        config = self.config
        normal = nn.initializers.normal(0.02)
        # 1. The vocabulary's parameters. Scorer and sampler use the output embedding, not this.
        embedding = self.param("embedding", normal, (config.vocab_size, config.width))
        if not config.tied_embeddings:
            self.param("output_embedding", normal, (config.vocab_size, config.width))

        # 2. What the layers read.
        scale = jnp.asarray(config.embedding_scale, self.dtype)
        hidden = tuple(self._embed(embedding, inputs) * scale for inputs in sequences)
        layer_inputs = tuple(
            LayerInputs(
                self._rotary_tables(inputs), inputs.mask, self._distances(inputs)
            )
            for inputs in sequences
        )

        # 3. The layers: scanned where their parameters are stacked.
        is_scanned = self.has_variable("params", "layers")
        key_values, layers = None, None
        if is_scanned and self.remat == "full" and cache is None:
            hidden, layers = self._scan_layers_in_place(hidden, layer_inputs)
        else:
            layer: Any = (
                Layer  # Any: nn.remat returns a class that its types do not describe
            )
            if self.remat != "none":
                # A scan keeps XLA from merging the recomputation with the forward pass; unrolled
                # layers have to be told.
                layer = nn.remat(
                    Layer, policy=REMAT[self.remat], prevent_cse=not is_scanned
                )
            apply_layers = self._scan_layers if is_scanned else self._unroll_layers
            hidden, key_values = apply_layers(layer, hidden, layer_inputs, cache)
        last_norm = make_norm(config, "norm")
        return Outputs(tuple(last_norm(x) for x in hidden), key_values, layers)

    def _embed(self, embedding: Array, inputs: SequenceInputs) -> Float[Array, "B T D"]:
        """Returns the tokens' rows of the embedding, as a layer's input lies on the mesh."""
        rows = inputs.embedded
        if rows is None:
            rows, _ = embed(embedding, inputs.tokens, self.dtype)
        rows = self.shardings.embedded(rows)
        # Before a scan over layers, not only in each: XLA keeps what a scan carries where it was
        # at its beginning.
        return self.shardings.layer(rows)

    def _rotary_tables(self, inputs: SequenceInputs) -> RotaryTable:
        """Returns the tables of all distinct rotary positions, stacked: [R B 1 T half]."""
        head_width = self.config.head_width
        tables = [
            rotary_table(rope, head_width, inputs.positions)
            for rope in distinct_ropes(self.config)
        ]
        return jax.tree.map(_stack, *tables)

    def _distances(self, inputs: SequenceInputs) -> Int[Array, "B T S"] | None:
        if not self.config.windows:
            return None
        keys = (
            inputs.positions if inputs.key_positions is None else inputs.key_positions
        )
        return inputs.positions[:, :, None] - keys[:, None]

    def _unroll_layers(
        self,
        layer: Any,
        hidden: tuple[Array, ...],
        sequences: tuple[LayerInputs, ...],
        cache: KVCache | None,
    ) -> tuple[tuple[Array, ...], KeyValues]:
        """Applies one layer after another, each with parameters and a cache of its own."""
        constants = layer_constants(self.config)
        key_values = []
        for i in range(self.config.layers):
            layer_cache = None
            if cache is not None:
                columns = cast(LayerKeyValues, cache.columns[i])
                layer_cache = LayerCache(columns, cache.ring_position)
            module = layer(
                self.config, self.attention_fns, self.shardings, name=f"layers_{i}"
            )
            own_constants = jax.tree.map(itemgetter(i), constants)
            hidden, layer_key_values = module(
                hidden, sequences, layer_cache, own_constants
            )
            key_values.append(layer_key_values)
        return hidden, tuple(key_values)

    def _scan_layers(
        self,
        layer: Any,
        hidden: tuple[Array, ...],
        sequences: tuple[LayerInputs, ...],
        cache: KVCache | None,
    ) -> tuple[tuple[Array, ...], KeyValues]:
        """Scans one compiled layer over all of them.

        What differs from layer to layer comes with axis 0: parameters, the cached columns, and the
        layer's constants.
        """
        scanned = nn.scan(
            layer,
            {"params": 0},
            split_rngs={"params": False},
            in_axes=(nn.broadcast, 0, 0),
            length=self.config.layers,
        )
        module = scanned(self.config, self.attention_fns, self.shardings, name="layers")
        layer_cache = None
        if cache is not None:
            layer_cache = LayerCache(cast(LayerKeyValues, cache.columns))
        return module(hidden, sequences, layer_cache, layer_constants(self.config))

    def _scan_layers_in_place(
        self, hidden: tuple[Array, ...], sequences: tuple[LayerInputs, ...]
    ) -> tuple[tuple[Array, ...], Params]:
        """Scans the layers; nothing but their inputs is stored for the backward pass."""
        # Not a part of this module: layer_scan.py differentiates it as a function of parameters.
        layer = Layer(self.config, self.attention_fns, self.shardings, parent=None)

        def apply_layer(
            params: Params,
            hidden: tuple[Array, ...],
            sequences: tuple[LayerInputs, ...],
            constants: LayerConstants,
        ) -> tuple[Array, ...]:
            output: Any = layer.apply(
                {"params": params}, hidden, sequences, None, constants
            )
            return output[0]

        layers: Params = self.get_variable("params", "layers")
        constants = layer_constants(self.config)
        return scan_layers(apply_layer, layers, hidden, sequences, constants)


def _stack(*leaves: Array) -> Array:
    return jnp.stack(leaves)


def init(config: ModelConfig, key: Array) -> Params:
    """Returns random float32 parameters: normal(0.02) embeddings, LeCun matrices, norms 1."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    inputs = SequenceInputs(tokens, tokens, jnp.ones((1, 1, 1), bool))
    return Transformer(config).init(key, [inputs])["params"]


@functools.cache
def shapes(config: ModelConfig) -> Params:
    """Returns the shapes of `init`'s result, as jax.ShapeDtypeStruct: no memory, no arithmetic.

    They are made once for a config, which takes a tenth of a second: change a copy.
    """

    def init_params() -> Params:
        # The key is made in here, where it is a shape, too. An array would open the devices, and a
        # run checks its model folder before it decides how many devices a CPU is divided into.
        return init(config, jax.random.key(0))

    return jax.eval_shape(init_params)


def forward(
    config: ModelConfig,
    params: Params,
    inputs: SequenceInputs,
    cache: KVCache | None = None,
    *,
    dtype: DTypeLike = jnp.float32,
    attention_fn: AttentionFn | None = None,
    shardings: ActivationShardings = UNCONSTRAINED,
) -> tuple[Float[Array, "B T D"], KeyValues]:
    """Returns the last hidden states, normed, and each layer's keys and values.

    Without a cache S = T: the sequence reads itself. With a cache of W columns S = W + T: the
    sequence reads these and then itself. With a ring's position T = 1 and S = W: the token's keys
    and values are written into the ring first, and the ring is what is returned.

    inputs: with a cache, a network with windows needs its key_positions, in the cache's order
    cache: where the parameters are stacked, one without a ring's position
    dtype: of matrix products
    attention_fn: an attention kernel that knows the mask (splash.py); None: `attend`
    shardings: where activations lie on a mesh
    """
    if config.windows and cache is not None and inputs.key_positions is None:
        raise ValueError(
            "this network has windows: with a cache they need key_positions, the positions of its "
            "columns"
        )
    network = Transformer(config, dtype, (attention_fn,), shardings=shardings)
    # Any: to Flax a second result may be mutable collections, of which there are none here.
    outputs: Any = network.apply({"params": params}, [inputs], cache)
    return outputs.hidden[0], outputs.key_values


def forward_sequences(
    config: ModelConfig,
    params: Params,
    sequences: tuple[SequenceInputs, ...],
    *,
    dtype: DTypeLike = jnp.float32,
    attention_fns: tuple[AttentionFn | None, ...] = (None,),
    remat: str = "none",
    shardings: ActivationShardings = UNCONSTRAINED,
) -> tuple[tuple[Float[Array, "B T D"], ...], Params]:
    """Returns the last hidden states, normed, of sequences, each of which goes on from the last.

    They are those of `forward` for prompts [A W], and then for completions [B T] with the prompts
    as their cache: S = W + T. Each prompt is read once for the B / A completions of its group.

    The second result is the parameters, to be passed on instead of the argument: the gradient of
    layers that are scanned and rematerialised in full is then summed in one array.

    attention_fns: the attention kernel of each sequence; None: `attend`
    remat: what is kept of each layer for the backward pass, one of REMAT

    The other arguments are those of `forward`.
    """
    network = Transformer(config, dtype, attention_fns, remat, shardings)
    outputs: Any = network.apply({"params": params}, list(sequences))
    if outputs.layers is not None:
        params = params | {"layers": outputs.layers}
    return outputs.hidden, params


def look_up(
    params: Params,
    sequences: tuple[SequenceInputs, ...],
    dtype: DTypeLike,
    shardings: ActivationShardings = UNCONSTRAINED,
) -> tuple[Params, tuple[SequenceInputs, ...]]:
    """Returns the parameters, and the sequences with their tokens' rows of the embedding.

    In the parameters that are returned, the embedding is for its next use (see `products.embed`).
    """
    embedding = params["embedding"]
    embedded = []
    for inputs in sequences:
        rows, embedding = embed(embedding, shardings.tokens(inputs.tokens), dtype)
        embedded.append(inputs._replace(embedded=rows))
    return params | {"embedding": embedding}, tuple(embedded)


def stack(params: Params) -> Params:
    """Returns parameters with one leaf [L ...] for all layers; stacked ones as they are."""
    names = [name for name in params if name.startswith("layers_")]
    if not names:
        return params
    layers = [params[f"layers_{i}"] for i in range(len(names))]
    rest = {name: value for name, value in params.items() if name not in names}
    return rest | {"layers": jax.tree.map(_stack, *layers)}


def unstack(params: Params) -> Params:
    """Returns parameters with a leaf for each layer, the inverse of `stack`."""
    if "layers" not in params:
        return params
    rest = {name: value for name, value in params.items() if name != "layers"}
    count = len(jax.tree.leaves(params["layers"])[0])
    layers = {
        f"layers_{i}": jax.tree.map(itemgetter(i), params["layers"])
        for i in range(count)
    }
    return rest | layers


def parameter_count(params: Params) -> int:
    """Returns how many numbers the parameters are."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def is_tied(params: Params) -> bool:
    """Returns whether tokens are looked up in the output embedding, by parameters as trained."""
    return "output_embedding" not in params


def output_embedding(params: Params) -> Float[Array, "V D"]:
    """Returns the matrix whose product with a hidden state gives the logits.

    It is the input embedding where the two are tied.
    """
    return params.get("output_embedding", params["embedding"])


def with_output_embedding(params: Params, embedding: Float[Array, "V D"]) -> Params:
    """Returns the parameters with another matrix as their output embedding."""
    name = "embedding" if is_tied(params) else "output_embedding"
    return params | {name: embedding}


def sampler_embedding(params: Params) -> Float[Array, "V D"] | Int8Matrix:
    """Returns the output embedding of the sampler's copy, which may be int8."""
    if "output_embedding_scale" in params:
        return Int8Matrix(params["output_embedding"], params["output_embedding_scale"])
    return output_embedding(params)
