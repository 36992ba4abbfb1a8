"""Text <-> tokens through the model folder's own tokenizer and chat template. Host side: no jax."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxgrpo import prompts
from jaxgrpo.errors import UserError


@dataclass(frozen=True)
class Tokenizer:
    """What the rest of the program needs of a tokenizer.

    ends: ids that end a completion. pad: the id that fills columns no mask covers. hf: the tokenizer itself.
    begin: ids that a text begins with where no chat template says so. asks: whether, where there is none, a prompt asks for
    thoughts and an answer in the problem's language (prompts.asked), unless a system message says what is wanted.
    """

    hf: Any
    ends: tuple[int, ...]
    pad: int
    begin: tuple[int, ...] = ()
    asks: bool = False

    def encode(self, text: str) -> list[int]:
        """Ids of a text that holds its own special tokens; none is added."""
        return self.hf(text, add_special_tokens=False).input_ids

    def decode(self, ids: list[int] | np.ndarray) -> str:
        """The text of chosen tokens, without the end token and whatever else the tokenizer calls special."""
        return self.hf.decode([int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def prompt(self, prompt: str, system: str = "", language: str = "en") -> list[int]:
        """Ids of a prompt as the model expects it, up to where its answer begins. language: the problem's."""
        if not self.hf.chat_template:
            asks = self.asks and not system
            text = prompts.asked(prompt, language) if asks else prompts.plain(prompt, system)
            return [*self.begin, *self.encode(text)]
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        return self.encode(self.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def load(folder: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder, from local files alone. UserError if there is none or it names no end token.

    The end tokens are those of generation_config.json (chat models end a turn with another token than a text) and the
    tokenizer's own.
    """
    # Importing it prints that PyTorch is absent: here it always may be, and on stderr it would look like an error.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    transformers.logging.set_verbosity_error()
    try:
        hf = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"no tokenizer can be loaded from {folder} ({reason}): copy its tokenizer files there") from error
    files = hf.vocab_files_names.values()
    if not any((folder / name).is_file() for name in files):  # transformers then makes one that knows no word
        raise UserError(f"{folder} has no vocabulary, none of {', '.join(files)}: copy its tokenizer files there")
    ends = {hf.eos_token_id, *_generation_ends(folder)} - {None}
    if not ends:
        raise UserError(f"the tokenizer in {folder} names no end token: set eos_token in its tokenizer_config.json")
    pad = hf.pad_token_id if hf.pad_token_id is not None else min(ends)
    begin = tuple(i for i in hf("").input_ids if i not in ends)
    return Tokenizer(hf, tuple(sorted(ends)), pad, begin, asks=True)


def left_padded(rows: list[list[int]], width: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
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


def _generation_ends(folder: Path) -> list[int | None]:
    path = folder / "generation_config.json"
    if not path.is_file():
        return []
    try:
        ends = json.loads(path.read_text()).get("eos_token_id")
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): copy it anew, or remove it") from error
    return ends if isinstance(ends, list) else [ends]
