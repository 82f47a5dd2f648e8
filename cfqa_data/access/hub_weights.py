"""Weights in a model repo on the Hub, as `hf://org/name[@revision][/file]`.

They are downloaded once, into `huggingface_hub`'s own cache, and read from there; without a file it
is the repo's `model.safetensors`, or the index of its shards. A commit as revision pins them.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from cfqa_data.access.hub_client import HubRepo
from cfqa_data.errors import RecipeError
from cfqa_data.format.checkpoints import HUB_FILE, HUB_INDEX, shard_index
from cfqa_data.format.resources import HUB

__all__ = ["HubWeights", "hub_weights"]

ADDRESS = re.compile(r"hf://([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w.-]+))?(?:/([^@]+))?", re.ASCII)
COMMIT = re.compile("[0-9a-f]{40}")


class HubWeights(NamedTuple):
    """Weights that an address names.

    Attributes:
        repo: "org/name".
        revision: branch, tag or commit; None for the main branch.
        file: their file in the repo; None for the usual ones.
    """

    repo: str
    revision: str | None
    file: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of files that they may be in."""
        return (self.file,) if self.file else (HUB_FILE, HUB_INDEX)

    def cached(self) -> Path | None:
        """Return where the cache holds them; nothing is asked of the Hub."""
        with suppress(ImportError):
            from huggingface_hub import try_to_load_from_cache

            for name in self.names:
                path = try_to_load_from_cache(self.repo, name, revision=self.revision or "main")
                if isinstance(path, str):
                    return Path(path)
        return None

    def fetch(self) -> tuple[Path, str]:
        """Return where the cache holds them, fetched if need be, and their commit.

        Raises:
            RecipeError: the repo has no such weights.
            HubError: they cannot be reached, or may not be read.
            BuildError: their index is none.
            MissingDependencyError: `huggingface_hub` is not installed.
        """
        repo, held = HubRepo(self.repo, self.revision, "model"), self.cached()
        for name in sorted(self.names, key=lambda name: held is None or held.name != name):
            with suppress(FileNotFoundError):
                path = repo.download(name, True)
                if path.name.endswith(".json"):
                    for shard in sorted(set(shard_index(path).values())):
                        repo.download(str(PurePosixPath(name).with_name(shard)), True)
                return path, repo.commit
        hint = "" if self.file else f"; name the file, as in {HUB}{self.repo}/FILE"
        raise RecipeError(f"{repo.location}: has no {' or '.join(self.names)}{hint}")

    def pinned(self) -> str:
        """Return their address at the commit that they are of now; they are fetched for that."""
        commit = self.revision
        if commit is None or not COMMIT.fullmatch(commit):
            commit = self.fetch()[1]
        return f"{HUB}{self.repo}@{commit}" + (f"/{self.file}" if self.file else "")


def hub_weights(uri: str) -> HubWeights:
    """Return the weights that an address names.

    Raises:
        RecipeError: it is no such address.
    """
    found = ADDRESS.fullmatch(uri)
    if (
        found is None
        or found[1].split("/")[0] in ("datasets", "spaces")
        or ".." in PurePosixPath(found[3] or "").parts
    ):
        raise RecipeError(f"{uri}: weights on the Hub are {HUB}org/name[@revision][/file]")
    return HubWeights(found[1], found[2], found[3])
