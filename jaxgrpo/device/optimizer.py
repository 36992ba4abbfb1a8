"""Learning-rate schedules and gradient clipping, from optax, and what the numbers are stored in. The only file that imports it.

Arithmetic is in float32. Where parameters or moments are stored in bfloat16, an update would mostly be lost: with 8 bits a
number moves by 0.4 % or not at all. `store` therefore rounds at random, so that a number moves as it should on average
(arXiv 2010.06192).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from jaxgrpo.distributed.mesh import matrix_mask
from jaxgrpo.errors import UserError


def schedule(kind: str, peak: float, warmup_steps: int, steps: int) -> optax.Schedule:
    """Linear warm-up from 0 to `peak` over warmup_steps steps, then "constant", "linear" or
    "cosine" down to 0 at `steps`.

    The first step already moves: step s (from 0) of the warm-up uses peak * (s + 1) / warmup_steps.
    """
    rest = max(steps - warmup_steps, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, 0.0, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest),
    }
    if kind not in after:
        raise UserError(f"optimizer.schedule is {kind!r}: it must be one of {', '.join(after)}")
    if warmup_steps < 1:
        return after[kind]()
    warmup = optax.linear_schedule(peak / warmup_steps, peak, max(warmup_steps - 1, 1))
    return optax.join_schedules([warmup, after[kind]()], [warmup_steps])


def adamw(
    learning_rate: optax.Schedule, b1: float, b2: float, weight_decay: float, max_grad_norm: float
) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) after clipping the gradient to a global norm; weight decay on
    matrices only.

    Its update takes the training step beside the gradient: the rate is a function of that, also
    where steps before it had nothing to train on. The correction of the moments' bias counts
    updates.
    """
    return optax.chain(
        optax.clip_by_global_norm(max_grad_norm),
        # As optax.adamw, whose rate counts updates.
        optax.chain(
            optax.scale_by_adam(b1=b1, b2=b2),
            optax.add_decayed_weights(weight_decay, mask=matrix_mask),
            scale_by_step(learning_rate),
        ),
    )


def scale_by_step(learning_rate: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Scales updates by minus the rate of the step that `update` is given, from 0.

    Without a step it counts its own updates, as optax's do.
    """
    scaling = optax.scale_by_learning_rate(learning_rate)

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        step: Int[Array, ""] | None = None,
        **_: Any,
    ) -> tuple[Any, Any]:
        at_step = state if step is None else state._replace(count=step)
        return scaling.update(updates, at_step, params)

    return optax.GradientTransformationExtraArgs(scaling.init, update)


def optimizer_updates(
    optimizer: Any, gradient: Any, state: Any, params: Any, step: Int[Array, ""]
) -> tuple[Any, Any]:
    """Returns what any optimizer of optax adds to the parameters at a training step, and its new
    state."""
    return optax.with_extra_args_support(optimizer).update(gradient, state, params, step=step)


def cast(tree: Any, dtype: DTypeLike) -> Any:
    """The tree with its floating-point leaves in dtype, rounded to the nearest; counters stay as they are."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def round_stochastically(tree: Any, like: Any, step: Int[Array, ""]) -> Any:
    """The tree in the dtypes of `like`. From float32 to bfloat16 a number goes up or down with the probabilities that make its
    mean exact; which way is a function of the step and of the leaf's place alone."""
    key = jax.random.fold_in(jax.random.key(0), step)

    def one(index: int, new: Array, dtype: DTypeLike) -> Array:
        if new.dtype == dtype:
            return new
        noise = jax.random.bits(jax.random.fold_in(key, index), new.shape, jnp.uint16).astype(
            jnp.uint32
        )
        raised = (
            jax.lax.bitcast_convert_type(new, jnp.uint32) + noise
        )  # bfloat16 is float32's upper half
        return jax.lax.bitcast_convert_type((raised >> 16).astype(jnp.uint16), jnp.bfloat16)

    leaves, structure = jax.tree.flatten(tree)
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(like)]
    return jax.tree.unflatten(
        structure, [one(i, *pair) for i, pair in enumerate(zip(leaves, dtypes, strict=True))]
    )
