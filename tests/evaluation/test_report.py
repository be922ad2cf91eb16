"""The report: the table's cells, Markdown, the README, and a picture that is one."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

from hf_distill.evaluation.report import (
    footnotes,
    markdown_table,
    print_report,
    readme_text,
    rich_table,
    table_lines,
    write_report,
)
from hf_distill.evaluation.results import ModelRow, Results
from hf_distill.evaluation.speed import ModelSize, ModelSpeed
from hf_distill.evaluation.tokenizer_stats import TokenizerStats
from hf_distill.hub.own_code import own_code

LOG = [
    {"step": 0, "eval_stsb_spearman": 0.6, "eval_fidelity_cosine_1_32": 0.7, "eval_fidelity_cosine_129_256": 0.4},
    *(
        {"step": step, "loss": 1 / step, "loss/cosine": 0.5 / step, "loss/gram": 0.5 / step}
        for step in range(10, 400, 10)
    ),
    {"step": 200, "eval_stsb_spearman": 0.8, "eval_fidelity_cosine_1_32": 0.9, "eval_fidelity_cosine_129_256": 0.8},
    {"step": 390, "eval_stsb_spearman": 0.7, "eval_fidelity_cosine_1_32": 0.91, "eval_fidelity_cosine_129_256": 0.7},
]


@pytest.fixture
def results():
    def row(role, quality, speed, note=""):
        metrics = {
            "stsb_spearman": quality,
            "retrieval_ndcg_at_10": quality / 2,
            "retrieval_ndcg_at_10_129_256": 0.3 * quality,
        }
        if role != "teacher":
            metrics |= {
                "fidelity_cosine": quality,
                "fidelity_cosine_1_32": quality,
                "fidelity_pair_rho": 0.5,
                "fidelity_pair_rho_1_32": 0.5,
            }
        if role == "student":
            metrics["int8_spearman"] = 0.79
        size = ModelSize(22_713_216, 90.85, 23.0)
        memory = None if role == "control" else 3 * speed
        timing = ModelSpeed(speed, 20 * speed, 5.25, 1234.5, "a machine, 2 threads", "bfloat16", memory)
        return ModelRow(
            role, f"the {role}", note, size, timing, {"test": metrics, "validation": {"stsb_spearman": quality}}
        )

    rows = [
        row("student", 0.84, 120.0),
        row("teacher", 0.80, 100.0),
        row("control", 0.2, 120.0, "60 steps, random weights"),
    ]
    return Results(
        "minilm-run", rows, 200, "validation stsb_spearman", command="accelerate launch x", seed=3, minutes=12.5
    )


def test_table_cells(results):
    rows, sections = table_lines(results)
    assert [row.role for row in rows] == ["teacher", "student", "control"]
    assert [title for title, _ in sections] == ["test", "validation", "size and speed"]
    cells = {line.label.strip(): (line.values, line.retained) for line in sections[0][1]}
    assert cells["STS-B Spearman"] == (["0.8000", "0.8400", "0.2000"], "105.0")
    assert cells["Spearman with int8"] == (["", "0.7900", ""], "98.8")  # of the teacher's full Spearman
    assert cells["129–256 tokens"] == (["0.2400", "0.2520", "0.0600"], "105.0")
    assert cells["cosine to teacher"] == (["", "0.8400", "0.2000"], "")
    assert cells["mean of teacher's"] == (["", "105.0 %", "25.0 %"], "105.0")
    assert "pair-rho to teacher" in cells
    assert sum(line.label.strip() == "1–32 tokens" for line in sections[0][1]) == 1  # pair-rho per bucket is left out
    costs = {line.label: (line.values, line.retained) for line in sections[2][1]}
    assert costs["parameters"] == (["22.71M"] * 3, "1.00×")
    assert costs["texts/s"] == (["100.0", "120.0", "120.0"], "1.20×")
    assert costs["latency p95, ms"] == (["1,234"] * 3, "1.00×")
    assert costs["peak memory, MB"] == (["300.0", "360.0", ""], "1.20×")


def test_quantised_embeddings_and_tasks_of_mteb_have_their_lines(results):
    student, teacher = results.row("student").metrics["test"], results.row("teacher").metrics["test"]
    student |= {"embedding_int8_ndcg_at_10": 0.4, "embedding_binary_spearman": 0.6}
    student |= {"mteb_Banking77Classification_accuracy": 0.7, "mteb_STSBenchmark.v2_cosine_spearman": 0.8}
    teacher |= {"mteb_Banking77Classification_accuracy": 0.8}
    cells = {line.label.strip(): (line.values, line.retained) for line in table_lines(results)[1][0][1]}
    assert cells["int8 vectors, 4× smaller"] == (["", "0.4000", ""], "100.0")  # of the teacher's float32 retrieval
    assert cells["binary vectors, 32×"] == (["", "0.6000", ""], "75.0")
    assert cells["Banking77Classification"] == (["0.8000", "0.7000", ""], "87.5")
    assert cells["STSBenchmark.v2"] == (["", "0.8000", ""], "")
    notes = "\n".join(footnotes(results))
    assert "nothing scored again in float" in notes
    assert "computed by mteb" in notes


def test_turkish_tasks_and_tokenizers_have_their_lines(results):
    stats = TokenizerStats("mft", 9, 90, 32_768, 3.3, 29.7, 27.0, 60.0, 0.0, 0.6, 0.2, 1e5)
    for role, value in (("teacher", 0.8), ("student", 0.6)):
        row = results.row(role)
        row.metrics["test"] |= {"stsb_tr_spearman": value, "stsb_tr_pearson": value, "bitext_recall_at_1": value / 2}
        row.tokenizer = stats
    sections = dict(table_lines(results)[1])
    cells = {line.label.strip(): (line.values, line.retained) for line in sections["test"]}
    assert cells["STSb-TR Pearson"] == (["0.8000", "0.6000", ""], "75.0")
    assert cells["TR→EN recall@1"] == (["0.4000", "0.3000", ""], "75.0")
    costs = {line.label: line.values for line in sections["size and speed"]}
    assert costs["tokens a word"] == ["3.3", "3.3", ""]
    notes = "\n".join(footnotes(results))
    assert "finds the English one" in notes
    assert "no tokenizer was trained on" in notes


def test_pair_rho_per_bucket_where_there_is_no_cosine(results):
    for row in results.rows:
        row.metrics["test"] = {key: value for key, value in row.metrics["test"].items() if "cosine" not in key}
    labels = [line.label.strip() for line in table_lines(results)[1][0][1]]
    assert labels[labels.index("pair-rho to teacher") + 1] == "1–32 tokens"


def test_markdown_has_one_width(results):
    lines = markdown_table(results).splitlines()
    assert lines[0] == "|  | teacher | student | random init | % retained |"
    assert {line.count("|") for line in lines} == {6}
    assert "| STS-B Spearman | 0.8000 | 0.8400 | 0.2000 | 105.0 |" in lines


def test_terminal_table_fits_80_columns(results):
    from rich.console import Console

    results.put(ModelRow("untrained", "u", metrics={"test": {"stsb_spearman": 0.5}}))
    stream = io.StringIO()
    Console(file=stream, width=80).print(rich_table(results))
    text = stream.getvalue()
    assert "…" not in text
    assert all(word in text for word in ("untrained", "random init", "% retained", "Spearman with int8"))


def test_footnotes_tell_the_truth(results):
    notes = "\n".join(footnotes(results))
    assert "random init: the control (60 steps, random weights)" in notes
    assert "step 200, chosen by validation stsb_spearman" in notes
    assert "Test scores were computed once" in notes
    assert "a machine, 2 threads, bfloat16" in notes
    assert results.versions["python"] in notes
    for row in results.rows:
        row.metrics.pop("test")
    assert "Test scores" not in "\n".join(footnotes(results))


def test_write_report(results, tmp_path):
    files = write_report(results, tmp_path / "run", LOG)
    assert {name: path.name for name, path in files.items()} == {
        "results": "results.json",
        "curves": "curves.png",
        "readme": "README.md",
        "html": "report.html",
    }
    text = files["readme"].read_text(encoding="utf-8")
    assert text.startswith("---\nlibrary_name: sentence-transformers\n")
    assert "![Loss and validation curves](curves.png)" in text
    assert "trust_remote_code" not in text
    assert str(tmp_path) not in text
    assert "seed: 3" in text
    assert "12.5 minutes" in text
    (tmp_path / "run" / "model").mkdir()
    (tmp_path / "run" / "model" / "modeling_x.py").touch()
    write_report(results, tmp_path / "run", LOG)
    assert 'SentenceTransformer("model", trust_remote_code=True)' in files["readme"].read_text(encoding="utf-8")


def test_no_log_no_curves(results, tmp_path, caplog):
    files = write_report(results, tmp_path)
    assert set(files) == {"results", "readme", "html"}
    assert "curves.png" not in files["readme"].read_text(encoding="utf-8")


def test_picture(tmp_path):
    from matplotlib.image import imread

    from hf_distill.evaluation.curves import plot_curves, series

    reference = {"teacher": {"stsb_spearman": 0.75}, "random init": {"stsb_spearman": 0.1}}
    path = plot_curves(LOG, tmp_path / "sub" / "c.png", "a run", reference, selected_step=200)
    pixels = imread(path)
    assert pixels.shape[1] > 3 * 600  # three panels
    assert pixels.shape[0] < pixels.shape[1] / 2
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50
    assert list(path.parent.iterdir()) == [path]
    steps, values = series([{"step": 2, "a": 1.0}, {"step": 1, "a": 3.0}, {"step": 2, "a": 5.0}, {"b": 1.0}], "a")
    assert (steps.tolist(), values.tolist()) == ([1, 2], [3.0, 5.0])  # a resumed run logs a step again
    losses_only = plot_curves([entry for entry in LOG if "loss" in entry], tmp_path / "l.png")
    assert imread(losses_only).shape[1] < pixels.shape[1] / 2
    with pytest.raises(ValueError, match="no loss and no score"):
        plot_curves([{"step": 1, "learning_rate": 0.1}], tmp_path / "n.png")


def test_without_matplotlib_the_report_is_still_written(results, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("curves", "overview", "html_report"):
        monkeypatch.delitem(sys.modules, f"hf_distill.evaluation.{name}", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'hf_distill\[plot\]'"):
        import hf_distill.evaluation.curves  # noqa: F401
    assert set(write_report(results, tmp_path, LOG)) == {"results", "readme"}


def test_print_report(results, capsys):
    print_report(results)
    out = capsys.readouterr().out
    assert "STS-B Spearman" in out
    assert "chosen by validation stsb_spearman" in " ".join(out.split())


def test_readme_of_a_run_without_scores(tmp_path):
    text = readme_text(Results("empty"), False, own_code(tmp_path))
    assert "# empty" in text
    assert "\n\n\n" not in text
    assert "pip install" not in text
    (tmp_path / "tokenization_mft.py").touch()
    text = readme_text(Results("empty"), False, own_code(tmp_path))
    assert "```bash\npip install --no-deps turkish-tokenizer==" in text
    assert ", trust_remote_code=True)" in text
