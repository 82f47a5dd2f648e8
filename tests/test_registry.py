"""Find classes by name: built-in, entry points, `module:Class`, plugins; bind their options."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from cases import each

from cfqa_data.codecs import CODECS, find_codec, get_codec, list_codecs
from cfqa_data.codecs.base import Codec
from cfqa_data.errors import CfqaError, CodecError
from cfqa_data.format import format_1
from cfqa_data.registry import Registry, as_plugins, bind_options, own_name

MODULE = """
from cfqa_data.codecs.h26x.hevc import X265

class Mine(X265):
    name = "mine"

    def __init__(self, preset: str = "fast", tables: dict | None = None) -> None:
        super().__init__(preset)
        self.given = tables

class Words:
    name = "words"

def text() -> str:
    return ""
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed distribution with a codec that two entry points name."""
    (tmp_path / "their_codecs.py").write_text(MODULE)
    (tmp_path / "broken_codecs.py").write_text("import sys\nsys.exit('no luck')")
    (tmp_path / "loose_codecs.py").write_text("from cfqa_data.codecs.h26x.hevc import X265")
    info = tmp_path / "their_things-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-things\nVersion: 1.2\n")
    (info / "top_level.txt").write_text("their_codecs\n")
    lines = ["mine = their_codecs:Mine", "broken = broken_codecs:X", "text = their_codecs:text"]
    lines += ["odd = their_codecs", "x265 = their_codecs:Mine"]
    (info / "entry_points.txt").write_text("\n".join(["[cfqa.codecs]", *lines]))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("their_codecs", None)


def test_built_in_names_come_first_and_are_not_taken_over(plugin: Path) -> None:
    assert list_codecs() == [*CODECS.builtin, "mine", "broken", "text", "odd"]
    found = find_codec("x265")
    assert found.builtin
    assert (found.package, found.version, found.sha256) == ("cfqa-data", "", "")
    for name, facts in format_1.CODECS.items():
        assert find_codec(name).target.facts() == facts


def test_what_is_installed_or_removed_later_is_seen(plugin: Path) -> None:
    assert "mine" in list_codecs()
    other = plugin / "others-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[cfqa.codecs]\nlater = their_codecs:Mine\n")
    assert find_codec("later").package == "others"
    (plugin / "their_things-1.2.dist-info").rename(plugin / "gone")
    assert list_codecs() == [*CODECS.builtin, "later"]


def test_an_entry_point_says_whose_it_is(plugin: Path) -> None:
    found = find_codec("mine")
    digest = hashlib.sha256((plugin / "their_codecs.py").read_bytes()).hexdigest()
    assert (found.name, found.package, found.version) == ("mine", "their-things", "1.2")
    assert (found.sha256, found.builtin) == (digest, False)
    codec = get_codec("mine", preset="slow", tables={})
    assert (codec.preset, codec.given) == ("slow", {})


def test_module_and_class_are_for_whoever_trusts_them(plugin: Path) -> None:
    found = find_codec("their_codecs:Mine", classes=True)
    assert (found.target.name, found.package, found.version) == ("mine", "their-things", "1.2")
    loose = find_codec("loose_codecs:X265", classes=True)
    assert (loose.package, loose.version, loose.builtin) == ("loose_codecs", "", False)
    for name in ("their_codecs:Mine", "their_codecs"):
        with pytest.raises(CodecError, match=f"unknown codec '{name}'"):
            find_codec(name)


@pytest.mark.parametrize("by_class", [False, True])
def test_plugins_are_found_by_the_name_of_their_class(plugin: Path, by_class: bool) -> None:
    (plugin / "their_things-1.2.dist-info" / "entry_points.txt").write_text("")
    plugins: list[Any] = ["their_codecs:Words", "their_codecs:Mine"]
    if by_class:
        plugins = [find_codec("their_codecs:Mine", classes=True).target]
    assert find_codec("mine", plugins=plugins).name == "mine"
    assert get_codec("mine", plugins=plugins).preset == "fast"
    assert find_codec("x265", plugins=plugins).builtin
    for name in ("words", "their_codecs:Mine"):
        with pytest.raises(CodecError, match=f"unknown codec '{name}'"):
            find_codec(name, plugins=plugins)


def test_a_plugin_may_be_given_alone(plugin: Path) -> None:
    assert as_plugins(None) == ()
    assert as_plugins("a:B") == ("a:B",)
    assert as_plugins(Thing) == (Thing,)
    assert find_codec("mine", plugins="their_codecs:Mine").name == "mine"
    for wrong in ([json], json):
        with pytest.raises(
            CfqaError, match="plugins must be classes or 'module:Class' strings, not <mod"
        ):
            as_plugins(wrong)  # type: ignore[arg-type]


def test_a_manifest_names_no_module(plugin: Path) -> None:
    assert CODECS.recorded("x265") == "x265"
    assert CODECS.recorded("loose_codecs:X265") == "x265"  # its own name
    assert CODECS.recorded("their_codecs:Mine") == "mine"  # its entry point's
    assert own_name(find_codec("mine").target) == "mine"
    facts = type("Facts", (), {"name": "of its facts"})
    assert own_name(type("Task", (), {"facts": facts()})) == "of its facts"
    assert own_name(Thing) == "thing"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("broken", "codec 'broken': cannot import broken_codecs:X: SystemExit: no luck"),
        ("text", "codec 'text': .* is not a Codec or FeatureCodec or InputCodec"),
        ("odd", "codec 'odd': 'their_codecs' is not module:Class"),
        (
            "nowhere:X",
            "codec 'nowhere:X': cannot import nowhere:X: no module 'nowhere' in ",
        ),
        ("their_codecs:Y", "codec 'their_codecs:Y': unknown class of their_codecs 'Y': known: X"),
        ("their_codecs:Mime", "codec .*: unknown class of .* 'Mime': did you mean 'Mine'"),
        ("their_codecs.Mine", "unknown codec .*: did you mean 'their_codecs:Mine'"),
        ("their_codecs:Words", "codec 'their_codecs:Words': .* is not a Codec"),
        ("a:b:c", "codec 'a:b:c': 'a:b:c' is not module:Class"),
        ("x256", "unknown codec 'x256': did you mean 'x265'"),
        (["x265"], "unknown codec"),
    ],
)
def test_what_is_no_codec_is_one_line(plugin: Path, name: str, told: str) -> None:
    with pytest.raises(CodecError, match=f"^{told}") as error:
        find_codec(name, classes=True)
    assert "\n" not in str(error.value)


def test_any_class_is_one_where_there_is_no_contract(plugin: Path) -> None:
    things = Registry("thing", {"own": "cfqa_data.codecs.base:Codec"}, CfqaError)
    assert things.group == "cfqa.things"
    assert things.find("own").target is Codec
    assert things.find("their_codecs:text", classes=True).target() == ""
    assert things.find("words", plugins=["their_codecs:Words"]).target.name == "words"


def test_codecs_of_others_do_not_decode_in_isolation(plugin: Path) -> None:
    told = "^mine: untrusted=True runs built-in codecs only, and this is a plugin of their-things$"
    with pytest.raises(CodecError, match=told):
        get_codec("mine", untrusted=True)


class Thing:
    def __init__(
        self,
        seed: int,
        *,
        path: Path | None = None,
        rate: float = 1.0,
        sides: tuple[int, ...] = (),
        text: str | Path = "",
        flag: bool = False,
        table: Mapping[str, int] | None = None,
        kind: Literal["a", "b"] = "a",
        anything: Any = None,
    ) -> None: ...


def test_options_are_bound_by_the_signature() -> None:
    options = {"path": "x", "rate": 2, "sides": [1, 2], "text": "y", "table": {}, "anything": 3}
    bound = bind_options(Thing, options, "thing", CfqaError, seed=1, root="not taken")
    assert bound == options | {"seed": 1, "path": Path("x"), "rate": 2.0, "sides": (1, 2)}
    assert type(bound["rate"]) is float
    assert bind_options(lambda **given: given, {"x": 1}, "f", CfqaError, y=2) == {"x": 1, "y": 2}


@each(
    ("options", "told"),
    [
        ({}, "thing: lacks the option seed"),
        ({"seed": 1, "pathh": "x"}, "thing: unknown option 'pathh': did you mean 'path'"),
        ({"seed": 1, "given": 2}, "thing: unknown option 'given'"),
        ({"seed": "1"}, "thing: option seed cannot be '1'"),
        ({"seed": True}, "thing: option seed cannot be True"),
        ({"seed": 1.5}, "thing: option seed cannot be 1.5"),
        ({"seed": 1, "rate": "fast"}, "thing: option rate cannot be 'fast'"),
        ({"seed": 1, "flag": 1}, "thing: option flag cannot be 1"),
        ({"seed": 1, "path": 3}, "thing: option path cannot be 3"),
        ({"seed": 1, "table": [1]}, r"thing: option table cannot be \[1\]"),
        ({"seed": 1, "kind": "c"}, "thing: option kind cannot be 'c'"),
    ],
)
def test_options_that_cannot_be_are_one_line(options: dict[str, Any], told: str) -> None:
    with pytest.raises(CfqaError, match=f"^{told}"):
        bind_options(Thing, options, "thing", CfqaError, given=1)


def test_a_class_without_options_says_so() -> None:
    with pytest.raises(CfqaError, match=r"^thing: unknown option 'x': it takes none"):
        bind_options(object, {"x": 1}, "thing", CfqaError)
