# ruff: noqa: RUF001  (Cyrillic letters that look like Latin ones are meant)
"""Checks tokenizers: text survives tokens, prompts end where answers begin, masks fit lengths."""

import json
import re
import shutil

import numpy as np
import pytest
import sentencepiece

from jaxgrpo.errors import UserError
from jaxgrpo.models import hf_folder
from jaxgrpo.problems import Problem
from jaxgrpo.rewards.languages import consistency as language_of
from jaxgrpo.rewards.layout import think_then_answer
from jaxgrpo.text import prompts, tokenizer
from tests.chat_folders import CHATML, GEMMA, MISTRAL, make_chat_folder

TEXTS = (
    "Tom has 12 apples and buys 7 more: 12 + 7 = 19.",
    "小明有12个苹果,又买了7个。一共有多少个?",
    "민수는 사과 12개를 가지고 있고 7개를 더 샀습니다.",
    "Тарас має 12 яблук і купує ще 7. Скільки їх?",
    "<think>\n12 + 7 = 19\n</think>\n\\boxed{19}",
    "\\boxed{\\frac{1}{2}}<think></think>\n\n",
    "😀👩🏽‍🚀 + 🍎 = ?",
    "العربية, ქართული, ꙮ, 𒀀, ᚠ",
    "  two  spaces, a tab\tand\r\nlines \n\n",
    "1,000.50 $ don't \x00 { } [",
    " ",
    "",
)


@pytest.fixture(scope="module")
def embedded():
    return tokenizer.load(hf_folder.EMBEDDED)


@pytest.fixture
def folder(tmp_path):
    """Returns a copy of the embedded model's tokenizer, to be spoiled."""
    for path in hf_folder.EMBEDDED.glob("*token*"):
        shutil.copy(path, tmp_path)
    return tmp_path


def change(folder, **values):
    """Sets fields of tokenizer_config.json; `...` removes one."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(
        json.dumps({name: value for name, value in config.items() if value is not ...})
    )


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_tokens(embedded, text):
    assert embedded.decode(embedded.encode(text)) == text


def test_ids_may_be_an_array(embedded):
    ids = np.array(embedded.encode("12 + 7"), np.int32)
    assert embedded.decode(ids) == "12 + 7"


def test_the_end_is_not_part_of_the_text(embedded):
    for end in embedded.eos_ids:
        assert embedded.decode([*embedded.encode("\\boxed{19}"), end]) == "\\boxed{19}"
    assert embedded.decode([embedded.pad_id] * 3) == ""


@pytest.mark.parametrize("piece", ["<think>", "</think>", "\\boxed{", "\n"])
def test_what_verifiers_look_for_is_one_token_and_is_seen(embedded, piece):
    ids = embedded.encode(piece)
    assert len(ids) == 1
    assert embedded.decode(ids) == piece


def test_digits_are_apart(embedded):
    assert len(embedded.encode("123456")) == 6


def test_a_prompt_ends_where_its_answer_begins(embedded):
    ids = embedded.prompt("12 + 7?")
    assert embedded.hf.decode(ids).endswith("<|assistant|>\n")
    assert embedded.hf.decode(ids).count("12 + 7?") == 1
    assert not set(ids) & set(embedded.eos_ids)
    conversation = [
        {"role": "user", "content": "12 + 7?"},
        {"role": "assistant", "content": "19"},
    ]
    whole = embedded.hf.apply_chat_template(conversation, tokenize=False)
    assert whole.startswith(embedded.hf.decode(ids) + "19")


def test_the_system_message_comes_first(embedded):
    with_system = embedded.prompt("12 + 7?", "Answer in Korean.")
    without = embedded.prompt("12 + 7?")
    text = embedded.hf.decode(with_system)
    assert text.index("Answer in Korean.") < text.index("12 + 7?")
    assert with_system[-len(without) :] == without


def test_a_base_model_is_asked_in_the_problems_language(folder):
    """Without a chat template. The form that is asked for is what think_then_answer looks for."""
    change(folder, chat_template=...)
    base = tokenizer.load(folder)
    texts = {
        language: base.hf.decode(base.prompt("12 + {7}?", language=language))
        for language in prompts.BASE_PROMPTS
    }
    assert set(texts) == {"en", "zh", "ko", "uk", "ja", "th", "ru", "de", "fr", "es"}
    for language, text in texts.items():
        assert text.count("12 + {7}?") == 1
        assert text.endswith(":")
        example = re.search(r"<think> [^<>]+ </think> \\boxed\{[^{}]+\}", text)
        assert think_then_answer(Problem("p", "", ""), example[0]) == 1.0
        words = language_of.target_word_ratio(
            Problem("p", "", "", language=language),
            prompts.BASE_PROMPTS[language].instruction,
        )
        assert words > 0.7, (language, words)
    assert base.prompt("12 + {7}?", language="zh-CN") == base.prompt(
        "12 + {7}?", language="zh"
    )
    assert base.prompt("12 + {7}?", language="la") == base.prompt(
        "12 + {7}?", language="en"
    )


def test_a_system_message_says_what_is_wanted_in_place_of_that(folder):
    change(folder, chat_template=...)
    base = tokenizer.load(folder)
    text = base.hf.decode(base.prompt("12 + 7?", "Answer {briefly}.", "ko"))
    assert text == "Answer {briefly}.\n\n12 + 7?\n"


def test_a_chat_template_is_not_meddled_with(embedded):
    assert embedded.prompt("12 + 7?", language="ko") == embedded.prompt("12 + 7?")


def test_a_text_begins_as_the_tokenizer_has_it(folder):
    """A base model whose tokenizer begins texts with a token has never seen one without."""
    change(folder, chat_template=..., bos_token="<unk>", add_bos_token=True)
    base = tokenizer.load(folder)
    assert base.bos_ids == (base.hf.bos_token_id,)
    assert base.prompt("12 + 7?") == [
        *base.bos_ids,
        *base.encode(prompts.base_model_prompt("12 + 7?", "en")),
    ]


def test_a_sentencepiece_model_alone_is_a_tokenizer(folder, embedded):
    """Its end token is the one the model names; there is no chat template."""
    (folder / "tokenizer_config.json").unlink()
    alone = tokenizer.load(folder)
    assert alone.eos_ids == embedded.eos_ids
    assert alone.uses_base_prompt
    pieces = sentencepiece.SentencePieceProcessor(
        model_file=str(folder / "tokenizer.model")
    )
    for text in TEXTS:
        assert alone.encode(text) == pieces.encode(text)


@pytest.mark.parametrize(
    ("ends", "expected"), [([7, 1], (1, 7)), (9, (1, 9)), (None, (1,)), (..., (1,))]
)
def test_ends_are_the_tokenizers_and_the_generation_configs(folder, ends, expected):
    (folder / "generation_config.json").write_text(
        json.dumps({} if ends is ... else {"eos_token_id": ends})
    )
    assert tokenizer.load(folder).eos_ids == expected


def test_a_tokenizer_without_a_pad_token_pads_with_an_end(folder):
    change(folder, pad_token=...)
    loaded = tokenizer.load(folder)
    assert loaded.pad_id in loaded.eos_ids


def test_no_end_token_is_an_error_unless_the_generation_config_has_one(folder):
    change(folder, eos_token=None, chat_template=...)
    with pytest.raises(UserError, match="names no end token: set eos_token"):
        tokenizer.load(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 1}')
    assert tokenizer.load(folder).eos_ids == (1,)


def spoil(folder, name, text):
    (folder / name).write_text(text)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda folder: shutil.rmtree(folder),
        lambda folder: [path.unlink() for path in folder.iterdir()],
        lambda folder: (folder / "tokenizer.model").unlink(),
        lambda folder: spoil(folder, "tokenizer.model", "not a model"),
        lambda folder: spoil(folder, "tokenizer_config.json", "{not json"),
        lambda folder: spoil(folder, "generation_config.json", "{not json"),
    ],
    ids=[
        "no folder",
        "empty folder",
        "no model",
        "no sentencepiece",
        "no config",
        "no generation config",
    ],
)
def test_what_cannot_be_loaded_is_one_line_that_names_the_folder(folder, wrong):
    wrong(folder)
    with pytest.raises(UserError) as caught:
        tokenizer.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def spoil_json(**changes):
    """Returns what changes parts of tokenizer.json, as a later version of the library may."""

    def change_json(folder):
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change_json


@pytest.mark.parametrize(
    "wrong",
    [
        spoil_json(
            model={"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b", "c"]]}
        ),
        spoil_json(model={"type": "FooBPE", "vocab": {"a": 0}, "merges": []}),
        spoil_json(pre_tokenizer={"type": "Tomorrow"}),
        spoil_json(decoder={"type": "Tomorrow"}),
        spoil_json(version="9.0"),
        spoil_json(added_tokens="none"),
        # The library panics, which is no Exception.
        spoil_json(
            post_processor={
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}],
                "pair": [],
                "special_tokens": {},
            }
        ),
        lambda folder: spoil(
            folder,
            "tokenizer_config.json",
            '{"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": "x"}',
        ),
        lambda folder: spoil(
            folder, "tokenizer.json", (folder / "tokenizer.json").read_text()[:500]
        ),
        lambda folder: spoil(folder, "tokenizer.json", ""),
        lambda folder: spoil(folder, "tokenizer.json", "[]"),
        lambda folder: spoil(
            folder,
            "tokenizer.json",
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n",
        ),
        lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff\xfe\x00\x80"),
    ],
)
def test_a_tokenizer_json_that_cannot_be_read_is_one_line_that_names_the_folder(
    tmp_path, wrong
):
    wrong(make_chat_folder(tmp_path, CHATML))
    with pytest.raises(UserError) as caught:
        tokenizer.load(tmp_path)
    assert str(caught.value).startswith(f"no tokenizer can be loaded from {tmp_path} (")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("vocab", [{}, {"0": 0}])
def test_a_vocabulary_that_has_no_text_is_one_line(tmp_path, vocab):
    """Every question would be asked as none."""
    make_chat_folder(tmp_path, CHATML)
    spoil_json(model={"type": "BPE", "vocab": vocab, "merges": []})(tmp_path)
    with pytest.raises(
        UserError,
        match=r"has no vocabulary in tokenizer.json or .*: copy its tokenizer files there",
    ):
        tokenizer.load(tmp_path)


END = "<|endoftext|>"
TURN = "<|im_end|>"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"eos": END, "template": CHATML}, {END, TURN}),
        ({"eos": END, "template": CHATML, "generation_ends": [END]}, {END, TURN}),
        ({"eos": END}, {END}),
        ({"eos": TURN, "special": (END,), "template": CHATML}, {TURN}),
        (
            {
                "eos": TURN,
                "special": (END,),
                "template": CHATML,
                "generation_ends": [TURN, END],
            },
            {END, TURN},
        ),
        ({"eos": END, "config_ends": TURN}, {END, TURN}),
        (
            {
                "eos": END,
                "config_ends": [END, TURN, "<|eom_id|>"],
                "special": (TURN, "<|eom_id|>"),
            },
            {END, TURN, "<|eom_id|>"},
        ),
        (
            {"eos": END, "config_ends": TURN, "special": (), "plain": (TURN,)},
            {END, TURN},
        ),
        (
            {
                "eos": END,
                "template": CHATML,
                "special": ("<|im_start|>",),
                "plain": (TURN,),
            },
            {END, TURN},
        ),
        # "A" is an ordinary piece of text: in config.json it was left from another tokenizer, in
        # generation_config.json it is meant.
        ({"eos": END, "config_ends": "A"}, {END}),
        ({"eos": END, "generation_ends": "A"}, {END, "A"}),
        (
            {
                "eos": "<eos>",
                "bos": "<bos>",
                "special": ("<start_of_turn>", "<end_of_turn>"),
                "template": GEMMA,
            },
            {"<eos>", "<end_of_turn>"},
        ),
        (
            {
                "eos": "</s>",
                "bos": "<s>",
                "special": ("[INST]", "[/INST]"),
                "template": MISTRAL,
            },
            {"</s>"},
        ),
        (
            {
                "eos": END,
                "template": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
            },
            {END},
        ),
    ],
)
def test_ends_are_those_of_every_file_and_of_the_template(tmp_path, given, expected):
    loaded = tokenizer.load(
        make_chat_folder(tmp_path, **{"special": ("<|im_start|>", TURN)} | given)
    )
    assert set(loaded.hf.convert_ids_to_tokens(list(loaded.eos_ids))) == expected
    for end in loaded.eos_ids:
        assert (
            loaded.decode([*loaded.encode("The answer is 4."), end])
            == "The answer is 4."
        )


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "ends", ["<|im_end|>", True, 1.0, [1, None], [[1]], -1, {"id": 1}]
)
def test_ends_that_are_no_numbers_are_one_line(tmp_path, name, ends):
    make_chat_folder(tmp_path, CHATML)
    (tmp_path / name).write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(
        UserError,
        match=r"says eos_token_id .* it must be a token's number, or a list of",
    ) as caught:
        tokenizer.load(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_an_end_that_the_tokenizer_does_not_have_is_one_line(tmp_path):
    make_chat_folder(tmp_path, CHATML)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 99999]}')
    with pytest.raises(
        UserError,
        match=r"generation_config.json says eos_token_id 99999, and the tokenizer has no such",
    ):
        tokenizer.load(tmp_path)
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(
        UserError, match=r"generation_config.json holds a list, not an object"
    ):
        tokenizer.load(tmp_path)
    (tmp_path / "generation_config.json").write_text("[" * 100_000)
    with pytest.raises(
        UserError,
        match=r"generation_config.json is not JSON \(maximum recursion depth exceeded",
    ):
        tokenizer.load(tmp_path)


def test_half_a_surrogate_pair_is_asked_as_no_character(tmp_path):
    loaded = tokenizer.load(
        make_chat_folder(tmp_path, CHATML, special=("<|im_start|>",))
    )
    assert loaded.prompt("3 \ud83d 4?", "Think\udcff.") == loaded.prompt(
        "3 \ufffd 4?", "Think\ufffd."
    )


def test_padding_is_on_the_left_and_masks_come_from_lengths():
    tokens, mask = tokenizer.pad_left([[5, 6, 7], [], [8]], 3, pad_id=2)
    np.testing.assert_array_equal(tokens, [[5, 6, 7], [2, 2, 2], [2, 2, 8]])
    np.testing.assert_array_equal(mask, [[1, 1, 1], [0, 0, 0], [0, 0, 1]])
    assert (tokens.dtype, mask.dtype) == (np.int32, bool)


def test_a_real_pad_token_keeps_its_mask():
    tokens, mask = tokenizer.pad_left([[2, 5, 2]], 5, pad_id=2)
    np.testing.assert_array_equal(tokens, [[2, 2, 2, 5, 2]])
    np.testing.assert_array_equal(mask, [[0, 0, 1, 1, 1]])


def test_a_row_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="row 1 has 4 tokens, more than the width 3"):
        tokenizer.pad_left([[1], [1, 2, 3, 4]], 3, pad_id=0)
