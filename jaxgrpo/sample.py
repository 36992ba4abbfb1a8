"""Prompt in, samples out: what a model, or the newest checkpoint of a run, answers to a prompt.

    python -m jaxgrpo.sample --prompt "Tom has 3 apples and buys 4. How many has he?" --samples 2
    echo "Tom has 3 apples. How many has he?" | python -m jaxgrpo.sample --run OUT --temperature 0.7

The prompt goes through the model's own chat template. The same command prints the same samples.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace

from jaxgrpo.config.command_line import run_main
from jaxgrpo.export import read_run
from jaxgrpo.language_model import LanguageModel, check_settings
from jaxgrpo.rollout.groups import Group
from jaxgrpo.rollout.report import Json
from jaxgrpo.types import SamplingParams


def sample(arguments: argparse.Namespace, prompt: str) -> Group:
    """Returns the completions of a prompt.

    Raises UserError if it is too long for the model, or a value makes no sense.
    """
    check(arguments)
    if arguments.run:
        read_run(arguments.run)  # a folder that is none is not taken for a model's
        model = LanguageModel.load(arguments.run, arguments.step, arguments.model or "")
    else:
        model = LanguageModel.load(arguments.model or "", arguments.step)
    if arguments.system is not None:
        model = replace(model, system=arguments.system)
    sampling = SamplingParams(
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
        min_tokens=arguments.min_tokens,
    )
    (group,) = model.groups(
        prompt,
        arguments.samples,
        sampling,
        arguments.max_tokens,
        arguments.stop,
        arguments.seed,
    )
    return group


def check(arguments: argparse.Namespace) -> None:
    """Raises UserError for the first value that makes no sense."""
    settings = vars(arguments) | {"n": arguments.samples}
    flags = {name: f"--{name.replace('_', '-')}" for name in settings}
    check_settings(settings, flags | {"n": "--samples"})


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
        help="a Hugging Face folder; by default the run's, or the embedded model",
    )
    parser.add_argument(
        "--run",
        help="the --config.out of a training run: its newest checkpoint is asked",
    )
    parser.add_argument(
        "--step",
        type=int,
        help="with --run, the checkpoint to ask; by default the newest",
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
