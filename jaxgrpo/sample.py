"""Prompt in, samples out: what a model, or the newest checkpoint of a run, answers to a prompt.

    python -m jaxgrpo.sample --prompt "Tom has 3 apples and buys 4. How many has he?" --samples 2
    echo "Tom has 3 apples. How many has he?" | python -m jaxgrpo.sample --run OUT --temperature 0.7

The prompt goes through the model's own chat template. The same command prints the same samples.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from jaxgrpo.build import load_policy, match_tokenizer
from jaxgrpo.config.command_line import run_main
from jaxgrpo.device.specs import ModelSpec, SamplingSpec, dividing_rows
from jaxgrpo.distributed import compilation_cache
from jaxgrpo.distributed.mesh import make_mesh, row_devices
from jaxgrpo.errors import UserError
from jaxgrpo.export import SavedRun, read_run
from jaxgrpo.models import hf_folder, lora
from jaxgrpo.models.model_config import ModelConfig
from jaxgrpo.problems import Problem
from jaxgrpo.programs import SamplingPrograms, compile_sampling
from jaxgrpo.rollout.engine import Engine
from jaxgrpo.rollout.groups import Group, SamplingRequest
from jaxgrpo.rollout.report import Json
from jaxgrpo.text import tokenizer
from jaxgrpo.types import SamplingParams

MAX_SLOTS = 64
"""Samples that are made side by side, at most."""


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
        (
            "min_tokens",
            0 <= a.min_tokens <= a.max_tokens,
            f"from 0 to --max-tokens {a.max_tokens}",
        ),
        ("stop", all(a.stop), "a text that is not empty"),
    ):
        if not is_fine:
            raise UserError(
                f"--{name.replace('_', '-')} is {getattr(a, name)}: it must be {rule}"
            )


def sample(arguments: argparse.Namespace, prompt: str) -> Group:
    """Returns the completions of a prompt.

    Raises UserError if it is too long for the model, or a value makes no sense.
    """
    # 1. The model, its tokenizer and the prompt.
    check(arguments)
    run = read_run(arguments.run) if arguments.run else None
    folder = arguments.model or (run.folder if run else hf_folder.EMBEDDED)
    system = arguments.system
    if system is None:
        system = run.system if run else ""
    network, tokens = match_tokenizer(
        folder, hf_folder.check_folder(folder), tokenizer.load(folder)
    )
    ids = tokens.prompt(prompt, system)
    if max(ids, default=0) >= network.vocab_size:
        raise UserError(
            f"the prompt holds a token past the model's {network.vocab_size:,} rows: leave that "
            "token out"
        )
    width = prompt_width(folder, len(ids), arguments.max_tokens)

    # 2. Programs and parameters.
    programs = compile_for(network, tokens.eos_ids, width, arguments, run)
    has_adapters = bool(run and run.adapters.rank)
    params, _ = load_policy(
        programs, folder, has_adapters, arguments.run, needs_checkpoint=run is not None
    )

    # 3. The samples.
    engine = Engine(
        programs, tokens, width, arguments.max_tokens, arguments.seed, system
    )
    request = SamplingRequest(
        group_size=arguments.samples,
        sampling=SamplingParams(
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            min_p=arguments.min_p,
            min_tokens=arguments.min_tokens,
        ),
        purpose="sample",
        stop=tuple(arguments.stop),
    )
    (group,) = engine(params, [Problem("prompt", prompt, "")], request, step=0)
    return group


def prompt_width(folder: Path, length: int, new_tokens: int) -> int:
    """Returns the prompt's length.

    Raises UserError if it is 0, or with the new tokens more than the model has positions for.
    """
    positions = hf_folder.max_positions(folder)
    if not length:
        raise UserError("the prompt is empty: give one by --prompt or on stdin")
    if positions and length + new_tokens > positions:
        also = ""
        if length < positions:
            also = f", or lower --max-tokens to {positions - length}"
        raise UserError(
            f"the prompt has {length:,} tokens, which with --max-tokens {new_tokens:,} are more "
            f"than the {positions:,} that {folder} was made for: shorten it{also}"
        )
    return length


def compile_for(
    network: ModelConfig,
    eos_ids: tuple[int, ...],
    width: int,
    arguments: argparse.Namespace,
    run: SavedRun | None,
) -> SamplingPrograms:
    """Returns the programs that sample, for the adapters and the layout of a run's checkpoints."""
    # Every device gets as many slots; samples that are left over refill them.
    slots = min(arguments.samples, MAX_SLOTS)
    compilation_cache.enable()
    mesh = make_mesh(rows=dividing_rows(network, slots))
    devices = row_devices(mesh)
    model = ModelSpec(
        network=network,
        mesh=mesh,
        adapters=run.adapters if run else lora.NO_LORA,
        scan_layers=run.is_stacked if run else False,
    )
    sampling = SamplingSpec(
        prompt_width=width,
        new_tokens=arguments.max_tokens,
        slots=-(-slots // devices) * devices,
        eos_ids=eos_ids,
    )
    return compile_sampling(model, sampling)


def records(group: Group) -> Iterator[Json]:
    """Yields each completion as JSON values.

    logprob: the sum over its tokens, in nats; finished: whether it ended by itself
    """
    for number, text in enumerate(group.texts):
        yield {
            "sample": number,
            "text": text,
            "tokens": int(group.completion_mask[number].sum()),
            "logprob": float(group.logprobs[number].sum()),
            "finished": bool(group.finished[number]),
        }


def to_text(record: Json) -> str:
    """Returns a completion to read, under a line about it."""
    cut = "" if record["finished"] else ", cut off"
    about = f"{record['tokens']} tokens{cut}, logprob {record['logprob']:.2f}"
    return f"--- sample {record['sample']}: {about}\n{record['text']}"


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxgrpo.sample", description=__doc__.splitlines()[0]
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
    parser.add_argument(
        "--system", help="a system prompt; by default the run's, or none"
    )
    for flag, kind, default, about in (
        ("--samples", int, 4, "completions"),
        ("--max-tokens", int, 256, "tokens of a completion, at most"),
        ("--min-tokens", int, 0, "tokens of a completion, at least"),
        (
            "--temperature",
            float,
            1.0,
            "divides the logits; 0 takes the likeliest token",
        ),
        ("--top-k", int, 0, "only the k likeliest tokens; 0 takes all"),
        (
            "--top-p",
            float,
            1.0,
            "only the likeliest tokens that together have this probability",
        ),
        (
            "--min-p",
            float,
            0.0,
            "only tokens at least this probable, as a share of the likeliest",
        ),
        ("--seed", int, 0, "another one gives other samples"),
    ):
        parser.add_argument(
            flag, type=kind, default=default, help=f"{about}; default {default}"
        )
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
    prompt = arguments.prompt
    if prompt is None:
        prompt = sys.stdin.read().rstrip("\n")
    for record in records(sample(arguments, prompt)):
        print(
            json.dumps(record, ensure_ascii=False)
            if arguments.json
            else to_text(record)
        )


if __name__ == "__main__":
    run_main(main)
