"""Defines a row of a data file: its fields, and where it stood, which every error names."""

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxgrpo.errors import UserError
from jaxgrpo.problems import OTHER_ANSWERS
from jaxgrpo.text.language_codes import LANGUAGE_CODES, language_code
from jaxgrpo.text.messages import Message, message_text, split_messages


class Number(float):
    """A float with the digits of the file, which a float does not keep ("0.1000")."""

    digits: str

    def __new__(cls, digits: str) -> "Number":
        self = super().__new__(cls, digits)
        self.digits = digits
        return self


@dataclass(frozen=True)
class Row:
    """A row of a file, and where it stood.

    line: from 1
    values: the row's fields, as JSON values; a fraction may be a `Number`
    unit: what `line` counts: lines of a text, or the rows of a file that is none
    """

    path: Path
    line: int
    values: dict[str, object]
    unit: str = "line"

    @property
    def where(self) -> str:
        """Returns the row's place, for errors."""
        return f"{self.path} {self.unit} {self.line}"

    def error(self, complaint: str) -> UserError:
        """Returns the UserError that says what is wrong with this row."""
        return UserError(f"{self.where}: {complaint}")

    def value(self, name: str, setting: str) -> object:
        """Returns the field `name`; "reward_model.ground_truth" is a field within a field.

        Raises UserError if there is none, naming the fields that are there and the setting that
        chooses another one.
        """
        # A name with a dot in it may also be a field's own.
        if name in self.values:
            return self.values[name]
        value: object = self.values
        for part in name.split("."):
            if not isinstance(value, dict) or part not in value:
                raise self._no_field(name, setting)
            value = value[part]
        return value

    def text(self, name: str, setting: str) -> str:
        """Returns the field `name` as text; a number keeps the digits of the file.

        Raises UserError if it is blank, or neither text nor a number.
        """
        value = self.value(name, setting)
        if isinstance(value, float):
            digits = _digits(value)
            if math.isinf(value):
                raise self.error(
                    f'"{name}" is {digits}, too large for a number; write it as text, in quotes'
                )
            value = digits if not math.isnan(value) else None
        # bool is a subclass of int
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self.error(
                f'"{name}" is {json_kind(value)}, not text or a number; mend it or set '
                f"--config.data.{setting}"
            )
        text = str(value)
        if not text.strip():
            raise self.error(
                f'"{name}" is blank; fill it in, drop the {self.unit} or set '
                f"--config.data.{setting}"
            )
        return text

    def prompt(
        self, name: str, setting: str, is_answered: bool = False
    ) -> tuple[list[Message], str]:
        """Returns (the messages before the prompt, the prompt) of the field `name`.

        The field is text, or a list of messages {"role": ..., "content": ...}, the last of which is
        the prompt.

        is_answered: the assistant's answer may follow, which is left out

        Raises UserError if it is neither, or the messages are no conversation.
        """
        value = self.value(name, setting)
        if not isinstance(value, list):
            return [], self.text(name, setting)
        if is_answered and _is_of_assistant(value):
            value = value[:-1]
        try:
            return split_messages(value)
        except ValueError as error:
            raise self.error(
                f'"{name}" is no conversation: {error}; mend it or set --config.data.{setting}'
            ) from None

    def reply(self, name: str, setting: str) -> str:
        """Returns what the assistant says in the field `name`.

        The field is text, or a list of messages, the last of which is the assistant's.

        Raises UserError if it is neither.
        """
        value = self.value(name, setting)
        if not isinstance(value, list):
            return self.text(name, setting)
        text = message_text(value[-1]["content"]) if _is_of_assistant(value) else None
        if text is None or not text.strip():
            raise self.error(
                f'"{name}" is a list that does not end with a text of the assistant; mend it or '
                f"set --config.data.{setting}"
            )
        return text

    def level(self, name: str, setting: str) -> int:
        """Returns the field `name` as a whole number from 0 up: 3, "3" or "Level 3".

        Raises UserError if it is none.
        """
        text = self.text(name, setting)
        # Letters may stand before the digits, but a minus sign must not be lost with them.
        match = re.fullmatch(r"\D*?(\d+)\s*", text, flags=re.ASCII)
        if match is None or "-" in text:
            raise self.error(
                f'"{name}" is {json.dumps(text)}, not a level like 3 or "Level 3"; mend it or set '
                f"--config.data.{setting}"
            )
        return int(match.group(1))

    def language(self, name: str) -> str:
        """Returns the field `name` as the code of a language that can be told from words.

        Raises UserError if it names no such language.
        """
        text = self.text(name, "language_field")
        code = language_code(text)
        if code is None:
            codes = " ".join(sorted(LANGUAGE_CODES))
            raise self.error(
                f'"{name}" is {json.dumps(text)}, not a language that can be told: {codes}; '
                "mend it, or set --config.data.language_field= and --config.data.language"
            )
        return code

    def meta(self, used: set[str]) -> dict[str, object]:
        """Returns the fields that are not used. A field of which only a part is used stays whole.

        Further gold answers keep the digits of the file, as the answer does.
        """
        meta = {
            name: _plain(value)
            for name, value in self.values.items()
            if name not in used
        }
        others = self.values.get(OTHER_ANSWERS)
        if OTHER_ANSWERS in meta and isinstance(others, list):
            meta[OTHER_ANSWERS] = [
                _digits(other) if isinstance(other, float) else other
                for other in others
            ]
        elif OTHER_ANSWERS in meta and isinstance(others, float):
            meta[OTHER_ANSWERS] = _digits(others)
        return meta

    def _no_field(self, name: str, setting: str) -> UserError:
        """Returns the error that there is no field `name`, with those that there are."""
        names = list(_field_names(self.values))
        there = ", ".join(map(json.dumps, names)) or "no fields"
        if setting == "path":
            # A source whose fields have fixed names: only another file can have them.
            hint = "--config.data.path to a file that has it"
        elif similar := difflib.get_close_matches(name, names, n=1):
            hint = f"--config.data.{setting}={similar[0]}"
        else:
            hint = f"--config.data.{setting} to the field that is meant"
        return self.error(f'there is no field "{name}", only {there}; set {hint}')


def _is_of_assistant(messages: list) -> bool:
    """Returns whether the last of some messages is the assistant's."""
    last = messages[-1] if messages else None
    if not isinstance(last, dict):
        return False
    return last.get("role") == "assistant" and "content" in last


def json_kind(value: object) -> str:
    """Returns the name of a JSON value's kind, as errors call it."""
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), "a number")


def _field_names(values: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    """Yields the names of a row's fields, dotted where an object has fields itself."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _field_names(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _digits(number: float) -> str:
    """Returns the digits of the file; of a float that is stored as such, those that tell it."""
    return number.digits if isinstance(number, Number) else repr(number)


def _plain(value: object) -> object:
    """Returns a value as JSON has it: floats alone, and null where a float is no number."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
