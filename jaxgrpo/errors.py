"""The one error that is meant for the person at the keyboard."""


class UserError(ValueError):
    """Bad input from outside: a config, a data file, a checkpoint, a model folder.

    The message is one line that says what is wrong, where, with the numbers, and what to do about
    it. Programs catch it in `main`, print the line and exit with code 2; nothing else in the code
    catches it.
    """
