"""The model card: its metadata and its snippets, figures of the weights beside it and of no others, and honest gaps."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil

import numpy as np
import pytest
from huggingface_hub import ModelCard
from student_results import TEACHER, make_results, training

from hf_distill.data.sources import LOCAL_SOURCES
from hf_distill.evaluation.results import ModelRow, Results
from hf_distill.evaluation.training_summary import Origin
from hf_distill.hub import card, card_training, templates_folder
from hf_distill.hub.card import check_fingerprint, render_card, write_card, write_run_card
from hf_distill.hub.card_check import check_card, check_card_text
from hf_distill.hub.citations import papers_of
from hf_distill.hub.lineage import inherit_licence
from hf_distill.hub.markdown import cell, command_block, fenced, markdown_table, percent


@pytest.fixture(scope="module")
def saved(tiny_sentence_transformer, tmp_path_factory):
    """Kind to (folder, fingerprint) of a saved student; each is built once."""
    from sentence_transformers import SentenceTransformer

    from hf_distill.evaluation.score_cache import model_fingerprint
    from hf_distill.trainers.students import build_student

    source, built = SentenceTransformer(tiny_sentence_transformer, device="cpu"), {}

    def get(kind):
        if kind not in built:
            options = {"layers": {"num_layers": 1}, "static": {"static_dim": 16}, "deltanet": {"local_size": 3}}
            student = build_student(kind, source, **options[kind])
            folder = tmp_path_factory.mktemp("students") / f"my-{kind}"
            student.save(str(folder), create_model_card=False)
            built[kind] = folder, model_fingerprint(student)
        return built[kind]

    return get


@pytest.fixture
def deltanet(saved, tmp_path):
    """A folder of its own with a DeltaNet student, and results of it."""
    source, fingerprint = saved("deltanet")
    folder = shutil.copytree(source, tmp_path / "my-deltanet")
    return folder, make_results(fingerprint)


def snippets(text):
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("kind", ["deltanet", "layers", "static"])
def test_every_snippet_runs_as_it_stands(kind, saved, tmp_path, monkeypatch):
    source, fingerprint = saved(kind)
    folder = shutil.copytree(source, tmp_path / f"my-{kind}")
    path = write_card(folder, make_results(fingerprint, kind))
    text = path.read_text(encoding="utf-8")
    assert path == folder / "README.md"
    code = kind == "deltanet"
    assert ("trust_remote_code=True" in text) == ("custom_code" in check_card(folder).tags) == code
    monkeypatch.chdir(tmp_path)
    blocks = snippets(text)
    assert len(blocks) == (1 if kind == "static" else 2)
    vectors = []
    for block in blocks:
        names, out = {}, io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(block, names)  # noqa: S102
        assert "tensor(" in out.getvalue()
        vectors.append(np.asarray(names["vectors"]))
    if kind != "static":  # the two ways agree: first and last sentence are the same
        np.testing.assert_allclose(vectors[0][[0, 2]], vectors[1], atol=1e-5)


def test_metadata(deltanet):
    folder, results = deltanet
    data = ModelCard.load(write_card(folder, results, repo_id="user/my-student")).data
    assert {"custom_code", "knowledge-distillation", "hf_distill"} <= set(data.tags)
    assert (data.library_name, data.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert (data.license, data.language, data.base_model) == ("apache-2.0", ["en"], "org/teacher")
    assert data.datasets == ["sentence-transformers/all-nli"]
    assert data["teacher"] == "org/teacher"
    assert "base_model_relation" not in data
    assert data.model_name == "my-student"
    values = {(entry.dataset_type, entry.metric_type): entry.metric_value for entry in data.eval_results}
    measured = results.row("student").metrics["test"]
    assert values["mteb/stsbenchmark-sts", "cosine_spearman"] == measured["stsbenchmark_spearman"]  # all digits
    assert values["HfdStdlibRetrieval", "ndcg_at_10"] == measured["retrieval_ndcg_at_10"]
    assert {entry.dataset_split for entry in data.eval_results} == {"test"}


def test_what_the_card_says(deltanet):
    folder, results = deltanet
    text = render_card(folder, results)
    body = " ".join(text.split("---\n", 2)[2].split())
    for said in (
        "# tiny-run",
        "text of up to 64 tokens into 32 numbers",
        f"[org/teacher](https://huggingface.co/org/teacher/tree/{TEACHER.revision})",
        "0.7840 Spearman on STSBenchmark's test split, 98.0 % of its teacher's 0.8000",
        "9,800 tokens/s in float32 on a machine, 2 threads; slower than its teacher there (14,000 tokens/s, 0.70×)",
        "22.7M parameters, 90.8 MB in float32, 23.0 MB with int8 weights",
        "2.0 minutes of training on a machine, 2 threads, float32; 12.2 minutes for the whole run",
        "The weights are those of step 50, chosen by `stsb_spearman`",
        "trained from random weights, but shorter (33 steps)",
        "5 of 1,000 rows overlapped",
        "1 at step 0, 0.1 at step 500",
        "Reimers & Gurevych 2020",
        "`apache-2.0`, as the models that it comes from",
        "The spread over seeds: this is one run, seed 7.",
        "For *untrained* and *random init*: Retrieval in Python's documentation; 12 fields",
        "(mean cosine 0.941), not equal",
        "not counted",
        "--seed 7",
    ):
        assert said in body, said
    rows = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]]
        for line in text.splitlines()
        if "|" in line
    }
    assert rows["STSBenchmark, Spearman"] == ["0.8500", "0.8330", "0.7650", "0.3400", "98.0"]  # validation comes last
    assert rows["&nbsp;&nbsp;129–256 tokens"] == ["", "0.9310", "0.8550", "0.3800", ""]
    assert rows["tokens/s"] == ["14,000", "9,800", "", "", "0.70×"]
    assert "None" not in body
    assert "nan" not in re.findall(r"\w+", body)
    assert str(folder.parent) not in text


def test_tables_line_up(deltanet):
    text = render_card(*deltanet)
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 5
    for table in tables:
        assert len({len(line) for line in table.splitlines()}) == 1
        assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1


def test_pictures_and_pins(deltanet):
    folder, results = deltanet
    (folder / "curves.png").write_bytes(b"png")
    assert "](curves.png)" in render_card(folder, results, figures=["curves.png"])
    text = render_card(folder, results, repo_id="user/s", revision="v1", figures=[folder / "curves.png"])
    assert "](https://huggingface.co/user/s/resolve/v1/curves.png)" in text
    assert 'SentenceTransformer("user/s", revision="v1", trust_remote_code=True)' in text
    assert '`revision="<commit>"`' not in text  # it is pinned already
    with pytest.raises(FileNotFoundError, match=r"nothing\.png is not there"):
        render_card(folder, results, figures=["nothing.png"])
    outside = folder.parent / "o.png"
    outside.write_bytes(b"png")
    with pytest.raises(ValueError, match="would not travel with the model"):
        render_card(folder, results, figures=[outside])
    with pytest.raises(ValueError, match="a b"):
        render_card(folder, results, repo_id="a b")


def test_figures_of_other_weights_are_refused(deltanet):
    folder, results = deltanet
    row = results.row("student")
    for change, message in (
        ("0" * 64, "are of other weights than those in .*evaluate_student"),
        ("", "do not say which weights they are of"),
    ):
        row.fingerprint = change
        with pytest.raises(ValueError, match=message):
            write_card(folder, results)
    with pytest.raises(ValueError, match="no row of the student"):
        write_card(folder, Results("r", [ModelRow("teacher", "t")]))
    assert not (folder / "README.md").exists()


def test_a_trained_student_is_known_again(deltanet):
    """A Trainer leaves its mark on the config in memory (`use_cache`), which is not part of what the model is."""
    from hf_distill.evaluation.score_cache import model_fingerprint

    folder, results = deltanet
    model = check_fingerprint(folder, results)
    model.transformers_model.config.use_cache = False
    assert model_fingerprint(model) == results.row("student").fingerprint


def test_a_resumed_run_does_not_look_cheaper(deltanet):
    folder, results = deltanet
    results.minutes = 1.0  # of the last process only
    assert "**Cost**: 2.0 minutes of training on a machine, 2 threads, float32.\n" in render_card(folder, results)


def test_gaps_are_named(deltanet):
    folder, results = deltanet
    results.rows = [results.row("student")]
    results.rows[0].metrics = {"validation": {"stsb_spearman": 0.8, "my_metric": 0.5}}
    results.rows[0].speed = results.training = results.minutes = results.selected_step = None
    text = render_card(folder, results)
    for said in (
        "The test split. Validation scores flatter",
        "The teacher, on the same texts.",
        "A random-init control, on the same texts.",
        "* Speed.",
        "the run left no record of it",
        "on STSBenchmark's validation split.",
        "`my_metric`",
        "their licence is unknown",
    ):
        assert said in text, said
    assert "How it was made" not in text
    data = check_card_text(text)
    assert data.license == "unknown"
    assert [entry.dataset_split for entry in data.eval_results] == ["validation"]
    results.rows[0].metrics = {}
    assert check_card_text(render_card(folder, results)).eval_results is None


def test_nothing_breaks_out_of_the_card(deltanet):
    folder, results = deltanet
    results.run = "a | b <script>alert(1)</script>\n# x"
    results.notes = ["first\nsecond <b>"]
    results.row("control").note = "random init, |x|"
    results.command = "accelerate launch recipes/x.py " + " ".join(f"--field_{i} 'a b'" for i in range(20))
    text = render_card(folder, results)
    assert "<script>" not in text
    assert "\n# x" not in text
    assert "first second &lt;b&gt;" in text
    assert " \\\n  --field_19 'a b'\n```" in text
    assert fenced("a ``` b").startswith("````\n")
    assert cell("x|y\nz") == "x\\|y z"
    assert command_block("short --a 1") == "```bash\nshort --a 1\n```"
    assert [percent(share) for share in (0.9995, 1.0, 1.0004, 0.97)] == ["99.95", "100.0", "100.0", "97.0"]
    assert markdown_table(["a", "b"], [["1", "22222"]]).splitlines()[1] == "| :--- | ----: |"


@pytest.mark.parametrize(
    ("teacher", "init", "license_", "warning"),
    [
        ("apache-2.0", "apache-2.0", "apache-2.0", ""),
        ("mit", "apache-2.0", "apache-2.0", ""),  # the weights' of two equally free ones
        ("cc-by-nc-4.0", "mit", "cc-by-nc-4.0", "`t`, which it learned from, .*forbids commercial use"),
        ("mit", "llama3.1", "llama3.1", "`i`, which its weights started from, .*sets conditions"),
        (None, "mit", "unknown", "licence of `t`, which it learned from, is not known"),
        ("my-own", "mit", "other", "`my-own`, which sets conditions"),
        ("gpl-3.0", None, "gpl-3.0", "sets conditions"),
    ],
)
def test_licence(teacher, init, license_, warning, deltanet):
    start = None if init is None else Origin("i", license=init)
    verdict = inherit_licence(training(teacher=Origin("t", license=teacher), init_from=start))
    assert verdict.id == license_
    assert verdict.name == ("my-own" if license_ == "other" else None)
    assert bool(verdict.warnings) == bool(warning)
    assert re.search(warning, " ".join(verdict.warnings))
    folder, results = deltanet
    results.training = training(teacher=Origin("t", license=teacher), init_from=start)
    text = render_card(folder, results)
    assert ("> **Warning.**" in text) == bool(warning)
    assert check_card_text(text).license == license_


def test_same_model_is_warned_of_once():
    origin = Origin("t", license="cc-by-nc-sa-4.0")
    assert len(inherit_licence(training(teacher=origin, init_from=origin)).warnings) == 1


def test_papers():
    keys = [paper.key for paper in papers_of(training())]
    assert keys[:2] == ["hinton2015distilling", "reimers2019sentence"]
    assert {"vonoswald2025mesanet", "wu2019pay", "reimers2020making", "tung2019similarity"} <= set(keys)
    both = papers_of(training("layers", losses={"rkd_distance": 1.0, "rkd_angle": 1.0, "state_decorrelation": 0.1}))
    assert [paper.key for paper in both][2:] == ["sajjad2020effect", "park2019relational"]  # one paper, two terms
    assert "eprint = {1904.05068}" in both[-1].bibtex


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a\n{% if %}", "is wrong in line 2"),
        ("{{ no_such_field }}", "cannot be rendered: 'no_such_field' is undefined"),
    ],
)
def test_errors_in_the_template(template, message, deltanet, tmp_path, monkeypatch):
    folder, results = deltanet
    (tmp_path / "embedding_student.md.jinja").write_text(template)
    monkeypatch.setattr(card, "templates_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match=message):
        write_card(folder, results)
    (tmp_path / "embedding_student.md.jinja").unlink()
    with pytest.raises(ValueError, match="cannot be rendered"):
        write_card(folder, results)
    assert not (folder / "README.md").exists()


def test_the_template_is_where_it_is_looked_for():
    assert (templates_folder() / card.TEMPLATE).is_file()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("license: apache-2.0", "license: apache-3.0", "'apache-3.0' is none of the Hub's"),
        ("license: apache-2.0", "license: other", "needs license_name"),
        ("license: apache-2.0\n", "", "license is missing"),
        ("- en", "- English", "'English' is no ISO 639 code"),
        ("base_model: org/teacher", "base_model: runs/my/teacher", "base_model: "),
        ("      type: mteb/stsbenchmark-sts\n", "", "dataset.type is missing"),
        ("      value: 0.784", "      value: high # 0.784", "finite value"),
        ("---\n", "--\n", "has no metadata"),
        ("tags:\n", "tags: [\n", "cannot be read"),
        ("## Use", "![curve](lost.png)\n\n## Use", "picture lost.png is not beside"),
    ],
)
def test_what_the_hub_would_refuse(old, new, message, deltanet):
    folder, results = deltanet
    path = write_card(folder, results)
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        check_card(folder)


def test_card_of_a_run(deltanet, tmp_path):
    folder, results = deltanet
    run = tmp_path / "a-run"
    with pytest.raises(FileNotFoundError, match="There are no results"):
        write_run_card(run)
    shutil.copytree(folder, run / "model")
    results.write(run)
    (run / "curves.png").write_bytes(b"png")
    target = tmp_path / "rendered" / "a-run"
    assert write_run_card(run, target=target) == target / "README.md"
    assert {path.name for path in target.iterdir()} == {"README.md", "curves.png"}
    assert 'SentenceTransformer("a-run"' in (target / "README.md").read_text(encoding="utf-8")
    assert write_run_card(run, repo_id="user/x") == run / "model" / "README.md"
    check_card(run / "model")
    values = json.loads((run / "results.json").read_text())
    values["rows"][1]["metrics"]["test"]["stsb_spearman"] = 0.99
    (run / "results.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="edited by hand"):
        write_run_card(run)
    shutil.rmtree(run / "model")
    results.write(run)
    with pytest.raises(FileNotFoundError, match="holds no model/"):
        write_run_card(run)


def test_every_packaged_source_is_described() -> None:
    assert set(LOCAL_SOURCES) <= set(card_training._SOURCES)
