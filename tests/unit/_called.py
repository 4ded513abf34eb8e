"""One command of the command line, called in this process."""

from __future__ import annotations

import json
from pathlib import Path

import click
from click.testing import CliRunner, Result

from hilum.errors import HilumError


class Called:
    """`Called(command)(arguments)` -> its result; errors are not yet turned into exit codes."""

    def __init__(self, command: click.Command) -> None:
        self.command = command

    def __call__(self, *arguments: str | Path, stdin: bytes | None = None) -> Result:
        told = [str(a) for a in arguments]
        return CliRunner().invoke(self.command, told, input=stdin, standalone_mode=False)

    def told(self, *arguments: str | Path, stdin: bytes | None = None) -> dict:
        """What it prints with --json."""
        result = self(*arguments, "--json", stdin=stdin)
        assert result.exception is None, result.exception
        return json.loads(result.stdout)

    def refusal(self, *arguments: str | Path, stdin: bytes | None = None) -> HilumError:
        """The error it ends with."""
        error = self(*arguments, stdin=stdin).exception
        assert isinstance(error, HilumError), error
        return error
