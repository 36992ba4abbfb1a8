"""What JAX compiles, as it tells its listeners."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def noted_compilations() -> Iterator[list[dict]]:
    """Gives a list that has an entry for each program that is compiled from here on."""
    compiled: list[dict] = []

    def note(event: str, seconds: float, **about: object) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(about)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
