"""`hilum reports`: what reports say and what they point at; one file per subcommand."""

from __future__ import annotations

import click

from hilum.cli.reports_labels import labels
from hilum.cli.reports_sections import sections
from hilum.cli.reports_snippets import snippets
from hilum.cli.reports_structure import structure


@click.group()
def reports() -> None:
    """What reports say, and what they point at."""


for command in (labels, sections, snippets, structure):
    reports.add_command(command)
