"""Who may do what on the loopback Hub: tokens, namespaces, private and gated repositories; and what a card may hold."""

from __future__ import annotations

import pytest
from loopback_cards import check_card, eval_results

GOOD = """---
language: en
license: apache-2.0
tags: [sentence-transformers, custom_code]
base_model: sentence-transformers/all-MiniLM-L6-v2
model-index:
- name: student
  results:
  - task: {type: semantic-similarity}
    dataset: {type: mteb/stsbenchmark-sts, name: STSBenchmark}
    metrics:
    - {type: spearman_cosine, value: 0.87}
---
"""


def as_user(token, method, *arguments):
    from huggingface_hub import HfApi

    made = getattr(HfApi(token=token), method)(*arguments)
    return made if made is None or isinstance(made, (str, dict)) else str(made)


def add_file(token, repo_id, path="x.txt"):
    from huggingface_hub import HfApi

    HfApi(token=token).upload_file(path_or_fileobj=b"x", path_in_repo=path, repo_id=repo_id)


def read_file(token, repo_id, path="README.md"):
    import tempfile

    from huggingface_hub import hf_hub_download

    with tempfile.TemporaryDirectory() as empty:  # a cache would hide what the Hub answers
        return hf_hub_download(repo_id, path, token=token, cache_dir=empty)


def create(token, repo_id, exist_ok=False, private=None):
    from huggingface_hub import HfApi

    return str(HfApi(token=token).create_repo(repo_id, exist_ok=exist_ok, private=private))


@pytest.fixture
def tokens(shared_hub):
    """The tokens of the user, the same for reading only, another user, nobody."""
    user, other = shared_hub.users["user"], shared_hub.users["other"]
    return {"user": user.token, "reader": user.read_token, "other": other.token, "nobody": False}


def test_whoami_tells_name_rights_and_organisations(client, tokens):
    roles = {}
    for name in ("user", "reader", "other"):
        told = client.call(as_user, tokens[name], "whoami")
        roles[name] = (told["name"], told["auth"]["accessToken"]["role"], [org["name"] for org in told["orgs"]])
    assert roles == {
        "user": ("user", "write", ["org"]),
        "reader": ("user", "read", ["org"]),
        "other": ("other", "write", []),
    }
    error = client.error(as_user, "hf_wrong", "whoami")
    assert (error.status, error.name) == (401, "HfHubHTTPError")


def test_tokens_are_never_the_same(shared_hub):
    tokens = [token for user in shared_hub.users.values() for token in (user.token, user.read_token)]
    assert len(set(tokens)) == 4
    assert all(token.startswith("hf_") and token not in repr(shared_hub.users) for token in tokens)


def test_creating(client, shared_hub, tokens):
    url = client.call(create, tokens["user"], "user/made")
    assert url == f"{shared_hub.endpoint}/user/made"
    assert client.error(create, tokens["user"], "user/made").status == 409
    assert client.call(create, tokens["user"], "user/made", True) == url
    assert client.call(create, tokens["user"], "made-in-my-namespace").endswith("/user/made-in-my-namespace")
    client.call(create, tokens["user"], "org/made")
    for who, repo_id, status in (("user", "other/x", 403), ("reader", "user/y", 403), ("nobody", "user/z", 401)):
        assert client.error(create, tokens[who], repo_id).status == status
    assert client.error(create, "hf_wrong", "user/made", True).status == 401
    assert ("model", "user/y") not in shared_hub.store.repos


def test_deleting(client, shared_hub, tokens):
    client.call(create, tokens["user"], "user/gone")
    assert client.error(as_user, tokens["reader"], "delete_repo", "user/gone").status == 403
    assert client.error(as_user, tokens["other"], "delete_repo", "user/gone").status == 403
    client.call(as_user, tokens["user"], "delete_repo", "user/gone")
    assert client.error(as_user, tokens["user"], "delete_repo", "user/gone").name == "RepositoryNotFoundError"


def test_a_private_repository_looks_like_none(client, shared_hub, tokens):
    shared_hub.add_repo("other/secret", {"README.md": GOOD.encode()}, private=True)
    client.call(read_file, tokens["other"], "other/secret")
    for who, status in (("user", 404), ("nobody", 401)):
        for repo_id in ("other/secret", "other/no-such-thing"):
            for error in (
                client.error(read_file, tokens[who], repo_id),
                client.error(as_user, tokens[who], "model_info", repo_id),
                client.error(add_file, tokens[who], repo_id),
            ):
                assert (error.name, error.status) == ("RepositoryNotFoundError", status), error


def test_private_at_creation_and_by_setting(client, shared_hub, tokens):
    client.call(create, tokens["user"], "user/hidden", False, True)
    assert shared_hub.repo("user/hidden").private
    client.call(read_file, tokens["reader"], "user/hidden", ".gitattributes")
    assert client.error(read_file, tokens["other"], "user/hidden", ".gitattributes").status == 404
    shared_hub.repo("user/hidden").private = False
    client.call(read_file, tokens["other"], "user/hidden", ".gitattributes")


def test_everyone_reads_what_is_public_and_only_its_owner_writes(client, shared_hub, tokens):
    shared_hub.add_repo("user/open", {"README.md": GOOD.encode()})
    before = shared_hub.files("user/open")
    for who in tokens:
        client.call(read_file, tokens[who], "user/open")
    for who in ("reader", "other"):
        error = client.error(add_file, tokens[who], "user/open")
        assert (error.status, error.name) == (403, "HfHubHTTPError")
        assert "Forbidden" in error.message
    assert client.error(add_file, tokens["nobody"], "user/open").status == 401
    assert client.error(read_file, "hf_wrong", "user/open").status == 401
    assert shared_hub.files("user/open") == before
    client.call(add_file, tokens["user"], "user/open")
    assert shared_hub.files("user/open")["x.txt"] == b"x"


def test_gated_repositories_show_their_card_only(client, shared_hub, tokens):
    repo = shared_hub.add_repo("other/gated", {"README.md": GOOD.encode()}, gated="manual")
    assert client.error(read_file, tokens["user"], "other/gated").name == "GatedRepoError"
    assert client.error(read_file, tokens["nobody"], "other/gated").name == "GatedRepoError"
    assert "other/gated" in client.call(as_user, tokens["user"], "model_info", "other/gated")
    client.call(read_file, tokens["other"], "other/gated")
    repo.granted.add("user")
    client.call(read_file, tokens["reader"], "other/gated")


def test_settings_and_auth_check(client, shared_hub, tokens):
    def settings(token, repo_id):
        from huggingface_hub import HfApi

        HfApi(token=token).update_repo_settings(repo_id, gated="auto", private=True)

    def check(token, repo_id, write):
        from huggingface_hub import HfApi

        HfApi(token=token).auth_check(repo_id, write=write)

    shared_hub.add_repo("user/settings")
    assert client.error(settings, tokens["reader"], "user/settings").status == 403
    client.call(check, tokens["other"], "user/settings", False)
    assert client.error(check, tokens["other"], "user/settings", True).status == 403
    client.call(settings, tokens["user"], "user/settings")
    assert (shared_hub.repo("user/settings").gated, shared_hub.repo("user/settings").private) == ("auto", True)
    assert client.error(check, tokens["other"], "user/settings", False).status == 404
    client.call(check, tokens["user"], "user/settings", True)


# ---- what a card and a results file may hold ----


def test_a_good_card_is_accepted():
    assert check_card(GOOD, "model") == ([], [])
    assert check_card("# No metadata\n", "model")[1] == ["empty or missing yaml metadata in repo card"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("apache-2.0", "apache", '"license" must be one of'),
        ("language: en", "language: English", '"language[0]" with value'),
        ("language: en", "language: no", '"language[0]" with value False'),
        ("[sentence-transformers, custom_code]", "custom_code", '"tags" must be an array'),
        ("[sentence-transformers, custom_code]", "[2024]", '"tags" must hold strings only'),
        ("sentence-transformers/all-MiniLM-L6-v2", "models/my/teacher", '"base_model[0]" with value'),
        ("- name: student", "- title: student", '"model-index[0].name" is required'),
        ("{type: semantic-similarity}", "{name: STS}", "results[0].task.type"),
        (", name: STSBenchmark", "", "results[0].dataset.name"),
        ("mteb/stsbenchmark-sts", "STS benchmark", "is not a dataset id"),
        (", value: 0.87", "", "metrics[0].value"),
        ("license: apache-2.0", "license: mit\nlicense: apache-2.0", "duplicated mapping key 'license'"),
        ("language: en", "language: [en", "Invalid YAML"),
    ],
)
def test_a_bad_card_is_refused(old, new, says):
    assert old in GOOD
    errors, _ = check_card(GOOD.replace(old, new), "model")
    assert any(says in error for error in errors), errors


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- value: 1\n  dataset: {id: a/b}\n", "task_id is required"),
        ("- value: 1\n  dataset: {task_id: x}\n", "dataset.id is required"),
        ("- dataset: {id: a/b, task_id: x}\n", "value is required"),
        ("- value: 1\n  dataset: {id: a/b, task_id: x}\n  source: {name: us}\n", "source.url is required"),
        ("- value: 1\n  dataset: {id: a/b, task_id: x}\n  date: yesterday\n", "not an ISO-8601 date"),
        ("value: 1\n", "must hold a list"),
        ("- [\n", "Invalid YAML"),
    ],
)
def test_bad_results_are_named(text, says):
    (item,) = eval_results({".eval_results/x.yaml": text.encode(), "elsewhere/y.yaml": b"- ["})
    assert item["filename"] == "x.yaml"
    assert says in item["error"]


def test_good_results_become_items():
    text = "- value: 1.5\n  dataset: {id: a/b, task_id: x}\n  date: 2026-01-31\n  source: {url: 'https://x.y'}\n" * 2
    items = eval_results({".eval_results/x.yaml": text.encode()})
    assert [item["data"]["value"] for item in items] == [1.5, 1.5]
