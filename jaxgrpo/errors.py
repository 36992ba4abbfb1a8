"""The one error that is meant for the person at the keyboard, and what mistakes are told by."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input from outside: a config, a data file, a checkpoint, a model folder.

    The message is one line that says what is wrong, where, with the numbers, and what to do about
    it. Programs catch it in `main`, print the line and exit with code 2; nothing else in the code
    catches it.
    """


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raises UserError if a setting has none of the values that it may have.

    name: the setting's, as people write it
    """
    choices = tuple(choices)
    if value not in choices:
        raise UserError(f"{name} is {value!r}: it must be one of {', '.join(choices)}")


class FixedFields:
    """Base of a dataclass that has its fields alone: another name is a mistake in one of theirs.

    Without it `config.batch.gruop_size = 16` would run, and change nothing.
    """

    def __setattr__(self, name: str, value: object) -> None:
        """Sets a field. Raises AttributeError for any other name."""
        fields = getattr(type(self), "__dataclass_fields__", {})
        # A property of a subclass may have a setter.
        if name not in fields and not hasattr(type(self), name):
            near = difflib.get_close_matches(name, fields, n=1)
            hint = near[0] if near else f"one of {', '.join(fields)}"
            raise AttributeError(
                f"{type(self).__name__} has no {name}: did you mean {hint}?"
            )
        super().__setattr__(name, value)
