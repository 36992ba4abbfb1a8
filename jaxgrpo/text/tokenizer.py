"""Text <-> tokens through the model folder's own tokenizer and chat template. Host side: no jax."""

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxgrpo.errors import UserError
from jaxgrpo.problems import whole_characters
from jaxgrpo.text import chat, prompts

NAMED = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
"""Special tokens that a tokenizer has a name for."""


@dataclass(frozen=True)
class Tokenizer:
    """Turns prompts into tokens and chosen tokens into text, as a model folder says.

    hf: the Hugging Face tokenizer
    ends: ids that end a completion
    pad: the id that fills columns no mask covers
    begin: ids that a text begins with where no chat template says so
    asks: whether, where there is none, a prompt asks for thoughts and an answer in the problem's
        language (prompts.asked), unless a system message says what is wanted
    template: how to ask through the chat template; None where there is none
    control: ids that are no text besides the ends, such as those that turns are wrapped in
    opened: what the end of a prompt opens for the completion to close, such as "<think>\\n"
    """

    hf: Any
    ends: tuple[int, ...]
    pad: int
    begin: tuple[int, ...] = ()
    asks: bool = False
    template: chat.Chat | None = None
    control: frozenset[int] = frozenset()
    opened: str = ""

    def encode(self, text: str) -> list[int]:
        """Ids of a text that holds its own special tokens; none is added."""
        return self.hf(whole_characters(text), add_special_tokens=False).input_ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of chosen tokens, without end and control tokens.

        Other special tokens stay: a tag such as <think> is text, whatever the tokenizer calls it.
        """
        dropped = self.control.union(self.ends)
        return self.decode_all([int(i) for i in ids if i not in dropped])

    def decode_all(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of chosen tokens with all special tokens: what stop strings are sought in."""
        return self.hf.decode(
            [int(i) for i in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def completion(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text that rewards see: what the prompt opened, then what was chosen."""
        return self.opened + self.decode(ids)

    def prompt(self, prompt: str, system: str = "", language: str = "en") -> list[int]:
        """Returns the ids of a prompt as the model expects it, up to where its answer begins.

        language: the problem's
        """
        if self.template:
            return self.encode(self.template.prompt(prompt, system))
        asks = self.asks and not system
        text = prompts.asked(prompt, language) if asks else prompts.plain(prompt, system)
        return [*self.begin, *self.encode(text)]


def load(folder: Path) -> Tokenizer:
    """Returns the tokenizer of a Hugging Face folder, from local files alone.

    The end tokens are the tokenizer's own, those of generation_config.json and config.json (chat
    models end a turn with another token than a text), and the one with which the chat template ends
    an assistant's turn.

    Raises UserError if no tokenizer can be read, there is no end token, or the chat template cannot
    ask.
    """
    hf = _load_hf(folder)
    hf.chat_template = hf.chat_template or _processor_template(folder)
    render = functools.partial(_render, hf)
    template = chat.read(hf.chat_template, render, folder)
    ends = {hf.eos_token_id, *_configured_ends(folder, hf)} - {None}
    if template:
        ends |= _turn_ends(template, hf)
    if not ends:
        raise UserError(
            f"the tokenizer in {folder} names no end token: set eos_token in its tokenizer_config.json"
        )
    pad = hf.pad_token_id if hf.pad_token_id is not None else min(ends)
    return Tokenizer(
        hf,
        tuple(sorted(ends)),
        pad,
        begin=tuple(i for i in hf("").input_ids if i not in ends),
        asks=True,
        template=template,
        control=_control(template, hf),
        opened=template.opened() if template else "",
    )


def pad_left(rows: list[list[int]], width: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids -> (tokens Int[P W], attention_mask Bool[P W]) with the ids at the right end; masks come from lengths.

    Raises ValueError for a row that is longer than the width: problems too long are refused where they are read.
    """
    tokens = np.full((len(rows), width), pad, np.int32)
    mask = np.zeros((len(rows), width), bool)
    for i, ids in enumerate(rows):
        if len(ids) > width:
            raise ValueError(f"row {i} has {len(ids)} tokens, more than the width {width}")
        if ids:
            tokens[i, width - len(ids) :] = ids
            mask[i, width - len(ids) :] = True
    return tokens, mask


def _load_hf(folder: Path) -> Any:
    # Importing it prints that PyTorch is absent: here it always may be, and on stderr it would look like an error.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    transformers.logging.set_verbosity_error()
    try:
        hf = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        is_wordless = hf(chat.PROBES[0]).input_ids == hf("").input_ids
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises Exception itself, and a panic that is none
        raise UserError(
            f"no tokenizer can be loaded from {folder} ({chat.one_line(error)}): copy its tokenizer files there, or update "
            "transformers and tokenizers if they are of a newer version"
        ) from error
    files = hf.vocab_files_names.values()
    # Without these files transformers makes a tokenizer that knows no word.
    if is_wordless or not any((folder / name).is_file() for name in files):
        raise UserError(
            f"{folder} has no vocabulary in {' or '.join(files)}: copy its tokenizer files there"
        )
    return hf


def _render(hf: Any, messages: list[dict[str, Any]], begin: bool) -> str:
    return hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=begin)


def _configured_ends(folder: Path, hf: Any) -> set[int]:
    """Returns the end tokens that the model's files name.

    Those of config.json count only if they are added tokens: a number that was left from another
    tokenizer is an ordinary piece of text in this one, or none at all.
    """
    path = folder / "generation_config.json"
    ends = _read_ends(path)
    if unknown := ends - set(hf.get_vocab().values()):
        raise UserError(
            f"{path} says eos_token_id {min(unknown)}, and the tokenizer has no such token: mend it, or copy the "
            "tokenizer's files anew"
        )
    return ends | (_read_ends(folder / "config.json") & set(hf.added_tokens_decoder))


def _processor_template(folder: Path) -> Any:
    """Returns the chat template of a folder that has it where transformers' processors look alone."""
    return _read_object(folder / "chat_template.json").get("chat_template")


def _read_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object that a file holds; {} if there is no file."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): copy it anew, or remove it") from error
    if not isinstance(values, dict):
        raise UserError(
            f"{path} holds a {type(values).__name__}, not an object: copy it anew, or remove it"
        )
    return values


def _read_ends(path: Path) -> set[int]:
    """Returns the ids that a file calls eos_token_id.

    Raises UserError unless it is a whole number, a list of such numbers, or null.
    """
    ends = _read_object(path).get("eos_token_id")
    ids = ends if isinstance(ends, list) else [] if ends is None else [ends]
    for i in ids:
        if type(i) is not int or i < 0:
            raise UserError(
                f"{path} says eos_token_id {ends!r}: it must be a token's number, or a list of such numbers"
            )
    return set(ids)


def _turn_ends(template: chat.Chat, hf: Any) -> set[int]:
    """Returns the added token with which the template ends an assistant's turn, if one does."""
    after = template.after_assistant()
    added = [
        (len(text), i)
        for text, i in hf.get_added_vocab().items()
        if text.strip() and after.startswith(text)
    ]
    return {max(added)[1]} if added else set()


def _control(template: chat.Chat | None, hf: Any) -> frozenset[int]:
    """Returns the special tokens that are no text: those with a name, and those around turns."""
    wrapping = template.wrapping() if template else ""
    special = [(i, token.content) for i, token in hf.added_tokens_decoder.items() if token.special]
    wrappers = [i for i, content in special if content.strip() and content in wrapping]
    named = [getattr(hf, f"{name}_token_id") for name in NAMED]
    return frozenset(i for i in (*wrappers, *named) if i is not None)
