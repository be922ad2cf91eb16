"""JSON with a hash: layout does not matter, content does, and what is wrong is said with its remedy."""

from __future__ import annotations

import json

import pytest

from hf_distill.evaluation.hashed_json import read_hashed, write_hashed

AGAIN = "Make it again."


def test_round_trip_in_any_layout(tmp_path):
    path = tmp_path / "a.json"
    write_hashed(path, {"schema_version": 3, "b": [1.5, None], "a": {"x": (1, 2)}}, indent=None)
    assert len(path.read_text().splitlines()) == 1
    expected = {"schema_version": 3, "b": [1.5, None], "a": {"x": [1, 2]}}
    assert read_hashed(path, 3, AGAIN) == expected
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4, sort_keys=True))
    assert read_hashed(path, 3, AGAIN) == expected
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_what_is_wrong_is_said(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_hashed(path, {"schema_version": 1, "x": float("nan")})
    assert not path.exists()
    write_hashed(path, {"schema_version": 1, "x": 0.5})
    with pytest.raises(ValueError, match="schema version 1, this hf_distill reads 2. Make it again"):
        read_hashed(path, 2, AGAIN)
    path.write_text(path.read_text().replace("0.5", "0.9"))
    with pytest.raises(ValueError, match="edited by hand.*If you cannot: make it again"):
        read_hashed(path, 1, AGAIN)
    for content in ("{", "[1]"):
        path.write_text(content)
        with pytest.raises(ValueError, match="is not JSON|schema version None"):
            read_hashed(path, 1, AGAIN)
