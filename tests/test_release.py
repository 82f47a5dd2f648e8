"""Import of a downloaded release: placed and skipped files, losslessness, resuming."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damaged import edit_labels, edit_manifest
from pipeline_toy import TEN_QPS as TOY_QPS
from pipeline_toy import toy_recipe, tree, write_networks, write_toml
from release_samples import (
    IDS,
    LAMBDAS,
    QPS,
    SHAPES,
    feature,
    learned,
    ranges,
    score,
    stream_hashes,
    streams,
    write_logs,
    write_release,
)

import cfqa_data
from cfqa_data.builders.importing.files import load_feature, scan_release
from cfqa_data.builders.importing.release import _recorded, import_release
from cfqa_data.builders.pipeline.context import Models
from cfqa_data.builders.pipeline.lock import locked
from cfqa_data.cli import main
from cfqa_data.codecs import get_codec
from cfqa_data.errors import BuildError, CfqaError
from cfqa_data.eval import evaluate
from cfqa_data.eval.report import report_html
from cfqa_data.format.manifest import hash_files, read_manifest
from cfqa_data.format.packing import pack, plane_shape, unpack
from cfqa_data.format.quantizers import quantizer_from_dict
from cfqa_data.integrity.consistency import inconsistencies
from cfqa_data.loaders.torch import Pairs
from cfqa_data.processes import executor
from cfqa_data.testing.mock import write_format_2_folder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread, which is faster for small matrices."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


CODECS = ("hm", "vtm", "hyperprior_multi_task", "hyperprior_task_specific")


@functools.cache
def expected(task: str, codec: str, index: int, level: int) -> np.ndarray:
    """Return a compressed feature by the published formulas, from the decoder of PyAV itself."""
    if codec.startswith("hyper"):
        return learned(task, index, level)
    import av

    context = av.CodecContext.create({"hm": "hevc", "vtm": "vvc"}[codec], "r")
    stream = streams()[f"{codec}/{task}/{QPS[level]}/{IDS[task][index]}"]
    packets = [*context.parse(stream), *context.parse(None), None]
    (frame,) = [frame for packet in packets for frame in context.decode(packet)]
    rows, cols = plane_shape(SHAPES[task])
    plane = np.frombuffer(frame.planes[0], "<u2").reshape(frame.height, -1)[:rows, :cols]
    n, c, t, d = SHAPES[task]
    codes = plane.reshape(n, t, c, d).transpose(0, 2, 1, 3).astype(np.float32)
    lo, hi = ranges(task)
    made = np.empty(SHAPES[task], np.float32)
    for layer in range(c):
        made[:, layer] = codes[:, layer] / (1023 / (hi[layer] - lo[layer])) + lo[layer]
    return made


def all_mse(
    tasks: tuple[str, ...] = ("cls", "seg", "dpt"),
) -> dict[tuple[str, str, str, float], float]:
    """Return the MSE of every compressed feature, as the published code computes it."""
    return {
        (codec, task, name, float((QPS if len(codec) < 4 else LAMBDAS)[level])): float(
            np.mean((feature(task, index) - expected(task, codec, index, level)) ** 2)
        )
        for task in tasks
        for codec in CODECS
        for index, name in enumerate(IDS[task])
        for level in range(10)
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release, its logs and what `cfqa import-release` makes of them."""
    root = tmp_path_factory.mktemp("release")
    write_release(root)
    write_logs(root / "logs", all_mse())
    import_release(root, root / "out", logs=root / "logs")
    return root


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A release of cls only that tests may damage, with its logs in `tmp_path`/logs."""
    write_logs(tmp_path / "logs", all_mse(("cls",)))
    return write_release(tmp_path, tasks=("cls",))


def imported(release: Path) -> Any:
    return import_release(release, release.parent / "out", logs=release.parent / "logs")


def test_an_import_takes_the_lock_of_a_build(release: Path) -> None:
    out = release.parent / "out"
    with (
        locked(out),
        pytest.raises(
            BuildError, match=rf"^another build is running in {out} \(process {os.getpid()} on"
        ),
    ):
        imported(release)
    assert list(out.iterdir()) == []
    imported(release)
    assert not (out / ".build").exists()


def test_the_real_streams_decode_as_their_own_decoders_do() -> None:
    hashes = stream_hashes()
    assert len(hashes) == 2 * 3 * 2 * 10
    for key, stream in streams().items():
        codec, task, _, _ = key.split("/")
        plane = get_codec(codec).decode(stream, plane_shape(SHAPES[task]))
        assert hashlib.sha256(plane.astype("<u2").tobytes()).hexdigest() == hashes[key]


@pytest.mark.parametrize("task", IDS)
def test_every_feature_is_there_bit_for_bit(whole: Path, task: str) -> None:
    pairs = cfqa_data.load(whole / "out", task)
    assert len(pairs) == 4 * 10 * 2
    assert pairs.source_ids == IDS[task]
    for index, name in enumerate(IDS[task]):
        assert pairs.original(name).tobytes() == feature(task, index).tobytes()
        for codec in CODECS:
            for level in range(10):
                told = expected(task, codec, index, level)
                assert pairs.compressed(name, codec, level).tobytes() == told.tobytes()
        for level, qp in enumerate(QPS):
            for codec in ("hm", "vtm"):
                stream = streams()[f"{codec}/{task}/{qp}/{name}"]
                assert pairs.bitstream(name, codec, level) == stream


def test_the_labels_are_those_of_the_logs_and_of_our_metrics(whole: Path) -> None:
    mse = all_mse()
    rows = cfqa_data.load(whole / "out").labels.to_pylist()
    for row in rows:
        task, codec, name, level = (row[key] for key in ("task", "codec", "source_id", "level"))
        index = IDS[task].index(name)
        unit = 0.01 if task == "seg" else 1
        assert row["parameter"] == (QPS if codec in ("hm", "vtm") else LAMBDAS)[level]
        assert row["score"] == pytest.approx(unit * score(task, index, level))
        assert row["mse"] == pytest.approx(mse[codec, task, name, row["parameter"]], rel=1e-5)
        assert np.isnan(row["loss"])
        best = 1.0 if task == "cls" else unit * score(task, index, 0)
        assert row["reference_score"] == pytest.approx(best)
        harm = best - row["score"] if task == "seg" else row["score"] - best
        assert row["distortion"] == pytest.approx(harm, abs=1e-12)
        if codec in ("hm", "vtm"):
            stream = streams()[f"{codec}/{task}/{int(row['parameter'])}/{name}"]
            assert row["bits"] == 8 * len(stream)
            assert row["bpfp"] == row["bits"] / np.prod(SHAPES[task])
        else:
            assert row["bits"] is None
            assert np.isnan(row["bpfp"])


@pytest.mark.usefixtures("quick_statistics")
def test_unknown_rates_are_shown_as_unknown(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the card, `info` and the report; also of an import that wrote them as 0 bits."""
    old = tmp_path / "old"
    shutil.copytree(whole / "out", old)
    for task in IDS:
        edit_labels(old, task, lambda rows: [row.update(bits=row["bits"] or 0) for row in rows])
    told = read_manifest(whole / "out").health
    assert [row["rate_falls"] is None for row in told] == [False, False, True, True] * 3
    assert all(row["ok"] for row in told if row["task"] == "dpt")
    counted = [dict(row) for row in told]
    for row in counted:
        if row["rate_falls"] is None:
            row |= {"rate_falls": 0.0, "ok": False}
    edit_manifest(old, health=counted)
    assert " | - | " in (whole / "out" / "README.md").read_text()
    for folder in (whole / "out", old):
        assert inconsistencies(folder, read_manifest(folder), set()) == []
        assert main(["info", str(folder)]) == 0
        text = capsys.readouterr().out
        assert len(re.findall(r"^dpt +hyper\S+ .* - +100.0% +ok$", text, re.M)) == 2
        assert "light" not in text  # of what has no bitstream, there is no light tier
        page = report_html(evaluate(folder, "mse", codec="hyperprior_multi_task"), folder)
        assert "Rate-distortion" not in page
        page = report_html(evaluate(folder, "mse"), folder)
        drawn = page[page.index('id="curves"') :].partition("</section>")[0]
        assert [drawn.count(f'class="band k{n}"') for n in range(4)] == [6, 6, 0, 0]
        with pytest.raises(CfqaError, match=r"bits of .* is not known"):
            Pairs(folder, codec="hyperprior_multi_task", label="bits")[0]


def test_an_import_is_a_dataset_like_any_other(whole: Path) -> None:
    root = whole / "out"
    manifest = cfqa_data.load(root).manifest
    assert (manifest.name, manifest.tier) == ("cfqa-release", "full")
    kinds = {
        codec.quantizer.to_dict()["kind"]
        for task in manifest.tasks.values()
        for codec in task.codecs.values()
        if codec.quantizer
    }
    assert kinds == {"paper_uniform", "paper_kmeans"}
    assert "hm_" not in manifest.versions["scores of hm on cls"]
    assert "sha256" in manifest.versions["scores of hm on cls"]
    assert manifest.files == hash_files(root)
    assert not (root / ".build").exists()
    card = (root / "README.md").read_text()
    assert 'license: "cc-by-nc-4.0"' in card
    assert "CC BY 4.0" not in card
    found = evaluate(root, "mse", task="dpt", codec="hm").correlations.to_pylist()[0]
    assert found["srocc"] > 0.9


@pytest.mark.parametrize("codec", ["hm", "hyperprior_multi_task"])
def test_reading_without_the_package_also_fits_an_import(whole: Path, codec: str) -> None:
    page = (Path(__file__).parents[1] / "docs/format.md").read_text(encoding="utf-8")
    code = page.split("```python\n", 1)[1].split("```", 1)[0]
    assert "cfqa/compressed/dpt/x265.zarr" in code
    folder = str(whole / "out/compressed/dpt" / f"{codec}.zarr")
    names: dict[str, Any] = {}
    exec(code.replace("cfqa/compressed/dpt/x265.zarr", folder), names)
    assert names["source_id"] == IDS["dpt"][0]
    assert names["feature"].tobytes() == expected("dpt", codec, 0, 9).tobytes()


def test_going_on_gives_the_same_bytes(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once = import_release(release, release.parent / "once", logs=release.parent / "logs")
    done: list[str] = []
    run = executor.run_item

    def dying(stage: Any, item: Any) -> None:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(str(item))
        run(stage, item)

    with monkeypatch.context() as patched:
        patched.setattr(executor, "run_item", dying)
        with pytest.raises(KeyboardInterrupt):
            imported(release)
    assert len(done) == 5
    again: list[str] = []
    monkeypatch.setattr(
        executor, "run_item", lambda stage, item: (again.append(str(item)), run(stage, item))
    )
    assert imported(release).unplaced == once.unplaced == ()
    assert not set(done) & set(again)
    assert hash_files(release.parent / "out") == hash_files(once.root)
    again.clear()
    imported(release)  # a finished folder is left as it is
    assert again == []


@pytest.mark.parametrize("name", ["manifest.json", ".build/plan.json"])
def test_no_class_of_a_folder_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "class_of_a_folder.py").write_text("class Codec: pass\n")
    folder = write_format_2_folder(tmp_path / "x", "light")
    data = json.loads((folder / "manifest.json").read_text())
    data["recipe"] = toy_recipe(tmp_path, {"x265": TOY_QPS}).to_dict()
    data["recipe"]["tasks"]["cls"]["codecs"]["x265"]["class"] = "class_of_a_folder:Codec"
    (folder / "manifest.json").unlink()
    (folder / ".build").mkdir()
    (folder / name).write_text(json.dumps(data))
    assert ("cls", "x265") in _recorded(folder)
    assert "class_of_a_folder" not in sys.modules


def test_what_has_no_place_is_listed_with_its_reason(release: Path) -> None:
    data = release / "compressed_feat"
    odd = {
        "notes.txt": "not part of the release's layout",
        "org_feat/cls/readme.md": "not part of the release's layout",
        "org_feat/det/a.npy": "not part of the release's layout",
        "compressed_feat/elic/cls/QP2/a.bin": "not part of the release's layout",
        "compressed_feat/hm/cls/QP2/x.yuv": "hm has .bin files",
        "compressed_feat/hm/cls/QP2/x.bin": "no org_feat/cls/x.npy",
        "compressed_feat/hyperprior_multi_task/cls/model.pth.tar": (
            "hyperprior_multi_task has .npy or .bin files"
        ),
        f"compressed_feat/vtm/cls/{IDS['cls'][0]}.bin": "in no folder QP{qp} or lambda{lambda}",
        f"compressed_feat/hm/cls/QP2/again/{IDS['cls'][0]}.bin": (
            f"compressed_feat/hm/cls/QP2/{IDS['cls'][0]}.bin has the same level"
        ),
        f"compressed_feat/hyperprior_multi_task/cls/lambda0.01/{IDS['cls'][0]}.bin": (
            "not every feature next to it has its bitstream"
        ),
    }
    for name in odd:
        (release / name).parent.mkdir(parents=True, exist_ok=True)
        (release / name).write_bytes(b"x")
    (data / "vtm/cls/QP4" / f"{IDS['cls'][1]}.bin").unlink()
    shutil.rmtree(data / "hyperprior_task_specific/cls/lambda0.01")
    report = imported(release)
    reasons = {file.path: file.why for file in report.unplaced}
    assert {name: reasons.pop(name) for name in odd} == odd
    counts: dict[str, int] = {}
    for why in reasons.values():
        counts[why] = counts.get(why, 0) + 1
    assert counts == {
        f"vtm on cls lacks {IDS['cls'][1]} at level 4": 19,
        "hyperprior_task_specific on cls has 9 levels; a dataset has 10": 18,
    }
    assert report.placed == 2 + 20 + 20
    labels = cfqa_data.load(report.root).labels
    assert set(labels["codec"].to_pylist()) == {"hm", "hyperprior_multi_task"}


def test_links_and_odd_names_are_listed_and_nothing_else_is_touched(
    release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = release.parent / "outside"
    shutil.move(release / "compressed_feat/vtm", outside)
    path = release / f"org_feat/cls/{IDS['cls'][0]}.npy"
    (release / "compressed_feat/vtm").symlink_to(outside)
    path.rename(outside / "blob")
    path.symlink_to(outside / "blob")  # as a cache of downloads has them
    (release / "org_feat/cls/lost.npy").symlink_to("nowhere")
    os.mkfifo(release / "org_feat/cls/pipe.npy")
    (release / "org_feat/cls" / "two\nlines.npy").write_bytes(b"x")
    (release / "esc\x1b[31m.txt").write_bytes(b"x")
    Path(os.fsdecode(os.fsencode(release) + b"/latin\xe9.txt")).write_bytes(b"x")
    before = tree(release.parent)
    command = ["import-release", str(release), "--out", str(release.parent / "out")]
    assert main([*command, "--logs", str(release.parent / "logs")]) == 0
    listed = capsys.readouterr().out.partition("not placed: 6\n")[2].splitlines()
    assert listed == [
        "  compressed_feat/vtm: links to folders are not followed: copy the folder here",
        "  esc\\x1b[31m.txt: a name with unprintable characters",
        "  latin\\udce9.txt: a name with unprintable characters",
        "  org_feat/cls/lost.npy: not a readable file",
        "  org_feat/cls/pipe.npy: not a readable file",
        "  org_feat/cls/two\\nlines.npy: a name with unprintable characters",
    ]
    after = {k: v for k, v in tree(release.parent).items() if not k.startswith("out/")}
    assert after == before
    pairs = cfqa_data.load(release.parent / "out")
    assert pairs.original(IDS["cls"][0]).tobytes() == feature("cls", 0).tobytes()


def test_features_that_are_no_table_are_listed(release: Path) -> None:
    folder = release / "compressed_feat/hyperprior_multi_task/cls/lambda0.005"
    path = folder / f"{IDS['cls'][1]}.npy"
    shape = SHAPES["cls"]
    values = np.linspace(0, 1, 2 * np.prod(shape), dtype=np.float32).reshape(2, *shape)
    for name, part in zip(IDS["cls"], values, strict=True):
        np.save(folder / f"{name}.npy", part)
    report = imported(release)
    assert len(report.unplaced) == 20
    assert {file.why for file in report.unplaced} == {
        f"more than 256 different values in layer 0 by {path.relative_to(release)}: not the "
        "centres of one k-means table"
    }
    np.save(path, -np.zeros(shape, np.float32))
    shutil.rmtree(report.root)
    assert "holds a negative zero" in imported(release).unplaced[0].why


def test_what_tools_leave_is_not_imported(release: Path) -> None:
    left = ["org_feat/cls/._a.npy", "org_feat/cls/.ipynb_checkpoints/a.npy", ".DS_Store"]
    left += ["compressed_feat/hm/cls/QP2/Thumbs.db", "compressed_feat/@eaDir/hm/cls/QP2/a.bin"]
    for name in left:
        (release / name).parent.mkdir(parents=True, exist_ok=True)
        (release / name).write_bytes(b"x")
    found = scan_release(release)
    assert {file.path: file.why for file in found.unplaced} == dict.fromkeys(
        left, "a leftover of a tool"
    )
    assert list(found.originals["cls"]) == IDS["cls"]
    assert len(found.codec_files) == 4


def test_bitstreams_beside_every_feature_give_the_rate(release: Path) -> None:
    folder = release / "compressed_feat/hyperprior_multi_task/cls"
    for level, value in enumerate(LAMBDAS):
        for name in IDS["cls"]:
            (folder / f"lambda{value}" / f"{name}.bin").write_bytes(bytes(range(100 - level)))
    pairs = cfqa_data.load(imported(release).root, codec="hyperprior_multi_task")
    assert [row["bits"] for row in pairs.labels.to_pylist()[:10]] == [
        8 * (100 - level) for level in range(10)
    ]
    assert pairs.bitstream(IDS["cls"][0], "hyperprior_multi_task", 9) == bytes(range(91))


def spoil(path: Path, kind: str) -> None:
    """Damage a file in one of several ways."""
    array = np.zeros(SHAPES["cls"], np.float32)
    if kind == "cut short":
        path.write_bytes(path.read_bytes()[:-40])
    elif kind == "pickle":
        np.save(path, np.array([{}], object), allow_pickle=True)
    elif kind == "archive":
        with path.open("wb") as file:
            np.savez(file, a=array)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind in HEADERS:
        header = HEADERS[kind].encode()
        path.write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header)
    else:
        array[0, 0, 1, 2] = {"nan": np.nan, "inf": np.inf}.get(kind, 0)
        changed = {
            "float64": array.astype(np.float64),
            "big-endian": array.astype(">f4"),
            "shape": array[..., :-1],
            "2-D": array[0, 0],
        }
        np.save(path, changed.get(kind, array))


HEADERS = {
    "open brackets": "(((\n",
    "keys of two kinds": "{1: 0, 'a': 0}\n",
    "negative": "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 1, 9, 16)}\n",
    "astronomic": "{'descr': '<f4', 'fortran_order': False, 'shape': (" + 99 * "9" + ",)}\n",
    "overflowing": f"{{'descr': '<f4', 'fortran_order': False, 'shape': {(1 << 40,) * 4}}}\n",
}
"""Headers of .npy files for which NumPy raises different kinds of errors."""

DAMAGE = {
    **dict.fromkeys(HEADERS, "not a readable .npy array"),
    "cut short": "not a readable .npy array: mmap length is greater than file size",
    "pickle": "not a readable .npy array: .*Python objects",
    "archive": "not a readable .npy array: the magic string is not correct",
    "empty": "not a readable .npy array",
    "nan": r"holds NaN or infinity, first at \(0, 0, 1, 2\)",
    "inf": r"holds NaN or infinity, first at \(0, 0, 1, 2\)",
    "big-endian": r">f4 \(1, 1, 9, 16\), not a float32 feature",
    "float64": r"float64 \(1, 1, 9, 16\), not a float32 feature",
    "2-D": r"float32 \(9, 16\), not a float32 feature",
    "shape": r"shape \(1, 1, 9, 15\)",
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize(
    "place", ["org_feat/cls", "compressed_feat/hyperprior_multi_task/cls/lambda0.01"]
)
def test_a_damaged_array_is_named(release: Path, place: str, kind: str) -> None:
    path = release / place / f"{IDS['cls'][1]}.npy"
    spoil(path, kind)
    with pytest.raises(BuildError, match=f"{path.name}: ({DAMAGE[kind]})") as caught:
        imported(release)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("codec", "spoilt"),
    [("hm", lambda data: data[: len(data) // 2]), ("vtm", lambda data: b"nothing of the kind")],
)
def test_a_damaged_bitstream_is_named_and_the_rest_is_kept(
    release: Path, codec: str, spoilt: Callable[[bytes], bytes]
) -> None:
    path = release / f"compressed_feat/{codec}/cls/QP8/{IDS['cls'][1]}.bin"
    sound = path.read_bytes()
    path.write_bytes(spoilt(sound))
    with pytest.raises(BuildError, match=f"{path.name}: {codec}: the (end of the )?bitstream"):
        imported(release)
    assert (release.parent / "out/originals").exists()
    path.write_bytes(sound)
    assert imported(release).unplaced == ()


def test_scores_of_the_originals_come_from_their_log(release: Path) -> None:
    path = release.parent / "logs/original/cls.txt"
    path.parent.mkdir()
    path.write_text("\n".join(f"{name} 2 0 1 1" for name in IDS["cls"]))
    labels = cfqa_data.load(imported(release).root).labels
    assert set(labels["reference_score"].to_pylist()) == {2.0}


def test_ladders_without_their_scores_are_left_out(release: Path) -> None:
    logs = release.parent / "logs"
    (logs / "vtm/cls.txt").unlink()
    text = (logs / "hm/cls.txt").read_text()
    (logs / "hm/cls.txt").write_text(text.replace(f"{IDS['cls'][1]}.npy 4.0", "other.npy 4.0"))
    learned = logs / "hyperprior_multi_task/cls.txt"
    name = f"{IDS['cls'][0]}.npy"
    learned.write_text(learned.read_text().replace(f"{name} 6.0", f"{name} nan"))
    reasons = {file.why for file in imported(release).unplaced}
    assert reasons == {
        "no log on vtm and cls",
        f"the log on hm and cls lacks {IDS['cls'][1]} at level 8",
        f"the log on hyperprior_multi_task and cls lacks {IDS['cls'][0]} at level {LAMBDAS[5]:g}",
    }


def test_another_mse_than_logged_is_told(release: Path) -> None:
    mse = all_mse(("cls",))
    mse["hm", "cls", IDS["cls"][0], 6.0] *= 1.01
    write_logs(release.parent / "logs", mse)
    (told,) = imported(release).disagreeing
    assert told.startswith(f"{IDS['cls'][0]} by hm at 6: ")


def test_tasks_may_have_different_numbers_of_originals(tmp_path: Path) -> None:
    write_logs(tmp_path / "logs", all_mse(("cls", "seg")))
    release = write_release(tmp_path, tasks=("cls", "seg"))
    for path in release.rglob(f"{IDS['seg'][1]}.*"):
        path.unlink()
    imported(release)
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.format, {n: len(e.sources) for n, e in manifest.tasks.items()}) == (
        2,
        {"cls": 2, "seg": 1},
    )
    assert inconsistencies(tmp_path / "out", manifest, set()) == []


def test_originals_of_two_tasks_have_different_names(tmp_path: Path) -> None:
    data = write_release(tmp_path, tasks=("cls", "seg"))
    cls, seg = IDS["cls"][1], IDS["seg"][1]
    for path in list(data.rglob(f"{seg}.*")):
        path.rename(path.with_stem(cls))
    logs = write_logs(tmp_path / "logs", all_mse(("cls", "seg")))
    for log in logs.rglob("seg.txt"):
        log.write_text(log.read_text().replace(seg, cls))
    with pytest.raises(BuildError) as caught:
        import_release(data, tmp_path / "out", logs=logs)
    told = f"{data / 'org_feat'}: '{cls}' is the id of a source of cls and of one of seg: ids are"
    assert str(caught.value).startswith(told)
    assert not (tmp_path / "out").exists()


def test_what_is_no_release_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no folder org_feat, so it"):
        scan_release(tmp_path)
    (tmp_path / "org_feat").mkdir()
    with pytest.raises(BuildError, match="lies in the release itself: choose another folder"):
        import_release(tmp_path, tmp_path / "a" / "out")
    (tmp_path / "org_feat" / "a.txt").write_text("x")
    with pytest.raises(BuildError, match=r"nothing that can be imported; .*org_feat/a\.txt"):
        import_release(tmp_path, tmp_path.parent / "out")


def test_without_logs_there_must_be_something_to_score_with(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFQA_ROOT", str(release.parent))
    with pytest.raises(
        BuildError,
        match="no scores: give published score logs by --logs, or the weights that recipe 'paper'",
    ):
        import_release(release, release.parent / "out")


def test_heads_and_truths_of_a_recipe_score_a_release(tmp_path: Path) -> None:
    """x265 stands for HM here: any HEVC stream will do for features of another width."""
    write_networks(tmp_path)
    whole = toy_recipe(tmp_path, {"hm": TOY_QPS}, sources_per_task=2)
    recipe = replace(whole, tasks={"cls": whole.tasks["cls"]})
    models = Models(recipe)
    candidates = models.source("cls").samples()
    samples = [next(candidates) for _ in range(2)]
    quantizer = quantizer_from_dict(
        recipe.tasks["cls"].codecs["hm"].quantizer.to_dict() | {"kind": "paper_uniform"}
    )
    told, release = {}, tmp_path / "release"
    for sample in samples:
        x = np.clip(models.features("cls", sample.inputs), -6, 6)
        path = release / "org_feat" / "cls" / f"{sample.source_id}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, x)
        decoded = [x]
        for qp in TOY_QPS["levels"]:
            stream = get_codec("x265").encode(pack(quantizer.quantize(x)), qp)
            path = release / f"compressed_feat/hm/cls/QP{qp}/{sample.source_id}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(stream)
            plane = get_codec("x265").decode(stream, plane_shape(x.shape))
            decoded.append(quantizer.dequantize(unpack(plane, x.shape)))
        batch = torch.from_numpy(np.stack(decoded))
        told[sample.source_id] = models.task("cls").scores(batch, np.asarray(sample.truth))
    source = write_toml(recipe, tmp_path / "toy.toml")
    report = import_release(release, tmp_path / "out", recipe=source)
    assert report.unplaced == ()
    pairs = cfqa_data.load(report.root)
    for row in pairs.labels.to_pylist():
        scores, losses = told[row["source_id"]]
        assert row["reference_score"] == scores[0]
        assert row["reference_loss"] == pytest.approx(losses[0], rel=1e-5)
        assert row["score"] == scores[row["level"] + 1]
        assert row["loss"] == pytest.approx(losses[row["level"] + 1], rel=1e-5)
    assert int(pairs.truth(samples[0].source_id)) == int(samples[0].truth)
    names = {"root://backbone.safetensors", "root://cls.safetensors"}
    assert set(pairs.manifest.weights) == names
    assert import_release(release, tmp_path / "out", recipe=source) == report
    moved = recipe.with_paths(lambda path: path.replace(str(tmp_path), str(tmp_path / "other")))
    (tmp_path / "other").mkdir()
    write_networks(tmp_path / "other")
    assert import_release(release, tmp_path / "out", recipe=moved) == report
    with (tmp_path / "other" / "cls.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BuildError, match=r"of other weights or lists \(root://cls\.safetensors\)"):
        import_release(release, tmp_path / "out", recipe=moved)


def test_the_command_lists_what_it_did_not_place(
    release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (release / "LICENSE").write_text("x")
    out, logs = release.parent / "out", release.parent / "logs"
    command = ["import-release", str(release), "--out", str(out), "--logs", str(logs)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "2 originals, 80 compressed features with labels" in printed
    assert printed.endswith(
        "Files placed: 82; not placed: 1\n  LICENSE: not part of the release's layout\n"
    )
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    why = "not part of the release's layout"
    assert told["import"]["unplaced"] == [{"path": "LICENSE", "why": why}]
    assert told["tasks"]["cls"]["features"] == 80
    assert main(["import-release", str(release / "org_feat"), "--out", str(out)]) == 2
    assert "no folder org_feat, so it" in capsys.readouterr().err


def test_a_feature_in_fortran_order_is_taken_as_it_is(tmp_path: Path) -> None:
    x = feature("cls", 0)
    np.save(tmp_path / "x.npy", np.asfortranarray(x))
    assert load_feature(tmp_path / "x.npy", SHAPES["cls"]).tobytes() == x.tobytes()
    assert pack(load_feature(tmp_path / "x.npy", SHAPES["cls"])).shape == (9, 16)
