"""Which tensors of a Hugging Face file hold the numbers of each tensor of ours.

Each of ours is a row of theirs laid end to end: an embedding is one, stacked experts are one for every expert and
projection (gate above up). So both directions stream, one of their tensors at a time, and nothing is ever stacked in
memory. Only DeepSeek's rotary rows change place on the way.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.families.family import Family
from trainer.model import Decoder
from trainer.model_recipe import ModelSettings

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """One tensor of ours.

    Attributes:
        name: in `Decoder.state_dict()`.
        shape: of it.
        sources: the file's tensors whose numbers it holds, in order, with their shapes.
        rows: which row of the (only) source each of our rows is; None where they agree.
    """

    name: str
    shape: Shape
    sources: Mapping[str, Shape]
    rows: Tensor | None = None

    def ours(self, theirs: Tensor) -> Tensor:
        """A source's numbers in our order."""
        return theirs if self.rows is None else theirs[self.rows]

    def theirs(self, ours: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The sources' names and numbers; rows of ours beyond the shape (a padded vocabulary) are left out."""
        if self.rows is not None:
            ours = ours[torch.argsort(self.rows)]
        flat, begin = ours.reshape(-1), 0
        for name, shape in self.sources.items():
            numbers = torch.Size(shape).numel()
            yield name, flat[begin : begin + numbers].view(shape)
            begin += numbers


def pieces_of(settings: ModelSettings, family: Family, neighbours: bool) -> list[Piece]:
    """Every tensor of a model, and where a file of the family holds it.

    Args:
        settings: of a member of the family.
        family: names the tensors.
        neighbours: rotary pairs are neighbours in the file.
    """
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in Decoder(settings).state_dict().items()}
    return [_piece(name, shape, settings, family, neighbours) for name, shape in shapes.items()]


def _piece(name: str, shape: Shape, settings: ModelSettings, family: Family, neighbours: bool) -> Piece:
    place, rest = _place(name, settings)
    if rest in ("mlp.experts.gate_up_proj", "mlp.experts.down_proj"):
        return Piece(name, shape, _experts(place, rest, shape, family))
    for ours, theirs in family.renames:
        if rest.startswith(ours):
            rest = theirs + rest.removeprefix(ours)
    return Piece(name, shape, {place + rest: shape}, _rotary_rows(rest, shape, settings) if neighbours else None)


def _place(name: str, settings: ModelSettings) -> tuple[str, str]:
    """The file's prefix of a layer, and the name within it; prediction modules are layers after the last."""
    if name == HEAD:
        return "", name
    if match := re.fullmatch(r"layers\.(\d+)\.(.*)", name):
        return f"model.layers.{match[1]}.", match[2]
    if match := re.fullmatch(r"mtp\.(\d+)\.(.*)", name):
        inside = "shared_head.norm.weight" if match[2] == "norm.weight" else match[2].removeprefix("layer.")
        return f"model.layers.{settings.layers + int(match[1])}.", inside
    return "model.", name


def _experts(place: str, rest: str, shape: Shape, family: Family) -> dict[str, Shape]:
    prefix, gate, up, down = family.experts
    experts, rows, columns = shape
    names = (gate, up) if rest.endswith("gate_up_proj") else (down,)
    each = (rows // len(names), columns)
    return {f"{place}{prefix}.{expert}.{name}.weight": each for expert in range(experts) for name in names}


def _rotary_rows(rest: str, shape: Shape, settings: ModelSettings) -> Tensor | None:
    """Rows of a projection that ends in rotated numbers, halves drawn out of neighbours; None for other tensors."""
    mla = settings.mla
    if mla is None or rest not in (
        "self_attn.q_proj.weight", "self_attn.q_b_proj.weight", "self_attn.kv_a_proj_with_mqa.weight",
    ):  # fmt: skip
        return None
    rotated = torch.arange(mla.rope_dim).view(-1, 2).t().reshape(-1)
    rows = torch.arange(shape[0]).view(1 if "kv_a" in rest else settings.heads, -1).clone()
    rows[:, -mla.rope_dim :] = rows[:, -mla.rope_dim :][:, rotated]
    return rows.reshape(-1)


def copies_of(settings: ModelSettings) -> dict[str, str]:
    """A prediction module's copies of embedding and output projection, and the tensor that each repeats."""
    found = {}
    for module in range(settings.mtp_layers):
        prefix = f"model.layers.{settings.layers + module}"
        found |= {f"{prefix}.embed_tokens.weight": EMBEDDING, f"{prefix}.shared_head.head.weight": HEAD}
    return found
