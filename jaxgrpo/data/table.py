"""Reads problems from a file or folder of rows, whatever its fields are called.

A row, and the config that reads it:

    {"problem": "What is 6 * 7?", "answer": 42, "level": "Level 1"}
    Table(path="mine.jsonl", question="problem", level_field="level")

Rows with messages and fields within fields, as data for verl has them:

    {"prompt": [{"role": "user", "content": "What is 6 * 7?"}], "data_source": "mine",
     "reward_model": {"style": "rule", "ground_truth": "42"}, "extra_info": {"index": 0}}
    Table(path="train.parquet", question="prompt", answer="reward_model.ground_truth",
          id_field="extra_info.index")
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxgrpo.data.row_files import find_splits, read_files
from jaxgrpo.data.rows import Row
from jaxgrpo.errors import FixedFields, UserError
from jaxgrpo.problems import Problem, Problems
from jaxgrpo.text.language_codes import LANGUAGE_CODES, language_code

HELDOUT_SPLIT = "test"
"""The split of a folder that is held out where no other one is named."""


@dataclass
class Table(FixedFields):
    """A Source: problems from JSON Lines, CSV, TSV, parquet, or a folder that `datasets` wrote.

    path: the training file, or a folder: of `datasets.save_to_disk`, or of shards as on the Hugging
      Face hub.
    heldout_path: the held-out file or folder; without one the split `heldout_split` of `path` is
      held out, and where `path` has no such split, its last `heldout_size` rows are, and never
      trained on.
    split: the split of a folder to train on.
    heldout_split: the split of a folder to hold out; "" is `test` where there is one.
    question: the field that holds the question: text, or messages {"role": ..., "content": ...} of
      which the last is the user's.
    answer: the field that holds the answer, text or a number, whose digits stay as they are
      written; mathematics also takes an answer that is a box or a whole solution. "" where the file
      has none: enough for supervised training.
    solution: the field that holds a worked solution, for supervised training: text, or messages of
      which the last is the assistant's; it may be the field `question`, of whose messages the
      solution is the last. It becomes Problem.meta["solution"]; "" where the file has none.
    language_field: the field of Problem.language; "" where the file has none, then all problems are
      in `language`.
    level_field: the field of Problem.level; "" where the file has none, then the level is 0.
    id_field: the field of Problem.id; "" where the file has none, then the id is the file's name,
      the split and the number of the line or row.
    language: a code or a name, such as "pt", "pt-BR" or "Portuguese"; so in the language field.
    heldout_size: number of rows to hold out where there is no `heldout_path` and no split to.

    A field within a field is named with a dot: "reward_model.ground_truth". A row's other fields
    travel in Problem.meta.
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
    split: str = "train"
    heldout_split: str = ""
    solution: str = ""

    def train(self) -> Problems:
        """Returns the training problems; raises UserError if they cannot be read as set."""
        return self._split("train")

    def heldout(self) -> Problems:
        """Returns the held-out problems, none of which is in train().

        Raises UserError if they cannot be read as set.
        """
        return self._split("heldout")

    def _split(self, split: str) -> Problems:
        if not self.language_field:
            check_language_setting(self.language)
        return read_split(
            self.path,
            self.heldout_path,
            self.heldout_size,
            self._problem,
            split,
            train_split=self.split,
            heldout_split=self.heldout_split,
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
            self.solution,
        }
        is_answered = self.solution == self.question
        context, prompt = row.prompt(self.question, "question", is_answered)
        meta = row.meta(used)
        if self.solution:
            meta["solution"] = row.reply(self.solution, "solution")
        return Problem(
            id=problem_id,
            prompt=prompt,
            context=context,
            answer=row.text(self.answer, "answer") if self.answer else "",
            language=row.language(self.language_field)
            if self.language_field
            else self.language,
            level=row.level(self.level_field, "level_field") if self.level_field else 0,
            meta=meta,
        )


def read_split(
    path: str,
    heldout_path: str,
    heldout_size: int,
    to_problem: Callable[[Row, str], Problem],
    split: str,
    accepts: Callable[[Row], bool] = lambda row: True,
    *,
    train_split: str = "train",
    heldout_split: str = "",
) -> Problems:
    """Returns the training or the held-out problems, in the order of the files.

    Without a `heldout_path`, the split `heldout_split` of the folder `path` is held out. Where
    there is no such split the two share the training rows: the last `heldout_size` are held out.

    to_problem: (row, split) -> the row's problem, with an id that is unique over both
    split: "train" or "heldout"
    accepts: returns whether a row is read at all; others are left out
    train_split: of the folder `path`, to train on
    heldout_split: of a folder, to hold out; "": `test` if there is one

    Raises UserError if there is no file, it cannot be read or split, or two problems share an id.
    """
    if not path and (split == "train" or not heldout_path):
        raise UserError("the data has no file; set --config.data.path=train.jsonl")
    if heldout_path and split == "heldout":
        splits = find_splits(heldout_path)
        only = next(iter(splits)) if len(splits) == 1 else HELDOUT_SPLIT
        rows = _rows_of(heldout_path, splits, heldout_split or only, "heldout_split")
    elif heldout_path:
        rows = _rows_of(path, find_splits(path), train_split, "split")
    else:
        rows = _rows_of_shared_path(
            path, heldout_size, split, accepts, train_split, heldout_split
        )
    accepted = list(filter(accepts, rows))
    return to_problems(accepted, lambda row: to_problem(row, split))


def to_problems(rows: Sequence[Row], to_problem: Callable[[Row], Problem]) -> Problems:
    """Returns the problem of each row; raises UserError if two share an id."""
    problems = [to_problem(row) for row in rows]
    _refuse_repeated_ids(rows, problems)
    return problems


def check_language_setting(language: str) -> None:
    """Raises UserError if --config.data.language names no language that can be told."""
    if language_code(language) is None:
        raise UserError(
            f"--config.data.language is {language!r}, not a language that can be told; set it to "
            f"one of {' '.join(sorted(LANGUAGE_CODES))}"
        )


def _rows_of_shared_path(
    path: str,
    heldout_size: int,
    split: str,
    accepts: Callable[[Row], bool],
    train_split: str,
    heldout_split: str,
) -> list[Row]:
    """Returns the rows to train on or to hold out, where one path has both."""
    splits = find_splits(path)
    if not heldout_split and HELDOUT_SPLIT in splits and train_split != HELDOUT_SPLIT:
        heldout_split = HELDOUT_SPLIT
    if heldout_split == train_split:
        raise UserError(
            f"--config.data.split and --config.data.heldout_split are both {train_split!r}; hold "
            "out another one, or leave heldout_split empty"
        )
    if heldout_split and split == "heldout":
        return _rows_of(path, splits, heldout_split, "heldout_split")
    rows = _rows_of(path, splits, train_split, "split")
    if heldout_split:
        return rows
    # Of those that are read alone the last ones are held out.
    train, heldout = _hold_out_tail(list(filter(accepts, rows)), heldout_size, path)
    return train if split == "train" else heldout


def _rows_of(
    path: str, splits: dict[str, list[Path]], name: str, setting: str
) -> list[Row]:
    """Returns the rows of one split.

    splits: of the path, as `find_splits` returns them
    setting: the setting that the split's name is from

    Raises UserError if there is no such split.
    """
    if name in splits:
        return read_files(splits[name])
    if "" not in splits:
        raise UserError(
            f"{path} has the splits {', '.join(splits)}, and none is {name!r}; set "
            f"--config.data.{setting}={next(iter(splits))}"
        )
    # All rows of a file are to train on, whatever a folder's split would be called.
    if setting == "split":
        return read_files(splits[""])
    raise UserError(
        f"{path} has no splits, and so none that is {name!r}; leave out --config.data.{setting}"
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
    first_rows: dict[str, Row] = {}
    for row, problem in zip(rows, problems, strict=True):
        first = first_rows.setdefault(problem.id, row)
        if first is not row:
            where = (
                f"{first.unit} {first.line}" if first.path == row.path else first.where
            )
            raise row.error(
                f"the id {json.dumps(problem.id)} is that of {where} too; make it unique or leave "
                "--config.data.id_field empty"
            )
