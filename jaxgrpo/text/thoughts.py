"""The tags that models think in, as their families write them."""

import regex as re

_THOUGHT = r"(?:think(?:ing)?|thoughts?|reasoning|THINK(?:ING)?)"
OPENS_THOUGHTS = re.compile(
    rf"<{_THOUGHT}> | \[{_THOUGHT}\] | ◁{_THOUGHT}▷ | <\|(?:begin_of|START)_{_THOUGHT}\|>",
    re.VERBOSE,
)
CLOSES_THOUGHTS = re.compile(
    rf"</{_THOUGHT}> | \[/{_THOUGHT}\] | ◁/{_THOUGHT}▷ | <\|(?:end_of|END)_{_THOUGHT}\|>",
    re.VERBOSE,
)
"""The tags that models think in: <think>, <thinking>, <thought>, <reasoning>, [THINK], ◁think▷,
<|begin_of_thought|>, <|START_THINKING|>."""


def closing_tag(tag: str) -> str:
    """Returns the closing tag: "</think>" for "<think>", "<|x_end|>" for "<|x_start|>"."""
    if tag.startswith("<|"):
        upper_replaced = re.sub("BEGIN|START", "END", tag)
        return re.sub("begin|start", "end", upper_replaced)
    return f"{tag[0]}/{tag[1:]}"
