"""Reads problems from a JSON Lines file: one object a line, whatever its fields are called.

An example row, and the config that reads it:

    {"problem": "What is 6 * 7?", "answer": 42, "level": "Level 1"}
    Jsonl(path="mine.jsonl", question="problem", level_field="level")
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxgrpo.data.json_rows import Row, read_rows
from jaxgrpo.errors import FixedFields, UserError
from jaxgrpo.problems import Problem, Problems
from jaxgrpo.text.language_codes import LANGUAGE_CODES, language_code


def read_split(
    path: str,
    heldout_path: str,
    heldout_size: int,
    to_problem: Callable[[Row, str], Problem],
    split: str,
) -> Problems:
    """Returns the problems of one split, in file order.

    Without a `heldout_path` the two splits share `path`: the last `heldout_size` rows are held out.

    to_problem: (row, split) -> the row's problem, with an id that is unique over both splits
    split: "train" or "heldout"

    Raises UserError if there is no file, it cannot be read or split, or two problems share an id.
    """
    if not path and (split == "train" or not heldout_path):
        raise UserError("the data has no file; set --config.data.path=train.jsonl")
    if heldout_path:
        rows = list(read_rows(path if split == "train" else heldout_path))
    else:
        train, heldout = _hold_out_tail(list(read_rows(path)), heldout_size, path)
        rows = train if split == "train" else heldout
    problems = [to_problem(row, split) for row in rows]
    _refuse_repeated_ids(rows, problems)
    return problems


@dataclass
class Jsonl(FixedFields):
    """A Source: problems from JSON Lines files.

    path: the training file.
    heldout_path: the held-out file; without one the last `heldout_size` rows of `path` are held out
      and never trained on.
    question: the field that holds the question.
    answer: the field that holds the answer, text or a number, whose digits stay as they are
      written; mathematics also takes an answer that is a box or a whole solution.
    language_field: the field of Problem.language; "" where the file has none, then all problems are
      in `language`.
    level_field: the field of Problem.level; "" where the file has none, then the level is 0.
    id_field: the field of Problem.id; "" where the file has none, then the id is the file's name,
      the split and the line number.
    language: a code or a name, such as "pt", "pt-BR" or "Portuguese"; so in the language field.
    heldout_size: number of rows to hold out where there is no `heldout_path`.

    A row's other fields travel in Problem.meta.
    """

    path: str = ""
    heldout_path: str = ""
    question: str = "question"
    answer: str = "answer"
    language_field: str = ""
    level_field: str = ""
    id_field: str = ""
    language: str = "en"
    heldout_size: int = 256

    def train(self) -> Problems:
        """Returns the training problems; raises UserError if the file cannot be read as set."""
        return self._split("train")

    def heldout(self) -> Problems:
        """Returns the held-out problems, none of which is in train().

        Raises UserError if the file cannot be read as set.
        """
        return self._split("heldout")

    def _split(self, split: str) -> Problems:
        if not self.language_field and language_code(self.language) is None:
            raise UserError(
                f"--config.data.language is {self.language!r}, not a language that can be told; "
                f"set it to one of {' '.join(sorted(LANGUAGE_CODES))}"
            )
        return read_split(
            self.path, self.heldout_path, self.heldout_size, self._problem, split
        )

    def _problem(self, row: Row, split: str) -> Problem:
        problem_id = f"{row.path.stem}:{split}:{row.line}"
        if self.id_field:
            problem_id = row.text(self.id_field, "id_field")
        used = {
            self.question,
            self.answer,
            self.language_field,
            self.level_field,
            self.id_field,
        }
        return Problem(
            id=problem_id,
            prompt=row.text(self.question, "question"),
            answer=row.text(self.answer, "answer"),
            language=row.language(self.language_field)
            if self.language_field
            else self.language,
            level=row.level(self.level_field, "level_field") if self.level_field else 0,
            meta=row.meta(used),
        )


def _hold_out_tail(
    rows: list[Row], size: int, path: str | Path
) -> tuple[list[Row], list[Row]]:
    """Returns (train, heldout): all but the last `size` rows, and these.

    Raises UserError unless 0 <= size < len(rows).
    """
    if not 0 <= size < len(rows):
        # The hint leaves out 0, although it is allowed: there would be nothing to evaluate on.
        hint = f"set it between 1 and {len(rows) - 1}, or " if len(rows) > 1 else ""
        raise UserError(
            f"{path} has {len(rows):,} problems, and --config.data.heldout_size={size} of them "
            f"cannot be held out; {hint}give --config.data.heldout_path"
        )
    num_train = len(rows) - size
    return rows[:num_train], rows[num_train:]


def _refuse_repeated_ids(rows: Sequence[Row], problems: Problems) -> None:
    """Raises UserError if two problems share an id, by which randomness and visits are keyed."""
    first_lines: dict[str, int] = {}
    for row, problem in zip(rows, problems, strict=True):
        first_line = first_lines.setdefault(problem.id, row.line)
        if first_line != row.line:
            raise row.error(
                f"the id {json.dumps(problem.id)} is that of line {first_line} too; make it unique "
                "or leave --config.data.id_field empty"
            )
