"""Makes model folders of a tokenizer alone, with given special tokens, end tokens and template."""

import json
from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}<start_of_turn>model\n"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)


def byte_alphabet() -> list[str]:
    """Returns the 256 letters that stand for bytes, always in the same order."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def make_chat_folder(
    folder: Path,
    template: str | None = None,
    *,
    eos: str = "<|im_end|>",
    bos: str | None = None,
    special: tuple[str, ...] = (),
    plain: tuple[str, ...] = (),
    config_ends: str | list[str] | None = None,
    generation_ends: str | list[str] | None = None,
) -> Path:
    """Writes a tokenizer of single bytes and of these tokens; returns the folder.

    template: the chat template; None for none
    eos, bos: the end token, and the token that every text begins with; None for none
    special, plain: further added tokens, that are called special and that are not
    config_ends, generation_ends: end tokens that config.json and generation_config.json name
    """
    backend = Tokenizer(
        models.BPE(
            vocab={letter: i for i, letter in enumerate(byte_alphabet())}, merges=[]
        )
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([eos, *([bos] if bos else []), *special])
    backend.add_tokens(
        [AddedToken(text, special=False, normalized=False) for text in plain]
    )
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, bos_token=bos)
    hf.chat_template = template
    hf.save_pretrained(folder)
    for name, ends in (
        ("config.json", config_ends),
        ("generation_config.json", generation_ends),
    ):
        if ends is not None:
            (folder / name).write_text(
                json.dumps({"eos_token_id": hf.convert_tokens_to_ids(ends)})
            )
    return folder
