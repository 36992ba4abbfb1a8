"""`python -m tools.bench logprobs`: log-probabilities of the chosen tokens, and their gradient."""

import argparse
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgrpo.device.logprobs import to_logits, token_logprobs
from jaxgrpo.errors import UserError
from tools.bench.turns import Result, median_seconds

Shapes = tuple[jax.ShapeDtypeStruct, ...]
"""Shapes of hidden, embedding, tokens and temperature."""


def bench_logprobs(arguments: argparse.Namespace) -> Result:
    """Value and gradient of the chosen tokens' log-probabilities, in chunks and with all logits."""
    rows, length = arguments.rows, arguments.length
    width, vocab = arguments.width, arguments.vocab
    if length < 2:
        raise UserError(
            f"--length {length} leaves nothing to choose: it must be at least 2"
        )
    dtype = jnp.dtype(arguments.dtype)
    shapes = (
        jax.ShapeDtypeStruct((rows, length, width), dtype),
        jax.ShapeDtypeStruct((vocab, width), dtype),
        jax.ShapeDtypeStruct((rows, length), jnp.int32),
        jax.ShapeDtypeStruct((), jnp.float32),
    )
    # Compiled ahead of time, so that the compiler can be asked for their memory.
    programs = {
        "": gradient_program(partial(chunked_logprobs, arguments.chunk), shapes),
        "naive_": gradient_program(naive_logprobs, shapes),
    }
    result: Result = {}
    for name, program in programs.items():
        result[f"{name}temp_bytes"] = temp_bytes(program)
    if arguments.compile_only:
        return result
    # In turns, so that both meet the same other load of the machine.
    inputs = random_inputs(shapes, vocab)
    calls: dict[str, Callable[[], object]] = {
        name: partial(program, *inputs) for name, program in programs.items()
    }
    for name, seconds in median_seconds(calls, arguments.repeats).items():
        result[f"{name}median_s"] = seconds
    return result


def chunked_logprobs(
    chunk: int | None,
    hidden: Float[Array, "B T D"],
    embedding: Float[Array, "V D"],
    tokens: Int[Array, "B T"],
    temperature: Float[Array, ""],
) -> Float[Array, "B T"]:
    """Computes log-probabilities as a run does, without holding all logits."""
    logprobs, _, _ = token_logprobs(hidden, embedding, tokens, temperature, chunk=chunk)
    return logprobs


def naive_logprobs(
    hidden: Float[Array, "B T D"],
    embedding: Float[Array, "V D"],
    tokens: Int[Array, "B T"],
    temperature: Float[Array, ""],
) -> Float[Array, "B N"]:
    """Computes log-probabilities from all logits at once, to be differentiated by JAX."""
    logits = to_logits(
        hidden[:, :-1], embedding, temperature
    )  # [B, N, V] with N = T - 1
    chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    # Through logsumexp, which holds less than log_softmax does: the comparison is a fair one.
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def gradient_program(
    logprobs: Callable[..., Array], shapes: Shapes
) -> jax.stages.Compiled:
    """Compiles the sum of log-probabilities, and its gradients for hidden and embedding.

    logprobs: (hidden, embedding, tokens, temperature) -> log-probabilities
    """

    def total(*inputs: Array) -> Float[Array, ""]:
        return jnp.sum(logprobs(*inputs))

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1))).lower(*shapes).compile()


def random_inputs(shapes: Shapes, vocab: int) -> tuple[Array, Array, Array, Array]:
    """Returns random hidden states, embedding and tokens, and a temperature of 1."""
    hidden, embedding, tokens, _ = shapes
    keys = jax.random.split(jax.random.key(0), 3)
    # Divided by the root of the width, so that logits have the spread of a standard normal.
    scale = embedding.shape[1] ** -0.5
    return (
        jax.random.normal(keys[0], hidden.shape, hidden.dtype),
        jax.random.normal(keys[1], embedding.shape, embedding.dtype) * scale,
        jax.random.randint(keys[2], tokens.shape, 0, vocab),
        jnp.float32(1.0),
    )


def temp_bytes(program: jax.stages.Compiled) -> int:
    """Returns the memory that a program needs beyond its arguments and results, in bytes."""
    memory = program.memory_analysis()
    if memory is None:
        raise RuntimeError("the compiler does not say what the program needs")
    return memory.temp_size_in_bytes
