"""Checks GSM8K in other languages, on small files of the published forms."""

from jaxgrpo.data.translated import TranslatedGSM8K
from jaxgrpo.problems import Problem
from tests.test_data import the_error, write_lines
from tests.test_data_sets import write_parquet

ENGLISH = [
    {"question": "Natalia sold 48?", "answer": "48/2\n#### 72"},
    {"question": "Weng earns 12?", "answer": "12/60\n#### 1,000"},
]
KOREAN = [
    {"question": "나탈리아 48?", "answer": "48/2\n#### 72"},
    {"question": "웡 12?", "answer": "12/60\n#### 1000"},
]


def octopus(language: str, question: str, answer: str) -> dict:
    """Returns a row as GSM8KInstruct_Parallel has it."""
    prompt = (
        "Below is an instruction that describes a task. Write a response that appropriately "
        f"completes the request in {language}. Please answer in {language}.\n\n"
        f"### Instruction:\n{question}\n\n### Response:"
    )
    return {"prompt": prompt, "chosen": answer, "reject": "#### 1"}


def test_translated_gsm8k_is_paired_by_its_lines(tmp_path):
    english = write_lines(tmp_path / "en.jsonl", ENGLISH)
    path = write_lines(tmp_path / "ko.jsonl", KOREAN)
    source = TranslatedGSM8K(
        path, english_path=english, language="Korean", heldout_size=1
    )
    assert list(source.train()) == [
        Problem(
            "gsm8k_ko:train:1",
            "나탈리아 48?",
            "72",
            language="ko",
            meta={"solution": "48/2", "english": "Natalia sold 48?"},
        )
    ]
    assert source.heldout()[0].meta["english"] == "Weng earns 12?"


def test_translated_rows_are_paired_by_the_line_they_name(tmp_path):
    english = write_lines(tmp_path / "en.jsonl", ENGLISH)
    row = KOREAN[1] | {"source_line": 2, "language": "ko"}
    path = write_lines(tmp_path / "ko.jsonl", [row])
    (problem,) = TranslatedGSM8K(path, english_path=english, heldout_size=0).train()
    assert (problem.id, problem.meta["english"]) == (
        "gsm8k_ko:train:2",
        "Weng earns 12?",
    )


def test_translated_gsm8k_has_its_own_held_out_file(tmp_path):
    paths = [
        write_lines(tmp_path / name, rows)
        for name, rows in (
            ("ko.jsonl", KOREAN),
            ("ko_test.jsonl", KOREAN[1:]),
            ("en.jsonl", ENGLISH),
            ("en_test.jsonl", ENGLISH[1:]),
        )
    ]
    source = TranslatedGSM8K(*paths, language="ko")
    assert [p.id for p in source.train()] == ["gsm8k_ko:train:1", "gsm8k_ko:train:2"]
    (problem,) = source.heldout()
    assert (problem.id, problem.meta["english"]) == (
        "gsm8k_ko:heldout:1",
        "Weng earns 12?",
    )


def test_korean_rows_with_the_english_beside_them_are_paired(tmp_path):
    rows = [
        korean | {"question_en": row["question"], "answer_en": row["answer"]}
        for korean, row in zip(KOREAN, ENGLISH, strict=True)
    ]
    path = write_parquet(tmp_path / "train.parquet", rows)
    source = TranslatedGSM8K(path, language="ko", heldout_size=0)
    assert [p.meta["english"] for p in source.train()] == [
        row["question"] for row in ENGLISH
    ]
    rows[1]["answer_en"] = "#### 5"
    path = write_parquet(tmp_path / "wrong.parquet", rows)
    message = the_error(TranslatedGSM8K(path, language="ko", heldout_size=0).train)
    assert message.startswith(
        f"{path} row 2: its answer is 1000, that of the English row 5: "
    )


def test_mathoctopus_rows_say_their_language(tmp_path):
    rows = [
        octopus("English", "How many, Ana?", "#### 72"),
        octopus("Spanish", "¿Cuántos, Ana?", "48/2\n#### 72"),
        octopus("Thai", "กี่", "#### 72"),
    ]
    path = write_lines(tmp_path / "MGSM8KInstruct_Parallel.json", rows)
    problems = TranslatedGSM8K(path, heldout_size=0).train()
    assert [p.language for p in problems] == ["en", "es", "th"]
    (problem,) = TranslatedGSM8K(path, language="es", heldout_size=0).train()
    assert problem == Problem(
        "gsm8k_es:train:2",
        "¿Cuántos, Ana?",
        "72",
        language="es",
        meta={"solution": "48/2"},
    )


def test_a_broken_translated_row_is_named_by_its_line(tmp_path):
    def error(row: dict, **settings) -> str:
        path = write_lines(tmp_path / "ko.jsonl", [KOREAN[0], row])
        source = TranslatedGSM8K(path, heldout_size=0, **settings)
        message = the_error(source.train)
        assert message.startswith(f"{path} line 2: ") == ("language" in settings)
        return message

    english = write_lines(tmp_path / "en.jsonl", ENGLISH[:1])
    assert "set --config.data.language=ko" in error(KOREAN[1])
    assert "has no row 2, only 1; give --config.data.english_path" in error(
        KOREAN[1], language="ko", english_path=english
    )
    assert '"####"' in error({"question": "?", "answer": "42"}, language="ko")
    bad_prompt = {"prompt": "2 + 2?", "chosen": "#### 4", "reject": ""}
    assert '"prompt" is not MathOctopus\'s' in error(bad_prompt, language="ko")
    english = write_lines(tmp_path / "en.jsonl", ENGLISH)
    wrong = KOREAN[1] | {"answer": "#### 71"}
    assert "its answer is 71, that of the English row 1000: it is a translation of" in (
        error(wrong, language="ko", english_path=english)
    )
