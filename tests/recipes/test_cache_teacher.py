"""The recipe that caches a teacher: its config, its summary, its errors."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from datasets import Dataset

from hf_distill.data import sources
from hf_distill.teachers.cached import TeacherCache
from hf_distill.teachers.projection import ProjectedCache, project_cache

RECIPE = Path(__file__).parents[2] / "recipes" / "cache_teacher.py"


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cache_teacher", RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["cache_teacher"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def text_file(tmp_path: Path, tiny_texts: list[str]) -> str:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(tiny_texts) + "\n")
    return str(path)


@pytest.fixture
def options(tiny_sentence_transformer: str, text_file: str, tmp_path: Path) -> dict:
    return {
        "teacher": tiny_sentence_transformer,
        "source": text_file,
        "output_dir": str(tmp_path / "caches"),
        "device": "cpu",
        "dtype": "float32",
    }


def test_every_field_has_help(recipe: ModuleType) -> None:
    for field in fields(recipe.CacheTeacherConfig):
        assert len(field.metadata["help"]) > 10, field.name


def test_summary_and_cache(recipe: ModuleType, options: dict, tiny_texts: list[str], capsys) -> None:
    config = recipe.CacheTeacherConfig(
        **options, limit=50, shard_rows=16, hidden_layers=[1], teacher_name="org/tiny", verify=True, prompt="a: "
    )
    result = recipe.main(config)
    assert (result["rows"], result["dim"], result["new_rows"], result["reused_rows"]) == (50, 32, 50, 0)
    assert result["bytes_per_row"] > 2 * 32 + 8
    assert result["tokens"] > 50
    assert result["tokens_per_second"] > 0
    assert result["minutes"] > 0
    shown = capsys.readouterr().out
    for part in ("org/tiny", "bytes per row", "tokens per second", "minutes", "manifest"):
        assert part in shown
    cache = TeacherCache.open(options["output_dir"])
    assert (cache.spec.signals, cache.spec.prompt, cache.spec.teacher) == (
        ("embedding", "hidden_1"),
        "a: ",
        "org/tiny",
    )
    assert recipe.main(config)["reused_rows"] == 50


def test_projection_truncation_and_length(recipe: ModuleType, options: dict) -> None:
    result = recipe.main(recipe.CacheTeacherConfig(**options, truncate_dim=20, project_dim=8, max_seq_length=16))
    assert (result["dim"], result["new_rows"]) == (8, 64)
    cache = TeacherCache.open(options["output_dir"])
    assert (cache.spec.truncate_dim, cache.spec.max_seq_length, cache.dim) == (20, 16, 20)
    projected = project_cache(cache, 8)
    assert isinstance(projected, ProjectedCache)
    np.testing.assert_allclose(np.linalg.norm(projected.embeddings([1, 2]), axis=1), 1, atol=1e-6)


def test_pairs_are_cached_once_each(recipe: ModuleType, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = Dataset.from_dict({"anchor": ["a river", "a mill"], "positive": ["a wheel", "a river"]})
    monkeypatch.setattr(sources, "load_source", lambda *_, **__: pairs)
    assert recipe.load_texts(recipe.CacheTeacherConfig(**options)) == ["a river", "a mill", "a wheel"]


def test_bad_configs(recipe: ModuleType, options: dict) -> None:
    with pytest.raises(ValueError, match="--limit is 0"):
        recipe.CacheTeacherConfig(**options, limit=0)
    with pytest.raises(FileNotFoundError):
        recipe.main(recipe.CacheTeacherConfig(**{**options, "source": "nowhere/texts.txt"}))
    with pytest.raises(FileNotFoundError, match="no-such/teacher"):
        recipe.main(recipe.CacheTeacherConfig(**{**options, "teacher": "no-such/teacher"}))
    assert not Path(options["output_dir"]).exists()


def test_command_line_reports_one_clear_error(options: dict) -> None:
    command = [sys.executable, str(RECIPE), "--source", options["source"], "--output_dir", options["output_dir"]]
    found = subprocess.run([*command, "--teacher", "no-such/teacher"], capture_output=True, text=True, timeout=120)
    assert found.returncode == 1
    assert "error: The model 'no-such/teacher' could not be loaded" in found.stderr
    assert "Traceback" not in found.stderr


def test_hub_id_of_a_packaged_teacher(recipe: ModuleType, options: dict, teacher_path: str) -> None:
    """Without a network the id finds the installed package, and the manifest names the id, not a folder."""
    name = "sentence-transformers/all-MiniLM-L6-v2"
    result = recipe.main(recipe.CacheTeacherConfig(**{**options, "teacher": name}, limit=2))
    assert result["dim"] == 384
    assert TeacherCache.open(options["output_dir"]).spec.teacher == name
