"""Log-probabilities of chosen tokens, in chunks: no program ever holds [B, T, V]."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

CHUNK = 2048
"""Rows of logits held at once; at a vocabulary of 151,936 they are 1.2 GB in float32."""


def to_logits(
    hidden: Float[Array, "*rows D"], embedding: Float[Array, "V D"], temperature: Float[Array, ""] | float
) -> Float[Array, "*rows V"]:
    """float32 logits at a temperature. The sampler and the scorer both use this one."""
    logits = jnp.einsum("...d,vd->...v", hidden, embedding.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return logits / temperature


def token_logprobs(
    hidden: Float[Array, "B T D"],
    embedding: Float[Array, "V D"],
    tokens: Int[Array, "B T"],
    temperature: Float[Array, ""] | float,
    start: int = 1,
    chunk: int = CHUNK,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Log-probability of each token given those before it, and the entropy of the distribution it was chosen from; nats.

    Entry t is about choosing token t, which the hidden state of column t - 1 decides: the only place that shifts. Entries
    before column `start` (>= 1) are 0 and cost nothing: pass the prompt width to score completions alone. The backward pass
    computes each chunk's logits again. The entropy carries no gradient.
    """
    rows, width = tokens.shape
    count = rows * (width - start)
    states = hidden[:, start - 1 : -1].reshape(count, -1)
    chosen = tokens[:, start:].reshape(count)
    chunk = min(chunk, count)
    padding = -count % chunk
    states = jnp.pad(states, ((0, padding), (0, 0))).reshape(-1, chunk, states.shape[-1])
    chosen = jnp.pad(chosen, (0, padding)).reshape(-1, chunk)

    @jax.checkpoint
    def score(states, chosen):
        logits = to_logits(states, embedding, temperature)
        logprobs = jax.nn.log_softmax(logits)
        constant = jax.lax.stop_gradient(logprobs)
        entropy = -jnp.sum(jnp.exp(constant) * constant, axis=-1)
        return jnp.take_along_axis(logprobs, chosen[:, None], axis=1)[:, 0], entropy

    logprobs, entropy = jax.lax.map(lambda pair: score(*pair), (states, chosen))
    unfold = lambda scores: jnp.pad(scores.reshape(-1)[:count].reshape(rows, -1), ((0, 0), (start, 0)))
    return unfold(logprobs), unfold(entropy)
