"""Rewards: functions of (problem, completion's text), and the pool of workers that calls them.

Imports nothing: a worker process should load only what its rewards need. Never jax.
"""

_NEW_NAMES = {
    "answers": "maths.extraction",
    "collections": "maths.sets",
    "format": "layout",
    "language": "languages",
    "math": "maths",
    "numbers": "maths.quantities",
    "pool": "workers.pool",
    "process": "workers.process",
    "symbolic": "maths.symbolic",
    "tell": "languages.identify",
    "words": "languages.words",
    "worker": "workers.worker",
}


def __getattr__(name: str) -> object:
    """Raises ImportError that says the new name of a module that has moved.

    Python calls this for `from jaxgrpo.rewards import name` where the package has no such attribute
    yet. AttributeError then has it look for a submodule of that name.
    """
    if name in _NEW_NAMES:
        raise ImportError(
            f"jaxgrpo.rewards.{name} is now jaxgrpo.rewards.{_NEW_NAMES[name]}"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
