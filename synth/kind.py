"""What a recipe of synthesis is: units of work cut from a document, stages that each ask once, and a sample at the end.

The machinery around it (requests, log, attempts, counts, files) is the same for all: `synth/generate.py`. A kind only
says what is asked and what an answer must satisfy, as pure functions of the answer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from synth.verification import Limits


@dataclass(frozen=True)
class Stage:
    """One call of a recipe.

    Attributes:
        name: also of its prompt file.
        slots: what fills the prompt, from a draft.
        read: an answer to the next draft, or the reason why not.
        schema: JSON schema of the answer, None for prose.
        keep_thinking: `read` gets the whole answer, not only what follows `</think>`.
    """

    name: str
    slots: Callable[[Any, Limits], Mapping[str, str]]
    read: Callable[[str, Any, Limits], Any | str]
    schema: dict[str, Any] | None = None
    keep_thinking: bool = False


class Kind(Protocol):
    """A recipe of synthesis.

    Attributes:
        stages: in order.
    """

    stages: tuple[Stage, ...]

    def units(self, row: Mapping[str, Any]) -> Sequence[tuple[str, Any]]:
        """What is made of a document: (name within it, first draft); the name is empty where there is only one."""
        ...

    def sample_slots(self, draft: Any) -> Mapping[str, str]:
        """What fills the sample's template (`sample.md` among the prompts)."""
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
