"""Whole runs of supervised training: what is learned, and that stopping changes nothing."""

import argparse
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxgrpo import evaluate, metrics
from jaxgrpo.build import Run, build_run
from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.config import describe, load_sft, validate_sft
from jaxgrpo.config.command_line import run_main
from jaxgrpo.data.examples import THINK_THEN_ANSWER, ExampleMaker, Solution
from jaxgrpo.data.table import Table
from jaxgrpo.distributed.mesh import named_leaves, to_device
from jaxgrpo.errors import UserError
from jaxgrpo.export import export
from jaxgrpo.losses import Supervised
from jaxgrpo.models import hf_folder
from jaxgrpo.problems import Problem
from jaxgrpo.run_state import first_state
from jaxgrpo.sft import sft
from jaxgrpo.sft.build import build
from jaxgrpo.sft.packing import count_examples, pack
from jaxgrpo.sft.program import main
from jaxgrpo.text import tokenizer
from tests.chat_folders import make_chat_folder
from tests.test_sft import unpack
from tests.tiny_runs import (
    SFT_TEXT,
    config_file,
    lines,
    make_config,
    make_sft_config,
    share_programs,
)
from tools import make_tiny_model


@pytest.fixture(autouse=True)
def _programs(monkeypatch):
    share_programs(monkeypatch)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Returns the config of a run of one pass that nobody interrupted, and what it yielded."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        share_programs(monkeypatch, draws_plot=True)
        config = make_sft_config(tmp_path_factory.mktemp("unbroken"))
        return config, list(sft(config))


def state_of(config):
    """Returns the newest checkpoint: the train state, and what the host saved."""
    with build(config) as sft_run:
        like = sft_run.run.programs.state_like
        return jax.device_get(Checkpoints(config.out).restore(like))


def test_a_pass_learns_every_example_once(unbroken):
    config, yielded = unbroken
    written = lines(Path(config.out) / "metrics.jsonl")
    assert [record.keys() for record in written] == [step.keys() for step in yielded]
    assert sum(step["data/examples"] for step in yielded) == 24
    assert yielded[-1]["data/epoch"] == 1.0
    with build(config) as sft_run:
        assert len(yielded) == sft_run.run.config.steps
        problems = config.data.train()
        tokens = sum(
            len(sft_run.make_example(problem).completion) for problem in problems
        )
    assert sum(step["update/tokens"] for step in yielded) == tokens
    assert yielded[0]["optimizer/learning_rate"] == pytest.approx(1e-2)


def test_it_leaves_what_a_run_leaves(unbroken):
    config, yielded = unbroken
    out = Path(config.out)
    assert {path.name for path in out.iterdir()} >= {
        "before.json",
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "metrics.png",
        "summary.json",
        "tensorboard",
    }
    summary = json.loads((out / "summary.json").read_text())
    assert summary["loss_after"] < summary["loss_before"] - 0.5
    assert summary["accuracy_after"] is not None
    # The last evaluation was made once, after the last step.
    assert yielded[-1]["evaluation/loss"] == summary["loss_after"]
    assert {"evaluation/accuracy", "evaluation/en/loss"} <= yielded[-1].keys()
    before = json.loads((out / "before.json").read_text())
    assert before["problems"] == config.evaluation.problems
    assert list(sft(config)) == []


def test_the_held_out_loss_is_that_of_completions_alone(unbroken):
    """Of one batch it is what an update says of it."""
    config, _ = unbroken
    before = json.loads((Path(config.out) / "before.json").read_text())
    with build(config) as sft_run:
        programs = sft_run.run.programs
        assert programs.shared_prompt_width == 0
        batches = [batch for held in sft_run.heldout.values() for batch in held]
        assert sum(map(count_examples, batches)) == 6
        # All languages together.
        examples = [example for batch in batches for example in unpack(batch)]
        (together,) = pack(examples, 4, 160, 0)
        state = programs.init_state(sft_run.run.load_params())
        placed = to_device(together, programs.row_sharding)
        _, step = programs.update(state, None, placed, Supervised(), 1.0)
    assert float(step["update/loss"]) == pytest.approx(before["loss"], rel=1e-5)


def test_a_signal_saves_and_going_on_changes_nothing(
    unbroken, tmp_path, monkeypatch, capsys
):
    path = config_file(tmp_path, SFT_TEXT)
    write = metrics.Writer.write

    def write_and_kill(self, step, values):
        write(self, step, values)
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(metrics.Writer, "write", write_and_kill)
    flags = ["--config.save_every=100", "--config.evaluation.problems=0"]
    monkeypatch.setattr(sys, "argv", ["sft", "--config", path, *flags])
    with pytest.raises(SystemExit) as stopped:
        run_main(main)
    assert stopped.value.code == 128 + signal.SIGTERM
    said = capsys.readouterr().out
    assert "stopped after step 1 of 3, which is saved in" in said
    assert max(len(line) for line in said.splitlines() if "/pytest" not in line) <= 80
    monkeypatch.setattr(metrics.Writer, "write", write)
    run_main(main)
    assert "going on from step 1 of 3" in capsys.readouterr().out
    config = load_sft(path)
    state, host = state_of(config)
    expected_state, expected_host = state_of(unbroken[0])
    assert host | {"seconds": 0} == expected_host | {"seconds": 0}
    for leaf, other in zip(
        jax.tree.leaves(state), jax.tree.leaves(expected_state), strict=True
    ):
        assert leaf.tobytes() == other.tobytes()
    records = lines(Path(config.out) / "metrics.jsonl")
    for record, other in zip(records, unbroken[1], strict=True):
        for name in record:
            if not name.startswith(("time/", "perf/", "memory/")):
                assert record[name] == other[name], name


def test_further_passes_go_on_where_the_first_ended(unbroken, tmp_path):
    _, yielded = unbroken
    config = make_sft_config(tmp_path, "epochs=2", "evaluation.problems=0")
    shutil.copytree(Path(unbroken[0].out) / "checkpoints", tmp_path / "out/checkpoints")
    rest = list(sft(config))
    assert rest[0]["step"] == len(yielded) + 1
    assert sum(step["data/examples"] for step in rest) == 24
    assert rest[-1]["data/epoch"] == 2.0


def test_adapters_alone_are_trained(tmp_path):
    config = make_sft_config(tmp_path, "lora.rank=2", "evaluation.every=0")
    config.rewards = {}
    yielded = list(sft(config))
    state, _ = state_of(config)
    names = named_leaves(state.params)
    with build(config) as sft_run:
        base = named_leaves(sft_run.run.programs.params_like)
    assert names
    assert not names.keys() & base.keys()
    summary = json.loads((Path(config.out) / "summary.json").read_text())
    assert summary["loss_after"] < summary["loss_before"]
    assert yielded[0]["update/loss"] == pytest.approx(summary["loss_before"], abs=1.0)


def test_reinforcement_learning_begins_with_it(unbroken, tmp_path):
    """With the exported folder as its model, or with the run's own parameters and moments."""
    config, _ = unbroken
    export(Path(config.out), tmp_path / "exported")
    exported = hf_folder.load_params(tmp_path / "exported")
    state, _ = state_of(config)
    for name, leaf in named_leaves(state.params).items():
        np.testing.assert_array_equal(leaf, named_leaves(exported)[name])
    rl = make_config(tmp_path, f"init_from={config.out}")
    with build_run(rl) as run:
        begun = first_state(run, run.load_params())
    assert int(begun.step) == 0
    for name, leaf in named_leaves(begun._replace(step=state.step)).items():
        np.testing.assert_array_equal(leaf, named_leaves(state)[name])


def test_a_loss_that_is_not_finite_ends_the_run(unbroken, tmp_path, monkeypatch):
    """The step is not saved; with finite weights the same run goes on."""
    config = make_sft_config(tmp_path, "evaluation.problems=0", "steps=1")
    load_params = Run.load_params

    def load_broken(run: Run):
        return jax.tree.map(lambda leaf: leaf * np.nan, load_params(run))

    monkeypatch.setattr(Run, "load_params", load_broken)
    with pytest.raises(UserError, match=r"the loss of step 1 is nan.*learning_rate"):
        list(sft(config))
    assert Checkpoints(config.out).latest() is None
    monkeypatch.setattr(Run, "load_params", load_params)
    assert len(list(sft(config))) == 1


def test_its_config_is_evaluated_as_others_are(unbroken, tmp_path, monkeypatch):
    config, _ = unbroken
    path = config_file(tmp_path, SFT_TEXT)
    measured = []
    monkeypatch.setattr(evaluate, "evaluate_all", lambda c: measured.append(c) or [{}])
    with pytest.raises(KeyError):  # nothing was measured that could be printed
        evaluate.main(["--config", path, f"--config.out={config.out}"])
    (asked,) = measured
    assert describe(asked.data) == describe(config.data)
    assert asked.sampling.max_new_tokens == 8
    assert asked.out == config.out


# What is learned.


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def maker(folder: Path, **changes) -> ExampleMaker:
    """Returns an ExampleMaker with a folder's tokenizer."""
    settings = {"system": "", "solution": Solution(), "width": 80, "vocab_size": 300}
    return ExampleMaker(tokenizer=tokenizer.load(folder), **(settings | changes))


def solved(solution="6 * 7 = 42", **changes) -> Problem:
    """Returns a problem with a worked solution."""
    values = {"id": "1", "prompt": "6 * 7?", "answer": "42"} | changes
    return Problem(**values, meta={"solution": solution})


def test_an_example_is_the_prompt_as_it_is_asked_and_ends_as_a_turn_does(tmp_path):
    """Also where the tokenizer's own end token is another one, with a smaller id."""
    folder = make_chat_folder(
        tmp_path, CHATML, eos="<|endoftext|>", special=("<|im_start|>", "<|im_end|>")
    )
    make = maker(folder, system="Think.")
    context = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
    ]
    example = make(solved(context=context))
    tokens = make.tokenizer
    assert example.prompt == tokens.prompt("6 * 7?", "Think.", "en", context)
    assert tokens.decode_all(example.completion) == "6 * 7 = 42<|im_end|>"
    assert min(tokens.eos_ids) != tokens.end_id == example.completion[-1]


def test_what_the_prompt_opens_the_completion_does_not_open_again(tmp_path):
    opening = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    make = maker(make_chat_folder(tmp_path, opening, special=("<|im_start|>",)))
    text = "<think>\nso\n</think>\n\\boxed{42}"
    example = make(solved(text))
    assert make.tokenizer.completion(example.completion) == text
    assert make.tokenizer.decode_all(example.completion).startswith("so")


def test_a_layout_takes_solution_and_answer_as_they_are():
    layout = Solution(layout=THINK_THEN_ANSWER)
    text = "so {answer} \\1"
    assert layout(solved(text)) == f"<think>\n{text}\n</think>\n\\boxed{{42}}"


def test_examples_that_are_too_long_are_counted_and_left_out(tmp_path):
    folder = make_chat_folder(tmp_path)
    problems = [solved("x" * length, id=str(length)) for length in (3, 40, 500)]
    length = len(maker(folder)(problems[0]).ids)
    make = maker(folder, width=length + 50)
    assert make.check(problems, "training") == (
        f"1 of 3 training examples are longer than {length + 50} tokens and left out; "
        f"packing.width={length + 497} takes all"
    )
    assert [make.accepts(problem) for problem in problems] == [True, True, False]
    short = maker(folder, width=length + 50, positions=length)
    assert f"{length} is what the model has positions for" in short.check(
        problems, "training"
    )


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        (
            {"prompt": "6 * 7?", "completion": "42, for ...", "id": 1},
            {"question": "prompt", "solution": "completion"},
        ),
        (
            {
                "prompt": [{"role": "user", "content": "6 * 7?"}],
                "completion": [{"role": "assistant", "content": "42, for ..."}],
            },
            {"question": "prompt", "solution": "completion"},
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "6 * 7?"},
                    {"role": "assistant", "content": "42, for ..."},
                ]
            },
            {"question": "messages", "solution": "messages"},
        ),
    ],
)
def test_rows_as_trl_has_them(tmp_path, row, settings):
    """A prompt and a completion, as text or as messages, or one conversation; no answers."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    source = Table(path=str(path), answer="", heldout_size=0, **settings)
    (problem,) = source.train()
    assert (problem.prompt, problem.context) == ("6 * 7?", [])
    assert Solution()(problem) == "42, for ..."


def test_the_text_of_the_embedded_model_has_its_shares(tmp_path):
    text = make_tiny_model.PretrainingText(shortcuts=1.0)
    problems = text.train()
    drawn = [problems[index] for index in range(150)]
    assert problems[7] == drawn[7]
    for share, is_in in (
        (make_tiny_model.LANGUAGES["en"], lambda problem: problem.language == "en"),
        (make_tiny_model.LEVELS[1], lambda problem: problem.level == 1),
    ):
        assert np.mean(list(map(is_in, drawn))) == pytest.approx(share, abs=0.1)
    # A first line of thought, and then the answer at once.
    assert {Solution()(problem).count("\n") for problem in drawn} <= {3, 4}
    assert "</think>" in Solution()(text.heldout()[0])
    arguments = argparse.Namespace(
        seed=0, shortcuts=0.5, steps=2, learning_rate=1e-3, evaluate_every=2
    )
    validate_sft(make_tiny_model.make_config(tmp_path, arguments))
