"""Checks prompts that are conversations: lists of {"role": ..., "content": ...}."""

import json
from collections.abc import Sequence

Message = dict[str, str]
"""One turn: {"role": "system", "user" or "assistant", "content": its text}."""

ROLES = ("system", "user", "assistant")


def split_messages(messages: Sequence[object]) -> tuple[list[Message], str]:
    """Returns (the messages before the last one, the text of the last one).

    A system message may come first. Then user and assistant take turns, and the user has the last
    word. A content is text, or a list of parts {"type": "text", "text": ...}, which are joined.

    Raises ValueError that says which message breaks this, counted from 1.
    """
    turns: list[Message] = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f"message {number} has no role and content")
        role = message["role"]
        if role not in ROLES:
            raise ValueError(
                f"message {number} has the role {json.dumps(role)}, not one of "
                f"{', '.join(ROLES)}"
            )
        text = message_text(message["content"])
        if text is None:
            raise ValueError(f"message {number} has a content that is not text")
        if not text.strip():
            raise ValueError(f"message {number} is blank")
        turns.append({"role": role, "content": text})
    if not turns:
        raise ValueError("it has no messages")
    _check_turns(turns)
    return turns[:-1], turns[-1]["content"]


def split_system(messages: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    """Returns (the system message's text, "" if there is none; the other messages)."""
    if messages and messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return "", messages


def _check_turns(turns: Sequence[Message]) -> None:
    """Raises ValueError unless user and assistant take turns, and the user has the last word."""
    system, spoken = split_system(turns)
    first = 2 if system else 1
    for place, turn in enumerate(spoken):
        expected = ("user", "assistant")[place % 2]
        if turn["role"] != expected:
            raise ValueError(
                f"message {first + place} is the {turn['role']}'s where the {expected}'s turn is"
            )
    if turns[-1]["role"] != "user":
        raise ValueError(
            f"the last message is the {turns[-1]['role']}'s; it must be the user's"
        )


def message_text(content: object) -> str | None:
    """Returns the text of a message's content, None if there is something else in it."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    parts = []
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            return None
        parts.append(part["text"])
    return "".join(parts)
