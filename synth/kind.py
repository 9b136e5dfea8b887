"""What a recipe of synthesis is: units of work cut from a document, stages that each ask once, and a sample at the end.

The machinery around it (requests, log, attempts, counts, files) is the same for all: `synth/generate.py`. A kind only
says what is asked and what an answer must satisfy, as pure functions of the answer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from synth.verification import Limits


@dataclass(frozen=True)
class Library:
    """What questions are answered from (`cot_rag`).

    Attributes:
        corpus: files of documents to retrieve from, or the folder of an index; the samples' documents when empty.
        clusters: `clusters.parquet` of the corpus's deduplication.
        embeddings: of the corpus's documents (and of questions), Parquet or .npy.
        text: template of the text of a record of the corpus; `{text}` when not given.
    """

    corpus: Sequence[Path] = ()
    clusters: Path | None = None
    embeddings: Sequence[Path] = ()
    text: str | None = None


@dataclass(frozen=True)
class Inputs:
    """What a kind may need besides its settings.

    Attributes:
        files: Parquet documents that samples are made of.
        work: the step's working folder.
        model: folder in Hugging Face format, where the engine runs in this process; its tokenizer counts tokens.
        held_out: Parquet files with the ids of documents that nothing may be made of.
        library: what is retrieved from.
    """

    files: Sequence[Path] = ()
    work: Path = Path()
    model: Path | None = None
    held_out: Sequence[Path] = ()
    library: Library = Library()


@dataclass(frozen=True)
class Stage:
    """One call of a recipe.

    Attributes:
        name: also of its prompt file.
        slots: what fills the prompt, from a draft.
        read: an answer to the next draft, or the reason why not.
        schema: JSON schema of the answer, None for prose.
        keep_thinking: `read` gets the whole answer, not only what follows `</think>`.
        prepare: an answer to what is read as its JSON.
        wanted: whether a draft needs this stage; one that does not passes it as it is.
    """

    name: str
    slots: Callable[[Any, Limits], Mapping[str, str]]
    read: Callable[[str, Any, Limits], Any | str]
    schema: dict[str, Any] | None = None
    keep_thinking: bool = False
    prepare: Callable[[str], str] = str
    wanted: Callable[[Any], bool] = lambda draft: True


class Kind(Protocol):
    """A recipe of synthesis.

    Attributes:
        stages: in order.
        identity: of what is asked beyond the settings, such as an index; part of the recipe's hash, else empty.
    """

    stages: tuple[Stage, ...]
    identity: str

    def units(self, row: Mapping[str, Any]) -> Sequence[tuple[str, Any]] | str:
        """What is made of a document: (name within it, first draft); the name is empty where there is only one.

        A string is the reason why nothing is made of it.
        """
        ...

    def settle(self, ended: Sequence[tuple[str, Any | str]]) -> Sequence[tuple[str, Any | str]]:
        """The last word on a document, once all its units are through the stages.

        Args:
            ended: its units, (name, draft or the reason why it was rejected).

        Returns:
            What is written of it, in the same form: the units as they came, with other verdicts, or joined into one.
        """
        ...

    def sample_slots(self, draft: Any) -> Mapping[str, str]:
        """What fills the sample's template (`sample.md` among the prompts)."""
        ...

    def written(self, draft: Any) -> str:
        """What the model wrote of a finished sample, and nothing that it was given: what screens look at."""
        ...

    def shown(self, draft: Any) -> str:
        """What the model was given to write from, where that is not the document; empty where it is."""
        ...

    def provenance(self, draft: Any, mates: Sequence[str]) -> Mapping[str, str]:
        """What a sample's metadata says about how it came to be.

        Args:
            draft: a finished one.
            mates: of all units of the same document, why each was rejected; empty for an accepted one.
        """
        ...

    def close(self) -> None:
        """Let go of what judging needed."""
        ...
