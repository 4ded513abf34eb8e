"""Where a language model answers: its address, its name, and a key that never shows.

The key comes from an environment variable. Texts go over https, or to this very machine.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from hilum.errors import UsageError

KEY_VARIABLE = "HILUM_LLM_KEY"
MAX_KEY_CHARS = 4096


@dataclass(frozen=True)
class LlmEndpoint:
    """An OpenAI-compatible endpoint and a model there.

    Args:
        url: of chat completions, in full. host: as the URL names it. model: as the server calls it.
        loopback: the host is this machine. key: sent as a bearer token; "" sends none. Not in `repr`.
    """

    url: str
    host: str
    model: str
    loopback: bool
    key: str = field(default="", repr=False)


def endpoint_of(
    base_url: str, model: str, *, key_variable: str = KEY_VARIABLE, allow_http: bool = False
) -> LlmEndpoint:
    """An endpoint from what a user says.

    Args:
        base_url: up to and with the version, ``http://localhost:8000/v1``.
        key_variable: environment variable of the key; none or an empty one sends no key.
        allow_http: send texts unencrypted to another machine.

    Raises:
        UsageError: `LLM_ENDPOINT` (no http or https URL, a URL with a password, unencrypted to another
            machine), `LLM_MODEL`, `LLM_KEY` (a key that no header can hold). The key is in no message.
    """
    parts = _split(base_url)
    host = parts.hostname or ""
    loopback = is_loopback(host)
    if parts.scheme == "http" and not (loopback or allow_http):
        raise UsageError(
            "LLM_ENDPOINT", "texts go to another machine over https", expected="https", got=f"http to {host}",
            hint="--allow-http sends them unencrypted.",
        )  # fmt: skip
    if not 0 < len(model) <= 200 or not model.isprintable():
        raise UsageError(
            "LLM_MODEL", "a model has a printable name", expected="1 to 200 characters", got=repr(model[:40])
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    url = parts._replace(path=f"{path}/chat/completions").geturl()
    return LlmEndpoint(url, host, model, loopback, _key(key_variable))


def is_loopback(host: str) -> bool:
    """True for this machine by name or address. Odd spellings of it are taken for another machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _split(base_url: str) -> SplitResult:
    """The parts of a usable URL. Messages show no more of it than its scheme: it may hold a password."""
    rule, expected = "an endpoint is an http or https URL", "https://HOST/v1 or http://localhost:PORT/v1"
    try:
        parts = urlsplit(base_url.strip())
        port_is_number = parts.port is None or parts.port > 0
    except ValueError:
        raise UsageError("LLM_ENDPOINT", rule, expected=expected, got="no URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_number:
        got = f"scheme {parts.scheme[:20]!r}" if parts.scheme not in ("http", "https") else "no host or port"
        raise UsageError("LLM_ENDPOINT", rule, expected=expected, got=got)
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UsageError(
            "LLM_ENDPOINT", "an endpoint's URL holds no user, password, query or fragment",
            expected=expected, got=f"one of them, for {parts.hostname}",
            hint=f"A key goes into the environment variable {KEY_VARIABLE}.",
        )  # fmt: skip
    return parts


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if len(key) > MAX_KEY_CHARS or not all("!" <= c <= "~" for c in key):
        raise UsageError(
            "LLM_KEY", "a key is printable ASCII without spaces", expected=f"<= {MAX_KEY_CHARS} characters",
            got=f"{len(key)} characters in {variable}",
        )  # fmt: skip
    return key
