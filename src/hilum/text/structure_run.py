"""Questions about many reports to one endpoint: each text once, what is in the cache never.

What comes out depends on the reports, the bank and the replies, not on how many workers asked or how often
the run was killed. A report whose questions failed has every answer unknown, and a code.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from hilum.errors import HilumError, ReportError, RunError
from hilum.io.answer_cache import AnswerCache, answer_key
from hilum.io.llm_client import FATAL, JsonMode, LlmClient, LlmLimits
from hilum.io.llm_endpoint import LlmEndpoint
from hilum.io.report_table import TableReport
from hilum.text.asked_text import AskedText, asked_text
from hilum.text.questions import Bank, Item
from hilum.text.reply_json import NoReply
from hilum.text.structure import (
    PROMPT_VERSION,
    UNKNOWN,
    Structured,
    as_payload,
    from_payload,
    merged,
    prompt,
    read_reply,
    reply_schema,
    tri_state,
)

Status = Literal["answered", "empty", "refused", "failed"]

MAX_REPORT_CHARS = 100_000
UNREACHABLE_IN_A_ROW = 3
"""Reports that find nobody, one after the other, before the others are no longer tried."""
REPLIES = 2
"""A reply that cannot be read is asked for once more, with another seed."""
_POLL_S = 0.1
_NOT_ANSWERED = {"answer": UNKNOWN}
"""One for all records: most answers are this one, and a cohort has many reports."""


@dataclass(frozen=True)
class Asking:
    """How reports are asked about.

    Args:
        bank: the questions. endpoint: who answers. cache: where answers are kept.
        seed, max_tokens, json_mode: parameters of every request, part of what an answer is kept under.
        workers: requests at a time. limits: bounds of one request.
    """

    bank: Bank
    endpoint: LlmEndpoint
    cache: AnswerCache
    seed: int = 0
    max_tokens: int = 8192
    json_mode: JsonMode = "none"
    workers: int = 4
    limits: LlmLimits = field(default_factory=LlmLimits)

    def key(self, system: str, report: str) -> str:
        """What an answer is kept under; the system message holds the rules and this request's questions."""
        return answer_key(
            report=_sha256(report), bank=self.bank.sha256, model=self.endpoint.model, prompt=PROMPT_VERSION,
            system=_sha256(system), temperature=0, seed=self.seed, max_tokens=self.max_tokens,
            json_mode=self.json_mode,
        )  # fmt: skip

    @cached_property
    def named(self) -> dict[str, Any]:
        """The bank as every record names it."""
        return {"name": self.bank.name, "version": self.bank.version, "sha256": self.bank.sha256}

    def parameters(self, items: Sequence[Item], attempt: int) -> dict[str, Any]:
        """Of the request for a reply; the first attempt has the seed itself."""
        given: dict[str, Any] = {"temperature": 0, "seed": self.seed + attempt, "max_tokens": self.max_tokens}
        if self.json_mode == "object":
            given["response_format"] = {"type": "json_object"}
        elif self.json_mode == "schema":
            schema = {"name": "answers", "strict": True, "schema": reply_schema(items)}
            given["response_format"] = {"type": "json_schema", "json_schema": schema}
        return given


@dataclass
class StructureRun:
    """What a run gives.

    Args:
        records: one per report, JSON-ready, in the order of the table. failed: rows with their code.
        counts: reports by status and fault, answers, and what did not count.
        spent: requests, tokens, answers from the cache: these depend on the cache, the rest does not.
    """

    records: list[dict[str, Any]]
    failed: list[dict[str, Any]]
    counts: dict[str, int]
    spent: dict[str, int]


def structure_reports(
    rows: Sequence[TableReport], asking: Asking, progress: Callable[[int], None] | None = None
) -> StructureRun:
    """Asks about every report that has a text.

    Args:
        rows: of `hilum.io.report_table.read_table`. asking: whom and what. progress: told 1 for every text.

    Raises:
        RunError: the first failure, when not one text was answered (`LLM_...`).
        OutputError: the cache cannot be written (`OUTPUT_UNWRITABLE`).
    """
    asked = [asked_text(row) for row in rows]
    texts = list(dict.fromkeys(a.text for a in asked if a.text))
    run = _Run(asking, progress or (lambda steps: None))
    _run_to_end(run.all(texts))
    failures = [e for e in map(run.outcomes.__getitem__, texts) if isinstance(e, HilumError)]
    if failures and len(failures) == len(texts):
        raise failures[0]
    return _told(rows, asked, asking, run)


def _run_to_end(work: Coroutine[Any, Any, None]) -> None:
    """Runs to the end; beside a loop that runs already, as in a notebook, in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with ThreadPoolExecutor(1) as beside:
        beside.submit(asyncio.run, work).result()


class _Run:
    """One pass over the texts: outcomes by text, and what it cost."""

    def __init__(self, asking: Asking, progress: Callable[[int], None]) -> None:
        self.asking, self.progress = asking, progress
        self.outcomes: dict[str, Structured | HilumError] = {}
        self.spent = Counter[str](requests=0, asked=0, from_cache=0, prompt_tokens=0, reply_tokens=0)
        self.stopped: RunError | None = None
        self.unreachable = 0

    async def all(self, texts: list[str]) -> None:
        waiting = iter(texts)
        async with LlmClient(self.asking.endpoint, self.asking.limits, self.asking.seed) as client:
            workers = min(self.asking.workers, len(texts))
            tasks = [asyncio.create_task(self._work(client, waiting)) for _ in range(workers)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            self.spent["requests"] = client.requests

    async def _work(self, client: LlmClient, waiting: Iterator[str]) -> None:
        for text in waiting:
            try:
                self.outcomes[text] = await self._text(client, text)
                self.unreachable = 0
            except (RunError, ReportError) as error:
                self.outcomes[text] = error
                self._judge(error)
            self.progress(1)

    def _judge(self, error: HilumError) -> None:
        """No more questions once it is clear that none will be answered; the cache still counts."""
        self.unreachable = self.unreachable + 1 if error.code == "LLM_UNREACHABLE" else 0
        hopeless = error.code in FATAL or self.unreachable >= UNREACHABLE_IN_A_ROW
        if hopeless and self.stopped is None and isinstance(error, RunError):
            self.stopped = error

    async def _text(self, client: LlmClient, text: str) -> Structured:
        if len(text) > MAX_REPORT_CHARS:
            raise ReportError(
                "REPORT_TOO_LONG", "a report fits into one question",
                expected=f"<= {MAX_REPORT_CHARS} characters", got=f"{len(text)} characters",
            )  # fmt: skip
        return merged([await self._call(client, items, text) for items in self.asking.bank.calls])

    async def _call(self, client: LlmClient, items: Sequence[Item], text: str) -> Structured:
        """The answers to one request's questions, from the cache or asked for under a claim."""
        messages = prompt(items, text)
        key = self.asking.key(messages[0]["content"], text)
        while True:
            if (kept := self._kept(key, items, text)) is not None:
                return kept
            if self.stopped is not None:
                raise self.stopped
            claim = self.asking.cache.claim(key)
            if claim is not None:
                break
            await asyncio.sleep(_POLL_S)
        with claim:
            # Between the look and the claim another run may have got its answer.
            if (kept := self._kept(key, items, text)) is not None:
                return kept
            structured = await self._ask(client, messages, items, text)
            self.asking.cache.put(key, as_payload(structured))
        self.spent["asked"] += 1
        return structured

    def _kept(self, key: str, items: Sequence[Item], text: str) -> Structured | None:
        payload = self.asking.cache.get(key)
        kept = None if payload is None else from_payload(items, text, payload)
        self.spent["from_cache"] += kept is not None
        return kept

    async def _ask(
        self, client: LlmClient, messages: list[dict[str, str]], items: Sequence[Item], text: str
    ) -> Structured:
        for attempt in range(REPLIES):
            reply = await client.chat(messages, self.asking.parameters(items, attempt))
            self.spent["prompt_tokens"] += reply.prompt_tokens
            self.spent["reply_tokens"] += reply.reply_tokens
            try:
                return read_reply(items, text, reply.text)
            except NoReply as error:
                why = str(error) if reply.whole else f"{error}; it was cut at {self.asking.max_tokens} tokens"
        raise RunError(
            "LLM_REPLY", "a reply is one JSON object with a list of answers", expected='{"answers": [...]}',
            got=why, hint="--json-mode schema holds a server to it; --max-tokens lengthens replies.",
        )  # fmt: skip


def _told(rows: Sequence[TableReport], asked: Sequence[AskedText], asking: Asking, run: _Run) -> StructureRun:
    records, failed = [], []
    counts = Counter[str](reports=len(rows), answered=0, failed=0)
    dropped = Counter[str]()
    for row, text in zip(rows, asked, strict=True):
        outcome = run.outcomes.get(text.text)
        record = _record(row, text, asking, outcome)
        records.append(record)
        counts[record["status"]] += 1
        counts.update(f for f in row.faults if f != "empty")
        dropped.update(record["dropped"])
        if isinstance(outcome, HilumError):
            failed.append({"row": row.row, "id": row.key, "code": outcome.code, "got": outcome.got})
    values = [a["answer"] for r in records if r["status"] == "answered" for a in r["answers"].values()]
    counts["answers"] = sum(v != UNKNOWN for v in values)
    counts["unknown"] = sum(v == UNKNOWN for v in values)
    spent = dict(run.spent) | {"cache_damaged": asking.cache.damaged}
    return StructureRun(records, failed, dict(counts) | dict(sorted(dropped.items())), spent)


def _record(
    row: TableReport, text: AskedText, asking: Asking, outcome: Structured | HilumError | None
) -> dict[str, Any]:
    """One line of the output. Every question stands there; what was not answered is unknown."""
    structured = outcome if isinstance(outcome, Structured) else Structured()
    status, code = _status(row, outcome)
    return {
        "row": row.row,
        "id": row.key,
        "status": status,
        "code": code,
        "faults": list(row.faults),
        "text_sha256": _sha256(text.text) if text.text else None,
        "bank": asking.named,
        "model": asking.endpoint.model,
        "prompt": PROMPT_VERSION,
        "findings": dict(tri_state(asking.bank, structured.answers)),
        "answers": _answers(asking.bank, structured, text),
        "dropped": dict(structured.dropped),
    }


def _status(row: TableReport, outcome: Structured | HilumError | None) -> tuple[Status, str | None]:
    """What became of a row, and the code of what stopped it."""
    if isinstance(outcome, HilumError):
        return "failed", outcome.code
    if outcome is not None:
        return "answered", None
    if row.refused:
        return "refused", "TEXT_ENCODING" if "undecodable" in row.faults else "COLUMN_MISSING"
    return "empty", "REPORT_EMPTY"


def _answers(bank: Bank, structured: Structured, text: AskedText) -> Mapping[str, dict[str, Any]]:
    told: dict[str, dict[str, Any]] = {}
    for item in bank.items:
        answer = structured.answers.get(item.id)
        if answer is None:
            told[item.id] = _NOT_ANSWERED
            continue
        value = list(answer.value) if isinstance(answer.value, tuple) else answer.value
        column, quote, span = text.cell_of(answer.span)
        told[item.id] = {"answer": value, "quote": quote, "column": column, "span": list(span)}
    return told


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
