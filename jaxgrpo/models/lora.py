"""LoRA (arXiv 2106.09685): trains a low-rank change of some matrices, W + alpha / rank * A B.

Adapters are a tree of their own, {"layers_0": {"mlp": {"up": {"lora_a": A, "lora_b": B}}}}. The
frozen base without adapters is the reference. The policy's tree holds the base's own arrays with
the adapters beside its kernels; a `transformer.Dense` that finds a pair adds (x A) B. Everything
here also works on stacked layers, whose kernels are [L, in, out].
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
        """Returns the factor of A B, alpha / rank."""
        return self.alpha / max(self.rank, 1)


NO_LORA = Lora()
"""No adapters: every parameter is trained."""


def init_trainable(lora: Lora, base: Params, key: Array) -> Params:
    """Returns the parameters to train: new adapters, or with rank 0 a copy of the base.

    A is uniform within +-1 / sqrt(in), as in PEFT, and B is zero: at first the policy equals the
    base.
    """
    if not lora.rank:
        return jax.tree.map(jnp.copy, base)
    return _init_adapters(lora, base, key)


def _init_adapters(lora: Lora, base: Params, key: Array, module: str = "") -> Params:
    """Returns adapters for the targets within a part of the base.

    module: the part's name, such as "query"; only parts with a kernel can be targets
    """
    # A part with a kernel is a Dense; `module` is then the name of its matrix.
    if "kernel" in base:
        return (
            _init_pair(base["kernel"], lora.rank, key) if module in lora.targets else {}
        )
    adapters: Params = {}
    for number, (name, part) in enumerate(sorted(base.items())):
        if not isinstance(part, dict):
            continue
        # A key for every place in the tree: each pair draws its own numbers.
        part_adapters = _init_adapters(
            lora, part, jax.random.fold_in(key, number), name
        )
        if part_adapters:
            adapters[name] = part_adapters
    return adapters


def _init_pair(kernel: Array, rank: int, key: Array) -> Params:
    """Returns A [in, rank] and B [rank, out] of a kernel [in, out]; stacked ones if it is."""
    *layers, inputs, outputs = kernel.shape
    bound = inputs**-0.5
    return {
        "lora_a": jax.random.uniform(
            key, (*layers, inputs, rank), minval=-bound, maxval=bound
        ),
        "lora_b": jnp.zeros((*layers, rank, outputs)),
    }


def zero_adapters(adapters: Params) -> Params:
    """Returns adapters of the same shapes that change nothing: a policy with them is its base."""
    return jax.tree.map(jnp.zeros_like, adapters)


def attach(base: Params, trained: Params) -> Params:
    """Returns a policy's parameters: the base's, with the trained ones added or in their place.

    trained: adapters, which stand beside the base's kernels, or all parameters, which replace them

    No array is copied.
    """
    policy = dict(base)
    for name, part in trained.items():
        policy[name] = (
            attach(base.get(name, {}), part) if isinstance(part, dict) else part
        )
    return policy


def scale_adapters(adapters: Params, scale: float) -> Params:
    """Returns the adapters with each B, and so each A B, multiplied by `scale`."""
    scaled: Params = {}
    for name, part in adapters.items():
        if isinstance(part, dict):
            scaled[name] = scale_adapters(part, scale)
        else:
            scaled[name] = part * scale if name == "lora_b" else part
    return scaled


def merge(policy: Params, scale: float) -> Params:
    """Returns parameters of the base's shape, with W + scale * A B in float32 in the place of W.

    policy: the base with its adapters, as `attach` returns it; what has none stays as it is
    """
    if "lora_a" not in policy:
        return {
            name: merge(part, scale) if isinstance(part, dict) else part
            for name, part in policy.items()
        }
    # What remains beside the kernel is a bias, if there is one.
    merged = {
        name: leaf for name, leaf in policy.items() if not name.startswith("lora_")
    }
    # [L, in, r] x [L, r, out] -> [L, in, out], L being there if layers are stacked. In full
    # precision: TPUs would else round the factors to bfloat16.
    change = jnp.einsum(
        "...ir,...ro->...io",
        policy["lora_a"],
        policy["lora_b"],
        precision=jax.lax.Precision.HIGHEST,
    )
    merged["kernel"] = policy["kernel"].astype(jnp.float32) + scale * change
    return merged
