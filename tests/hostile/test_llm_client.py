"""An endpoint that fails, stalls, drips, floods and lies; and what of it reaches a message."""

from __future__ import annotations

import asyncio
import email.utils
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import llm_stub as stub
from llm_stub import Stub

from hilum.errors import RunError, UsageError
from hilum.io.llm_client import LlmClient, LlmLimits, LlmReply, _retry_after_s
from hilum.io.llm_endpoint import endpoint_of, is_loopback

KEY = "sk-canary-0123456789"
PATIENT = LlmLimits(read_s=20, total_s=30, max_bytes=1 << 20, attempts=2, backoff_s=0.01, max_pause_s=0.5)
FAST = replace(PATIENT, read_s=0.3, total_s=0.8)
"""For servers that never end; a busy machine may well take this long for an honest reply."""
MESSAGES = [
    {"role": "system", "content": "rules"},
    {"role": "user", "content": "MARK\nsecret report\nMARK\n"},
]


def ask(server: Stub | str, limits: LlmLimits = PATIENT, times: int = 1) -> LlmReply:
    url = server if isinstance(server, str) else server.url

    async def run() -> list[LlmReply]:
        async with LlmClient(endpoint_of(url, "m", allow_http=True), limits) as client:
            return [await client.chat(MESSAGES, {"temperature": 0, "seed": 3}) for _ in range(times)]

    return asyncio.run(run())[-1]


def failure(server: Stub | str, limits: LlmLimits = PATIENT) -> RunError:
    with pytest.raises(RunError) as caught:
        ask(server, limits)
    said = f"{caught.value} {caught.value.__cause__!r}"
    assert KEY not in said and "secret report" not in said and "<" not in said
    return caught.value


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HILUM_LLM_KEY", KEY)


def in_turn(*behaviours: stub.Behaviour):
    return lambda number, report: behaviours[min(number, len(behaviours) - 1)]


def test_a_right_reply_and_what_was_sent_for_it() -> None:
    with Stub(in_turn(stub.saying("hello"))) as server:
        reply = ask(server)
        handler = server.seen[0]
    assert reply == LlmReply("hello", True, 100, 10)
    assert handler.path == "/v1/chat/completions" and handler.headers["authorization"] == f"Bearer {KEY}"
    assert handler.body == {"model": "m", "messages": MESSAGES, "temperature": 0, "seed": 3}


def test_without_a_key_no_header_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HILUM_LLM_KEY")
    with Stub(in_turn(stub.saying("hello"))) as server:
        ask(server)
        assert server.seen[0].headers.get("authorization") is None


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_tried_again(code: int) -> None:
    with Stub(in_turn(stub.status(code), stub.saying("hello"))) as server:
        assert ask(server).text == "hello" and len(server.seen) == 2


@pytest.mark.parametrize(
    ("code", "kind"),
    [(c, "LLM_STATUS") for c in (400, 413, 422)] + [(c, "LLM_REFUSED") for c in (401, 403, 404)],
)  # fmt: skip
def test_what_will_not_pass_is_not_tried_again(code: int, kind: str) -> None:
    with Stub(in_turn(stub.status(code))) as server:
        error = failure(server)
        assert error.code == kind and f"HTTP {code}" in str(error) and len(server.seen) == 1


def test_attempts_are_bounded() -> None:
    with Stub(in_turn(stub.status(500))) as server:
        assert failure(server).code == "LLM_STATUS" and len(server.seen) == 2


def test_of_an_error_body_only_a_known_word_is_shown() -> None:
    body = b'{"error": {"message": "secret report, %s", "code": "context_length_exceeded"}}' % KEY.encode()
    with Stub(in_turn(stub.status(400, body))) as server:
        assert "context_length_exceeded" in str(failure(server))
    for word in (b'"johndoe"', b'["context_length_exceeded"]', b"null", b'"%s"' % KEY.encode()):
        with Stub(in_turn(stub.status(400, b'{"error": {"code": %s}}' % word))) as server:
            assert "(" not in str(failure(server)).replace("(file", "")


def test_retry_after_is_honoured_up_to_a_bound() -> None:
    for asked in ("1", "86400"):
        with Stub(in_turn(stub.status(429, retry_after=asked), stub.saying("hello"))) as server:
            start = time.monotonic()
            assert ask(server).text == "hello"
            # Half a second is the longest pause that is granted here.
            assert 0.45 <= time.monotonic() - start < 30, asked


def test_retry_after_may_be_a_date_or_nonsense() -> None:
    soon = email.utils.formatdate(time.time() + 20, usegmt=True)
    assert 15 < (_retry_after_s(soon) or 0) <= 20
    assert _retry_after_s("7") == 7 and _retry_after_s("Mon, 01 Jan 1990 00:00:00 GMT") == 0
    for nonsense in (None, "", "soon", "-3", "1e9", "9" * 400, "Mon, 99 Foo 2020"):
        assert _retry_after_s(nonsense) is None, nonsense


def test_one_who_is_asked_to_wait_makes_all_wait() -> None:
    arrived: list[float] = []

    def behaviour(number: int, report: str) -> stub.Behaviour:
        arrived.append(time.monotonic())
        return stub.saying("hello") if number else stub.status(429, retry_after="1")

    async def run(url: str) -> None:
        async with LlmClient(endpoint_of(url, "m"), PATIENT) as client:
            first = asyncio.create_task(client.chat(MESSAGES, {}))
            while not client._quiet_until_s:
                await asyncio.sleep(0.01)
            await client.chat(MESSAGES, {})
            await first

    with Stub(behaviour) as server:
        asyncio.run(run(server.url))
    assert len(arrived) == 3 and min(arrived[1:]) - arrived[0] > 0.4


@pytest.mark.parametrize(
    ("behaviour", "code", "words"),
    [
        (stub.stalling, "LLM_TIMEOUT", "silence for 0.3 s"),
        (stub.dripping, "LLM_TIMEOUT", "no whole response in 0.8 s"),
        (stub.dripping_headers, "LLM_TIMEOUT", "no whole response in 0.8 s"),
        (stub.breaking_off, "LLM_UNREACHABLE", "broken exchange"),
        (stub.flooding, "LLM_TOO_LONG", "more than 1048576 bytes"),
        (stub.status(200, b"x" * (2 << 20)), "LLM_TOO_LONG", "more than"),
        (stub.status(200, b"\x1f\x8b", content_encoding="gzip"), "LLM_REPLY", "compressed"),
        (lambda h: h.wfile.write(b"SSH-2.0-hello\r\n\r\n"), "LLM_UNREACHABLE", "broken exchange"),
    ],
)  # fmt: skip
def test_bad_behaviour_ends_in_time_with_a_code(behaviour: stub.Behaviour, code: str, words: str) -> None:
    with Stub(in_turn(behaviour)) as server:
        start = time.monotonic()
        error = failure(server, FAST if code == "LLM_TIMEOUT" else PATIENT)
        assert time.monotonic() - start < 30
        assert error.code == code and words in str(error)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>not here</html>",
        b"[]",
        b'"text"',
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": null}}]}',
        b'{"choices": [{"message": {"content": ["a"]}}]}',
        b'{"choices": [{"message": "text"}]}',
        b'{"choices": {"0": 1}}',
        b"[" * 100_000,
        b'{"choices": [{"message": {"content": "a"}}], "usage": 1}'[:-1],
        b"\xff\xfe",
    ],
)  # fmt: skip
def test_what_is_no_completion_is_refused_after_all_attempts(content: bytes) -> None:
    with Stub(in_turn(stub.status(200, content))) as server:
        assert failure(server).code == "LLM_REPLY" and len(server.seen) == 2


@pytest.mark.parametrize("usage", [b"null", b"7", b'{"prompt_tokens": -1, "completion_tokens": "x"}', b"{}"])
def test_odd_counts_of_tokens_are_none(usage: bytes) -> None:
    body = b'{"choices": [{"message": {"content": "a"}, "finish_reason": "length"}], "usage": %s}' % usage
    with Stub(in_turn(stub.status(200, body))) as server:
        assert ask(server) == LlmReply("a", False)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed_not_even_on_the_same_host(code: int) -> None:
    with Stub(in_turn(stub.right)) as other:
        for target in (f"{other.url}/chat/completions", "/v1/other"):
            with Stub(in_turn(stub.status(code, location=target))) as server:
                assert failure(server).code == "LLM_REDIRECT" and len(server.seen) == 1
        assert other.seen == []


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        assert failure(url).code == "LLM_UNREACHABLE"
    assert failure("http://a-host-that-is-not.invalid/v1").code == "LLM_UNREACHABLE"


def test_a_proxy_never_sees_what_goes_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with Stub() as proxy, Stub(in_turn(stub.saying("hello"))) as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert ask(server).text == "hello" and proxy.seen == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000/v1",
        "ftp://localhost/v1",
        "file:///etc/passwd",
        "http://",
        "https:///v1",
        "http://localhost:port/v1",
        "http://localhost:0/v1",
        "http://[::1/v1",
        f"https://user:{KEY}@host.example/v1",
        f"https://host.example/v1?key={KEY}",
        f"https://host.example/v1#{KEY}",
        "http://host.example/v1",
        "http://localhost.example/v1",
        "http://127.0.0.1.example/v1",
        "http://2130706433/v1",
        "http://0.0.0.0/v1",
        "http://192.168.0.1/v1",
    ],
)  # fmt: skip
def test_an_endpoint_that_is_not_safe_is_refused(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        endpoint_of(url, "m")
    assert caught.value.code == "LLM_ENDPOINT" and KEY not in str(caught.value)


def test_endpoints_that_are() -> None:
    for base in (
        "http://localhost:8000/v1",
        "http://127.0.0.1:8000/v1/",
        "http://[::1]:8000/v1/chat/completions",
    ):
        endpoint = endpoint_of(base, "m")
        assert endpoint.loopback and endpoint.url.endswith(":8000/v1/chat/completions")
    assert not endpoint_of("https://host.example/v1", "m").loopback
    assert endpoint_of("http://host.example/v1", "m", allow_http=True).host == "host.example"
    assert is_loopback("LOCALHOST") and is_loopback("127.9.9.9") and not is_loopback("")


@pytest.mark.parametrize("model", ["", "a\nb", "x" * 201, "\x1b[31m"])
def test_a_model_has_a_name(model: str) -> None:
    with pytest.raises(UsageError) as caught:
        endpoint_of("http://localhost/v1", model)
    assert caught.value.code == "LLM_MODEL"


def test_the_key_never_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = endpoint_of("http://localhost/v1", "m")
    assert endpoint.key == KEY and KEY not in repr(endpoint)
    bad: Any
    for bad in (f"{KEY}\r\nx: y", f"{KEY} {KEY}", "ключ", "k" * 5000):
        monkeypatch.setenv("HILUM_LLM_KEY", bad)
        with pytest.raises(UsageError) as caught:
            endpoint_of("http://localhost/v1", "m")
        assert (
            caught.value.code == "LLM_KEY" and bad not in str(caught.value) and KEY not in str(caught.value)
        )
    monkeypatch.setenv("HILUM_LLM_KEY", f"  {KEY}\n")
    assert endpoint_of("http://localhost/v1", "m").key == KEY
