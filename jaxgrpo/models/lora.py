"""LoRA (arXiv 2106.09685): what is trained is a low-rank change of some matrices, W + alpha / rank * A B; the rest is frozen.

Adapters are a tree of their own, {"layers_0": {"attention": {"query": {"lora_a": A, "lora_b": B}}}}. The reference is the base
without them: the policy's tree is the base's own arrays with the adapters put beside its kernels, and a `transformer.Dense`
that finds a pair adds (x A) B. A leading axis of layers, as of kernels [L, in, out], goes through all of it.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxgrpo.types import Params

TARGETS = ("query", "key", "value", "out", "gate", "up", "down")
"""The matrices that can have adapters."""


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters beside frozen matrices (arXiv 2106.09685).

    rank: of the change of a matrix (0: no adapters, every parameter is trained)
    alpha: the change counts alpha / rank times
    targets: which matrices change, of query, key, value, out, gate, up, down
    """

    rank: int = field(default=0, metadata={"at_least": 0})
    alpha: float = field(default=32.0, metadata={"above": 0})
    targets: tuple[str, ...] = TARGETS

    @property
    def scale(self) -> float:
        """What A B is multiplied by."""
        return self.alpha / max(self.rank, 1)


OFF = Lora()


def init(lora: Lora, base: Params, key: Array) -> Params:
    """What is trained: adapters, or with rank 0 a copy of the base.

    A is uniform within +-1 / sqrt(in), as PEFT draws it, and B zero: at first the policy is the base.
    """
    return _adapters(lora, base, key) if lora.rank else jax.tree.map(jnp.copy, base)


def _adapters(lora: Lora, base: Params, key: Array, name: str = "") -> Params:
    """Those for the part of a base that is called `name`."""
    if "kernel" in base:
        return _pair(base["kernel"], lora.rank, key) if name in lora.targets else {}
    parts = {
        name: _adapters(lora, part, jax.random.fold_in(key, number), name)
        for number, (name, part) in enumerate(sorted(base.items()))
        if isinstance(part, dict)
    }
    return {name: part for name, part in parts.items() if part}


def _pair(kernel: Array, rank: int, key: Array) -> Params:
    *layers, inputs, outputs = kernel.shape
    bound = inputs**-0.5
    return {
        "lora_a": jax.random.uniform(key, (*layers, inputs, rank), minval=-bound, maxval=bound),
        "lora_b": jnp.zeros((*layers, rank, outputs)),
    }


def zero_adapters(adapters: Params) -> Params:
    """Returns adapters of the same shapes that change nothing: a policy with them is its base."""
    return jax.tree.map(jnp.zeros_like, adapters)


def attach(base: Params, trained: Params) -> Params:
    """A policy's parameters: the base's, with those that are trained beside them or, where all are, in their place. The same
    arrays: nothing is copied."""
    joined = lambda name, part: attach(base.get(name, {}), part) if isinstance(part, dict) else part
    return {**base, **{name: joined(name, part) for name, part in trained.items()}}


def scaled(adapters: Params, scale: float) -> Params:
    """The same with `scale` times each B, and so each A B."""
    times = lambda name, part: part * scale if name == "lora_b" else part
    return {
        name: scaled(part, scale) if isinstance(part, dict) else times(name, part)
        for name, part in adapters.items()
    }


def merge(policy: Params, scale: float) -> Params:
    """A joined tree -> one of the base's shape, with W + scale * A B in the place of W, in float32; the rest as it is."""
    if "lora_a" not in policy:
        return {
            name: merge(part, scale) if isinstance(part, dict) else part
            for name, part in policy.items()
        }
    rest = {name: leaf for name, leaf in policy.items() if not name.startswith("lora_")}
    product = jnp.einsum(
        "...ir,...ro->...io",
        policy["lora_a"],
        policy["lora_b"],
        precision=jax.lax.Precision.HIGHEST,
    )
    return rest | {"kernel": policy["kernel"].astype(jnp.float32) + scale * product}
