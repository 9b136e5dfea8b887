"""Schedules: a mixture for each stage of training, with what every domain is then exposed to.

Caps count over the whole schedule, never per stage: a domain read 3 times in the main stage has one pass left under a
cap of 4. Exposure has the two features of published two-phase swarms: epochs e_i = sum over stages of T_s w_i / U_i,
and the late share of a domain's tokens. S stages, D domains.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from mixtures.blends import to_data_path
from mixtures.bounds import caps_by_name
from mixtures.mixture import SUM_TOLERANCE, Domains, EpochCap, Mixture, Name, check_same_names
from mixtures.simplex import Group, Simplex
from mixtures.tables import write_table
from pipelines.errors import DataError, RecipeError
from pipelines.files import write_atomically
from pipelines.quantities import Tokens, human
from pipelines.recipe import Section, dump_yaml, load_recipe
from pipelines.shards import Blend, ShardSet

MAIN, ANNEAL = "main", "anneal"
EARLIER = "*"  # of replay: all domains that an earlier stage read
FAINT = 1e-6  # share of the earlier mixture in what is projected: replayed domains come back in their old proportions
WHOLE = 10**6  # tokens of a schedule that has no budget yet: its stages are then millionths


class ScheduleStage(Section):
    """One stage: so many tokens in these proportions.

    Attributes:
        name: of the stage, and of the blend that the trainer draws from.
        tokens: of the stage.
        weights: domain -> share of the stage's tokens; sums to 1.
    """

    name: Name
    tokens: Annotated[Tokens, Field(gt=0)]
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(min_length=1)

    @model_validator(mode="after")
    def _sums_to_one(self) -> "ScheduleStage":
        if abs(sum(self.weights.values()) - 1) > SUM_TOLERANCE:
            raise ValueError(f"weights of stage {self.name!r} sum to {sum(self.weights.values()):.8g}, expected 1")
        return self


class Exposure(Section):
    """What a schedule does to one domain.

    Attributes:
        unique_tokens: that there are.
        tokens: read in each stage, by its name.
        epochs: passes in each stage.
        epochs_so_far: passes up to the end of each stage.
        late_share: of the domain's tokens, those read in the last stage; 0 for a domain that is never read.
    """

    unique_tokens: int
    tokens: dict[str, float]
    epochs: dict[str, float]
    epochs_so_far: dict[str, float]
    late_share: float

    @property
    def total_epochs(self) -> float:
        """Passes over the whole schedule."""
        return sum(self.epochs.values())


class Schedule(Section):
    """Stages in order.

    Attributes:
        kind: that of a recipe.
        name: what to call it.
        about: what it is, in a line.
        stages: in order.
        epoch_cap: how often a domain may be read, all stages together; one number, or domain or pattern -> number.
    """

    kind: Literal["schedule"] = "schedule"
    name: Name = "schedule"
    about: str = ""
    stages: tuple[ScheduleStage, ...] = Field(min_length=1)
    epoch_cap: EpochCap | None = None

    @model_validator(mode="after")
    def _distinct(self) -> "Schedule":
        names = [stage.name for stage in self.stages]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two stages are called {repeated!r}; their names must differ")
        return self

    @classmethod
    def two_stage(
        cls,
        weights: Mapping[str, float],
        anneal: float = 0.2,
        replay: Mapping[str, float] | None = None,
        late: Mapping[str, float] | None = None,
        tokens: int = WHOLE,
    ) -> "Schedule":
        """A main stage and a shorter last one.

        Args:
            weights: of the main stage.
            anneal: share of the tokens in the last stage.
            replay: domain or pattern -> least share of the last stage; `*` means all domains of the main stage.
            late: weights of the last stage before the replay floors; those of the main stage when not given.
            tokens: of both; by default the stages are millionths, and `scaled` gives them a budget.

        Raises:
            RecipeError: the share is not within (0, 1), or a replayed name means no domain.
            DataError: the floors cannot be met.
        """
        if not 0 < anneal < 1:
            raise RecipeError(f"the last stage has a share of {anneal:g}; expected more than 0 and less than 1")
        short = max(1, round(anneal * tokens))
        first = cls(stages=(ScheduleStage(name=MAIN, tokens=tokens - short, weights=dict(weights)),))
        space, late_D = first.next_space(ANNEAL, short, late or weights, replay or {})
        found = dict(zip(space.names, space.written(late_D).tolist(), strict=True))
        return first.followed_by(ScheduleStage(name=ANNEAL, tokens=short, weights=found))

    @classmethod
    def read(cls, path: Path) -> "Schedule":
        """Read `schedule.yaml`.

        Raises:
            RecipeError: names file, line and field.
        """
        return load_recipe(str(path), cls)

    def write(self, path: Path) -> None:
        """Write `schedule.yaml`, atomically."""
        write_atomically(path, dump_yaml(self).encode())

    @property
    def tokens(self) -> int:
        """Tokens of all stages."""
        return sum(stage.tokens for stage in self.stages)

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of all domains that a stage mentions, sorted."""
        return tuple(sorted({name for stage in self.stages for name in stage.weights}))

    def followed_by(self, stage: ScheduleStage) -> "Schedule":
        """The schedule with one stage more."""
        return Schedule(name=self.name, about=self.about, stages=(*self.stages, stage), epoch_cap=self.epoch_cap)

    def scaled(self, tokens: int) -> "Schedule":
        """The same shares of stages over another budget; the last stage takes the rounding."""
        ends = np.cumsum([stage.tokens for stage in self.stages])
        cuts = [0, *(round(int(end) * tokens / self.tokens) for end in ends)]
        stages = tuple(ScheduleStage(name=stage.name, tokens=after - before, weights=stage.weights)
                       for stage, before, after in zip(self.stages, cuts, cuts[1:], strict=False))  # fmt: skip
        return Schedule(name=self.name, about=self.about, stages=stages, epoch_cap=self.epoch_cap)

    def weights_SD(self, names: Sequence[str]) -> np.ndarray:
        """Weights of every stage, domains in the order of `names`: float64 (S, D)."""
        return np.array([[stage.weights.get(name, 0.0) for name in names] for stage in self.stages])

    def mixture(self, retain: float = 1.0, name: str = "schedule") -> Mixture:
        """One mixture for all that was read: each stage counts its tokens times `retain` for every later stage.

        Args:
            retain: 1 counts all tokens alike, 0 the last stage alone.
            name: of the mixture.
        """
        age_S = np.arange(len(self.stages))[::-1]
        size_S = np.array([stage.tokens for stage in self.stages], float) * float(retain) ** age_S
        weights_D = size_S @ self.weights_SD(self.domains) / size_S.sum()
        return Mixture(name=name, weights=dict(zip(self.domains, weights_D.tolist(), strict=True)), tokens=self.tokens)

    def exposure(self, domains: Domains) -> dict[str, Exposure]:
        """Tokens and epochs of every domain, in the order of `domains`.

        Raises:
            DataError: a stage names a domain that does not exist.
        """
        check_same_names(f"schedule {self.name!r}", self.domains, "the domains", domains.names, subset=True)
        found = {}
        for name, held in domains.unique_tokens.items():
            tokens = {stage.name: stage.weights.get(name, 0.0) * stage.tokens for stage in self.stages}
            so_far = np.cumsum(list(tokens.values())) / held
            total = sum(tokens.values())
            found[name] = Exposure(
                unique_tokens=held, tokens=tokens, epochs={stage: count / held for stage, count in tokens.items()},
                epochs_so_far=dict(zip(tokens, so_far.tolist(), strict=True)),
                late_share=tokens[self.stages[-1].name] / total if total else 0.0,
            )  # fmt: skip
        return found

    def write_exposure(self, path: Path, domains: Domains) -> None:
        """Write `exposure.csv`: domain, unique tokens, then tokens, epochs and epochs so far of each stage."""
        found = self.exposure(domains)
        fields = ("tokens", "epochs", "epochs_so_far")
        names = [f"{field}_{stage.name}" for stage in self.stages for field in fields]
        rows = [[float(each.unique_tokens), *(getattr(each, field)[stage.name]
                 for stage in self.stages for field in fields), each.total_epochs, each.late_share]
                for each in found.values()]  # fmt: skip
        write_table(path, tuple(found), ["unique_tokens", *names, "epochs", "late_share"], np.array(rows), "domain")

    def check_caps(self, domains: Domains) -> None:
        """Make sure that no domain is read more often than the cap allows, all stages together.

        Raises:
            DataError: names the domain, its epochs and its cap.
        """
        caps = caps_by_name(self.epoch_cap, domains.names)
        for name, each in self.exposure(domains).items():
            cap, passes = caps.get(name, np.inf), each.total_epochs
            if passes > cap * (1 + 1e-5) + 1e-9:  # written weights are millionths
                raise DataError(
                    f"schedule {self.name!r} reads {name!r} {passes:.4g} times over all stages, its cap is {cap:g}: "
                    f"give it less weight or {human((passes / cap - 1) * each.unique_tokens)} more tokens"
                )

    def next_space(
        self, name: str, tokens: int, weights: Mapping[str, float], replay: Mapping[str, float],
        domains: Domains | None = None,
    ) -> tuple[Simplex, np.ndarray]:  # fmt: skip
        """What a further stage may be: the caps less what was read before, and the replay floors.

        Args:
            name: of the stage.
            tokens: of the stage.
            weights: what it should be near to.
            replay: domain or pattern -> least share; `*` means all domains that an earlier stage read.
            domains: what there is; caps count only with it.

        Returns:
            The set, domains sorted by name, and the mixture in it that is nearest to `weights`, (D,).

        Raises:
            RecipeError: a replayed name means no domain that an earlier stage read.
            DataError: no mixture fits; says why.
        """
        names = tuple(sorted(domains.names if domains else {*self.domains, *weights}))
        check_same_names(f"the mixture of stage {name!r}", weights, "the domains", names, subset=True)
        held = domains.ordered(names) if domains else Domains.of(dict.fromkeys(names, 1))
        left = {} if domains is None else self._passes_left(held)
        groups = tuple(self._replayed(key, least) for key, least in sorted(replay.items()))
        try:
            space = Simplex.of(held, tokens if left else None, left or None, None, groups)
        except DataError as error:
            raise DataError(f"stage {name!r} after {len(self.stages)} earlier: {error}") from None
        wanted_D = np.array([weights.get(each, 0.0) for each in names])
        earlier = self.mixture().weights
        faint_D = FAINT * bool(groups) * np.array([earlier.get(each, 0.0) for each in names])
        return space, space.project(((1 - faint_D.sum()) * wanted_D + faint_D)[None])[0]

    def _passes_left(self, domains: Domains) -> dict[str, float]:
        """Domain -> passes that the cap leaves for further stages; domains without a cap are left out."""
        read = self.exposure(domains)
        caps = caps_by_name(self.epoch_cap, domains.names)
        return {name: max(0.0, cap - read[name].total_epochs) for name, cap in caps.items()}

    def _replayed(self, key: str, least: float) -> Group:
        read = [name for name in self.domains if any(stage.weights.get(name, 0) > 0 for stage in self.stages)]
        members = tuple(name for name in read if name == key or fnmatchcase(name, key))
        if not members:
            raise RecipeError(
                f"replay: {key!r} means no domain that an earlier stage read; there are {', '.join(read[:5])}"
            )
        if not 0 <= least <= 1:
            raise RecipeError(f"replay: {key}={least:g}; expected a share from 0 to 1")
        return Group("replay of all earlier domains" if key == EARLIER else f"replay of {key!r}", members, least, 1.0)

    def trainer_stages(self, like: Mapping[str, Mapping[str, Any]] | Mapping[str, Any]) -> list[dict[str, Any]]:
        """Stages as a training recipe has them: name, tokens and blend are the schedule's.

        Args:
            like: the other fields (sequence length, batch, learning rate): of each stage by its name, or of all.

        Raises:
            RecipeError: fields are given by stage and one has none.
        """
        by_name = all(isinstance(fields, Mapping) for fields in like.values())
        found = []
        for stage in self.stages:
            if by_name and stage.name not in like:
                raise RecipeError(
                    f"schedule {self.name!r} has a stage {stage.name!r}, the training recipe {', '.join(like)}"
                )
            fields = like[stage.name] if by_name else like
            found.append({**fields, "name": stage.name, "tokens": stage.tokens, "blend": stage.name})
        return found

    def data_paths(self, shards: ShardSet) -> dict[str, list[str]]:
        """Megatron's `data_path` of every stage: weight, prefix, weight, prefix.

        Raises:
            DataError: a domain with weight has no shard.
        """
        blends = {stage.name: Blend.of(stage.weights, shards) for stage in self.stages}
        return {name: to_data_path([(share, str(shard.prefix)) for share, shard in blend.parts])
                for name, blend in blends.items()}  # fmt: skip
