"""Help texts with headings: for groups of a command's options, and for groups of the program's commands."""

from collections.abc import Iterator, MutableMapping
from difflib import get_close_matches
from importlib import import_module
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


class LazyCommands(MutableMapping[str, click.Command]):
    """Commands by name; one that was named by its module is loaded when it is asked for."""

    def __init__(self) -> None:
        self._found: dict[str, click.Command | tuple[str, str]] = {}

    def __getitem__(self, name: str) -> click.Command:
        found = self._found[name]
        if isinstance(found, tuple):
            module, attribute = found
            found = self._found[name] = getattr(import_module(module), attribute)
        return found

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._found[name] = command

    def __delitem__(self, name: str) -> None:
        del self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def name(self, name: str, module: str, attribute: str) -> None:
        """The command is this attribute of a module."""
        self._found[name] = module, attribute


class HeadedGroup(click.Group):
    """A group of such commands, which may have headings too."""

    command_class = Command

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.commands = self._lazy = LazyCommands()
        self.sections: dict[str, list[str]] = {}
        """Heading -> names of commands; without any, all commands are under one."""

    def add_section(self, title: str, *commands: click.Command) -> None:
        """Add commands, to be shown under `title`."""
        for command in commands:
            self.add_command(command)
            self.sections.setdefault(title, []).append(command.name or "")

    def name_section(self, title: str, **attributes: str) -> None:
        """Add commands by name, to be shown under `title`: each `module:attribute` is loaded when it is needed."""
        for name, where in attributes.items():
            module, _, attribute = where.partition(":")
            self._lazy.name(name, module, attribute)
            self.sections.setdefault(title, []).append(name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; for an unknown name the error lists similar ones."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            listed = [name for names in self.sections.values() for name in names] or list(self.commands)
            if near := get_close_matches(args[0], listed):
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
