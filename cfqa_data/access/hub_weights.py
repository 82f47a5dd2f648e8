"""Weights in a model repo on the Hub: `hf://org/name[@revision][/file]`.

Weights are downloaded into the cache of `huggingface_hub` and read from there. Without a file, the
URI means the repo's `model.safetensors` or the index of its shards. A commit as revision pins them.
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
    """The parts of a URI of weights.

    Attributes:
        repo: Repo id, "org/name".
        revision: Branch, tag or commit; None for the main branch.
        file: File in the repo; None for the default files.
    """

    repo: str
    revision: str | None
    file: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """File names of the weights, in the order to try."""
        return (self.file,) if self.file else (HUB_FILE, HUB_INDEX)

    def cached(self) -> Path | None:
        """Return the path of the weights in the cache, if they are cached; make no request."""
        with suppress(ImportError):
            from huggingface_hub import try_to_load_from_cache

            for name in self.names:
                path = try_to_load_from_cache(self.repo, name, revision=self.revision or "main")
                if isinstance(path, str):
                    return Path(path)
        return None

    def fetch(self) -> tuple[Path, str]:
        """Download the weights unless they are cached; return their path and commit.

        Raises:
            RecipeError: If the repo has no such weights.
            HubError: If the Hub cannot be reached, or the weights may not be read.
            BuildError: If the index of the shards is not valid.
            MissingDependencyError: If `huggingface_hub` is not installed.
        """
        repo, cached = HubRepo(self.repo, self.revision, "model"), self.cached()
        for name in sorted(self.names, key=lambda name: cached is None or cached.name != name):
            with suppress(FileNotFoundError):
                path = repo.download(name, True)
                if path.name.endswith(".json"):
                    for shard in sorted(set(shard_index(path).values())):
                        repo.download(str(PurePosixPath(name).with_name(shard)), True)
                return path, repo.commit
        hint = "" if self.file else f"; name the file, as in {HUB}{self.repo}/FILE"
        raise RecipeError(f"{repo.location}: has no {' or '.join(self.names)}{hint}")

    def pinned(self) -> str:
        """Return the URI with the revision's current commit; download the weights to find it."""
        commit = self.revision
        if commit is None or not COMMIT.fullmatch(commit):
            commit = self.fetch()[1]
        return f"{HUB}{self.repo}@{commit}" + (f"/{self.file}" if self.file else "")


def hub_weights(uri: str) -> HubWeights:
    """Parse a URI of weights on the Hub.

    Raises:
        RecipeError: If the URI is malformed.
    """
    match = ADDRESS.fullmatch(uri)
    if (
        match is None
        or match[1].split("/")[0] in ("datasets", "spaces")
        or ".." in PurePosixPath(match[3] or "").parts
    ):
        raise RecipeError(f"{uri}: weights on the Hub are {HUB}org/name[@revision][/file]")
    return HubWeights(match[1], match[2], match[3])
