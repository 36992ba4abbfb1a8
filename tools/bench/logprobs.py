"""`python -m tools.bench logprobs`: log-probabilities of the chosen tokens, and their gradient."""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgrpo.device.logprobs import to_logits, token_logprobs
from jaxgrpo.errors import UserError
from tools.bench.turns import Result, median_seconds


def bench_logprobs(arguments: argparse.Namespace) -> Result:
    """Value and gradient of the chosen tokens' log-probabilities: ours, and the naive form that holds all logits."""
    rows, length, width, vocab = arguments.rows, arguments.length, arguments.width, arguments.vocab
    if length < 2:
        raise UserError(f"--length {length} leaves nothing to choose: it must be at least 2")
    dtype = jnp.dtype(arguments.dtype)
    shapes = (
        jax.ShapeDtypeStruct((rows, length, width), dtype),
        jax.ShapeDtypeStruct((vocab, width), dtype),
        jax.ShapeDtypeStruct((rows, length), jnp.int32),
        jax.ShapeDtypeStruct((), jnp.float32),
    )
    ours = lambda *inputs: token_logprobs(*inputs, chunk=arguments.chunk)[0]
    programs = {
        "": gradient_program(ours, shapes),
        "naive_": gradient_program(naive_logprobs, shapes),
    }
    result = {f"{name}temp_bytes": temp_bytes(program) for name, program in programs.items()}
    if not arguments.compile_only:
        inputs = random_inputs(shapes, vocab)
        calls = {
            name: lambda program=program: program(*inputs) for name, program in programs.items()
        }
        result |= {
            f"{name}median_s": median
            for name, median in median_seconds(calls, arguments.repeats).items()
        }
    return result


def naive_logprobs(
    hidden: Float[Array, "B T D"],
    embedding: Float[Array, "V D"],
    tokens: Int[Array, "B T"],
    temperature: Float[Array, ""],
) -> Float[Array, "B N"]:
    """All logits at once, differentiated by JAX; through logsumexp, which holds less than log_softmax does."""
    logits = to_logits(hidden[:, :-1], embedding, temperature)
    chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def gradient_program(logprobs: Callable, shapes: tuple) -> jax.stages.Compiled:
    """Compiled: (hidden, embedding, tokens, temperature) -> sum of logprobs, its gradients for hidden and embedding."""
    total = lambda *inputs: jnp.sum(logprobs(*inputs))
    return jax.jit(jax.value_and_grad(total, argnums=(0, 1))).lower(*shapes).compile()


def random_inputs(shapes: tuple, vocab: int) -> tuple[Array, Array, Array, Array]:
    """hidden, embedding, tokens, temperature 1; the logits have the spread of a standard normal."""
    hidden, embedding, tokens, _ = shapes
    keys = jax.random.split(jax.random.key(0), 3)
    return (
        jax.random.normal(keys[0], hidden.shape, hidden.dtype),
        jax.random.normal(keys[1], embedding.shape, embedding.dtype) * embedding.shape[1] ** -0.5,
        jax.random.randint(keys[2], tokens.shape, 0, vocab),
        jnp.float32(1.0),
    )


def temp_bytes(program: jax.stages.Compiled) -> int:
    """What the program needs beyond its arguments and results."""
    return program.memory_analysis().temp_size_in_bytes
