"""Asks through the chat template of a model folder, in whatever way that template takes.

What a template takes is found out once, by rendering conversations of probe texts: whether a
system message may come first, whether contents are strings or parts, what stands between the turns,
what the end of a prompt opens.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgrpo.errors import UserError
from jaxgrpo.rewards.prose import closing_tag

_TAG = re.compile(
    r"""< (?!/) [^<>|\s] [^<>|]* >                        # <think>
      | \[ [A-Z] [A-Z_]* \]                               # [THINK]
      | ◁ [^◁▷/]+ ▷                                       # ◁think▷
      | <\| [^<>|]* (?:begin|start) [^<>|]* \|>           # <|begin_of_thought|>
    """,
    re.VERBOSE | re.IGNORECASE,
)
PROBES = ("first probe text", "second probe text", "third probe text", "fourth probe text")


@dataclass(frozen=True)
class Chat:
    """Renders prompts with a chat template.

    render: (messages, whether the assistant's turn is begun) -> text; raises what the template raises
    folder: the model folder, which errors name
    in_parts: whether a message's content is [{"type": "text", "text": ...}], else a string
    takes_system: whether a system message may come first; else its text opens the user's turn
    """

    render: Callable[[list[dict[str, Any]], bool], str]
    folder: Path
    in_parts: bool = False
    takes_system: bool = True

    def prompt(self, question: str, system: str = "") -> str:
        """Returns the text up to where the answer begins.

        Raises UserError if the template raises something, or leaves out the question.
        """
        turns = [("user", question)]
        if system and self.takes_system:
            turns = [("system", system), *turns]
        elif system:
            turns = [("user", f"{system}\n\n{question}")]
        try:
            text = self.render(self._messages(turns), True)
        except Exception as error:  # a template is a program: it can raise anything
            raise self._refusal(one_line(error)) from error
        if question.strip() not in text:
            raise self._refusal(f"it leaves out the question {question[:40]!r}")
        return text

    def around(self, *roles: str, begin: bool = False) -> list[str] | None:
        """Returns what stands before, between and after the contents of a conversation.

        None if it cannot be rendered, or not with all contents in their order.

        roles: who speaks, one message each
        begin: whether the assistant's next turn is begun
        """
        probes = PROBES[: len(roles)]
        try:
            rest = self.render(self._messages(zip(roles, probes, strict=True)), begin)
        except Exception:  # as above
            return None
        pieces = []
        for probe in probes:
            piece, found, rest = rest.partition(probe)
            if not found:
                return None
            pieces.append(piece)
        return [*pieces, rest]

    def wrapping(self) -> str:
        """Returns what the template wraps turns in: the texts before and between their contents."""
        turns = ("user", "assistant", "user")
        for roles in (("system", *turns), turns, turns[:2], turns[:1]):
            if pieces := self.around(*roles):
                # What follows the last content may be the end of a prompt, which opens the answer.
                return "\n".join(_without_blocks(piece) for piece in pieces[:-1])
        return ""

    def after_assistant(self) -> str:
        """Returns what follows an assistant's content: first what ends the turn, if anything does."""
        for roles in (("user", "assistant"), ("user", "assistant", "user")):
            pieces = self.around(*roles)
            if pieces and pieces[2].strip():
                return pieces[2].lstrip()
        return ""

    def opened(self) -> str:
        """Returns the end of a prompt from the tag on that the answer is to close, or "".

        For example "<think>\\n".
        A tag that turns are wrapped in is none, and neither is one that the prompt itself closes.
        """
        pieces = self.around("user", begin=True)
        wrapping = self.wrapping()
        end = pieces[-1] if pieces else ""
        for tag in _TAG.finditer(end):
            closed = closing_tag(tag[0]) in end[tag.end() :]
            if tag[0] not in wrapping and not closed:
                return end[tag.start() :]
        return ""

    def _messages(self, turns: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
        as_content = lambda text: [{"type": "text", "text": text}] if self.in_parts else text
        return [{"role": role, "content": as_content(text)} for role, text in turns]

    def _refusal(self, reason: str) -> UserError:
        return UserError(
            f"the chat template in {self.folder} cannot ask a question ({reason}): mend it there, in "
            "chat_template.jinja or tokenizer_config.json, or remove it to ask without one"
        )


def read(
    template: Any, render: Callable[[list[dict[str, Any]], bool], str], folder: Path
) -> Chat | None:
    """Returns how to ask through a template, None where there is none.

    template: its text, or the texts of several by their names
    render, folder: as of Chat

    Raises UserError for a template that cannot be asked with, whether contents are strings or parts.
    """
    if not template:
        return None
    chat = Chat(render, folder)
    if isinstance(template, dict) and "default" not in template:
        raise chat._refusal(f"there are {', '.join(sorted(template))}, and none is named default")
    in_parts = Chat(render, folder, in_parts=True)
    try:
        chat.prompt(PROBES[0])
    except UserError:
        if not in_parts.around("user", begin=True):
            raise
        chat = in_parts
    takes_system = chat.around("system", "user", begin=True) is not None
    return Chat(render, folder, chat.in_parts, takes_system)


def one_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _without_blocks(text: str) -> str:
    """Returns what stands between two contents without what is opened and closed there.

    Empty thoughts, for example: they wrap neither content.
    """
    for tag in _TAG.finditer(text):
        inside, closing, after = text[tag.end() :].partition(closing_tag(tag[0]))
        # <|start_header_id|>user<|end_header_id|> does wrap what comes next.
        is_header = tag[0].startswith("<|") and inside.strip()
        if closing and not is_header:
            return _without_blocks(text[: tag.start()] + after)
    return text
