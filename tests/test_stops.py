"""Checks the search for stop strings, in time that is linear in the row.

It finds what reading every beginning of a row finds.
"""

import json

import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Backend
from tokenizers import pre_tokenizers as splitters
from transformers import PreTrainedTokenizerFast

from jaxgrpo.models import hf_folder
from jaxgrpo.text import tokenizer
from jaxgrpo.text.stops import BLOCK_TOKENS, StopSearch
from tests.chat_folders import byte_alphabet

TEXTS = (
    "<think>\n12 + 7 = 19\n</think>\n\\boxed{19}<|end|>",
    "é 小明有12个苹果 한국어 ภาษาไทย 😀👩🏽‍🚀 ꙮ <|user|> a  b   c",
    "</answer> Question: next\n\nQuestion: \n\n  and so on, and so on 𒀀𒀀",
)


def embedded():
    """Returns a tokenizer of SentencePiece pieces, and of bytes for what has none."""
    return tokenizer.load(hf_folder.EMBEDDED).hf


def stripping():
    """Returns a tokenizer that strips the space with which a text begins, as Llama 2's does."""
    hf = embedded()
    backend = json.loads(hf.backend_tokenizer.to_str())
    backend["decoder"]["decoders"].append(
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=Backend.from_str(json.dumps(backend))
    )


def single_bytes():
    """Returns a tokenizer whose tokens are bytes: most characters are of several."""
    alphabet = byte_alphabet()
    backend = Backend(
        models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[])
    )
    backend.pre_tokenizer = splitters.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>", "<|user|>"])
    backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


class Counting:
    """Decodes as a Hugging Face tokenizer does, with special tokens; counts tokens and calls."""

    def __init__(self, hf):
        self._hf = hf
        self.tokens = self.calls = 0

    def __call__(self, ids) -> str:
        self.tokens += len(ids)
        self.calls += 1
        return self._hf.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )


def plain(decode, tokens, stops):
    """Returns what StopSearch.first should: reads every beginning of the row."""
    for count in range(1, len(tokens) + 1):
        text = decode(tokens[:count])
        if any(stop in text for stop in stops):
            return count
    return None


def in_chunks(search, tokens, chunks):
    """Returns the first answer that is not None, of a row that grows chunk by chunk."""
    length = 0
    for chunk in chunks:
        length += chunk
        found = search.first(tokens[:length])
        if found is not None:
            return found
        if length >= len(tokens):
            break
    return None


def random_row(hf, rng):
    """Returns tokens of texts that begin and end anywhere, and any other tokens between them."""
    row = []
    for _ in range(rng.integers(1, 7)):
        ids = hf(TEXTS[rng.integers(len(TEXTS))], add_special_tokens=False).input_ids
        first = int(rng.integers(len(ids)))
        row += ids[first : first + int(rng.integers(1, 20))]
        row += rng.integers(0, len(hf), rng.integers(0, 6)).tolist()
    return row


def random_stops(decode, row, rng):
    """Returns pieces of the row's text, and one that is not in it; no half characters."""
    text = decode(row)
    stops = ["never there"]
    for _ in range(rng.integers(0, 4)):
        first = int(rng.integers(max(1, len(text))))
        stops.append(text[first : first + int(rng.integers(1, 9))])
    return tuple(
        stop for stop in stops if stop and "\N{REPLACEMENT CHARACTER}" not in stop
    )


@pytest.mark.parametrize("make", [embedded, stripping, single_bytes])
def test_what_is_found_is_what_reading_every_beginning_finds(make):
    hf = make()
    rng = np.random.default_rng(0)
    decode = Counting(hf)
    num_found = 0
    for _ in range(150):
        row = random_row(hf, rng)
        stops = random_stops(decode, row, rng)
        expected = plain(decode, row, stops)
        for chunks in (
            [len(row)],
            [1] * len(row),
            rng.integers(1, 40, len(row)).tolist(),
        ):
            count = in_chunks(StopSearch(stops, decode), row, chunks)
            assert count == expected, (row, stops, chunks)
        num_found += expected is not None
    assert 50 < num_found < 150


@pytest.mark.parametrize("make", [embedded, stripping, single_bytes])
@pytest.mark.parametrize(
    "text", ["So the sum is 17, and so on. ", "小明有12个苹果。", "😀👩🏽‍🚀", "\n \n"]
)
@pytest.mark.parametrize("chunk", [1, 32, 2048])
def test_a_row_is_decoded_in_time_linear_in_its_length(make, text, chunk):
    hf = make()
    ids = hf(text * 1000, add_special_tokens=False).input_ids
    row = ids[:2000] + hf("</answer>", add_special_tokens=False).input_ids
    decode = Counting(hf)
    assert in_chunks(
        StopSearch(("</answer>",), decode), row, [chunk] * len(row)
    ) == len(row)
    assert decode.tokens < 3 * BLOCK_TOKENS * len(row)
    assert decode.calls < 4 * len(row)


def test_a_row_of_no_characters_at_all_is_decoded_in_linear_time():
    hf = single_bytes()
    half = hf("é", add_special_tokens=False).input_ids[1:]
    decode = Counting(hf)
    assert in_chunks(StopSearch(("x",), decode), half * 2000, [32] * 63) is None
    assert decode.tokens < 3 * BLOCK_TOKENS * 2000


@pytest.mark.parametrize("make", [embedded, single_bytes])
def test_special_tokens_are_found(make):
    """Alone, and as a part of a stop string."""
    hf = make()
    decode = Counting(hf)
    row = hf("4 = 4<|user|>\n5<|end|>", add_special_tokens=False).input_ids
    for stop, text in (
        ("<|user|>", "4 = 4<|user|>"),
        ("4<|user|>\n", "4 = 4<|user|>\n"),
        ("5<|end|>", decode(row)),
    ):
        assert decode(row[: StopSearch((stop,), decode).first(row)]) == text
