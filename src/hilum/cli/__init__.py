"""The command line. Commands are loaded when they are called: `hilum --help` imports click and nothing heavy.

Exit codes: 0 ok, 2 usage, 3 input refused, 4 partial, 5 internal.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from keyword import iskeyword

import click

from hilum import __version__
from hilum.errors import HilumError, RunError

COMMANDS = {
    "check": "Say whether an input can be trusted, and what reading it would do.",
    "read": "Read one chest CT: findings, maps, organs, report, page.",
    "locate": "Say at which height of a scan a sentence belongs: mm, slice, image number.",
    "demo": "Read a public chest CT with the model that ships.",
    "index": "Keep the scans of a cohort as rows that can be searched.",
    "search": "Find scans that are like some words, or like a scan.",
    "prepare": "Make a cohort's manifest: every scan judged, every refusal listed.",
    "phantom": "Make chest CTs with known truth, with reports.",
    "features": "Read a cohort's scans in windows, once, and keep them for training.",
    "train": "Train a model from a recipe.",
    "import": "Public checkpoints as encoders of Hilum.",
    "exam": "Measure a model: every number with its interval.",
    "models": "Presets and models: size, what trained them, licence.",
    "reports": "What reports say, and what they point at.",
}
"""Name -> one line for `--help`. `hilum.cli.<name>` holds `@click.command() def <name>`; where that is a word
of Python itself, `<name>_`."""

USAGE, INTERNAL, INTERRUPTED = 2, 5, 130


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports `hilum.cli.<name>`; None for a name that is none of ours."""
        if cmd_name not in COMMANDS:
            return None
        name = f"{cmd_name}_" if iskeyword(cmd_name) else cmd_name
        found = getattr(import_module(f"hilum.cli.{name}"), name)
        if not isinstance(found, click.Command):
            raise RunError("INTERNAL", "a command module holds its click command", got=type(found).__name__)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hilum")
def cli() -> None:
    """Reads a 3D chest CT and says what is abnormal, how sure it is and where.

    Research use only, not a medical device.
    """


def main(arguments: list[str] | None = None) -> None:
    """Entry point: runs a command, turns every error into one line and an exit code, and exits."""
    given = sys.argv[1:] if arguments is None else arguments
    sys.exit(run(given))


def run(arguments: list[str]) -> int:
    """Runs a command and returns its exit code. With `HILUM_DEBUG=1` an unexpected error keeps its
    traceback."""
    as_json = "--json" in arguments
    try:
        code = cli.main(args=arguments, prog_name="hilum", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "")
        return 0
    except click.ClickException as error:
        error.show()
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return INTERRUPTED
    except HilumError as error:
        return _report(error, as_json)
    except BrokenPipeError:
        # The reader of our output went away (`hilum ... | head`): nothing left to say, nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("HILUM_DEBUG") == "1":
            raise
        return _report(_unexpected(error), as_json)


def _report(error: HilumError, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps({"error": error.as_dict(), "exit_code": error.exit_code}, ensure_ascii=False))
    else:
        click.echo(" ".join(f"hilum: {error.message}".split()), err=True)
    return error.exit_code


def _unexpected(error: Exception) -> HilumError:
    return RunError(
        "INTERNAL",
        "an error has a code of its own",
        got=f"{type(error).__name__}: {error}"[:500],
        hint="This is a fault of Hilum; run again with HILUM_DEBUG=1 for the traceback.",
    )
