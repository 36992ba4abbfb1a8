"""A profile as markdown."""

from typing import Any

from tools.profile.kinds import KINDS
from tools.profile.shares import HOST, PROGRAMS, REST, Shares

COLUMNS = {
    "products": "products",
    "attention": "attention",
    "logits": "logits, draw",
    "collectives": "collectives",
    "other": "other",
}
"""Headings of the kinds of work."""


def markdown(profile: dict[str, Any]) -> str:
    """Returns the tables of a profile: see __main__.make_profile."""
    return "\n".join(
        [
            _headline(profile),
            "",
            *_program_table(profile["shares"]),
            "",
            *_host_table(profile["shares"].get(HOST, {})),
            "",
            *_rate_table(profile["rates"]),
        ]
    )


def _headline(profile: dict[str, Any]) -> str:
    note = ""
    if profile["compiles"]:
        note = f"; {profile['compiles']} programs compiled in it"
    return (
        f"A step of {profile['config']} on {profile['device']}: {profile['step_s']:.3g} s, "
        f"{profile['traced_step_s']:.3g} s with the profiler{note}."
    )


def _program_table(shares: Shares) -> list[str]:
    """Returns the rows of programs, of the host, and of their sums."""
    lines = [
        "| share of time | all | " + " | ".join(COLUMNS[kind] for kind in KINDS) + " |",
        "|---|" + "---:|" * (1 + len(KINDS)),
    ]
    rows = {
        program: shares[program] for program in (*PROGRAMS, REST) if shares.get(program)
    }
    for program, kinds in rows.items():
        lines.append(_row(program, kinds))
    sums = {
        kind: sum(kinds.get(kind, 0.0) for kinds in rows.values()) for kind in KINDS
    }
    lines.append(_row("device", sums))
    lines.append(
        f"| host, device idle | {_percent(sum(shares.get(HOST, {}).values()))} |"
        + " |" * len(KINDS)
    )
    return lines


def _row(name: str, kinds: dict[str, float]) -> str:
    cells = [_percent(kinds[kind]) if kinds.get(kind) else "" for kind in KINDS]
    return f"| {name} | {_percent(sum(kinds.values()))} | " + " | ".join(cells) + " |"


def _host_table(work: dict[str, float]) -> list[str]:
    lines = ["| host, while the device is idle | share of time |", "|---|---:|"]
    for name, share in sorted(work.items(), key=lambda item: -item[1]):
        lines.append(f"| {name} | {_percent(share)} |")
    return lines


def _rate_table(rates: dict[str, dict[str, float | None]]) -> list[str]:
    """Returns rates, and their shares of what the machine was measured to do and of its peak."""
    lines = [
        "| rate | | of what was measured | of the nominal peak |",
        "|---|---:|---:|---:|",
    ]
    for name, rate in rates.items():
        cells = [
            _percent(share) if share is not None else ""
            for share in (rate["of_measured"], rate["of_nominal"])
        ]
        lines.append(f"| {name} | {rate['value']:.3g} | " + " | ".join(cells) + " |")
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
