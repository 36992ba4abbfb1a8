"""Looks for stop strings in a row of tokens while it grows, in time that is linear in the row."""

from collections.abc import Callable, Sequence

BLOCK_TOKENS = 16
"""Tokens that are decoded together, and the most that may wait for the rest of a character."""

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""How tokenizers decode bytes that are no character, or not yet."""


class StopSearch:
    """Searches one row, which only grows between two calls.

    A token's text depends on the token before it (where a text begins, a space is stripped), and a
    character may be of several tokens. So a block of tokens is decoded together with the block
    before it, its context, and blocks end where characters do.
    """

    def __init__(self, stops: Sequence[str], decode: Callable[[Sequence[int]], str]):
        self._stops = stops
        self._decode = decode
        self._max_stop_length = max(map(len, stops))
        # Token positions: where the context begins, and where the next block begins. All tokens
        # before the next block have been searched.
        self._context_start = 0
        self._block_start = 0
        # In characters.
        self._context_length = 0
        # The end of the text that has been searched, in which a stop string may begin.
        self._tail = ""

    def first(self, tokens: Sequence[int]) -> int | None:
        """Returns the number of tokens with which the text first holds a stop string.

        Returns None while it holds none.

        tokens: the whole row so far
        """
        while self._block_start < len(tokens):
            end = min(self._block_start + BLOCK_TOKENS, len(tokens))
            text = self._text(tokens, end)
            # Where the last whole character ends; 0 while there is none.
            character_end = end
            # The text of whole characters begins with that of every shorter block. So if it holds
            # no stop string, neither does any of these.
            if _INCOMPLETE in text or self._has_stop(text):
                character_end = 0
                for count in range(self._block_start + 1, end + 1):
                    text = self._text(tokens, count)
                    if self._has_stop(text):
                        return count
                    if not text.endswith(_INCOMPLETE):
                        character_end = count
            if not character_end and end - self._block_start < BLOCK_TOKENS:
                return None  # the next token may complete the character
            # A full block without any whole character is taken as it is.
            self._advance(tokens, character_end or end)
        return None

    def _text(self, tokens: Sequence[int], count: int) -> str:
        """Returns the text of the first `count` tokens, from where a stop string may begin."""
        with_context = self._decode(tokens[self._context_start : count])
        return self._tail + with_context[self._context_length :]

    def _has_stop(self, text: str) -> bool:
        return any(stop in text for stop in self._stops)

    def _advance(self, tokens: Sequence[int], count: int) -> None:
        """Makes the next block begin after `count` tokens, and the one before it its context."""
        text = self._text(tokens, count)
        tail_length = min(len(text), self._max_stop_length - 1)
        self._tail = text[len(text) - tail_length :]
        self._context_start = self._block_start
        self._block_start = count
        self._context_length = len(self._decode(tokens[self._context_start : count]))
