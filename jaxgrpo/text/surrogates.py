"""Halves of surrogate pairs, which no encoder takes."""

import re


def replace_lone_surrogates(text: str) -> str:
    """Returns the text with U+FFFD for each half of a surrogate pair.

    Neither tokenizers nor UTF-8 can encode such a half. A Python str holds a whole pair as one
    character, so any surrogate that is found is half of one.
    """
    return re.sub("[\ud800-\udfff]", "\ufffd", text)
