"""Bad input ends in one line that says what, where and what to do.

That is before anything is computed or written.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxgrpo import train
from jaxgrpo.build import Run
from jaxgrpo.config import load, save
from jaxgrpo.config.command_line import run_main
from jaxgrpo.sft.program import main as sft_main
from tests.tiny_runs import (
    SFT_TEXT,
    TEXT,
    config_file,
    model_folder,
    share_programs,
    start,
)

JSONL_TEXT = TEXT.replace(
    "import Arithmetic", "import Arithmetic\nfrom jaxgrpo.data.jsonl import Jsonl"
).replace("Arithmetic(levels=(1,), size=24)", 'Jsonl(path="DATA", heldout_size=1)')
ROWS = [{"question": f"What is {n} + 1?", "answer": n + 1} for n in range(6)]


@pytest.fixture(autouse=True)
def _nothing_is_computed(monkeypatch):
    def fail(*_):
        pytest.fail("parameters were put on a device before the input was checked")

    share_programs(monkeypatch)
    monkeypatch.setattr(Run, "load_params", fail)


@pytest.fixture
def refused(monkeypatch, capsys):
    """Returns a call of the program, which returns the one line with which it refuses."""

    def call(*arguments: str, main=train.main) -> str:
        monkeypatch.setattr(sys, "argv", ["train", *arguments])
        with pytest.raises(SystemExit) as stopped:
            run_main(main)
        shown = capsys.readouterr()
        assert stopped.value.code == 2
        assert shown.err.startswith("error: ")
        assert shown.err.endswith("\n")
        assert shown.err.count("\n") == 1
        assert shown.out == ""
        return shown.err.removeprefix("error: ").strip()

    return call


@pytest.fixture
def path(tmp_path):
    """Returns a good config file; a refused run leaves nothing beside it."""
    yield config_file(tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def model(tmp_path):
    """Returns a model folder to be spoilt."""
    return shutil.copytree(model_folder(), tmp_path / "spoilt")


def test_no_config(refused):
    assert refused() == (
        "no config file given; run python -m jaxgrpo.train --config FILE, "
        "for example configs/quickstart.py"
    )


def test_a_config_file_that_is_not_there(refused, tmp_path, path):
    assert refused("--config", str(tmp_path / "tini.py")) == (
        f"--config {tmp_path}/tini.py: there is no such file; did you mean {tmp_path}/tiny.py?"
    )


def test_a_config_file_without_get_config(refused, tmp_path, path):
    path = config_file(tmp_path, TEXT.replace("def get_config", "def make_config"))
    assert (
        refused("--config", path)
        == f"{path}: it has no get_config(); define it at the top level of the file"
    )


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        (
            "--config.batch.group_sise=4",
            "--config.batch.group_sise: no such setting; did you mean batch.group_size",
        ),
        (
            "--config.temperature=1",
            "--config.temperature: no such setting; did you mean sampling.temperature",
        ),
        (
            "--config.steps=many",
            "--config.steps=many: steps is a whole number, and 'many' is not; it is now 4",
        ),
        (
            "--config.steps=2.5",
            "--config.steps=2.5: steps is a whole number, and '2.5' is not",
        ),
        ("--config.seed=-1", "seed is -1: it must be at least 0"),
        ("--config.seed=4294967296", "seed is 4294967296: it must be below 2**32"),
        (
            "--config.batch.group_size=1",
            "batch.group_size is 1: it must be at least 2: GRPO compares the completions",
        ),
        (
            "--config.batch.micro_batch=3",
            "batch.micro_batch is 3: it must divide groups * group_size = 2 * 4 = 8; "
            "the nearest that do are 2 and 4",
        ),
        ("--config.sampling.slots=-1", "sampling.slots is -1: it must be at least 0"),
        ("--config.sampling.chunk=0", "sampling.chunk is 0: it must be at least 1"),
        (
            "--config.evaluation.problems=-1",
            "evaluation.problems is -1: it must be at least 0",
        ),
        (
            "--config.filter.rule=bend",
            "filter.rule is 'bend': it must be one of band, dapo, variance, off",
        ),
        ("--config.data.languages=xx", "arithmetic: "),
        (
            "--config.mesh.data=3",
            "mesh.data=3, mesh.fsdp=1, mesh.tensor=1 do not multiply to the 1 devices here",
        ),
        (
            "--config.model=/nowhere",
            "model folder /nowhere is not there: give a Hugging Face folder",
        ),
        (
            "--config.sampling.prompt_width=5",
            "24 of 24 training prompts are longer than sampling.prompt_width=5 tokens, "
            "the shortest ",
        ),
        (
            "--steps=3",
            "--steps=3: the flags are --config FILE, --config.name=value and --help; "
            "did you mean --config.steps=3?",
        ),
    ],
)
def test_a_setting(refused, path, flag, says):
    assert refused("--config", path, flag).startswith(says)


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("packing.rows=0", "packing.rows is 0: it must be at least 1"),
        (
            "packing.micro_batch=3",
            "packing.micro_batch is 3: it must divide packing.rows=4; the nearest that do are 2 "
            "and 4",
        ),
        (
            "packing.width=20",
            "24 of 24 training examples are longer than 20 tokens, the shortest 41",
        ),
        ("epochs=0", "epochs is 0: it must be at least 1"),
        ("epochs=1.5", "--config.epochs=1.5: epochs is a whole number"),
        ("batch.groups=2", "--config.batch.groups: no such setting"),
        ("objective=dapo", "--config.objective: no such setting"),
        ("mesh.fsdp=0", "mesh.fsdp is 0: it must be at least 1"),
        ("evaluation.keep_best=maj_at_3", "evaluation.keep_best is 'maj_at_3'"),
    ],
)
def test_a_setting_of_supervised_training(refused, tmp_path, path, flag, says):
    path = config_file(tmp_path, SFT_TEXT)
    said = refused("--config", path, f"--config.{flag}", main=sft_main)
    assert said.startswith(says)


def test_problems_without_solutions(refused, tmp_path, path):
    path = config_file(tmp_path, SFT_TEXT.replace("solution=solution,", ""))
    said = refused("--config", path, main=sft_main)
    assert (
        "has no text 'solution' to learn, but name, phrases, start, steps, thing"
        in said
    )


def test_the_config_of_the_other_kind_of_training(refused, tmp_path, path):
    said = refused("--config", path, main=sft_main)
    assert said.endswith(
        "returned a Config; it must return a jaxgrpo.config:SFTConfig; run python -m jaxgrpo.train "
        "with it"
    )


def test_a_model_of_another_kind(refused, path, model):
    hf = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps(hf | {"architectures": ["MambaForCausalLM"]})
    )
    assert refused("--config", path, f"--config.model={model}").startswith(
        f"{model}/config.json says architecture MambaForCausalLM; "
        "those known here are LlamaForCausalLM"
    )


def test_a_tensor_is_missing(refused, path, model):
    tensors = load_file(model / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, model / "model.safetensors")
    said = refused("--config", path, f"--config.model={model}")
    assert said.startswith(
        f"{model} lacks 1 of {len(tensors) + 1} tensors, first model.norm.weight"
    )


def test_a_tensor_has_another_shape(refused, path, model):
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] = np.ones(7, np.float32)
    save_file(tensors, model / "model.safetensors")
    said = refused("--config", path, f"--config.model={model}")
    assert said.startswith(
        f"{model}: model.norm.weight is (7,), but config.json makes it (16,)"
    )


def test_a_folder_without_a_tokenizer(refused, path, model):
    for file in model.glob("tokenizer*"):
        file.unlink()
    assert refused("--config", path, f"--config.model={model}").startswith(
        f"no tokenizer can be loaded from {model}"
    )


def test_a_chat_template_that_cannot_ask(refused, path, model):
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ raise_exception('Only for tools.') }}{% endfor %}"
    )
    said = refused("--config", path, f"--config.model={model}")
    assert said.startswith(
        f"the chat template in {model} cannot ask a question (Only for tools.): mend it there"
    )


def data_file(tmp_path: Path, text: str | None) -> tuple[str, str]:
    """Returns a config that reads problems from a file with this text, and the file."""
    data = tmp_path / "data.jsonl"
    if text is not None:
        data.write_text(text)
    return config_file(tmp_path, JSONL_TEXT.replace("DATA", str(data))), str(data)


def as_lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "there is no file DATA; check --config.data.path"),
        ("", "DATA has no rows; give a file that has some"),
        (as_lines(ROWS) + "{'question': 1}\n", "DATA line 7 is not JSON (column 2: "),
        (
            as_lines(ROWS) + '{"question": "What?"}\n',
            'DATA line 7: there is no field "answer", only "question"; set --config.data.',
        ),
        (
            as_lines(ROWS[:1]),
            "DATA has 1 problems, and --config.data.heldout_size=1 of them cannot be held out",
        ),
    ],
)
def test_data(refused, tmp_path, path, text, says):
    path, data = data_file(tmp_path, text)
    assert refused("--config", path).startswith(says.replace("DATA", data))


HUB_NAMES = [
    (
        "--config.data.path=openai/gsm8k",
        "there is no file openai/gsm8k; ",
        "hf download openai/gsm8k --repo-type dataset --local-dir openai/gsm8k",
    ),
    (
        "--config.model=Qwen/Qwen2.5-0.5B",
        "model folder Qwen/Qwen2.5-0.5B is not there: ",
        "hf download Qwen/Qwen2.5-0.5B --local-dir Qwen/Qwen2.5-0.5B",
    ),
]


@pytest.mark.parametrize(("flag", "says", "command"), HUB_NAMES)
def test_a_name_of_the_hub(refused, tmp_path, path, flag, says, command):
    path, _ = data_file(tmp_path, as_lines(ROWS))
    said = refused("--config", path, flag)
    assert said.startswith(says)
    assert said.endswith(f"; if the Hugging Face hub's is meant, fetch it: {command}")


def with_language(language: str) -> str:
    return as_lines([{**row, "lang": language} for row in ROWS])


@pytest.mark.parametrize(
    ("language", "flag", "says"),
    [
        (
            "Klingon",
            "language_field=lang",
            'DATA line 1: "lang" is "Klingon", not a language ',
        ),
        ("", "language_field=lang", 'DATA line 1: "lang" is blank; fill it in, '),
        (
            "en",
            "language=xx",
            "--config.data.language is 'xx', not a language that can be told; ",
        ),
    ],
)
def test_a_language_that_cannot_be_told(refused, tmp_path, path, language, flag, says):
    path, data = data_file(tmp_path, with_language(language))
    assert refused("--config", path, f"--config.data.{flag}").startswith(
        says.replace("DATA", data)
    )


def test_a_reward_in_a_language_that_cannot_be_told(refused, tmp_path, path):
    path = config_file(
        tmp_path, TEXT.replace("languages.target_word_ratio", "languages.Ratio()")
    )
    said = refused("--config", path, "--config.rewards.language.function.language=xx")
    assert "language 'xx' is not one that can be told: use one of af " in said


def test_a_source_with_a_language_that_cannot_be_told(refused, tmp_path, path):
    source = """
class Mine:
    def train(self):
        return [Problem("p1", "What?", "1", "pt-BR"), Problem("p2", "What?", "1", "Klingon")]

    heldout = train


def get_config"""
    text = TEXT.replace("import Weighted", "import Problem, Weighted")
    text = text.replace("def get_config", source.strip())
    path = config_file(
        tmp_path, text.replace("Arithmetic(levels=(1,), size=24)", "Mine()")
    )
    said = refused("--config", path)
    assert said.startswith(
        "the problem 'p2' has the language 'Klingon', which cannot be told; "
    )


def _stop(run):
    """Ends a run where it would put parameters on a device: so far, and no further."""
    sys.exit(0)


@pytest.mark.parametrize(
    "text",
    [
        with_language("pt-BR"),
        as_lines([{**row, "question": "smile \ud83d", "lang": "en"} for row in ROWS]),
        as_lines([{**row, "question": "What \x00?", "lang": "en"} for row in ROWS]),
    ],
    ids=["pt-BR", "surrogate", "NUL"],
)
def test_odd_data_that_can_be_read(tmp_path, monkeypatch, text):
    path, _ = data_file(tmp_path, text)
    flags = ["--config", path, "--config.data.language_field=lang"]
    monkeypatch.setattr(sys, "argv", ["train", *flags])
    monkeypatch.setattr(Run, "load_params", _stop)
    with pytest.raises(SystemExit) as stopped:
        run_main(train.main)
    assert stopped.value.code == 0


def test_long_prompts_are_dropped_with_a_count(tmp_path, monkeypatch, capsys):
    path, _ = data_file(
        tmp_path,
        as_lines([*ROWS[:2], {"question": "and so on " * 50, "answer": 1}, *ROWS[2:]]),
    )
    monkeypatch.setattr(sys, "argv", ["train", "--config", path])
    monkeypatch.setattr(Run, "load_params", _stop)
    with pytest.raises(SystemExit):
        run_main(train.main)
    said = capsys.readouterr().out
    assert "\n1 of 6 training prompts are longer than 80 tokens and left out; " in said


def test_a_wrong_column_of_answers_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    rows = [{**row, "subject": "Number theory"} for row in ROWS]
    path, data = data_file(tmp_path, as_lines(rows))
    flags = ["--config", path, "--config.data.answer=subject"]
    monkeypatch.setattr(sys, "argv", ["train", *flags])
    monkeypatch.setattr(Run, "load_params", _stop)
    with pytest.raises(SystemExit):
        run_main(train.main)
    said = capsys.readouterr().out
    assert (
        "\n5 of 5 training answers are no number or formula, and are compared as text; "
        f'{Path(data).stem}:train:1: "Number theory"\n'
    ) in said


def test_the_folder_of_another_run(refused, tmp_path):
    path = config_file(tmp_path)
    out = tmp_path / "out"
    save(load(path), str(out))
    before = (out / "config.json").read_text()
    said = refused("--config", path, "--config.seed=3", "--config.batch.groups=4")
    assert said == (
        f"{out} holds a run with other settings: seed (then 0, now 3), "
        "batch.groups (then 2, now 4); give another --config.out, or go back"
    )
    assert (out / "config.json").read_text() == before
    assert [file.name for file in out.iterdir()] == ["config.json"]


def test_a_reward_that_is_a_lambda(refused, tmp_path, path):
    path = config_file(
        tmp_path,
        TEXT.replace("Weighted(maths.accuracy)", "Weighted(lambda problem, text: 1.0)"),
    )
    said = refused("--config", path)
    assert "<lambda>" in said
    assert (
        "cannot be imported by a worker process: make it a function at the top level of a module"
        in said
    )


def test_a_reward_of_a_module_that_is_not_there(refused, tmp_path, path):
    path = config_file(
        tmp_path,
        TEXT.replace(
            "import languages, maths",
            "import languages, maths\nfrom no_rewards import mine",
        ),
    )
    said = refused("--config", path)
    assert said.startswith(f"{path}, line ")
    assert "No module named 'no_rewards'" in said


MADE_HERE = """
import sys, types
made = types.ModuleType('made_here')
exec('def mine(problem, text): return 1.0', vars(made))
sys.modules['made_here'] = made
made.mine.__module__ = 'made_here'
"""


def test_a_reward_of_a_module_that_workers_do_not_find(refused, tmp_path, path):
    """This process has a module that was made on the spot; another cannot import it."""
    text = TEXT.replace("\n\ndef get_config", f"\n{MADE_HERE}\n\ndef get_config")
    text = text.replace("maths.accuracy", "made.mine")
    assert "made_here" in refused("--config", config_file(tmp_path, text))


@pytest.mark.parametrize("case", ["setting", "data"])
def test_as_a_process(tmp_path, case):
    """Looks at it as a person does: nothing of the libraries' own is on stderr either."""
    path, data = data_file(tmp_path, as_lines(ROWS) + "oops\n")
    process = start(
        "jaxgrpo.train",
        "--config",
        path,
        *(["--config.batch.group_size=1"] if case == "setting" else []),
    )
    out, errors = process.communicate(timeout=120)
    says = (
        "error: batch.group_size is 1"
        if case == "setting"
        else f"error: {data} line 7 is not JSON"
    )
    assert process.returncode == 2
    assert errors.startswith(says)
    assert errors.count("\n") == 1
    assert out == ""
    assert not (tmp_path / "out").exists()
