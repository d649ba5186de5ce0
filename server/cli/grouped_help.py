"""Help texts with headings: for groups of a command's options, and for groups of the program's commands."""

from difflib import get_close_matches
from typing import Any, Final

import click

OPTIONS: Final = "Options"
"""The heading of options that belong to no group."""


class GroupedOption(click.Option):
    """An option that the help shows under the heading `group`."""

    def __init__(self, *declarations: Any, group: str = OPTIONS, **more: Any) -> None:
        super().__init__(*declarations, **more)
        self.group = group


class Command(click.Command):
    """A command whose help has a section for each group of its options, in the order of their first options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, as click does for a command without groups."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if record is not None:
                group = option.group if isinstance(option, GroupedOption) else OPTIONS
                sections.setdefault(group, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


class Group(click.Group):
    """A group of such commands, which may have headings too."""

    command_class = Command

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.sections: dict[str, list[str]] = {}
        """Heading -> names of commands; without any, all commands are under one."""

    def add_section(self, title: str, *commands: click.Command) -> None:
        """Add commands, to be shown under `title`."""
        for command in commands:
            self.add_command(command)
            self.sections.setdefault(title, []).append(command.name or "")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; for an unknown name the error lists similar ones."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if near := get_close_matches(args[0], self.commands):
                error.message += f" Did you mean {' or '.join(near)}?"
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, each with the whole first sentence of its help."""
        if not self.sections:
            super().format_commands(ctx, formatter)
            return
        width = max(map(len, self.commands))
        for title, names in self.sections.items():
            commands = [self.commands[name] for name in names]
            rows = [(f"{each.name:<{width}}", each.get_short_help_str(formatter.width)) for each in commands]
            with formatter.section(title):
                formatter.write_dl(rows)
