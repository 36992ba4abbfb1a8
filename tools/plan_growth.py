"""How an update grows with the slice: FLOPs, memory and collectives a chip, at the same work a chip; a table and a plot.

    python -m tools.plan_growth [--config configs/collapse_qwen2_5_1_5b_v5e8.py] [--to docs]

The config's update is compiled for v5e slices of 1 to 256 chips with --groups groups of prompts and --rows rows of a micro-
batch a chip, parameters divided over all chips (mesh.fsdp). Where a slice has no room for the state, nothing is compiled.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from jaxgrpo import config as settings
from jaxgrpo.config.command_line import run_main
from jaxgrpo.plan import chips, times
from jaxgrpo.plan.__main__ import Plan, make_place, make_plan
from jaxgrpo.plan.compiled import Compiler, written_flops

SLICES = ("v5e:1x1", "v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16")
STATE = ("parameters", "optimizer", "reference")

Row = dict[str, Any]


def grown(
    path: str, overrides: list[str], topology: str, groups: int, rows: int, compiler: Compiler
) -> Plan:
    """The plan of the config's update on a slice, with so many groups and rows a chip."""
    count = 1
    for size in chips.parse(topology)[1]:
        count *= size
    scaled = {
        "batch.groups": groups * count,
        "batch.micro_batch": rows * count,
        "mesh.data": 1,
        "mesh.fsdp": -1,
    }
    scaled |= {"sampling.slots": 0}
    config = settings.load(
        path, [*overrides, *(f"--config.{name}={value}" for name, value in scaled.items())]
    )
    return make_plan(config, make_place(config, topology, None), compiler, ("update",))


def row(plan: Plan) -> Row:
    """What the table and the plot show of a slice; memory in GiB, times in seconds."""
    parts, program = plan.phases["update"], plan.compiled.get("update")
    state = sum(parts[name] for name in STATE)
    found: Row = {
        "chips": len(plan.place.devices),
        "rows": plan.config.batch.groups * plan.config.batch.group_size,
        "state": state / chips.GIB,
        "rest": (sum(parts.values()) - state) / chips.GIB,
        "memory": plan.place.memory / chips.GIB,
    }
    update, given = plan.given.calls["update"]
    found["written"] = written_flops(update.trace(*given).jaxpr, found["chips"])
    if program is None or program.failed:
        return found
    cost = program.cost
    bounds = times.bounds(cost, plan.place.chip)
    return found | {"flops": cost.flops, "bytes": cost.bytes, "ici": cost.ici, "bounds": bounds}


def share(found: Row) -> float:
    """The collectives' share of the time if nothing of it were hidden behind the rest."""
    bounds = found["bounds"]
    return bounds["ici"] / (bounds["ici"] + max(bounds["flops"], bounds["hbm"]))


def table(rows: list[Row]) -> str:
    """Markdown."""
    head = "chips | rows | state, GiB a chip | other, GiB a chip | peak, GiB a chip | FLOPs a chip, as written | compiled | "
    head += "ICI bytes a chip | s by FLOPs | s by HBM | s by ICI | ICI's share"
    lines = [f"| {head} |", "|" + "---:|" * len(head.split("|"))]
    for found in rows:
        memory = (found["state"], found["rest"], found["state"] + found["rest"])
        cells = [f"{found['chips']}", f"{found['rows']:,}", *(f"{number:.2f}" for number in memory)]
        if memory[2] > found["memory"]:
            cells[4] += " (does not fit)"
        cells.append(f"{found['written']:.3g}")
        if bounds := found.get("bounds"):
            cells += [f"{found['flops']:.3g}", f"{found['ici']:.3g}"]
            cells += [f"{bounds[kind]:.3f}" for kind in ("flops", "hbm", "ici")] + [
                f"{share(found):.0%}"
            ]
        else:
            cells += ["-"] * 6
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: list[Row], title: str, path: Path) -> None:
    """Memory a chip, and the times that bound an update, over the number of chips."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 5), layout="constrained")
    names = [str(found["chips"]) for found in rows]
    left.bar(names, [found["state"] for found in rows], label="parameters, optimizer, reference")
    below = [found["state"] for found in rows]
    left.bar(
        names, [found["rest"] for found in rows], bottom=below, label="batch, temporaries, program"
    )
    left.axhline(rows[0]["memory"], color="black", linestyle="--", label="HBM")
    left.set(xlabel="v5e chips", ylabel="GiB a chip", title="memory in an update")
    compiled = [found for found in rows if found.get("bounds")]
    for kind, label in (
        ("flops", "FLOPs / peak"),
        ("hbm", "bytes / HBM bandwidth"),
        ("ici", "collectives / ICI bandwidth"),
    ):
        right.plot(
            [str(f["chips"]) for f in compiled],
            [f["bounds"][kind] for f in compiled],
            marker="o",
            label=label,
        )
    right.set(xlabel="v5e chips", ylabel="seconds", ylim=(0, None), title="what bounds an update")
    for axes in (left, right):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def title(plan: Plan, groups: int, rows: int) -> str:
    """What every slice works on."""
    config = plan.config
    lengths = f"{config.sampling.prompt_width} + {config.sampling.max_new_tokens} tokens"
    each = groups * config.batch.group_size
    return f"{Path(config.model).name}, {each} rows a chip of {lengths}, micro-batches of {rows} a chip"


def write(rows: list[Row], about: str, folder: Path) -> None:
    """The table and the plot of the slices so far."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "growth.md").write_text(
        f"# An update on more and more v5e chips\n\n{about}\n\n{table(rows)}\n"
    )
    plot(rows, about, folder / "growth.png")


def main(argv: list[str]) -> None:
    """Writes TO/growth.md and TO/growth.png."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.plan_growth", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--config", default="configs/collapse_qwen2_5_1_5b_v5e8.py", help="default %(default)s"
    )
    parser.add_argument(
        "--to", type=Path, default=Path("docs"), help="a folder; default %(default)s"
    )
    parser.add_argument("--groups", type=int, default=4, help="groups a chip; default %(default)s")
    parser.add_argument(
        "--rows", type=int, default=4, help="rows of a micro-batch a chip; default %(default)s"
    )
    parser.add_argument(
        "--slices", nargs="+", default=SLICES, help="topologies; default %(default)s"
    )
    own, overrides = parser.parse_known_args(argv)
    compiler, rows = Compiler(lambda text: print(text, file=sys.stderr, flush=True)), []
    for topology in own.slices:
        plan = grown(own.config, overrides, topology, own.groups, own.rows, compiler)
        rows.append(row(plan))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
        write(rows, title(plan, own.groups, own.rows), own.to)


if __name__ == "__main__":
    run_main(main)
