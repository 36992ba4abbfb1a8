"""Reads sets of competition mathematics to train on: MATH, SimpleRL-Zoo's and NuminaMath 1.5."""

import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from jaxgrpo.data.json_rows import read_object
from jaxgrpo.data.row_files import read_rows
from jaxgrpo.data.rows import Row
from jaxgrpo.data.table import read_split, to_problems
from jaxgrpo.errors import FixedFields, UserError
from jaxgrpo.files import fetched
from jaxgrpo.problems import Problem, Problems
from jaxgrpo.rewards.maths.extraction import find_boxes, parse_gold


@dataclass
class CompetitionSet(FixedFields, ABC):
    """A Source of problems to train on, from a file, and to hold out; the base of those below.

    path: the training file.
    heldout_path: the held-out file; without one the last `heldout_size` rows of `path` are held
      out.
    heldout_size: number of rows to hold out where there is no `heldout_path`.
    """

    path: str = ""
    heldout_path: str = ""
    heldout_size: int = 256

    def train(self) -> Problems:
        """Returns the training problems; raises UserError if they cannot be read."""
        return self._split("train")

    def heldout(self) -> Problems:
        """Returns the held-out problems, none of which is in train(); raises what that does."""
        return self._split("heldout")

    def _split(self, split: str) -> Problems:
        return read_split(
            self.path,
            self.heldout_path,
            self.heldout_size,
            self._problem,
            split,
            self._accepts,
        )

    @abstractmethod
    def _accepts(self, row: Row) -> bool:
        """Returns whether a row has a problem that can be asked and verified."""

    @abstractmethod
    def _problem(self, row: Row, split: str) -> Problem:
        """Returns a row's problem."""


@dataclass
class MATH(CompetitionSet):
    r"""A Source: MATH (arXiv 2103.03874), 7,500 problems to train on and 5,000 to evaluate on.

    {"problem": "Let \\[f(x) = ...", "level": "Level 5", "type": "Algebra",
     "solution": "For the function ... $\\boxed{0}$."}

    The gold answer is what the verifier reads in the solution, its last box; the solution is in
    Problem.meta["solution"], the subject in Problem.meta["type"]. Two problems to train on have an
    empty box and are left out. A level is 0 where the set says "Level ?", of two problems. Subjects
    take turns, so that the first problems are of all seven.

    path: the folder of the archive, MATH, with train/algebra/24014.json and its like, or that of
      the hub's copy, with algebra/train-00000-of-00001.parquet. Or a file of such rows.
    heldout_path: another file to hold out, of the same fields; without one the folder's test split
      is held out, and of a file `path` the last `heldout_size` rows.
    heldout_size: number of rows to hold out of a file `path` without a `heldout_path`.

    Source, under MIT: https://github.com/hendrycks/math; the hub's copy:
    https://huggingface.co/datasets/EleutherAI/hendrycks_math
    """

    def _split(self, split: str) -> Problems:
        is_other_file = split == "heldout" and bool(self.heldout_path)
        if self.path and not is_other_file:
            folder = fetched(self.path).expanduser()
            if folder.is_dir():
                name = "train" if split == "train" else "test"
                rows = list(filter(_math_gold, _rows_in_turns(folder, name)))
                return to_problems(rows, lambda row: _math_problem(row, name, folder))
        return super()._split(split)

    def _accepts(self, row: Row) -> bool:
        return bool(_math_gold(row))

    def _problem(self, row: Row, split: str) -> Problem:
        return _math_problem(row, split, None)


def _rows_in_turns(folder: Path, split: str) -> Iterator[Row]:
    """Yields the rows of a split of MATH, the first of each subject, then the second of each.

    Raises UserError if the folder has none.
    """
    subjects: dict[str, list[Row]] = {}
    for path in sorted(folder.glob(f"{split}/*/*.json")):
        rows = read_rows(path, read_object)
        subjects.setdefault(path.parent.name, []).extend(rows)
    if not subjects:
        # On the hub a subject is a folder, with a file or a folder for each split.
        files = [
            *folder.glob(f"*/{split}-*.parquet"),
            *folder.glob(f"*/{split}/*.parquet"),
        ]
        for path in sorted(files):
            subject = path.relative_to(folder).parts[0]
            subjects.setdefault(subject, []).extend(read_rows(path))
    if not subjects:
        raise UserError(
            f"{folder} has neither {split}/algebra/*.json nor algebra/{split}-*.parquet and their "
            "like; give the folder MATH of the archive, or that of EleutherAI/hendrycks_math"
        )
    for turn in itertools.zip_longest(*subjects.values()):
        yield from filter(None, turn)


def _math_problem(row: Row, split: str, folder: Path | None) -> Problem:
    """Returns the problem of a row of MATH. folder: that it is from; None: from a file."""
    place = split
    if folder is not None:
        place = row.path.relative_to(folder).as_posix()
    is_alone = folder is not None and row.path.suffix == ".json"
    return Problem(
        id=f"math:{place}" if is_alone else f"math:{place}:{row.line}",
        prompt=row.text("problem", "path"),
        answer=_math_gold(row),
        level=_level_of(row),
        meta=row.meta({"problem", "level"}),
    )


def _math_gold(row: Row) -> str:
    """Returns what the verifier reads in the solution of a row of MATH; "" for an empty box."""
    solution = row.text("solution", "path")
    if "\\boxed" not in solution:
        raise row.error('"solution" has no \\boxed answer; write one, or drop the row')
    boxes = find_boxes(solution)
    if boxes and not max(boxes).text.strip():
        return ""
    return parse_gold(solution)[0]


def _level_of(row: Row) -> int:
    """Returns the level of a row, "Level 5" or 5; 0 where it has none that is a number."""
    level = re.fullmatch(r"(?:Level )?(\d+)", str(row.values.get("level")))
    return int(level[1]) if level else 0


@dataclass
class SimpleRLZoo(CompetitionSet):
    r"""A Source: the training data of SimpleRL-Zoo (arXiv 2503.18892), some 8,000 problems a set.

    {"question": "Let \\[f(x) = ...", "gt_answer": "0", "level": 5, "subject": "Algebra",
     "prompt": [{"role": "user", "content": "<|im_start|>system\n..."}], "ability": "math",
     "reward_model": {"style": "rule", "ground_truth": "0"}, "extra_info": {...}, ...}

    There are three sets, each with a train.parquet and a test.parquet, MATH500: easy is GSM8K with
    level 1 of MATH (simplelr_qwen_gsm8k_level1), medium is levels 1 to 4 (simplelr_qwen_level1to4),
    hard is levels 3 to 5 (simplelr_qwen_level3to5). The folders simplelr_abel_* have the same
    problems in a plainer prompt. The prompt is not read: problems are asked through the model's own
    chat template. Two hard problems have no answer and are left out.

    path: the training file.
    heldout_path: the held-out file; without one the last `heldout_size` rows of `path` are held
      out.
    heldout_size: number of rows to hold out where there is no `heldout_path`.

    A level is 0 where a row has none. Source, under Apache-2.0:
    https://huggingface.co/datasets/hkust-nlp/SimpleRL-Zoo-Data
    """

    def _accepts(self, row: Row) -> bool:
        return bool(_with_extra_info(row).value("gt_answer", "path"))

    def _problem(self, row: Row, split: str) -> Problem:
        row = _with_extra_info(row)
        return Problem(
            id=f"simplerl_zoo:{split}:{row.line}",
            prompt=row.text("question", "path"),
            answer=row.text("gt_answer", "path"),
            # Rows of GSM8K, in the easy set, have none of MATH's levels.
            level=_level_of(row),
            meta={"subject": row.values.get("subject")},
        )


def _with_extra_info(row: Row) -> Row:
    """Returns the row with question and answer from its extra_info where it has no own ones."""
    info = row.values.get("extra_info")
    if not isinstance(info, dict):
        return row
    names = {"question": "question", "answer": "gt_answer"}
    inner = {own: info[name] for name, own in names.items() if name in info}
    return replace(row, values=inner | row.values)


NO_ANSWERS = ("", "proof", "notfound")
"""What stands in NuminaMath where there is no answer that could be verified."""


@dataclass
class NuminaMath(CompetitionSet):
    """A Source: problems of NuminaMath 1.5 whose answers can be verified.

    {"problem": "...", "solution": "...", "answer": "12", "problem_type": "Algebra",
     "question_type": "math-word-problem", "problem_is_valid": "Yes", "solution_is_valid": "Yes",
     "source": "olympiads", "synthetic": false}

    Read are rows that say of themselves that problem and solution are valid, that are word problems
    (not proofs, and not multiple choice, whose options may be missing), and that have an answer.
    The solution is in Problem.meta["solution"].

    path: the training file; of the 896,215 rows each of the three files has a third.
    heldout_path: the held-out file; without one the last `heldout_size` rows of `path` are held
      out.
    sources: of the field "source", those to read, such as ("olympiads", "amc_aime"); (): all.
    heldout_size: number of rows to hold out where there is no `heldout_path`.

    Source, under Apache-2.0: https://huggingface.co/datasets/AI-MO/NuminaMath-1.5
    """

    sources: tuple[str, ...] = ()

    def _accepts(self, row: Row) -> bool:
        """Returns whether a row is a valid word problem with an answer, of one of the sources."""
        is_valid = (
            row.value("problem_is_valid", "path") == "Yes"
            and row.value("solution_is_valid", "path") == "Yes"
        )
        is_asked = not self.sources or row.value("source", "path") in self.sources
        has_answer = row.value("answer", "path") not in (None, *NO_ANSWERS)
        is_word_problem = row.value("question_type", "path") == "math-word-problem"
        return is_valid and is_asked and has_answer and is_word_problem

    def _problem(self, row: Row, split: str) -> Problem:
        return Problem(
            id=f"numina_math:{split}:{row.line}",
            prompt=row.text("problem", "path"),
            answer=row.text("answer", "path"),
            meta={
                name: row.values.get(name)
                for name in ("source", "problem_type", "solution")
            },
        )
