"""Publishing with the real client on the loopback Hub: uploaded files, and faults."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from cases import release
from loopback_handler import Handler
from loopback_hub import READ_TOKEN, LoopbackHub, loopback_hub, point_clients_at
from mock_dataset import toy_recipe_dict, write_mock_dataset

import cfqa_data
from cfqa_data.access.folder import Folder
from cfqa_data.builders.sharing.publish import Published, plan_publishing, publish
from cfqa_data.builders.sharing.upload import prepare_upload
from cfqa_data.cli import main
from cfqa_data.errors import CfqaError, FormatError
from cfqa_data.format.facts import Terms
from cfqa_data.format.manifest import Manifest, read_manifest, write_manifest
from cfqa_data.integrity.verify import verify
from cfqa_data.recipe.load import Recipe
from cfqa_data.testing.mock import write_format_2_folder

# The client sends files by a parameter that its HTTP library has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "org/cfqa"


def small(root: Path, kind: str = "scenes", **options: Any) -> Path:
    """Write a dataset of few files, with depth from a kind of source."""
    data = toy_recipe_dict(sources=2)
    tasks = {task: data["tasks"][task] for task in ("cls", "dpt")}
    for task in tasks.values():
        task["codecs"] = {"x265": task["codecs"]["x265"]}
    tasks["dpt"]["source"]["kind"] = kind
    recipe = Recipe.from_dict(data | {"tasks": tasks})
    return write_mock_dataset(root, sources=2, recipe=recipe, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("publish") / "cfqa")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A folder that tests may damage."""
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    monkeypatch.setattr("time.sleep", lambda _: None)  # before another attempt
    with loopback_hub() as hub:
        point_clients_at(hub, monkeypatch, tmp_path / "cache")
        yield hub


def send(folder: Path, **options: Any) -> Published:
    return publish(plan_publishing(folder, REPO, **options))


def there(hub: LoopbackHub, revision: str = "main") -> dict[str, bytes]:
    """Return the files of a revision of the repo, without those that the Hub adds."""
    repo = hub.repos[REPO]
    sha = repo.find(revision)
    assert sha is not None
    files = repo.commits[sha].files
    return {path: hub.blobs[oid] for path, oid in files.items() if path != ".gitattributes"}


def writes(hub: LoopbackHub) -> int:
    return sum(hub.count(what) for what in ("*/commit/*", "*/tag/*", "*/branch/*")) + hub.count(
        method="PUT"
    )


def hashes(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_all_arrives_under_a_tag_and_the_manifest_holds(hub: LoopbackHub, folder: Path) -> None:
    before = hashes(folder)
    done = send(folder)
    found = there(hub, done.tag)
    own = read_manifest(folder)
    assert set(found) == {*own.files, "manifest.json", "croissant.json"}
    for path in own.files:
        if path != "README.md":
            assert found[path] == (folder / path).read_bytes()
    manifest = Manifest.from_dict(json.loads(found["manifest.json"]))
    for path, entry in manifest.files.items():
        size, sha256 = len(found[path]), hashlib.sha256(found[path]).hexdigest()
        assert entry == {"size": size, "sha256": sha256}
    assert done.tag.startswith("toy-full-")
    assert hub.repos[REPO].tags == {done.tag: done.commit}
    assert (done.sent, done.files) == (len(found), len(found))
    assert done.sent_size == done.size == sum(map(len, found.values()))
    assert done.read_back == 2 + 5 * 2
    titles = [commit.title for commit in hub.repos[REPO].commits.values()]
    assert titles == ["initial commit", f"Files of {done.tag}", f"Card and manifest of {done.tag}"]
    assert hashes(folder) == before


def test_the_card_is_the_folder_s_with_what_publishing_adds(hub: LoopbackHub, folder: Path) -> None:
    done = send(folder)
    card = there(hub)["README.md"].decode()
    section = card[card.index("This is `toy`") - 1 : card.index("\n## Composition")]
    own = (folder / "README.md").read_text()
    community = f"use its [Community tab](https://huggingface.co/datasets/{REPO}/discussions)"
    local = card.replace(section, "").replace(community, "contact whoever gave you the folder")
    citation = card[card.index("\n@misc{org-cfqa") : card.rindex("```")]
    assert f"note         = {{Version {done.tag}}}" in citation
    local = (
        local.replace(citation, "")
        .replace(f', revision="{done.tag}"', "")
        .replace(f'"{REPO}"', '"toy"')
        .replace("labels of a task", 'labels of a task; "toy" is the path of this folder')
    )
    assert local == own
    assert f'load_dataset("{REPO}", "dpt", revision="{done.tag}")["test"]  # the labels' in card
    assert f'load("{REPO}", "seg", codec="x265", revision="{done.tag}")' in card
    assert f"{done.files} files" in section
    assert yaml.safe_load(card.split("---\n")[1])["size_categories"] == ["n<1K"]


@pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.reset_index is deprecated")
@pytest.mark.parametrize("name", ["toy", "format-2"])
def test_catalogues_read_what_is_published(name: str, folder: Path, tmp_path: Path) -> None:
    import mlcroissant

    root = folder if name == "toy" else write_format_2_folder(tmp_path / "format-2")
    manifest = read_manifest(root)
    upload = prepare_upload(root, manifest, REPO, terms=Terms("mit", "https://example.org/mit"))
    copy = shutil.copytree(root, tmp_path / "published")
    (copy / "croissant.json").write_bytes(upload.texts["croissant.json"])
    described = mlcroissant.Dataset(copy / "croissant.json")
    assert not described.metadata.ctx.issues.errors
    assert {str(w).partition("]")[2] for w in described.metadata.ctx.issues.warnings} == {
        ' Property "https://schema.org/datePublished" is recommended, but does not exist.'
    }
    assert {entry.id for entry in described.metadata.record_sets} == {*manifest.tasks, "originals"}
    for task in manifest.tasks:
        rows = pq.read_table(copy / "labels" / f"{task}.parquet").to_pandas()
        for row, read in zip(rows.to_dict("records"), described.records(task), strict=True):
            values = {key.partition("/")[2]: value for key, value in read.items()}
            texts = {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}
            assert pd.Series(texts).equals(pd.Series(row))
    patterns = [one for files in described.metadata.file_sets for one in files.includes]
    arrays = {p for p in upload.files if p.startswith(("originals/", "bitstreams/", "compressed/"))}
    assert {p for p in upload.files if any(fnmatch(p, one) for one in patterns)} == arrays


def test_truths_that_may_not_be_redistributed_stay_here(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small(tmp_path / "cfqa", kind="nyuv2")
    assert main(["publish", str(folder), REPO]) == 0
    assert "may not be redistributed: truth/dpt.safetensors" in capsys.readouterr().err
    assert "truth/cls.safetensors" in there(hub)
    card = there(hub)["README.md"].decode()
    head = yaml.safe_load(card.split("---\n")[1])
    assert (head["license"], head["license_name"]) == ("other", "terms of each source")
    assert "- `dpt`: other; https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html; NYU De" in card
    pairs = cfqa_data.load(REPO, "dpt")
    assert pairs.original(pairs.source_ids[0]).ndim == 4
    with pytest.raises(
        FormatError, match="contains no ground truth of dpt: the terms of its source"
    ):
        pairs.truth(pairs.source_ids[0])
    root = tmp_path / "download"
    for path, content in there(hub).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    assert not verify(root).faults


def test_a_source_of_unknown_terms_needs_a_licence(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small(tmp_path / "cfqa", kind="image_folder")
    assert 'license_name: "not stated"' in (folder / "README.md").read_text()
    command = ["publish", str(folder), REPO]
    for options, message in (
        ([], "states no licence of task 'dpt': give --licence"),
        (["--licence", "other"], "link must be an http address"),
        (["--attribution", "Us"], "require --licence"),
        (["--licence", "CC BY"], "'CC BY' is not a licence identifier of the Hub"),
    ):
        assert main([*command, *options]) == 2
        assert message in capsys.readouterr().err
    assert main([*command, "--licence", "cc-by-4.0", "--attribution", "Us"]) == 0
    assert "- `dpt`: cc-by-4.0; Us; " in there(hub)["README.md"].decode()


def test_publishing_again_sends_nothing(hub: LoopbackHub, folder: Path) -> None:
    first = send(folder)
    commits = len(hub.repos[REPO].commits)
    hub.reset()
    again = send(folder)
    assert (again.sent, again.sent_size, again.removed) == (0, 0, 0)
    assert (again.commit, again.tag) == (first.commit, first.tag)
    assert len(hub.repos[REPO].commits) == commits
    assert writes(hub) == 0


def test_a_downloaded_copy_is_the_same_version(
    hub: LoopbackHub, folder: Path, tmp_path: Path
) -> None:
    done = send(folder)
    for path, content in there(hub).items():
        file = tmp_path / "download" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    hub.reset()
    again = send(tmp_path / "download")
    assert (again.sent, again.tag) == (0, done.tag)
    assert writes(hub) == 0


def test_the_light_tier_of_a_full_folder_is_what_a_light_build_writes(
    folder: Path, tmp_path: Path
) -> None:
    light = small(tmp_path / "light", tier="light")
    ours = prepare_upload(folder, read_manifest(folder), REPO, "light")
    built = prepare_upload(light, read_manifest(light), REPO)
    assert ours.card == built.card
    assert ours.tag == built.tag
    assert ours.files == built.files
    assert ours.texts == built.texts
    assert not any(path.startswith("compressed/") for path in ours.files)


def test_a_light_folder_is_not_published_as_a_full_one(tmp_path: Path) -> None:
    light = small(tmp_path / "light", tier="light")
    with pytest.raises(CfqaError, match="is of the light tier; for the full tier, build it again"):
        plan_publishing(light, REPO, tier="full")


def test_what_has_no_bitstreams_is_not_published_as_light(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa

    class Rows:
        table = pa.table({"codec": ["x265"] * 2, "bits": pa.array([800, None], pa.int64())})

    monkeypatch.setattr(Folder, "label_rows", lambda *_: Rows)
    with pytest.raises(CfqaError, match="no light tier"):
        prepare_upload(folder, read_manifest(folder), REPO, "light")


def test_light_over_full_takes_the_codes_away_and_leaves_foreign_files(
    hub: LoopbackHub, folder: Path
) -> None:
    from huggingface_hub import HfApi

    full = send(folder)
    HfApi().upload_file(
        path_or_fileobj=b"mine", path_in_repo="notes/a.txt", repo_id=REPO, repo_type="dataset"
    )
    hub.reset()
    light = send(folder, tier="light")
    found = there(hub)
    assert found.pop("notes/a.txt") == b"mine"
    assert json.loads(found["manifest.json"])["tier"] == "light"
    listed = json.loads(found["manifest.json"])["files"]
    assert set(found) == {*listed, "manifest.json", "croissant.json"}
    assert not any(path.startswith("compressed/") for path in found)
    assert (light.sent, light.removed) == (3, full.files - light.files)
    assert hub.count(method="PUT") == 0
    assert any(path.startswith("compressed/") for path in there(hub, full.tag))


def test_while_other_files_go_up_there_is_no_manifest(
    hub: LoopbackHub, folder: Path, tmp_path: Path
) -> None:
    send(folder)
    other = small(tmp_path / "other", seed=1)
    send(other)
    commits = list(hub.repos[REPO].commits.values())
    assert [("manifest.json" in commit.files) for commit in commits] == [
        *(False, False, True),  # the first version
        *(False, True),  # the second
    ]


def test_a_branch_is_made_and_main_left_alone(hub: LoopbackHub, folder: Path) -> None:
    done = send(folder, revision="draft", tag="v1")
    assert there(hub) == {}
    assert there(hub, "draft") == there(hub, "v1")
    assert len(there(hub, "v1")) == done.files


def test_a_tag_of_another_version_is_not_moved(
    hub: LoopbackHub, folder: Path, tmp_path: Path
) -> None:
    done = send(folder, tag="v1")
    other = small(tmp_path / "other", seed=1)
    hub.reset()
    with pytest.raises(CfqaError, match="has a tag 'v1' of another version; give another --tag"):
        send(other, tag="v1")
    assert writes(hub) == 0
    assert hub.repos[REPO].tags == {"v1": done.commit}


def test_a_dry_run_asks_nobody_and_writes_nothing(
    hub: LoopbackHub, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = hashes(tmp_path), hashes(folder)
    command = ["publish", str(folder), REPO, "--dry-run", "--tier", "light", "--private"]
    assert main(command) == 0
    said = capsys.readouterr().out
    upload = plan_publishing(folder, REPO, tier="light").upload
    for word in (REPO, "light tier", "branch main", "private", upload.tag, "Nothing was uploaded"):
        assert word in said
    assert f"all {len(upload.files)}" in " ".join(said.split())
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == {path: entry["size"] for path, entry in upload.files.items()}
    assert told["size"] == sum(told["files"].values())
    assert (told["tier"], told["repo"], told["private"]) == ("light", REPO, True)
    assert hub.requests == []
    assert (hashes(tmp_path), hashes(folder)) == before


def spoil(change: Callable[[Path], Any]) -> Callable[[Path], None]:
    return lambda root: change(root / "labels" / "dpt.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.write_bytes(f.read_bytes()[:-1]), "bytes, the manifest says"),
        (lambda f: f.write_bytes(f.read_bytes()[:-1] + b"\0"), "its SHA-256 differs from"),
        (lambda f: f.unlink(), "missing"),
        (lambda f: (f.unlink(), f.mkdir()), "is a folder, not a file"),
    ],
)
def test_a_folder_that_is_not_as_its_manifest_says_stays_here(
    change: Callable[[Path], Any],
    message: str,
    hub: LoopbackHub,
    copy: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(change)(copy)
    assert main(["publish", str(copy), REPO]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "labels/dpt.parquet: " in line
    assert message in line
    assert hub.requests == []


def test_files_that_the_manifest_does_not_know_stay_here(hub: LoopbackHub, copy: Path) -> None:
    (copy / "labels" / ".env").write_text("SECRET=1")
    plan = plan_publishing(copy, REPO)
    assert plan.notes == (
        "1 files are not in the manifest and are not uploaded, first labels/.env",
    )
    publish(plan)
    assert "labels/.env" not in there(hub)


def test_a_card_of_other_hands_is_written_anew_and_told_of(copy: Path) -> None:
    card = copy / "README.md"
    made = card.read_bytes()
    assert plan_publishing(copy, REPO).notes == ()
    card.write_bytes(made + b"My own words.\n")
    write_manifest(copy, read_manifest(copy))
    plan = plan_publishing(copy, REPO)
    assert plan.notes == ("README.md differs from what this version writes: a new one is uploaded",)
    assert b"My own words" not in plan.upload.texts["README.md"]


@pytest.mark.parametrize("name", ["cfqa", "a/b/c", "org/", "/cfqa", "org/c fqa", "org/../x", "ö/x"])
def test_names_that_are_no_repos(name: str, folder: Path) -> None:
    with pytest.raises(CfqaError, match="is not a repo id: write org/name"):
        plan_publishing(folder, name)


@pytest.mark.parametrize("name", ["", "a b", "../x", "a..b", "x.lock", "-x", "a/", "ä"])
def test_names_that_are_no_branches_or_tags(name: str, folder: Path) -> None:
    for option in ({"revision": name}, {"tag": name}):
        with pytest.raises(CfqaError, match="cannot be the name of a branch or tag"):
            plan_publishing(folder, REPO, **option)  # type: ignore[arg-type]


def test_without_a_token_it_says_where_one_comes_from(
    hub: LoopbackHub,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert main(["publish", str(folder), REPO]) == 2
    assert "no token for the Hub: run `hf auth login`" in capsys.readouterr().err
    assert hub.requests == []


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("hf_nobodyKnowsThisOne", "does not accept this token"),
        (READ_TOKEN, f"this token may not write to {REPO}"),
    ],
)
def test_a_token_without_the_right_is_told_of_and_never_shown(
    token: str,
    message: str,
    hub: LoopbackHub,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    caplog.set_level(logging.DEBUG)
    assert main(["publish", str(folder), REPO]) == 2
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == f"cfqa: {said.err.splitlines()[-1][6:]}"
    assert message in said.err.splitlines()[-1]
    assert token not in said.out + said.err + caplog.text
    assert hub.repos == {}


def test_the_token_is_in_no_output_log_or_file(
    hub: LoopbackHub,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    from loopback_hub import TOKEN

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    caplog.set_level(logging.DEBUG)
    assert main(["publish", str(folder), REPO]) == 0
    assert main(["publish", str(folder), REPO, "--json"]) == 0
    said = capsys.readouterr()
    assert TOKEN not in said.out + said.err + caplog.text
    for root in (tmp_path, folder):
        for path in root.rglob("*"):
            assert not path.is_file() or TOKEN.encode() not in path.read_bytes()
    assert not any(TOKEN.encode() in blob for blob in hub.blobs.values())


STEPS = [
    "/api/repos/create",
    "*/refs",
    "*/tree/*",
    "*/preupload/*",
    "*/batch",
    "/cdn/*",
    "*/commit/*",
    "*/tag/*",
    "*/resolve/*",
]


def test_a_hub_that_stumbles_at_every_step_is_asked_again(hub: LoopbackHub, folder: Path) -> None:
    for pattern in STEPS:
        hub.fail(pattern, times=2, status=503)
    done = send(folder)
    assert len(there(hub, done.tag)) == done.files
    assert not any(fault.times for fault in hub.faults)


@pytest.mark.parametrize(
    "pattern",
    ["/cdn/*", *release("*/refs", "*/tag/*")],
)
def test_a_hub_that_stays_down_is_one_line_and_the_next_run_goes_on(
    pattern: str, hub: LoopbackHub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fail(pattern, times=10_000, status=503)
    assert main(["publish", str(folder), REPO]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cfqa:")]
    assert len(lines) == 1
    assert "503" in lines[0] or "cannot be reached" in lines[0]
    assert "run the same command again to resume" in lines[0]
    hub.reset()
    assert main(["publish", str(folder), REPO]) == 0
    assert len(there(hub)) == len(plan_publishing(folder, REPO).upload.files)


def test_after_a_connection_that_dropped_only_the_rest_is_sent(
    hub: LoopbackHub,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real, sent = Handler._read_body, []

    def drop(self: Handler) -> bytes:
        if self.command == "PUT":
            sent.append(self.path)
            if len(sent) > 7:
                self.rfile.read(10)
                raise ConnectionResetError
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Handler, "_read_body", drop)
        assert main(["publish", str(folder), REPO]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cfqa:")]
    assert len(lines) == 1
    assert "cannot be reached; uploaded files are kept" in lines[0]
    assert "manifest.json" not in there(hub)
    assert hub.count("/cdn/*", "PUT") == 7
    hub.reset()
    done = send(folder)
    everything = {hashlib.sha256(content).hexdigest() for content in there(hub).values()}
    again = {request.path.split("/")[2] for request in hub.find("/cdn/*", "PUT")}
    assert again < everything
    assert not again & {path.split("/")[2] for path in sent[:7]}
    assert len(there(hub, done.tag)) == done.files


def test_bytes_that_come_back_changed_are_noticed(
    hub: LoopbackHub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fail("*/truth/cls.safetensors", corrupt=True)
    assert main(["publish", str(folder), REPO]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "truth/cls.safetensors read back with SHA-256" in line
    assert hub.repos[REPO].tags == {}
    assert main(["publish", str(folder), REPO]) == 0
    assert len(hub.repos[REPO].tags) == 1


def test_a_file_that_the_hub_lost_is_noticed(
    hub: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Handler._commit

    def lose(self: Handler, *which: Any) -> Any:
        answer = real(self, *which)
        head = self.repo.commits[self.repo.branches["main"]]
        head.files.pop("bitstreams/dpt-x265-00000-of-00001.safetensors", None)
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(Handler, "_commit", lose)
        with pytest.raises(CfqaError, match=r"bitstreams/dpt-x265.* on the Hub"):
            send(folder)
    assert send(folder).sent == 1


def test_a_branch_that_cannot_be_is_one_line(hub: LoopbackHub, folder: Path) -> None:
    with pytest.raises(CfqaError, match=f"{REPO}: not found on the Hub"):
        send(folder, revision="refs/pr/9")


def test_a_new_repo_is_private_on_request_and_a_public_one_is_refused(
    hub: LoopbackHub, folder: Path
) -> None:
    send(folder, private=True)
    assert hub.repos[REPO].private
    hub.repos[REPO].private = False
    hub.reset()
    with pytest.raises(CfqaError, match="already exists and is public"):
        send(folder, private=True)
    assert writes(hub) == 0


def test_offline_mode_is_kept_to(
    hub: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CfqaError, match="HF_HUB_OFFLINE is set"):
        send(folder)
    assert hub.requests == []
