"""The optimizer, from optax, its learning-rate schedules, and what its numbers are stored in.

The only file that imports optax. Arithmetic is in float32. Where parameters or moments are stored
in bfloat16, most of an update would be lost: with 8 bits a number moves by 0.4 % or not at all.
`round_stochastically` therefore rounds at random, so that a number moves as it should on average
(arXiv 2010.06192).
"""

from functools import cache
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from jaxgrpo.distributed.mesh import matrix_mask
from jaxgrpo.errors import check_choice
from jaxgrpo.types import OptimizerState, Params

Optimizer: TypeAlias = optax.GradientTransformation

Schedule: TypeAlias = optax.Schedule
"""A learning rate by step, from 0."""

StoredState: TypeAlias = tuple[Params, OptimizerState]
"""Parameters and the optimizer's state, in the dtypes that a run stores them in."""


def schedule(kind: str, peak: float, warmup_steps: int, steps: int) -> optax.Schedule:
    """Returns a learning rate by step: a linear warm-up from 0 to `peak`, then what `kind` says.

    The first step already moves: step s (from 0) of the warm-up uses peak * (s + 1) / warmup_steps.
    The same rates are the same object, and so are optimizers with them: see `compile_programs`.

    kind: "constant", or "linear" or "cosine" down to 0 at step `steps`
    """
    check_choice("optimizer.schedule", kind, ("constant", "linear", "cosine"))
    last_step = 0 if kind == "constant" else steps
    return _schedule(kind, peak, warmup_steps, last_step)


@cache
def _schedule(kind: str, peak: float, warmup_steps: int, steps: int) -> optax.Schedule:
    rest = max(steps - warmup_steps, 1)
    if kind == "constant":
        decay = optax.constant_schedule(peak)
    elif kind == "linear":
        decay = optax.linear_schedule(peak, 0.0, rest)
    else:
        decay = optax.cosine_decay_schedule(peak, rest)
    if warmup_steps < 1:
        return decay
    warmup = optax.linear_schedule(peak / warmup_steps, peak, max(warmup_steps - 1, 1))
    return optax.join_schedules([warmup, decay], [warmup_steps])


@cache
def adamw(
    learning_rate: optax.Schedule,
    b1: float,
    b2: float,
    weight_decay: float,
    max_grad_norm: float,
) -> Optimizer:
    """Returns AdamW (arXiv 1711.05101) after clipping the gradient to a global norm.

    Weight decay is on matrices only. Its `update` takes the training step beside the gradient: the
    rate is a function of that, also where steps before it had nothing to train on. The correction
    of the moments' bias counts updates.
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


def scale_by_step(
    learning_rate: optax.Schedule,
) -> optax.GradientTransformationExtraArgs:
    """Scales updates by minus the rate of the step that `update` is given, from 0.

    Without a step it counts its own updates, as optax's do.
    """
    scaling = optax.scale_by_learning_rate(learning_rate)

    def update(
        updates: Params,
        state: OptimizerState,
        params: Params | None = None,
        *,
        step: Int[Array, ""] | None = None,
        **extra: object,
    ) -> tuple[Params, OptimizerState]:
        state_at_step = state if step is None else state._replace(count=step)
        return scaling.update(updates, state_at_step, params)

    return optax.GradientTransformationExtraArgs(scaling.init, update)


def optimizer_updates(
    optimizer: Optimizer,
    gradient: Params,
    state: OptimizerState,
    params: Params,
    step: Int[Array, ""],
) -> tuple[Params, OptimizerState]:
    """Returns what an optimizer adds to the parameters at a training step, and its new state."""
    with_step = optax.with_extra_args_support(optimizer)
    return with_step.update(gradient, state, params, step=step)


def apply_gradient(
    optimizer: Optimizer,
    gradient: Params,
    stored: StoredState,
    step: Int[Array, ""],
    key: PRNGKeyArray,
) -> StoredState:
    """Returns parameters and optimizer state after a step, in the dtypes that they are stored in.

    step: the training step, which sets the learning rate
    key: of the random rounding
    """
    # Arithmetic is in float32, whatever the numbers are stored in.
    params, opt_state = cast(stored, jnp.float32)
    updates, opt_state = optimizer_updates(optimizer, gradient, opt_state, params, step)
    new_params = jax.tree.map(jnp.add, params, updates)
    return round_stochastically((new_params, opt_state), stored, key)


def cast(tree: PyTree, dtype: DTypeLike) -> PyTree:
    """Returns the tree with its floating-point leaves in dtype, rounded to the nearest.

    Counters stay as they are.
    """

    def cast_leaf(x: Array) -> Array:
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast_leaf, tree)


def round_stochastically(tree: PyTree, like: PyTree, key: PRNGKeyArray) -> PyTree:
    """Returns the tree in the dtypes of `like`.

    From float32 to bfloat16 a number goes up or down with the probabilities that make its mean
    exact. Which way is a function of the key and of the leaf's place alone.
    """

    def round_leaf(index: int, new: Array, dtype: DTypeLike) -> Array:
        if new.dtype == dtype:
            return new
        # bfloat16 is the upper half of float32: noise in the lower half carries into the upper
        # with the probability that the lower half says.
        leaf_key = jax.random.fold_in(key, index)
        noise = jax.random.bits(leaf_key, new.shape, jnp.uint16).astype(jnp.uint32)
        raised = jax.lax.bitcast_convert_type(new, jnp.uint32) + noise
        upper_half = (raised >> 16).astype(jnp.uint16)
        return jax.lax.bitcast_convert_type(upper_half, jnp.bfloat16)

    leaves, structure = jax.tree.flatten(tree)
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(like)]
    pairs = zip(leaves, dtypes, strict=True)
    rounded = [
        round_leaf(index, leaf, dtype) for index, (leaf, dtype) in enumerate(pairs)
    ]
    return jax.tree.unflatten(structure, rounded)
