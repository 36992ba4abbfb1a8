"""A day's work as people do it, and the lines that each thing takes them.

Rows as they come are a line in a config file; DAPO, an evaluation every step, another learning rate
for what is left of a run, and looking at what was written are flags and commands, all of them here.
"""

import contextlib
import csv
import io
import json
from pathlib import Path

import pytest

from jaxgrpo import __main__ as command
from jaxgrpo.config import load
from jaxgrpo.data.order import ProblemOrder
from tests.test_table import made, save_to_disk
from tests.tiny_runs import TEXT, config_file, lines, model_folder, share_programs
from tools import show
from tools.report import __main__ as report

SYSTEM = {"role": "system", "content": "Be brief."}
SOURCES = """Mixture({
            "chat": Part(Table("FOLDER/chat.parquet", question="prompt", heldout_size=2)),
            "sheet": Part(Table("FOLDER/sheet.csv", heldout_size=2)),
            "disk": Part(Table("FOLDER/disk", heldout_size=2)),
        })"""


def write_rows(folder: Path) -> None:
    """Writes chat rows in a parquet file, a CSV file, and what `datasets` saves to disk."""
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(5)]
    chat = [
        {
            "prompt": [SYSTEM, {"role": "user", "content": row["question"]}],
            "answer": row["answer"],
        }
        for row in rows
    ]
    made(folder / "chat.parquet", chat)
    made(folder / "sheet.csv", rows)
    save_to_disk(folder / "disk", rows)


def jaxgrpo(*arguments: str) -> str:
    """Returns what a command prints where its output is piped."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        command.run_program(list(arguments))
    return said.getvalue()


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    """Returns a run's folder, and what was said as it began, went on and was evaluated."""
    folder = tmp_path_factory.mktemp("day")
    write_rows(folder)
    text = TEXT.replace(
        "import Arithmetic",
        "import Arithmetic\nfrom jaxgrpo.data.mixture import Mixture, Part\n"
        "from jaxgrpo.data.table import Table",
    )
    source = SOURCES.replace("FOLDER", str(folder))
    text = text.replace("Arithmetic(levels=(1,), size=24)", source)
    run = ("--config", config_file(folder, text))
    with pytest.MonkeyPatch.context() as monkeypatch:
        share_programs(monkeypatch)
        said = {}
        first = (
            *run,
            "--config.objective=dapo",
            "--config.objective.clip_high=0.3",
            "--config.evaluation.every=1",
            "--config.show_rollouts_every=1",
            "--config.save_rollouts=all",
        )
        said["begun"] = jaxgrpo("train", *first, "--config.steps=1")
        rate = "--config.optimizer.learning_rate=0.001"
        said["went on"] = jaxgrpo("train", *first, "--config.steps=2", rate)
        said["evaluated"] = jaxgrpo("evaluate", *run)
    return folder, said


def test_rows_as_they_come_are_asked(day):
    """Chat rows, parquet, CSV and a folder of `datasets`: a line each."""
    folder, said = day
    assert "0.333 chat (3 problems), 0.333 sheet (3 problems)" in said["begun"]
    order = ProblemOrder(load(str(folder / "tiny.py")).data.train(), seed=0)
    written = lines(folder / "out" / "rollouts.jsonl")
    asked = [line["id"] for line in written if line["sample"] == 0]
    assert asked == [problem.id for problem in order.take(4)]
    assert {name.partition("/")[0] for name in asked} == {"chat", "sheet", "disk"}
    for line in [*written, *lines(folder / "out" / "evaluation.jsonl")]:
        assert line["context"] == ([SYSTEM] if line["id"].startswith("chat/") else [])


def test_an_objective_is_two_flags(day):
    folder, _ = day
    saved = json.loads((folder / "out" / "config.json").read_text())["objective"]
    assert saved["class"].endswith(":DAPO")
    assert saved["clip_high"] == 0.3


def test_evaluations_while_training_are_a_flag(day):
    folder, said = day
    for step, name in ((1, "begun"), (2, "went on")):
        # After the step's own line.
        line = said[name].index(f" {step}/{step} ")
        assert line < said[name].index(f"step {step} evaluated: accuracy ")
        assert (folder / "out" / "evaluations" / f"{step}.json").exists()


def test_pass_at_k_and_majorities_are_a_command(day):
    folder, said = day
    with (folder / "out" / "evaluation.csv").open() as file:
        (whole,) = [row for row in csv.DictReader(file) if row["part"] == "all"]
    for name in ("pass_at_4", "maj_at_4"):
        assert 0 <= float(whole[f"{name}_low"]) <= float(whole[f"{name}_high"]) <= 1
    for line in lines(folder / "out" / "evaluation.jsonl"):
        assert len(line["completions"]) == 4
    assert "pass@4" in said["evaluated"]
    assert "maj@4" in said["evaluated"]


def test_another_learning_rate_for_what_is_left_is_a_flag(day):
    folder, said = day
    assert "learning_rate (then 0.01, now 0.001): from here on" in said["went on"]
    assert "going on from step 1 of 2" in said["went on"]
    saved = json.loads((folder / "out" / "config.json").read_text())
    assert saved["optimizer"]["learning_rate"] == 0.001


def test_what_a_pipe_gets_has_80_columns(day):
    """Steps, tables, all but notes at the beginning, which are a line each, and paths."""
    folder, said = day
    printed = [said["evaluated"]]
    printed += [
        said[name].partition("compiling ...")[2] for name in ("begun", "went on")
    ]
    for text in printed:
        assert text.count("\n") > 10
        for line in text.splitlines():
            assert len(line) <= 80 or str(folder) in line, line


def test_what_was_written_is_looked_at_by_a_command(day, capsys):
    folder, _ = day
    show.main([str(folder / "out"), "--step", "2"])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "step 2: 2 groups written, 2 kept"
    assert max(map(len, shown)) <= 80
    report.main([str(folder / "out"), "--to", str(folder / "page.html")])
    assert (folder / "page.html").stat().st_size < 5_000_000


def test_a_model_answers_in_five_lines():
    lines_of_a_notebook = f"""
from jaxgrpo.language_model import LanguageModel
model = LanguageModel.load({str(model_folder())!r})
(answers,) = model.sample(["2 + 3?"], n=4, temperature=1.0, max_tokens=4)
"""
    assert len(lines_of_a_notebook.strip().splitlines()) <= 5
    names: dict = {}
    exec(lines_of_a_notebook, names)
    assert len(names["answers"]) == 4
