"""What the program tells people to do can be done: every message that gives advice is provoked,
and its advice followed.

`python -m tools.check_advice` lists the messages. A new one needs a row here: in TRIALS, under a
part of its text as it stands in the source ({} where a value is put in), what provokes it and then
each way of following it, functions of a folder and of what was said. Or in ELSEWHERE, under the
same, the test that does so.
"""

import argparse
import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet
import pytest
from safetensors.numpy import load_file, save_file

from jaxgrpo import __main__ as command
from jaxgrpo import (
    build,
    evaluate,
    export,
    language_model,
    losses,
    policies,
    summary,
    train,
)
from jaxgrpo import config as configs
from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.config import (
    Batch,
    Config,
    Evaluation,
    Filter,
    Order,
    Packing,
    SFTConfig,
    command_line,
    compare,
    load,
    overrides,
    parse_command_line,
    validate,
    validate_sft,
)
from jaxgrpo.config.loader import call_get_config, find_file
from jaxgrpo.data import arithmetic, benchmarks
from jaxgrpo.data.examples import ExampleMaker, Solution
from jaxgrpo.data.gsm8k import GSM8K, split_answer
from jaxgrpo.data.mixture import Mixture, Part
from jaxgrpo.data.order import ProblemOrder
from jaxgrpo.data.overlap import Decontaminated
from jaxgrpo.data.pass_rates import problems_within, read_pass_rates
from jaxgrpo.data.prompt_filter import PromptFilter
from jaxgrpo.data.table import Table
from jaxgrpo.data.translated import TranslatedGSM8K
from jaxgrpo.device import optimizer
from jaxgrpo.distributed import mesh
from jaxgrpo.errors import UserError
from jaxgrpo.models import gemma3, hf_folder, llama, qwen2, tensors
from jaxgrpo.models.lora import Lora
from jaxgrpo.plan import chips, times
from jaxgrpo.plan import command as plan
from jaxgrpo.problems import Driven, Problem, Scheduled, Weighted, batched
from jaxgrpo.rewards import languages, layout, length, repetition
from jaxgrpo.rewards.gate import Gate
from jaxgrpo.rewards.languages import consistency
from jaxgrpo.rewards.maths import verifier
from jaxgrpo.rewards.workers.pool import Pool, reward_name
from jaxgrpo.rollout.report import check_missing_verdicts
from jaxgrpo.text import tokenizer
from tests import test_build
from tests.test_config import make, right
from tests.tiny_models import make_folder
from tests.tiny_reports import make_run
from tests.tiny_rollouts import make_group
from tests.tiny_runs import ROOT
from tools import check_advice, show
from tools.bench import logprobs
from tools.report import page
from tools.report.rollouts import read_groups
from tools.report.runs import read_runs

Step = Callable[[Path, str], Any]
TRIALS: dict[str, tuple[Step, tuple[Step, ...]]] = {}

ELSEWHERE = {
    "{} needs gcsfs: pip install": (
        "test_buckets.py::test_without_its_library_a_bucket_is_refused_with_the_line_that_installs_it"
    ),
    "check the bucket's name, and who you are": (
        "test_buckets.py::test_what_cannot_be_reached_is_named"
    ),
    "or one in Google Cloud Storage": (
        "test_buckets.py::test_nothing_at_an_address_and_other_addresses_are_refused"
    ),
    "there is nothing at {}: check the path": (
        "test_buckets.py::test_nothing_at_an_address_and_other_addresses_are_refused"
    ),
    "has neither {}/algebra/*.json nor": (
        "test_data_sets.py::test_a_broken_row_of_math_is_named_by_its_file"
    ),
    "answer; write one, or drop the row": (
        "test_data_sets.py::test_a_broken_row_of_math_is_named_by_its_file"
    ),
    "change sampling.prompt_width, sampling.max_new_tokens, batch.pack or packing.width": (
        "test_cudnn.py::test_it_needs_even_numbers_of_columns"
    ),
    "is for NVIDIA GPUs, and {}; set it to 'auto'": (
        "test_cudnn.py::test_networks_that_it_cannot_attend_for_are_refused"
    ),
    "{} is {}: it must be a multiple of {}": (
        "test_bench.py::test_numbers_that_do_not_go_together_are_refused"
    ),
    "there is no teacher in {}: make it by {}": (
        "test_compare.py::test_a_teacher_that_is_missing_is_asked_for"
    ),
    "could not be downloaded": "test_data.py::test_gsm8k_without_a_network_says_what_to_do",
    "do not see it: give an --config.out": (
        "test_processes.py::test_a_run_goes_on_with_another_number_of_processes"
    ),
    "leave out --adapter": "test_export.py::test_where_everything_is_trained_there_is_no_adapter",
    "leave out one of the two": "test_export.py::test_adapters_are_in_float32_alone",
    "multiple of the {} slices": "test_mesh.py::test_data_that_the_slices_do_not_divide_is_named",
    "it must divide the {} devices of a process": (
        "test_mesh.py::test_the_tensor_axis_stays_within_a_process"
    ),
    "choose a mesh.{} that divides": "test_mesh.py::test_a_tensor_that_does_not_divide_is_named",
    "give --{} another field, or mend the line": (
        "test_translate.py::test_bad_input_is_refused_before_anything_is_asked"
    ),
    "--{} is {}: it must be at least 1": (
        "test_translate.py::test_bad_input_is_refused_before_anything_is_asked"
    ),
    "OPENAI_BASE_URL is not set: set it to": (
        "test_translate.py::test_bad_input_is_refused_before_anything_is_asked"
    ),
    "rows failed one after the other, the last by: {}; check": (
        "test_translate.py::test_an_endpoint_that_is_at_fault_ends_the_program"
    ),
    "check OPENAI_BASE_URL, OPENAI_API_KEY and --model": (
        "test_translate.py::test_a_key_or_a_model_that_is_refused_ends_the_program"
    ),
    "it is no translation of a row of --source into {}; give another --to": (
        "test_translate.py::test_a_file_of_something_else_is_not_appended_to"
    ),
    "run `wandb login` first": (
        "test_trackers.py::test_a_login_that_nobody_could_answer_is_refused"
    ),
    "the same command goes on": "test_train.py::test_a_signal_ends_the_run_after_a_whole_step",
    "the loss of step {} is {}": "test_sft_runs.py::test_a_loss_that_is_not_finite_ends_the_run",
}
"""Several processes, several devices, a network, a whole run: in tests of their own."""


def trial(part: str, provoke: Step, *follow: Step) -> None:
    assert part not in TRIALS
    TRIALS[part] = provoke, follow


def give(function: Callable, *arguments: Any) -> Step:
    """Calls a function with these arguments, whatever the folder is and whatever was said."""
    return lambda folder, said: function(*arguments)


def changed(values: dict[str, Any]) -> Config:
    """The config of test_config with these settings."""
    config = make()
    for name, value in values.items():
        *path, last = name.split(".")
        node: Any = config
        for part in path:
            node = getattr(node, part)
        setattr(node, last, value)
    return config


ROW_PROBLEMS = [Problem("1", "x", "1")]


def valid(values: dict[str, Any]) -> Step:
    return lambda folder, said: validate(changed(values))


def setting(part: str, name: str, bad: Any, *good: Any) -> None:
    """A setting that is refused, and values that the message says will do."""
    trial(part, valid({name: bad}), *(valid({name: value}) for value in good))


# --- command_line, settings ---


def named_file(
    folder: Path, name: str = "tiny.py", text: str = "def get_config():\n    return 1\n"
) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def named(said: str, pattern: str) -> str:
    """What a message names."""
    found = re.search(pattern, said)
    assert found, said
    return found[1]


trial(
    "the flags are --config FILE",
    give(command_line.split, ["--steps=3"]),
    lambda folder, said: command_line.split([named(said, r"did you mean (.*)\?")]),
    give(command_line.split, ["--config", "FILE", "--config.steps=3", "--help"]),
)
trial(
    "nothing comes after it; write",
    give(command_line.split, ["--config.steps"]),
    lambda folder, said: command_line.split(
        [named(said, r"write (.*)").replace("VALUE", "3")]
    ),
)
trial(
    "there is no such file; {}",
    lambda folder, said: (named_file(folder), find_file(str(folder / "tini.py"))),
    lambda folder, said: call_get_config(
        find_file(named(said, r"did you mean (.*)\?"))
    ),
    lambda folder, said: call_get_config(find_file(named_file(folder, "given.py"))),
)
trial(
    "define it at the top level of the file",
    lambda folder, said: call_get_config(Path(named_file(folder, text="x = 1\n"))),
    lambda folder, said: call_get_config(Path(named_file(folder))),
)
trial(
    "its name must end in .py",
    lambda folder, said: call_get_config(Path(named_file(folder, "tiny.txt"))),
    lambda folder, said: call_get_config(Path(named_file(folder, "tiny.py"))),
)
trial(
    "; mend the file",
    lambda folder, said: call_get_config(
        Path(named_file(folder, text="def get_config():\n    1 / 0\n"))
    ),
    lambda folder, said: call_get_config(Path(named_file(folder))),
)
trial(
    "a setting is written --config.name=value",
    give(overrides.override, make(), ["--config.steps"]),
    lambda folder, said: overrides.override(make(), [named(said, r"for example (.*)")]),
)
trial(
    "there is no objective of that name; {}",
    give(configs.override, make(), ["--config.objective=dappo"]),
    lambda folder, said: configs.override(
        make(), [f"--config.objective={named(said, r'did you mean (.*)[?]')}"]
    ),
)
DRIVEN = {"rewards": {"accuracy": Driven(right)}}
trial(
    "is now called --config.{}; use that name",
    lambda folder, said: overrides.override(
        changed(DRIVEN), ["--config.rewards.accuracy.most=5"]
    ),
    lambda folder, said: overrides.override(
        changed(DRIVEN), [f"{named(said, r'is now called ([^;]*)')}=5"]
    ),
)
trial(
    "is a group of settings; set one of",
    give(overrides.override, make(), ["--config.batch=3"]),
    lambda folder, said: overrides.override(
        make(), [f"--config.{named(said, 'set one of ([^,]*)')}=3"]
    ),
)
trial(
    "--config.{}: no such setting; {}",
    give(overrides.override, make(), ["--config.batch.group_sise=4"]),
    lambda folder, said: overrides.override(
        make(), [f"--config.{named(said, r'did you mean ([^ ?]*)')}=4"]
    ),
)
trial(
    "which would be written {}",
    give(overrides.override, make(), ["--config.data.languages=(1, 2)"]),
    lambda folder, said: overrides.override(
        make(), shlex.split(named(said, "would be written (.*)"))
    ),
)

# --- config ---

QUICKSTART = str(ROOT / "configs" / "quickstart.py")


def unconfigured(parse: Callable) -> tuple[Step, Step]:
    """Without a config file; and then with the example that is named."""
    return give(parse, []), lambda folder, said: parse(
        ["--config", str(ROOT / named(said, r"for example (\S*)"))]
    )


trial("run python -m {} --config FILE, for example", *unconfigured(parse_command_line))
trial(
    "run python -m jaxgrpo.plan --config FILE, for example", *unconfigured(plan.parse)
)
trial(
    "get_config() returned a {}; it must return a",
    lambda folder, said: load(named_file(folder)),
    lambda folder, said: load(QUICKSTART),
)
setting("it must hold texts, none of them empty", "sampling.stop", ("",), ("x",), ())
setting("{} is {}: it must be a {}(...)", "batch", 8, Batch())
setting("{} is {}: it must be {}", "steps", "20", 20)
setting("{} is a {}: it must have {}", "objective", "grpo", losses.GRPO())
trial(
    "{} is {}: it must be one of {}",
    give(optimizer.schedule, "step", 1.0, 0, 10),
    lambda folder, said: [
        optimizer.schedule(kind, 1.0, 0, 10)
        for kind in named(said, "it must be one of (.*)").split(", ")
    ],
)
setting("{} is {}: it must be {}{}{}", "evaluation.top_p", 0.0, 0.001, 1.0)
trial(
    "adapters are trained beside the frozen model",
    valid({"lora": Lora(rank=2), "reference": "teacher"}),
    valid({"lora": Lora(rank=0), "reference": "teacher"}),
    valid({"lora": Lora(rank=2), "reference": ""}),
)
trial(
    "batch.updates is {}: it must divide batch.groups={}",
    valid({"batch.updates": 3}),
    *(
        lambda folder, said, which=which: validate(
            changed({"batch.updates": int(named(said, which))})
        )
        for which in (r"are (\d+) and", r"and (\d+)$")
    ),
)
trial(
    "importance ratio: after the first update the completions",
    valid({"objective": losses.RLOO(), "batch.updates": 2}),
    valid({"objective": losses.RLOO(), "batch.updates": 1}),
    valid({"objective": losses.GRPO(), "batch.updates": 2}),
)
trial(
    "the nearest that do are {}",
    valid({"batch.micro_batch": 7}),
    lambda folder, said: [
        validate(changed({"batch.micro_batch": int(size)}))
        for size in named(said, "the nearest that do are (.*)").split(" and ")
    ],
)
trial(
    "a bin must have room for",
    valid({"batch.pack": 100}),
    lambda folder, said: validate(
        changed({"batch.pack": int(named(said, r"at least (\d+)"))})
    ),
    valid({"batch.pack": 0}),
)
FLIGHT = {"sampling.keep_in_flight": True}
SAMPLERS, TRAINERS = (
    {"batch.old_logprobs": "sampler"},
    {"batch.old_logprobs": "trainer"},
)
trial(
    "there is nothing to correct; set batch.old_logprobs",
    valid({"objective": losses.Corrected(losses.GRPO())}),
    valid({"objective": losses.Corrected(losses.GRPO())} | TRAINERS),
)
trial(
    "has no importance ratio",
    valid({"objective": losses.RLOO()} | FLIGHT),
    valid({"objective": losses.Corrected(losses.RLOO())} | TRAINERS | FLIGHT),
    valid({"objective": losses.RLOO()}),
)
trial(
    "which so narrow a range would clip",
    valid({"objective": losses.GSPO(), "dtype": "bfloat16"}),
    valid({"objective": losses.GSPO(), "dtype": "bfloat16"} | TRAINERS),
)
trial(
    "put Corrected(...) around the objective{}",
    valid(TRAINERS | FLIGHT),
    valid({"objective": losses.Corrected(losses.GRPO())} | TRAINERS | FLIGHT),
    valid(SAMPLERS | FLIGHT),
)
trial(
    "change one of the two, they must be the same",
    valid({"objective": losses.ScaleRL(group_size=5)}),
    valid({"objective": losses.ScaleRL(group_size=8)}),
    valid({"objective": losses.ScaleRL(group_size=5), "batch.group_size": 5}),
)
setting("they must hold 0 <= low <= high <= 1", "filter.low", 0.9, 0.0, 0.5)
trial(
    "set filter.low to {} or filter.high to {}",
    valid({"filter.low": 0.55, "filter.high": 0.6}),
    lambda folder, said: validate(
        changed(
            {
                "filter.low": float(named(said, r"filter.low to (\S*)")),
                "filter.high": 0.6,
            }
        )
    ),
    lambda folder, said: validate(
        changed(
            {
                "filter.low": 0.55,
                "filter.high": float(named(said, r"filter.high to (\S*)")),
            }
        )
    ),
)
setting(
    "with filter.move_steps they must hold",
    "filter",
    Filter(move_steps=5, last_low=0.9),
    Filter(move_steps=5, last_low=0.3),
)
setting(
    "whose ends do not move; set filter.rule to 'band'",
    "filter",
    Filter(rule="dapo", target_kept=0.5),
    Filter(rule="band", target_kept=0.5),
    Filter(rule="dapo"),
)
trial(
    "set filter.select to 'launch', or sampling.keep_in_flight to false",
    valid({"filter.select": "finish", "sampling.keep_in_flight": True}),
    valid({"filter.select": "launch", "sampling.keep_in_flight": True}),
    valid({"filter.select": "finish", "sampling.keep_in_flight": False}),
)
setting(
    "or 0 for all of a group",
    "filter.train_rows",
    1,
    2,
    4,
    0,
)
setting(
    "set filter.ahead to 0, or filter.select to 'launch'",
    "filter",
    Filter(select="finish", ahead=1.5),
    Filter(select="finish"),
    Filter(ahead=1.5),
)
setting("or 0 to sample all at once", "filter.early_verdicts", 8, 7, 0)
setting(
    "set filter.rule to 'dapo', or filter.early_verdicts to 0",
    "filter",
    Filter(rule="variance", early_verdicts=4),
    Filter(rule="dapo", early_verdicts=4),
    Filter(rule="variance"),
)
TOGETHER = {
    "accuracy": Weighted(right, 1.0),
    "ranks": Weighted(batched(lambda problem, texts: [0.0] * len(texts)), 1.0),
}
trial(
    "or leave that reward out",
    valid({"filter.early_verdicts": 4, "rewards": TOGETHER}),
    valid({"rewards": TOGETHER}),
    valid({"filter.early_verdicts": 4}),
)
setting(
    "set order.pass_rates to a file of them, or order.low to 0",
    "order",
    Order(low=0.1),
    Order(low=0.1, pass_rates="rates.json"),
    Order(low=0.0, high=1.0),
)
setting(
    "set order.by to 'chance', or order.share to 1",
    "order",
    Order(share=0.5),
    Order(share=0.5, by="chance"),
    Order(share=1.0),
)
setting(
    "it must be {name: Weighted(function, weight)}",
    "rewards",
    {},
    {"accuracy": Weighted(right, 1.0)},
)
trial(
    "it must name one of the rewards",
    valid({"solved_by": "acc"}),
    lambda folder, said: validate(
        changed({"solved_by": named(said, "one of the rewards, ([^,]*)")})
    ),
)
setting(
    "it must be a Weighted(function, weight)",
    "rewards",
    {"accuracy": right},
    {"accuracy": Weighted(right, 1.0)},
)
setting(
    "it must be finite",
    "rewards",
    {"accuracy": Weighted(right, float("inf"))},
    {"accuracy": Weighted(right, 1e9)},
)
trial(
    "rewards has a {}: {}; call it {}{}",
    valid({"rewards": {"accuracy": Weighted(right), "a/b": Weighted(right)}}),
    lambda folder, said: validate(
        changed(
            {
                "rewards": {
                    "accuracy": Weighted(right),
                    named(said, "call it '(.*)'"): Weighted(right),
                }
            }
        )
    ),
)
setting(
    "lora.targets is {}: {}; choose of",
    "lora",
    Lora(targets=("all",)),
    Lora(targets=("query", "up")),
)
setting("or -1 for what is left of the devices", "mesh.fsdp", 0, 1)
setting("only one axis can take what is left", "mesh.fsdp", -1, 2)
trial(
    "distributed.processes is {} and process",
    valid({"distributed.processes": 2}),
    valid({"distributed.processes": 2, "distributed.coordinator": "10.0.0.2:8476"}),
)
trial(
    "it must be {}a host:port, as",
    valid({"distributed.coordinator": "10.0.0.2"}),
    *(
        valid({"distributed.coordinator": where})
        for where in ("auto", "off", "10.0.0.2:8476")
    ),
)
trial(
    "it must be 0 to {}",
    valid(
        {
            "distributed.process": 2,
            "distributed.processes": 2,
            "distributed.coordinator": "a:1",
        }
    ),
    valid(
        {
            "distributed.process": 1,
            "distributed.processes": 2,
            "distributed.coordinator": "a:1",
        }
    ),
)


def other_run(check: Callable, **changes: Any) -> tuple[Step, Step, Step]:
    """OUT holds a run with other settings; another OUT; the run's own settings."""

    def provoke(folder: Path, said: str) -> Any:
        configs.save(make(), str(folder))
        return check(make(**changes), str(folder))

    return (
        provoke,
        lambda folder, said: check(make(**changes), str(folder / "other")),
        lambda folder, said: check(make(), str(folder)),
    )


trial("holds a run with other settings", *other_run(configs.check_same, seed=1))
trial("holds a run whose policy has other settings", *other_run(compare, model="other"))
trial(
    "to evaluate the model itself, and write there",
    lambda folder, said: (
        configs.save(make(), str(folder / "mine")),
        configs.check_named_out(str(folder / "mime"), ["--config.out", "mime"]),
    ),
    lambda folder, said: configs.check_named_out(
        named(said, r"did you mean (\S*)\?"), ["--config.out=mine"]
    ),
    lambda folder, said: (
        (folder / "mime").mkdir(),
        configs.check_named_out(str(folder / "mime"), ["--config.out=mime"]),
    ),
    lambda folder, said: configs.check_named_out(str(folder / "mime2"), []),
)
trial(
    "which holds no run (no config.json): give the",
    lambda folder, said: configs.check_start(make(init_from=str(folder))),
    lambda folder, said: (
        configs.save(make(), str(folder)),
        configs.check_start(make(init_from=str(folder))),
    ),
)


def damaged_config(folder: Path, said: str) -> None:
    (folder / "config.json").write_text("{")
    configs.check_same(make(), str(folder))


def without_config(folder: Path, said: str) -> None:
    (folder / "config.json").unlink()
    configs.check_same(make(), str(folder))


trial(
    "{} cannot be read ({}); {}",
    damaged_config,
    lambda folder, said: configs.check_same(make(), str(folder / "other")),
    without_config,
)

# --- checkpoint ---

STATE = {"params": {"a": jnp.ones(2)}}


def like(size: int) -> dict:
    return {"params": {"a": jax.ShapeDtypeStruct((size,), jnp.float32)}}


def restore(folder: Path, size: int = 2) -> Any:
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(like(size))


def saved(folder: Path, *steps: int) -> Path:
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in steps:
            checkpoints.save(step, STATE, {"step": step})
    return folder


def damaged(folder: Path) -> Path:
    (saved(folder, 1, 2) / "checkpoints" / "2" / "host" / "metadata").write_text(
        '{"step": '
    )
    return folder


trial(
    "there is no checkpoint of step {}; choose one of",
    lambda folder, said: Checkpoints(saved(folder, 1, 2)).restore_params(
        like(2)["params"], 3
    ),
    lambda folder, said: Checkpoints(folder).restore_params(
        like(2)["params"], int(named(said, r"choose one of (\d+)"))
    ),
)


def remove_as_told(folder: Path, said: str) -> None:
    shutil.rmtree(named(said, "(.*): the checkpoint is damaged"))
    assert restore(folder)[1]["step"] == int(named(said, r"go on from step (\d+)"))


trial(
    "there is no checkpoint; train first",
    lambda folder, said: restore(folder),
    lambda folder, said: restore(saved(folder, 1)),
)
trial(
    "in the checkpoint and {} in this run",
    lambda folder, said: restore(saved(folder, 1), 3),
    lambda folder, said: restore(folder, 2),
)
trial(
    "the checkpoint is damaged",
    lambda folder, said: restore(damaged(folder)),
    remove_as_told,
)

# --- data ---

ROWS = [{"question": f"What is {n} + 1?", "answer": n + 1} for n in range(4)]


def rows(folder: Path, *lines: Any, **how: Any) -> Table:
    """A source of a file with these lines, objects or bytes."""
    text = [
        line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines
    ]
    (folder / "data.jsonl").write_bytes(b"".join(line + b"\n" for line in text))
    return Table(path=str(folder / "data.jsonl"), **{"heldout_size": 1} | how)


def bad_line(part: str, *lines: Any, **how: Any) -> None:
    """A file with a bad line; and the file with a good one in its place."""
    trial(
        part,
        lambda folder, said: rows(folder, *ROWS, *lines, **how).train(),
        lambda folder, said: rows(folder, *ROWS).train(),
    )


bad_line(
    "is not UTF-8 (byte {}); save the file as UTF-8",
    b'{"question": "\xff", "answer": 1}',
)
bad_line("is not JSON ({}); one object a line is wanted", b"oops")
bad_line("not an object; write", [1])
bad_line(
    "not text or a number; mend it", {"question": "q?", "answer": None}, heldout_size=0
)
bad_line(
    "is blank; fill it in, drop the {}",
    {"question": "q?", "answer": " "},
    heldout_size=0,
)
LEVELS = [row | {"level": "hard", "id": 7} for row in ROWS]
trial(
    "not a level like 3",
    lambda folder, said: rows(folder, *LEVELS, level_field="level").train(),
    lambda folder, said: rows(folder, *LEVELS).train(),
)
trial(
    "make it unique or leave",
    lambda folder, said: rows(folder, *LEVELS, id_field="id").train(),
    lambda folder, said: rows(folder, *LEVELS).train(),
)


def the_named_field(folder: Path, said: str) -> None:
    source = overrides.override(
        changed({"data": rows(folder, *RENAMED)}), [named(said, "set (.*)")]
    ).data
    assert source.train()


RENAMED = [{"question": f"What is {n} + 1?", "answers": n + 1} for n in range(4)]
trial(
    "there is no field",
    lambda folder, said: rows(folder, *RENAMED).train(),
    the_named_field,
)
trial(
    "{} has {} problems, and --config.data.heldout_size",
    lambda folder, said: rows(folder, *ROWS, heldout_size=4).train(),
    *(
        lambda folder, said, which=which: [
            getattr(rows(folder, *ROWS, heldout_size=int(size)), which)()[0]
            for size in re.search(r"between (\d+) and (\d+)", said).groups()
        ]
        for which in ("train", "heldout")
    ),
    lambda folder, said: rows(
        folder, *ROWS, heldout_path=str(folder / "data.jsonl")
    ).train(),
)
MIXED = [Problem(str(n), f"What is {n} + 1?", str(n + 1), level=n) for n in range(4)]


class InMemory:
    """A source of four problems."""

    def train(self) -> list[Problem]:
        return MIXED

    heldout = train


def mix(**how: Any) -> None:
    assert Mixture({"a": Part(InMemory(), **how)}).train()


trial(
    "widen its languages, levels and lengths, or give it weight 0",
    lambda folder, said: mix(min_level=9),
    lambda folder, said: mix(min_level=1),
    lambda folder, said: Mixture(
        {"a": Part(InMemory(), 0.0, min_level=9), "b": Part(InMemory())}
    ).train(),
)
trial(
    "--config.data.parts.{}.weight is {}: it must be 0 or more",
    lambda folder, said: mix(weight=-1.0),
    lambda folder, said: Mixture(
        {"a": Part(InMemory(), 0.0), "b": Part(InMemory())}
    ).train(),
)
trial(
    "no part of the mixture has a weight above 0; give one a weight",
    lambda folder, said: mix(weight=0.0),
    lambda folder, said: mix(weight=0.5),
)
trial(
    "--config.data.words is {}: it must be at least 1",
    lambda folder, said: Decontaminated(InMemory(), words=0).train(),
    lambda folder, said: Decontaminated(InMemory(), words=1).train(),
)
trial(
    "the data has no file; set",
    lambda folder, said: Table().train(),
    lambda folder, said: (
        rows(folder, *ROWS),
        overrides.override(
            changed({"data": Table(heldout_size=1)}),
            [f"--config.data.path={folder}/data.jsonl"],
        ).data.train(),
    ),
)
trial(
    "there is no file {}; check --config.data.path",
    lambda folder, said: Table(path=str(folder / "none.jsonl")).train(),
    lambda folder, said: rows(folder, *ROWS).train(),
)
trial(
    "files of several kinds ({}); name a file",
    lambda folder, said: (
        rows(folder, *ROWS),
        (folder / "a.csv").write_text("question,answer\n1?,1\n2?,2\n"),
        Table(path=str(folder)).train(),
    ),
    lambda folder, said: Table(path=str(folder / "data.jsonl"), heldout_size=1).train(),
)
trial(
    "check it and its permissions",
    lambda folder, said: Table(path=str(folder / ("x" * 300))).train(),
    lambda folder, said: rows(folder, *ROWS).train(),
)
trial(
    "has no rows; give a file that has some",
    lambda folder, said: rows(folder, heldout_size=0).train(),
    lambda folder, said: rows(folder, *ROWS).train(),
)


def csv(folder: Path, text: str) -> Table:
    """A source of a CSV file."""
    (folder / "data.csv").write_text(text)
    return Table(path=str(folder / "data.csv"), heldout_size=1)


def parquet(folder: Path, content: bytes | None = None) -> Table:
    """A source of a parquet file; of these bytes in its place."""
    path = folder / "data.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    if content is not None:
        path.write_bytes(content)
    return Table(path=str(path), heldout_size=1)


def saved_set(folder: Path, state: str) -> Table:
    """A source of a folder as `datasets` saves it, with this state.json."""
    source = parquet(folder)
    (folder / "state.json").write_text(state)
    return replace(source, path=str(folder))


GOOD_CSV = "question,answer\n1?,1\n2?,2\n"
trial(
    "put values with a delimiter in them in double quotes",
    lambda folder, said: csv(folder, GOOD_CSV + "1, 2?,3\n").train(),
    lambda folder, said: csv(folder, GOOD_CSV + '"1, 2?",3\n').train(),
)
trial(
    "put values with quotes in them in double quotes, and write the quotes twice",
    lambda folder, said: csv(folder, GOOD_CSV + '"1"x?,3\n').train(),
    lambda folder, said: csv(folder, GOOD_CSV + '"""1""x?",3\n').train(),
)
trial(
    "should hold the columns' names, and {}; write a name for each",
    lambda folder, said: csv(folder, "question,answer,answer\n").train(),
    lambda folder, said: csv(folder, "question,answer,other\n1?,1,1\n2?,2,2\n").train(),
)
trial(
    "copy it anew, by `git lfs pull` if it is a pointer",
    lambda folder, said: parquet(folder, b"version https://git-lfs").train(),
    lambda folder, said: parquet(folder).train(),
)
trial(
    "names no data files ({}: {}); save the data set anew",
    lambda folder, said: saved_set(folder, "{}").train(),
    lambda folder, said: saved_set(
        folder, '{"_data_files": [{"filename": "data.parquet"}]}'
    ).train(),
)
NO_CONVERSATION = [
    {"role": "user", "content": "1 + 1?"},
    {"role": "user", "content": "?"},
]
trial(
    '"{}" is no conversation: {}; mend it',
    lambda folder, said: rows(
        folder, *ROWS, {"question": NO_CONVERSATION, "answer": 2}, heldout_size=0
    ).train(),
    lambda folder, said: rows(
        folder, *ROWS, {"question": NO_CONVERSATION[:1], "answer": 2}, heldout_size=0
    ).train(),
)


def splits(folder: Path, **how: Any) -> Table:
    """A source of a folder with two splits."""
    for name in ("train", "test"):
        rows(folder, *ROWS)
        (folder / "data.jsonl").rename(folder / f"{name}.jsonl")
    return Table(path=str(folder), heldout_size=1, **how)


def with_flag(source: Table, said: str) -> None:
    flag = re.search(r"--config\.\S+", said)[0]
    assert overrides.override(changed({"data": source}), [flag]).data.train()


trial(
    "has the splits {}, and none is {}; set",
    lambda folder, said: splits(folder, split="tran").train(),
    lambda folder, said: with_flag(splits(folder, split="tran"), said),
)
trial(
    "has no splits, and so none that is {}; leave out",
    lambda folder, said: rows(folder, *ROWS, heldout_split="test").heldout(),
    lambda folder, said: rows(folder, *ROWS).heldout(),
)
trial(
    'the answer has no "{}" with the result after it',
    give(split_answer, "42", "line 1"),
    lambda folder, said: split_answer(
        "6 * 7\n" + named(said, 'as in "(.*?)"'), "line 1"
    ),
    lambda folder, said: rows(folder, *ROWS).train(),
)


def without_tfds(folder: Path, said: str) -> None:
    name = "jaxgrpo.data.gsm8k_builder"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, None)
        GSM8K().train()


def from_a_file(folder: Path, said: str) -> None:
    rows(folder, *[{"question": "6 * 7?", "answer": "#### 42"}] * 3)
    GSM8K(path=str(folder / "data.jsonl"), heldout_size=1).train()


trial(
    "which does not import here",
    without_tfds,
    from_a_file,
    lambda folder, said: is_an_extra(folder, said),
)


def set_of(
    folder: Path, make_source: Callable[..., Any], *lines: Any, **how: Any
) -> Any:
    """The held-out problems of a named set whose file has these lines."""
    rows(folder, *lines)
    return make_source(path=str(folder / "data.jsonl"), **how).heldout()


def bad_row(
    part: str, make_source: Callable[..., Any], bad: dict, good: dict, **how: Any
) -> None:
    """A bad row of a named set; and a good one in its place."""
    trial(
        part,
        lambda folder, said: set_of(folder, make_source, bad, **how),
        lambda folder, said: set_of(folder, make_source, good, **how),
    )


AIME_ROW = {"problem": "Find it.", "answer": "70", "id": "0"}
trial(
    "is a set to evaluate on and has nothing to train on",
    lambda folder, said: benchmarks.AIME25().train(),
    from_a_file,
)
trial(
    "has no file; fetch it from {} and set --config.data.path",
    lambda folder, said: benchmarks.AIME25().heldout(),
    lambda folder, said: set_of(folder, benchmarks.AIME25, AIME_ROW),
)
OLYMPIAD_ROW = {"id": 1, "question": "How many?", "is_multiple_answer": False}
bad_row(
    "a list of one text is wanted; mend it or drop the line",
    benchmarks.OlympiadBench,
    OLYMPIAD_ROW | {"final_answer": "2"},
    OLYMPIAD_ROW | {"final_answer": ["2"]},
)
MMLU_ROW = {f"option_{letter}": "1" for letter in "abcd"} | {
    "sample_id": "a/1",
    "question": "?",
}
bad_row(
    '"{}" is "{}": it must be one of {}',
    benchmarks.GlobalMMLULite,
    MMLU_ROW | {"answer": "E"},
    MMLU_ROW | {"answer": "D"},
    language="ko",
)


def mgsm(folder: Path, name: str, content: bytes) -> Any:
    """MGSM's problems of a folder with one file."""
    shutil.rmtree(folder / "mgsm", ignore_errors=True)
    (folder / "mgsm").mkdir()
    (folder / "mgsm" / name).write_bytes(content)
    return benchmarks.MGSM(path=str(folder / "mgsm")).heldout()


for part, name, content in (
    ("{} has no file mgsm_*.tsv; fetch them from {}", "README.md", b""),
    ("columns, separated by tabs; {} are wanted", "mgsm_ja.tsv", b"2 + 2? 4\n"),
):
    trial(
        part,
        lambda folder, said, name=name, content=content: mgsm(folder, name, content),
        lambda folder, said: mgsm(folder, "mgsm_ja.tsv", b"2 + 2?\t4\n"),
    )


KOREAN_ROWS = [{"question": "둘?", "answer": "#### 2"}] * 2


def korean(folder: Path, *lines: Any, **how: Any) -> Any:
    return set_of(
        folder, TranslatedGSM8K, *(lines or KOREAN_ROWS), **how, heldout_size=1
    )


def paired(folder: Path, *english: Any) -> Any:
    text = "".join(json.dumps(row) + "\n" for row in english)
    (folder / "en.jsonl").write_text(text)
    return korean(folder, language="ko", english_path=str(folder / "en.jsonl"))


trial(
    "nothing says its language; set",
    lambda folder, said: korean(folder),
    lambda folder, said: korean(folder, language=named(said, r"language=(\w+)")),
)
trial(
    "it is a translation of another row, or a wrong one; mend it or drop the line",
    lambda folder, said: paired(
        folder, KOREAN_ROWS[0], {"question": "3?", "answer": "#### 3"}
    ),
    lambda folder, said: paired(folder, *KOREAN_ROWS),
)
trial(
    "the English file has no row {}, only {}; give",
    lambda folder, said: paired(folder, KOREAN_ROWS[0]),
    lambda folder, said: paired(folder, *KOREAN_ROWS),
)
OCTOPUS_ROW = {"chosen": "#### 2", "reject": ""}
trial(
    '"prompt" is not MathOctopus',
    lambda folder, said: korean(
        folder, *[OCTOPUS_ROW | {"prompt": "둘?"}] * 2, language="ko"
    ),
    lambda folder, said: korean(
        folder,
        *[
            OCTOPUS_ROW
            | {
                "prompt": named(said, '"prompt".*?: "... (.*?)" is').replace(
                    "...", "둘?"
                )
            }
        ]
        * 2,
    ),
)
EN = {"languages": ("en",), "levels": (1,)}
trial(
    "arithmetic: size is {}; it must be at least 1",
    lambda folder, said: arithmetic.Arithmetic(**EN, size=0).train(),
    lambda folder, said: arithmetic.Arithmetic(**EN, size=1).train(),
)


def arithmetic_as_told(folder: Path, said: str) -> None:
    arithmetic.Arithmetic(
        languages=(named(said, "choose from ([a-z]*)"),), levels=(1,), size=1
    ).train()


trial(
    "is empty; choose from",
    lambda folder, said: arithmetic.Arithmetic(languages=(), levels=(1,)).train(),
    arithmetic_as_told,
)
trial(
    "arithmetic: {} has {}; choose from",
    lambda folder, said: arithmetic.Arithmetic(languages=("xx",), levels=(1,)).train(),
    arithmetic_as_told,
)
PROBLEMS = test_build.problems_of(1, 2, 3)
RATES = {problem.id: 0.5 for problem in PROBLEMS}


def rates_file(folder: Path, text: str) -> str:
    return named_file(folder, "rates.json", text)


def read_rates(text: str) -> Step:
    return lambda folder, said: read_pass_rates(rates_file(folder, text))


LINE = json.dumps({"id": "1", "solved": 1, "judged": 2})
trial("no pass rates can be read", read_rates("{"), read_rates(LINE))
trial("it holds no pass rates", read_rates("{}"), read_rates(json.dumps(RATES)))


def within(low: float, path: str | None = None) -> Step:
    def step(folder: Path, said: str) -> None:
        file = rates_file(folder, json.dumps(RATES)) if path is None else path
        assert len(problems_within(PROBLEMS, file, low, 1.0)) == 3

    return step


trial(
    "have a measured pass rate, and none lies",
    within(0.6),
    within(0.5),
    within(0.6, ""),
)
trial(
    "there are no problems to ask; check",
    give(ProblemOrder, [], 0),
    give(ProblemOrder, PROBLEMS, 0),
)
trial(
    "is not in [0, 2**32); set --config.seed=0",
    give(ProblemOrder, PROBLEMS, -1),
    give(ProblemOrder, PROBLEMS, 0),
)
trial(
    "the checkpoint's order of problems has",
    lambda folder, said: ProblemOrder(PROBLEMS, 0).restore(
        ProblemOrder(PROBLEMS, 7).state()
    ),
    lambda folder, said: ProblemOrder(
        PROBLEMS, int(named(said, r"--config.seed=(\d+)"))
    ).restore(ProblemOrder(PROBLEMS, 7).state()),
    lambda folder, said: ProblemOrder(PROBLEMS, 0),
)

# --- models ---

HF = json.loads((hf_folder.EMBEDDED / "config.json").read_text())


def model(
    folder: Path, spoil: Callable[[Path], Any] | None = None, **changes: Any
) -> Path:
    """A model folder, made anew and spoiled."""
    shutil.rmtree(folder / "model", ignore_errors=True)
    made = make_folder(folder / "model", **changes)
    if spoil:
        spoil(made)
    return made


def other_tokens(folder: Path) -> build.Tokenizer:
    """Returns a tokenizer that lacks one token."""
    tokens = tokenizer.load(hf_folder.EMBEDDED)
    vocab = tokens.hf.get_vocab()
    tokens.hf.get_vocab = lambda: dict(list(vocab.items())[1:])
    return tokens


def spoiled(
    part: str,
    spoil: Callable[[Path], Any],
    read: Callable[[Path], Any] = hf_folder.load_params,
) -> None:
    """A model folder that is refused; and copied anew."""
    trial(
        part,
        lambda folder, said: read(model(folder, spoil)),
        lambda folder, said: read(model(folder)),
    )


BARE = {"architectures": ["LlamaForCausalLM"]}


def indexed(folder: Path, index: Any) -> None:
    (folder / tensors.INDEX).write_text(json.dumps(index))


def drop_tensor(folder: Path) -> None:
    found = load_file(folder / "model.safetensors")
    del found["model.norm.weight"]
    save_file(found, folder / "model.safetensors")


spoiled(
    "no *.safetensors: only that format is read",
    lambda folder: (folder / "model.safetensors").unlink(),
)
spoiled("is no index ({}: {}): copy it anew", lambda folder: indexed(folder, []))
spoiled(
    "files its index names",
    lambda folder: indexed(folder, {"weight_map": {"a": "none.safetensors"}}),
)
spoiled(
    "cannot be read ({}: {}): copy it anew",
    lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 20),
)
spoiled(
    "give a Hugging Face folder (config.json",
    lambda folder: (folder / "config.json").unlink(),
)
spoiled(
    "{} is not JSON ({}): copy it anew",
    lambda folder: (folder / "config.json").write_text("{"),
    hf_folder.load_config,
)
spoiled(
    "not an object: copy it anew",
    lambda folder: (folder / "config.json").write_text("[]"),
)
spoiled(
    "{} lacks {}: copy it anew",
    lambda folder: (folder / "config.json").write_text(json.dumps(BARE)),
)
spoiled("{} lacks {} of {} tensors, first {}: copy it anew", drop_tensor)
trial(
    "is there already: name a folder that is not",
    lambda folder, said: hf_folder.save(
        hf_folder.load_params(model(folder)), folder / "model", folder / "model"
    ),
    lambda folder, said: hf_folder.save(
        hf_folder.load_params(folder / "model"), folder / "model", folder / "new"
    ),
)
trial(
    "the one must divide the other",
    give(
        llama.config_from_hf, HF | {"num_attention_heads": 4, "num_key_value_heads": 3}
    ),
    give(
        llama.config_from_hf, HF | {"num_attention_heads": 4, "num_key_value_heads": 2}
    ),
)
trial(
    "{} is {}; computed here: {}",
    give(llama.config_from_hf, HF | {"hidden_act": "relu"}),
    lambda folder, said: llama.config_from_hf(
        HF | {"hidden_act": named(said, r"\('(.*)'\)")}
    ),
)
trial(
    "layer_types {}; computed here",
    give(
        qwen2.config_from_hf,
        HF | {"layer_types": ["chunked"] * HF["num_hidden_layers"]},
    ),
    give(
        qwen2.config_from_hf,
        HF | {"layer_types": ["full_attention"] * HF["num_hidden_layers"]},
    ),
)
THETA = {
    "rope_theta": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
trial(
    "move what rope_scaling says into rope_parameters",
    give(llama.config_from_hf, HF | THETA | {"rope_scaling": YARN}),
    give(
        llama.config_from_hf,
        HF | {"rope_theta": None, "rope_parameters": THETA["rope_parameters"] | YARN},
    ),
)
GEMMA = HF | {
    "rope_parameters": None,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 16,
}
LINEAR = {"rope_type": "linear", "factor": 8.0}
trial(
    "rope type {} is not computed here",
    give(
        llama.config_from_hf,
        HF | {"rope_parameters": LINEAR | {"rope_type": "longrope"}},
    ),
    *(
        give(llama.config_from_hf, HF | {"rope_parameters": settings})
        for settings in (LINEAR, YARN, {"rope_type": "default"})
    ),
)
trial(
    "of yarn only attention_factor is computed here",
    give(llama.config_from_hf, HF | {"rope_parameters": YARN | {"mscale": 1.0}}),
    give(
        llama.config_from_hf, HF | {"rope_parameters": YARN | {"attention_factor": 1.0}}
    ),
)
trial(
    "for this family all layers have the same",
    give(llama.config_from_hf, HF | {"rope_parameters": {"full_attention": LINEAR}}),
    give(llama.config_from_hf, HF | {"rope_parameters": LINEAR}),
)
trial(
    "for all layers; for this family it is",
    give(gemma3.config_from_hf, GEMMA | {"rope_parameters": LINEAR}),
    give(
        gemma3.config_from_hf,
        GEMMA
        | {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": {}}},
    ),
)
trial(
    "goes by the name of rope_type: rename it",
    give(
        gemma3.config_from_hf,
        GEMMA | {"rope_scaling": {"type": "linear", "factor": 8.0}},
    ),
    give(
        gemma3.config_from_hf,
        GEMMA | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
)
trial(
    "do not multiply to the {} devices here; {}",
    lambda folder, said: mesh.make_mesh(3, 1, 1, jax.devices()[:1]),
    lambda folder, said: mesh.make_mesh(
        **{"data": 3, "fsdp": 1, "tensor": 1}
        | {named(said, r"set mesh\.(\w+) to -1"): -1},
        devices=jax.devices()[:1],
    ),
)

trial(
    "the reference scores the model's own tokens",
    lambda folder, said: build.reference_network(
        changed({"reference": str(model(folder))}), other_tokens(folder)
    ),
    lambda folder, said: build.reference_network(
        changed({"reference": str(model(folder))}), tokenizer.load(hf_folder.EMBEDDED)
    ),
)

# --- problems, rewards ---

PROBLEM = Problem("1", "q?", "42")
trial(
    "a scheduled weight takes steps",
    give(Scheduled, right, 1.0, 0.0, 1),
    give(Scheduled, right, 1.0, 0.0, 2),
)
trial(
    "it must hold 0 <= weight <= max_weight",
    give(Driven, right, -1.0),
    give(Driven, right, 0.0),
    give(Driven, right, 10.0),
)
trial(
    "it must be letters and digits, such as think",
    give(layout.Tags, "<a>"),
    lambda folder, said: layout.Tags(named(said, "such as (.*)")),
)
trial(
    "they must have two names", give(layout.Tags, "a", "a"), give(layout.Tags, "a", "b")
)


@batched
def together(problem, texts):
    return [1.0 for _ in texts]


trial("and not a batched one", give(Gate, together, right), give(Gate, right, right))
trial(
    "a language threshold must be above 0",
    give(consistency.Threshold, "think", 0.0),
    give(consistency.Threshold, "think", 1.0),
)
trial(
    "is not one that can be told: use one of",
    give(consistency.word_ratios, "word", "tlh"),
    lambda folder, said: consistency.word_ratios(
        "word", named(said, "use one of ([a-z]*)")
    ),
)
trial(
    "buffer is {}: it must be above 0 and at most max_tokens",
    give(length.SoftOverlong, 10, 0),
    give(length.SoftOverlong, 10, 1),
    give(length.SoftOverlong, 10, 10),
)
trial(
    "max_tokens is {}: it must be at least 1",
    give(length.Cosine, right, 0),
    give(length.Cosine, right, 1),
)
trial(
    "it must be finite, right and wrong two numbers each",
    give(length.Cosine, right, 9, (1.0, float("inf"))),
    give(length.Cosine, right, 9, (1.0, 2.0), (0.0, 0.0), -1.0),
)
trial(
    "extract is {}: it must name some of",
    give(verifier.Accuracy, ("all",)),
    lambda folder, said: verifier.Accuracy(
        tuple(named(said, "it must name some of (.*)").split(", "))
    ),
)
trial(
    "it must be a share of the gold",
    give(verifier.Accuracy, ("boxed",), 1.0),
    lambda folder, said: verifier.Accuracy(
        ("boxed",), float(named(said, "for example (.*)"))
    ),
)
trial(
    "make it a function at the top level of a module",
    give(reward_name, lambda problem, text: 1.0),
    give(reward_name, verifier.accuracy),
)


@dataclass(frozen=True)
class Set:
    """A reward with a setting."""

    value: Any

    def __call__(self, problem, text):
        return 1.0


trial(
    "a reward's setting is {}: it must be a JSON value",
    give(reward_name, Set(object())),
    give(reward_name, Set(1.5)),
    give(reward_name, Set((1, 2))),
    give(reward_name, Set(verifier.accuracy)),
)
trial(
    "at most 1,000,000 seconds, got",
    give(Pool, {"accuracy": Weighted(verifier.accuracy)}, 1, 1e7),
    lambda folder, said: Pool(
        {"accuracy": Weighted(verifier.accuracy)}, 1, 1e6
    ).close(),
)
trial(
    "it must be finite and at most 0",
    give(repetition.Repetition, 2, 1.0),
    give(repetition.Repetition, 2, 0.0),
)

# --- rollout, run, train, evaluate ---


def missing(folder: Path, most: float) -> None:
    reasons = {(1, "accuracy"): "timeout"}
    group = make_group("a", [1.0, float("nan"), 0.0, 0.0], missing=reasons)
    check_missing_verdicts([group], most, folder / "missing.jsonl")


def resumed(name: str, value: float) -> Step:
    """A run whose bound is raised goes on."""

    def follow(folder: Path, said: str) -> None:
        configs.save(make(), str(folder))
        validate(changed({name: value}))
        configs.check_same(changed({name: value}), str(folder))

    return follow


trial(
    "mend the reward, or raise verifier.max_missing",
    lambda folder, said: missing(folder, 0.1),
    lambda folder, said: missing(folder, 0.25),
    resumed("verifier.max_missing", 0.25),
    resumed("verifier.max_missing", 1.0),
)
trial(
    "raise sampling.max_logprob_gap",
    lambda folder, said: train.check_agreement(make(), {"policy/logprob_gap_p99": 0.5}),
    lambda folder, said: train.check_agreement(
        changed({"sampling.max_logprob_gap": 0.5}), {"policy/logprob_gap_p99": 0.5}
    ),
    resumed("sampling.max_logprob_gap", 0.5),
)
trial(
    "are NaN or infinite",
    lambda folder, said: train.check_agreement(
        make(), {"policy/logprob_gap_p99": float("nan")}
    ),
    lambda folder, said: train.check_agreement(make(), {"policy/logprob_gap_p99": 0.0}),
)


def finished(folder: Path, said: str, **changes: Any) -> str:
    """What a run says whose summary is there."""
    saved = {"steps": 100, "accuracy_before": None, "accuracy_after": None}
    (folder / "summary.json").write_text(json.dumps(saved))
    configs.save(make(out=str(folder)), str(folder))
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        assert summary.is_finished(make(out=str(folder), **changes))
    return shown.getvalue()


def goes_on(folder: Path, said: str) -> None:
    more = make(out=str(folder), steps=101)
    configs.check_same(more, more.out)
    assert not summary.is_finished(more)
    # With a schedule that ends at the last step, too.
    falling = configs.Optimizer(schedule="linear")
    assert "to go on raise" in finished(folder, said, optimizer=falling)
    configs.save(dataclasses.replace(more, optimizer=falling), more.out)
    further = dataclasses.replace(more, optimizer=falling, steps=102)
    assert "to 0 at step 102" in configs.check_same(further, more.out)[0]


trial(
    "begin anew change --config.out",
    finished,
    goes_on,
    lambda folder, said: configs.check_same(
        make(out=str(folder / "other")), str(folder / "other")
    ),
)
trial(
    "evaluation.problems is 0: no evaluation; set",
    lambda folder, said: evaluate.main(
        ["--config", QUICKSTART, "--config.evaluation.problems=0"]
    ),
    lambda folder, said: load(QUICKSTART, [named(said, "set (.*)")]),
)
trial(
    "no checkpoint is evaluated",
    valid({"evaluation.keep_best": "accuracy"}),
    valid({"evaluation.keep_best": "accuracy", "evaluation.every": 1}),
    valid({"evaluation.keep_best": ""}),
)


def keep_best(score: str) -> Step:
    """A run that keeps the best checkpoint by a score, where the reward reads no answers."""
    rewards = {"accuracy": Weighted(languages.target_word_ratio)}
    values = {"rewards": rewards, "evaluation.every": 1, "evaluation.keep_best": score}
    return lambda folder, said: evaluate.check(changed(values))


trial(
    "reads no answers that could be counted",
    keep_best("maj_at_4"),
    lambda folder, said: keep_best(named(said, "set it to '(.*)'"))(folder, said),
)


def find_policy(name: str) -> Step:
    """Looks for a policy in a folder with a run and a model."""

    def step(folder: Path, said: str) -> None:
        if not (folder / "run").exists():
            make_folder(folder / "model")
            with Checkpoints(folder / "run", keep=1) as checkpoints:
                checkpoints.save(3, {"a": np.zeros(1)}, {})
        paths = (str(folder / name),)
        policies.find_policies(changed({"evaluation.policies": paths}))

    return step


trial(
    "it must be the --config.out of a run with checkpoints",
    find_policy("nothing"),
    find_policy("run"),
    find_policy("run/checkpoints/3"),
    find_policy("model"),
)


def make_filter(width: int, max_width: int | None = None) -> PromptFilter:
    return replace(test_build.make_filter(width), max_width=max_width)


LONG = test_build.problems_of(7, 9, 6)
trial(
    "there are no problems; {}",
    lambda folder, said: make_filter(5).check([], "held-out"),
    lambda folder, said: load(QUICKSTART, [named(said, r"set (\S*),")]),
    lambda folder, said: make_filter(9).check(LONG, "held-out"),
)


def widened(folder: Path, said: str) -> None:
    assert (
        make_filter(int(named(said, r"(\d+) takes all"))).check(LONG, "training")
        is None
    )


trial(
    "are longer than sampling.prompt_width={} tokens",
    lambda folder, said: make_filter(5).check(LONG, "x"),
    widened,
)
trial(
    "{} takes all", lambda folder, said: make_filter(6).check(LONG, "training"), widened
)


def too_long(folder: Path, width: int, new: int) -> None:
    sampling = configs.Sampling(prompt_width=width, max_new_tokens=new)
    build.check_positions(sampling, model(folder, max_position_embeddings=100))


trial(
    "are {} tokens, more than the {} positions",
    lambda folder, said: too_long(folder, 60, 60),
    lambda folder, said: too_long(
        folder, 60, int(named(said, r"max_new_tokens to (\d+)"))
    ),
)
trial(
    "it must be a multiple of mesh.data * mesh.fsdp",
    lambda folder, said: build._check_shards(make(), 3),
    lambda folder, said: build._check_shards(
        changed({"batch.groups": 6, "sampling.slots": 24}), 3
    ),
)

ASKED = b'{"question": "q", "answer": 1}'
trial(
    "too large for a number; write it as text",
    lambda folder, said: rows(
        folder, b'{"question": "q", "answer": 1e999}', ASKED
    ).train(),
    lambda folder, said: rows(
        folder, b'{"question": "q", "answer": "1e999"}', ASKED
    ).train(),
)


def spoken(folder: Path, said: str, by_row: str, **how: Any) -> None:
    line = json.dumps({"question": "q", "answer": 1, "language": by_row}).encode()
    rows(folder, line, ASKED, **{"language_field": "language"} | how).train()


trial(
    "not a language that can be told: {}; mend it, or set",
    lambda folder, said: spoken(folder, said, "Klingon"),
    lambda folder, said: spoken(folder, said, "pt-BR"),
    lambda folder, said: spoken(
        folder, said, "Klingon", language_field="", language="de"
    ),
)
trial(
    "--config.data.language is {}, not a language that can be told",
    lambda folder, said: rows(folder, ASKED, ASKED, language="Klingon").train(),
    lambda folder, said: rows(folder, ASKED, ASKED, language="en").train(),
)

# --- tokenizer ---


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def no_vocabulary(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        if file.name != "tokenizer_config.json":
            file.unlink()


spoiled("copy its tokenizer files there", no_tokenizer, tokenizer.load)
spoiled(
    "is not JSON ({}): copy it anew, or remove it",
    lambda folder: (folder / "generation_config.json").write_text("{"),
    tokenizer.load,
)


def without_ends(folder: Path) -> Path:
    """A model folder in which no file names an end token.

    It has no chat template, whose turns would end.
    """
    made = model(folder)
    for path in made.glob("*config.json"):
        found = json.loads(path.read_text())
        kept = {
            name: value
            for name, value in found.items()
            if "eos" not in name and "template" not in name
        }
        path.write_text(
            json.dumps(
                kept | ({"eos_token": None} if path.name.startswith("token") else {})
            )
        )
    return made


def end_token(folder: Path, said: str, **values: Any) -> None:
    path = without_ends(folder) / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    tokenizer.load(folder / "model")


EOS = json.loads((hf_folder.EMBEDDED / "tokenizer_config.json").read_text()).get(
    "eos_token"
)
trial(
    "set eos_token in its tokenizer_config.json",
    end_token,
    lambda folder, said: end_token(folder, said, eos_token=EOS),
)


def generation_ends(folder: Path, said: str, ends: Any) -> None:
    path = model(folder) / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": ends}))
    tokenizer.load(folder / "model")


trial(
    "and the tokenizer has no such token: mend it",
    lambda folder, said: generation_ends(folder, said, 10**6),
    lambda folder, said: generation_ends(folder, said, [1]),
)
trial(
    "it must be a token's number, or a list of such numbers",
    lambda folder, said: generation_ends(folder, said, "</s>"),
    lambda folder, said: generation_ends(folder, said, 1),
    lambda folder, said: generation_ends(folder, said, [1, 2]),
)
spoiled(
    "not an object: copy it anew, or remove it",
    lambda folder: (folder / "generation_config.json").write_text("[1]"),
    tokenizer.load,
)


def template(folder: Path, said: str, text: str | None) -> None:
    made = model(folder)
    path = made / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": text}))
    tokenizer.load(made)


trial(
    "the chat template in {} cannot ask a question ({}): mend it there",
    lambda folder, said: template(folder, said, "{{ nothing"),
    lambda folder, said: template(folder, said, "{{ messages[0]['content'] }}"),
    lambda folder, said: template(folder, said, None),
)


def matched(folder: Path, said: str, **changes: Any) -> None:
    made = model(folder, **changes)
    build.match_tokenizer(made, hf_folder.load_config(made), tokenizer.load(made))


trial(
    "copy the model's own tokenizer files there",
    lambda folder, said: matched(folder, said, vocab_size=512),
    matched,
)
trial(
    "which cannot be told; its source must give one of {}",
    give(
        test_build.make_filter(9).check, [Problem("1", "x", "1", "Klingon")], "training"
    ),
    give(
        test_build.make_filter(9).check, [Problem("1", "x", "1", "Polish")], "training"
    ),
)
trial(
    "give the tokenizer's own model in --config.model",
    lambda folder, said: replace(test_build.make_filter(9), vocab_size=9).check(
        ROW_PROBLEMS, "training"
    ),
    lambda folder, said: test_build.make_filter(9).check(ROW_PROBLEMS, "training"),
)

# --- supervised training ---


def sft_config(**values: Any) -> Step:
    """Validates a config of supervised training."""
    config = SFTConfig(data=make().data)
    for name, value in values.items():
        setattr(config, name, value)
    return give(validate_sft, config)


trial(
    "it must be a function of a problem that returns the completion to learn",
    sft_config(solution="text"),
    sft_config(solution=Solution()),
)
trial(
    "packing.micro_batch is {}: it must divide packing.rows={}",
    sft_config(packing=Packing(rows=8, micro_batch=3)),
    sft_config(packing=Packing(rows=8, micro_batch=2)),
    sft_config(packing=Packing(rows=8, micro_batch=4)),
)
BEST = Evaluation(every=1, keep_best="accuracy")
trial(
    "without rewards nothing is sampled that could be scored",
    sft_config(evaluation=BEST),
    sft_config(evaluation=replace(BEST, keep_best="")),
    sft_config(evaluation=BEST, rewards=make().rewards),
)


class EndingLetters(test_build.Letters):
    """A tokenizer with an end token."""

    eos_token_id = 0


def make_examples(
    width: int, solution: Callable[[Problem], Any] = lambda problem: "so"
) -> ExampleMaker:
    """Makes examples of two tokens and the end after the prompt."""
    letters = tokenizer.Tokenizer(EndingLetters(), (0,), 0)
    return ExampleMaker(letters, "", solution, width, vocab_size=1000)


def packed_wider(folder: Path, said: str) -> None:
    width = int(named(said, r"packing.width=(\d+) takes all"))
    assert make_examples(width).check(LONG, "training") is None


trial(
    "raise packing.width, or take shorter ones",
    lambda folder, said: make_examples(8).check(LONG, "training"),
    packed_wider,
    lambda folder, said: make_examples(8).check(test_build.problems_of(5), "training"),
)
trial(
    "packing.width={} takes all",
    lambda folder, said: make_examples(9).check(LONG, "training"),
    packed_wider,
)
trial(
    "it must be a text; mend the data, or the function --config.solution",
    lambda folder, said: make_examples(9, lambda problem: None)(ROW_PROBLEMS[0]),
    lambda folder, said: make_examples(9)(ROW_PROBLEMS[0]),
)


def thoughts(folder: Path, chat: Any = None, **how: Any) -> Problem:
    """A problem of a file whose worked solutions are called otherwise."""
    row = {"question": "q", "answer": 1, "thoughts": "so", "chat": chat}
    return rows(folder, row, heldout_size=0, **how).train()[0]


trial(
    "to a Table's field that holds worked solutions, or --config.solution.field to",
    lambda folder, said: Solution()(thoughts(folder)),
    lambda folder, said: Solution()(thoughts(folder, solution="thoughts")),
    lambda folder, said: Solution("thoughts")(thoughts(folder)),
)
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "so"}]
trial(
    '"{}" is a list that does not end with a text of the assistant; mend it',
    lambda folder, said: thoughts(folder, chat=CHAT[:1], solution="chat"),
    lambda folder, said: thoughts(folder, chat=CHAT, solution="chat"),
    lambda folder, said: thoughts(folder, chat=CHAT[:1], solution="thoughts"),
)

# --- tools ---

LOGPROBS = {
    "rows": 1,
    "width": 4,
    "vocab": 8,
    "chunk": 8,
    "dtype": "float32",
    "compile_only": True,
}
trial(
    "leaves nothing to choose: it must be at least 2",
    give(logprobs.bench_logprobs, argparse.Namespace(**LOGPROBS, length=1)),
    give(logprobs.bench_logprobs, argparse.Namespace(**LOGPROBS, length=2)),
)
trial(
    "--topology {}: it must be like",
    give(chips.parse_topology, "v5e"),
    lambda folder, said: [
        chips.parse_topology(name) for name in re.findall(r"(?:v|tpu)\d\w?:\S*\d", said)
    ],
)


def without_libtpu(folder: Path, said: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", dict(os.environ))
        patch.setitem(sys.modules, "libtpu", None)
        chips.topology_devices("v5e:2x2")


def is_an_extra(folder: Path, said: str) -> None:
    """What is to be installed is what pyproject.toml has under that name, or asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted, extras = (
        named(said, "pip install '(.*?)'"),
        project["optional-dependencies"],
    )
    assert wanted in {f"jaxgrpo[{name}]" for name in extras} | {
        one for extra in extras.values() for one in extra
    }


trial("needs libtpu: pip install", without_libtpu, is_an_extra)


def without_what_training_needs(folder: Path, said: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            command.PROGRAMS, "train", command.Program("a_module_that_is_missing", "")
        )
        command.run_program(["train"])


trial("which is not installed: pip install", without_what_training_needs, is_an_extra)


def the_named_program(folder: Path, said: str) -> None:
    program = command.PROGRAMS[named(said, r"did you mean (.*)\?")]
    assert callable(importlib.import_module(program.module).main)


trial(
    "there is no such program; {}",
    give(command.run_program, ["trian"]),
    the_named_program,
)


def a_run(folder: Path, config: Any = None) -> dict:
    (folder / "config.json").write_text(
        json.dumps({"model": ""} if config is None else config)
    )
    return export.read_run(folder)


trial(
    "holds no run (no config.json): give the",
    lambda folder, said: export.read_run(folder),
    lambda folder, said: a_run(folder),
)
trial(
    "is no run's ({}: {}): give the",
    lambda folder, said: a_run(folder, {"data": 1}),
    lambda folder, said: a_run(folder),
)
trial(
    "--memory is {}: it must be above 0",
    give(plan.parse, ["--config", QUICKSTART, "--memory", "0"]),
    give(plan.parse, ["--config", QUICKSTART, "--memory", "0.5"]),
)
trial(
    "it must be from 1 to sampling.max_new_tokens",
    give(times.assume, make(), 10**6, None),
    lambda folder, said: times.assume(
        make(), int(named(said, r"max_new_tokens=(\d+)")), None
    ),
)
trial(
    "--kept is {}: it must be above 0 and at most 1",
    give(times.assume, make(), None, 0.0),
    give(times.assume, make(), None, 1.0),
)


trial(
    "the prompt is empty: give one",
    give(language_model.check_length, hf_folder.EMBEDDED, 0, 9),
    give(language_model.check_length, hf_folder.EMBEDDED, 1, 9),
)
trial(
    "that {} was made for: shorten it{}",
    give(language_model.check_length, hf_folder.EMBEDDED, 2000, 100),
    give(language_model.check_length, hf_folder.EMBEDDED, 1948, 100),
    lambda folder, said: language_model.check_length(
        hf_folder.EMBEDDED, 2000, int(named(said, r"max_tokens to (\d+)"))
    ),
)
trial(
    "holds no steps (metrics.jsonl)",
    lambda folder, said: read_runs([folder]),
    lambda folder, said: read_runs([make_run(folder / "run")]),
)
trial(
    "a folder is given twice",
    lambda folder, said: read_runs([make_run(folder / "run")] * 2),
    lambda folder, said: read_runs([folder / "run"]),
)
trial(
    "holds no completions (rollouts.jsonl)",
    lambda folder, said: list(read_groups(folder)),
    lambda folder, said: list(read_groups(make_run(folder / "run"))),
)
trial(
    "is empty: no step has been written yet",
    lambda folder, said: show.groups_of(make_run(folder / "run", groups=0), None),
    lambda folder, said: show.groups_of(make_run(folder / "other"), None),
)
trial(
    "; --config.show_rollouts_every=1 writes some",
    lambda folder, said: show.groups_of(make_run(folder / "run"), 99),
    lambda folder, said: show.groups_of(
        folder / "run", int(named(said, r"choose one of (\d+)"))
    ),
    lambda folder, said: load(QUICKSTART, [named(said, r"; (--config\S+)")]),
)
trial(
    "give fewer runs",
    lambda folder, said: page.make_page([make_run(folder / "run")], max_bytes=10),
    lambda folder, said: page.make_page([folder / "run"]),
)


def without(module: str, function: Callable, *arguments: Any) -> None:
    """Calls a function where a module is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module, None)
        function(*arguments)


page_library = page.charts_library.__wrapped__  # it is kept once it was read
trial(
    "the page's charts need vl-convert-python",
    give(without, "vl_convert", page_library),
    is_an_extra,
    give(page_library),
)
trial(
    "the colours need rich",
    give(without, "rich.console", show.make_console),
    is_an_extra,
    give(show.make_console),
)

MESSAGES = check_advice.messages()


def part_of(message: check_advice.Message, parts: Any) -> str | None:
    """The part by which a message is known: its whole text, or else the longest that it holds."""
    exact = [part for part in parts if part == message.text]
    held = [
        part
        for part in parts
        if part in message.text and not part.startswith("{} is {}: it must be")
    ]
    return max(exact or held, key=len, default=None)


@pytest.mark.parametrize(
    "message", MESSAGES, ids=lambda message: f"{message.path}:{message.line}"
)
def test_every_message_that_gives_advice_has_a_trial(message):
    assert part_of(message, [*TRIALS, *ELSEWHERE]), (
        f"{message.text!r} has no row in tests/test_advice.py"
    )


def test_every_trial_is_of_a_message():
    known = {part_of(message, [*TRIALS, *ELSEWHERE]) for message in MESSAGES}
    assert not [part for part in [*TRIALS, *ELSEWHERE] if part not in known]


@pytest.mark.parametrize("place", ELSEWHERE.values())
def test_the_tests_elsewhere_are_there(place):
    file, _, name = place.partition("::")
    assert f"def {name}(" in (ROOT / "tests" / file).read_text()


@pytest.mark.parametrize("part", TRIALS)
def test_the_advice_can_be_followed(part, tmp_path):
    provoke, ways = TRIALS[part]
    try:
        said = provoke(tmp_path, "")
    except UserError as error:
        said = str(error)
    assert isinstance(said, str)
    own = [
        message
        for message in MESSAGES
        if part_of(message, [*TRIALS, *ELSEWHERE]) == part
    ]
    assert any(message.pattern.search(said) for message in own), said
    assert ways, "the advice is not followed"
    for follow in ways:
        follow(tmp_path, said)
