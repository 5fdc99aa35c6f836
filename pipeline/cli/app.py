"""The program: its commands in titled groups, its exit codes, and how errors are shown."""

import functools
import io
import os
import sys
from collections.abc import Callable
from typing import Any, ParamSpec

import typer
from typer.core import TyperCommand, TyperGroup

from relabel.runtime.errors import InputError
from relabel.runtime.typed import MAX_INT, shown

INTERRUPTED = 130  # what a shell reports after Ctrl-C
BROKEN_PIPE = 141  # what a shell reports after SIGPIPE

P = ParamSpec("P")


class TitledGroups(TyperGroup):
    """Lists the commands in `--help` under the title of their group."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        commands: list[Any] = [self.get_command(ctx, name) for name in self.list_commands(ctx)]
        width = formatter.width - 6 - max(len(command.name) for command in commands)
        groups: dict[str, list[tuple[str, str]]] = {}
        for command in commands:
            groups.setdefault(command.rich_help_panel, []).append((command.name, command.get_short_help_str(width)))
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl(rows)


class CheckedCommand(TyperCommand):
    """Refuses what no option takes: nothing or blanks (Path("") is the working directory), and numbers beyond 64 bits."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for before, argument in zip(["", *args], args, strict=False):
            option, equals, value = argument.partition("=")
            if not argument.strip() or (option.startswith("--") and equals and not value.strip()):
                name = option.strip() or (before if before.startswith("--") else "an argument")
                raise typer.BadParameter("it is empty; give a value, or leave the option out", ctx, param_hint=name)
        rest = super().parse_args(ctx, args)
        for name, number in ctx.params.items():
            if isinstance(number, int) and abs(number) > MAX_INT:
                raise typer.BadParameter(f"{shown(number)} is too large", ctx, param_hint=f"--{name.replace('_', '-')}")
        return rest


app = typer.Typer(
    name="relabel",
    help="Localised multi-label maps for image classification: annotate images once, then train on crops whose targets say"
    " what the crop shows.",
    cls=TitledGroups,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def set_up() -> None:
    from relabel.runtime.bus_errors import explain_bus_errors
    from relabel.runtime.logs import show_logs

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path may have bytes that are no text
    show_logs()
    explain_bus_errors()


def command(group: str, name: str | None = None) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Register a function as a command of a group, with its errors made readable."""

    def register(function: Callable[P, None]) -> Callable[P, None]:
        return app.command(name, cls=CheckedCommand, rich_help_panel=group)(readable_errors(function))

    return register


def readable_errors(function: Callable[P, None]) -> Callable[P, None]:
    """A user's mistake becomes one message and exit code 1; only bugs give a traceback."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
            sys.stdout.flush()
        except InputError as error:
            print(f"relabel: {error}", file=sys.stderr)
            raise typer.Exit(1) from error
        except BrokenPipeError as error:  # the reader of our output, such as head, has closed it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(BROKEN_PIPE) from error
        except OSError as error:  # a disk that is full, read-only or gone; finished files are complete
            print(f"relabel: {error}", file=sys.stderr)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            print(
                "relabel: interrupted. Finished work is kept; run the command again (train: with --resume) to continue",
                file=sys.stderr,
            )
            raise typer.Exit(INTERRUPTED) from error

    return run
