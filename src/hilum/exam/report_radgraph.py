"""RadGraph's F1, when its library and its weights are on this machine; Hilum never fetches them.

The library runs in a process of its own that can open no connection, since it fetches its weights on first
use. Without library or weights the answer is that it is not there, with the reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
CHILD = """
import json, socket, sys
def refuse(*a, **k):
    raise OSError("no connection is opened")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
asked = json.load(sys.stdin)
from radgraph import F1RadGraph
found = F1RadGraph(reward_level="all")(hyps=asked["reports"], refs=asked["references"])
sys.stdout.write("\\nRADGRAPH " + json.dumps([[float(v) for v in part] for part in found[1]]))
"""


@dataclass(frozen=True)
class RadGraph:
    """RadGraph F1 of each report: entities; with relations; complete. None where it is not there, and why."""

    simple: list[float] | None
    partial: list[float] | None
    complete: list[float] | None
    reason: str = ""


def radgraph(reports: Sequence[str], references: Sequence[str], *, timeout_s: float = 3600.0) -> RadGraph:
    """RadGraph F1 of each report, or why there is none. Opens no connection, downloads nothing."""
    asked = json.dumps({"reports": list(reports), "references": list(references)})
    command = [sys.executable, "-c", CHILD]
    try:
        done = subprocess.run(
            command, input=asked, capture_output=True, text=True, timeout=timeout_s, check=False,
            env={**os.environ, **OFFLINE},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return RadGraph(None, None, None, f"no answer in {timeout_s:g} s")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        why = "its library is not installed" if "No module named 'radgraph'" in last else last[:200]
        return RadGraph(None, None, None, why)
    try:
        parts = json.loads(done.stdout.rpartition("RADGRAPH ")[2])
        if [len(part) for part in parts] != [len(reports)] * 3:
            raise ValueError
    except ValueError:
        return RadGraph(None, None, None, "its library answers in another form than is known here")
    return RadGraph(*parts)
