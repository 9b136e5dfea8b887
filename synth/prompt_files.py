"""Prompts as files: Markdown with a short front matter, whose bytes are part of a recipe's identity.

Slots are written `{{name}}` and filled in a single pass, so that braces in a document are never read as slots.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from pipelines.files import sha256_of

FOLDER = Path(__file__).resolve().parent / "prompts"
_SLOT = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        id: recipe and stage.
        version: raised by hand when the meaning changes.
        max_tokens: ceiling of the answer.
        body: with slots.
        sha256: of the file.
    """

    id: str
    version: int
    max_tokens: int
    body: str
    sha256: str

    @property
    def slots(self) -> set[str]:
        """Names of the slots in the body."""
        return set(_SLOT.findall(self.body))

    def fill(self, values: Mapping[str, str]) -> str:
        """The body with every slot replaced once; a slot without a value is an error of ours."""
        return _SLOT.sub(lambda match: values[match.group(1)], self.body)


def load_prompts(recipe: str, folder: Path = FOLDER) -> dict[str, Prompt]:
    """The prompts of a recipe, by stage."""
    return {path.stem: read_prompt(path) for path in sorted((folder / recipe).glob("*.md"))}


def read_prompt(path: Path) -> Prompt:
    """Read one prompt file."""
    _, front, body = path.read_text(encoding="utf-8").split("---\n", 2)
    fields = YAML(typ="safe").load(front)
    return Prompt(fields["id"], fields["version"], fields["max_tokens"], body.rstrip("\n"), sha256_of(path))
