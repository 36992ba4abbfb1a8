"""The state of a run between two steps, and how a run goes on from a checkpoint."""

import math
import time
from dataclasses import dataclass

import jax
import numpy as np

from jaxgrpo import config as configs
from jaxgrpo import losses
from jaxgrpo.build import Run, load_policy
from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.config import Config
from jaxgrpo.config.sft_schema import AnyConfig
from jaxgrpo.data.order import Order
from jaxgrpo.distributed.mesh import to_device
from jaxgrpo.files import remove, run_folder
from jaxgrpo.losses import Objective
from jaxgrpo.models import lora
from jaxgrpo.problems import Weighted
from jaxgrpo.rollout.collect import Collection, CollectSpec
from jaxgrpo.rollout.difficulty import History
from jaxgrpo.rollout.groups import JudgedGroup
from jaxgrpo.rollout.proposals import Proposals
from jaxgrpo.rollout.report import Json, verdict_means
from jaxgrpo.selection import collect_spec, make_order, make_proposals, moving_band
from jaxgrpo.summary import check_shared
from jaxgrpo.types import Params, TrainState

INIT_FROM = "--config.init_from"


@dataclass
class RunState:
    """The state of a run after a whole number of steps: what a checkpoint holds.

    reward_weights: those of the next step
    objective: that of the next step: its coefficients may move (losses.moving)
    proposals: what estimates pass rates and ranks problems by them; None: nobody asks it
    margin: of the next step's band, as rollout.moving_band has it
    kept: share of groups that passed, a mean in which each step counts half as much as the next
    started_at: when the run would have started (time.time) if it had never been interrupted
    """

    step: int
    state: TrainState
    order: Order
    history: History
    proposals: Proposals | None
    reward_weights: dict[str, float]
    objective: Objective
    started_at: float
    margin: float = 0.0
    kept: float = 0.5

    def to_json(self) -> Json:
        """Returns everything but the train state, as JSON values."""
        return {
            "step": self.step,
            "order": self.order.state(),
            "history": self.history.state(),
            "proposals": self.proposals.state() if self.proposals else None,
            "margin": self.margin,
            "kept": self.kept,
            "weights": self.reward_weights,
            "objective": losses.moving_values(self.objective),
            "seconds": time.time() - self.started_at,
        }


def write_config(config: AnyConfig) -> None:
    """Writes OUT/config.json, and removes an evaluation of the start by other questions.

    Raises UserError if not all processes see it.
    """
    if jax.process_index() == 0:
        if configs.changes_evaluation(config, config.out):
            remove(run_folder(config.out) / "before.json")
        configs.save(config, config.out)
    check_shared(config.out)


def check_start(config: Config) -> None:
    """Raises UserError if a run is to begin with another one's state, and there is none."""
    if not config.init_from:
        return
    with Checkpoints(config.out) as own:
        if own.latest() is not None:
            return  # it has begun, and needs the other no more
    configs.check_start(config)
    with Checkpoints(config.init_from, flag=INIT_FROM) as other:
        other.newest()


def first_state(run: Run, params: Params) -> TrainState:
    """Returns the train state of step 0.

    params: the model folder's
    """
    if not run.config.init_from:
        return run.programs.init_state(params, np.uint32(run.config.seed))
    with Checkpoints(run.config.init_from, flag=INIT_FROM) as other:
        state, _ = other.restore(run.programs.state_like)
    step = to_device(np.zeros_like(state.step), state.step.sharding)
    return state._replace(step=step)


def start_policy(run: Run, run_state: RunState, reference: Params) -> Params:
    """Returns the policy that a run began with.

    reference: the model's own
    """
    config = run.config
    if config.init_from:
        if run_state.step == 0:
            return run.policy(reference, run_state.state.params)
        has_adapters = bool(config.lora.rank)
        folder = run.model_folder
        params, _ = load_policy(run.programs, folder, has_adapters, config.init_from)
        return params
    if config.lora.rank:
        # The programs are compiled for a policy with adapters, so the base is asked through
        # adapters of zeros.
        return lora.attach(reference, lora.zero_adapters(run_state.state.params))
    return reference


def restore_or_start(
    run: Run, checkpoints: Checkpoints, params: Params, started_at: float
) -> RunState:
    """Returns the newest checkpoint's state; without one, the state that a run begins with.

    params: the model folder's
    """
    history = History()
    proposals = make_proposals(run.config, history)
    order = make_order(run.config, run.task.problems, proposals)
    # Moving coefficients are floats from the first step on: a config's 0 would be traced as an
    # integer, and the next step's value compile anew.
    objective = run.config.objective
    objective = losses.with_moving_values(objective, losses.moving_values(objective))
    if checkpoints.latest() is None:
        state = first_state(run, params)
        weights = run.judge.initial_weights()
        return RunState(
            step=0,
            state=state,
            order=order,
            history=history,
            proposals=proposals,
            reward_weights=weights,
            objective=objective,
            started_at=started_at,
        )
    state, saved = checkpoints.restore(run.programs.state_like)
    order.restore(saved["order"])
    history.load(saved["history"])
    if proposals is not None:
        proposals.load(saved["proposals"])
    # A run that was begun before there were moving coefficients has none saved.
    objective = losses.with_moving_values(objective, saved.get("objective", {}))
    return RunState(
        step=saved["step"],
        state=state,
        order=order,
        history=history,
        proposals=proposals,
        reward_weights=saved["weights"],
        objective=objective,
        started_at=started_at - saved["seconds"],
        # A run that was begun before bands moved has neither saved.
        margin=saved.get("margin", 0.0),
        kept=saved.get("kept", 0.5),
    )


def begin_step(run: Run, run_state: RunState) -> CollectSpec:
    """Returns what the next step collects; its problems are ranked for its filter from now on."""
    step = run_state.step + 1
    spec = collect_spec(
        run.config, step, run_state.margin, run_state.kept, run_state.proposals
    )
    if run_state.proposals is not None:
        run_state.proposals.begin(step, spec.filter)
    return spec


def note_groups(run: Run, run_state: RunState, collected: Collection) -> None:
    """Notes what a step's groups say of their problems, and moves the band on to the next step."""
    epoch = run_state.order.epoch
    for group in collected.asked:
        problem = group.problem
        run_state.history.record(problem.id, group.solved, group.judged)
        if run_state.proposals is not None:
            run_state.proposals.record(
                problem, group.solved, group.judged, run_state.step + 1, epoch
            )
    kept = collected.metrics["filter/kept"]
    run_state.margin = moving_band(run.config).next_margin(run_state.margin, kept)
    run_state.kept = (run_state.kept + kept) / 2


def move_reward_weights(
    run: Run, run_state: RunState, asked: list[JudgedGroup]
) -> dict[str, float]:
    """Moves the reward weights on to the next step's; returns this step's that can move."""
    step = run_state.step + 1
    weights = run_state.reward_weights
    means = verdict_means(asked)
    moving = {
        f"weight/{name}": weights[name]
        for name, reward in run.config.rewards.items()
        if type(reward) is not Weighted
    }
    run_state.reward_weights = {
        name: reward.next_weight(step + 1, weights[name], means.get(name, math.nan))
        for name, reward in run.config.rewards.items()
    }
    return moving
