"""Models that a recipe of kind synth or score names, and whether this machine can run it: what `loam check` says.

`loam fetch RECIPE` brings each to `models/NAME`, the folder that comments of the shipped recipes give to `--model`.
"""

import importlib.util
from pathlib import Path

from flows.needs import SHOWN_DIGITS, Need
from flows.score_recipe import ScoreRecipe
from pipelines import hub
from pipelines.model_cost import HubModel
from synth.recipe import SynthSettings

DEVICES = ("nvidia0", "nvidiactl", "dxg")  # in /dev where CUDA may run; asking torch itself takes seconds
OPTIONS = {"generator": "--model", "scorer": "--model", "judge": "--judge", "grounding": "--grounding"}


def models_of(recipe: SynthSettings | ScoreRecipe) -> dict[str, HubModel]:
    """Models of production by what they do: `generator`, `judge`, `grounding`, or `scorer`."""
    if isinstance(recipe, ScoreRecipe):
        named = {"scorer": recipe.scorer}
    else:
        named = {"generator": recipe.generator, "judge": recipe.judge and recipe.judge.hub,
                 "grounding": recipe.grounding and recipe.grounding.hub}  # fmt: skip
    return {name: model for name, model in named.items() if model is not None}


def place_of(model: HubModel) -> Path:
    """Where `loam fetch RECIPE` lets a model be found."""
    return Path("models") / model.dataset.partition("/")[2]


def model_needs(recipe: SynthSettings | ScoreRecipe, root: Path) -> list[Need]:
    """The models of a recipe, and whether each is here.

    Args:
        recipe: resolved.
        root: folder that holds `models/` and `hub/`.
    """
    found = []
    for name, model in models_of(recipe).items():
        wanted, place = hub.wanted_model(model.dataset, model.revision), root / place_of(model)
        commit = hub.pinned_commit(wanted, root)
        where = f"huggingface.co/{model.dataset} @{wanted.revision[:SHOWN_DIGITS]}"
        state = "here" if (place / "config.json").is_file() else "fetch"
        found.append(Need(name, where, state, model.licence, commit is not None, commit, note=f"comes to {place}"))
    return found


def model_lines(recipe: SynthSettings | ScoreRecipe, name: str, root: Path) -> list[str]:
    """Whether a recipe can run here and what to do next, for people.

    Args:
        recipe: resolved.
        name: that it was asked for by.
        root: folder that holds `models/` and `hub/`.
    """
    models, lines = models_of(recipe), list[str]()
    absent = [need.name for need in model_needs(recipe, root) if need.state != "here"]
    if absent:
        lines.append(f"{len(absent)} to fetch (nothing downloads by itself): loam fetch {name}")
    if not {"generator", "scorer"} & set(models):
        lines.append("no model of production is named: the verb's --model says which, and nothing can be estimated")
    lines += _engine(recipe)
    lines.append(f"{'then' if absent else 'next'}: {_command(recipe, name, models)}")
    for what, model in models.items():
        loose = "; revision not pinned yet: loam fetch pins it"
        pinned = f" @{model.revision[:SHOWN_DIGITS]}" if model.revision else loose
        licence = f"; {model.licence}" if model.licence else ""
        url = f"hf://models/{model.dataset}" + (f"@{model.revision}" if model.revision else "")
        label = "model" if what in ("generator", "scorer") else what
        state = f"missing; loam fetch {url}" if what in absent else f"here: {root / place_of(model)}"
        lines.append(f"{label}: huggingface.co/{model.dataset}{pinned}{licence}; {state}")
    return lines


def _engine(recipe: SynthSettings | ScoreRecipe) -> list[str]:
    """What the engine needs of this machine and does not find."""
    if isinstance(recipe, ScoreRecipe):
        engine, runs_on, device = recipe.perplexity.scorer, recipe.perplexity.device, "device"
    else:
        engine, runs_on, device = recipe.engine.name, recipe.engine.device, "engine.device"
    lines = []
    if engine == "vllm" and importlib.util.find_spec("vllm") is None:
        lines.append("vLLM is not installed here: make setup-vllm")
    if (engine == "vllm" or runs_on == "cuda") and not _has_device():
        instead = "" if engine == "vllm" else f", or --set {device}=cpu for a small model"
        lines.append(f"no CUDA device is here: run it where one is{instead}")
    return lines


def _has_device() -> bool:
    return any((Path("/dev") / name).exists() for name in DEVICES)


def _command(recipe: SynthSettings | ScoreRecipe, name: str, models: dict[str, HubModel]) -> str:
    verb = "perplexity" if isinstance(recipe, ScoreRecipe) else "synth"
    given = [f"{OPTIONS[what]} {place_of(model)}" for what, model in models.items()]
    given = given if models else ["--model FOLDER"]
    return f"loam {verb} INPUT --recipe {name} {' '.join(given)} --out FOLDER"
