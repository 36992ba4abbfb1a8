"""A compiled program: a jitted function that can be compiled ahead of its first call, sealed, and
asked what it needs."""

from concurrent.futures import Executor, Future
from typing import Any

import jax
import jax.numpy as jnp
from jax.stages import Traced


class Program:
    """A jitted function that can be sealed: from then on a compile is an error.

    In a run a late compile would mean that something is not traced, or not of a fixed shape, which
    ought to be.
    """

    def __init__(self, name: str, jitted: Any):
        self.name = name
        self.sealed = False
        self._jitted = jitted
        self._arguments: tuple[Any, ...] | None = None
        """The arguments of the first call, their arrays as jax.ShapeDtypeStruct."""
        self._ahead: Future | None = None
        """The compilation that `compile_ahead` began."""

    def compile_ahead(self, executor: Executor, *arguments: Any) -> None:
        """Has the executor compile the program, for arrays or jax.ShapeDtypeStruct.

        The first call waits for it, and raises what it raised.
        """

        def compile_it() -> None:
            self._jitted.lower(*arguments).compile()

        self._ahead = executor.submit(compile_it)

    def __call__(self, *arguments: Any) -> Any:
        if self._ahead is not None:
            self._ahead.result()
            self._ahead = None
        if self._arguments is None:
            # Taken now: the call may donate its arguments.
            self._arguments = jax.tree.map(_without_values, arguments)
        compiled_before = self.compiled
        result = self._jitted(*arguments)
        if self.sealed and self.compiled > compiled_before:
            shapes = jax.tree.map(_shape_text, arguments)
            raise RuntimeError(
                f"{self.name} was compiled again after warm-up, for {shapes}"
            )
        return result

    def temporary_bytes(self) -> float:
        """Returns bytes that a device needs beside arguments and results; NaN if nobody knows.

        The program must have run. It is not compiled again: JAX gives the version that ran.
        """
        assert self._arguments is not None
        memory = self._jitted.lower(*self._arguments).compile().memory_analysis()
        return float(memory.temp_size_in_bytes) if memory else float("nan")

    def unsealed(self) -> "Program":
        """Returns another program of the same jitted function: what is compiled they share."""
        return Program(self.name, self._jitted)

    def trace(self, *arguments: Any) -> Traced:
        """Returns the traced program for arrays or jax.ShapeDtypeStruct: `jaxpr`, `lower`."""
        return self._jitted.trace(*arguments)

    @property
    def compiled(self) -> int:
        """The number of its compiled versions that calls have used."""
        return self._jitted._cache_size()

    def seal(self) -> None:
        """Makes every further compile an error."""
        self.sealed = True


def _without_values(x: Any) -> Any:
    """Returns an array's shape, dtype and sharding; anything else as it is."""
    if not isinstance(x, jax.Array):
        return x
    return jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=x.sharding, weak_type=x.weak_type
    )


def _shape_text(x: Any) -> str:
    return f"{jnp.result_type(x)}{list(jnp.shape(x))}"
