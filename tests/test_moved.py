"""Former names of modules warn and import the modules of the new names."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

import pytest
from cases import each

from cfqa_data import _moved


@each("old", sorted(_moved._MOVED))
def test_every_old_name_leads_to_a_module(old: str) -> None:
    assert find_spec(_moved._MOVED[old]) is not None


@pytest.mark.parametrize(
    ("old", "name"),
    [
        ("cfqa_data.codes", "Codes"),
        ("cfqa_data.builders.backbone", "load_backbone"),
        ("cfqa_data.builders.heads", "load_head"),
        ("cfqa_data.recipe_specs", "Recipe"),
    ],
)
def test_an_old_name_warns_and_is_the_new_module(old: str, name: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {_moved._MOVED[old]}"):
        module = import_module(old)
    assert module is import_module(_moved._MOVED[old])
    assert module.__spec__ is not None
    assert module.__spec__.name == _moved._MOVED[old]
    assert getattr(module, name).__module__ == module.__name__


def test_names_that_nothing_has_are_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        import_module("cfqa_data.nothing")
