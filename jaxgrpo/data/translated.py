"""Reads GSM8K in other languages: the forms that are published, and what tools.translate writes.

Example rows, of each form:

    {"question": "나탈리아는 ...", "answer": "... #### 72"}
    {"question": "나탈리아는 ...", "answer": "... #### 72", "question_en": "Natalia ...", ...}
    {"prompt": "Below is an instruction ... Please answer in Spanish.\\n\\n### Instruction:\\n...",
     "chosen": "... #### 72", "reject": "..."}
    {"question": "나탈리아는 ...", "answer": "... #### 72", "language": "ko", "source_line": 1, ...}

- https://huggingface.co/datasets/ChuGyouk/GSM8k-Ko (MIT), 1,319 test problems in Korean.
- https://huggingface.co/datasets/kuotient/gsm8k-ko, 7,473 and 1,319 in Korean, parquet, with the
  English row beside each; its page names no licence.
- https://huggingface.co/datasets/Mathoctopus/GSM8KInstruct_Parallel (Apache-2.0, 2310.20246), the
  training problems in ten languages, one row each.
- GSM8K itself is under MIT.
"""

import re
from dataclasses import dataclass, field
from fractions import Fraction

from jaxgrpo.data.gsm8k import split_answer
from jaxgrpo.data.row_files import read_rows
from jaxgrpo.data.rows import Row
from jaxgrpo.data.table import check_language_setting, read_split
from jaxgrpo.errors import FixedFields
from jaxgrpo.problems import Problem, Problems
from jaxgrpo.text.language_codes import language_code

SOURCE_LINE = "source_line"
"""The field that tools.translate writes: the English row's line, from 1."""

_INSTRUCTION = re.compile(
    r"answer in (?P<language>\w+)\..*?### Instruction:\s*(?P<question>.*?)\s*### Response:",
    re.DOTALL,
)
"""MathOctopus's prompt."""


@dataclass
class TranslatedGSM8K(FixedFields):
    """A Source: GSM8K in other languages, from files of the forms above.

    path: the training file.
    heldout_path: the held-out file; without one the last `heldout_size` rows of `path` are held
      out.
    english_path: GSM8K's own file that `path` is a translation of: each row is paired with the row
      of the same line, and their answers must be equal; "" pairs with what the row itself has.
    english_heldout_path: the same of `heldout_path`.
    language: a code or a name. Where rows have a language of their own, the others are left out;
      "" reads all of them.
    heldout_size: number of rows to hold out where there is no `heldout_path`.

    The solution is in Problem.meta["solution"], the English question, where it is known, in
    Problem.meta["english"].
    """

    path: str = ""
    heldout_path: str = ""
    english_path: str = ""
    english_heldout_path: str = ""
    language: str = ""
    heldout_size: int = 256

    def train(self) -> Problems:
        """Returns the training problems.

        Raises UserError if a file cannot be read, or a row is not what its English row says.
        """
        return self._split("train")

    def heldout(self) -> Problems:
        """Returns the held-out problems, none of which is in train(); raises what that does."""
        return self._split("heldout")

    def _split(self, split: str) -> Problems:
        if self.language:
            check_language_setting(self.language)
        is_other_file = split == "heldout" and bool(self.heldout_path)
        english_path = self.english_heldout_path if is_other_file else self.english_path
        reader = _Reader(self.language)
        if english_path:
            reader = _Reader(self.language, list(read_rows(english_path)))
        return read_split(
            self.path,
            self.heldout_path,
            self.heldout_size,
            reader.problem,
            split,
            reader.accepts,
        )


@dataclass(frozen=True)
class _Reader:
    """Makes problems of rows.

    language: of the rows that are read; "": all, each in its own
    english: the rows of the English file; []: there is none
    """

    language: str
    english: list[Row] = field(default_factory=list)

    def accepts(self, row: Row) -> bool:
        """Returns whether a row is in the language that is read."""
        own = _own_language(row)
        return not self.language or not own or own == language_code(self.language)

    def problem(self, row: Row, split: str) -> Problem:
        """Returns a row's problem; raises UserError if it is not one."""
        language = _own_language(row) or self.language
        if not language:
            raise row.error("nothing says its language; set --config.data.language=ko")
        where = row.where
        question, answer = _question_and_answer(row)
        solution, gold = split_answer(answer, where)
        line = row.values.get(SOURCE_LINE, row.line)
        meta = {"solution": solution}
        english = self._english_row(row, line)
        if english is not None:
            english_question, english_gold = english
            meta["english"] = english_question
            if not _same_number(gold, english_gold):
                raise row.error(
                    f"its answer is {gold}, that of the English row {english_gold}: it is a "
                    "translation of another row, or a wrong one; mend it or drop the line"
                )
        code = language_code(language) or language
        return Problem(
            id=f"gsm8k_{code}:{split}:{line}",
            prompt=question,
            answer=gold,
            language=code,
            meta=meta,
        )

    def _english_row(self, row: Row, line: object) -> tuple[str, str] | None:
        """Returns the question and the gold answer of a row's English row; None: there is none."""
        if self.english:
            if not isinstance(line, int) or not 0 < line <= len(self.english):
                raise row.error(
                    f"the English file has no row {line}, only {len(self.english):,}; give "
                    "--config.data.english_path of the file that was translated"
                )
            english = self.english[line - 1]
            answer = english.text("answer", "english_path")
            _, gold = split_answer(answer, english.where)
            return english.text("question", "english_path"), gold
        if "question_en" in row.values:
            answer = row.text("answer_en", "path")
            _, gold = split_answer(answer, row.where)
            return row.text("question_en", "path"), gold
        return None


def _question_and_answer(row: Row) -> tuple[str, str]:
    """Returns a row's question and its solution with the gold answer, whatever its form is."""
    if "chosen" not in row.values:
        return row.text("question", "path"), row.text("answer", "path")
    match = _INSTRUCTION.search(row.text("prompt", "path"))
    if match is None:
        raise row.error(
            '"prompt" is not MathOctopus\'s: "... answer in Spanish. ### Instruction: ... '
            '### Response:" is wanted; mend it or drop the line'
        )
    return match["question"], row.text("chosen", "path")


def _own_language(row: Row) -> str:
    """Returns the code of the language that a row itself names, "" if it names none."""
    if "language" in row.values:
        return row.language("language")
    if "chosen" not in row.values:
        return ""
    match = _INSTRUCTION.search(row.text("prompt", "path"))
    return (language_code(match["language"]) or "") if match else ""


def _same_number(a: str, b: str) -> bool:
    """Returns whether two golds are the same number, or else the same text."""
    try:
        return Fraction(a) == Fraction(b)
    except (ValueError, ZeroDivisionError):
        return a == b
