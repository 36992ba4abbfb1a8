"""Command line of the comparisons."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from jaxgrpo.config.command_line import run_main
from tools.compare import table
from tools.compare.arms import COMPARISONS, check_ready
from tools.compare.runs import Task, make_tasks, run_all

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot(results: dict[str, dict[int, table.Result]], path: Path) -> None:
    """Draws each arm's gain: a point a seed, and the mean with its 95 % interval."""
    # Without pyplot there is no global state, and no display is needed.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 0.9 + 0.36 * len(results)), layout="constrained")
    axes = figure.subplots()
    for place, by_seed in enumerate(results.values()):
        if by_seed:
            _draw_arm(axes, place, [run.gain for run in by_seed.values()])
    axes.set_yticks(range(len(results)), labels=list(results))
    # The first arm on top, and room for half a line beyond the last.
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_xlabel(
        "gain in held-out accuracy: a point a seed, the mean, its 95 % interval"
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    figure.savefig(path, dpi=130)


def _draw_arm(axes: "Axes", place: int, gains: list[float]) -> None:
    """Draws an arm's line."""
    mean, half = table.interval(gains)
    axes.plot(gains, [place] * len(gains), "o", color="#9db8d9", markersize=5)
    axes.errorbar(
        mean, place, xerr=half, fmt="|", color="#1f4e8c", markersize=14, capsize=3
    )


def write(tasks: list[Task], folder: Path, name: str) -> None:
    """Writes FOLDER/NAME.md and FOLDER/NAME.png of the runs that are done."""
    results: dict[str, dict[int, table.Result]] = {task.arm.name: {} for task in tasks}
    for task in tasks:
        if task.is_done:
            results[task.arm.name][task.seed] = table.read_result(task)
    # Arms without a run stay in their places, so that the first one is always the same.
    if any(results.values()):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.md").write_text(table.markdown(results) + "\n")
        plot(results, folder / f"{name}.png")


def main(argv: list[str]) -> None:
    """Makes the runs that are missing, and writes the table and the plot after each."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.compare",
        description="Compares settings on the embedded model over seeds.",
    )
    parser.add_argument("comparison", choices=COMPARISONS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/compare"),
        help="runs; default %(default)s",
    )
    parser.add_argument(
        "--to", type=Path, help="table and plot; default: the folder of the runs"
    )
    parser.add_argument(
        "--at-once",
        type=int,
        default=2,
        help="runs side by side, which divide the cores; default %(default)s",
    )
    options = parser.parse_args(argv)
    parent = options.out / options.comparison
    check_ready(options.comparison, parent)
    tasks = make_tasks(options.comparison, options.seeds, parent)
    for _ in run_all(tasks, options.at_once, lambda line: print(line, flush=True)):
        write(tasks, options.to or parent, options.comparison)
    write(tasks, options.to or parent, options.comparison)
    print((options.to or parent) / f"{options.comparison}.md")


if __name__ == "__main__":
    run_main(main)
