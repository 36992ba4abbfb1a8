"""Checks the named data sets, on small files of their official forms."""

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from jaxgrpo.data.benchmarks import (
    AIME24,
    AIME25,
    AMC23,
    MATH500,
    MGSM,
    Benchmark,
    GlobalMMLULite,
    MinervaMath,
    OlympiadBench,
)
from jaxgrpo.data.competitions import MATH, NuminaMath, SimpleRLZoo
from jaxgrpo.data.jsonl import Jsonl
from jaxgrpo.problems import Problem, Source
from jaxgrpo.rewards import maths
from tests.test_data import the_error, write_lines


def write_parquet(path: Path, rows: list[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def is_right(problem: Problem, answer: str) -> bool:
    return maths.accuracy(problem, f"So it is \\boxed{{{answer}}}.") == 1.0


# Sets to evaluate on

MATH500_ROW = {
    "problem": "Convert the point $(0,3)$.",
    "solution": r"So $\boxed{\left( 3, \frac{\pi}{2} \right)}$.",
    "answer": r"\left( 3, \frac{\pi}{2} \right)",
    "subject": "Precalculus",
    "level": 2,
    "unique_id": "test/precalculus/807.json",
}
AMC_ROW = {"id": 4, "problem": "How far?", "answer": 27.0, "url": "https://a"}
AIME24_ROW = {
    "id": 60,
    "problem": "How many minutes?",
    "solution": "So 204.",
    "answer": "204",
    "url": "https://a",
}
AIME25_ROW = {"problem": "Find the sum.", "answer": "70", "id": "0"}
MINERVA_ROW = {
    "problem": "Find the diameter.",
    "solution": r"Start with $s=\boxed{1.6} \mathrm{~cm}$.",
    "type": "Introduction to Astronomy",
    "idx": 0,
}
OLYMPIAD_ROW = {
    "id": 1606,
    "subfield": "Combinatorics",
    "context": None,
    "question": "How many moves?",
    "solution": ["Two."],
    "final_answer": ["$2n-2$"],
    "is_multiple_answer": False,
    "unit": None,
    "answer_type": "Numerical",
    "error": None,
}

SETS = [
    (MATH500, MATH500_ROW, r"(3, \pi/2)"),
    (AMC23, AMC_ROW, "27"),
    (AIME24, AIME24_ROW, "204"),
    (AIME25, AIME25_ROW, "70"),
    (MinervaMath, MINERVA_ROW, "1.6"),
    (OlympiadBench, OLYMPIAD_ROW, "2(n-1)"),
]


@pytest.mark.parametrize(("cls", "row", "answer"), SETS)
def test_a_set_is_read_by_its_official_fields(tmp_path, cls, row, answer):
    other = row | {cls.ID: "7"}
    path = write_lines(tmp_path / "test.jsonl", [row, other])
    source = cls(path)
    assert isinstance(source, Source)
    first, second = source.heldout()
    name = cls.__name__.lower()
    assert (first.id, second.id) == (f"{name}:{row[cls.ID]}", f"{name}:7")
    assert first.prompt == row[cls.QUESTION]
    assert first.level == row.get("level", 0)
    assert is_right(first, answer)
    assert not is_right(first, "9999")


@pytest.mark.parametrize(("cls", "row", "answer"), SETS)
def test_a_broken_row_of_a_set_is_named_by_its_line(tmp_path, cls, row, answer):
    broken = {name: value for name, value in row.items() if name != cls.ANSWER}
    path = write_lines(tmp_path / "test.jsonl", [row, "", broken])
    message = the_error(cls(path).heldout)
    assert message.startswith(f'{path} line 3: there is no field "{cls.ANSWER}"')
    assert "--config.data.path to a file that has it" in message


@pytest.mark.parametrize(("cls", "row", "answer"), SETS)
def test_a_set_to_evaluate_on_is_not_trained_on(tmp_path, cls, row, answer):
    source = cls(write_lines(tmp_path / "test.jsonl", [row]))
    message = the_error(source.train)
    assert message.startswith(f"{cls.__name__} is a set to evaluate on")
    assert "set config.data to one" in message
    assert len(source.heldout()) == 1


@pytest.mark.parametrize("cls", Benchmark.__subclasses__())
def test_a_set_without_a_file_says_where_it_is(cls):
    message = the_error(cls().heldout)
    assert f"fetch it from {cls.SOURCE}" in message
    assert "Source" in cls.__doc__


def test_olympiadbench_has_single_answers_and_no_pictures(tmp_path):
    rows = [
        OLYMPIAD_ROW,
        OLYMPIAD_ROW | {"id": 2, "is_multiple_answer": True, "final_answer": ["1,2"]},
        OLYMPIAD_ROW | {"id": 3, "image_1": {"bytes": "..."}},
        OLYMPIAD_ROW | {"id": 4, "context": "A game."},
    ]
    path = write_lines(tmp_path / "test.jsonl", rows)
    problems = OlympiadBench(path).heldout()
    assert [p.id for p in problems] == ["olympiadbench:1606", "olympiadbench:4"]
    assert problems[1].prompt == "A game.\n\nHow many moves?"
    assert len(OlympiadBench(path, multiple_answers=True).heldout()) == 3


@pytest.mark.parametrize("answers", ["2", [], ["1", "2"]])
def test_olympiadbench_wants_a_list_of_one_answer(tmp_path, answers):
    row = OLYMPIAD_ROW | {"final_answer": answers}
    path = write_lines(tmp_path / "test.jsonl", [row])
    message = the_error(OlympiadBench(path).heldout)
    assert "line 1" in message
    assert "a list of one text is wanted" in message


# MGSM


def write_mgsm(folder: Path) -> None:
    texts = {"en": "How much, Sue?\t5,600\nTwo?\t2\n", "ja": "いくら?\t5,600\n二?\t2\n"}
    for language, text in texts.items():
        (folder / f"mgsm_{language}.tsv").write_text(text, encoding="utf-8")


def test_mgsm_is_a_file_a_language(tmp_path):
    write_mgsm(tmp_path)
    problems = MGSM(str(tmp_path)).heldout()
    assert [p.id for p in problems] == [
        "mgsm:en:1",
        "mgsm:en:2",
        "mgsm:ja:1",
        "mgsm:ja:2",
    ]
    assert problems[2] == Problem("mgsm:ja:1", "いくら?", "5600", language="ja")
    assert len(MGSM(str(tmp_path), languages=("ja",)).heldout()) == 2
    assert len(MGSM(str(tmp_path / "mgsm_en.tsv")).heldout()) == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("no tab", "it has 1 columns, separated by tabs; 2 are wanted"),
        ("a\tb\t1", "it has 3 columns"),
        ("a\t ", '"answer" is blank'),
        (b"\xff\t1", "is not UTF-8 (byte 1); save the file as UTF-8"),
    ],
)
def test_a_broken_line_of_mgsm_is_named(tmp_path, line, reason):
    path = tmp_path / "mgsm_en.tsv"
    content = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b"Two?\t2\n" + content + b"\n")
    message = the_error(MGSM(str(path)).heldout)
    assert message.startswith(f"{path} line 2")
    assert reason in message


def test_mgsm_errors_about_the_files(tmp_path):
    (tmp_path / "questions.tsv").write_text("Two?\t2\n")
    assert "no file mgsm_*.tsv; fetch them from" in the_error(
        MGSM(str(tmp_path)).heldout
    )
    assert "name it as the official files are" in the_error(
        MGSM(str(tmp_path / "questions.tsv")).heldout
    )
    assert "there is no file" in the_error(MGSM(str(tmp_path), ("ko",)).heldout)


# Global-MMLU-Lite

MMLU_ROW = {
    "sample_id": "business_ethics/test/4",
    "subject": "business_ethics",
    "subject_category": "Business",
    "question": "얼마입니까?",
    "option_a": "41",
    "option_b": "42",
    "option_c": "$B$",
    "option_d": "D",
    "answer": "B",
    "cultural_sensitivity_label": "CA",
    "is_annotated": True,
}


def test_global_mmlu_lite_is_verified_by_letter_or_text(tmp_path):
    path = write_parquet(tmp_path / "ko" / "test-00000-of-00001.parquet", [MMLU_ROW])
    (problem,) = GlobalMMLULite(path).heldout()
    assert problem.prompt == "얼마입니까?\nA. 41\nB. 42\nC. $B$\nD. D"
    assert problem.language == "ko"
    assert problem.meta["cultural_sensitivity_label"] == "CA"
    for answer in ("B", "(B)", r"\text{B}", "42", "B. 42"):
        assert is_right(problem, answer), answer
    for answer in ("A", "C", "D", "41", "A. 41"):
        assert not is_right(problem, answer), answer
    (problem,) = GlobalMMLULite(path, "Japanese").heldout()
    assert (problem.language, problem.id) == (
        "ja",
        "globalmmlulite:business_ethics/test/4:Japanese",
    )


def test_an_option_that_is_another_letter_makes_that_letter_not_right(tmp_path):
    row = MMLU_ROW | {"option_a": "B", "answer": "A"}
    path = write_parquet(tmp_path / "ko" / "test.parquet", [row])
    (problem,) = GlobalMMLULite(path).heldout()
    assert is_right(problem, "A")
    assert not is_right(problem, "B")


def test_a_broken_row_of_global_mmlu_lite_is_named(tmp_path):
    rows = [MMLU_ROW, MMLU_ROW | {"sample_id": "x", "answer": "E"}]
    path = write_parquet(tmp_path / "ko" / "test.parquet", rows)
    message = the_error(GlobalMMLULite(path).heldout)
    assert message == f'{path} row 2: "answer" is "E": it must be one of A, B, C, D'
    message = the_error(GlobalMMLULite(path, "Klingon").heldout)
    assert "'Klingon', not a language that can be told" in message


# Competitions


def math_row(number: int, subject: str, level: str = "Level 5") -> dict:
    return {
        "problem": f"What is ${number}$ in {subject}?",
        "level": level,
        "type": subject,
        "solution": rf"First $\boxed{{9}}$, no: $\boxed{{{number}}}$.",
    }


def write_math(folder: Path, on_hub: bool) -> str:
    """Writes MATH with two subjects, two problems to train on in one and one in the other."""
    for split in ("train", "test"):
        for subject, count in (("algebra", 2), ("geometry", 1)):
            rows = [math_row(number, subject) for number in range(1, count + 1)]
            if on_hub:
                path = folder / subject / f"{split}-00000-of-00001.parquet"
                write_parquet(path, rows)
                continue
            (folder / split / subject).mkdir(parents=True)
            for number, row in enumerate(rows):
                path = folder / split / subject / f"{number}.json"
                path.write_text(json.dumps(row, indent=4), encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize("on_hub", [False, True])
def test_math_is_read_from_its_archive_and_from_the_hub(tmp_path, on_hub):
    source = MATH(write_math(tmp_path / "MATH", on_hub))
    problems = source.train()
    # Subjects take turns.
    assert [p.meta["type"] for p in problems] == ["algebra", "geometry", "algebra"]
    first, *_, last = problems
    assert (first.prompt, first.answer, first.level) == (
        "What is $1$ in algebra?",
        "1",
        5,
    )
    assert first.meta["solution"] == math_row(1, "algebra")["solution"]
    assert is_right(last, "2")
    assert not is_right(last, "9")
    ids = ["math:train/algebra/0.json", "math:train/geometry/0.json"]
    if on_hub:
        ids = [
            f"math:{name}/train-00000-of-00001.parquet:1"
            for name in ("algebra", "geometry")
        ]
    assert [p.id for p in problems[:2]] == ids
    assert not {p.id for p in problems} & {p.id for p in source.heldout()}


def test_math_is_read_from_a_file_and_has_problems_without_level_or_answer(tmp_path):
    rows = [math_row(1, "algebra", "Level ?"), math_row(2, "algebra")]
    rows[1]["solution"] = r"It is $\boxed 2$."
    empty = rows[0] | {"solution": r"There are $\boxed{}$ primes."}
    path = write_lines(tmp_path / "math.jsonl", [rows[0], empty, rows[1]])
    (train,) = MATH(path, heldout_size=1).train()
    (heldout,) = MATH(path, heldout_size=1).heldout()
    assert (train.id, train.answer, train.level) == ("math:train:1", "1", 0)
    assert (heldout.id, heldout.answer, heldout.level) == ("math:heldout:3", "2", 5)
    assert (
        MATH(write_math(tmp_path / "MATH", False), heldout_path=path)
        .heldout()[1]
        .answer
        == "2"
    )


def test_a_broken_row_of_math_is_named_by_its_file(tmp_path):
    folder = Path(write_math(tmp_path / "MATH", on_hub=False))
    path = folder / "train" / "algebra" / "1.json"
    path.write_text(json.dumps(math_row(1, "algebra") | {"solution": "It is 2."}))
    assert the_error(MATH(str(folder)).train) == (
        f'{path} line 1: "solution" has no \\boxed answer; write one, or drop the row'
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    message = the_error(MATH(str(empty)).heldout)
    assert message.startswith(f"{empty} has neither test/algebra/*.json nor")


ZOO_ROW = {
    "question": "Let $f$ be ...",
    "gt_answer": "0",
    "level": 5,
    "subject": "Algebra",
    "prompt": [{"role": "user", "content": "<|im_start|>system\n..."}],
    "reward_model": {"style": "rule", "ground_truth": "0"},
    "extra_info": {"question": "Let $f$ be ...", "answer": "0"},
}


def test_simplerl_zoo_has_levels_and_leaves_out_what_has_no_answer(tmp_path):
    rows = [
        ZOO_ROW,
        ZOO_ROW | {"gt_answer": ""},
        ZOO_ROW | {"level": None, "gt_answer": "7"},
    ]
    path = write_parquet(tmp_path / "train.parquet", rows)
    nested = {name: ZOO_ROW[name] for name in ("prompt", "extra_info")}
    heldout = write_parquet(tmp_path / "test.parquet", [nested])
    source = SimpleRLZoo(path, heldout)
    first, last = source.train()
    assert first == Problem(
        "simplerl_zoo:train:1",
        "Let $f$ be ...",
        "0",
        level=5,
        meta={"subject": "Algebra"},
    )
    assert (last.id, last.answer, last.level) == ("simplerl_zoo:train:3", "7", 0)
    (problem,) = source.heldout()
    assert (problem.prompt, problem.answer) == ("Let $f$ be ...", "0")
    (problem,) = SimpleRLZoo(path, heldout_size=1).heldout()
    assert problem.id == "simplerl_zoo:heldout:3"


def test_a_broken_row_of_simplerl_zoo_is_named(tmp_path):
    path = write_parquet(
        tmp_path / "train.parquet", [ZOO_ROW, ZOO_ROW | {"question": " "}]
    )
    message = the_error(SimpleRLZoo(path, heldout_size=0).train)
    assert message.startswith(f'{path} row 2: "question" is blank')


NUMINA_ROW = {
    "problem": "Find $x$.",
    "solution": "It is 12.",
    "answer": "12",
    "problem_type": "Algebra",
    "question_type": "math-word-problem",
    "problem_is_valid": "Yes",
    "solution_is_valid": "Yes",
    "source": "olympiads",
    "synthetic": False,
}


def test_numina_math_has_what_can_be_verified(tmp_path):
    left_out = [
        {"answer": "proof"},
        {"answer": "notfound"},
        {"answer": None},
        {"question_type": "proof"},
        {"question_type": "MCQ"},
        {"problem_is_valid": "Incomplete"},
        {"solution_is_valid": "Problem not solved"},
    ]
    rows = [
        NUMINA_ROW,
        *(NUMINA_ROW | one for one in left_out),
        NUMINA_ROW | {"source": "cn_k12"},
    ]
    path = write_parquet(tmp_path / "train.parquet", rows)
    problems = NuminaMath(path, heldout_size=0).train()
    assert [p.id for p in problems] == ["numina_math:train:1", "numina_math:train:9"]
    assert problems[0].meta["solution"] == "It is 12."
    source = NuminaMath(path, sources=("cn_k12",), heldout_size=0)
    assert [p.meta["source"] for p in source.train()] == ["cn_k12"]


def test_a_broken_row_of_numina_math_is_named(tmp_path):
    rows = [NUMINA_ROW, NUMINA_ROW | {"problem": " "}]
    path = write_parquet(tmp_path / "train.parquet", rows)
    message = the_error(NuminaMath(path, heldout_size=0).train)
    assert message.startswith(f'{path} row 2: "problem" is blank')


# Parquet


def test_parquet_is_read_as_json_lines_are(tmp_path):
    rows = [
        {"question": "a", "answer": "1", "x": 0.1, "n": {"m": [1]}},
        {"question": "b", "answer": "2", "x": 2.0, "n": {"m": [2]}},
    ]
    rows = [row | {"other_answers": ["one"]} for row in rows]
    table = Jsonl(write_parquet(tmp_path / "a.parquet", rows), heldout_size=0)
    lines = Jsonl(write_lines(tmp_path / "a.jsonl", rows), heldout_size=0)
    assert list(table.train()) == list(lines.train())
    table.answer = lines.answer = "x"
    assert [p.answer for p in table.train()] == ["0.1", "2.0"]


def test_rows_are_plain_values(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [NUMINA_ROW | {"answer": "1"}])
    (problem,) = Jsonl(path, question="problem", heldout_size=0).train()
    assert json.loads(json.dumps(problem.meta)) == problem.meta
