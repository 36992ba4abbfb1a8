"""Looks for stop strings in a row of tokens while it grows, in time that is linear in the row."""

from collections.abc import Callable, Sequence

BLOCK = 16
"""Tokens that are decoded together, and the most that may wait for the rest of a character."""
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""How tokenizers decode bytes that are no character, or not yet."""


class StopSearch:
    """Searches one row, which only grows between two calls.

    A token's text depends on the one before it (where a text begins, a space is stripped), and a
    character may be of several tokens. So a block of tokens is decoded together with the block
    before it, and blocks end where characters do.
    """

    def __init__(self, stops: Sequence[str], decode: Callable[[Sequence[int]], str]):
        self._stops, self._decode = stops, decode
        self._longest = max(map(len, stops))
        self._before = 0  # where the block before the next one begins
        self._next = 0  # where the next one begins: all tokens before it have been searched
        self._length_before = 0  # characters of the block before
        self._tail = ""  # the end of the text that has been searched, where a stop string may begin

    def first(self, tokens: Sequence[int]) -> int | None:
        """Returns how many tokens there are when the text first holds a stop string.

        None while it holds none.

        tokens: the whole row so far
        """
        while self._next < len(tokens):
            end = min(self._next + BLOCK, len(tokens))
            text = self._text(tokens, end)
            clean = end
            # The text of whole characters begins with that of every shorter block: one look is enough.
            if _INCOMPLETE in text or self._is_stopped(text):
                clean = 0
                for count in range(self._next + 1, end + 1):
                    text = self._text(tokens, count)
                    if self._is_stopped(text):
                        return count
                    if not text.endswith(_INCOMPLETE):
                        clean = count
            if not clean and end - self._next < BLOCK:
                return None  # the next token may complete the character
            self._advance(tokens, clean or end)
        return None

    def _text(self, tokens: Sequence[int], count: int) -> str:
        """Returns the text of the first `count` tokens, from where a stop string may begin."""
        return self._tail + self._decode(tokens[self._before : count])[self._length_before :]

    def _is_stopped(self, text: str) -> bool:
        return any(stop in text for stop in self._stops)

    def _advance(self, tokens: Sequence[int], count: int) -> None:
        text = self._text(tokens, count)
        self._tail = text[len(text) - min(len(text), self._longest - 1) :]
        self._before, self._next = self._next, count
        self._length_before = len(self._decode(tokens[self._before : count]))
