"""A decoder in a process of its own: on damaged bytes GDCM can abort its process, so it gets one to abort.

The child is started once, on the first JPEG Lossless frame, and asked frame by frame over pipes: lengths,
JSON and raw bytes, nothing that could carry code. When it dies or stalls, the frame is refused and the next
frame gets a new child.
"""

from __future__ import annotations

import atexit
import json
import struct
import subprocess
import sys
import threading
import warnings
from typing import Any, BinaryIO, cast

import numpy as np

FRAME_TIMEOUT_S = 60.0
"""A 512 x 512 frame takes about 10 ms."""


class ChildFailed(Exception):
    """The decoder refused the frame, died or stalled; the message says which."""


def send(pipe: BinaryIO, facts: dict[str, Any], body: bytes) -> None:
    """Write one message: two lengths, JSON, bytes."""
    text = json.dumps(facts).encode()
    pipe.write(struct.pack("<IQ", len(text), len(body)) + text + body)
    pipe.flush()


def receive(pipe: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """Read one message.

    Raises:
        EOFError: the other side is gone.
    """
    head = pipe.read(12)
    if len(head) < 12:
        raise EOFError
    text_size, body_size = struct.unpack("<IQ", head)
    text, body = pipe.read(text_size), pipe.read(body_size)
    if len(body) < body_size or len(text) < text_size:
        raise EOFError
    return json.loads(text), body


class DecodeChild:
    """The parent's end. One frame at a time; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def decode(self, part: bytes, syntax: str, plugin: str, options: dict[str, Any]) -> np.ndarray:
        """One compressed frame -> stored values (rows, columns).

        Raises:
            ChildFailed: the frame cannot be decoded.
        """
        with self._lock:
            process = self._alive()
            stall = threading.Timer(FRAME_TIMEOUT_S, process.kill)
            stall.start()
            try:
                send(
                    cast(BinaryIO, process.stdin),
                    {"syntax": syntax, "plugin": plugin, "options": options},
                    part,
                )
                facts, body = receive(cast(BinaryIO, process.stdout))
            except (EOFError, OSError):
                self.close()
                raise ChildFailed("the decoder died or stalled on this frame") from None
            finally:
                stall.cancel()
        if "error" in facts:
            raise ChildFailed(str(facts["error"]))
        return np.frombuffer(body, dtype=np.dtype(facts["dtype"])).reshape(facts["shape"])

    def close(self) -> None:
        """End the child, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _alive(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            command = [sys.executable, "-m", "hilum.io.decode_child"]
            quiet = subprocess.DEVNULL
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet
            )
        return self._process


CHILD = DecodeChild()
"""The one child of this process."""


def serve(source: BinaryIO, target: BinaryIO) -> None:
    """The child's loop: decode what comes until the parent is gone."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder

    while True:
        try:
            facts, part = receive(source)
        except EOFError:
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # a decoder that has to guess has not decoded
                array, _ = get_decoder(facts["syntax"]).as_array(
                    encapsulate([part]),
                    raw=True,
                    index=0,
                    decoding_plugin=facts["plugin"],
                    **facts["options"],
                )
        except Exception as error:
            send(target, {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}, b"")
            continue
        send(target, {"dtype": array.dtype.str, "shape": list(array.shape)}, array.tobytes())


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
