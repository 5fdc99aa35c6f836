"""Advice can be followed: an option that a message names is one of the command that says it, or is said to be another's."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from pipeline.cli.app import app
from tests.conftest import REPOSITORY

ROOMS = ("relabel", "annotate", "train", "pipeline")
OPTION = re.compile(r"--[a-z][a-z0-9-]+")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OPTIONS = {
    name: {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for name, command in COMMANDS.items()
}
Place = tuple[str, str]  # a module and one of its top-level names
LOADS_FOR_VERIFY = {  # they say themselves that the options are those of annotate
    ("pipeline.recorded", "recorded_annotator"),
    ("pipeline.recorded", "recorded_teachers"),
    ("pipeline.spot_check_regions", "answers_again"),
}
UNREACHED = {  # conditions that some commands never meet
    ("relabel.models.classifier", "--input-size"): {"eval", "train"},  # they pass none
    ("relabel.models.classifier", "--num-classes"): {
        "annotators",
        "eval",
        "train",
    },  # at least one class folder, or none given
    ("train.recipe", "--set"): {"recipes"},
    ("relabel.runtime.workers", "--workers"): {"corrupt", "export-labels", "find-noise", "report"},  # list shards, no more
    ("pipeline.show.seen", "--classes"): {"report"},  # default_classes goes on without them
}


@functools.cache
def names_of(module: str) -> tuple[dict[str, ast.AST], dict[str, Place]]:
    """What a module defines at its top level, and where the names that it imports from this project come from."""
    tree = ast.parse(file_of(module).read_text(encoding="utf-8"))
    defined: dict[str, ast.AST] = {}
    imported: dict[str, Place] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined |= {name.id: node for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    for inner in ast.walk(tree):
        if isinstance(inner, ast.ImportFrom) and inner.module and inner.module.split(".")[0] in ROOMS:
            imported |= {alias.asname or alias.name: (inner.module, alias.name) for alias in inner.names}
    return defined, imported


def file_of(module: str) -> Path:
    path = REPOSITORY / module.replace(".", "/")
    return path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"


def used_by(place: Place) -> Iterator[Place]:
    """The places that the code at a place names."""
    defined, imported = names_of(place[0])
    for node in ast.walk(defined[place[1]]):
        if isinstance(node, ast.Name):
            if node.id in defined:
                yield place[0], node.id
            if node.id in imported:
                yield imported[node.id]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported:
            yield ".".join(imported[node.value.id]), node.attr  # of a module


def reached_from(command: str) -> set[Place]:
    function = COMMANDS[command].callback
    reached: set[Place] = set()
    waiting: list[Place] = [(function.__module__, function.__name__), ("pipeline.cli.app", "readable_errors")]
    while waiting:
        place = waiting.pop()
        if command == "verify" and place in LOADS_FOR_VERIFY:
            continue
        if place not in reached and file_of(place[0]).exists() and place[1] in names_of(place[0])[0]:
            reached.add(place)
            waiting += used_by(place)
    return reached


def texts_at(place: Place) -> Iterator[tuple[int, str]]:
    """Line and text of every string there, except docstrings and default values; {} stands for what is filled in."""
    tree = names_of(place[0])[0][place[1]]
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and isinstance(node.body[0], ast.Expr):
            skipped.add(id(node.body[0].value))
        if isinstance(node, ast.arguments):
            skipped |= {id(default) for default in (*node.defaults, *node.kw_defaults)}
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            parts = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield node.lineno, "".join(parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.lineno, node.value


def cannot_be_followed(command: str, text: str) -> Iterator[str]:
    """The options in a text that neither the command has, nor a command that the text names just before."""
    for match in OPTION.finditer(text):
        owners = [name for name, options in OPTIONS.items() if match[0] in options]
        before = re.split(r"[;.]", text[: match.start()])[-1]
        if owners and command not in owners and not re.search(rf"\b({'|'.join(owners)})\b", before):
            yield match[0]


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_options_in_messages_are_of_the_command_or_said_to_be_of_another(command: str) -> None:
    found = [
        f"{place[0]}:{line}: {option} in {text!r}"
        for place in sorted(reached_from(command))
        for line, text in texts_at(place)
        for option in cannot_be_followed(command, text)
        if command not in UNREACHED.get((place[0], option), ())
    ]
    assert not found, "\n".join(found)


def test_unfit_advice_would_be_found() -> None:
    assert ("relabel.models.weights", "load_weights") in reached_from("eval")
    assert ("annotate.loop", "annotate_shards") not in reached_from("verify")
    assert list(cannot_be_followed("eval", "pass --num-classes 3")) == ["--num-classes"]
    assert not list(cannot_be_followed("eval", "pass --num-classes to annotate; annotate --num-classes 3 does it"[28:]))
