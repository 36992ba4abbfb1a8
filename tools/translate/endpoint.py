"""Asks an OpenAI-compatible server of chat completions."""

from dataclasses import dataclass

import requests

from jaxgrpo.errors import UserError
from jaxgrpo.rewards.prose import part

CONNECT_S = 10.0
"""Seconds that a connection may take."""


class AttemptError(Exception):
    """One attempt failed; another may not.

    wait: seconds that the endpoint asks for
    is_final: whether the next attempt at this problem would fail as well
    """

    def __init__(self, reason: str, wait: float = 0.0, is_final: bool = False):
        super().__init__(reason)
        self.wait = wait
        self.is_final = is_final


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server of chat completions.

    url: its address, up to and with /v1
    key: sent as a bearer token; "": none is
    timeout: seconds without a byte of the reply
    """

    url: str
    key: str
    model: str
    temperature: float
    timeout: float

    def ask(self, text: str) -> str:
        """Returns the model's reply to one message, without its thoughts.

        Raises AttemptError if there is none, and UserError if the endpoint refuses all requests.
        """
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        url = f"{self.url.rstrip('/')}/chat/completions"
        try:
            response = requests.post(
                url,
                json={
                    "model": self.model,
                    "temperature": self.temperature,
                    "messages": [{"role": "user", "content": text}],
                },
                headers=headers,
                timeout=(CONNECT_S, self.timeout),
            )
            _check_status(response)
            choice = response.json()["choices"][0]
            reply = part(choice["message"]["content"], "answer").strip()
        except requests.JSONDecodeError:
            raise AttemptError("the reply is not JSON") from None
        except requests.RequestException as error:
            raise AttemptError(type(error).__name__) from None
        except (LookupError, TypeError):
            raise AttemptError("the reply holds no message") from None
        if choice.get("finish_reason") == "length":
            raise AttemptError("the reply was cut off")
        return reply


def _check_status(response: requests.Response) -> None:
    """Raises AttemptError for a status that may be another next time, UserError for others."""
    status = response.status_code
    said = " ".join(response.text.split())[:200]
    if status in (401, 403, 404):
        raise UserError(
            f"{response.url} answers {status} ({said}); check OPENAI_BASE_URL, OPENAI_API_KEY and "
            "--model"
        )
    if status == 200:
        return
    try:
        wait = float(response.headers.get("Retry-After", 0))
    except ValueError:
        # It may be a date, too; then the usual wait has to do.
        wait = 0.0
    is_final = 400 <= status < 500 and status not in (408, 409, 429)
    raise AttemptError(f"status {status} ({said})", wait, is_final)
