"""The state of a run between two steps, and how a run goes on from a checkpoint."""

import time
from dataclasses import dataclass

import numpy as np

from jaxgrpo import losses
from jaxgrpo.build import Run
from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.data.order import ProblemOrder
from jaxgrpo.losses import Objective
from jaxgrpo.rollout.difficulty import History
from jaxgrpo.rollout.report import Json
from jaxgrpo.types import Params, TrainState


@dataclass
class RunState:
    """The state of a run after a whole number of steps: what a checkpoint holds.

    reward_weights: those of the next step
    objective: that of the next step: its coefficients may move (losses.moving)
    started_at: when the run would have started (time.time) if it had never been interrupted
    """

    step: int
    state: TrainState
    order: ProblemOrder
    history: History
    reward_weights: dict[str, float]
    objective: Objective
    started_at: float

    def to_json(self) -> Json:
        """Returns everything but the train state, as JSON values."""
        return {
            "step": self.step,
            "order": self.order.state(),
            "history": self.history.state(),
            "weights": self.reward_weights,
            "objective": losses.moving_values(self.objective),
            "seconds": time.time() - self.started_at,
        }


def restore_or_start(
    run: Run, checkpoints: Checkpoints, params: Params, started_at: float
) -> RunState:
    """Returns the newest checkpoint's state; without one, the state that a run begins with.

    params: the model folder's
    """
    order = ProblemOrder(run.task.problems, run.config.seed)
    # Moving coefficients are floats from the first step on: a config's 0 would be traced as an
    # integer, and the next step's value compile anew.
    objective = run.config.objective
    objective = losses.with_moving_values(objective, losses.moving_values(objective))
    if checkpoints.latest() is None:
        state = run.programs.init_state(params, np.uint32(run.config.seed))
        weights = run.judge.initial_weights()
        return RunState(
            step=0,
            state=state,
            order=order,
            history=History(),
            reward_weights=weights,
            objective=objective,
            started_at=started_at,
        )
    state, saved = checkpoints.restore(run.programs.state_like)
    order.restore(saved["order"])
    # A run that was begun before there were moving coefficients has none saved.
    objective = losses.with_moving_values(objective, saved.get("objective", {}))
    return RunState(
        step=saved["step"],
        state=state,
        order=order,
        history=History.restore(saved["history"]),
        reward_weights=saved["weights"],
        objective=objective,
        started_at=started_at - saved["seconds"],
    )
