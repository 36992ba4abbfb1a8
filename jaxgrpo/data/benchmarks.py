r"""Reads sets of problems to evaluate on: MATH500, AMC, AIME, Minerva, OlympiadBench, MGSM, MMLU.

Each is a Source that has held-out problems alone, from a file that is here already:

    MATH500(path="math500.jsonl").heldout()

A class has the names of the set's fields, and says where its files are from and what they may be
used for. `maths.accuracy` verifies all of them, answers of multiple-choice questions too.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

from jaxgrpo.data.csv_rows import read_headless_tsv
from jaxgrpo.data.row_files import read_rows
from jaxgrpo.data.rows import Row
from jaxgrpo.data.table import check_language_setting, to_problems
from jaxgrpo.errors import FixedFields, UserError
from jaxgrpo.files import fetched
from jaxgrpo.problems import OTHER_ANSWERS, Problem, Problems
from jaxgrpo.text.language_codes import language_code


@dataclass
class Benchmark(FixedFields):
    """A Source of problems to evaluate on; the base of those below.

    path: the set's file.
    """

    SOURCE: ClassVar[str]
    """The page that has the set's file."""
    QUESTION: ClassVar[str] = "problem"
    """The field of the question."""
    ANSWER: ClassVar[str] = "answer"
    """The field of the answer."""
    ID: ClassVar[str] = "id"
    """The field that is unique in the set."""
    LEVEL: ClassVar[str] = ""
    """The field of the level, "" where there is none."""

    path: str = ""

    def train(self) -> Problems:
        """Raises UserError: what a policy is measured on must not be trained on."""
        raise UserError(
            f"{type(self).__name__} is a set to evaluate on and has nothing to train on; set "
            "config.data to one that has, such as GSM8K, or measure a policy: jaxgrpo evaluate"
        )

    def heldout(self) -> Problems:
        """Returns the problems, in the order of the file.

        Raises UserError if the file cannot be read, or a row has not the set's fields.
        """
        if not self.path:
            raise UserError(
                f"{type(self).__name__} has no file; fetch it from {self.SOURCE} and set "
                "--config.data.path"
            )
        rows = [row for row in self._rows() if self._accepts(row)]
        return to_problems(rows, self._problem)

    def _rows(self) -> Iterable[Row]:
        """Returns all rows of the set."""
        return read_rows(self.path)

    def _accepts(self, row: Row) -> bool:
        """Returns whether a row is one of the problems."""
        return True

    def _problem(self, row: Row) -> Problem:
        """Returns a row's problem; what has no field of its own travels in Problem.meta."""
        name = type(self).__name__.lower()
        return Problem(
            id=f"{name}:{row.text(self.ID, 'path')}",
            prompt=row.text(self.QUESTION, "path"),
            answer=row.text(self.ANSWER, "path"),
            level=row.level(self.LEVEL, "path") if self.LEVEL else 0,
            meta=row.meta({self.QUESTION, self.ANSWER, self.ID, self.LEVEL}),
        )


class MATH500(Benchmark):
    r"""500 problems of MATH's test set (arXiv 2103.03874, 2305.20050), of levels 1 to 5.

    {"problem": "Convert the point $(0,3)$ ...", "solution": "We have that ...",
     "answer": "\\left( 3, \\frac{\\pi}{2} \\right)", "subject": "Precalculus", "level": 2,
     "unique_id": "test/precalculus/807.json"}

    path: the file.

    Source: https://huggingface.co/datasets/HuggingFaceH4/MATH-500, test.jsonl. MATH is under MIT.
    """

    SOURCE = "https://huggingface.co/datasets/HuggingFaceH4/MATH-500"
    ID = "unique_id"
    LEVEL = "level"


class AMC23(Benchmark):
    """40 problems of the AMC 12 of 2023 whose answers are numbers.

    {"id": 0, "problem": "Cities $A$ and $B$ are $45$ miles apart. ...", "answer": 27.0,
     "url": "https://artofproblemsolving.com/wiki/..."}

    path: the file.

    Source: https://github.com/hkust-nlp/simpleRL-reason, examples/simplelr_math_eval/data/amc23.
    The problems are the Mathematical Association of America's.
    """

    SOURCE = "https://github.com/hkust-nlp/simpleRL-reason"


class AIME24(Benchmark):
    r"""30 problems of the AIME of 2024, whose answers are whole numbers from 0 to 999.

    {"id": 60, "problem": "Every morning Aya goes for ...", "solution": "$\\frac{9}{s} + ...",
     "answer": "204", "url": "https://artofproblemsolving.com/wiki/..."}

    path: the file.

    Source: https://github.com/hkust-nlp/simpleRL-reason, examples/simplelr_math_eval/data/aime24;
    30 of the 90 rows of https://huggingface.co/datasets/AI-MO/aimo-validation-aime (Apache-2.0).
    The problems are the Mathematical Association of America's.
    """

    SOURCE = "https://github.com/hkust-nlp/simpleRL-reason"


class AIME25(Benchmark):
    """30 problems of the AIME of 2025, whose answers are whole numbers from 0 to 999.

    {"problem": "Find the sum of all integer bases ...", "answer": "70", "id": "0"}

    path: the file.

    Source: https://huggingface.co/datasets/math-ai/aime25, test.jsonl. The problems are the
    Mathematical Association of America's.
    """

    SOURCE = "https://huggingface.co/datasets/math-ai/aime25"


class MinervaMath(Benchmark):
    r"""272 problems of university courses in science (OCWCourses, arXiv 2206.14858).

    {"problem": "Each of the two Magellan telescopes ...", "solution": "Start ... \\boxed{1.6}",
     "type": "Introduction to Astronomy (8.282J Spring 2006)", "idx": 0}

    The gold answer is the whole solution, whose box the verifier reads.

    path: the file.

    Source: https://github.com/hkust-nlp/simpleRL-reason, examples/simplelr_math_eval/data. The
    problems are MIT OpenCourseWare's, under CC BY-NC-SA 4.0.
    """

    SOURCE = "https://github.com/hkust-nlp/simpleRL-reason"
    ANSWER = "solution"
    ID = "idx"


@dataclass
class OlympiadBench(Benchmark):
    r"""Problems of olympiads (arXiv 2402.14008): open-ended, in English, without pictures.

    {"id": 1606, "subfield": "Combinatorics", "context": null, "question": "Xenia and ...",
     "solution": ["Sergey can ..."], "final_answer": ["2"], "is_multiple_answer": false,
     "unit": null, "answer_type": "Numerical", "error": null}

    A question's context stands before it. Rows with pictures (image_1, ...) are left out.

    path: the file.
    multiple_answers: whether problems with several answers are in it, too: 675 problems instead of
      581.

    Source: https://github.com/hkust-nlp/simpleRL-reason, examples/simplelr_math_eval/data, the 675
    rows that SimpleRL-Zoo evaluates on; all of the set, under Apache-2.0, is at
    https://huggingface.co/datasets/Hothan/OlympiadBench.
    """

    SOURCE = "https://huggingface.co/datasets/Hothan/OlympiadBench"
    QUESTION = "question"
    ANSWER = "final_answer"

    multiple_answers: bool = False

    def _accepts(self, row: Row) -> bool:
        has_picture = row.values.get("image_1") is not None
        is_single = not row.value("is_multiple_answer", "path")
        return not has_picture and (is_single or self.multiple_answers)

    def _problem(self, row: Row) -> Problem:
        answers = row.value(self.ANSWER, "path")
        if not isinstance(answers, list) or len(answers) != 1:
            raise row.error(
                f'"{self.ANSWER}" is {answers!r}: a list of one text is wanted; mend it or drop '
                "the line"
            )
        values = row.values | {self.ANSWER: answers[0]}
        problem = super()._problem(replace(row, values=values))
        context = problem.meta.get("context")
        if not context:
            return problem
        return replace(problem, prompt=f"{context}\n\n{problem.prompt}")


@dataclass
class MGSM(Benchmark):
    """250 problems of GSM8K's test set that people translated into ten languages (2210.03057).

    A line is the question, a tab and the number, without a header:

        Janet's ducks lay 16 eggs per day. ... at the farmers' market?<tab>18

    path: a file such as mgsm_ja.tsv, or the folder of several. Their names say the languages.
    languages: of a folder, the languages to read, such as ("en", "ja"); (): all that are there.

    Line 3 of every file is the same problem: "mgsm:ja:3" is "mgsm:en:3" in Japanese.

    Source: https://github.com/google-research/url-nlp, mgsm; under CC BY-SA 4.0.
    """

    SOURCE = "https://github.com/google-research/url-nlp/tree/main/mgsm"

    languages: tuple[str, ...] = ()

    def _rows(self) -> Iterable[Row]:
        return [
            row
            for path in self._files()
            for row in read_rows(
                path, partial(read_headless_tsv, columns=("question", "answer"))
            )
        ]

    def _files(self) -> list[Path]:
        """Returns the files to read; raises UserError if there are none."""
        path = fetched(self.path).expanduser()
        if not path.is_dir():
            return [path]
        if self.languages:
            return [path / f"mgsm_{language}.tsv" for language in self.languages]
        files = sorted(path.glob("mgsm_*.tsv"))
        if not files:
            raise UserError(
                f"{path} has no file mgsm_*.tsv; fetch them from {self.SOURCE}"
            )
        return files

    def _problem(self, row: Row) -> Problem:
        language = row.path.stem.rpartition("_")[2]
        if language_code(language) is None:
            raise UserError(
                f"{row.path}: its name does not say its language; name it as the official files "
                "are, mgsm_ja.tsv"
            )
        return Problem(
            id=f"mgsm:{language}:{row.line}",
            prompt=row.text("question", "path"),
            # "5,600"
            answer=row.text("answer", "path").replace(",", ""),
            language=language,
        )


LETTERS = "ABCD"
"""The options of a multiple-choice question."""


@dataclass
class GlobalMMLULite(Benchmark):
    r"""400 multiple-choice questions in each of several languages (arXiv 2412.03304).

    {"sample_id": "business_ethics/test/4", "subject": "business_ethics",
     "subject_category": "Business", "question": "...", "option_a": "...", "option_b": "...",
     "option_c": "...", "option_d": "...", "answer": "B", "cultural_sensitivity_label": "CS", ...}

    The prompt is the question and its options, a line each: "A. ...". Right is the option's letter,
    its text, or both, "B. ...": `\boxed{B}`. The prompt does not say so, for it is in the language
    of the question; `config.system` may.

    path: a language's file, such as ko/test-00000-of-00001.parquet.
    language: a code or a name; "" takes the name of the file's folder.

    Source: https://huggingface.co/datasets/CohereLabs/Global-MMLU-Lite, under Apache-2.0.
    """

    SOURCE = "https://huggingface.co/datasets/CohereLabs/Global-MMLU-Lite"
    QUESTION = "question"
    ID = "sample_id"

    language: str = ""

    def _problem(self, row: Row) -> Problem:
        language = self.language or row.path.absolute().parent.name
        check_language_setting(language)
        names = {letter: f"option_{letter.lower()}" for letter in LETTERS}
        options = {letter: row.text(name, "path") for letter, name in names.items()}
        answer = row.text(self.ANSWER, "path")
        if answer not in options:
            raise row.error(
                f'"{self.ANSWER}" is "{answer}": it must be one of {", ".join(LETTERS)}'
            )
        lines = [f"{letter}. {text}" for letter, text in options.items()]
        problem = super()._problem(row)
        # An option that is called as another is, "B", would make that one right, too.
        texts = [options[answer], lines[LETTERS.index(answer)]]
        others = [text for text in texts if text.strip("(). ") not in options]
        return replace(
            problem,
            id=f"{problem.id}:{language}",
            prompt="\n".join([problem.prompt, *lines]),
            language=language,
            meta=problem.meta | {OTHER_ANSWERS: others},
        )
