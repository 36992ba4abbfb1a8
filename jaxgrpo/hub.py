"""Knows names on the Hugging Face hub, such as "openai/gsm8k"; nothing is downloaded here."""

import re

_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/[\w./-]*)?")


def fetch_hint(name: str, repo_type: str = "model") -> str:
    """Returns the words that say how to fetch what has this name on the hub, "" for other names.

    The command writes a folder of the same name, so that what was asked for is then here.

    name: as it was given, such as "openai/gsm8k" or a folder within, "openai/gsm8k/main"
    repo_type: "model" or "dataset"
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return ""
    repo = match[1]
    kind = "" if repo_type == "model" else f" --repo-type {repo_type}"
    return (
        f"; if the Hugging Face hub's is meant, fetch it: hf download {repo}{kind} "
        f"--local-dir {repo}"
    )
