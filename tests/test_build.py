"""Checks that are made before a run begins."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxgrpo import train
from jaxgrpo.build import (
    _check_shards,
    build_run,
    check_positions,
    match_tokenizer,
    model_folder,
)
from jaxgrpo.config import Sampling, load
from jaxgrpo.data.prompt_filter import MAX_CHECKED, PromptFilter
from jaxgrpo.errors import UserError
from jaxgrpo.models import hf_folder
from jaxgrpo.problems import Problem
from jaxgrpo.rollout.batch import make_batch
from jaxgrpo.text import tokenizer
from jaxgrpo.text.tokenizer import Tokenizer
from tests.tiny_models import NETWORK, make_folder
from tests.tiny_runs import ROOT, make_config, share_programs


@dataclass
class Letters:
    """Stands for a Hugging Face tokenizer without a chat template: a token a character."""

    chat_template: str = ""

    def __call__(self, text, add_special_tokens):
        return SimpleNamespace(input_ids=[ord(letter) for letter in text])


def problems_of(*lengths: int) -> list[Problem]:
    """Returns problems whose prompts have these lengths in tokens.

    The template ends every prompt with one token more.
    """
    return [
        Problem(str(i), "x" * (length - 1), "1") for i, length in enumerate(lengths)
    ]


def make_filter(width: int, system: str = "") -> PromptFilter:
    return PromptFilter(Tokenizer(Letters(), (0,), 0), system, width, vocab_size=1000)


def test_a_prompt_as_long_as_the_width_fits():
    accepted = [make_filter(5).accepts(problem) for problem in problems_of(4, 5, 6)]
    assert accepted == [True, True, False]


def test_the_system_message_counts():
    assert make_filter(8, "four").accepts(
        problems_of(2)[0]
    )  # four, two line ends, x, line end
    assert not make_filter(7, "four").accepts(problems_of(2)[0])


def test_long_prompts_are_counted():
    assert make_filter(5).check(problems_of(4, 5), "training") is None
    note = make_filter(5).check(problems_of(4, 6, 9, 5), "training")
    assert (
        note
        == "2 of 4 training prompts are longer than 5 tokens and left out; 9 takes all"
    )


def test_only_so_many_are_measured():
    many = problems_of(6, *[2] * MAX_CHECKED, 9)
    note = make_filter(5).check(many, "training")
    assert note == (
        "1 of the first 2,000 training prompts are longer than 5 tokens and left out; 6 takes all"
    )


def test_a_language_that_cannot_be_told_is_refused_with_the_problem():
    problems = [Problem("a", "x", "1", "pt-BR"), Problem("b", "x", "1", "Klingon")]
    with pytest.raises(
        UserError,
        match="the problem 'b' has the language 'Klingon', which cannot be told",
    ):
        make_filter(5).check(problems, "training")
    # Among problems that are not checked before the run, it is passed over.
    assert make_filter(5).take(problems, 2) == problems[:1]


def test_all_too_long_is_refused_with_the_numbers():
    with pytest.raises(UserError) as error:
        make_filter(5).check(problems_of(7, 9, 6), "held-out")
    assert str(error.value) == (
        "3 of 3 held-out prompts are longer than sampling.prompt_width=5 tokens, "
        "the shortest 6: raise it; 9 takes all"
    )


def test_no_problems_are_refused():
    with pytest.raises(UserError, match="training: there are no problems"):
        make_filter(5).check([], "training")


def test_the_first_that_fit_are_taken():
    problems = problems_of(9, 2, 9, 3, 4, 5)
    assert [problem.id for problem in make_filter(5).take(problems, 3)] == [
        "1",
        "3",
        "4",
    ]
    assert [problem.id for problem in make_filter(5).take(problems, 9)] == [
        "1",
        "3",
        "4",
        "5",
    ]


def test_the_embedded_model_is_the_default():
    assert (model_folder("") / "config.json").is_file()
    assert str(model_folder("~/mine")).startswith("/")


def refused(*arguments) -> str:
    with pytest.raises(UserError) as error:
        check_positions(*arguments)
    return str(error.value)


def test_rows_are_no_longer_than_the_model_was_made_for(tmp_path):
    folder = make_folder(tmp_path / "model", max_position_embeddings=100)
    for width, new in ((60, 40), (1, 99), (1, 1)):
        check_positions(Sampling(prompt_width=width, max_new_tokens=new), folder)
    said = refused(Sampling(prompt_width=60, max_new_tokens=41), folder)
    assert said == (
        "sampling.prompt_width=60 and sampling.max_new_tokens=41 are 101 tokens, more than the "
        f"100 positions that {folder} was made for: lower sampling.max_new_tokens to 40"
    )
    assert refused(Sampling(prompt_width=100, max_new_tokens=1), folder).endswith(
        ": lower both, to 100 together"
    )


LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
YARN = {"type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("architecture", "changes", "max_positions"),
    [
        (
            "Qwen2",
            {"rope_scaling": YARN | {"original_max_position_embeddings": 100}},
            400,
        ),
        ("Qwen2", {"rope_scaling": YARN}, 400),
        (
            "Qwen2",
            {"rope_scaling": YARN | {"original_max_position_embeddings": 25}},
            100,
        ),
        (
            "Llama",
            {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 10}},
            100,
        ),
        (
            "Llama",
            {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 50}},
            100,
        ),
        ("Llama", {"rope_scaling": LLAMA3}, 800),
        ("Llama", {"rope_scaling": LINEAR}, 400),
        ("Gemma3", {"rope_scaling": LINEAR}, 100),
        ("Qwen3", {}, 100),
        ("Qwen3", {"max_position_embeddings": None}, None),
    ],
)
def test_what_a_model_was_made_for_is_as_it_is_scaled(
    tmp_path, architecture, changes, max_positions
):
    """config.json may say the number before or after scaling.

    The model is never taken for less than it can do.
    """
    changes = {"max_position_embeddings": 100, "rope_parameters": None} | changes
    folder = make_folder(tmp_path / "model", f"{architecture}ForCausalLM", **changes)
    assert hf_folder.max_positions(folder) == max_positions


@pytest.mark.parametrize("name", ["quickstart", "gsm8k_tiny"])
def test_the_configs_of_the_embedded_model_fit_it(name):
    config = load(str(ROOT / "configs" / f"{name}.py"))
    check_positions(config.sampling, model_folder(config.model))


def test_a_run_that_is_too_long_for_its_model_is_refused_before_it_begins(tmp_path):
    config = make_config(
        tmp_path, "sampling.prompt_width=1024", "sampling.max_new_tokens=8192"
    )
    with pytest.raises(
        UserError,
        match=r"9216 tokens, more than the 2048 .* lower .*max_new_tokens to 1024",
    ):
        build_run(config)


@pytest.mark.parametrize(
    ("shards", "overrides", "says"),
    [
        (
            8,
            ("batch.groups=3",),
            "batch.groups * batch.group_size is 12: it must be a multiple of",
        ),
        (8, ("batch.groups=4", "batch.micro_batch=4"), "batch.micro_batch is 4"),
        (8, ("batch.groups=4", "sampling.slots=12"), "sampling.slots is 12"),
        (8, ("batch.groups=4", "evaluation.samples=3"), None),
        (1, ("batch.groups=3", "evaluation.samples=3", "sampling.slots=5"), None),
    ],
)
def test_what_the_devices_cannot_share_is_refused(tmp_path, shards, overrides, says):
    config = make_config(tmp_path, *overrides)
    if says is None:
        _check_shards(config, shards)
        return
    with pytest.raises(UserError) as error:
        _check_shards(config, shards)
    assert str(error.value).startswith(says)
    assert str(error.value).endswith(f"mesh.data * mesh.fsdp = {shards} devices")


class Vocabulary:
    """Stands for a Hugging Face tokenizer with plain and with added ids."""

    def __init__(self, plain: range | list[int], added: tuple[int, ...] = ()):
        self._plain = plain
        self._added = added

    def get_vocab(self):
        return {str(id_): id_ for id_ in (*self._plain, *self._added)}

    def get_added_vocab(self):
        return {str(id_): id_ for id_ in self._added}


def matched(vocabulary: Vocabulary, eos_ids=(1,), pad_id=0, bos_ids=()):
    """Returns (unused ids, end ids, pad id) of the tokenizer and NETWORK, made to go together."""
    tokens = Tokenizer(vocabulary, eos_ids, pad_id, bos_ids)
    network, tokens = match_tokenizer(Path("folder"), NETWORK, tokens)
    return network.unused_ids, tokens.eos_ids, tokens.pad_id


def test_rows_that_no_token_has_are_known():
    rows = NETWORK.vocab_size
    assert matched(Vocabulary(range(rows))) == ((), (1,), 0)
    assert matched(Vocabulary(range(rows - 7))) == (((rows - 7, rows),), (1,), 0)
    assert matched(Vocabulary([0, 1, 2, 5, 6, 9], (12,))) == (
        ((3, 5), (7, 9), (10, 12), (13, rows)),
        (1,),
        0,
    )


def test_added_tokens_past_the_last_row_do_no_harm():
    """Gemma 3's text models lack the row of the image token.

    Many models have a padding token that was added to their tokenizer alone.
    """
    rows = NETWORK.vocab_size
    past = Vocabulary(range(rows), (rows, rows + 3))
    assert matched(past) == ((), (1,), 0)
    assert matched(past, eos_ids=(1, rows), pad_id=rows) == ((), (1,), 1)
    for wrong in ({"eos_ids": (rows,)}, {"bos_ids": (rows + 3,)}):
        with pytest.raises(
            UserError, match=f"tokens up to id {rows + 3}, the model only {rows} rows"
        ):
            matched(past, **wrong)
    with pytest.raises(UserError, match="another model's"):
        matched(Vocabulary(range(rows + 1)))


def test_a_prompt_with_a_token_that_the_model_has_no_row_for_is_left_out():
    narrow = replace(make_filter(9), vocab_size=ord("y"))
    x = Problem("0", "x", "1")
    y = Problem("1", "xyx", "1")
    assert [narrow.accepts(problem) for problem in (x, y)] == [True, False]
    assert narrow.check([x, y, x], "training") == (
        "1 training prompts hold tokens that the model has no row for, and are left out"
    )
    with pytest.raises(
        UserError, match="all 2 training prompts hold tokens past the model's 121 rows"
    ):
        narrow.check([y, y], "training")


def test_ids_that_no_token_has_are_never_trained_on(tmp_path, monkeypatch):
    """A model with a hundred rows more than its tokenizer has tokens, as Qwen2.5 has."""
    share_programs(monkeypatch)
    tokens = tokenizer.load(model_folder("")).hf
    folder = make_folder(
        tmp_path / "model", num_hidden_layers=1, vocab_size=len(tokens) + 100
    )
    batches = []

    def make_and_note_batch(*arguments):
        batches.append(make_batch(*arguments))
        return batches[-1]

    monkeypatch.setattr(train, "make_batch", make_and_note_batch)
    config = replace(
        make_config(tmp_path, "steps=2", "evaluation.problems=0"), model=str(folder)
    )
    for values in train.train(config):
        assert values["policy/logprob_gap_max"] < 1e-4
    assert max(batch.tokens.max() for batch in batches) < len(tokens)
