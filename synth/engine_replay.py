"""The engine that asks nobody: answers come from the response log of an earlier run.

It takes over identity and capabilities of the engine that gave the answers, so that the keys are the same. With it,
parsing and verification can be run again offline, at no cost; a request that was never made is answered `not_recorded`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from synth.protocol import Request, Response, request_key
from synth.response_log import read_log


class ReplayEngine:
    """Answers of an earlier run.

    Args:
        folder: its `responses/`.

    Raises:
        DataError: the folder holds no response log.
    """

    def __init__(self, folder: Path) -> None:
        self.identity, self.capabilities, self.answers = read_log(folder)
        self.latencies_s: list[float] = []

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Response]]:
        """Look every request up."""
        missing = Response(text="", finish_reason="not_recorded")
        for request in requests:
            yield request, self.answers.get(request_key(request, self.identity), missing)

    def prompt_tokens(self, request: Request) -> int | None:
        """As then; None where it was not asked, or the server did not say."""
        known = self.answers.get(request_key(request, self.identity))
        return known.usage.prompt_tokens or None if known else None

    def close(self) -> None:
        """Nothing was started."""
