"""Checks problems from files and from TFDS, and the order in which they are asked."""

import functools
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from jaxgrpo.data.gsm8k import GSM8K, split_answer
from jaxgrpo.data.order import ProblemOrder
from jaxgrpo.data.table import Table
from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problem


def write_lines(path: Path, rows: list) -> str:
    """Writes each row as JSON, or as it is if it is text already; returns the path as text."""
    lines = [
        row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)
        for row in rows
    ]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def rows(count: int) -> list[dict]:
    return [
        {"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(count)
    ]


def the_error(call) -> str:
    """Returns the message of the UserError that `call` raises: one line of moderate length."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


# Table, of JSON Lines; tests/test_table.py has what else it reads


def test_jsonl_reads_every_field_it_is_told_of(tmp_path):
    row = {
        "Q": "사과가 몇 개?",
        "A": 42,
        "lang": "ko",
        "hard": "Level 3",
        "key": "k1",
        "subject": "apples",
        "n": [1, 2],
    }
    path = write_lines(tmp_path / "mine.jsonl", [row])
    source = Table(
        path,
        "",
        "Q",
        "A",
        language_field="lang",
        level_field="hard",
        id_field="key",
        heldout_size=0,
    )
    assert list(source.train()) == [
        Problem(
            "k1",
            "사과가 몇 개?",
            "42",
            language="ko",
            level=3,
            meta={"subject": "apples", "n": [1, 2]},
        )
    ]


def test_jsonl_defaults_where_the_file_has_no_such_fields(tmp_path):
    path = write_lines(tmp_path / "mine.jsonl", ["", *rows(1), "   "])
    assert list(Table(path, heldout_size=0, language="uk").train()) == [
        Problem("mine:train:2", "What is 0 + 1?", "1", language="uk")
    ]


@pytest.mark.parametrize(
    ("answer", "text"),
    [(42, "42"), (-0.5, "-0.5"), ("1/2", "1/2"), ("x=\u2028 1", "x=\u2028 1")],
)
def test_jsonl_answers_are_text_or_numbers(tmp_path, answer, text):
    path = write_lines(tmp_path / "a.jsonl", [{"question": "?", "answer": answer}])
    assert Table(path, heldout_size=0).train()[0].answer == text


NUMBERS = [
    "123456789012345678.5",
    "0.1000",
    "1e-7",
    "1.50E+3",
    "-0.5",
    "12345678901234567890123",
    "0",
]


@pytest.mark.parametrize("number", NUMBERS)
def test_jsonl_numbers_keep_the_digits_of_the_file(tmp_path, number):
    row = '{"question": "?", "answer": N, "key": N, "other_answers": ["x", N], "n": [0.10]}'
    path = write_lines(tmp_path / "a.jsonl", [row.replace("N", number)])
    (problem,) = Table(path, heldout_size=0, id_field="key").train()
    assert (problem.answer, problem.id) == (number, number)
    assert list(map(str, problem.meta["other_answers"])) == ["x", number]
    assert problem.meta["n"] == [0.1]
    assert type(problem.meta["n"][0]) is float


def test_gsm8k_numbers_keep_the_digits_of_the_file(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl", ['{"question": 0.10, "answer": "#### 0.10"}']
    )
    (problem,) = GSM8K(path, heldout_size=0).train()
    assert (problem.prompt, problem.answer) == ("0.10", "0.10")


SURROGATES = [
    (r"smile \ud83d face", "smile \ufffd face"),
    (r"2 + 2? \uD83D", "2 + 2? \ufffd"),
    (r"a \udc00 b", "a \ufffd b"),
    (r"\ud83d\ud83d\ude00\ude00", "\ufffd\U0001f600\ufffd"),
    (r"\\ud83d", r"\ud83d"),
    (r"\\\ud83d", "\\\ufffd"),
]


@pytest.mark.parametrize(("escaped", "text"), SURROGATES)
def test_half_a_surrogate_pair_becomes_a_character_in_the_whole_row(
    tmp_path, escaped, text
):
    row = '{"question": "X", "answer": "X", "key": "X", "m": {"X": ["X", 1]}}'.replace(
        "X", escaped
    )
    path = write_lines(tmp_path / "a.jsonl", [row])
    (problem,) = Table(path, heldout_size=0, id_field="key").train()
    assert problem == Problem(text, text, text, meta={"m": {text: [text, 1]}})
    assert json.dumps([problem.prompt, problem.meta], ensure_ascii=False).encode()


def test_gsm8k_reads_half_a_surrogate_pair_alike(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl", [r'{"question": "a \ud83d", "answer": "\udc00\n#### 7"}']
    )
    (problem,) = GSM8K(path, heldout_size=0).train()
    assert (problem.prompt, problem.meta["solution"]) == ("a \ufffd", "\ufffd")


@pytest.mark.parametrize(
    "language", ["pt-BR", "pt", "PT", "por", "Portuguese", "Português"]
)
def test_jsonl_languages_go_by_one_code(tmp_path, language):
    path = write_lines(
        tmp_path / "a.jsonl", [{**row, "lang": language} for row in rows(1)]
    )
    assert (
        Table(path, heldout_size=0, language_field="lang").train()[0].language == "pt"
    )
    assert Table(path, heldout_size=0, language=language).train()[0].language == "pt"


@pytest.mark.parametrize("language", ["Klingon", "xx", "sr-Latn", 3])
def test_jsonl_refuses_languages_that_cannot_be_told(tmp_path, language):
    path = write_lines(
        tmp_path / "a.jsonl",
        [{**rows(1)[0], "lang": "en"}, {**rows(1)[0], "lang": language}],
    )
    message = the_error(Table(path, heldout_size=0, language_field="lang").train)
    assert message.startswith(
        f'{path} line 2: "lang" is "{language}", not a language that can be told'
    )
    message = the_error(Table(path, heldout_size=0, language=str(language)).heldout)
    assert message.startswith(
        f"--config.data.language is '{language}', not a language that can be told"
    )


@pytest.mark.parametrize(("level", "expected"), [(5, 5), ("5", 5), ("Level 5", 5)])
def test_jsonl_levels_are_whole_numbers(tmp_path, level, expected):
    path = write_lines(
        tmp_path / "a.jsonl", [{"question": "?", "answer": "1", "level": level}]
    )
    assert Table(path, heldout_size=0, level_field="level").train()[0].level == expected


def test_jsonl_holds_out_its_tail_and_never_trains_on_it(tmp_path):
    source = Table(write_lines(tmp_path / "a.jsonl", rows(10)), heldout_size=3)
    assert [p.answer for p in source.train()] == [str(i) for i in range(1, 8)]
    assert [p.answer for p in source.heldout()] == ["8", "9", "10"]
    assert not {p.id for p in source.train()} & {p.id for p in source.heldout()}


def test_jsonl_with_a_heldout_file_trains_on_everything(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    train, heldout = (
        write_lines(tmp_path / folder / "data.jsonl", rows(2)) for folder in ("a", "b")
    )
    source = Table(train, heldout)
    assert len(source.train()) == len(source.heldout()) == 2
    assert not {p.id for p in source.train()} & {p.id for p in source.heldout()}


def test_jsonl_reads_a_file_that_starts_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(rows(1)[0]).encode() + b"\r\n")
    assert len(Table(str(path), heldout_size=0).train()) == 1


BAD_LINES = [
    ("{not json}", "is not JSON (column 2"),
    ('{"question": "?", "answer": NaN}', "NaN is not a JSON number"),
    ("[" * 100_000, "is not JSON"),
    ("[1, 2]", "is a list, not an object"),
    ({"question": "?", "answer": ["1"]}, '"answer" is a list, not text or a number'),
    ({"question": "?", "answer": True}, '"answer" is true or false'),
    ({"question": "?", "answer": None}, '"answer" is null'),
    ({"question": " ", "answer": "1"}, '"question" is blank'),
    (
        '{"question": "?", "answer": 1e999}',
        '"answer" is 1e999, too large for a number; write it as text',
    ),
    (
        '{"question": "?", "answer": -1e999}',
        '"answer" is -1e999, too large for a number; write it as text',
    ),
    (
        '{"question": "?", "answer": ' + "9" * 5000 + "}",
        "a number of 5,000 digits; write it as text",
    ),
    (
        '{"question": "?", "answer": "1", "question": "!"}',
        'the field "question" stands in it twice',
    ),
    ({"question": {"text": "?"}, "answer": "1"}, '"question" is an object, not text'),
    (
        {"question": "?", "Answer": "1"},
        'no field "answer", only "question", "Answer"; set --config.data.answer=Answer',
    ),
    (
        {"problem": "?", "answer": "1"},
        'no field "question", only "problem", "answer"; set --config.data.question to',
    ),
    ({}, "only no fields"),
]


@pytest.mark.parametrize(("row", "expected"), BAD_LINES)
def test_jsonl_errors_name_the_file_the_line_and_the_mend(tmp_path, row, expected):
    path = write_lines(tmp_path / "a.jsonl", [*rows(1), "", row])
    message = the_error(Table(path, heldout_size=0).train)
    assert message.startswith(f"{path} line 3")
    assert expected in message


@pytest.mark.parametrize("level", ["hard", -1, 1.5, "1 to 3"])
def test_jsonl_refuses_levels_that_are_no_whole_numbers(tmp_path, level):
    path = write_lines(
        tmp_path / "a.jsonl", [{"question": "?", "answer": "1", "level": level}]
    )
    assert "not a level like 3" in the_error(
        Table(path, heldout_size=0, level_field="level").train
    )


def test_jsonl_refuses_two_problems_with_one_id(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{**row, "id": 7} for row in rows(2)])
    assert 'line 2: the id "7" is that of line 1 too' in the_error(
        Table(path, heldout_size=0, id_field="id").train
    )


def test_jsonl_errors_about_the_file_itself(tmp_path):
    missing = tmp_path / "no.jsonl"
    empty = tmp_path / "empty.jsonl"
    latin = tmp_path / "latin.jsonl"
    empty.write_text("\n\n")
    latin.write_bytes('{"question": "é"}'.encode("latin-1"))
    assert "set --config.data.path" in the_error(Table().train)
    assert f"no file {missing}" in the_error(Table(str(missing)).train)
    assert "has no rows" in the_error(Table(str(empty)).train)
    assert "line 1 is not UTF-8 (byte 15)" in the_error(Table(str(latin)).train)


@pytest.mark.parametrize("size", [-1, 5, 256])
def test_jsonl_refuses_to_hold_out_everything(tmp_path, size):
    source = Table(write_lines(tmp_path / "a.jsonl", rows(5)), heldout_size=size)
    for split in (source.train, source.heldout):
        message = the_error(split)
        assert "has 5 problems" in message
        assert f"heldout_size={size}" in message


# GSM8K

NOWHERE = {split: f"http://127.0.0.1:9/{split}.jsonl" for split in ("train", "test")}
OFFICIAL = [
    {"question": "Two pens and three?", "answer": "2+3 = <<2+3=5>>5\n#### 5"},
    {"question": "How far?", "answer": "Step ####1\n#### 1,234,567"},
    {"question": "What is left?", "answer": "10 - 12 = -2\n#### -2"},
]


def test_gsm8k_takes_the_number_after_the_last_mark(tmp_path):
    path = write_lines(tmp_path / "train.jsonl", OFFICIAL)
    problems = GSM8K(path, path).train()
    assert [p.answer for p in problems] == ["5", "1234567", "-2"]
    assert problems[0] == Problem(
        "gsm8k:train:1",
        "Two pens and three?",
        "5",
        meta={"solution": "2+3 = <<2+3=5>>5"},
    )


@pytest.mark.parametrize("answer", ["42", "so it is 42 ###42", "####", "#### ,"])
def test_gsm8k_refuses_an_answer_without_the_mark(tmp_path, answer):
    path = write_lines(
        tmp_path / "train.jsonl", [OFFICIAL[0], {"question": "?", "answer": answer}]
    )
    message = the_error(GSM8K(path, heldout_size=0).train)
    assert message.startswith(f"{path} line 2: ")
    assert "####" in message


def test_gsm8k_gold_is_what_split_answer_says():
    assert split_answer("a\nb\n#### 1,000 ", "here") == ("a\nb", "1000")
    assert split_answer("a\n#### 1,000\nb", "here") == ("a", "1000")


@pytest.fixture
def builder(tmp_path, monkeypatch):
    """Returns the module of the TFDS builder, its files served from this machine.

    Their checksums are not those of the official files, so none are asked for.
    """
    from jaxgrpo.data import gsm8k_builder as module

    served = tmp_path / "served"
    served.mkdir()
    write_lines(served / "train.jsonl", OFFICIAL)
    write_lines(served / "test.jsonl", OFFICIAL[:2])

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=served)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(
            module,
            "URLS",
            {split: f"{address}/{split}.jsonl" for split in ("train", "test")},
        )
        monkeypatch.setattr(module.GSM8KBuilder, "url_infos", None)
        yield module
        server.shutdown()


def test_gsm8k_through_tfds_is_gsm8k_from_files(tmp_path, builder):
    served = tmp_path / "served"
    files = GSM8K(str(served / "train.jsonl"), str(served / "test.jsonl"))
    prepared = GSM8K(data_dir=str(tmp_path / "prepared"))
    for expected, actual in (
        (files.train(), prepared.train()),
        (files.heldout(), prepared.heldout()),
    ):
        assert sorted(actual, key=lambda p: p.id) == list(expected)
    assert prepared.train()[-1] == prepared.train()[2] == prepared.train()[1:][1]
    with pytest.raises(IndexError):
        prepared.train()[3]


def test_gsm8k_is_downloaded_once(tmp_path, builder, monkeypatch):
    first = list(GSM8K(data_dir=str(tmp_path / "prepared")).train())
    monkeypatch.setattr(builder, "URLS", NOWHERE)
    assert list(GSM8K(data_dir=str(tmp_path / "prepared")).train()) == first


def test_gsm8k_without_a_network_says_what_to_do(tmp_path, builder, monkeypatch):
    monkeypatch.setattr(builder, "URLS", NOWHERE)
    message = the_error(GSM8K(data_dir=str(tmp_path / "prepared")).train)
    assert f"not prepared in {tmp_path / 'prepared'}" in message
    assert "--config.data.path=gsm8k_train.jsonl" in message


def test_gsm8k_refuses_a_download_that_is_not_the_official_file(
    tmp_path, builder, monkeypatch
):
    info = builder._url_info(4_166_206, "0" * 64)
    monkeypatch.setattr(
        builder.GSM8KBuilder, "url_infos", {builder.URLS["train"]: info}
    )
    assert "NonMatchingChecksumError" in the_error(
        GSM8K(data_dir=str(tmp_path / "prepared")).train
    )


def test_gsm8k_builder_says_where_it_is_from(tmp_path, builder):
    info = builder.GSM8KBuilder(data_dir=str(tmp_path)).info
    assert (info.name, str(info.version), info.homepage) == (
        "gsm8k",
        "1.0.0",
        builder.HOMEPAGE,
    )
    assert "2110.14168" in info.citation


def test_gsm8k_from_files_does_not_need_tfds():
    code = (
        "import sys, jaxgrpo.data.gsm8k; sys.exit('tensorflow_datasets' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# Order


class ProblemsOnDemand(Sequence):
    """Problems that are made when they are asked for; remembers which were."""

    def __init__(self, count: int):
        self.count = count
        self.made: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Problem:
        if not 0 <= index < self.count:
            raise IndexError(index)
        self.made.append(index)
        return Problem(str(index), f"What is {index}?", str(index))


def ids(problems) -> list[str]:
    return [problem.id for problem in problems]


def test_order_asks_each_problem_once_a_pass_and_each_pass_anew():
    order = ProblemOrder(ProblemsOnDemand(50), seed=0)
    passes = [ids(order.take(50)) for _ in range(3)]
    assert all(sorted(one, key=int) == [str(i) for i in range(50)] for one in passes)
    assert len({tuple(one) for one in passes}) == 3


def test_order_is_a_function_of_the_seed():
    assert ids(ProblemOrder(ProblemsOnDemand(50), seed=1).take(70)) == ids(
        ProblemOrder(ProblemsOnDemand(50), seed=1).take(70)
    )
    assert ids(ProblemOrder(ProblemsOnDemand(50), seed=1).take(50)) != ids(
        ProblemOrder(ProblemsOnDemand(50), seed=2).take(50)
    )


def test_order_of_the_second_pass_is_not_that_of_the_next_seed():
    order = ProblemOrder(ProblemsOnDemand(50), seed=0)
    order.take(50)
    assert ids(order.take(50)) != ids(
        ProblemOrder(ProblemsOnDemand(50), seed=1).take(50)
    )


@pytest.mark.parametrize("stop", [0, 7, 30, 31, 75])
def test_order_resumed_goes_on_as_if_it_had_never_stopped(stop):
    whole = ids(ProblemOrder(ProblemsOnDemand(30), seed=3).take(100))
    first = ProblemOrder(ProblemsOnDemand(30), seed=3)
    before = ids(first.take(stop))
    resumed = ProblemOrder(ProblemsOnDemand(30), seed=3)
    resumed.restore(json.loads(json.dumps(first.state())))
    assert (resumed.position, resumed.epoch) == (stop, stop // 30)
    assert before + ids(resumed.take(100 - stop)) == whole


def test_order_does_not_depend_on_how_many_are_taken_at_once():
    by_ones = ProblemOrder(ProblemsOnDemand(30), seed=3)
    at_once = ProblemOrder(ProblemsOnDemand(30), seed=3)
    assert [ids(by_ones.take(1))[0] for _ in range(40)] == ids(at_once.take(40))
    assert at_once.take(0) == []


def test_order_makes_only_the_problems_it_hands_out():
    problems = ProblemsOnDemand(100_000)
    order = ProblemOrder(problems, seed=0)
    order.restore({**order.state(), "position": 10**9})
    problems.made.clear()  # the type checker of the tests looks at one
    handed_out = order.take(3)
    assert [str(index) for index in problems.made] == ids(handed_out)
    assert order.epoch == 10_000


def test_order_keeps_its_place_when_a_problem_cannot_be_read():
    problems = ProblemsOnDemand(5)
    order = ProblemOrder(problems, seed=0)
    problems.count = 0
    with pytest.raises(IndexError):
        order.take(2)
    assert order.position == 0


def test_order_refuses_another_order_than_the_saved_one():
    state = ProblemOrder(ProblemsOnDemand(30), seed=3).state()
    message = the_error(
        lambda: ProblemOrder(ProblemsOnDemand(31), seed=3).restore(state)
    )
    assert "problems=30" in message
    assert "problems=31" in message
    message = the_error(
        lambda: ProblemOrder(ProblemsOnDemand(30), seed=4).restore(state)
    )
    assert "seed=3" in message
    assert "seed=4" in message


def test_order_refuses_no_problems_and_seeds_out_of_range():
    assert "no problems" in the_error(lambda: ProblemOrder([], seed=0))
    for seed in (-1, 2**32):
        assert f"seed {seed}" in the_error(
            lambda seed=seed: ProblemOrder(ProblemsOnDemand(3), seed=seed)
        )
