"""A model answers from Python as it does on the command line, whatever else is asked beside."""

import json
import math

import pytest

from jaxgrpo import language_model
from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.errors import UserError
from jaxgrpo.language_model import LanguageModel
from jaxgrpo.models import hf_folder
from tests.compilations import noted_compilations
from tests.tiny_models import make_folder, random_params
from tests.tiny_runs import leave_run

PROMPTS = ["2 + 3", "What is 7 * 8, and what is 8 * 7?"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = make_folder(
        tmp_path_factory.mktemp("model") / "model", num_hidden_layers=1
    )
    return LanguageModel.load(folder)


def test_every_prompt_has_its_answers(model):
    answers = model.sample(PROMPTS, n=3, max_tokens=6)
    assert [len(texts) for texts in answers] == [3, 3]
    for text in answers[0] + answers[1]:
        assert 0 < text.tokens <= 6
        assert text.finished or text.tokens == 6
    assert len({*answers[0], *answers[1]}) > 2
    assert model.sample([]) == []


def test_an_answer_depends_on_its_prompt_its_number_and_the_seed_alone(model):
    both = model.sample(PROMPTS, n=3, max_tokens=6)
    assert model.sample(PROMPTS[::-1], n=3, max_tokens=6) == both[::-1]
    assert model.sample(PROMPTS[0], n=2, max_tokens=6) == [both[0][:2]]
    assert model.sample(PROMPTS, n=3, max_tokens=6, seed=1) != both


def test_prompts_of_like_lengths_share_their_programs(model):
    """So do nearby numbers of samples; only another length of answers compiles anew."""
    model.sample(PROMPTS[0], n=3, max_tokens=7)
    with noted_compilations() as compiled:
        model.sample("5 + 8 + 9", n=4, max_tokens=7, temperature=0.5, top_k=3)
        assert compiled == []
        model.sample(PROMPTS[0], n=3, max_tokens=8)
    assert compiled


def test_more_samples_than_slots_are_made(model, monkeypatch):
    few = model.sample(PROMPTS, n=5, max_tokens=4)
    monkeypatch.setattr(language_model, "MAX_SLOTS", 2)
    assert model.sample(PROMPTS, n=5, max_tokens=4) == few


def test_any_checkpoint_of_a_run_answers(tmp_path):
    out, _ = leave_run(tmp_path)
    newest = LanguageModel.load(out)
    assert newest.step == 3
    answers = newest.sample(PROMPTS, max_tokens=6)
    assert LanguageModel.load(str(out), step=3).sample(PROMPTS, max_tokens=6) == answers
    base = LanguageModel.load(newest.folder)
    assert base.step is None
    assert base.sample(PROMPTS, max_tokens=6) != answers
    # An older one, which holds what the run began with.
    begun = {"params": hf_folder.load_params(newest.folder)}
    with Checkpoints(tmp_path / "two", keep=3) as checkpoints:
        checkpoints.save(1, begun, {})
        moved = random_params(newest.spec.network, seed=7)
        checkpoints.save(2, {"params": moved}, {})
    config = {"model": str(newest.folder), "system": ""}
    (tmp_path / "two" / "config.json").write_text(json.dumps(config))
    first = LanguageModel.load(tmp_path / "two", step=1)
    assert first.sample(PROMPTS, max_tokens=6) == base.sample(PROMPTS, max_tokens=6)
    assert LanguageModel.load(tmp_path / "two").step == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"n": 0}, "n is 0: it must be at least 1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"min_tokens": 300}, "min_tokens is 300: it must be from 0 to max_tokens 256"),
        ({"max_tokens": 2048}, "more than the 2,048"),
    ],
)
def test_what_makes_no_sense_is_refused(model, arguments, says):
    with pytest.raises(UserError, match=says):
        model.sample(PROMPTS, **arguments)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        LanguageModel.load(tmp_path, step=3)
    out, _ = leave_run(tmp_path)
    with pytest.raises(UserError, match="no checkpoint of step 4; choose one of 3"):
        LanguageModel.load(out, step=4)
