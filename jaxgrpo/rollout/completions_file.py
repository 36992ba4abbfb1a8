"""OUT/evaluation.jsonl: all completions of evaluations, a problem a row.

What is there of the same policy and settings is not sampled again: an evaluation that was stopped
goes on. While one runs, rows hold texts alone; at its end they are written anew, with verdicts.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax

from jaxgrpo.distributed.processes import gather_json
from jaxgrpo.files import upload, write_atomically
from jaxgrpo.problems import Completion, Problem
from jaxgrpo.rollout.evaluated import completion_row
from jaxgrpo.rollout.groups import JudgedTexts
from jaxgrpo.rollout.report import Json

UPLOAD_SECONDS = 60.0
"""Time between two uploads of a file in a bucket, which is written there anew each time."""


class CompletionsFile:
    """The rows of one evaluation in a file that has those of others, too.

    Process 0 alone reads and writes.

    about: values that all its rows begin with, "key" among them: rows of the same key hold
        completions of the same policy with the same settings
    """

    def __init__(self, path: Path, about: Mapping[str, object]) -> None:
        self._path = path
        self._about = dict(about)
        self._is_writer = jax.process_index() == 0
        self._uploaded_at = time.monotonic()

    def texts(
        self, problems: Sequence[Problem], samples: int
    ) -> dict[str, list[Completion]]:
        """Returns the completions that are there, by the problem's id, in all processes alike."""
        prompts = {
            problem.id: (problem.context, problem.prompt) for problem in problems
        }
        found = {}
        for row in _rows(self._path) if self._is_writer else ():
            is_asked = row["key"] == self._about["key"]
            # Another data set may have another problem of that id.
            prompt = row.get("context", []), row["prompt"]
            is_asked &= prompts.get(row["id"]) == prompt
            if is_asked and len(row["completions"]) == samples:
                found[row["id"]] = [
                    [text["text"], text["tokens"], text["finished"]]
                    for text in row["completions"]
                ]
        return {
            problem_id: [Completion(*text) for text in texts]
            for problem_id, texts in gather_json(found)[0].items()
        }

    def append(self, judged: JudgedTexts) -> None:
        """Adds the texts of a problem."""
        problem = judged.problem
        row = {
            "id": problem.id,
            "context": problem.context,
            "prompt": problem.prompt,
            "completions": [completion_row(text) for text in judged.texts],
        }
        if self._is_writer:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(self._about | row))
            if time.monotonic() - self._uploaded_at >= UPLOAD_SECONDS:
                upload(self._path)
                self._uploaded_at = time.monotonic()

    def replace(self, rows: Sequence[Json]) -> None:
        """Replaces all rows of this evaluation."""
        if self._is_writer:
            others = [
                other
                for other in _rows(self._path)
                if other["key"] != self._about["key"]
            ]
            _write(self._path, [*others, *(self._about | row for row in rows)])


def keep_rows(path: Path, keys: Sequence[str]) -> None:
    """Drops the rows of all evaluations but these, and a last line that was cut off."""
    if jax.process_index() == 0 and path.exists():
        _write(path, [row for row in _rows(path) if row["key"] in keys])


def _rows(path: Path) -> Iterator[Json]:
    """Yields the rows of a file; those that were cut off, or are not ours, are left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and {"key", "id", "completions"} <= row.keys():
                yield row


def _write(path: Path, rows: Sequence[Json]) -> None:
    write_atomically(path, "".join(map(_line, rows)).encode("utf-8"))


def _line(row: Json) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
