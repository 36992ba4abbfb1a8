"""Prompt in, samples out: what a model, or the newest checkpoint of a run, makes of a prompt.

    python -m tools.sample --prompt "Tom has 3 apples and buys 4. How many has he?" --samples 2
    echo "Tom has 3 apples and buys 4. How many has he?" | python -m tools.sample --run OUT --temperature 0.7 --json

The prompt goes through the model's own chat template. The same command prints the same samples.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxgrpo.build import match_tokenizer
from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.config.command_line import run_main
from jaxgrpo.device.optimizer import adamw, schedule
from jaxgrpo.distributed.mesh import make_mesh, row_devices
from jaxgrpo.errors import UserError
from jaxgrpo.export import read_run
from jaxgrpo.models import hf_folder, lora
from jaxgrpo.models.lora import Lora
from jaxgrpo.models.transformer import ModelConfig
from jaxgrpo.problems import Problem
from jaxgrpo.programs import Programs, compile_programs
from jaxgrpo.rollout.engine import Draw, Engine, Group
from jaxgrpo.text import tokenizer
from jaxgrpo.types import Params

SIDE_BY_SIDE = 64
"""Samples that are made at the same time, at most."""


def check(arguments: argparse.Namespace) -> None:
    """Raises UserError for the first value that makes no sense."""
    a = arguments
    for name, is_fine, rule in (
        ("samples", a.samples >= 1, "at least 1"),
        ("max_tokens", a.max_tokens >= 1, "at least 1"),
        (
            "temperature",
            0 <= a.temperature < float("inf"),
            "a number from 0 (always the likeliest token) up",
        ),
        ("top_k", a.top_k >= 0, "at least 0 (all tokens)"),
        ("top_p", 0 < a.top_p <= 1, "above 0 and at most 1 (all tokens)"),
        ("min_p", 0 <= a.min_p <= 1, "from 0 (all tokens) to 1"),
        ("min_tokens", 0 <= a.min_tokens <= a.max_tokens, f"from 0 to --max-tokens {a.max_tokens}"),
        ("stop", all(a.stop), "a text that is not empty"),
    ):
        if not is_fine:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(a, name)}: it must be {rule}")


def sample(arguments: argparse.Namespace, prompt: str) -> Group:
    """The completions of a prompt. UserError if it is too long for the model, or a value makes no sense."""
    check(arguments)
    of_run = read_run(arguments.run) if arguments.run else {}
    folder = arguments.model or of_run.get("folder") or hf_folder.EMBEDDED
    system = of_run.get("system", "") if arguments.system is None else arguments.system
    model, tokens = match_tokenizer(folder, hf_folder.check_folder(folder), tokenizer.load(folder))
    ids = tokens.prompt(prompt, system)
    if max(ids, default=0) >= model.vocab_size:
        raise UserError(
            f"the prompt holds a token past the model's {model.vocab_size:,} rows: leave that token out"
        )
    width = prompt_width(folder, len(ids), arguments.max_tokens)
    adapters = of_run.get("lora", lora.NO_LORA)
    steps = make_steps(model, tokens, width, arguments, of_run.get("stacked", False), adapters)
    engine = Engine(steps, tokens, width, arguments.max_tokens, arguments.seed, system)
    a = arguments
    draw = Draw(a.temperature, a.top_k, a.top_p, a.min_p, a.min_tokens, a.max_tokens, tuple(a.stop))
    problem = Problem("prompt", prompt, "")
    params = load_params(folder, arguments.run, steps, adapters)
    (group,) = engine(params, [problem], a.samples, draw, 0, "sample")
    return group


def prompt_width(folder: Path, length: int, new_tokens: int) -> int:
    """The prompt's length. UserError if it is empty, or together with the new tokens more than the model has positions for."""
    most = hf_folder.max_positions(folder)
    if not length:
        raise UserError("the prompt is empty: give one by --prompt or on stdin")
    if most and length + new_tokens > most:
        also = f", or lower --max-tokens to {most - length}" if length < most else ""
        raise UserError(
            f"the prompt has {length:,} tokens, which with --max-tokens {new_tokens:,} are more than the {most:,} "
            f"that {folder} was made for: shorten it{also}"
        )
    return length


def make_steps(
    model: ModelConfig,
    tokens: tokenizer.Tokenizer,
    width: int,
    arguments: argparse.Namespace,
    stacked: bool,
    adapters: Lora,
) -> Programs:
    """The compiled programs for a run's layers, stacked or not, and adapters; those of training are never compiled."""
    mesh = make_mesh(rows=min(arguments.samples, SIDE_BY_SIDE))
    devices = row_devices(mesh)
    return compile_programs(
        model,
        adamw(schedule("constant", 0.0, 0, 1), 0.9, 0.999, 0.0, 1.0),
        mesh,
        prompt_width=width,
        new_tokens=arguments.max_tokens,
        micro_batch=0,
        ends=tokens.ends,
        slots=-(-min(arguments.samples, SIDE_BY_SIDE) // devices) * devices,
        scan_layers=stacked,
        adapters=adapters,
    )


def load_params(folder: Path, run: Path | None, steps: Programs, adapters: Lora) -> Params:
    """The newest checkpoint's parameters, beside the folder's own if these are adapters; without a run the folder's own."""
    if run is None:
        return hf_folder.load_params(folder, steps.params_like)
    with Checkpoints(run) as checkpoints:
        trained = checkpoints.restore_params(steps.state_like.params)
    reference = (
        steps.refer(hf_folder.load_params(folder, steps.params_like)) if adapters.rank else {}
    )
    return lora.attach(reference, trained)


def records(group: Group) -> Iterator[dict[str, Any]]:
    """Each completion as JSON values. logprob: the sum over its tokens, in nats; finished: whether it ended by itself."""
    for number, text in enumerate(group.texts):
        yield {
            "sample": number,
            "text": text,
            "tokens": int(group.completion_mask[number].sum()),
            "logprob": float(group.logprobs[number].sum()),
            "finished": bool(group.finished[number]),
        }


def to_text(record: dict[str, Any]) -> str:
    """A completion to read, under a line about it."""
    cut = "" if record["finished"] else ", cut off"
    return f"--- sample {record['sample']}: {record['tokens']} tokens{cut}, logprob {record['logprob']:.2f}\n{record['text']}"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.sample", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--model",
        type=Path,
        help="a Hugging Face folder; by default the run's, or the embedded model",
    )
    parser.add_argument(
        "--run",
        type=Path,
        help="the --config.out of a training run: its newest checkpoint is asked",
    )
    parser.add_argument("--prompt", help="what to ask; by default what stdin says")
    parser.add_argument("--system", help="a system prompt; by default the run's, or none")
    for flag, kind, default, about in (
        ("--samples", int, 4, "completions"),
        ("--max-tokens", int, 256, "tokens of a completion, at most"),
        ("--min-tokens", int, 0, "tokens of a completion, at least"),
        ("--temperature", float, 1.0, "divides the logits; 0 takes the likeliest token"),
        ("--top-k", int, 0, "only the k likeliest tokens; 0 takes all"),
        ("--top-p", float, 1.0, "only the likeliest tokens that together have this probability"),
        ("--min-p", float, 0.0, "only tokens at least this probable, as a share of the likeliest"),
        ("--seed", int, 0, "another one gives other samples"),
    ):
        parser.add_argument(flag, type=kind, default=default, help=f"{about}; default {default}")
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        help="a text that ends a completion; may be given repeatedly",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser


def main(argv: list[str]) -> None:
    """Samples as the command line says."""
    arguments = make_parser().parse_args(argv)
    prompt = sys.stdin.read().rstrip("\n") if arguments.prompt is None else arguments.prompt
    for record in records(sample(arguments, prompt)):
        print(json.dumps(record, ensure_ascii=False) if arguments.json else to_text(record))


if __name__ == "__main__":
    run_main(main)
