"""Tests of a recipe's command line and YAML: what wins, and that a wrong field is named with the closest right one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hf_distill.trainers.recipe_arguments import parse_arguments


@dataclass
class Recipe:
    """Fields for the tests."""

    student: str = field(default="deltanet", metadata={"help": "Kind."})
    max_steps: int = 10
    bf16: bool = False


@dataclass
class More:
    """Another dataclass."""

    learning_rate: float = 1e-3


def parse(*arguments: str, **options) -> tuple[Recipe, More]:
    return parse_arguments((Recipe, More), arguments, **options)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("env: {UNUSED_HERE: 1}\nstudent: static\nmax_steps: 3\n")
    return path


def test_yaml_then_command_line(config, monkeypatch):
    monkeypatch.setenv("UNUSED_HERE", "0")
    recipe, more = parse("--config", str(config), "--max_steps", "5", "--bf16")
    assert recipe == Recipe("static", 5, True)
    assert more == More()
    assert parse(f"--config={config}")[0] == Recipe("static", 3)
    assert parse()[0] == Recipe()


def test_default_config_only_without_another(config, tmp_path, capsys):
    other = tmp_path / "other.yaml"
    other.write_text("max_steps: 7\n")
    assert parse(default_config=config)[0].max_steps == 3
    assert parse("--config", str(other), default_config=config)[0] == Recipe("deltanet", 7)
    with pytest.raises(SystemExit) as stop:
        parse("--help", default_config=tmp_path / "never read", description="What it does.")
    assert stop.value.code == 0
    assert "What it does." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("studnet: static\n", "mine.yaml has the unknown field 'studnet' (did you mean 'student'?)"),
        ("max-steps: 3\n", "'max-steps' (did you mean 'max_steps'?)"),
        ("max_stepz: 3\nqqq: 1\n", "the unknown fields 'max_stepz' (did you mean 'max_steps'?), 'qqq'."),
        ("student: [1\n", "not valid YAML"),
        ("- student\n", "found list"),
        ("", "found NoneType"),
    ],
)
def test_a_wrong_file_is_refused_by_name(config, text, says):
    config.write_text(text)
    with pytest.raises(ValueError) as error:
        parse("--config", str(config))
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--max_step", "3"], "The command line has the unknown field 'max_step' (did you mean 'max_steps'?)"),
        (["--learning-rates=3"], "'learning-rates' (did you mean 'learning_rate'?)"),
        (["stray"], "What is 'stray'?"),
        (["--config"], "--config needs a file"),
    ],
)
def test_a_wrong_command_line_is_refused_by_name(arguments, says):
    with pytest.raises(ValueError) as error:
        parse(*arguments)
    assert says in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        parse("--config", str(tmp_path / "nowhere.yaml"))
