"""A sweep: one training recipe, some of its fields varied, every combination trained with the same seeds.

A field is named by its place in the recipe (`model.initial_std`, `stages.*.learning_rate`), so that anything that can
be trained with can be swept. Every trial is a whole training recipe, checked when the sweep is loaded: a combination
that cannot be trained is an error before the first step, never a hole in the table.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from pipelines.manifest import digest_of
from pipelines.recipe import Section, load_recipe
from trainer.recipe import TrainRecipe

MOST_TRIALS = 10_000
EVERY = "*"  # in a field's place: each item of a list


@dataclass(frozen=True)
class Trial:
    """One training run of a sweep.

    Attributes:
        id: `<digest of the point>-s<seed>`; does not change when other values are added to the grid.
        point: id without the seed: trials of one point differ in the seed alone.
        values: the swept fields and what they are in this trial.
        recipe: what is trained.
    """

    id: str
    point: str
    values: Mapping[str, Any]
    recipe: TrainRecipe


class SweepRecipe(Section):
    """A sweep over hyper-parameters.

    Attributes:
        name: of the sweep.
        about: one line for people.
        train: what is varied: a training recipe, or the name or path of one.
        grid: field -> values; every combination is trained. A field is a path in the training recipe, such as
            `model.initial_std`; an item of a list is named by its number, its `name`, or `*` for all of them.
        points: combinations of fields that are not a grid, each trained with every combination of `grid`.
        seeds: of weights and data order; each point is trained with every one, so that points are compared in pairs.
        target: held-out domain that decides, or `mean` of all.
        spare: a trial that diverges is told with its reason instead of ending the sweep.
    """

    kind: Literal["sweep"] = "sweep"
    name: str
    about: str = ""
    train: TrainRecipe
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    points: list[dict[str, Any]] = Field(default_factory=list)
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(default=[0], min_length=1)
    target: str = "mean"
    spare: bool = True

    @field_validator("train", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return load_recipe(value, TrainRecipe) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _every_trial_can_be_trained(self) -> "SweepRecipe":
        if not self.grid and not self.points:
            raise ValueError("neither grid nor points: nothing is varied; name a field, such as model.width: [64, 128]")
        if empty := [field for field, values in self.grid.items() if not values]:
            raise ValueError(f"grid.{empty[0]} has no values")
        if any("seed" in fields for fields in (self.grid, *self.points)):
            raise ValueError("seed is no field to sweep: each point is trained with all of `seeds`; give those")
        if (count := math.prod(map(len, (self.points or [{}], self.seeds, *self.grid.values())))) > MOST_TRIALS:
            raise ValueError(f"{count} trials are more than {MOST_TRIALS}; shorten the grid")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds} repeat one; a trial is trained once for each")
        trials = self.trials()
        if len({trial.id for trial in trials}) < len(trials):
            raise ValueError("two points of the sweep are the same; each combination is trained once")
        return self

    def trials(self, vocab_size: int | None = None) -> list[Trial]:
        """Every training run, in the order of the grid, seeds innermost.

        Args:
            vocab_size: fills in that of the model where the recipe leaves it open.
        """
        base = self.train if vocab_size is None else self.train.model_copy(
            update={"model": self.train.model.with_vocabulary(vocab_size)}
        )  # fmt: skip
        tree = base.model_dump(mode="json")
        found = []
        for changes in self._changes():
            recipe = changed(tree, changes)
            values = {field: value_at(recipe.model_dump(mode="json"), field) for field in changes}
            point = digest_of(values)[:10]
            found += [Trial(f"{point}-s{seed}", point, values, recipe.model_copy(update={"seed": seed}))
                      for seed in self.seeds]  # fmt: skip
        return found

    def _changes(self) -> Iterator[dict[str, Any]]:
        for point in self.points or [{}]:
            for chosen in itertools.product(*self.grid.values()):
                yield {**point, **dict(zip(self.grid, chosen, strict=True))}


def changed(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> TrainRecipe:
    """A training recipe with some fields changed.

    Args:
        tree: the recipe as plain values; left as it is.
        changes: field -> value.

    Raises:
        ValueError: a field is not in the recipe, or the whole does not hold; the message names the change.
    """
    whole: Any = dict(tree)
    for field, value in changes.items():
        whole = _with(whole, field.split("."), value, field)
    try:
        return TrainRecipe.model_validate(whole)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where, what = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        told = ", ".join(f"{field}={value}" for field, value in changes.items())
        raise ValueError(f"the trial {told} cannot be trained: {where}: {what}") from None


def value_at(tree: Any, field: str) -> Any:
    """The value of a field; of a field with `*`, the one value, or the list where items differ."""
    values = list(_values(tree, field.split("."), field))
    return values[0] if all(value == values[0] for value in values) else values


def _values(node: Any, keys: list[str], field: str) -> Iterator[Any]:
    if not keys:
        yield node
        return
    for key in _keys(node, keys[0], field):
        yield from _values(node[key], keys[1:], field)


def _with(node: Any, keys: list[str], value: Any, field: str) -> Any:
    """A copy of the tree with the field changed."""
    if not keys:
        return value
    copy = list(node) if isinstance(node, list) else dict(node) if isinstance(node, dict) else node
    for key in _keys(copy, keys[0], field):
        copy[key] = _with(copy[key], keys[1:], value, field)
    return copy


def _keys(node: Any, key: str, field: str) -> list[Any]:
    """What a part of a field's name stands for in a section or a list."""
    if isinstance(node, dict) and key in node:
        return [key]
    if isinstance(node, list):
        names = [item.get("name") if isinstance(item, dict) else None for item in node]
        places = range(len(node))
        found = [n for n in places if key in (EVERY, str(n), names[n])]
        if found:
            return found
        there = ", ".join([EVERY, *(str(n) for n in places), *(name for name in names if name)])
    else:
        there = ", ".join(node) if isinstance(node, dict) else f"nothing below {node!r}"
    raise ValueError(f"{field}: no {key!r} in the training recipe; there is: {there}")
