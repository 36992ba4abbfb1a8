"""Pass rates of problems that were measured once: a difficulty known before a run begins."""

import json
from collections.abc import Iterator
from pathlib import Path

from jaxgrpo.data.mixture import MixedProblems
from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problems

HINT = (
    "it must hold one JSON object of pass rates by problem id, or JSON lines with id, solved and "
    "judged, as the rollouts.jsonl of a run with save_rollouts='all' or an evaluation.jsonl"
)


def read_pass_rates(path: str) -> dict[str, float]:
    """Returns the pass rate of each problem by its id.

    path: of a file with {"id": rate, ...}, or with lines {"id": ..., "solved": k, "judged": n, ...}
        of which the last one of a problem counts, if n is not 0

    Raises UserError if the file is not there, or is neither.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
        rates = dict(_rates(text))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: no pass rates can be read ({error!r}); {HINT}"
        ) from error
    if not rates:
        raise UserError(f"{path}: it holds no pass rates; {HINT}")
    return rates


def problems_within(problems: Problems, path: str, low: float, high: float) -> Problems:
    """Returns the problems whose measured pass rate is from low to high, both included.

    path: as of `read_pass_rates`; "": nothing is measured, and all are returned

    Raises UserError if there is none, or as `read_pass_rates`.
    """
    if not path:
        return problems
    rates = read_pass_rates(path)
    if (low, high) == (0, 1):
        return problems
    all_ids = [problems[index].id for index in range(len(problems))]
    kept = {name for name in all_ids if name in rates and low <= rates[name] <= high}
    if not kept:
        measured = sum(name in rates for name in all_ids)
        raise UserError(
            f"of {len(all_ids):,} problems {measured:,} have a measured pass rate, and none lies "
            f"from order.low={low:g} to order.high={high:g}; widen these, or set "
            "order.pass_rates to ''"
        )
    if isinstance(problems, MixedProblems):
        return problems.without(set(all_ids) - kept)
    return [problems[i] for i, name in enumerate(all_ids) if name in kept]


def _rates(text: str) -> Iterator[tuple[str, float]]:
    """Yields the id and the pass rate of each problem."""
    try:
        rates = json.loads(text)
    except ValueError:
        rates = None  # several lines
    if isinstance(rates, dict) and "judged" not in rates:
        yield from ((name, float(rate)) for name, rate in rates.items())
        return
    for line in text.splitlines():
        row = json.loads(line)
        if row["judged"]:
            yield row["id"], row["solved"] / row["judged"]
