"""GSM8K: 7,473 training and 1,319 test problems of grade-school arithmetic (arXiv 2110.14168; MIT licence).

An example row of the official files; the gold answer is what follows the last "####":

    {"question": "Natalia sold clips to 48 of her friends ...", "answer": "Natalia sold 48/2 = ... in May.\\n#### 72"}

From files that are already here, `GSM8K(path="train.jsonl", heldout_path="test.jsonl")`; without a path TFDS
downloads the official ones once. Both give the same problems.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, overload

from jaxgrpo.data.jsonl import Row, read_split
from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problem, Problems

MARK = "####"


@dataclass
class GSM8K:
    """A Source: GSM8K, from JSON Lines files or through TFDS.

    path, heldout_path: the official train.jsonl and test.jsonl, or files like them. With a path alone its last
    `heldout_size` rows are held out. Without a path the official files come through TFDS, which downloads and prepares
    them once, in `data_dir` ("": TFDS's own, ~/tensorflow_datasets); the test split is held out.
    The prompt is the question as it is: say in `config.system` how the answer is to be written. The gold solution is
    in Problem.meta["solution"].
    """

    path: str = ""
    heldout_path: str = ""
    data_dir: str = ""
    heldout_size: int = 256

    def train(self) -> Problems:
        """The training problems; UserError where they can be neither read nor downloaded."""
        return self._split("train")

    def heldout(self) -> Problems:
        """The held-out problems, none of them in train(); UserError where they can be neither read nor downloaded."""
        return self._split("heldout")

    def _split(self, split: str) -> Problems:
        if self.path or (self.heldout_path and split == "heldout"):
            return read_split(self.path, self.heldout_path, self.heldout_size, _from_row, split)
        return Prepared(_data_source(self.data_dir, "train" if split == "train" else "test"), split)


class Prepared(Sequence[Problem]):
    """The problems of a split that TFDS has prepared; each is read from disk when it is asked for.

    examples: random access to {"question", "answer", "line"}, as `as_data_source` gives it.
    """

    def __init__(self, examples: Sequence[dict[str, Any]], split: str):
        self._examples = examples
        self._split = split

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        example = self._examples[
            range(len(self))[index]
        ]  # range: negative indices, and IndexError past the end
        line = int(example["line"])
        solution, gold = split_answer(
            example["answer"].decode(), f"GSM8K {self._split} line {line}"
        )
        return _problem(self._split, line, example["question"].decode(), solution, gold)


def split_answer(answer: str, where: str) -> tuple[str, str]:
    """(solution, gold): the text before the last "####", and the rest of its line, a number, without thousands' commas.

    UserError names `where` if there is no "####" or nothing after it.
    """
    solution, mark, gold = answer.rpartition(MARK)
    gold = gold.strip().partition("\n")[0].replace(",", "").strip()
    if not mark or not gold:
        raise UserError(
            f'{where}: the answer has no "{MARK}" with the result after it, as in "{MARK} 42"; mend the line, '
            "or read a file of another form with jaxgrpo.data.jsonl.Jsonl"
        )
    return solution.strip(), gold


def _from_row(row: Row, split: str) -> Problem:
    solution, gold = split_answer(row.text("answer", "path"), f"{row.path} line {row.line}")
    return _problem(split, row.line, row.text("question", "path"), solution, gold)


def _problem(split: str, line: int, question: str, solution: str, gold: str) -> Problem:
    return Problem(
        id=f"gsm8k:{split}:{line}", prompt=question, answer=gold, meta={"solution": solution}
    )


def _data_source(data_dir: str, split: str) -> Sequence[dict[str, Any]]:
    """TFDS's random access to a split, downloaded and prepared if it is not there yet."""
    try:
        # Here and not at the top: files on disk are read without TFDS.
        from jaxgrpo.data.gsm8k_builder import prepare
    except ImportError as error:
        raise UserError(
            f"GSM8K comes through TensorFlow Datasets, which does not import here ({error}); "
            "pip install 'jaxgrpo[train]', or set --config.data.path=gsm8k_train.jsonl"
        ) from error
    return prepare(data_dir).as_data_source(split=split)
