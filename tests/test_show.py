"""What a run has written of a step can be read in a terminal: all of it, and nothing else."""

import io
import json

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from jaxgrpo.errors import UserError
from jaxgrpo.train import train
from tests.tiny_reports import CONTEXT, HOSTILE, MIXED, make_run
from tests.tiny_runs import lines, make_config, share_programs
from tools import show
from tools.report.rollouts import read_groups


def printed(capsys, *arguments: str) -> list[str]:
    show.main(list(map(str, arguments)))
    return capsys.readouterr().out.splitlines()


def test_a_run_writes_all_completions_and_trains_as_if_it_did_not(
    tmp_path, monkeypatch, capsys
):
    share_programs(monkeypatch)
    settings = ("steps=2", "evaluation.problems=0", "show_rollouts_every=1")
    runs = {}
    for how_many in ("few", "all"):
        folder = tmp_path / how_many
        folder.mkdir()
        config = make_config(folder, *settings, f"save_rollouts={how_many}")
        runs[how_many] = config, list(train(config))
    (few_config, few_steps), (config, steps) = runs.values()
    for few, every in zip(few_steps, steps, strict=True):
        assert {name for name in few if few[name] != every[name]} <= {
            name for name in few if name.startswith(("time/", "rollout/", "perf/"))
        }

    written = lines(tmp_path / "all" / "out" / "rollouts.jsonl")
    first = [line | {"advantage": None} for line in written if line["sample"] == 0]
    assert lines(tmp_path / "few" / "out" / "rollouts.jsonl") == first
    size = config.batch.group_size
    for step, metrics in enumerate(steps, 1):
        of_step = [line for line in written if line["step"] == step]
        assert len(of_step) == metrics["filter/asked"] * size
        rewards = np.array([line["reward"] for line in of_step]).reshape(-1, size)
        advantages = np.array([line["advantage"] for line in of_step])
        centred = rewards - rewards.mean(axis=1, keepdims=True)
        deviation = rewards.std(axis=1, keepdims=True)
        expected = centred / np.where(deviation > 0, deviation, 1.0)
        np.testing.assert_allclose(
            advantages.reshape(-1, size), expected, rtol=1e-4, atol=1e-6
        )
        assert np.mean([line["tokens"] for line in of_step]) == pytest.approx(
            metrics["completion/tokens"]
        )
        cut_off = np.mean([not line["finished"] for line in of_step])
        assert cut_off == pytest.approx(metrics["completion/truncated"])
    assert few_config.save_rollouts == "few"

    capsys.readouterr()
    shown = printed(capsys, tmp_path / "all" / "out", "--step", 1)
    assert shown[0] == "step 1: 2 groups written, 2 kept"
    assert sum(line.startswith("#") for line in shown) == 2 * size


def test_a_step_is_printed_whole_in_eighty_columns_without_colour(tmp_path, capsys):
    out = make_run(tmp_path / "run", texts=(MIXED * 5, "모릅니다", *HOSTILE))
    shown = printed(capsys, out, "--step", 3)
    assert shown[0] == "step 3: 2 groups written, 1 kept"
    assert max(map(cell_len, shown)) <= 80
    assert not any("\x1b" in line for line in shown)
    assert [line for line in shown if line.startswith("#1")] == [
        "#1  reward 1.00  advantage +1.00  12 tokens  read 7",
        "#1  reward 1.00  12 tokens  read 7",
    ]
    assert "#2  reward 0.00  advantage -1.00  12 tokens, cut off  read -" in shown
    # The second group's earlier messages stand before its prompt, which both have.
    turns = [f"{message['role']}: {message['content']}" for message in CONTEXT]
    prompts = [place for place, line in enumerate(shown) if line.startswith("민수")]
    assert shown[prompts[1] - 3 : prompts[1]] == turns
    assert len(prompts) == 2
    assert not set(shown[: prompts[0]]) & set(turns)
    text = "".join(shown).replace(" ", "")
    assert text.count(MIXED.replace(" ", "")) == 10
    assert HOSTILE[0].replace(" ", "") in text
    assert "␛[31m" in text


def test_the_last_step_is_shown_where_none_is_named(tmp_path, capsys):
    out = make_run(tmp_path / "run", steps=5)
    assert printed(capsys, out)[0].startswith("step 5: 2 groups")


def test_words_of_another_language_are_underlined_in_a_terminal(tmp_path):
    out = make_run(tmp_path / "run")
    terminal = io.StringIO()
    console = Console(
        file=terminal, force_terminal=True, width=80, color_system="standard"
    )
    group = next(read_groups(out))
    for line in show.show([group], ["boxed"]):
        console.print(line)
    (underlined,) = [
        piece.partition("\x1b[0m")[0]
        for piece in terminal.getvalue().split("\x1b[4;31m")[1:]
    ]
    assert underlined == "So we add the apples together"


def test_steps_that_were_not_written_are_named(tmp_path):
    out = make_run(tmp_path / "run", steps=40)
    with pytest.raises(
        UserError,
        match=r"no completions of step 41 .* choose one of 1, 2, .* 12, \.\.\., 40; ",
    ):
        show.main([str(out), "--step", "41"])
    with pytest.raises(UserError, match="holds no completions"):
        show.main([str(tmp_path)])


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    out = make_run(tmp_path / "run", steps=1)
    path = out / "rollouts.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    first, second = read_groups(out)
    assert [len(group.completions) for group in (first, second)] == [2, 1]


def test_completions_of_older_runs_can_be_read(tmp_path, capsys):
    """They have the first completion of a group, and less about it."""
    out = make_run(tmp_path / "run", steps=1, texts=("7",))
    path = out / "rollouts.jsonl"
    old = [
        {
            name: value
            for name, value in line.items()
            if name
            not in ("sample", "samples", "reward", "tokens", "finished", "context")
        }
        for line in lines(path)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in old))
    assert len(list(read_groups(out))) == 2
    assert "#1  advantage +1.00  read -" in printed(capsys, out)


def test_a_missing_verdict_is_a_dash():
    assert show._signed(None, "") == ("-", "yellow")
    assert show._verdicts({"accuracy": None, "language/ratio": 0.5}) == (
        "accuracy -  ratio 0.50"
    )
