"""Compares runs as they are compiled for TPUs with the least that they need, in a table.

    python -m tools.compiled_table [--to docs] [--before docs/compiled_before.json]

Each run's programs are compiled ahead of time, as `jaxgrpo plan` does, and counted from the
compiled text (jaxgrpo/plan/hlo.py). TO gets compiled.md, the table, and compiled.json, its numbers;
--before is such a file of earlier code. All numbers are a chip's.
"""

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from jaxgrpo import config as run_config
from jaxgrpo.config import Config
from jaxgrpo.config.command_line import run_main
from jaxgrpo.config.sizes import num_rows
from jaxgrpo.distributed.mesh import device_bytes
from jaxgrpo.errors import UserError
from jaxgrpo.models.model_config import ModelConfig
from jaxgrpo.plan.chips import GIB
from jaxgrpo.plan.command import log_progress
from jaxgrpo.plan.compiled import Compiler
from jaxgrpo.plan.inputs import ProgramInputs
from jaxgrpo.plan.memory import peak_phase
from jaxgrpo.plan.planner import Plan, make_plan, make_target

RUNS = (
    "collapse_qwen2_5_1_5b_v5e8=v5e:2x4",
    "gsm8k_qwen2_5_0_5b_v5e1=v5e:1x1",
    "qwen2_5_7b_v5e16=v5e:4x4",
)
FORWARD_PASSES = 5
"""What an update needs, in forward passes, where layers and logits are made again (remat "full"):
the reference's, the policy's, the policy's again in the backward pass, and two for gradients."""

ABOUT = """# What is compiled for TPUs

`python -m tools.compiled_table` compiles these runs ahead of time, counts what a chip does, and
divides it by the least. Nothing was timed: no TPU was there.

- A token step is one step of decode for all slots. Its bytes are those that the compiled program
  reads from and writes to HBM: a slice or an update in place counts as large as it is, on-chip
  memory costs nothing, and a conditional counts the branch of a usual draw. The least: each matrix
  that is read once, the whole caches once, and one pass over the logits in float32.
- The FLOPs of an update are those of matrix products, and of those blocks of attention that the
  kernel does not skip. The least: five forward passes over each prompt once and each completion,
  all of full length, with causal attention: reference, policy, once more as layers and logits are
  made again (`remat="full"`; all but a layer's last product, which nothing needs), and two for
  gradients.
- The peak is that of all programs and arrays together.
"""

COLUMNS = (
    "run",
    "code",
    "GB of a token step",
    "least",
    "times the least",
    "TFLOPs of an update",
    "least",
    "times the least",
    "peak, GiB",
)


@dataclass(frozen=True)
class CompiledFigures:
    """A compiled run's figures, a chip's.

    run: the network and the chips
    step_bytes: moved by a token step
    weights, caches, logits: bytes that a token step has to move
    update_flops, least_flops: of an update, as compiled and the least
    peak: bytes of memory
    phase: that needs the peak
    """

    run: str
    step_bytes: float
    weights: float
    caches: float
    logits: float
    update_flops: float
    least_flops: float
    peak: float
    phase: str

    @property
    def least_bytes(self) -> float:
        """Bytes that a token step has to move."""
        return self.weights + self.caches + self.logits


def figures(plan: Plan) -> CompiledFigures:
    """Returns the figures of a plan whose programs are all compiled.

    Raises UserError if the compiler refused one.
    """
    refused = [name for name, program in plan.compiled.items() if program.failed]
    if refused or not plan.compiled:
        raise UserError(
            f"{plan.config.model} does not fit {plan.target.name}: see jaxgrpo plan"
        )
    network = plan.network.config
    devices = len(plan.target.devices)
    phase, peak = peak_phase(plan.phases)
    slots = plan.inputs.slots
    return CompiledFigures(
        run=f"{Path(plan.config.model).name} on {plan.target.name}",
        # A loop of unknown length counts once: one token of each slot.
        step_bytes=plan.compiled["decode"].cost.bytes,
        weights=weight_bytes(plan.inputs),
        caches=device_bytes(slots.cache),
        logits=len(slots.active) * network.vocab_size * 4 / devices,
        update_flops=plan.compiled["update"].cost.flops,
        least_flops=least_update_flops(plan.config, network) / devices,
        peak=peak,
        phase=phase,
    )


def weight_bytes(inputs: ProgramInputs) -> int:
    """Returns the bytes of the parameters that a token step reads."""
    published = dict(inputs.published)
    # Of an embedding that is not the output's too only the tokens' rows are read.
    if "output_embedding" in published:
        del published["embedding"]
    return device_bytes(published)


def least_update_flops(config: Config, network: ModelConfig) -> float:
    """Returns the FLOPs that an update needs, all devices' together.

    Each prompt counts once for its group, and a column reads those before it. Windows are not
    looked at, and all texts are of full length.
    """
    width = config.sampling.prompt_width
    new = config.sampling.max_new_tokens
    groups = config.batch.groups
    rows = num_rows(config)
    heads_width = network.heads * network.head_width
    kv_width = network.kv_heads * network.head_width

    # 1. Matrices of the layers, over all columns: queries and output, keys and values, MLP.
    matrix_rows = 2 * heads_width + 2 * kv_width + 3 * network.mlp_width
    columns = groups * width + rows * new
    column_flops = 2.0 * network.width * network.layers * columns
    layers = column_flops * matrix_rows
    # The last product of a layer is not made again: no gradient needs it.
    not_made_again = column_flops * network.mlp_width
    # 2. Attention: two products for each pair of a query and a key.
    prompt_pairs = width * (width + 1) // 2
    completion_pairs = new * width + new * (new + 1) // 2
    pairs = groups * prompt_pairs + rows * completion_pairs
    attention = 4.0 * heads_width * network.layers * pairs
    # 3. Logits of the completions.
    logits = 2.0 * network.vocab_size * network.width * rows * new
    return FORWARD_PASSES * (layers + attention + logits) - not_made_again


def markdown_table(now: list[CompiledFigures], before: list[CompiledFigures]) -> str:
    """Returns a Markdown table: of each run a line for the code now, below that of before."""
    lines = [_markdown_line(COLUMNS), "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    for current in now:
        lines += [
            _markdown_line(_cells(old, "before"))
            for old in before
            if old.run == current.run
        ]
        lines.append(_markdown_line(_cells(current, "now")))
    return "\n".join(lines)


def _markdown_line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(row: CompiledFigures, code: str) -> tuple[str, ...]:
    """Returns the texts of COLUMNS."""
    return (
        row.run,
        code,
        f"{row.step_bytes / 1e9:.3f}",
        f"{row.least_bytes / 1e9:.3f}",
        f"{row.step_bytes / row.least_bytes:.2f}",
        f"{row.update_flops / 1e12:,.1f}",
        f"{row.least_flops / 1e12:,.1f}",
        f"{row.update_flops / row.least_flops:.2f}",
        f"{row.peak / GIB:.2f}, in {row.phase}",
    )


def read(path: Path) -> list[CompiledFigures]:
    """Returns the figures of a compiled.json."""
    return [CompiledFigures(**row) for row in json.loads(path.read_text())]


def write(
    now: list[CompiledFigures], before: list[CompiledFigures], folder: Path
) -> None:
    """Writes the table and the numbers of the runs so far."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compiled.md").write_text(f"{ABOUT}\n{markdown_table(now, before)}\n")
    rows = [dataclasses.asdict(row) for row in now]
    (folder / "compiled.json").write_text(json.dumps(rows, indent=2) + "\n")


def main(argv: list[str]) -> None:
    """Writes TO/compiled.md and TO/compiled.json; other flags change all runs' configs."""
    about = str(__doc__).splitlines()[0]
    parser = argparse.ArgumentParser(
        prog="python -m tools.compiled_table", description=about
    )
    parser.add_argument(
        "--to", type=Path, default=Path("docs"), help="a folder; default %(default)s"
    )
    parser.add_argument("--before", type=Path, help="a compiled.json of earlier code")
    parser.add_argument(
        "--runs", nargs="+", default=RUNS, help="CONFIG=TOPOLOGY; default %(default)s"
    )
    options, overrides = parser.parse_known_args(argv)
    before = read(options.before) if options.before else []
    now: list[CompiledFigures] = []
    for run in options.runs:
        name, _, topology = run.partition("=")
        config = run_config.load(name, overrides)
        plan = make_plan(
            config, make_target(config, topology, None), Compiler(log_progress)
        )
        now.append(figures(plan))
        # A run takes minutes to compile: what is known is shown and written after each.
        print(_markdown_line(_cells(now[-1], "now")), flush=True)
        write(now, before, options.to)


if __name__ == "__main__":
    run_main(main)
