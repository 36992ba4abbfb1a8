"""The one error that is meant for the person at the keyboard."""

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
