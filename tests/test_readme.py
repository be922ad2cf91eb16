"""The README's Python runs as it stands, and its commands name files and targets that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_commands_name_what_exists() -> None:
    targets = re.findall(r"^make (\w+)", README, flags=re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets
    assert all(f"\n{target}:" in makefile for target in targets)
    files = set(re.findall(r"recipes/[\w/]+\.(?:py|yaml)", README))
    assert "recipes/embedding_distill.py" in files
    assert not [file for file in files if not (ROOT / file).is_file()]


@pytest.mark.slow
def test_the_python_example_runs(
    teacher_path: str, tiny_texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

    from hf_distill.trainers.students import build_student

    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL).group(1)
    assert len(code.strip().splitlines()) <= 6
    student = build_student("layers", SentenceTransformer(teacher_path, device="cpu"), num_layers=1)
    names = {"texts": tiny_texts, "student": student, "Dataset": Dataset}
    exec(code.replace("max_minutes=10", "max_steps=2, disable_tqdm=True"), names)  # noqa: S102
    assert names["trainer"].state.global_step == 2
    assert (tmp_path / "teacher_cache").is_dir()
