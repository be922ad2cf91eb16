"""Tests of the command line: speed of the help, what it teaches, what it passes on, exit codes and signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_distill import cli, cli_commands

RECIPES = Path(__file__).parent.parent / "recipes"

# A recipe that says how it was started, then does what it is told.
FAKE_RECIPE = '''"""Pretend to train: a recipe for tests.

accelerate launch recipes/fake.py --config NAME
"""
import os, sys, time
from pathlib import Path
folder = Path(sys.argv[-1])
rank = os.environ.get("RANK", "0")
(folder / f"started{rank}").write_text("\\n".join([os.environ.get("WORLD_SIZE", "1"), *sys.argv[1:]]))
if "--exit" in sys.argv:
    sys.exit(int(sys.argv[sys.argv.index("--exit") + 1]))
try:
    while "--wait" in sys.argv:
        time.sleep(0.05)
except KeyboardInterrupt:
    time.sleep(0.5)
    (folder / "saved").write_text("checkpoint")
    sys.exit(130)
'''
START = """
import sys
from pathlib import Path
from hf_distill import cli
cli.recipes_folder = lambda: Path(sys.argv[1])
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.fixture
def fake_recipes(tmp_path: Path) -> Path:
    """A recipes folder with one recipe, one training config and the real accelerate configs."""
    folder = tmp_path / "recipes"
    (folder / "configs" / "family").mkdir(parents=True)
    (folder / "fake.py").write_text(FAKE_RECIPE)
    (folder / "configs" / "family" / "tiny.yaml").write_text("# A tiny one.\nmax_length: 16\n")
    (folder / "accelerate_configs").symlink_to(RECIPES / "accelerate_configs")
    return folder


def start(recipes: Path, *arguments: str) -> subprocess.Popen:
    """Start the command line on a folder of recipes."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE_")}
    return subprocess.Popen(
        [sys.executable, "-c", START, str(recipes), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 200.0) -> None:
    """Wait until a file exists."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{path.name} did not appear"
        time.sleep(0.05)


def test_help_answers_at_once():
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        result = subprocess.run([sys.executable, "-m", "hf_distill.cli", "--help"], capture_output=True, text=True)
        times.append(time.perf_counter() - begin)
    assert result.returncode == 0
    assert min(times) < 2.0
    for name in ("env", "embedding_distill", "cache_teacher", "evaluate_student"):
        assert name in result.stdout


def test_version(capsys):
    import hf_distill

    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert hf_distill.__version__ in capsys.readouterr().out


def test_no_command_prints_help(capsys):
    assert cli.main([]) == 2
    assert "commands:" in capsys.readouterr().out


def test_unknown_recipe_names_the_closest_and_all(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["embedding-distil"])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "Did you mean embedding_distill?" in message
    for name in cli.recipe_names():
        assert name in message


def test_short_help_teaches_configs_and_launching(capsys):
    assert cli.main(["embedding_distill", "-h"]) == 0
    text = capsys.readouterr().out
    assert cli.recipe_docstring("embedding_distill").splitlines()[0] in text
    for folder in ("configs", "accelerate_configs"):
        for path in (RECIPES / folder).rglob("*.yaml"):
            assert path.stem in text
            first = path.read_text().splitlines()[0]
            assert first.startswith("# "), f"{path} must start with a comment that says what it is"
            assert first[2:] in text


def test_long_help_adds_the_fields_of_the_recipe(fake_recipes, monkeypatch, capfd):
    monkeypatch.setattr(cli, "recipes_folder", lambda: fake_recipes)
    (fake_recipes / "fake.py").write_text('"""Fake."""\nimport sys\nprint("FIELDS", sys.argv[1:])\n')
    assert cli.main(["fake", "--help"]) == 0
    assert "FIELDS ['--help']" in capfd.readouterr().out


def test_launcher_options_are_split_off(fake_recipes, monkeypatch):
    monkeypatch.setattr(cli, "recipes_folder", lambda: fake_recipes)
    given = ["--config", "tiny", "--lr", "1", "--accelerate_config", "single_cpu", "--num_processes=2", "--flag"]
    command = cli._launcher_arguments("fake", given)
    config, accelerate = fake_recipes / "configs/family/tiny.yaml", fake_recipes / "accelerate_configs/single_cpu.yaml"
    before = ["--config_file", str(accelerate), "--num_processes", "2"]
    assert command == [*before, str(fake_recipes / "fake.py"), "--config", str(config), "--lr", "1", "--flag"]


def test_config_that_is_a_file_or_unknown_stays_as_it_is(tmp_path, fake_recipes, monkeypatch):
    monkeypatch.setattr(cli, "recipes_folder", lambda: fake_recipes)
    mine = tmp_path / "tiny.yaml"
    mine.write_text("a: 1\n")
    assert cli.find_config(str(mine)) == str(mine)
    assert cli.find_config("unheard_of") == "unheard_of"


def test_unknown_accelerate_config_lists_the_shipped_ones(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["embedding_distill", "--accelerate_config", "nonsense"])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "nonsense" in message
    assert "fsdp2" in message


@pytest.mark.parametrize("code", [0, 3])
def test_exit_code_passes_through(fake_recipes, tmp_path, code):
    process = start(fake_recipes, "fake", "--config", "tiny", "--exit", str(code), str(tmp_path))
    _, errors = process.communicate(timeout=240)
    assert process.returncode == code
    assert "Traceback" not in errors
    world, *arguments = (tmp_path / "started0").read_text().splitlines()
    assert world == "1"
    assert arguments[:2] == ["--config", str(fake_recipes / "configs" / "family" / "tiny.yaml")]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_reaches_the_recipe_and_sets_the_exit_code(fake_recipes, tmp_path, signum, code):
    process = start(fake_recipes, "fake", "--wait", str(tmp_path))
    wait_for(tmp_path / "started0", process)
    time.sleep(0.3)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == code
    assert "Traceback" not in errors
    if signum == signal.SIGINT:
        assert (tmp_path / "saved").read_text() == "checkpoint"


def test_multi_cpu_starts_two_processes(fake_recipes, tmp_path):
    process = start(fake_recipes, "fake", "--accelerate_config", "multi_cpu", "--exit", "0", str(tmp_path))
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, output + errors
    for rank in (0, 1):
        assert (tmp_path / f"started{rank}").read_text().splitlines()[0] == "2"


def test_env_as_json(capsys):
    assert cli.main(["env", "--json", "--config", "deltanet_minilm"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"hardware", "versions", "memory", "memory_for"}
    assert result["memory"]["total"] == sum(size for part, size in result["memory"].items() if part != "total")
    assert result["memory_for"]["mixer"] == "ridge"


def test_env_tables(capsys):
    assert cli.main(["env", "--config", "layers3_minilm"]) == 0
    text = capsys.readouterr().out
    for word in ("hardware", "bf16", "versions", "sentence-transformers", "optimizer", "layers=3", "mixer=attention"):
        assert word in text


@pytest.mark.parametrize("path", sorted((RECIPES / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_has_an_estimate(path):
    memory = cli_commands.environment(cli.read_config(str(path)))["memory"]
    assert 2**20 < memory["total"] < 64 * 2**30


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "no such file"), ("- a\n- b\n", "field: value"), ("a: [1\n", "not valid YAML")],
)
def test_env_bad_config(tmp_path, capsys, text, says):
    path = tmp_path / "bad.yaml"
    if text is not None:
        path.write_text(text)
    assert cli.main(["env", "--config", str(path)]) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no such file, and no shipped config. Shipped: tiny."),
        ("a: [1\n", "not valid YAML"),
        ("3\n", "found int"),
    ],
)
def test_a_bad_config_is_refused_before_anything_is_launched(fake_recipes, monkeypatch, capsys, tmp_path, text, says):
    monkeypatch.setattr(cli, "recipes_folder", lambda: fake_recipes)
    path = tmp_path / "bad.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        cli.main(["fake", "--config", str(path), str(tmp_path)])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert says in lines[0]
    assert lines[-1] == "Try `hf-distill fake --help`."
    assert not (tmp_path / "started0").exists()
