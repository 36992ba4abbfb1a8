"""Chunked log-probabilities are the plain ones, forward and backward, and the chunk is the most that is ever held."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo.logprobs import token_logprobs

ROWS, LENGTH, WIDTH, VOCABULARY = 3, 7, 5, 11


@pytest.fixture(scope="module")
def case():
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (ROWS, LENGTH, WIDTH))
    embedding = jax.random.normal(keys[1], (VOCABULARY, WIDTH))
    return hidden, embedding, jax.random.randint(keys[2], (ROWS, LENGTH), 0, VOCABULARY)


def plain(hidden, embedding, tokens, temperature, start):
    logprobs = jax.nn.log_softmax(hidden @ embedding.T / temperature)[:, :-1]
    chosen = jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[..., 0]
    entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
    wide = lambda x: jnp.pad(x, ((0, 0), (1, 0))) * (jnp.arange(LENGTH) >= start)
    return wide(chosen), wide(entropy)


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("start", [1, 4])
def test_chunks_are_exact(case, chunk, start):
    for ours, theirs in zip(token_logprobs(*case, 0.7, start, chunk), plain(*case, 0.7, start), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_gradients_are_those_of_the_plain_form(case):
    hidden, embedding, tokens = case
    weights = jax.random.normal(jax.random.key(1), tokens.shape)
    total = lambda f: lambda h, e: jnp.sum(weights * f(h, e, tokens, 0.7, 2)[0])
    chunked = lambda *arguments: token_logprobs(*arguments, chunk=4)
    ours, theirs = (jax.grad(total(f), argnums=(0, 1))(hidden, embedding) for f in (chunked, plain))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_all_logits_are_never_held():
    rows, length, vocabulary, chunk = 8, 65, 4096, 32
    shapes = [(rows, length, 8), (vocabulary, 8)]
    arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes] + [jax.ShapeDtypeStruct((rows, length), jnp.int32)]
    loss = lambda h, e, t: jnp.sum(token_logprobs(h, e, t, 1.0, chunk=chunk)[0])
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments).compile()
    all_logits = rows * length * vocabulary * 4
    assert compiled.memory_analysis().temp_size_in_bytes < all_logits / 2
