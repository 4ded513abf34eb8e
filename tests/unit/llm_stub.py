"""A chat-completions server on this machine that answers as it is told: right, wrong, late, or not at all."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[["Handler"], None]

FACTS = {
    "pleural_effusion": ("pleural effusion", "no pleural effusion"),
    "lung_nodule": ("nodule", "no nodule"),
    "cardiomegaly": ("cardiomegaly", "no cardiomegaly"),
}


@dataclass(frozen=True)
class Request:
    """What arrived; a handler itself serves several requests of one connection."""

    path: str
    body: dict[str, Any]
    report: str
    headers: dict[str, str]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        asked = json.loads(body)
        self.report = report_in(asked)
        with self.server.lock:
            number = len(self.server.seen)
            self.server.seen.append(Request(self.path, asked, self.report, dict(self.headers)))
        behaviour = self.server.behaviour(number, self.report)
        try:
            behaviour(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "content_length" not in headers:
            self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


class Stub(ThreadingHTTPServer):
    """Answers every request by `behaviour(number, report)`; a context manager.

    `seen` holds the requests, `asked` the reports in order of arrival.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, behaviour: Callable[[int, str], Behaviour] | Behaviour | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviour = behaviour or (lambda number, report: right)
        self.seen: list[Request] = []
        self.lock = threading.Lock()
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def asked(self) -> list[str]:
        return [h.report for h in self.seen]

    def __enter__(self) -> Stub:
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self.over.set()
        self.shutdown()
        self.thread.join()
        self.server_close()

    def handle_error(self, *arguments: Any) -> None:
        pass


def report_in(body: dict[str, Any]) -> str:
    """The report of a request: what stands between the two marks."""
    _, report, *_ = body["messages"][-1]["content"].split(body["messages"][-1]["content"].split("\n", 1)[0])
    return report.strip("\n")


def true_answers(report: str) -> list[dict[str, Any]]:
    """What an honest model says about the few findings that it knows."""
    lower, answers = report.lower(), []
    for name, (there, absent) in FACTS.items():
        if (at := lower.find(absent)) >= 0:
            answers.append({"id": name, "answer": "no", "quote": report[at : at + len(absent)]})
        elif (at := lower.find(there)) >= 0:
            answers.append({"id": name, "answer": "yes", "quote": report[at : at + len(there)]})
    return answers


def completion(text: object, **more: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | more
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def saying(text: object, **more: Any) -> Behaviour:
    """A behaviour: a proper completion with this text."""
    return lambda handler: handler.send(200, completion(text, **more), content_type="application/json")


def answering(answers: list[Any]) -> Behaviour:
    """A behaviour: a proper completion with these answers."""
    return saying(json.dumps({"answers": answers}))


def right(handler: Handler) -> None:
    """The honest model."""
    answering(true_answers(handler.report))(handler)


def status(code: int, content: bytes = b"{}", **headers: str) -> Behaviour:
    """A behaviour: this HTTP status."""
    return lambda handler: handler.send(code, content, **headers)


def stalling(handler: Handler) -> None:
    """Takes the request and says nothing."""
    handler.server.over.wait(30)
    handler.close_connection = True


def dripping(handler: Handler) -> None:
    """One byte of the body at a time, for ever; never silent for long."""
    handler.send(200, b"", content_length="100000")
    _drip(handler)


def dripping_headers(handler: Handler) -> None:
    """One byte of the headers at a time, for ever."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
    _drip(handler)


def _drip(handler: Handler) -> None:
    while not handler.server.over.wait(0.02):
        handler.wfile.write(b" ")
        handler.wfile.flush()
    handler.close_connection = True


def breaking_off(handler: Handler) -> None:
    """Announces a body and closes in its middle."""
    handler.send(200, completion("half of i")[:40], content_length="4000")
    handler.close_connection = True


def flooding(handler: Handler) -> None:
    """A body without end, as fast as it goes."""
    handler.send(200, b"", content_length=str(10**12))
    while not handler.server.over.is_set():
        handler.wfile.write(b" " * 65536)
    handler.close_connection = True
