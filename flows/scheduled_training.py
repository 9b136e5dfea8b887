"""Train on a schedule: each of its stages becomes a stage of the training recipe, with a blend of its own.

Tokens and proportions are the schedule's; lengths, batches and learning rates are those of the recipe's stage of that
name, or of its only stage.
"""

from pathlib import Path

from mixtures.mixture import Domains
from mixtures.schedule import Schedule
from pipelines.shards import Blend, ShardSet
from pipelines.store import Outcome
from trainer.recipe import TrainRecipe


def with_stages(recipe: TrainRecipe, schedule: Schedule) -> TrainRecipe:
    """The recipe over the stages of a schedule.

    Raises:
        RecipeError: the recipe has several stages, and none of the name of one of the schedule's.
    """
    fields = {stage.name: stage.model_dump() for stage in recipe.stages}
    like = fields if len(fields) > 1 else next(iter(fields.values()))
    return TrainRecipe.model_validate({**recipe.model_dump(), "stages": schedule.trainer_stages(like)})


def train_scheduled(
    recipe: TrainRecipe, path: Path, shards: ShardSet, validation: ShardSet | None, work: Path
) -> Outcome:
    """Train stage by stage.

    Args:
        recipe: the vocabulary's size is set.
        path: of `schedule.yaml`.
        shards: what there is.
        validation: held-out shards.
        work: folder to fill.

    Raises:
        DataError: a domain has no shard, or would be read beyond the schedule's cap.
    """
    from flows.steps.mixing import domain_tokens
    from trainer.loop import train
    from trainer.telemetry import Telemetry

    schedule = Schedule.read(path)
    schedule.check_caps(Domains.of(domain_tokens(shards)))
    blends = {stage.name: Blend.of(stage.weights, shards) for stage in schedule.stages}
    return train(with_stages(recipe, schedule), blends, work, validation, [Telemetry(validation)])
