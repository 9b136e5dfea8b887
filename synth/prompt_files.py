"""Prompts as files: Markdown with a short front matter, whose bytes are part of a recipe's identity.

Slots are written `{{name}}` and filled in a single pass, so that braces in a document are never read as slots. English
prompts lie in the recipe's folder, Chinese ones in `zh/` beside them; a document is asked about in its own language.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from pipelines.files import sha256_of
from synth.words import script_of_words

FOLDER = Path(__file__).resolve().parent / "prompts"
ENGLISH, CHINESE = "en", "zh"
_CHINESE_CODES = {"zh", "zho", "chi", "cmn", "yue", "wuu", "lzh"}
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
        prefix: what an answer has to begin with, if the prompt asks for it; fills the slot of that name.
    """

    id: str
    version: int
    max_tokens: int
    body: str
    sha256: str
    prefix: str = ""

    @property
    def slots(self) -> set[str]:
        """Names of the slots in the body."""
        return set(_SLOT.findall(self.body))

    def fill(self, values: Mapping[str, str]) -> str:
        """The body with every slot replaced once; a slot without a value is an error of ours."""
        known = {"prefix": self.prefix, **values}
        return _SLOT.sub(lambda match: known[match.group(1)], self.body)


@dataclass(frozen=True)
class Prompts:
    """The prompts of a recipe.

    Attributes:
        files: by language and stage.
    """

    files: Mapping[tuple[str, str], Prompt]

    def of(self, stage: str, language: str = ENGLISH) -> Prompt:
        """The prompt of a stage in a language, in English where it is not written in that one."""
        return self.files.get((language, stage)) or self.files[ENGLISH, stage]

    def hashes(self) -> dict[str, str]:
        """sha256 of every file, by `stage` or `zh/stage`."""
        named = {
            stage if language == ENGLISH else f"{language}/{stage}": p for (language, stage), p in self.files.items()
        }
        return {name: prompt.sha256 for name, prompt in sorted(named.items())}


def load_prompts(*recipes: str, folder: Path = FOLDER) -> Prompts:
    """The prompts of a recipe; where several are named, later ones stand in for earlier ones."""
    files: dict[tuple[str, str], Prompt] = {}
    for recipe in recipes:
        for language, place in ((ENGLISH, folder / recipe), (CHINESE, folder / recipe / CHINESE)):
            files |= {(language, path.stem): read_prompt(path) for path in sorted(place.glob("*.md"))}
    return Prompts(files)


def prompt_language(language: str | None, text: str) -> str:
    """Which prompts a document is asked with.

    Args:
        language: its label, ISO 639-1 or -3, with or without script and region; None where it has none.
        text: of the document: its script decides where the label is missing. Kana and hangul are not Chinese.
    """
    if language:
        return CHINESE if re.split("[-_]", language.lower())[0] in _CHINESE_CODES else ENGLISH
    return CHINESE if script_of_words(text) == "CJK" else ENGLISH


def read_prompt(path: Path) -> Prompt:
    """Read one prompt file."""
    _, front, body = path.read_text(encoding="utf-8").split("---\n", 2)
    fields = YAML(typ="safe").load(front)
    return Prompt(fields["id"], fields["version"], fields["max_tokens"], body.rstrip("\n"), sha256_of(path),
                  fields.get("prefix", ""))  # fmt: skip
