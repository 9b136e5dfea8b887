"""What a large model will cost: tokens, hours of a device and money, from assumptions that stand in the recipe.

The one choice that matters: nothing here was measured by Loam, so every number that is assumed is a field of the
recipe, is printed beside the result, and changes no byte of any output. Scoring reads a token with two floating-point
operations per parameter, so that its speed follows from the device; writing is bound by memory and batching, so that
its speed must be given. Sources: the published throughputs of FinePhrase (1.7B parameters: 33.1 million tokens per
GPU-hour) and REWIRE (70B: 1.1 million), NVIDIA's data sheet of the H100 (989e12 dense bfloat16 operations per second).
"""

from typing import Any

from pydantic import Field

from pipelines.quantities import Tokens, human
from pipelines.recipe import Section

H100_FLOPS = 989e12
SECONDS = 3600


class ModelCost(Section):
    """What is assumed of a model of production; for the plan only, no result depends on it.

    Attributes:
        parameters: of the model; a token that is read costs two operations for each.
        documents: that the estimate is for; of synthesis, `max_documents` when not given.
        document_tokens: of one, on average.
        chars_per_token: of the model's tokenizer, for prompts.
        answer_share: of a prompt's ceiling that an answer takes, on average.
        accepted_share: of samples that pass verification.
        device_flops: dense operations per second of a device.
        utilisation: share of them that reading tokens reaches.
        output_tokens_per_s: that one device writes, many requests at once.
        devices: that work side by side.
        price_per_device_hour: in `currency`.
        currency: of the price.
        because: where the assumptions come from.
    """

    parameters: Tokens = Field(gt=0)
    documents: Tokens | None = Field(default=None, gt=0)
    document_tokens: int = Field(default=800, gt=0)
    chars_per_token: float = Field(default=4.0, gt=0)
    answer_share: float = Field(default=0.5, gt=0, le=1)
    accepted_share: float = Field(default=1.0, gt=0, le=1)
    device_flops: float = Field(default=H100_FLOPS, gt=0)
    utilisation: float = Field(default=0.4, gt=0, le=1)
    output_tokens_per_s: float | None = Field(default=None, gt=0)
    devices: int = Field(default=8, ge=1)
    price_per_device_hour: float = Field(default=2.5, ge=0)
    currency: str = "USD"
    because: str = ""

    @property
    def read_tokens_per_s(self) -> float:
        """Tokens that one device reads in a second."""
        return self.utilisation * self.device_flops / (2 * self.parameters)


class HubModel(Section):
    """A model of production: where it is, under which licence, and what it is assumed to cost.

    Attributes:
        dataset: its repository on the Hub, owner/name.
        revision: commit, branch or tag; `loam fetch` pins a branch.
        licence: of the model.
        cost: assumptions for estimates.
    """

    dataset: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = None
    licence: str | None = None
    cost: ModelCost | None = None


def cost_of_tokens(cost: ModelCost, read: float, written: float = 0.0) -> dict[str, Any]:
    """What so many tokens cost.

    Args:
        cost: the assumptions.
        read: tokens of documents and prompts.
        written: tokens of answers.

    Returns:
        `tokens_read`, `tokens_written`, `device_hours`, `hours` (with all devices), `price`, `currency`; hours and
        price are null where tokens are written and no speed of writing is given.
    """
    known = not written or cost.output_tokens_per_s is not None
    seconds = read / cost.read_tokens_per_s + (written / cost.output_tokens_per_s if cost.output_tokens_per_s else 0)
    hours = seconds / SECONDS if known else None
    return {
        "tokens_read": round(read),
        "tokens_written": round(written),
        "device_hours": None if hours is None else round(hours, 3),
        "hours": None if hours is None else round(hours / cost.devices, 3),
        "price": None if hours is None else round(hours * cost.price_per_device_hour, 2),
        "currency": cost.currency,
    }


def cost_words(cost: ModelCost, found: dict[str, Any]) -> list[str]:
    """The cost for people: the result, the formula, and what was assumed."""
    read, written = found["tokens_read"], found["tokens_written"]
    tokens = f"{human(read)} tokens read" + (f", {human(written)} written" if written else "")
    if found["device_hours"] is None:
        return [f"{tokens}; hours and price need output_tokens_per_s"]
    speeds, formula = f"reads {human(cost.read_tokens_per_s)} tokens/s", "tokens read / speed of reading"
    if written:
        speeds += f" and writes {human(cost.output_tokens_per_s or 0)} tokens/s"
        formula += " + tokens written / speed of writing"
    because = f"; {cost.because}" if cost.because else ""
    return [
        f"{tokens}; {human(found['device_hours'])} device hours, {human(found['hours'])} hours on {cost.devices} "
        f"devices, {human(found['price'])} {cost.currency}",
        f"  device hours = {formula}; price = device hours x {cost.price_per_device_hour:g} {cost.currency}",
        f"  assumed, not measured: a device {speeds}; speed of reading = {cost.utilisation:g} x "
        f"{cost.device_flops:.3g} operations/s / (2 x {human(cost.parameters)} parameters){because}",
    ]
