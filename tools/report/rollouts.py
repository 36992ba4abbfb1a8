"""Reads OUT/rollouts.jsonl as groups, and says of completions what no line of it says.

That is which words are not in the problem's language, and what the verifier read as the answer.
"""

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxgrpo.errors import UserError
from jaxgrpo.rewards.languages.consistency import locate_words
from jaxgrpo.rewards.maths.extraction import DEFAULT_METHODS, extract_answer
from jaxgrpo.text.language_codes import LANGUAGE_CODES
from jaxgrpo.text.messages import Message
from jaxgrpo.text.surrogates import replace_lone_surrogates

ACCURACY = "jaxgrpo.rewards.maths.verifier:accuracy"
"""How a config.json names the reward `maths.accuracy`."""


@dataclass(frozen=True)
class SavedGroup:
    """The completions of a problem that were written of a step: all, or the first.

    problem: a line of rollouts.jsonl, for what is the same in all lines of the group
    completions: the lines, in their order
    """

    problem: Mapping
    completions: list[Mapping] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Returns the step that sampled it."""
        return self.problem["step"]

    @property
    def context(self) -> Sequence[Message]:
        """Returns the messages before the prompt."""
        # Older runs did not write them.
        return self.problem.get("context", [])


def read_groups(out: Path) -> Iterator[SavedGroup]:
    """Yields the groups that a run has written, in the order of their steps.

    A last line that was cut off is left out.

    Raises UserError if there are none.
    """
    path = out / "rollouts.jsonl"
    if not path.exists():
        raise UserError(
            f"{out} holds no completions (rollouts.jsonl): give the --config.out of a training run"
        )
    group: SavedGroup | None = None
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            record = json.loads(line)
            # A group's lines follow each other, and its first completion is number 0.
            if group is None or record.get("sample", 0) == 0:
                if group is not None:
                    yield group
                group = SavedGroup(record)
            group.completions.append(record)
    if group is not None:
        yield group


def mark_foreign(text: str, language: str) -> list[str]:
    """Returns a text in pieces: in turn what is in a language or no word, and foreign words.

    language: ISO 639-1 code of the language that the text should be in

    Foreign words that only white space separates are one piece. The pieces together are the text.
    """
    text = unicodedata.normalize("NFC", replace_lone_surrogates(text))
    if language not in LANGUAGE_CODES:
        return [text]
    spans: list[tuple[int, int]] = []
    for word in locate_words(text, language):
        if word.language == language:
            continue
        if spans and not text[spans[-1][1] : word.start].strip():
            spans[-1] = (spans[-1][0], word.end)
        else:
            spans.append((word.start, word.end))
    pieces = []
    position = 0
    for start, end in spans:
        pieces += [text[position:start], text[start:end]]
        position = end
    return [*pieces, text[position:]]


def extraction_methods(settings: Mapping[str, object]) -> tuple[str, ...]:
    """Returns where the reward that decides what is solved takes answers from.

    settings: a run's, by dotted name

    () where that reward takes none, as far as a config.json tells.
    """
    start = f"rewards.{settings.get('solved_by', 'accuracy')}.function"
    own = {name: value for name, value in settings.items() if name.startswith(start)}
    for name, value in own.items():
        if name.endswith(".extract") and isinstance(value, list):
            return tuple(map(str, value))
    return DEFAULT_METHODS if ACCURACY in own.values() else ()


def read_answer(text: str, methods: Sequence[str]) -> str | None:
    """Returns what the verifier takes from a completion; None if it finds no answer."""
    return extract_answer(text, methods) if methods else None
