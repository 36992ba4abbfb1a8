"""Shows how an update grows with the slice at the same work a chip, in a table and a plot.

    python -m tools.plan_growth [--config configs/collapse_qwen2_5_1_5b_v5e8.py] [--to docs]

The config's update is compiled for v5e slices of 1 to 256 chips with --groups groups of prompts and
--rows rows of a micro-batch a chip, parameters divided over all chips (mesh.fsdp). Where a slice
has no room for the state, nothing is compiled. The table has FLOPs, memory and collectives a chip.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxgrpo import config as run_config
from jaxgrpo.config.command_line import run_main
from jaxgrpo.config.sizes import num_rows, trained_group_size
from jaxgrpo.plan import chips, times
from jaxgrpo.plan.command import log_progress
from jaxgrpo.plan.compiled import Compiler
from jaxgrpo.plan.jaxpr_flops import written_flops
from jaxgrpo.plan.planner import Plan, make_plan, make_target

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SLICES = ("v5e:1x1", "v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16")
STATE = ("parameters", "optimizer", "reference")
COLUMNS = (
    "chips",
    "rows",
    "state, GiB a chip",
    "other, GiB a chip",
    "peak, GiB a chip",
    "FLOPs a chip, as written",
    "compiled",
    "ICI bytes a chip",
    "s by FLOPs",
    "s by HBM",
    "s by ICI",
    "ICI's share",
)


@dataclass(frozen=True)
class CompiledCost:
    """A compiled update on a chip.

    flops: of its matrix products
    ici: bytes received from other chips
    roofline: seconds by "flops", "hbm" and "ici", each alone
    """

    flops: float
    ici: float
    roofline: dict[str, float]

    @property
    def ici_share(self) -> float:
        """The collectives' share of the time if nothing of it were hidden behind the rest."""
        ici = self.roofline["ici"]
        return ici / (ici + max(self.roofline["flops"], self.roofline["hbm"]))


@dataclass(frozen=True)
class SliceRow:
    """A slice's numbers in the table and the plot; memory in GiB a chip.

    chips: number of chips
    rows: rows of the batch
    state: parameters, optimizer and reference
    other: what else an update needs
    limit: what a program can have
    written_flops: FLOPs a chip of the matrix products as written
    compiled: None where the update is not compiled, or the compiler refused it
    """

    chips: int
    rows: int
    state: float
    other: float
    limit: float
    written_flops: float
    compiled: CompiledCost | None

    @property
    def peak(self) -> float:
        """GiB a chip that an update needs."""
        return self.state + self.other


def plan_slice(
    path: str,
    overrides: list[str],
    topology: str,
    groups: int,
    rows: int,
    compiler: Compiler,
) -> Plan:
    """Returns the plan of the config's update on a slice, with so many groups and rows a chip."""
    count = math.prod(chips.parse_topology(topology)[1])
    # The batch grows with the slice, and parameters are divided over all of it.
    settings = {
        "batch.groups": groups * count,
        "batch.micro_batch": rows * count,
        "mesh.data": 1,
        "mesh.fsdp": -1,
        "sampling.slots": 0,
    }
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    config = run_config.load(path, [*overrides, *flags])
    target = make_target(config, topology, None)
    return make_plan(config, target, compiler, ("update",))


def slice_row(plan: Plan) -> SliceRow:
    """Returns what the table and the plot show of a plan."""
    parts = plan.phases["update"]
    # What is there all the time, apart from what an update needs besides.
    state = sum(parts[name] for name in STATE)
    count = len(plan.target.devices)
    call = plan.inputs.calls["update"]
    # Traced here, for a slice without room has no compiled program.
    jaxpr = call.program.trace(*call.arguments).jaxpr
    program = plan.compiled.get("update")
    compiled = None
    if program is not None and not program.failed:
        # At the chip's peaks.
        roofline = times.roofline(program.cost, plan.target.chip)
        compiled = CompiledCost(program.cost.flops, program.cost.ici, roofline)
    return SliceRow(
        chips=count,
        rows=num_rows(plan.config),
        state=state / chips.GIB,
        other=(sum(parts.values()) - state) / chips.GIB,
        limit=plan.target.memory / chips.GIB,
        written_flops=written_flops(jaxpr, count),
        compiled=compiled,
    )


def markdown_table(rows: list[SliceRow]) -> str:
    """Returns a Markdown table, a line a slice."""
    lines = [_markdown_line(COLUMNS), "|" + "---:|" * len(COLUMNS)]
    lines += [_markdown_line(_cells(row)) for row in rows]
    return "\n".join(lines)


def _markdown_line(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(row: SliceRow) -> list[str]:
    """Returns the texts of COLUMNS."""
    does_not_fit = " (does not fit)" if row.peak > row.limit else ""
    cells = [
        f"{row.chips}",
        f"{row.rows:,}",
        f"{row.state:.2f}",
        f"{row.other:.2f}",
        f"{row.peak:.2f}{does_not_fit}",
        f"{row.written_flops:.3g}",
    ]
    compiled = row.compiled
    if compiled is None or not compiled.roofline:
        # Not compiled, or for a chip whose peaks are not known.
        return cells + ["-"] * (len(COLUMNS) - len(cells))
    return [
        *cells,
        f"{compiled.flops:.3g}",
        f"{compiled.ici:.3g}",
        f"{compiled.roofline['flops']:.3f}",
        f"{compiled.roofline['hbm']:.3f}",
        f"{compiled.roofline['ici']:.3f}",
        f"{compiled.ici_share:.0%}",
    ]


def plot(rows: list[SliceRow], title: str, path: Path) -> None:
    """Draws memory a chip, and the times that bound an update, over the number of chips."""
    import matplotlib

    # No screen is needed; chosen before pyplot is imported.
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 5), layout="constrained")
    _plot_memory(left, rows)
    _plot_times(right, rows)
    for axes in (left, right):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _plot_memory(axes: "Axes", rows: list[SliceRow]) -> None:
    """Draws a bar for each slice: the state, and above it the rest."""
    names = [str(row.chips) for row in rows]
    state = [row.state for row in rows]
    other = [row.other for row in rows]
    axes.bar(names, state, label="parameters, optimizer, reference")
    axes.bar(names, other, bottom=state, label="batch, temporaries, program")
    # Above the line the slice does not fit.
    axes.axhline(rows[0].limit, color="black", linestyle="--", label="HBM")
    axes.set(xlabel="v5e chips", ylabel="GiB a chip", title="memory in an update")


def _plot_times(axes: "Axes", rows: list[SliceRow]) -> None:
    """Draws a line for each of arithmetic, HBM and links, over the slices that are compiled."""
    points = [(str(row.chips), row.compiled.roofline) for row in rows if row.compiled]
    points = [(name, roofline) for name, roofline in points if roofline]
    # Chips are categories, not numbers: the slices are evenly spaced.
    names = [name for name, _ in points]
    labels = {
        "flops": "FLOPs / peak",
        "hbm": "bytes / HBM bandwidth",
        "ici": "collectives / ICI bandwidth",
    }
    for kind, label in labels.items():
        axes.plot(
            names, [roofline[kind] for _, roofline in points], marker="o", label=label
        )
    axes.set(
        xlabel="v5e chips",
        ylabel="seconds",
        ylim=(0, None),
        title="what bounds an update",
    )


def describe_work(plan: Plan, groups: int, rows: int) -> str:
    """Returns a line about what every slice works on."""
    config = plan.config
    lengths = (
        f"{config.sampling.prompt_width} + {config.sampling.max_new_tokens} tokens"
    )
    rows_per_chip = groups * trained_group_size(config)
    return (
        f"{Path(config.model).name}, {rows_per_chip} rows a chip of {lengths}, "
        f"micro-batches of {rows} a chip"
    )


def write(rows: list[SliceRow], about: str, folder: Path) -> None:
    """Writes the table and the plot of the slices so far."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "growth.md").write_text(
        f"# An update on more and more v5e chips\n\n{about}\n\n{markdown_table(rows)}\n"
    )
    plot(rows, about, folder / "growth.png")


def main(argv: list[str]) -> None:
    """Writes TO/growth.md and TO/growth.png."""
    about = str(__doc__).splitlines()[0]
    parser = argparse.ArgumentParser(
        prog="python -m tools.plan_growth", description=about
    )
    parser.add_argument(
        "--config",
        default="configs/collapse_qwen2_5_1_5b_v5e8.py",
        help="default %(default)s",
    )
    parser.add_argument(
        "--to", type=Path, default=Path("docs"), help="a folder; default %(default)s"
    )
    parser.add_argument(
        "--groups", type=int, default=4, help="groups a chip; default %(default)s"
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=4,
        help="rows of a micro-batch a chip; default %(default)s",
    )
    parser.add_argument(
        "--slices", nargs="+", default=SLICES, help="topologies; default %(default)s"
    )
    options, overrides = parser.parse_known_args(argv)
    compiler = Compiler(log_progress)
    rows: list[SliceRow] = []
    for topology in options.slices:
        plan = plan_slice(
            options.config, overrides, topology, options.groups, options.rows, compiler
        )
        rows.append(slice_row(plan))
        # A large slice takes many minutes: what is known is shown and written after each.
        print(_markdown_line(_cells(rows[-1])), flush=True)
        write(rows, describe_work(plan, options.groups, options.rows), options.to)


if __name__ == "__main__":
    run_main(main)
