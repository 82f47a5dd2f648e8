"""The loopback Hub serves the real clients: uploads can be downloaded, and faults take effect."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationDelete, HfApi, HfFileSystem, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from loopback_hub import READ_TOKEN, LoopbackHub, loopback_hub, point_clients_at

REPO = "org/data"
# huggingface_hub 2.4 uploads to LFS with a keyword argument that httpx2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    with loopback_hub() as hub:
        point_clients_at(hub, monkeypatch, tmp_path / "cache")
        yield hub


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    return HfApi()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "deep/er").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\ntext\n")
    (folder / "deep/er/a b é.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "deep/chunk").write_bytes(bytes(300))
    return folder


def publish(api: HfApi, folder: Path) -> str:
    api.create_repo(REPO, repo_type="dataset", exist_ok=True)
    return str(api.upload_folder(repo_id=REPO, folder_path=folder, repo_type="dataset").oid)


def test_what_is_uploaded_comes_back(hub: LoopbackHub, api: HfApi, folder: Path) -> None:
    assert api.whoami()["name"] == "tester"
    publish(api, folder)
    assert hub.repos[REPO].commits[hub.repos[REPO].branches["main"]].lfs == {
        "deep/er/a b é.safetensors",
        "deep/chunk",
    }
    assert set(api.list_repo_files(REPO, repo_type="dataset")) == {
        ".gitattributes",
        "README.md",
        "deep/chunk",
        "deep/er/a b é.safetensors",
    }
    for name in ("README.md", "deep/chunk", "deep/er/a b é.safetensors"):
        path = hf_hub_download(REPO, name, repo_type="dataset")
        assert Path(path).read_bytes() == (folder / name).read_bytes()
    info = api.get_paths_info(REPO, ["deep/chunk", "deep", "no"], repo_type="dataset")
    assert [entry.path for entry in info] == ["deep/chunk", "deep"]
    assert info[0].lfs.sha256 == hashlib.sha256(bytes(300)).hexdigest()


def test_the_same_folder_again_uploads_nothing(hub: LoopbackHub, api: HfApi, folder: Path) -> None:
    first = publish(api, folder)
    assert hub.count("/cdn/*", "PUT") == 2
    hub.reset()
    assert publish(api, folder) == first
    assert hub.count("/cdn/*", "PUT") == 0
    assert hub.count("*/commit/*") == 0
    (folder / "README.md").write_text("other")
    assert publish(api, folder) != first
    assert hub.count("/cdn/*", "PUT") == 0


def test_revisions_are_branches_tags_and_commits(
    api: HfApi, hub: LoopbackHub, folder: Path
) -> None:
    first = publish(api, folder)
    api.create_tag(REPO, tag="v1", repo_type="dataset")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag(REPO, tag="v1", repo_type="dataset")
    api.create_branch(REPO, branch="odd/name", repo_type="dataset")
    (folder / "deep/chunk").write_bytes(b"\0new")
    second = publish(api, folder)
    refs = api.list_repo_refs(REPO, repo_type="dataset")
    assert {tag.name: tag.target_commit for tag in refs.tags} == {"v1": first}
    assert {b.name: b.target_commit for b in refs.branches} == {"main": second, "odd/name": first}
    assert [c.commit_id for c in api.list_repo_commits(REPO, repo_type="dataset")][:2] == [
        second,
        first,
    ]
    for revision, content in (("v1", bytes(300)), ("odd/name", bytes(300)), (second, b"\0new")):
        path = hf_hub_download(REPO, "deep/chunk", repo_type="dataset", revision=revision)
        assert Path(path).read_bytes() == content
    with pytest.raises(RevisionNotFoundError):
        api.dataset_info(REPO, revision="v2")
    gone = [CommitOperationDelete("deep/", is_folder=True)]
    api.create_commit(REPO, gone, commit_message="gone", repo_type="dataset")
    assert "deep/chunk" not in api.list_repo_files(REPO, repo_type="dataset")
    api.delete_repo(REPO, repo_type="dataset")
    assert REPO not in hub.repos


def test_a_tree_comes_in_pages(api: HfApi, hub: LoopbackHub, folder: Path) -> None:
    publish(api, folder)
    hub.page = 2
    tree = api.list_repo_tree(REPO, repo_type="dataset", recursive=True)
    assert [entry.path for entry in tree] == [
        ".gitattributes",
        "README.md",
        "deep",
        "deep/chunk",
        "deep/er",
        "deep/er/a b é.safetensors",
    ]
    assert hub.count("*/tree/main") == 3
    top = api.list_repo_tree(REPO, "deep", repo_type="dataset")
    assert [entry.path for entry in top] == ["deep/chunk", "deep/er"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "no", repo_type="dataset"))


def test_ranges_are_counted_and_no_token_leaves_for_the_storage(
    hub: LoopbackHub, api: HfApi, folder: Path
) -> None:
    publish(api, folder)
    name = "deep/er/a b é.safetensors"
    fs = HfFileSystem(skip_instance_cache=True)
    fs.invalidate_cache()
    hub.reset()
    with fs.open(f"datasets/{REPO}/{name}", block_size=512) as file:
        file.seek(1000)
        assert file.read(24) == (bytes(range(256)) * 40)[1000:1024]
    sent = hub.find(f"/cdn/*/{name}")
    assert [(request.status, request.authorized) for request in sent] == [(206, False)]
    assert sent[0].sent == hub.sent("/cdn/*") < 600
    assert all(request.authorized for request in hub.find("*/resolve/*"))


def test_private_and_missing_repos(
    hub: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put("org/private", folder, private=True)
    hub.put("org/open", folder)
    nobody, reader = HfApi(token=False), HfApi(token=READ_TOKEN)
    assert nobody.dataset_info("org/open").id == "org/open"
    assert reader.dataset_info("org/private").private
    for api, repo in ((nobody, "org/private"), (nobody, "org/none"), (reader, "org/none")):
        with pytest.raises(RepositoryNotFoundError):
            api.dataset_info(repo)
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(token="hf_wrong").dataset_info("org/open")
    with pytest.raises(HfHubHTTPError, match="403"):
        reader.create_tag("org/open", tag="v1", repo_type="dataset")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("org/open", "none", repo_type="dataset", token=False)


def test_faults_are_overcome_or_noticed_by_the_client(
    hub: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.put(REPO, folder)
    name = "deep/er/a b é.safetensors"
    hub.fail(f"/cdn/*/{name}", drop_after=100)
    path = hf_hub_download(REPO, name, repo_type="dataset")
    assert Path(path).read_bytes() == (folder / name).read_bytes()
    assert [request.sent for request in hub.find(f"/cdn/*/{name}", "GET")] == [100, 10240]
    hub.fail("*/tree/main", times=2, status=503)
    assert list(HfApi().list_repo_tree(REPO, repo_type="dataset"))
    assert [request.status for request in hub.find("*/tree/main")] == [503, 503, 200]
    hub.fail("*/refs", status=500)
    with pytest.raises(HfHubHTTPError, match="500"):
        HfApi().list_repo_refs(REPO, repo_type="dataset")
    hub.fail("*/README.md", corrupt=True)
    text = Path(hf_hub_download(REPO, "README.md", repo_type="dataset")).read_bytes()
    assert text != (folder / "README.md").read_bytes()  # this client does not notice
