"""Checks tools.translate against an endpoint on this machine that fails."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from jaxgrpo.data.translated import TranslatedGSM8K
from jaxgrpo.errors import UserError
from tests.chat_endpoint import Endpoint, in_korean
from tests.test_data import the_error, write_lines
from tests.tiny_runs import ROOT
from tools.translate import __main__ as translate
from tools.translate.checks import complaint, missing_numbers
from tools.translate.endpoint import AttemptError


def source_rows(count: int) -> list[dict]:
    return [
        {
            "question": f"Box {i} has {1000 * i + 0.5:,} apples. How many are in it?",
            "answer": f"So it is.\n#### {1000 * i:,}",
            "level": i,
        }
        for i in range(1, count + 1)
    ]


@pytest.fixture
def endpoint(monkeypatch):
    with Endpoint() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server
        server.shutdown()


def arguments(source: str, to: Path, **settings: object) -> list[str]:
    """Returns the command line of a test, with waits that are short."""
    defaults = {
        "source": source,
        "to": to,
        "language": "Korean",
        "model": "any",
        "concurrency": 4,
        "attempts": 12,
        "backoff": 0.001,
        "timeout": 30,
    }
    return [
        word
        for name, value in (defaults | settings).items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def exit_code(argv: list[str]) -> int:
    """Returns the code that the program ends with."""
    try:
        translate.main(argv)
    except SystemExit as error:
        return int(error.code)
    return 0


AGAIN = [
    "500",
    "503",
    "408",
    "429",
    "429 0.01",
    "429 Fri, 31 Dec 1999 23:59:59 GMT",
    "not JSON",
    "a list",
    "no choices",
    "null",
    "cut off",
    "closed",
    "half",
    "slow",
    "English",
    "no numbers",
    "empty",
    "solution",
]
"""What goes wrong, and is asked again."""


def test_a_translation_keeps_answers_numbers_and_fields(tmp_path, endpoint, capsys):
    rows = source_rows(20)
    source = write_lines(tmp_path / "en.jsonl", rows)
    to = tmp_path / "ko.jsonl"
    assert exit_code(arguments(source, to)) == 0
    assert "has all 20 rows" in capsys.readouterr().out
    assert read(to) == [
        row
        | {
            "source_line": line,
            "language": "ko",
            "source_question": row["question"],
            "question": in_korean(str(line), f"{1000 * line + 0.5:,}"),
        }
        for line, row in enumerate(rows, start=1)
    ]
    assert endpoint.keys == {"Bearer secret"}
    assert Counter(endpoint.boxes) == Counter(str(line) for line in range(1, 21))
    problems = TranslatedGSM8K(str(to), english_path=source, heldout_size=0).train()
    assert {p.id for p in problems} == {f"gsm8k_ko:train:{i}" for i in range(1, 21)}
    assert all(p.answer == str(1000 * int(p.id.split(":")[2])) for p in problems)


@pytest.mark.parametrize("fault", AGAIN)
def test_what_goes_wrong_is_asked_again(tmp_path, endpoint, fault):
    endpoint.fault = lambda call: fault if call == 0 else ""
    source = write_lines(tmp_path / "en.jsonl", source_rows(1))
    to = tmp_path / "ko.jsonl"
    timeout = 1.0 if fault == "slow" else 30
    assert exit_code(arguments(source, to, concurrency=1, timeout=timeout)) == 0
    assert endpoint.boxes == ["1", "1"]
    (row,) = read(to)
    assert row["question"] == in_korean("1", "1,000.5")


def test_the_model_is_told_what_was_wrong(tmp_path, endpoint):
    endpoint.fault = lambda call: ["no numbers", "English", ""][call]
    source = write_lines(tmp_path / "en.jsonl", source_rows(1))
    assert exit_code(arguments(source, tmp_path / "ko.jsonl")) == 0
    texts = [request["messages"][0]["content"] for request in endpoint.requests]
    assert "Korean (ISO 639-1: ko)" in texts[0]
    assert "was not taken" not in texts[0]
    assert "was not taken: it lacked these numbers, in digits: 1, 1,000.5." in texts[1]
    assert "was not taken: only 0% of its words were in the language" in texts[2]


def test_all_is_translated_though_a_third_of_the_calls_fails(tmp_path, endpoint):
    dice = random.Random(0)
    faults = [fault for fault in AGAIN if fault != "slow"]
    endpoint.fault = lambda call: dice.choice(faults) if dice.random() < 0.3 else ""
    endpoint.delay = 0.002
    source = write_lines(tmp_path / "en.jsonl", source_rows(120))
    to = tmp_path / "ko.jsonl"
    assert exit_code(arguments(source, to, concurrency=8)) == 0
    assert [row["source_line"] for row in read(to)] == list(range(1, 121))
    assert len(endpoint.boxes) > 140
    assert endpoint.most_busy <= 8


@pytest.mark.parametrize("asked", [0.0, 5.0, 3600.0])
def test_waits_double_up_to_a_minute_or_are_what_the_endpoint_asks(asked):
    waits = []

    class Clock(threading.Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            return False

    class Busy:
        def ask(self, text: str) -> str:
            raise AttemptError("status 429", asked)

    translator = translate.Translator(Busy(), "ko", 9, 1.0, 0.7, Clock())
    with pytest.raises(AttemptError, match="status 429"):
        translator.translate("2 + 2?")
    assert len(waits) == 8
    for count, wait in enumerate(waits):
        expected = min(max(asked, 2.0**count), 60.0)
        assert 0.75 * expected <= wait <= 1.25 * expected


def test_what_fails_is_listed_and_tried_again(tmp_path, endpoint, capsys):
    source = write_lines(tmp_path / "en.jsonl", source_rows(6))
    to = tmp_path / "ko.jsonl"
    listed = tmp_path / "ko.jsonl.failed.jsonl"
    # Two calls that will not do, and one that is not asked again.
    endpoint.fault = lambda call: {0: "English", 1: "500", 2: "400"}.get(call, "")
    settings = {"concurrency": 1, "attempts": 2}
    assert exit_code(arguments(source, to, **settings)) == 1
    assert "has 4 of 6 rows; the other 2 are in" in capsys.readouterr().err
    assert [(row["source_line"], row["reason"][:10]) for row in read(listed)] == [
        (1, "status 500"),
        (2, "status 400"),
    ]
    assert endpoint.boxes == ["1", "1", "2", "3", "4", "5", "6"]
    assert exit_code(arguments(source, to, **settings)) == 0
    assert endpoint.boxes[7:] == ["1", "2"]
    assert not listed.exists()
    assert len(read(to)) == 6


def test_an_endpoint_that_is_at_fault_ends_the_program(tmp_path, endpoint):
    source = write_lines(tmp_path / "en.jsonl", source_rows(200))
    argv = arguments(source, tmp_path / "ko.jsonl", attempts=1, concurrency=1)
    endpoint.fault = lambda call: "" if call < 3 else "500"
    endpoint.delay = 0.01
    message = the_error(lambda: translate.main(argv))
    assert "20 rows failed one after the other, the last by: status 500" in message
    assert len(endpoint.boxes) < 200
    # The same command goes on.
    before = len(endpoint.boxes)
    endpoint.fault = lambda call: ""
    endpoint.delay = 0.0
    assert exit_code(argv) == 0
    assert endpoint.boxes[before:] == [str(line) for line in range(4, 201)]


@pytest.mark.parametrize("status", ["401", "403", "404"])
def test_a_key_or_a_model_that_is_refused_ends_the_program(tmp_path, endpoint, status):
    endpoint.fault = lambda call: status
    endpoint.delay = 0.01
    source = write_lines(tmp_path / "en.jsonl", source_rows(100))
    argv = arguments(source, tmp_path / "ko.jsonl", concurrency=1)
    message = the_error(lambda: translate.main(argv))
    assert f"answers {status}" in message
    assert "check OPENAI_BASE_URL, OPENAI_API_KEY and --model" in message
    assert "secret" not in message
    assert len(endpoint.boxes) < 100
    endpoint.fault = lambda call: ""
    endpoint.delay = 0.0
    assert exit_code(argv) == 0


def test_it_goes_on_after_sigkill_and_asks_nothing_twice(tmp_path, endpoint):
    endpoint.delay = 0.02
    source = write_lines(tmp_path / "en.jsonl", source_rows(80))
    to = tmp_path / "ko.jsonl"
    argv = arguments(source, to)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.translate", *argv], cwd=ROOT, env=environment
    )
    try:
        while not to.exists() or to.read_bytes().count(b"\n") < 10:
            assert process.poll() is None, "it ended by itself"
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    on_disk = {row["source_line"] for row in read(to)}
    assert 10 <= len(on_disk) < 80
    # As if it had been killed in the middle of a line, and of a letter.
    content = to.read_bytes()
    torn = content[: content.index(b"\n")]
    to.write_bytes(content + torn[: torn.rindex("상".encode()) + 1])
    # A request that was under way is heard of before the second run begins.
    while endpoint.busy:
        time.sleep(0.01)
    asked = len(endpoint.boxes)
    endpoint.delay = 0.0
    assert exit_code(argv) == 0
    missing = set(range(1, 81)) - on_disk
    assert Counter(endpoint.boxes[asked:]) == Counter(str(line) for line in missing)
    assert [row["source_line"] for row in read(to)] == list(range(1, 81))
    assert exit_code(argv) == 0
    assert len(endpoint.boxes) == asked + len(missing)


def test_a_last_line_that_is_whole_is_kept(tmp_path, endpoint):
    source = write_lines(tmp_path / "en.jsonl", source_rows(3))
    to = tmp_path / "ko.jsonl"
    assert exit_code(arguments(source, to, limit=2)) == 0
    to.write_bytes(to.read_bytes().rstrip(b"\n"))
    assert exit_code(arguments(source, to, limit=1)) == 0
    assert exit_code(arguments(source, to)) == 0
    assert sorted(endpoint.boxes) == ["1", "2", "3"]
    assert len(read(to)) == 3


def test_a_file_of_something_else_is_not_appended_to(tmp_path, endpoint):
    source = write_lines(tmp_path / "en.jsonl", source_rows(2))
    to = tmp_path / "ko.jsonl"
    assert exit_code(arguments(source, to)) == 0
    content = to.read_bytes()
    other = write_lines(tmp_path / "other.jsonl", source_rows(3)[1:])
    for argv in (arguments(source, to, language="ja"), arguments(other, to)):
        message = the_error(lambda argv=argv: translate.main(argv))
        assert message.startswith(f"{to} line 1: ")
        assert "give another --to" in message
    assert to.read_bytes() == content
    assert len(endpoint.boxes) == 2
    assert exit_code(arguments(other, tmp_path / "another.jsonl")) == 0


def test_bad_input_is_refused_before_anything_is_asked(tmp_path, endpoint, monkeypatch):
    rows = source_rows(2)
    source = write_lines(tmp_path / "en.jsonl", [rows[0], rows[1] | {"answer": " "}])
    to = tmp_path / "ko.jsonl"
    message = the_error(lambda: translate.main(arguments(source, to)))
    assert message.startswith(f'{source} line 2: "answer" is not there or has no text')
    assert "give --answer another field" in message
    argv = arguments(source, to, language="Klingon")
    assert "not a language that can be told" in the_error(lambda: translate.main(argv))
    argv = arguments(source, to, attempts=0)
    assert "--attempts is 0: it must be at least 1" in the_error(
        lambda: translate.main(argv)
    )
    monkeypatch.delenv("OPENAI_BASE_URL")
    with pytest.raises(UserError, match="OPENAI_BASE_URL is not set: set it to"):
        translate.main(arguments(source, to))
    assert endpoint.boxes == []
    assert not to.exists()
    # What is said can be done.
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    argv = arguments(source, to, answer="level", attempts=1)
    assert exit_code(argv) == 0
    assert {row["answer"] for row in read(to)} == {"1", "2"}


@pytest.mark.parametrize(
    ("source", "translation", "language", "missing"),
    [
        ("1,234.5 and 7", "1.234,5 und 7", "de", []),
        ("80,000 for 3 of 100", "80 000 за 3 из 100", "ru", []),
        (".5 hours, 1/4", "0,5 часа, 1/4", "ru", []),
        ("12 of 5", "১২ ও ৫", "bn", []),
        ("$5.00", "5 달러", "ko", []),
        ("4 cats, 4 dogs", "고양이 4마리와 개", "ko", ["4"]),
        ("1.5 and 2", "15와 2", "ko", ["1.5"]),
        ("80,000", "8만", "ko", ["80,000"]),
        ("two", "둘", "ko", []),
    ],
)
def test_numbers_are_preserved(source, translation, language, missing):
    assert missing_numbers(source, translation, language) == missing


def test_the_language_is_measured():
    korean = in_korean("3", "4")
    assert complaint("Box 3 has 4 apples.", korean, "ko", 0.7) == ""
    assert "in the language" in complaint("Box 3 has 4 apples.", korean, "ja", 0.7)
