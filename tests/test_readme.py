"""What the README and the documentation show works, and what they point to is there."""

import argparse
import importlib
import inspect
import re
import shlex
import sys
import tomllib
from pathlib import Path

import jax.numpy as jnp
import pytest

from jaxgrpo import config as run_config
from jaxgrpo.__main__ import PROGRAMS as CONSOLE_PROGRAMS
from jaxgrpo.__main__ import run_program
from jaxgrpo.config.command_line import split
from jaxgrpo.plan import command as plan_command
from jaxgrpo.problems import Completion, Problem
from jaxgrpo.rewards.workers.pool import Pool
from tests.documents import BY_NAME, DOCUMENTS, README, ROOT
from tests.tiny_runs import share_programs
from tools.profile import __main__ as profile_command

TINY = (
    "--config.steps=1",
    "--config.batch.groups=2",
    "--config.batch.group_size=2",
    "--config.batch.updates=2",
    "--config.batch.micro_batch=0",
    "--config.sampling.max_new_tokens=8",
    "--config.sampling.slots=3",
    "--config.filter.max_prompts=1",
    "--config.evaluation.problems=2",
    "--config.evaluation.samples=1",
    "--config.verifier.workers=1",
    "--config.verifier.deadline=30",
)
"""Sizes of a run that takes seconds."""

RUN = (
    "python -m jaxgrpo.train --config configs/quickstart.py",
    "jaxgrpo evaluate --config quickstart",
    "jaxgrpo sample --run out/quickstart "
    '--prompt "Mia has 12 apples. She buys 7 more. How many apples does Mia have now?"',
    "jaxgrpo export --run out/quickstart --to my-model",
)
"""Commands that are run here, one after the other, with TINY sizes."""

PARSED = {
    "jaxgrpo.train": "each takes minutes, or a model's folder; one of them is run",
    "jaxgrpo.evaluate": "one of them is run",
    "jaxgrpo.sample": "one of them is run",
    "jaxgrpo.sft": "takes minutes; tests/test_sft_runs.py runs a small one",
    "jaxgrpo.export": "one of them is run; tests/test_export.py runs the others",
    "jaxgrpo.plan": "needs libtpu; tests/test_plan.py runs it, and CI where there is libtpu",
    "tools.plan_growth": "needs libtpu, and minutes",
    "tools.profile": "takes a minute; tests/test_profile.py runs it on a tiny run",
    "tools.compiled_table": "needs libtpu, and minutes; tests/test_compiled_table.py",
    "tools.show": "needs a run; tests/test_show.py",
    "tools.report": "needs a run; tests/test_report_page.py",
    "tools.bench": "takes minutes; tests/test_bench.py runs each with other sizes",
    "tools.compare": "takes an hour; tests/test_compare.py",
    "tools.check_math": "needs the data sets",
    "tools.check_language": "needs the data sets",
    "tools.make_tiny_model": "takes 23 minutes",
    "tools.translate": "needs an endpoint; tests/test_translate.py has one",
    "tools.run_notebook": "needs Jupyter's kernel; CI runs it",
}
"""Programs whose commands are parsed by the program itself, and why not all of them are run."""

NOT_PARSED = {
    "bash .ci/run": "it is what runs these tests",
    "mypy": "a stage of CI",
    "ruff check": "a stage of CI",
    "ruff format --check": "says nothing about the package",
    "mkdocs build --strict -f .mkdocs.yml": "a stage of CI",
    "mkdocs serve -f .mkdocs.yml": "serves until it is stopped",
    "cd jaxgrpo": "on another machine",
    "hf download openai/gsm8k --repo-type dataset --local-dir openai/gsm8k": (
        "the hub's own program, which needs a network"
    ),
}
"""Commands of which nothing is checked but that they are these, and why."""

PLACES = {
    "FILE": "quickstart",
    "HOST:PORT": "10.0.0.2:8476",
    "N": "2",
    "I": "1",
}
"""What a reader puts in the place of a word in capitals, where the word itself will not do."""

MACHINES = ("gcloud", "srun", "xpk")
"""Commands that start a command of ours on machines that are not here."""

BLOCKS = {
    block: document.name
    for document in reversed(DOCUMENTS)
    for block in document.blocks("python")
}
"""Every block of Python, and the document that it is in."""

COMMANDS = sorted(
    {
        command.strip()
        for document in DOCUMENTS
        for line in document.commands()
        for command in line.split("#")[0].split(" && ")
        if not line.startswith(MACHINES)
    }
    | {
        line
        for document in DOCUMENTS
        for line in document.commands()
        if line.startswith(MACHINES)
    }
)


def python_block(document: str, holds: str) -> str:
    """Returns the one block of a document that holds a text."""
    (block,) = [block for block in BY_NAME[document].blocks("python") if holds in block]
    return block


def write_modules(document: str, folder: Path, monkeypatch) -> None:
    """Writes the blocks that begin with `# name.py` as modules that can be imported."""
    for block in BY_NAME[document].blocks("python"):
        name = re.match(r"# (\w+\.py)\n", block)
        if name:
            (folder / name[1]).write_text(block, encoding="utf-8")
            monkeypatch.delitem(sys.modules, name[1].removesuffix(".py"), raising=False)
    monkeypatch.syspath_prepend(folder)


def execute(block: str) -> dict:
    names: dict = {"__name__": "example"}
    exec(compile(block, "example", "exec"), names)
    return names


# 1. Blocks of Python.


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_every_example_runs(block, tmp_path, monkeypatch):
    write_modules(BLOCKS[block], tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    load = run_config.load

    def load_tiny(path, flags):
        return load(path, [*flags, *TINY, f"--config.out={tmp_path}/run"])

    # The notebook's example trains.
    share_programs(monkeypatch)
    monkeypatch.setattr(run_config, "load", load_tiny)
    execute(block)


def test_the_losses_example_is_on_policy():
    names = execute(python_block("docs/losses.md", "batch_loss"))
    # ratio 1, no KL, advantages that sum to nothing
    assert names["value"] == pytest.approx(0.0, abs=1e-6)
    assert all(jnp.abs(leaf).max() > 0 for leaf in names["gradient"].values())


def test_the_reward_examples_run_in_workers(tmp_path, monkeypatch):
    write_modules("docs/extending.md", tmp_path, monkeypatch)
    names = execute(python_block("docs/extending.md", "# the config's rewards"))
    texts = ["Please, \\boxed{42}", "Please, \\boxed{42}", "The answer is \\boxed{41}"]
    completions = [
        Completion(text, tokens)
        for text, tokens in zip(texts, (50, 51, 9), strict=True)
    ]
    with Pool(names["rewards"], 1, deadline=30.0) as pool:
        first, second, third = pool.result(
            pool.submit(Problem("1", "6 * 7?", "42"), completions)
        )
    assert first == {
        "accuracy": 1.0,
        "language": 1.0,
        "polite": 1.0,
        "short": 1.0,
        "different": 0.5,
    }
    assert second == first | {"short": 0.0}
    assert third == {
        "accuracy": 0.0,
        "language": 0.0,
        "polite": 0.0,
        "short": 1.0,
        "different": 1.0,
    }


# 2. Commands.


def test_the_readme_has_its_two_commands():
    lines = README.text.splitlines()
    assert (
        "    pip install -e '.[train]' && python -m jaxgrpo.train --config configs/quickstart.py"
        in lines
    )
    assert "    pip install -e '.[test]' && pytest -n auto" in lines


def test_a_run_goes_as_the_readme_shows(tmp_path, monkeypatch, capsys):
    assert set(RUN) <= set(COMMANDS)
    monkeypatch.chdir(tmp_path)
    share_programs(monkeypatch, draws_plot=True)
    for command in RUN:
        run_here(shlex.split(command))
    assert (tmp_path / "my-model" / "model.safetensors").exists()
    said = capsys.readouterr().out
    assert " 1/1 " in said
    assert "--- sample 3" in said
    # The files that the README lists.
    (table,) = re.findall(
        r"In `(out/quickstart)` then lie\n\n((?:\|.*\n)+)", README.text
    )
    for name in re.findall(
        r"`([\w./]+)`", re.sub(r"\|[^|]*\|$", "", table[1], flags=re.M)
    ):
        assert (tmp_path / table[0] / name).exists(), name


def run_here(words: list[str]) -> None:
    """Runs a command `jaxgrpo PROGRAM ...` or `python -m MODULE ...` in this process."""
    module, arguments = program_of(words)
    if module in ("jaxgrpo.train", "jaxgrpo.evaluate"):
        arguments = [*arguments, *TINY]
    if words[0] == "jaxgrpo":
        run_program([words[1], *arguments])
    else:
        importlib.import_module(module).main(arguments)


def program_of(words: list[str]) -> tuple[str, list[str]]:
    """Returns the module of a command, and its arguments."""
    if words[0] == "jaxgrpo":
        module = CONSOLE_PROGRAMS[words[1]].module
        return re.sub(r"\.(command|program)$", "", module), words[2:]
    assert words[:2] == ["python", "-m"], words
    return words[2], words[3:]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_can_be_given(command, monkeypatch):
    check(command, monkeypatch)


def check(command: str, monkeypatch) -> None:
    """Fails if a command is not one that its program takes."""
    if command in NOT_PARSED:
        return
    words = shlex.split(command)
    if words[0] in MACHINES:
        inner = (
            " ".join(words[words.index("python") :]) if "python" in words else words[-1]
        )
        for part in inner.removeprefix("--command=").split(" && "):
            check(part, monkeypatch)
    elif words[0] == "pip":
        check_install(words)
    elif words[0] == "pytest":
        assert all(
            (ROOT / word).exists() for word in words[1:] if word.startswith("tests")
        )
    else:
        check_program(words, monkeypatch)


def check_install(words: list[str]) -> None:
    """Fails if `pip install` names an extra that the package has not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    assert words[1] == "install"
    target = re.fullmatch(r"(\.|jaxgrpo|jax)(?:\[([\w,]+)\])?", words[-1])
    assert target, words
    if target[1] != "jax" and target[2]:
        assert set(target[2].split(",")) <= set(project["optional-dependencies"])


def check_program(words: list[str], monkeypatch) -> None:
    """Fails if a program of ours does not take these arguments."""
    module, arguments = program_of(words)
    assert module in PARSED, f"{module}: run it in RUN, or say in PARSED why not"
    if module in ("jaxgrpo.train", "jaxgrpo.evaluate"):
        path, flags, _ = split(arguments)
        load_config(path or "FILE", flags)
    elif module == "jaxgrpo.sft":
        path, flags, _ = split(arguments)
        run_config.load_sft(path or "sft", flags)
    elif module == "jaxgrpo.plan":
        if arguments:
            _, path, flags = plan_command.parse(arguments)
            load_config(path, flags)
    elif module == "tools.profile":
        _, path, flags = profile_command.parse(arguments)
        load_config(path, flags)
    elif arguments:
        parse_only(module, arguments, monkeypatch)
    else:
        importlib.import_module(module)


def load_config(path: str, flags: list[str]) -> None:
    """Fails if a config or its flags are refused."""
    placed = []
    for flag in flags:
        name, _, value = flag.partition("=")
        placed.append(f"{name}={PLACES.get(value, value)}")
    run_config.load(PLACES.get(path, path), placed)


class ParsedError(Exception):
    """The command line has been parsed; the program goes no further."""


def parse_only(module: str, arguments: list[str], monkeypatch) -> None:
    """Calls a program's main until it has parsed its arguments; a bad one raises SystemExit(2)."""
    parse = argparse.ArgumentParser.parse_known_args

    # parse_args calls this one, too, and subcommands do.
    def parse_and_stop(parser, args=None, namespace=None):
        _, unknown = parse(parser, args, namespace)
        assert not unknown
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    has_main = importlib.import_module(module)
    if not hasattr(has_main, "main"):
        has_main = importlib.import_module(f"{module}.__main__")
    parameters = inspect.signature(has_main.main).parameters
    wanted = [arguments] if parameters else []
    with pytest.raises(ParsedError):
        has_main.main(*wanted)


# 3. Links.


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_link_leads_somewhere(document):
    for link in document.links():
        assert link.startswith("https://") or (document.path.parent / link).exists(), (
            link
        )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_config_is_there(document):
    for name in re.findall(r"configs/\w+\.py", document.text):
        assert (ROOT / name).exists(), name
    # Names in the table of plans stand without their folder.
    for name in re.findall(r"`(\w+_v[56]\w*\.py)`", document.text):
        assert (ROOT / "configs" / name).exists(), name
