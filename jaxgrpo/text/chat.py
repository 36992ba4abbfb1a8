"""Asks through the chat template of a model folder, in whatever way that template takes.

What a template takes is found out once, by rendering conversations of probe texts: whether a system
message may come first, whether contents are strings or parts, what stands between the turns, and
what the end of a prompt opens.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxgrpo.errors import UserError
from jaxgrpo.text import messages
from jaxgrpo.text.thoughts import closing_tag

Message = dict[str, str | list[dict[str, str]]]
"""One turn: {"role": ..., "content": ...}."""

Render = Callable[[list[Message], bool], str]
"""(messages, whether the assistant's turn is begun) -> text; raises what the template raises."""

PROBES = (
    "first probe text",
    "second probe text",
    "third probe text",
    "fourth probe text",
)
"""Contents that no template has in itself, so that they are found again in what it renders."""

_OPENING_TAG = re.compile(
    r"""< (?!/) [^<>|\s] [^<>|]* >                        # <think>
      | \[ [A-Z] [A-Z_]* \]                               # [THINK]
      | ◁ [^◁▷/]+ ▷                                       # ◁think▷
      | <\| [^<>|]* (?:begin|start) [^<>|]* \|>           # <|begin_of_thought|>
    """,
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True)
class ChatTemplate:
    """Renders prompts with the chat template of a model folder.

    render: renders a conversation
    folder: the model folder, which errors name
    in_parts: whether a message's content is [{"type": "text", "text": ...}]; else it is a string
    takes_system: whether a system message may come first; else its text opens the user's turn
    """

    render: Render
    folder: Path
    in_parts: bool = False
    takes_system: bool = True

    def prompt(
        self,
        question: str,
        system: str = "",
        context: Sequence[messages.Message] = (),
    ) -> str:
        """Returns the text up to where the answer begins.

        context: turns of the user and the assistant before the question

        Raises UserError if the template raises something, or leaves out what the user says.
        """
        turns = [(turn["role"], turn["content"]) for turn in context]
        turns.append(("user", question))
        asked = [text for role, text in turns if role == "user"]
        if system and self.takes_system:
            turns = [("system", system), *turns]
        elif system:
            turns[0] = ("user", f"{system}\n\n{turns[0][1]}")
        try:
            text = self.render(self._messages(turns), True)
        except Exception as error:  # a template is a program: it can raise anything
            raise self.refusal(first_line(error)) from error
        # Templates may strip a content, so it is looked for without spaces around it. They may also
        # leave out thoughts of earlier answers.
        for words in asked:
            if words.strip() not in text:
                raise self.refusal(f"it leaves out the question {words[:40]!r}")
        return text

    def texts_around(self, *roles: str, begin_answer: bool = False) -> list[str] | None:
        """Returns the texts before, between and after the contents of a conversation.

        Returns None if it cannot be rendered, or not with all contents in their order.

        roles: who speaks, one message each
        begin_answer: whether the assistant's next turn is begun
        """
        probes = PROBES[: len(roles)]
        turns = zip(roles, probes, strict=True)
        try:
            rest = self.render(self._messages(turns), begin_answer)
        except Exception:  # a template is a program: it can raise anything
            return None
        texts = []
        for probe in probes:
            before, separator, rest = rest.partition(probe)
            if not separator:
                return None
            texts.append(before)
        return [*texts, rest]

    def turn_markup(self) -> str:
        """Returns the texts that the template wraps turns in: before and between contents."""
        turns = ("user", "assistant", "user")
        # Not every template takes a system message, or an assistant's. The longest conversation
        # that can be rendered shows the most.
        for roles in (("system", *turns), turns, turns[:2], turns[:1]):
            if texts := self.texts_around(*roles):
                # The last text is left out: it may be the end of a prompt, which opens the answer.
                return "\n".join(_without_blocks(text) for text in texts[:-1])
        return ""

    def after_assistant(self) -> str:
        """Returns the text after an assistant's content: it begins with what ends the turn."""
        for roles in (("user", "assistant"), ("user", "assistant", "user")):
            texts = self.texts_around(*roles)
            if texts and texts[2].strip():
                return texts[2].lstrip()
        return ""

    def opened_block(self) -> str:
        """Returns the end of a prompt from the tag on that the answer is to close, or "".

        For example "<think>\\n". A tag that turns are wrapped in does not count, nor does one that
        the prompt itself closes.
        """
        texts = self.texts_around("user", begin_answer=True)
        if texts is None:
            return ""
        end = texts[-1]
        markup = self.turn_markup()
        for tag in _OPENING_TAG.finditer(end):
            is_closed = closing_tag(tag[0]) in end[tag.end() :]
            if tag[0] not in markup and not is_closed:
                return end[tag.start() :]
        return ""

    def refusal(self, reason: str) -> UserError:
        """Returns the error that the template cannot ask a question."""
        return UserError(
            f"the chat template in {self.folder} cannot ask a question ({reason}): mend it there, "
            "in chat_template.jinja or tokenizer_config.json, or remove it to ask without one"
        )

    def _messages(self, turns: Iterable[tuple[str, str]]) -> list[Message]:
        return [{"role": role, "content": self._content(text)} for role, text in turns]

    def _content(self, text: str) -> str | list[dict[str, str]]:
        return [{"type": "text", "text": text}] if self.in_parts else text


def probe_template(
    template: object, render: Render, folder: Path
) -> ChatTemplate | None:
    """Returns how to ask through a template, or None if there is none.

    template: its text, or the texts of several by their names
    render: renders with it
    folder: the model folder

    Raises UserError if the template cannot be asked with, neither with strings nor with parts.
    """
    if not template:
        return None
    chat = ChatTemplate(render, folder)
    if isinstance(template, dict) and "default" not in template:
        names = ", ".join(sorted(template))
        raise chat.refusal(f"there are {names}, and none is named default")
    try:
        chat.prompt(PROBES[0])
    except UserError:
        # The first error is the one to show, if contents in parts do not help.
        in_parts = ChatTemplate(render, folder, in_parts=True)
        if not in_parts.texts_around("user", begin_answer=True):
            raise
        chat = in_parts
    takes_system = chat.texts_around("system", "user", begin_answer=True) is not None
    return ChatTemplate(render, folder, chat.in_parts, takes_system)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its class where it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _without_blocks(text: str) -> str:
    """Returns the text between two contents without the blocks that are opened and closed in it.

    Such as empty thoughts, which wrap neither content.
    """
    for tag in _OPENING_TAG.finditer(text):
        inside, closing, after = text[tag.end() :].partition(closing_tag(tag[0]))
        # <|start_header_id|>user<|end_header_id|> does wrap the content that follows.
        is_header = tag[0].startswith("<|") and inside.strip()
        if closing and not is_header:
            # There may be further blocks.
            return _without_blocks(text[: tag.start()] + after)
    return text
