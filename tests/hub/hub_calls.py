"""Functions for `HubClient.call`: what the tests of the loopback Hub ask the real client to do, over and over."""

from __future__ import annotations


def create(repo_id, **options):
    from huggingface_hub import HfApi

    return str(HfApi().create_repo(repo_id, **options))


def upload(folder, repo_id, options=None):
    from huggingface_hub import HfApi

    return HfApi().upload_folder(folder_path=folder, repo_id=repo_id, **(options or {})).oid


def commit(repo_id, add, delete=(), options=None):
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    operations = [CommitOperationAdd(path, text.encode()) for path, text in add.items()]
    operations += [CommitOperationDelete(path) for path in delete]
    made = HfApi().create_commit(repo_id, operations, commit_message="Change", **(options or {}))
    return [made.oid, str(made.commit_url), made.pr_revision]


def download(repo_id, filename, options=None):
    from huggingface_hub import hf_hub_download

    with open(hf_hub_download(repo_id, filename, **(options or {})), "rb") as file:
        return file.read().decode("latin-1")
