"""recipes/push_student.py as a user types it, against the loopback Hub; its arguments and its errors."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "hub"))

from loopback import LoopbackHub  # noqa: E402
from small_run import make_run  # noqa: E402

RECIPE = Path(__file__).parents[2] / "recipes" / "push_student.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("push_student", RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def pushed(monkeypatch):
    """What reaches `push_student`."""
    from hf_distill.hub import push

    calls = []
    monkeypatch.setattr(push, "push_student", lambda *args, **options: calls.append((*args, options)) or "address")
    return calls


def run_recipe(arguments, environment):
    command = [sys.executable, str(RECIPE), *arguments]
    environment = {**environment, "PYTHONPATH": str(RECIPE.parents[1])}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_arguments(recipe, pushed, capsys):
    assert recipe.main(recipe.parse(["runs/x", "--hub_model_id", "user/x"])) == "address"
    recipe.main(
        recipe.parse(["--run", "runs/x", "--hub_model_id", "user/x", "--private", "--revision", "v2", "--no_check"])
    )
    message = {"commit_message": "Upload student"}
    assert pushed == [
        ("runs/x", "user/x", {"private": None, "revision": None, "check": True, **message}),
        ("runs/x", "user/x", {"private": True, "revision": "v2", "check": False, **message}),
    ]
    assert capsys.readouterr().out == "address\naddress\n"


@pytest.mark.parametrize(
    "arguments", [["runs/x"], ["--hub_model_id", "user/x"], ["runs/x", "--hub_model_id", "u/x", "--tokn", "1"]]
)
def test_wrong_arguments_are_refused(recipe, pushed, arguments, capsys):
    with pytest.raises((SystemExit, ValueError)):
        recipe.parse(arguments)
    assert pushed == []


def test_help_shows_an_example(recipe, capsys):
    with pytest.raises(SystemExit) as stopped:
        recipe.parse(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "accelerate launch recipes/push_student.py runs/deltanet_minilm --hub_model_id" in " ".join(text.split())
    assert "--private" in text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_on_the_hub(tiny_bert, tmp_path):
    run = make_run(tiny_bert, tmp_path / "runs" / "small")
    with LoopbackHub() as hub:
        done = run_recipe([str(run), "--hub_model_id", "user/small", "--private", "--no_check"], hub.env())
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().splitlines()[-1] == f"{hub.endpoint}/user/small"
        assert {"README.md", "model.safetensors", "results.json"} <= set(hub.files("user/small"))
        assert hub.repo("user/small").private

        (run / "results.json").unlink()
        failed = run_recipe([str(run), "--hub_model_id", "user/other"], hub.env())
        assert failed.returncode == 1
        assert failed.stderr.strip().splitlines()[-1].startswith("error: There are no results at")
        assert "Traceback" not in failed.stderr
        with pytest.raises(KeyError):
            hub.repo("user/other")


def test_offline_is_one_line(tmp_path):
    failed = run_recipe(
        [str(tmp_path), "--hub_model_id", "user/x"], {**os.environ, "HF_HUB_OFFLINE": "1", "HF_TOKEN": "x"}
    )
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1].startswith("error: user/x: HF_HUB_OFFLINE is set")
