"""Learning-rate schedules and gradient clipping, from optax. The only file that imports it."""

import jax
import optax

from jaxgrpo.errors import UserError


def schedule(kind: str, peak: float, warmup_steps: int, steps: int) -> optax.Schedule:
    """Linear warm-up from 0 to `peak` over warmup_steps updates, then "constant", "linear" or "cosine" down to 0 at `steps`.

    The first update already moves: update u (from 0) of the warm-up uses peak * (u + 1) / warmup_steps.
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
    """AdamW (arXiv 1711.05101) after clipping the gradient to a global norm; weight decay on matrices only."""
    matrices = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
    return optax.chain(
        optax.clip_by_global_norm(max_grad_norm),
        optax.adamw(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=matrices),
    )
