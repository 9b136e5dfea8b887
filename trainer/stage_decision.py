"""What may change at the end of a training stage: the answer of those who watch a run (`observer.py`)."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class StageDecision:
    """What shall be different from the next stage on.

    Attributes:
        stop: end the run here; the model as it is becomes the result.
        replay: least share of samples from earlier stages' data in every later stage; None leaves what they ask for.
        rate_factor: every later stage's learning rate is multiplied by it.
        reason: for the log, in words.
    """

    stop: bool = False
    replay: float | None = None
    rate_factor: float = 1.0
    reason: str = ""

    def __post_init__(self) -> None:
        assert self.replay is None or 0 <= self.replay < 1
        assert self.rate_factor > 0

    def and_then(self, other: "StageDecision") -> "StageDecision":
        """Both together: the stricter of each; reasons are joined."""
        shares = [share for share in (self.replay, other.replay) if share is not None]
        return StageDecision(
            stop=self.stop or other.stop,
            replay=max(shares) if shares else None,
            rate_factor=self.rate_factor * other.rate_factor,
            reason="; ".join(filter(None, (self.reason, other.reason))),
        )

    def as_note(self) -> dict[str, Any]:
        """JSON values, for a checkpoint."""
        return asdict(self)
