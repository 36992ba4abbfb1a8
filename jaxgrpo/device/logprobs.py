"""Log-probabilities of chosen tokens, and entropies, without the logits of the whole vocabulary.

[B, T, V] logits of a language model do not fit: at 8 rows of 1,024 tokens and 151,936 words they
are 5 GB in float32. `chunked_softmax.py` takes the vocabulary in chunks.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgrpo.device.chunked_softmax import LANES, ScoreConfig, ceil_div, chunked_scores
from jaxgrpo.device.logits import Ranges, to_logits, used_ids
from jaxgrpo.device.manual_axes import vary_alike

__all__ = ["Ranges", "chosen_logprobs", "to_logits", "token_logprobs", "used_ids"]

MAX_CHUNK_LOGITS = 2**24
"""Float32 logits of one chunk, over all rows, unless `chunk` says otherwise: 67 MB."""

MIN_CHUNK_COLUMNS = 1024
"""The narrowest chunk that MAX_CHUNK_LOGITS leads to, in columns of all shards together."""


def token_logprobs(
    hidden: Float[Array, "B T D"],
    embedding: Float[Array, "V D"],
    tokens: Int[Array, "B T"],
    temperature: Float[Array, ""] | float,
    *,
    softcap: float | None = None,
    entropy: bool = False,
    chunk: int | None = None,
    shards: int = 1,
    unused: Ranges = (),
) -> tuple[Float[Array, "B T"], Float[Array, "B T"] | None]:
    """Computes the log-probability of each token given those before it, and entropies; nats.

        p = softmax(to_logits(hidden[t - 1]))
        logprobs[t] = log p[tokens[t]]
        entropy[t] = -sum(p * log p)

    Entry t is about choosing token t, which the hidden state of column t - 1 decides. Entry 0 is 0:
    nothing before it decides it. To score the completions alone, pass the columns from the last one
    of the prompt on.

    Both results have gradients for hidden and embedding, in the dtypes of these; temperature is a
    constant. Where the entropy's gradient is not used (a metric, stop_gradient) the backward pass
    does not compute it. Matrix products are in hidden's dtype and summed in float32.

    softcap: as in `to_logits`
    entropy: whether to compute entropies; None is returned in their place otherwise
    chunk: columns of logits held at once; None: by MAX_CHUNK_LOGITS and MIN_CHUNK_COLUMNS
    shards: parts into which the mesh divides the embedding's first axis. Each chunk takes as many
        columns of every part, so that none of them moves to another device
    unused: ids that no token has; their p is 0 and they get no gradient

    Inside jax.shard_map hidden and tokens may be a device's own rows, beside an embedding that is
    the same on all: its gradient is summed over the devices.

    Raises ValueError if the embedding is no [V, D], or the vocabulary does not divide by shards.
    """
    logprobs, entropies, _ = chosen_logprobs(
        hidden[:, :-1],
        embedding,
        tokens[:, 1:],
        temperature,
        softcap=softcap,
        entropy=entropy,
        chunk=chunk,
        shards=shards,
        unused=unused,
    )
    return jax.tree.map(_pad_first_column, (logprobs, entropies))  # [B, N] -> [B, T]


@jax.named_scope("logits")
def chosen_logprobs(
    hidden: Float[Array, "B N D"],
    embedding: Float[Array, "V D"],
    tokens: Int[Array, "B N"],
    temperature: Float[Array, ""] | float,
    *,
    softcap: float | None = None,
    entropy: bool = False,
    chunk: int | None = None,
    shards: int = 1,
    unused: Ranges = (),
) -> tuple[Float[Array, "B N"], Float[Array, "B N"] | None, Float[Array, "V D"]]:
    """Computes the log-probability of each token by the hidden state that decides it; entropies.

    The third result is the embedding, for its next use (see `chunked_softmax.chunked_scores`).

    hidden: of the column before each token

    The other parameters, and what is raised, are those of `token_logprobs`.
    """
    num_rows, num_tokens = tokens.shape
    vocabulary, width = _embedding_shape(embedding, hidden.shape[-1])
    if vocabulary % shards:
        raise ValueError(
            f"a vocabulary of {vocabulary} cannot be divided into shards={shards} equal parts"
        )
    if not chunk:
        columns = MAX_CHUNK_LOGITS // max(1, num_rows * num_tokens)
        aligned_columns = columns // (LANES * shards) * LANES * shards
        chunk = max(MIN_CHUNK_COLUMNS, aligned_columns)
    shard_columns = vocabulary // shards
    chunk_columns = min(ceil_div(chunk, shards), shard_columns)
    config = ScoreConfig(softcap, entropy, chunk_columns, unused)
    # Inside a shard_map rows differ from device to device, and the embedding need not: its gradient
    # is then summed over them.
    hidden, embedding, tokens, temperature = vary_alike(
        hidden, embedding, tokens, jnp.asarray(temperature, jnp.float32)
    )
    logprobs, entropies, shard_embedding = chunked_scores(
        config,
        hidden,
        embedding.reshape(shards, shard_columns, width),
        tokens,
        temperature,
    )
    return logprobs, entropies, shard_embedding.reshape(embedding.shape)


def _embedding_shape(embedding: Float[Array, "V D"], width: int) -> tuple[int, int]:
    """Returns V and D.

    width: of the hidden states, D

    Raises ValueError if the second axis is not as wide.
    """
    shape = embedding.shape
    if len(shape) == 2 and shape[1] == width:
        return shape
    hint = ""
    if len(shape) == 2 and shape[0] == width:
        hint = "; this is its transpose: pass embedding.T"
    raise ValueError(
        f"the embedding is {list(shape)}, and hidden states have {width} columns: it must be "
        f"[vocabulary, {width}]{hint}"
    )


def _pad_first_column(score: Float[Array, "B N"]) -> Float[Array, "B T"]:
    """Returns the scores with a column of zeros before them."""
    return jnp.pad(score, ((0, 0), (1, 0)))
