"""Writes the JSON schema of `reading.json`: `python -m hilum.read.schema docs/reading.schema.json`."""

from __future__ import annotations

import json
import sys

from hilum.io.atomic import atomic_write
from hilum.read.reading import schema


def schema_text() -> str:
    """The schema as it stands in `docs/`."""
    return json.dumps(schema(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    with atomic_write(sys.argv[1]) as file:
        file.write(schema_text().encode("utf-8"))
