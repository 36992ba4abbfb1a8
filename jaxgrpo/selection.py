"""A config's order and filter brought to life: which problems are asked, which groups train."""

from jaxgrpo.config import Config
from jaxgrpo.config import Order as OrderSettings
from jaxgrpo.config.sizes import max_prompts
from jaxgrpo.data.order import Order, ProblemOrder
from jaxgrpo.data.pass_rates import read_pass_rates
from jaxgrpo.data.ranked_order import RankedOrder
from jaxgrpo.problems import Problems
from jaxgrpo.rollout.batch import TrainedRows
from jaxgrpo.rollout.collect import CollectSpec
from jaxgrpo.rollout.difficulty import DifficultyFilter, History
from jaxgrpo.rollout.moving_band import MovingBand
from jaxgrpo.rollout.posterior import Posterior
from jaxgrpo.rollout.proposals import Proposals, Rests
from jaxgrpo.rollout.screening import EarlyStop


def make_proposals(config: Config, history: History) -> Proposals | None:
    """Returns what estimates and ranks problems, and has seen nothing yet; None: nobody asks it.

    history: the run's
    """
    order = config.order
    if not (_is_ranked(order) or config.filter.early_verdicts):
        return None
    measured = read_pass_rates(order.pass_rates) if order.pass_rates else {}
    return Proposals(
        by=order.by,
        group_size=config.batch.group_size,
        history=history,
        posterior=Posterior(
            order.prior_solved, order.prior_failed, order.decay, order.kind_weight
        ),
        rests=Rests(order.retire, order.rest),
        measured=measured,
    )


def make_order(
    config: Config, problems: Problems, proposals: Proposals | None
) -> Order:
    """Returns the order in which a run asks its problems, from the first one."""
    order = ProblemOrder(problems, config.seed)
    settings = config.order
    if proposals is None or not _is_ranked(settings):
        return order
    return RankedOrder(
        order, proposals, settings.window, settings.share, settings.review
    )


def _is_ranked(order: OrderSettings) -> bool:
    """Returns whether problems are asked in another order than the seed's."""
    return order.by != "seed" or order.rest > 0


def moving_band(config: Config) -> MovingBand:
    """Returns what makes the filter of each step."""
    settings = config.filter
    first = DifficultyFilter(
        settings.rule, settings.low, settings.high, settings.min_variance
    )
    return MovingBand(
        first,
        settings.last_low,
        settings.last_high,
        settings.move_steps,
        settings.target_kept,
        settings.target_rate,
    )


def trained_rows(config: Config) -> TrainedRows:
    """Returns which completions an update may count."""
    return TrainedRows(
        config.batch.mask_truncated, config.batch.mask_older, config.filter.train_rows
    )


def collect_spec(
    config: Config, step: int, margin: float, kept: float, proposals: Proposals | None
) -> CollectSpec:
    """Returns what a step collects.

    margin: of the band, as MovingBand has it
    kept: share of groups that may be expected to pass
    """
    rule = moving_band(config).at(step, margin)
    return CollectSpec(
        groups=config.batch.groups,
        max_prompts=max_prompts(config),
        filter=rule,
        refill=config.filter.refill,
        select=config.filter.select,
        trained_rows=trained_rows(config),
        beta=config.filter.beta,
        ahead=config.filter.ahead,
        expected=kept,
        early_stop=_early_stop(config, rule, proposals),
    )


def _early_stop(
    config: Config, rule: DifficultyFilter, proposals: Proposals | None
) -> EarlyStop | None:
    """Returns what stops the groups of a step; None: nothing does."""
    settings = config.filter
    if proposals is None or not settings.early_verdicts:
        return None
    return EarlyStop(
        verdicts=settings.early_verdicts,
        group_size=config.batch.group_size,
        rule=rule,
        min_chance=settings.early_chance,
        prior=proposals.beta,
    )
