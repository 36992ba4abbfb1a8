"""transformers computes the same in torch: for each family, the embedded model, and exports.

Needs torch: `pip install torch`, then `pytest tests/parity -p no:cacheprovider --no-cov`.
"""

import types
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from torch.overrides import TorchFunctionMode

from jaxgrpo.device.logits import to_logits
from jaxgrpo.device.specs import ModelSpec, SamplingSpec
from jaxgrpo.distributed.mesh import make_mesh
from jaxgrpo.models import attention, hf_folder, transformer
from jaxgrpo.models.transformer import SequenceInputs
from jaxgrpo.problems import Problem
from jaxgrpo.programs import compile_sampling
from jaxgrpo.rollout.engine import Engine
from jaxgrpo.rollout.groups import SamplingRequest
from jaxgrpo.text import tokenizer
from jaxgrpo.types import SamplingParams
from tests.tiny_models import make_folder, random_params

torch.set_num_threads(1)  # operations this small are slower with more

VOCABULARY = 61
NEW = 64
PAD = 0
NO_END = VOCABULARY  # an id that no token has: nothing ends early

DEFAULT = {"rope_type": "default"}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
GEMMA3 = {
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}


def sizes(heads, kv_heads, width):
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_size": width,
    }


SHAPES = {
    "llama, one head width": (
        "Llama",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32},
    ),
    "llama, odd heads": (
        "Llama",
        {
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "hidden_size": 24,
            "head_dim": 6,  # not hidden_size / heads
            "tie_word_embeddings": True,
            "rope_parameters": DEFAULT | {"rope_theta": 5e5},
        },
    ),
    "llama, wide heads": (
        "Llama",
        {
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "hidden_size": 30,
            "head_dim": 8,
            "rms_norm_eps": 1e-3,
            "rope_parameters": DEFAULT | {"rope_theta": 100.0},
        },
    ),
    "qwen2, grouped": (
        "Qwen2",
        {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 48},
    ),
    "qwen2, odd heads": (
        "Qwen2",
        {
            "num_attention_heads": 7,
            "num_key_value_heads": 1,
            "hidden_size": 42,
            "tie_word_embeddings": True,
            "rope_parameters": DEFAULT | {"rope_theta": 1e6},
        },
    ),
    "qwen2, each its own": (
        "Qwen2",
        {
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "hidden_size": 12,
            "rms_norm_eps": 1e-5,
        },
    ),
    "qwen2, upper layer with a window": (
        "Qwen2",
        sizes(5, 1, 20)
        | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "llama, scaled as 3.1": (
        "Llama",
        sizes(3, 1, 24)
        | {
            "head_dim": 16,
            "attention_bias": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "qwen3, grouped": ("Qwen3", sizes(6, 2, 24) | {"head_dim": 8}),
    "qwen3, odd heads": (
        "Qwen3",
        sizes(7, 1, 28)
        | {"head_dim": 6, "tie_word_embeddings": True, "attention_bias": True},
    ),
    "qwen3, yarn and a window": (
        "Qwen3",
        sizes(3, 3, 12)
        | {
            "head_dim": 12,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": YARN,
        },
    ),
    "olmo2, grouped": ("Olmo2", sizes(4, 2, 32)),
    "olmo2, odd heads": (
        "Olmo2",
        sizes(3, 1, 18) | {"tie_word_embeddings": True, "rms_norm_eps": 1e-4},
    ),
    "olmo2, linear": (
        "Olmo2",
        sizes(5, 5, 30)
        | {
            "attention_bias": True,
            "rope_parameters": {
                "rope_type": "linear",
                "rope_theta": 5e5,
                "factor": 4.0,
            },
        },
    ),
    "gemma2, grouped": (
        "Gemma2",
        sizes(4, 2, 24)
        | {"head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 6},
    ),
    "gemma2, odd heads, low caps": (
        "Gemma2",
        sizes(3, 1, 18)
        | {
            "head_dim": 10,
            "num_hidden_layers": 3,
            "sliding_window": 3,
            "attn_logit_softcapping": 0.8,
            "final_logit_softcapping": 2.0,
        },
    ),
    "gemma2, no caps": (
        "Gemma2",
        sizes(5, 5, 20)
        | {
            "head_dim": 4,
            "layer_types": ["full_attention", "sliding_attention"],
            "sliding_window": 11,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "tie_word_embeddings": False,
        },
    ),
    "gemma3, grouped": (
        "Gemma3",
        sizes(4, 2, 24) | GEMMA3 | {"head_dim": 8, "sliding_window": 7},
    ),
    "gemma3, odd heads": (
        "Gemma3",
        sizes(3, 1, 18)
        | GEMMA3
        | {
            "head_dim": 10,
            "sliding_window": 4,
            "final_logit_softcapping": 3.0,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "linear",
                    "rope_theta": 1e6,
                    "factor": 8.0,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
    "gemma3, heads apart": (
        "Gemma3",
        sizes(5, 5, 20)
        | GEMMA3
        | {
            "head_dim": 4,
            "sliding_window": 12,
            "query_pre_attn_scalar": 9,
            "attention_bias": True,
        },
    ),
    "mistral, grouped": ("Mistral", sizes(6, 2, 24) | {"sliding_window": 5}),
    "mistral, odd heads": (
        "Mistral",
        sizes(3, 1, 18)
        | {"sliding_window": 13, "head_dim": 10, "rope_parameters": YARN},
    ),
    "mistral, no window": (
        "Mistral",
        sizes(5, 5, 20) | {"sliding_window": None, "tie_word_embeddings": True},
    ),
}


def theirs(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    return model.eval()


class Exact(TorchFunctionMode):
    """Computes in float64 what a model asks to be in float32: norms, angles, softmax.

    The rest is in float64 after `.double()`.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        wide_args = [_widened(value) for value in args]
        wide_kwargs = {name: _widened(value) for name, value in (kwargs or {}).items()}
        return function(*wide_args, **wide_kwargs)


def _widened(value):
    return torch.float64 if value is torch.float32 else value


def randomise(model, seed):
    """Sets the same random weights every time.

    They are large enough for norms, biases and the rotary base all to show in the logits, and for
    texts not to repeat a single token. They are no larger: with sharper attention, rounding in
    float32 alone comes to 1e-4, here and in torch.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                deviation = 0.5
            else:
                gain = 2.0 if "o_proj" in name or "down_proj" in name else 1.0
                deviation = gain * parameter.shape[-1] ** -0.5
            # A norm's scale varies around its initial value, which is 0 or 1.
            mean = parameter.flatten()[0].item() if "norm" in name else 0.0
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(mean + deviation * noise)


@pytest.fixture(scope="module", params=SHAPES)
def saved(request, tmp_path_factory):
    """Returns a folder as transformers writes it."""
    family, changes = SHAPES[request.param]
    folder = tmp_path_factory.mktemp("saved") / "model"
    shape = {
        "vocab_size": VOCABULARY,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "max_position_embeddings": 256,
    }
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": PAD}
    name = f"{family}TextConfig" if family == "Gemma3" else f"{family}Config"
    config = getattr(transformers, name)(**shape | ids | changes)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    randomise(model, seed=len(request.param))
    model.save_pretrained(folder)
    return Path(folder)


def our_logits(folder, tokens):
    config = hf_folder.load_config(folder)
    params = jax.device_put(hf_folder.load_params(folder))
    segments = jnp.ones(tokens.shape, jnp.int32)
    inputs = SequenceInputs(
        tokens=jnp.asarray(tokens),
        positions=attention.sequence_positions(segments),
        mask=attention.sequence_mask(segments),
    )

    @jax.jit
    def forward(params):
        return transformer.forward(config, params, inputs)

    hidden, _ = forward(params)
    output_embedding = transformer.output_embedding(params)
    return np.asarray(to_logits(hidden, output_embedding, 1.0, config.logit_softcap))


def their_logits(folder, tokens):
    """Returns logits in float64: the difference to ours is then our rounding alone."""
    with torch.no_grad(), Exact():
        return (
            theirs(folder)
            .double()(torch.as_tensor(tokens, dtype=torch.long))
            .logits.numpy()
        )


def assert_logits_agree(folder, tokens):
    ours = our_logits(folder, tokens)
    expected = their_logits(folder, tokens)
    assert expected.std() > 0.3  # there is something to agree about
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


def random_tokens(vocabulary, rows=3, width=40):
    return (
        np.random.default_rng(0).integers(0, vocabulary, (rows, width)).astype(np.int32)
    )


def test_logits_agree(saved):
    assert_logits_agree(saved, random_tokens(VOCABULARY))


def test_tensors_survive_both_ways(saved, tmp_path):
    """From transformers, through here and transformers again: the same bits and names."""
    hf_folder.save(hf_folder.load_params(saved), saved, tmp_path / "ours")
    theirs(tmp_path / "ours").save_pretrained(tmp_path / "again")
    first, ours, again = (
        load_file(folder / "model.safetensors")
        for folder in (saved, tmp_path / "ours", tmp_path / "again")
    )
    assert first.keys() == ours.keys() == again.keys()
    for name, tensor in first.items():
        assert tensor.dtype == ours[name].dtype == again[name].dtype
        assert tensor.tobytes() == ours[name].tobytes() == again[name].tobytes(), name


class IdsTokenizer:
    """A tokenizer whose prompt "2" is the third of a list of prompts' ids."""

    chat_template = None

    def __init__(self, ids):
        self.ids = ids

    def __call__(self, text, add_special_tokens):
        return types.SimpleNamespace(input_ids=self.ids[int(text)])

    def decode(self, ids, **_):
        return " ".join(map(str, ids))


def test_greedy_texts_agree(saved):
    """Positions, masks and the cache agree, too, for prompts of unequal lengths padded on the left.

    Here five prompts share two slots.
    """
    width = 9
    lengths = (9, 5, 2, 7, 1)
    ids = [random_tokens(VOCABULARY, 1, length)[0].tolist() for length in lengths]
    model = ModelSpec(hf_folder.load_config(saved), make_mesh())
    programs = compile_sampling(
        model,
        SamplingSpec(
            prompt_width=width, new_tokens=NEW, slots=2, eos_ids=(NO_END,), chunk=24
        ),
    )
    # Slots are not compacted: that takes fewer compiles.
    programs = replace(programs, slot_counts=(2,))
    ids_tokenizer = tokenizer.Tokenizer(IdsTokenizer(ids), (NO_END,), PAD)
    engine = Engine(programs, ids_tokenizer, width, NEW, seed=0)
    problems = [Problem(str(i), str(i), "") for i in range(len(ids))]
    request = SamplingRequest(1, SamplingParams(temperature=0.0), "parity")
    groups = engine(hf_folder.load_params(saved), problems, request, 0)
    tokens, mask = tokenizer.pad_left(ids, width, PAD)
    with torch.no_grad():
        expected = theirs(saved).generate(
            torch.as_tensor(tokens, dtype=torch.long),
            attention_mask=torch.as_tensor(mask, dtype=torch.long),
            max_new_tokens=NEW,
            do_sample=False,
        )
    completions = np.concatenate([group.tokens for group in groups])[:, width:]
    np.testing.assert_array_equal(completions, expected.numpy()[:, width:])
    assert completions.shape == (len(ids), 64)
    assert len(np.unique(completions)) > 3


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM"])
@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 300.0},
        {"rope_theta": 300.0, "rope_scaling": None},
        {
            "rope_theta": ...,
            "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
        },
    ],
    ids=["apart", "with no scaling", "gathered"],
)
def test_both_spellings_of_the_rotary_base_are_read_as_transformers_reads_them(
    tmp_path, architecture, spelling
):
    changes = {
        name: None if value is ... else value for name, value in spelling.items()
    }
    folder = make_folder(
        tmp_path / "model",
        architecture,
        vocab_size=VOCABULARY,
        eos_token_id=1,
        **changes,
    )
    assert hf_folder.load_config(folder).rope.theta == 300.0
    assert_logits_agree(folder, random_tokens(VOCABULARY))


def test_the_embedded_model_loads_in_transformers():
    tokens = tokenizer.load(hf_folder.EMBEDDED)
    loaded = transformers.AutoTokenizer.from_pretrained(
        hf_folder.EMBEDDED, local_files_only=True
    )
    question = "Tom has 12 apples and buys 7 more. How many apples does Tom have?"
    ids = tokens.prompt(question)
    their_ids = loaded.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert their_ids == ids
    assert_logits_agree(hf_folder.EMBEDDED, np.array([ids], np.int32))
    assert_logits_agree(hf_folder.EMBEDDED, random_tokens(1024))


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM"])
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_saved_here_loads_there(tmp_path, architecture, tied):
    source = make_folder(tmp_path / "source", architecture, tie_word_embeddings=tied)
    params = jax.device_get(random_params(hf_folder.load_config(source), seed=3))
    hf_folder.save(params, source, tmp_path / "target")
    tokens = random_tokens(1024)
    assert_logits_agree(tmp_path / "target", tokens)
    change = their_logits(tmp_path / "target", tokens) - their_logits(source, tokens)
    assert np.abs(change).max() > 0.1
    transformers.AutoTokenizer.from_pretrained(
        tmp_path / "target", local_files_only=True
    )


def test_bfloat16_folders_agree(tmp_path):
    """Weights rounded to bfloat16 are the same numbers here and there."""
    source = make_folder(tmp_path / "source", "Qwen2ForCausalLM", dtype="bfloat16")
    hf_folder.save(hf_folder.load_params(source), source, tmp_path / "target")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "target", local_files_only=True
    )
    assert loaded.dtype == torch.bfloat16
    assert_logits_agree(tmp_path / "target", random_tokens(1024))
