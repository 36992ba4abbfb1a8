"""Checks of the settings that decide which problems are asked, and which groups train."""

from jaxgrpo.config.schema import Config, Filter, Order
from jaxgrpo.errors import UserError
from jaxgrpo.problems import is_batched


def check_filter(config: Config) -> None:
    """Raises UserError for a filter that no group can pass, or that goes with no other setting."""
    settings = config.filter
    _check_band(settings, config.batch.group_size)
    _check_moving(settings)
    sampled = config.batch.group_size
    if settings.train_rows and not 2 <= settings.train_rows <= sampled:
        raise UserError(
            f"filter.train_rows is {settings.train_rows}: it must be from 2 to "
            f"batch.group_size={sampled}, or 0 for all of a group"
        )
    if settings.early_verdicts:
        _check_early_stop(config)
    if settings.select == "finish" and settings.ahead:
        raise UserError(
            f"filter.ahead is {settings.ahead:g} and filter.select 'finish': problems are asked in "
            "rounds, in the order of launch; set filter.ahead to 0, or filter.select to 'launch'"
        )
    if settings.select == "finish" and config.sampling.keep_in_flight:
        raise UserError(
            "filter.select is 'finish' and sampling.keep_in_flight on: what is in flight goes on "
            "in the order of launch; set filter.select to 'launch', or sampling.keep_in_flight to "
            "false"
        )


def _check_early_stop(config: Config) -> None:
    """Raises UserError where groups cannot be stopped by their first verdicts."""
    settings = config.filter
    early = f"filter.early_verdicts is {settings.early_verdicts}"
    sampled = config.batch.group_size
    if settings.early_verdicts >= sampled:
        raise UserError(
            f"{early}: it must be below batch.group_size={sampled}, or 0 to sample all at once"
        )
    if settings.rule == "variance":
        raise UserError(
            f"{early} and filter.rule 'variance': verdicts do not say whether a group may pass; "
            "set filter.rule to 'dapo', or filter.early_verdicts to 0"
        )
    together = [
        name for name, reward in config.rewards.items() if is_batched(reward.function)
    ]
    if together:
        raise UserError(
            f"{early}, and the reward {together[0]!r} must see all completions of a group: set "
            "filter.early_verdicts to 0, or leave that reward out"
        )


def _check_band(band: Filter, group_size: int) -> None:
    """Raises UserError for a band that is none, or that no pass rate of a group lies in."""
    ends = f"filter.low is {band.low} and filter.high {band.high}"
    _check_ends(ends, band.low, band.high)
    # Every pass rate that a group can have. Without one in the band, no group would ever train.
    rates = [count / group_size for count in range(group_size + 1)]
    if band.rule == "band" and not any(band.low <= rate <= band.high for rate in rates):
        # 0 and 1 are rates, so that there is one on each side.
        below = max(rate for rate in rates if rate < band.low)
        above = min(rate for rate in rates if rate > band.high)
        raise UserError(
            f"{ends}: no pass rate of {group_size} completions lies there; set filter.low to "
            f"{below!r} or filter.high to {above!r}"
        )


def _check_ends(ends: str, low: float, high: float) -> None:
    if not 0 <= low <= high <= 1:
        raise UserError(f"{ends}: they must hold 0 <= low <= high <= 1")


def _check_moving(band: Filter) -> None:
    """Raises UserError for ends that move to no band, or of a rule that has none."""
    if band.move_steps and not 0 <= band.last_low <= band.last_high <= 1:
        raise UserError(
            f"filter.last_low is {band.last_low} and filter.last_high {band.last_high}: with "
            "filter.move_steps they must hold 0 <= last_low <= last_high <= 1"
        )
    if band.rule != "band" and (band.move_steps or band.target_kept):
        raise UserError(
            f"filter.rule is {band.rule!r}, whose ends do not move; set filter.rule to 'band', or "
            "filter.move_steps and filter.target_kept to 0"
        )


def check_order(order: Order) -> None:
    """Raises UserError for measured pass rates that are a band and no file, or no band."""
    ends = f"order.low is {order.low} and order.high {order.high}"
    _check_ends(ends, order.low, order.high)
    if not order.pass_rates and (order.low, order.high) != (0.0, 1.0):
        raise UserError(
            f"{ends}, and no pass rates were measured; set order.pass_rates to a file of them, or "
            "order.low to 0 and order.high to 1"
        )
    if order.by == "seed" and order.share < 1:
        raise UserError(
            f"order.share is {order.share} and order.by 'seed', by which no problem is better than "
            "another; set order.by to 'chance', or order.share to 1"
        )
