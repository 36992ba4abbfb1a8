"""Turns text into tokens and back, through a model folder's own tokenizer and chat template.

Host side: no jax.
"""

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxgrpo.errors import UserError
from jaxgrpo.text import chat, prompts
from jaxgrpo.text.messages import Message, split_system
from jaxgrpo.text.surrogates import replace_lone_surrogates

HfTokenizer = Any
"""A transformers.PreTrainedTokenizerBase. That import takes seconds, so it is not made here."""

SPECIAL_TOKEN_NAMES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
"""Special tokens that a Hugging Face tokenizer has a name for."""


@dataclass(frozen=True)
class Tokenizer:
    """Turns prompts into tokens and chosen tokens into text, as a model folder says.

    hf: the Hugging Face tokenizer
    eos_ids: ids that end a completion
    pad_id: the id in columns that no mask covers
    bos_ids: ids that the tokenizer puts before a text; a chat template has its own
    uses_base_prompt: whether, without a chat template, a prompt asks for thoughts and an answer in
      the problem's language (prompts.base_model_prompt); a system message takes its place
    chat_template: how to ask through the chat template; None where there is none
    control_ids: ids that are no text besides eos_ids, such as those that turns are wrapped in
    completion_prefix: what the end of a prompt opens for the completion to close, such as
      "<think>\\n"
    """

    hf: HfTokenizer
    eos_ids: tuple[int, ...]
    pad_id: int
    bos_ids: tuple[int, ...] = ()
    uses_base_prompt: bool = False
    chat_template: chat.ChatTemplate | None = None
    control_ids: frozenset[int] = frozenset()
    completion_prefix: str = ""

    @property
    def end_id(self) -> int:
        """Returns the id that a completion is taught to end with.

        It is the one with which the chat template ends an assistant's turn, or the tokenizer's own.
        """
        ids: list[int] = []
        if self.chat_template:
            ids += _turn_end_ids(self.chat_template, self.hf)
        ids.append(self.hf.eos_token_id)
        return next((i for i in ids if i in self.eos_ids), self.eos_ids[0])

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text that holds its own special tokens; none is added."""
        return self.hf(
            replace_lone_surrogates(text), add_special_tokens=False
        ).input_ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of chosen tokens, without end and control tokens.

        Other special tokens stay: a tag such as <think> is text, whatever the tokenizer calls it.
        """
        dropped = self.control_ids.union(self.eos_ids)
        return self.decode_all([int(i) for i in ids if i not in dropped])

    def decode_all(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of chosen tokens with all special tokens.

        Stop strings are looked for in this text.
        """
        return self.hf.decode(
            [int(i) for i in ids],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )

    def completion(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text that rewards see: what the prompt opened, then what was chosen."""
        return self.completion_prefix + self.decode(ids)

    def prompt(
        self,
        prompt: str,
        system: str = "",
        language: str = "en",
        context: Sequence[Message] = (),
    ) -> list[int]:
        """Returns the ids of a prompt as the model expects it, up to where its answer begins.

        system: a system message; one in `context` takes its place
        language: the problem's
        context: messages before the prompt
        """
        own_system, turns = split_system(context)
        system = own_system or system
        if self.chat_template:
            return self.encode(self.chat_template.prompt(prompt, system, turns))
        if self.uses_base_prompt and not system:
            text = prompts.base_model_prompt(prompt, language, turns)
        else:
            text = prompts.plain_prompt(prompt, system, language, turns)
        # A model whose tokenizer begins texts with a token has never seen a text without it.
        return [*self.bos_ids, *self.encode(text)]


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
    template = chat.probe_template(hf.chat_template, render, folder)
    eos_ids = {hf.eos_token_id, *_configured_eos_ids(folder, hf)} - {None}
    if template:
        eos_ids |= _turn_end_ids(template, hf)
    if not eos_ids:
        raise UserError(
            f"the tokenizer in {folder} names no end token: set eos_token in its "
            "tokenizer_config.json"
        )
    return Tokenizer(
        hf,
        tuple(sorted(eos_ids)),
        # Padding is masked, so without a pad token any id will do.
        hf.pad_token_id if hf.pad_token_id is not None else min(eos_ids),
        # Some tokenizers also end every text with a token.
        bos_ids=tuple(i for i in hf("").input_ids if i not in eos_ids),
        uses_base_prompt=True,
        chat_template=template,
        control_ids=_control_ids(template, hf),
        completion_prefix=template.opened_block() if template else "",
    )


def pad_left(
    rows: list[list[int]], width: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens Int[P W], attention_mask Bool[P W]) of rows of ids, at the right end.

    The mask comes from the rows' lengths: a pad id within a row is a token like any other.

    rows: P rows of at most W ids
    width: W

    Raises ValueError for a row that is longer than the width: problems too long are refused where
    they are read.
    """
    tokens = np.full((len(rows), width), pad_id, np.int32)
    mask = np.zeros((len(rows), width), bool)
    for i, ids in enumerate(rows):
        if len(ids) > width:
            raise ValueError(
                f"row {i} has {len(ids)} tokens, more than the width {width}"
            )
        start = width - len(ids)
        tokens[i, start:] = ids
        mask[i, start:] = True
    return tokens, mask


def _load_hf(folder: Path) -> HfTokenizer:
    """Returns the Hugging Face tokenizer of a folder.

    Raises UserError if none can be loaded, or if it has no vocabulary.
    """
    # Importing transformers prints that PyTorch is absent. Here it always may be, and on stderr
    # that would look like an error.
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
    except BaseException as error:
        # The tokenizers library raises Exception itself, and its panics are no Exception at all.
        raise UserError(
            f"no tokenizer can be loaded from {folder} ({chat.first_line(error)}): copy its "
            "tokenizer files there, or update transformers and tokenizers if they are of a newer "
            "version"
        ) from error
    files = hf.vocab_files_names.values()
    # Without these files transformers makes a tokenizer that knows no word.
    if is_wordless or not any((folder / name).is_file() for name in files):
        raise UserError(
            f"{folder} has no vocabulary in {' or '.join(files)}: copy its tokenizer files there"
        )
    return hf


def _render(hf: HfTokenizer, messages: list[chat.Message], begin_answer: bool) -> str:
    """Renders a conversation with the tokenizer's chat template."""
    return hf.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=begin_answer
    )


def _configured_eos_ids(folder: Path, hf: HfTokenizer) -> set[int]:
    """Returns the end tokens that the model's files name.

    Those of config.json count only if they are added tokens: a number that was left from another
    tokenizer is an ordinary piece of text in this one, or none at all.

    Raises UserError if generation_config.json names a token that the tokenizer does not have.
    """
    path = folder / "generation_config.json"
    eos_ids = _read_eos_ids(path)
    if unknown := eos_ids - set(hf.get_vocab().values()):
        raise UserError(
            f"{path} says eos_token_id {min(unknown)}, and the tokenizer has no such token: mend "
            "it, or copy the tokenizer's files anew"
        )
    return eos_ids | (
        _read_eos_ids(folder / "config.json") & set(hf.added_tokens_decoder)
    )


def _processor_template(folder: Path) -> object:
    """Returns the chat template in the file that only transformers' processors read, or None.

    Models of text and images have it there.
    """
    return _read_object(folder / "chat_template.json").get("chat_template")


def _read_object(path: Path) -> dict[str, object]:
    """Returns the JSON object that a file holds; {} if there is no file.

    Raises UserError if the file holds something else.
    """
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not JSON ({error}): copy it anew, or remove it"
        ) from error
    if not isinstance(values, dict):
        raise UserError(
            f"{path} holds a {type(values).__name__}, not an object: copy it anew, or remove it"
        )
    return values


def _read_eos_ids(path: Path) -> set[int]:
    """Returns the ids that a file calls eos_token_id.

    Raises UserError unless it is a whole number, a list of such numbers, or null.
    """
    value = _read_object(path).get("eos_token_id")
    if value is None:
        return set()
    ids = value if isinstance(value, list) else [value]
    for i in ids:
        # type() and not isinstance: True is an int, too.
        if type(i) is not int or i < 0:
            raise UserError(
                f"{path} says eos_token_id {value!r}: it must be a token's number, or a list of "
                "such numbers"
            )
    return set(ids)


def _turn_end_ids(template: chat.ChatTemplate, hf: HfTokenizer) -> set[int]:
    """Returns the added token with which the template ends an assistant's turn, if one does."""
    after = template.after_assistant()
    candidates = [
        (len(text), i)
        for text, i in hf.get_added_vocab().items()
        if text.strip() and after.startswith(text)
    ]
    if not candidates:
        return set()
    # The longest: one token's text may begin with another's.
    _, longest = max(candidates)
    return {longest}


def _control_ids(template: chat.ChatTemplate | None, hf: HfTokenizer) -> frozenset[int]:
    """Returns the special tokens that are no text: those with a name, and those around turns."""
    markup = template.turn_markup() if template else ""
    around_turns = [
        i
        for i, token in hf.added_tokens_decoder.items()
        if token.special and token.content.strip() and token.content in markup
    ]
    named = [getattr(hf, f"{name}_token_id") for name in SPECIAL_TOKEN_NAMES]
    return frozenset(i for i in (*around_turns, *named) if i is not None)
