"""The loopback Hub as a fixture, and a process with the real client that uses it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # the Hub is a few modules beside this file

import hub_calls as calls  # noqa: E402
from hub_client import HubClient  # noqa: E402
from loopback import LoopbackHub  # noqa: E402

CARD = (
    "---\nlicense: mit\nlibrary_name: transformers\ntags:\n- custom_code\ndatasets:\n- user/prose\n---\n# A student\n"
)
RESULTS = "- dataset:\n    id: mteb/stsbenchmark-sts\n    task_id: STSBenchmark\n  value: 87.5\n  notes: test split\n"


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    """A Hub of the test's own; it must not crash."""
    with LoopbackHub() as hub:
        yield hub
        assert hub.crashes == []


@pytest.fixture(scope="session")
def shared_hub() -> Iterator[LoopbackHub]:
    """One Hub for many tests, which use repositories of different names."""
    with LoopbackHub() as hub:
        yield hub
        assert hub.crashes == []


@pytest.fixture(scope="session")
def client(shared_hub: LoopbackHub) -> Iterator[HubClient]:
    """A process whose `huggingface_hub` talks to `shared_hub` as `user`."""
    client = HubClient(shared_hub.env())
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model folder: text, weights (LFS), results, a file in a sub-folder."""
    path = tmp_path / "student"
    (path / ".eval_results").mkdir(parents=True)
    (path / "1_Pooling").mkdir()
    (path / "README.md").write_text(CARD)
    (path / "config.json").write_text('{"model_type": "tiny", "architectures": ["Tiny"]}')
    (path / "model.safetensors").write_bytes(bytes(range(256)) * 200)
    (path / "1_Pooling" / "config.json").write_text("{}")
    (path / ".eval_results" / "sts.yaml").write_text(RESULTS)
    return path


@pytest.fixture
def uploaded(client: HubClient, folder: Path, request: pytest.FixtureRequest) -> str:
    """The repository `user/<name of the test>` with that folder in it."""
    repo_id = f"user/{request.node.originalname}"
    client.call(calls.create, repo_id)
    client.call(calls.upload, str(folder), repo_id)
    return repo_id
