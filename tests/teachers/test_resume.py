"""A job that is killed, interrupted, out of disk or extended: nothing finished is lost, and the bytes are the same."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hf_distill.teachers import files
from hf_distill.teachers.cached import TeacherCache
from hf_distill.teachers.live import LiveTeacher
from hf_distill.teachers.manifest import TeacherSpec
from hf_distill.teachers.projection import project_cache
from hf_distill.teachers.writer import write_cache

JOB = """
import sys, time, torch
torch.set_num_threads(1)
from hf_distill.teachers.live import LiveTeacher
from hf_distill.teachers.writer import write_cache
live = LiveTeacher(sys.argv[1], dtype="bfloat16", device="cpu")
forward = live.forward
def slow(*args, **kwargs):
    time.sleep(0.05)
    return forward(*args, **kwargs)
live.forward = slow
texts = open(sys.argv[3]).read().splitlines()
try:
    write_cache(texts, live, sys.argv[2], shard_rows=16, signals=("embedding", "hidden_1"), progress=False)
except KeyboardInterrupt as stop:
    sys.exit(f"stopped: {stop}")
"""


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file under a folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_resume_gives_the_same_bytes(
    tmp_path: Path, tiny_sentence_transformer: str, tiny_texts: list[str], stop: signal.Signals
) -> None:
    texts = [f"{text} {number}" for number in range(20) for text in tiny_texts]
    options = {"shard_rows": 16, "signals": ("embedding", "hidden_1"), "progress": False}
    live = LiveTeacher(tiny_sentence_transformer, dtype="bfloat16", device="cpu")
    write_cache(texts, live, tmp_path / "whole", **options)

    source, target = tmp_path / "texts.txt", tmp_path / "broken"
    source.write_text("\n".join(texts))
    command = [sys.executable, "-c", JOB, tiny_sentence_transformer, str(target), str(source)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        deadline = time.monotonic() + 120
        while len(list(target.glob("*/*.safetensors"))) < 3:
            assert job.poll() is None, job.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        job.send_signal(stop)
        _, message = job.communicate(timeout=60)
    finally:
        job.kill()
    finished = len(list(target.glob("*/*.safetensors")))
    assert 3 <= finished < 80
    assert not list(target.glob("*/manifest.json"))
    with pytest.raises(FileNotFoundError, match="did not finish"):
        TeacherCache.open(target)
    if stop == signal.SIGINT:
        assert job.returncode == 1
        assert f"stopped: Interrupted: {finished} of 80 shards are finished" in message
        assert "Run the same job again" in message

    (next(target.iterdir()) / ".half-written.tmp").write_bytes(b"remains of a killed job")
    resumed = write_cache(texts, live, target, **options)
    assert (resumed.report.reused_rows, resumed.report.rows) == (16 * finished, len(texts) - 16 * finished)
    assert files_of(target) == files_of(tmp_path / "whole")


PROCESS_JOB = """
import sys
from pathlib import Path
import numpy as np
from hf_distill.teachers.manifest import TeacherSpec
from hf_distill.teachers.writer import process_state, write_cache
embed = lambda texts: np.array([[len(text), ord(text[0]), ord(text[-1])] for text in texts])
spec = TeacherSpec(teacher="shape", normalize=False)
cache = write_cache(open(sys.argv[2]).read().splitlines(), embed, sys.argv[1], spec=spec, shard_rows=10, progress=False)
# A file a process: what two of them print at once comes out mixed.
said = f"process {process_state().process_index} encoded {cache.report.rows} of {len(cache)}"
Path(sys.argv[3], f"{process_state().process_index}.txt").write_text(said)
"""


def test_two_processes_share_the_work_and_give_the_same_bytes(tmp_path: Path, tiny_texts: list[str]) -> None:
    source, script = tmp_path / "texts.txt", tmp_path / "job.py"
    source.write_text("\n".join(tiny_texts))
    script.write_text(PROCESS_JOB)
    launcher = {
        "one": [sys.executable],
        "two": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    }
    said = {}
    for name, command in launcher.items():
        (spoken := tmp_path / f"{name}_said").mkdir()
        done = subprocess.run(
            [*command, str(script), str(tmp_path / name), str(source), str(spoken)],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert done.returncode == 0, done.stderr
        said[name] = [path.read_text() for path in sorted(spoken.iterdir())]
    assert said["one"] == ["process 0 encoded 64 of 64"]
    assert said["two"] == ["process 0 encoded 34 of 64", "process 1 encoded 30 of 64"]
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")


def test_extended_job_keeps_what_is_there(
    tmp_path: Path, tiny_texts: list[str], vectors: Callable, vector_spec: TeacherSpec
) -> None:
    options = {"spec": vector_spec, "shard_rows": 10, "progress": False}
    first = write_cache(tiny_texts[:35], vectors, tmp_path, **options)
    manifest = (first.path / "manifest.json").stat()
    again = write_cache(tiny_texts[:35], vectors, tmp_path, **options)
    assert (again.report.rows, again.report.seconds) == (0, 0.0)
    assert (first.path / "manifest.json").stat() == manifest
    longer = write_cache(tiny_texts, vectors, tmp_path, **options)
    assert (longer.report.rows, longer.report.reused_rows) == (34, 30)
    np.testing.assert_array_equal(longer.embeddings(np.arange(64)), vectors(tiny_texts).astype(np.float16))
    shorter = write_cache(tiny_texts[:20], vectors, tmp_path, **options)
    assert (shorter.report.rows, len(shorter)) == (0, 20)


def test_other_texts_do_not_silently_replace(
    tmp_path: Path, tiny_texts: list[str], vectors: Callable, vector_spec: TeacherSpec
) -> None:
    options = {"spec": vector_spec, "shard_rows": 10, "progress": False}
    cache = write_cache(tiny_texts, vectors, tmp_path, **options)
    before = files_of(tmp_path)
    other = [*tiny_texts[:25], "another text", *tiny_texts[26:]]
    with pytest.raises(ValueError, match=r"other texts.*rows 20 and 29.*--overwrite"):
        write_cache(other, vectors, tmp_path, **options)
    assert files_of(tmp_path) == before
    replaced = write_cache(other, vectors, tmp_path, overwrite=True, **options)
    assert replaced.report.rows == 10
    assert replaced.rows_for(["another text"]).tolist() == [25]
    assert (cache.path / cache.manifest.shards[2].file).is_file()


def test_full_disk(
    tmp_path: Path,
    tiny_texts: list[str],
    vectors: Callable,
    vector_spec: TeacherSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"spec": vector_spec, "shard_rows": 10, "progress": False}
    written, flush = [], os.fsync

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(
        OSError, match=r"disk is full: shard 4 of 7.*3 finished shards are kept.*run the same job"
    ) as error:
        write_cache(tiny_texts, vectors, tmp_path, **options)
    assert error.value.errno == errno.ENOSPC
    assert len(files_of(tmp_path)) == 3
    monkeypatch.setattr(files.os, "fsync", flush)
    assert write_cache(tiny_texts, vectors, tmp_path, **options).report.reused_rows == 30


def test_space_is_checked_before_the_first_step(
    tmp_path: Path, tiny_sentence_transformer: str, tiny_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = LiveTeacher(tiny_sentence_transformer, dtype="float32", device="cpu")
    usage = files.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage._replace(free=100))
    monkeypatch.setattr(live, "forward", lambda *_, **__: pytest.fail("work started"))
    with pytest.raises(OSError, match="only 0 MB are free"):
        write_cache(tiny_texts, live, tmp_path, progress=False)


def test_other_errors_of_the_disk_pass_through(
    tmp_path: Path, tiny_texts: list[str], vectors: Callable, vector_spec: TeacherSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(_: int) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files.os, "fsync", denied)
    with pytest.raises(PermissionError):
        write_cache(tiny_texts, vectors, tmp_path, spec=vector_spec, progress=False)
    assert files_of(tmp_path) == {}


def test_projections_survive_a_second_run_but_not_an_extension(
    tmp_path: Path, tiny_texts: list[str], vectors: Callable, vector_spec: TeacherSpec
) -> None:
    options = {"spec": replace(vector_spec, normalize=True), "shard_rows": 10, "progress": False}
    project_cache(write_cache(tiny_texts[:40], vectors, tmp_path, **options), 3)
    assert len(write_cache(tiny_texts[:40], vectors, tmp_path, **options).manifest.projections) == 1
    assert write_cache(tiny_texts, vectors, tmp_path, **options).manifest.projections == ()
