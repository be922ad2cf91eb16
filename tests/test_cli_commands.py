"""Tests of the commands that are no recipes, and of the short names of recipes: help, files, errors, exit codes."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hf_distill import cli, cli_commands
from hf_distill.evaluation.results import ModelRow, Results

RECIPES = Path(__file__).parent.parent / "recipes"
COMMANDS = ("card", "evaluate", "export", "push", "report", "env")


def help_of(command: str, capsys) -> str:
    """Return what `hf-distill COMMAND -h` prints."""
    with contextlib.suppress(SystemExit):  # argparse leaves like this
        assert cli.main([command, "-h"]) == 0
    return capsys.readouterr().out


def make_run(folder: Path, cosine: float = 0.9) -> Path:
    """A run with results, without a model."""
    results = Results(folder.name)
    results.put(ModelRow("student", folder.name, metrics={"test": {"stsb_spearman": cosine}}))
    results.put(ModelRow("teacher", "tiny/teacher", metrics={"test": {"stsb_spearman": 0.95}}))
    folder.mkdir(parents=True)
    results.write(folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_works(command, capsys):
    text = help_of(command, capsys)
    (example,) = re.findall(r"^example:\n +(hf-distill .*)$", text, re.M)
    program, name, *arguments = shlex.split(example)
    assert (program, name) == ("hf-distill", command)
    if command in cli._ALIASES:
        known = (RECIPES / f"{cli._ALIASES[command]}.py").read_text()
        assert not arguments[0].startswith("-")
        for option in arguments[1:]:
            assert not option.startswith("--") or re.search(rf"^    {option[2:]}: ", known, re.M), option
    else:
        assert cli.build_parser().parse_args([name, *arguments]).command == command


@pytest.mark.parametrize("alias", ["evaluate", "push"])
def test_short_names_launch_the_recipe_with_the_run_first(alias, monkeypatch):
    launched = []
    monkeypatch.setattr(cli, "launch", lambda name, arguments: launched.append((name, arguments)) or 7)
    assert cli.main([alias, "runs/mine", "--flag"]) == 7
    assert cli.main([alias, "--run", "runs/mine"]) == 7
    recipe = cli._ALIASES[alias]
    assert launched == [(recipe, ["--run", "runs/mine", "--flag"]), (recipe, ["--run", "runs/mine"])]
    monkeypatch.setattr(cli, "launch", lambda name, arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli.main([alias, "runs/mine"]) == 130


@pytest.mark.parametrize("alias", ["evaluate", "push"])
def test_short_names_have_the_help_of_the_recipe(alias, capsys):
    assert cli.recipe_docstring(cli._ALIASES[alias]).splitlines()[0] in help_of(alias, capsys)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["card", "nowhere"], "There is no folder nowhere."),
        (["export", "nowhere", "target"], "There is no folder nowhere."),
        (["report", "nowhere"], "There is no run folder nowhere."),
        (["report", "empty", "nowhere"], "There is no run folder nowhere."),
        (["card", "empty"], "empty holds no student"),
        (["export", "empty", "target"], "empty holds no model"),
        (["report", "empty"], "results.json"),
        (["card", "edited"], "edited by hand"),
        (["export", "edited", "full"], "full is not empty"),
    ],
)
def test_what_is_refused_is_two_lines_and_exit_code_1(tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    path = make_run(tmp_path / "edited") / "results.json"
    (tmp_path / "edited" / "model").mkdir()
    path.write_text(path.read_text().replace("0.9,", "0.99,").replace("0.9\n", "0.99\n"))
    Path("full").mkdir()
    Path("full/mine.txt").write_text("kept")
    assert cli.main(arguments) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"hf-distill {arguments[0]}: error: ")
    assert says in first
    assert second == f"Try `hf-distill {arguments[0]} --help`."
    assert not Path("target").exists()
    assert [name.name for name in Path("full").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("arguments", [["card"], ["export", "runs/mine"], ["report"], ["card", "x", "--unknown"]])
def test_a_wrong_command_line_is_two_lines_and_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_ctrl_c_is_130(monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_commands, "write_card", interrupted)
    assert cli.main(["card", "runs/mine"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_commands_pass_everything_on(monkeypatch, capsys):
    calls = []
    for name in ("write_card", "export", "report"):
        monkeypatch.setattr(cli_commands, name, lambda *a, _name=name, **k: calls.append((_name, a, k)) or "written")
    for line in (
        "card R --repo_id a/b",
        "card R --target C",
        "export S T --no_check --onnx",
        "export S T --repo_id a/b",
        "report A B --output F",
    ):
        assert cli.main(line.split()) == 0
    assert calls == [
        ("write_card", ("R", "a/b", None), {}),
        ("write_card", ("R", None, "C"), {}),
        ("export", ("S", "T", None), {"check": False, "onnx": True}),
        ("export", ("S", "T", "a/b"), {"check": True, "onnx": False}),
        ("report", (["A", "B"], "F", "stsb_spearman"), {}),
    ]
    assert capsys.readouterr().out == "written\n" * 5


def test_report_of_one_run_and_elsewhere(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    assert cli.main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert "0.9000" in (run / "report.html").read_text()
    elsewhere = tmp_path / "new" / "page.html"
    assert cli.main(["report", str(run), "--output", str(elsewhere)]) == 0
    assert elsewhere.read_text() == (run / "report.html").read_text()
    assert cli.main(["report", str(run), "--output", str(tmp_path / "folder")]) == 0
    assert (tmp_path / "folder" / "report.html").is_file()


def test_report_of_several_runs_compares_them(tmp_path, capsys):
    runs = [make_run(tmp_path / "runs" / name, cosine) for name, cosine in (("one", 0.81), ("two", 0.82))]
    assert cli.main(["report", *map(str, runs), "--output", str(tmp_path / "both.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "both.html")
    text = (tmp_path / "both.html").read_text()
    for word in ("one", "two", "0.81", "0.82"):
        assert word in text
    assert cli.main(["report", *map(str, runs)]) == 0
    assert (tmp_path / "runs" / "comparison.html").is_file()
    assert cli.main(["report", *map(str, runs), "--metric", "nonsense"]) == 1


def test_recipes_name_an_unknown_field_and_the_closest(tmp_path):
    for path in RECIPES.glob("*.py"):
        assert "TrlParser" not in path.read_text(), f"{path.name} reads its fields without parse_arguments"
    config = tmp_path / "mine.yaml"
    config.write_text("tokens_per_bach: 100\n")
    command = [sys.executable, str(RECIPES / "cache_teacher.py"), "--config", str(config)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert "'tokens_per_bach' (did you mean 'tokens_per_batch'?)" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("name", "fields", "texts"),
    [
        ("deltanet_minilm_full", {}, 512),  # 256 pairs
        ("deltanet_minilm_full", {"contrastive_weight": 0.0}, 256),
        ("deltanet_minilm_full", {"contrastive_weight": {0: 1.0, 500: 0.0}}, 512),
        ("deltanet_minilm_full", {"token_budget": 8192}, 64),  # counts the tokens of both texts of a pair
        ("layers2_minilm", {"token_budget": None, "per_device_train_batch_size": 32}, 32),
    ],
)
def test_memory_is_estimated_for_both_texts_of_a_pair(name, fields, texts):
    config = yaml.safe_load((RECIPES / "configs" / "embedding" / f"{name}.yaml").read_text()) | fields
    assert cli_commands.memory_arguments(config, bf16=False)["batch_size"] == texts


def test_env_estimates_what_the_full_config_needs():
    config = yaml.safe_load((RECIPES / "configs" / "embedding" / "deltanet_minilm_full.yaml").read_text())
    both, one = (cli_commands.environment(config | {"contrastive_weight": weight}) for weight in (1.0, 0.0))
    assert both["memory_for"]["batch_size"] == 512
    assert both["memory"]["activations"] > 1.9 * one["memory"]["activations"]
