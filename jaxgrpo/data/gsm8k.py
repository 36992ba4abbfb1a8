"""Reads GSM8K: 7,473 training and 1,319 test problems of grade-school arithmetic.

Source: arXiv 2110.14168; MIT licence. An example row of the official files; the gold answer is what
follows the last "####":

    {"question": "Natalia sold clips to 48 of her friends ...",
     "answer": "Natalia sold 48/2 = ... in May.\\n#### 72"}

From files that are already here, `GSM8K(path="train.jsonl", heldout_path="test.jsonl")`, or
`GSM8K(path="openai/gsm8k/main")` where that folder of the Hugging Face hub was fetched; without a
path TFDS downloads the official files once. All give the same problems.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsIndex, TypedDict, overload

from jaxgrpo.data.rows import Row
from jaxgrpo.data.table import read_split
from jaxgrpo.errors import FixedFields, UserError
from jaxgrpo.problems import Problem, Problems

GOLD_MARK = "####"
"""What stands between the solution and the gold answer."""


@dataclass
class GSM8K(FixedFields):
    """A Source: GSM8K, from JSON Lines files or through TFDS.

    path: the official train.jsonl, a file like it, or the folder `main` of openai/gsm8k on the
      Hugging Face hub; "" to get the official files through TFDS, which downloads and prepares them
      once. Then, and of a folder, the test split is held out.
    heldout_path: the official test.jsonl, or a file like it; without one the last `heldout_size`
      rows of a file `path` are held out.
    data_dir: where TFDS keeps what it prepares; "" is TFDS's own folder, ~/tensorflow_datasets.
    heldout_size: number of rows to hold out where there is a `path` and no `heldout_path`.

    The prompt is the question as it is: say in `config.system` how the answer is to be written. The
    gold solution is in Problem.meta["solution"].
    """

    path: str = ""
    heldout_path: str = ""
    data_dir: str = ""
    heldout_size: int = 256

    def train(self) -> Problems:
        """Returns the training problems.

        Raises UserError if they can be neither read nor downloaded.
        """
        return self._split("train")

    def heldout(self) -> Problems:
        """Returns the held-out problems, none of which is in train().

        Raises UserError if they can be neither read nor downloaded.
        """
        return self._split("heldout")

    def _split(self, split: str) -> Problems:
        # A heldout_path alone takes the place of the test split; training problems come from TFDS.
        if self.path or (self.heldout_path and split == "heldout"):
            return read_split(
                self.path, self.heldout_path, self.heldout_size, _from_row, split
            )
        tfds_split = "train" if split == "train" else "test"
        return PreparedProblems(_data_source(self.data_dir, tfds_split), split)


class Example(TypedDict):
    """A row as TFDS gives it, texts in UTF-8. line: of the official file, from 1."""

    question: bytes
    answer: bytes
    line: int


class PreparedProblems(Sequence[Problem]):
    """The problems of a split that TFDS has prepared; each is read from disk when it is asked for.

    examples: random access to the rows, as `as_data_source` gives it
    """

    def __init__(self, examples: Sequence[Example], split: str):
        self._examples = examples
        self._split = split

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Problem | list[Problem]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        # Indexing a range takes negative indices, and raises IndexError past the end.
        example = self._examples[range(len(self))[index]]
        line = int(example["line"])
        where = f"GSM8K {self._split} line {line}"
        solution, gold = split_answer(example["answer"].decode(), where)
        return _make_problem(
            self._split, line, example["question"].decode(), solution, gold
        )


def split_answer(answer: str, where: str) -> tuple[str, str]:
    """Returns (solution, gold) of an answer that ends in "#### " and a number.

    The solution is the text before the last "####"; gold is the rest of the mark's line, without
    commas between thousands.

    where: what an error names

    Raises UserError if there is no "####", or nothing after it.
    """
    # The last mark, because a solution may hold one, too.
    solution, mark, gold = answer.rpartition(GOLD_MARK)
    gold = gold.strip().partition("\n")[0].replace(",", "").strip()
    if not mark or not gold:
        raise UserError(
            f'{where}: the answer has no "{GOLD_MARK}" with the result after it, as in '
            f'"{GOLD_MARK} 42"; mend the line, or read a file of another form with '
            "jaxgrpo.data.table.Table"
        )
    return solution.strip(), gold


def _from_row(row: Row, split: str) -> Problem:
    """Returns the problem of a row of the official files."""
    solution, gold = split_answer(row.text("answer", "path"), row.where)
    return _make_problem(split, row.line, row.text("question", "path"), solution, gold)


def _make_problem(
    split: str, line: int, question: str, solution: str, gold: str
) -> Problem:
    return Problem(
        id=f"gsm8k:{split}:{line}",
        prompt=question,
        answer=gold,
        meta={"solution": solution},
    )


def _data_source(data_dir: str, split: str) -> Sequence[Example]:
    """Returns TFDS's random access to a split, downloaded and prepared if it is not there yet."""
    try:
        # Here and not at the top: files on disk are read without TFDS.
        from jaxgrpo.data.gsm8k_builder import prepare
    except ImportError as error:
        raise UserError(
            "GSM8K comes through TensorFlow Datasets, which does not import here "
            f"({error}); pip install 'jaxgrpo[train]', or set "
            "--config.data.path=gsm8k_train.jsonl"
        ) from error
    return prepare(data_dir).as_data_source(split=split)
