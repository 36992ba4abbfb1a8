"""A prompt becomes samples, the same ones for the same command.

What is wrong is one line and exit code 2.
"""

import io
import json
import sys

import jax
import pytest

from jaxgrpo import sample
from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.config.command_line import run_main
from jaxgrpo.device.optimizer import adamw, schedule
from jaxgrpo.device.specs import ModelSpec, SamplingSpec, UpdateSpec
from jaxgrpo.distributed.mesh import make_mesh
from jaxgrpo.errors import UserError
from jaxgrpo.models import hf_folder
from jaxgrpo.programs import compile_programs
from tests.tiny_models import make_folder, random_params

SHORT = ["--samples", "3", "--max-tokens", "6"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("sample") / "model", num_hidden_layers=1)


def ask(capsys, *argv: str) -> list[dict]:
    sample.main([*SHORT, "--json", *argv])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_prompt_becomes_samples_and_the_same_command_the_same(
    model, monkeypatch, capsys
):
    of_flag = ask(capsys, "--model", str(model), "--prompt", "2 + 3")
    assert [record["sample"] for record in of_flag] == [0, 1, 2]
    assert all(
        0 < record["tokens"] <= 6 and record["logprob"] < 0 for record in of_flag
    )
    assert len({record["text"] for record in of_flag}) > 1
    monkeypatch.setattr(sys, "stdin", io.StringIO("2 + 3\n"))
    assert ask(capsys, "--model", str(model)) == of_flag


def test_how_tokens_are_drawn_is_obeyed(model, capsys):
    flags = [
        "--model",
        str(model),
        "--prompt",
        "2 + 3",
        "--min-tokens",
        "6",
        "--top-k",
        "1",
    ]
    likeliest, *others = (record["text"] for record in ask(capsys, *flags))
    assert {likeliest} == set(others)
    assert likeliest == ask(capsys, *flags[:-2], "--temperature", "0")[0]["text"]
    stopped = ask(capsys, *flags, "--stop", likeliest[1])[0]
    assert stopped["finished"]
    assert likeliest.startswith(stopped["text"])


def test_without_json_it_is_text_to_read(model, capsys):
    sample.main([*SHORT, "--model", str(model), "--prompt", "2 + 3"])
    assert capsys.readouterr().out.count("--- sample ") == 3


def test_a_run_answers_with_its_newest_checkpoint(model, tmp_path, capsys):
    optimizer = adamw(schedule("constant", 1e-3, 0, 10), 0.9, 0.95, 0.1, 1.0)
    network = hf_folder.load_config(model)
    programs = compile_programs(
        ModelSpec(network, make_mesh()),
        SamplingSpec(prompt_width=4, new_tokens=4, slots=1, eos_ids=(1,)),
        UpdateSpec(prompt_width=4),
        optimizer,
    )
    state = programs.init_state(random_params(network, seed=9))
    with Checkpoints(tmp_path / "run", keep=1) as checkpoints:
        checkpoints.save(3, state, {})
    (tmp_path / "run" / "config.json").write_text(
        json.dumps({"model": str(model), "system": ""})
    )
    hf_folder.save(jax.device_get(state.params), model, tmp_path / "exported")
    trained = ask(capsys, "--run", str(tmp_path / "run"), "--prompt", "2 + 3")
    exported = ask(capsys, "--model", str(tmp_path / "exported"), "--prompt", "2 + 3")
    assert trained == exported
    assert trained != ask(capsys, "--model", str(model), "--prompt", "2 + 3")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--samples", "0"], "--samples is 0: it must be at least 1"),
        (["--temperature", "nan"], "--temperature is nan"),
        (["--top-p", "0"], "--top-p is 0.0"),
        (["--min-p", "2"], "--min-p is 2.0"),
        (
            ["--min-tokens", "7"],
            "--min-tokens is 7: it must be from 0 to --max-tokens 6",
        ),
        (["--stop", ""], "--stop is"),
        (["--max-tokens", "2048"], "more than the 2,048"),
        (["--run", "/nowhere"], "/nowhere holds no run"),
    ],
)
def test_what_makes_no_sense_is_refused(model, flags, message):
    with pytest.raises(UserError, match=message):
        sample.main([*SHORT, "--model", str(model), "--prompt", "2 + 3", *flags])


def test_it_ends_with_one_line_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["tools.sample", "--prompt", "2 + 3", "--model", "/nowhere"]
    )
    with pytest.raises(SystemExit) as end:
        run_main(sample.main)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
