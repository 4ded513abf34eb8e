"""Requests to an OpenAI-compatible endpoint: bounded in time and bytes, patient, silent about what they hold.

No redirect is followed: a key and a patient's report go to the host that was named. No message holds a reply,
a report or the key; of an error body, at most a code word that is known. A proxy and certificates of the
environment apply, but the proxy never to this machine itself.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from hilum.errors import RunError
from hilum.io.llm_endpoint import LlmEndpoint

JsonMode = Literal["none", "object", "schema"]
AGAIN = frozenset({408, 429, 500, 502, 503, 504, 529})
"""HTTP statuses after which the same request may succeed."""
FATAL = frozenset({"LLM_REFUSED", "LLM_REDIRECT"})
"""Codes after which every other request would fail the same way."""
WORDS = frozenset(
    {
        "billing_not_active", "content_filter", "context_length_exceeded", "engine_overloaded",
        "insufficient_quota", "invalid_api_key", "invalid_request_error", "model_not_found",
        "not_found_error", "rate_limit_exceeded", "server_error", "unsupported_parameter",
        "unsupported_value",
    }
)  # fmt: skip
"""Code words of error bodies that are shown. Any other could be a piece of what was sent."""


@dataclass(frozen=True)
class LlmLimits:
    """Bounds of one request.

    Args:
        connect_s, read_s: for a connection, and for silence on it.
        total_s: for one attempt, whatever arrives.
        max_bytes: of a response. attempts: in all. backoff_s: first pause, doubled each time, with jitter.
        max_pause_s: longest pause, also when the server asks for a longer one (Retry-After).
    """

    connect_s: float = 10.0
    read_s: float = 120.0
    total_s: float = 300.0
    max_bytes: int = 4 << 20
    attempts: int = 4
    backoff_s: float = 0.5
    max_pause_s: float = 60.0


@dataclass(frozen=True)
class LlmReply:
    """What a model said.

    Args:
        text: its words, not to be trusted. whole: it ended by itself, not at the limit of tokens.
        prompt_tokens, reply_tokens: as the server counts them, 0 where it does not.
    """

    text: str
    whole: bool
    prompt_tokens: int = 0
    reply_tokens: int = 0


class _Again(Exception):
    """This attempt failed; another may not."""

    def __init__(self, code: str, got: str, pause_s: float | None = None) -> None:
        self.code, self.got, self.pause_s = code, got, pause_s
        super().__init__(got)


class LlmClient:
    """Asks one endpoint; an ``async with`` block holds its connections.

    Args:
        endpoint: where. limits: bounds. seed: of the pauses' jitter; it changes no answer.

    Attributes:
        requests: sent so far, repeated ones counted.
    """

    def __init__(self, endpoint: LlmEndpoint, limits: LlmLimits | None = None, seed: int = 0) -> None:
        self.endpoint, self.limits = endpoint, limits or LlmLimits()
        self.requests = 0
        self._jitter = random.Random(seed)
        self._quiet_until_s = 0.0
        timeout = httpx.Timeout(self.limits.read_s, connect=self.limits.connect_s, pool=None)
        self._http = httpx.AsyncClient(
            timeout=timeout, follow_redirects=False, trust_env=not endpoint.loopback, headers=self._headers(),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
        )  # fmt: skip

    async def __aenter__(self) -> LlmClient:
        return self

    async def __aexit__(self, *problem: object) -> None:
        await self._http.aclose()

    async def chat(self, messages: Sequence[Mapping[str, str]], parameters: Mapping[str, Any]) -> LlmReply:
        """One reply.

        Args:
            messages: role and content. parameters: go into the request beside model and messages.

        Raises:
            RunError: `LLM_UNREACHABLE`, `LLM_TIMEOUT`, `LLM_STATUS`, `LLM_REFUSED` (key or model),
                `LLM_REDIRECT`, `LLM_TOO_LONG`, `LLM_REPLY` (no chat completion).
        """
        body = json.dumps({"model": self.endpoint.model, "messages": list(messages), **parameters}).encode()
        for attempt in range(1, self.limits.attempts + 1):
            await asyncio.sleep(max(0.0, self._quiet_until_s - time.monotonic()))
            try:
                return _completion(await self._once(body))
            except _Again as again:
                if attempt == self.limits.attempts:
                    raise self._failed(again.code, f"{again.got}, {attempt} times") from None
                await self._pause(again, attempt)
        raise self._failed("LLM_STATUS", f"{self.limits.attempts} attempts allowed")

    async def _pause(self, again: _Again, attempt: int) -> None:
        pause_s = self.limits.backoff_s * 2 ** (attempt - 1) * self._jitter.uniform(0.75, 1.25)
        if again.pause_s is not None:
            # Who is asked to wait has all its workers wait.
            pause_s = max(pause_s, again.pause_s)
            until_s = time.monotonic() + min(pause_s, self.limits.max_pause_s)
            self._quiet_until_s = max(self._quiet_until_s, until_s)
        await asyncio.sleep(min(pause_s, self.limits.max_pause_s))

    async def _once(self, body: bytes) -> bytes:
        self.requests += 1
        try:
            async with asyncio.timeout(self.limits.total_s):
                async with self._http.stream("POST", self.endpoint.url, content=body) as response:
                    content = await self._content(response)
        except TimeoutError:
            raise _Again("LLM_TIMEOUT", f"no whole response in {self.limits.total_s:g} s") from None
        except httpx.ConnectTimeout:
            raise _Again("LLM_UNREACHABLE", f"no connection in {self.limits.connect_s:g} s") from None
        except httpx.TimeoutException:
            raise _Again("LLM_TIMEOUT", f"silence for {self.limits.read_s:g} s") from None
        except httpx.ConnectError as error:
            if "CERTIFICATE" in str(error):
                raise self._failed("LLM_UNREACHABLE", "no certificate that is trusted here") from None
            raise _Again("LLM_UNREACHABLE", "no connection") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            # Its words may quote what was sent or received: the kind is enough.
            raise _Again("LLM_UNREACHABLE", f"a broken exchange ({type(error).__name__})") from None
        if response.status_code != 200:
            raise self._not_ok(response, content)
        return content

    async def _content(self, response: httpx.Response) -> bytes:
        """The body as it comes, at most `max_bytes`. A compressed one is refused: its size hides another."""
        coding = response.headers.get("content-encoding", "identity").lower()
        if coding not in ("", "identity"):
            raise self._failed("LLM_REPLY", "a compressed response, which was not asked for")
        content = bytearray()
        async for block in response.aiter_raw():
            content += block
            if len(content) > self.limits.max_bytes:
                raise self._failed("LLM_TOO_LONG", f"more than {self.limits.max_bytes} bytes")
        return bytes(content)

    def _not_ok(self, response: httpx.Response, content: bytes) -> Exception:
        status = response.status_code
        got = f"HTTP {status}{self._word(content)}"
        if 300 <= status < 400:
            return self._failed("LLM_REDIRECT", got)
        if status in AGAIN:
            return _Again("LLM_STATUS", got, _retry_after_s(response.headers.get("retry-after")))
        return self._failed("LLM_REFUSED" if status in (401, 403, 404) else "LLM_STATUS", got)

    @staticmethod
    def _word(content: bytes) -> str:
        """The code word of an error body if it is one of `WORDS`."""
        try:
            said = json.loads(content)["error"]
            word = said.get("code") or said.get("type")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return ""
        return f" ({word})" if isinstance(word, str) and word in WORDS else ""

    def _headers(self) -> dict[str, str]:
        headers = {
            "content-type": "application/json",
            "accept": "application/json",
            "accept-encoding": "identity",
        }
        return headers | ({"authorization": f"Bearer {self.endpoint.key}"} if self.endpoint.key else {})

    def _failed(self, code: str, got: str) -> RunError:
        return RunError(
            code, _RULES[code], expected="a chat completion", got=f"{got} from {self.endpoint.host}",
            hint=_HINTS.get(code),
        )  # fmt: skip


_RULES = {
    "LLM_UNREACHABLE": "the endpoint can be reached",
    "LLM_TIMEOUT": "the endpoint answers in time",
    "LLM_STATUS": "the endpoint answers with success",
    "LLM_REFUSED": "the endpoint knows the key, the model and the path",
    "LLM_REDIRECT": "the endpoint answers itself: no redirect is followed with a key and a report",
    "LLM_TOO_LONG": "a response stays within its bound",
    "LLM_REPLY": "a response is a chat completion",
}
_HINTS = {
    "LLM_UNREACHABLE": "Check --endpoint, and that the server runs.",
    "LLM_TIMEOUT": "A larger --timeout or fewer --workers may help.",
    "LLM_REFUSED": "Check the key's environment variable, --model, and that --endpoint ends with /v1.",
    "LLM_REDIRECT": "Give the final address to --endpoint.",
}


def _completion(content: bytes) -> LlmReply:
    """The first choice of a chat completion."""
    try:
        said = json.loads(content)
        choice = said["choices"][0]
        text = choice["message"]["content"]
        usage = said.get("usage") or {}
        if not isinstance(text, str):
            raise TypeError
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise _Again("LLM_REPLY", "something else than a chat completion with text") from None
    counts = [usage.get(n) if isinstance(usage, dict) else 0 for n in ("prompt_tokens", "completion_tokens")]
    prompt_tokens, reply_tokens = (c if isinstance(c, int) and 0 <= c < 10**9 else 0 for c in counts)
    return LlmReply(text, choice.get("finish_reason") != "length", prompt_tokens, reply_tokens)


def _retry_after_s(value: str | None) -> float | None:
    """Seconds that Retry-After asks for: a number, or a date (RFC 9110 §10.2.3); None for anything else."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}", value.strip()):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
