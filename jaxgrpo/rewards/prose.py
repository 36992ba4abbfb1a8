r"""The prose of a completion: the part asked for, without formulas, code and addresses.

part(text, "think")                    the text between <think> and </think>
strip_formulas(r"So $x = 5$ apples")   "So   apples"

All of it takes linear time, whatever a model writes.
"""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import regex as re

from jaxgrpo.text.thoughts import CLOSES_THOUGHTS, OPENS_THOUGHTS

PARTS = ("think", "answer", "all")


def part(text: str, name: str) -> str:
    """Returns a part of a completion: its chain of thought, what is said after it, or all.

    A chain of thought stands between `<think>` and `</think>`, or other tags that models think in.

    name: one of PARTS
      think: from the first `<think>`, or the start, to the last `</think>`, or the end
      answer: what follows the last `</think>`, up to a `<think>` that is never closed
      all: the whole text; think and answer are this, too, in a text without either tag
    """
    if name == "all":
        return text
    closing = last_match(CLOSES_THOUGHTS, text)
    if name == "answer":
        after = text[closing.end() :] if closing else text
        return OPENS_THOUGHTS.split(after, 1)[0]
    before = text[: closing.start()] if closing else text
    opening = OPENS_THOUGHTS.search(before)
    return before[opening.end() :] if opening else before


def last_match(pattern: re.Pattern, text: str) -> re.Match | None:
    """Returns the last match of a pattern in a text; None if there is none."""
    last = deque(pattern.finditer(text), maxlen=1)
    return last[0] if last else None


# Each group is a kind of delimiter. A `drop` has no partner and is dropped alone. Quantifiers are
# possessive (++), so that none looks at the same character twice.
_TOKEN = re.compile(
    r"""
      (?P<fence>```++|~~~++)                            # around lines of code
    | (?P<tick>`)                                       # around code in a line
    | (?P<dollars>\$\$)
    | (?P<dollar>\$)
    | \\(?:
          (?P<round>[()])                               # \( and \)
        | (?P<square>[\[\]])                            # \[ and \]
        | (?P<environment>begin|end)\{[A-Za-z]*+\*?\}   # \begin{align*}
        | (?P<box>boxed)\s*+\{                          # \boxed{
        | (?P<drop>[A-Za-z]++\*?|.)                     # any other command: \alpha, \%
      )
    | (?P<brace>[{}])
    | (?P<drop>
          https?://[!-~]++ | www\.[!-~]++               # addresses
        | </?[A-Za-z][\w-]{0,30}+\s*+/?>                # tags: <b>, </answer>, <br />
      )
    | (?P<stop>(?<=\p{L}\p{L})[.:](?=\p{L}\p{L}))       # between words without a space: "so.Then"
    """,
    re.DOTALL | re.VERBOSE,
)
_CLOSES = frozenset((")", "]", "end"))
# Words between delimiters of mathematics that are more than a label, and so are prose: a language
# must not hide in a "formula".
_PROSE = re.compile(
    # Four words in a row: "which is the average"
    r"(?<![\p{L}\p{M}\\])[\p{L}\p{M}]{2,}+(?:[\s,.;:'’-]++[\p{L}\p{M}]{2,}+){3}"  # noqa: RUF001
    # 12 letters in a row of a script without spaces
    r"|(?<!\p{L})[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]{12,}+"
)


def strip_formulas(text: str) -> str:
    r"""Returns the text with a space for each formula, piece of code, address, tag and command.

    A formula is `$..$` in one line, `$$..$$`, `\(..\)`, `\[..\]`, `\begin..\end` or `\boxed{..}`,
    with balanced braces. Code is between fences or, in one line, backticks.

    A delimiter without its partner is dropped alone. So are those of a formula that holds four
    words in a row, or 12 letters of a script without spaces: that is no formula. So is a dollar
    sign where only one side of the pair has a space, as in "$5 for lunch and $6".

    One pass over the text, however long.
    """
    return " ".join(
        text[piece.start : piece.end] + piece.stop for piece in prose_pieces(text)
    )


class Piece(NamedTuple):
    """A piece of a text that is left by `strip_formulas`.

    start, end: where it stands in the text
    stop: what is put after it: "." where it ends a sentence without a space before the next, or ""
    """

    start: int
    end: int
    stop: str


def prose_pieces(text: str) -> list[Piece]:
    """Returns the pieces of a text that `strip_formulas` leaves, which a space joins there."""
    tokens = list(_TOKEN.finditer(text))
    if not tokens:
        return [Piece(0, len(text), "")]
    return list(_kept_pieces(text, tokens, _pair_delimiters(text, tokens)))


def _kept_pieces(
    text: str, tokens: list[re.Match], partners: dict[int, int]
) -> Iterator[Piece]:
    """Yields the pieces of text that are left between what is dropped.

    tokens: all matches of _TOKEN
    partners: the index of the token that closes one, by the index of that one
    """
    position = 0  # the end of what was dropped last
    index = 0
    # The end of the outermost box that holds prose. Boxes within it are not searched for prose
    # again: that would take quadratic time for boxes in boxes.
    prose_box_end = -1
    while index < len(tokens):
        token = tokens[index]
        partner = partners.get(index)
        last_dropped = index  # the token alone
        was_searched = token["box"] and token.start() < prose_box_end
        if partner is not None and not was_searched:
            if token["fence"] or not _PROSE.search(
                text, token.end(), tokens[partner].start()
            ):
                last_dropped = partner  # with all up to its partner
            elif token["box"]:
                prose_box_end = tokens[partner].end()
        yield Piece(position, token.start(), "." if token["stop"] else "")
        position = tokens[last_dropped].end()
        index = last_dropped + 1
    yield Piece(position, len(text), "")


def _pair_delimiters(text: str, tokens: list[re.Match]) -> dict[int, int]:
    """Returns the index of the closing token for the index of each that opens something.

    A box is closed by the balanced brace, anything else by the next token of its kind.
    """
    partners: dict[int, int] = {}
    latest: dict[str, int] = {}  # by kind, the last token seen
    open_braces: list[int] = []
    for index, token in enumerate(tokens):
        kind = token.lastgroup
        if kind == "box" or token["brace"] == "{":
            open_braces.append(index)
        elif kind == "brace":
            if open_braces:
                partners[open_braces.pop()] = index
        elif kind not in ("drop", "stop"):
            before = latest.get(kind)
            if before is not None and _is_pair(text, kind, tokens[before], token):
                partners[before] = index
            latest[kind] = index
    # Plain braces are paired only to balance those of boxes: what they hold is kept.
    return {
        opening: closing
        for opening, closing in partners.items()
        if not tokens[opening]["brace"]
    }


def _is_pair(text: str, kind: str, opening: re.Match, closing: re.Match) -> bool:
    """Returns whether two tokens of a kind, one after the other, enclose a formula or code."""
    if kind in ("fence", "dollars"):
        return True
    if kind in ("dollar", "tick"):
        inside = text[opening.end() : closing.start()]
        return "\n" not in inside and inside[:1].isspace() == inside[-1:].isspace()
    return opening[kind] not in _CLOSES and closing[kind] in _CLOSES
