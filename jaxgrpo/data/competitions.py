"""Reads sets of competition mathematics to train on: SimpleRL-Zoo's and NuminaMath 1.5."""

import re
from dataclasses import dataclass, replace

from jaxgrpo.data.rows import Row
from jaxgrpo.data.table import read_split
from jaxgrpo.errors import FixedFields
from jaxgrpo.problems import Problem, Problems


@dataclass
class SimpleRLZoo(FixedFields):
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

    path: str = ""
    heldout_path: str = ""
    heldout_size: int = 256

    def train(self) -> Problems:
        """Returns the training problems; raises UserError if the file cannot be read."""
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
            lambda row: bool(_with_extra_info(row).value("gt_answer", "path")),
        )

    def _problem(self, row: Row, split: str) -> Problem:
        row = _with_extra_info(row)
        # Rows of GSM8K, in the easy set, have none of MATH's levels.
        level = re.fullmatch(r"(?:Level )?(\d+)", str(row.values.get("level")))
        return Problem(
            id=f"simplerl_zoo:{split}:{row.line}",
            prompt=row.text("question", "path"),
            answer=row.text("gt_answer", "path"),
            level=int(level[1]) if level else 0,
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
class NuminaMath(FixedFields):
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

    path: str = ""
    heldout_path: str = ""
    sources: tuple[str, ...] = ()
    heldout_size: int = 256

    def train(self) -> Problems:
        """Returns the training problems; raises UserError if the file cannot be read."""
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
