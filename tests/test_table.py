"""Checks that problems are the same whatever file or folder they are read from."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from jaxgrpo import hub
from jaxgrpo.config import resume
from jaxgrpo.config.overrides import path_of
from jaxgrpo.data import jsonl
from jaxgrpo.data.gsm8k import GSM8K
from jaxgrpo.data.row_files import find_splits
from jaxgrpo.data.table import Table
from jaxgrpo.errors import UserError
from jaxgrpo.models import hf_folder
from jaxgrpo.problems import Problem
from jaxgrpo.text.messages import split_messages

ROWS = [
    {"question": 'Say "a, b"\tor\nc?', "answer": "0.10", "level": "Level 1", "n": "x"},
    {"question": "사과가 몇 개?", "answer": "-7", "level": "Level 2", "n": ""},
    {"question": "What is 2 + 2?", "answer": "4", "level": "Level 3", "n": "z"},
]
"""Texts alone, with what CSV has to quote in them."""


def write_jsonl(path: Path, rows: list[dict]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def write_json(path: Path, rows: list[dict]) -> None:
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8")


def write_csv(path: Path, rows: list[dict], delimiter: str = ",") -> None:
    def quote(value: str) -> str:
        return '"' + value.replace('"', '""') + '"'

    lines = [list(rows[0]), *(row.values() for row in rows)]
    text = "".join(delimiter.join(map(quote, line)) + "\r\n" for line in lines)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())


def write_tsv(path: Path, rows: list[dict]) -> None:
    write_csv(path, rows, "\t")


def write_parquet(path: Path, rows: list[dict]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_stream(path: Path, rows: list[dict]) -> None:
    """Writes an Arrow stream, as `datasets` does."""
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


def write_arrow_file(path: Path, rows: list[dict]) -> None:
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


WRITERS = {
    "a.jsonl": write_jsonl,
    "a.txt": write_jsonl,
    "a.json": write_json,
    "lines/a.json": write_jsonl,
    "a.csv": write_csv,
    "a.tsv": write_tsv,
    "a.TSV": write_tsv,
    "a.parquet": write_parquet,
    "a.arrow": write_stream,
    "file/a.arrow": write_arrow_file,
}


def made(path: Path, rows: list[dict]) -> str:
    """Writes rows to a file by its suffix; returns its path as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[f"a{path.suffix}"](path, rows)
    return str(path)


def the_error(call) -> str:
    """Returns the message of the UserError that `call` raises: one line of moderate length."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


# Kinds of files


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_problems(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    WRITERS[name](path, ROWS)
    problems = Table(str(path), heldout_size=0, level_field="level").train()
    assert [problem.id.rpartition(":")[0] for problem in problems] == ["a:train"] * 3
    assert [
        (problem.prompt, problem.answer, f"Level {problem.level}", problem.meta)
        for problem in problems
    ] == [
        (row["question"], row["answer"], row["level"], {"n": row["n"]}) for row in ROWS
    ]


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("a.jsonl", "line 2"),
        ("a.json", "row 2"),
        # Of the first row, a value has a line break in it.
        ("a.csv", "line 4"),
        ("a.tsv", "line 4"),
        ("a.parquet", "row 2"),
        ("a.arrow", "row 2"),
    ],
)
def test_errors_name_the_file_and_the_line_or_row(tmp_path, name, where):
    path = made(tmp_path / name, [ROWS[0], {**ROWS[1], "answer": " "}, ROWS[2]])
    message = the_error(Table(path, heldout_size=0).train)
    assert message.startswith(f'{path} {where}: "answer" is blank')


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "question,answer\n1?,1\n\n2?,2,2\n",
            "line 4: it has 3 columns and the first line 2",
        ),
        ("question,answer\n1?\n", "line 2: it has 1 columns"),
        ('question,answer\n"1"?,1\n', "line 2 cannot be read ("),
        ('question,answer\n1?,1\n"2?,2\n', "line 3 cannot be read (unexpected end"),
        (
            "answer,answer\n1,1\n",
            'line 1: it should hold the columns\' names, and "answer"',
        ),
        (
            "question,\n1,1\n",
            "line 1: it should hold the columns' names, and one has no name",
        ),
        ("question,answer\n", " has no rows"),
        (
            "problem,answer\n1?,1\n",
            'line 2: there is no field "question", only "problem"',
        ),
    ],
)
def test_csv_errors_name_the_line(tmp_path, text, says):
    (tmp_path / "a.csv").write_text(text)
    path = str(tmp_path / "a.csv")
    message = the_error(Table(path, heldout_size=0).train)
    assert message.startswith(path)
    assert says in message


def test_csv_that_is_not_utf_8_is_named_by_line_and_byte(tmp_path):
    (tmp_path / "a.csv").write_bytes("question,answer\n1?,1\né?,2\n".encode("latin-1"))
    assert "a.csv line 3 is not UTF-8 (byte 1)" in the_error(
        Table(str(tmp_path / "a.csv")).train
    )


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_columns_that_cannot_be_read_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert "cannot be read (" in the_error(Table(str(tmp_path / name)).train)


def test_a_json_list_must_hold_objects(tmp_path):
    (tmp_path / "a.json").write_text('[{"question": "1?", "answer": 1},\n 2]')
    assert "a.json row 2 is a number, not an object" in the_error(
        Table(str(tmp_path / "a.json")).train
    )
    (tmp_path / "a.json").write_text('[{"question": "1?"},\n oops]')
    assert "a.json is not JSON (line 2 column 2" in the_error(
        Table(str(tmp_path / "a.json")).train
    )


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (0.1, pyarrow.float32(), "0.1"),
        (1 / 3, pyarrow.float64(), "0.3333333333333333"),
        (27.0, pyarrow.float64(), "27.0"),
        (2**62 + 1, pyarrow.int64(), str(2**62 + 1)),
        ("0.10", pyarrow.string(), "0.10"),
        ("0.10", pyarrow.large_string(), "0.10"),
    ],
)
def test_numbers_in_columns_keep_their_digits(tmp_path, value, kind, text):
    table = pyarrow.table({"question": ["?"], "answer": pyarrow.array([value], kind)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (problem,) = Table(str(tmp_path / "a.parquet"), heldout_size=0).train()
    assert problem.answer == text


def test_decimals_keep_their_digits_and_no_number_is_no_answer(tmp_path):
    decimals = pyarrow.array(["1.50", "2.00"]).cast(pyarrow.decimal128(5, 2))
    nan = pyarrow.array([1.0, float("nan")])
    table = pyarrow.table({"question": ["?", "?"], "answer": decimals, "nan": nan})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    path = str(tmp_path / "a.parquet")
    problems = Table(path, heldout_size=0).train()
    assert [problem.answer for problem in problems] == ["1.50", "2.00"]
    assert [problem.meta for problem in problems] == [{"nan": 1.0}, {"nan": None}]
    assert 'row 2: "nan" is null' in the_error(
        Table(path, heldout_size=0, answer="nan").train
    )


def test_what_json_has_no_word_for_does_not_reach_meta(tmp_path):
    image = [{"bytes": b"\xff", "path": "a.png"}]
    row = {"question": "?", "answer": "1", "image": b"\xff", "images": image}
    (problem,) = Table(made(tmp_path / "a.parquet", [row]), heldout_size=0).train()
    assert problem.meta == {}


# Fields within fields, and messages


VERL = {
    "data_source": "mine",
    "prompt": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "What is 2 + 2?"},
    ],
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "extra_info": {"index": 7, "split": "train"},
}
VERL_FIELDS = {
    "question": "prompt",
    "answer": "reward_model.ground_truth",
    "id_field": "extra_info.index",
}


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.arrow"])
def test_rows_as_verl_has_them(tmp_path, name):
    path = made(tmp_path / name, [VERL])
    assert Table(path, heldout_size=0, **VERL_FIELDS).train() == [
        Problem(
            "7",
            "What is 2 + 2?",
            "4",
            meta={
                key: VERL[key] for key in ("data_source", "reward_model", "extra_info")
            },
            context=VERL["prompt"][:-1],
        )
    ]


def test_a_field_within_a_field_that_is_not_there_is_named(tmp_path):
    path = made(tmp_path / "a.jsonl", [VERL])
    fields = VERL_FIELDS | {"answer": "reward_model.ground_thruth"}
    message = the_error(Table(path, heldout_size=0, **fields).train)
    assert '"prompt", "reward_model.style", "reward_model.ground_truth"' in message
    assert message.endswith("set --config.data.answer=reward_model.ground_truth")


def test_a_name_with_a_dot_in_it_is_a_field_too(tmp_path):
    path = made(tmp_path / "a.csv", [{"question": "?", "a.b": "1"}])
    (problem,) = Table(path, heldout_size=0, answer="a.b").train()
    assert (problem.answer, problem.meta) == ("1", {})


def test_numbers_within_fields_keep_their_digits(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "?", "gold": {"value": 0.1000}}\n')
    (problem,) = Table(str(path), heldout_size=0, answer="gold.value").train()
    assert problem.answer == "0.1000"
    assert type(problem.meta["gold"]["value"]) is float


def turn(role: str, content: object = "text") -> dict:
    return {"role": role, "content": content}


def test_contents_in_parts_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert split_messages([turn("system"), turn("user", parts)]) == (
        [turn("system")],
        "ab",
    )


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "it has no messages"),
        (["text"], "message 1 has no role and content"),
        ([{"role": "user"}], "message 1 has no role and content"),
        (
            [turn("tool")],
            'message 1 has the role "tool", not one of system, user, assistant',
        ),
        ([turn("user", None)], "message 1 has a content that is not text"),
        (
            [turn("user", [{"type": "image"}])],
            "message 1 has a content that is not text",
        ),
        ([turn("system"), turn("user", " ")], "message 2 is blank"),
        ([turn("user"), turn("assistant")], "the last message is the assistant's"),
        ([turn("system")], "the last message is the system's; it must be the user's"),
        (
            [turn("user"), turn("user")],
            "message 2 is the user's where the assistant's turn is",
        ),
        (
            [turn("system"), turn("assistant"), turn("user")],
            "message 2 is the assistant's where the user's turn is",
        ),
        ([turn("user"), turn("system"), turn("user")], "message 2 is the system's"),
    ],
)
def test_what_is_no_conversation_is_refused_by_row_and_message(
    tmp_path, messages, says
):
    path = made(tmp_path / "a.jsonl", [VERL, VERL | {"prompt": messages}])
    message = the_error(Table(path, heldout_size=0, **VERL_FIELDS).train)
    assert message.startswith(f'{path} line 2: "prompt" is no conversation: {says}')


# Folders


def contents(problems) -> list[str]:
    return [problem.answer for problem in problems]


def save_to_disk(folder: Path, rows: list[dict], shards: int = 1) -> None:
    """Writes what `datasets.Dataset.save_to_disk` (5.2) does, and a file that it has cached."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05}-of-{shards:05}.arrow" for i in range(shards)]
    for i, name in enumerate(names):
        write_stream(folder / name, rows[i::shards])
    write_stream(folder / "cache-0123456789abcdef.arrow", rows)
    state = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": "5b67afba8845865e",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2))
    (folder / "dataset_info.json").write_text("{}")


def test_a_data_set_saved_to_disk(tmp_path):
    save_to_disk(tmp_path / "one", ROWS, shards=2)
    source = Table(str(tmp_path / "one"), heldout_size=1)
    assert contents(source.train()) == ["0.10", "4"]
    assert contents(source.heldout()) == ["-7"]
    ids = [problem.id for problem in (*source.train(), *source.heldout())]
    assert ids == [
        "data-00000-of-00002:train:1",
        "data-00000-of-00002:train:2",
        "data-00001-of-00002:heldout:1",
    ]


def test_a_dictionary_of_data_sets_saved_to_disk(tmp_path):
    save_to_disk(tmp_path / "train", ROWS)
    save_to_disk(tmp_path / "dev", ROWS[:1])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "dev"]}')
    path = str(tmp_path)
    assert contents(Table(path, heldout_size=1).heldout()) == ["4"]
    source = Table(path, heldout_split="dev")
    assert len(source.train()) == 3
    assert contents(source.heldout()) == ["0.10"]


HUB = [
    ("data/train-00000-of-00002.parquet", "train"),
    ("data/train-00001-of-00002.parquet", "train"),
    ("data/test-00000-of-00001.parquet", "test"),
    ("data/train_sft-00000-of-00001.parquet", "train_sft"),
    ("default/validation/0000.parquet", "validation"),
    ("gsm8k_dev.parquet", "validation"),
    ("test_trained.parquet", "test"),
    ("contest.parquet", "train"),
    ("problems.parquet", "train"),
    ("train/test.parquet", "test"),
]


@pytest.mark.parametrize(("name", "split"), HUB)
def test_a_file_of_a_folder_belongs_to_the_split_that_it_names(tmp_path, name, split):
    path = made(tmp_path / name, ROWS)
    (tmp_path / "README.md").write_text("about it")
    made(tmp_path / ".cache" / "huggingface" / name, ROWS)
    assert find_splits(tmp_path) == {split: [Path(path)]}


def test_a_folder_of_shards_as_on_the_hub(tmp_path):
    made(tmp_path / "data" / "train-00000-of-00002.parquet", ROWS[:2])
    made(tmp_path / "data" / "train-00001-of-00002.parquet", ROWS[2:])
    made(tmp_path / "data" / "test-00000-of-00001.parquet", ROWS[:1])
    path = str(tmp_path)
    source = Table(path)
    assert contents(source.train()) == ["0.10", "-7", "4"]
    assert contents(source.heldout()) == ["0.10"]
    ids = [problem.id for problem in (*source.train(), *source.heldout())]
    assert len(set(ids)) == 4
    # The test split alone, to train on.
    tail = Table(path, split="test", heldout_size=0)
    assert contents(tail.train()) == ["0.10"]
    # A folder as the held-out one.
    elsewhere = made(tmp_path / "mine.csv", ROWS)
    assert contents(Table(elsewhere, path + "/data").heldout()) == ["0.10"]
    assert len(Table(elsewhere, path + "/data").train()) == 3


def test_splits_that_are_not_there_are_refused(tmp_path):
    made(tmp_path / "s" / "train.csv", ROWS)
    made(tmp_path / "s" / "test.csv", ROWS)
    folder = str(tmp_path / "s")
    message = the_error(Table(folder, split="dev").train)
    assert message.startswith(f"{folder} has the splits test, train, and none is 'dev'")
    message = the_error(Table(folder, heldout_split="dev").heldout)
    assert message.endswith("set --config.data.heldout_split=test")
    message = the_error(Table(folder, heldout_split="train").heldout)
    assert "are both 'train'" in message
    message = the_error(Table(folder + "/test.csv", heldout_split="dev").heldout)
    assert "has no splits" in message


def test_folders_that_are_no_data_set_are_refused(tmp_path):
    assert "is a folder without data files" in the_error(Table(str(tmp_path)).train)
    made(tmp_path / "main" / "train.csv", ROWS)
    made(tmp_path / "socratic" / "train.csv", ROWS)
    message = the_error(Table(str(tmp_path)).train)
    assert f"has several data sets, {tmp_path}/main, {tmp_path}/socratic" in message
    made(tmp_path / "a.parquet", ROWS)
    assert "of several kinds (.csv .parquet)" in the_error(Table(str(tmp_path)).train)


def test_gsm8k_as_it_is_on_the_hub(tmp_path):
    row = {"question": "Two pens and three?", "answer": "2+3 = <<2+3=5>>5\n#### 5"}
    made(tmp_path / "main" / "train-00000-of-00001.parquet", [row])
    made(tmp_path / "main" / "test-00000-of-00001.parquet", [row])
    source = GSM8K(str(tmp_path / "main"))
    (problem,) = source.train()
    assert (problem.id, problem.answer) == ("gsm8k:train:1", "5")
    assert [problem.id for problem in source.heldout()] == ["gsm8k:heldout:1"]


# Names on the hub


@pytest.mark.parametrize(
    ("name", "command"),
    [
        (
            "openai/gsm8k",
            "hf download openai/gsm8k --repo-type dataset --local-dir openai/gsm8k",
        ),
        (
            "openai/gsm8k/main",
            "hf download openai/gsm8k --repo-type dataset --local-dir openai/gsm8k",
        ),
        ("nowhere", None),
        ("a/b.parquet", None),
        ("/openai/gsm8k", None),
        ("~/openai/gsm8k", None),
    ],
)
def test_a_data_set_of_the_hub_is_answered_with_the_command_that_fetches_it(
    name, command
):
    message = the_error(Table(name).train)
    assert message.startswith("there is no file ")
    assert message.endswith(f"fetch it: {command}" if command else "heldout_path")


def test_a_model_of_the_hub_is_answered_with_the_command_that_fetches_it():
    message = the_error(lambda: hf_folder.check_folder(Path("Qwen/Qwen2.5-0.5B")))
    assert message.endswith(
        "hf download Qwen/Qwen2.5-0.5B --local-dir Qwen/Qwen2.5-0.5B"
    )
    assert hub.fetch_hint("../Qwen2.5-0.5B") == ""


# The earlier name


def test_configs_and_runs_know_the_table_by_its_earlier_name_too():
    assert jsonl.Jsonl is Table
    assert resume.MOVED["jaxgrpo.data.jsonl:Jsonl"] == path_of(Table)
