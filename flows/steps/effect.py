"""Steps that measure what synthetic data do: the same proxies with and without them, at equal tokens, several seeds.

A seed is a pair: both arms start from the same weights. Every difference comes with Student's interval over the pairs,
and "inconclusive" is a legal answer. One metric is named before anything is trained and its verdict stands alone; those
of the many others are corrected for their number (`mixtures/multiple.py`). PPL-pass is among them, because cloze
accuracy is blind to chains of thought at this scale (CCI4.0, arXiv:2506.07463, reports a neutral average and a gain on
PPL-pass).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.recipe import EffectSettings, RunRecipe
from flows.steps.build import items_of
from flows.steps.language_model import sized, tokenizer_folder
from flows.steps.mixing import BOTH, train_shards, validation_shards
from flows.steps.step import Place, Step, plain
from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.shards import Blend, ShardSet
from pipelines.store import Outcome
from trainer.chains import PREFIX

ARMS = ("without", "with")


def effect_steps(recipe: RunRecipe) -> list[Step]:
    """The steps from tokens to the effect of the synthetic domains; none when the recipe asks for none."""
    return [] if recipe.effect is None else [_proxies(recipe, recipe.effect), _effect(recipe.effect)]


def _proxies(recipe: RunRecipe, effect: EffectSettings) -> Step:
    model = effect.proxy or recipe.ablate.proxy
    domains = effect.domains or (recipe.synth.sample_domain,)

    def action(place: Place, work: Path) -> Outcome:
        from trainer.proxies import Exam, ProxyJob, train_proxies

        held_out = validation_shards(place)
        check_primary(effect.primary, metric_names(held_out, items_of(place)))  # before hours of training, not after
        arms = arms_of(train_shards(place), domains, effect.share)
        seeds = range(model.seed + 1, model.seed + 1 + effect.seeds)
        blends = {arm: Blend.of(weights, train_shards(place)) for arm, weights in arms.items()}
        jobs = [ProxyJob(f"{arm}-seed{seed}", blends[arm], seed) for seed in seeds for arm in ARMS]
        exam = Exam(tokenizer_folder(place), place.of("plain_tokens") / "validation", tuple(items_of(place)),
                    effect.evaluate)  # fmt: skip
        done = train_proxies(jobs, sized(model, place), held_out, work, place.workers, exam)
        return Outcome(metrics={**done.metrics, "weights": arms})

    settings = plain(proxy=model, domains=domains, share=effect.share, seeds=effect.seeds, evaluate=effect.evaluate)
    return Step("effect_proxies", action, "proxies with and without the synthetic domains", settings,
                ["tokens", "plain_tokens", "tokenizer", "items"], BOTH)  # fmt: skip


def arms_of(shards: ShardSet, synthetic: tuple[str, ...], share: float | None) -> dict[str, dict[str, float]]:
    """The weights of both arms over the shards.

    Args:
        shards: what may be trained on.
        synthetic: domains; one stands for its buckets too.
        share: of the tokens in the arm with them; None takes their share of what there is.

    Returns:
        arm -> shard -> weight; among themselves the other shards stand in proportion to their tokens in both arms.

    Raises:
        DataError: no shard is synthetic, or all are.
    """
    sizes = {shard.name: shard.tokens for shard in shards.shards}
    made = {name for name in sizes if any(name == d or name.startswith(f"{d}/") for d in synthetic)}
    ours, rest = sum(sizes[name] for name in made), sum(size for name, size in sizes.items() if name not in made)
    if not ours or not rest:
        raise DataError(
            f"an effect needs tokens of {', '.join(synthetic)} and of other domains; found {ours} and {rest}: see "
            f"the rejects of synthesis for why samples were not accepted"
        )
    portion = ours / (ours + rest) if share is None else share
    return {
        "without": {name: 0.0 if name in made else size / rest for name, size in sizes.items()},
        "with": {
            name: portion * size / ours if name in made else (1 - portion) * size / rest for name, size in sizes.items()
        },
    }


def metric_names(held_out: ShardSet, items: Sequence[Path]) -> list[str]:
    """What the arms can be compared by: bits per byte by domain, accuracy and the right answers' share by benchmark.

    Args:
        held_out: one shard for each base domain.
        items: files of evaluation items.
    """
    from trainer.eval_items import load_benchmarks

    asked = sorted(load_benchmarks(items)[0])
    bits = [f"bits_per_byte/{name}" for name in ("all", *(shard.name for shard in held_out.shards))]
    return [*bits, *(f"{family}/{name}" for family in ("accuracy", "gold_probability") for name in asked)]


def check_primary(primary: str, names: Sequence[str]) -> None:
    """Say so where the metric that decides is not measured.

    Raises:
        DataError: it is not; names those that are.
    """
    if primary not in names:
        raise DataError(f"effect.primary is {primary!r}, which is not measured; there are: {', '.join(sorted(names))}")


def _effect(settings: EffectSettings) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        results = [json.loads(path.read_text()) for path in sorted(place.of("effect_proxies").glob("proxies/*.json"))]
        found = compare_arms(results, settings.primary)
        write_atomically(work / "effect.json", (json.dumps(found, indent=1, sort_keys=True) + "\n").encode())
        return Outcome(metrics={"effect": found})

    return Step("effect", action, "differences between the arms, with intervals", plain(primary=settings.primary),
                ["effect_proxies"], ("pipelines", "mixtures"))  # fmt: skip


def compare_arms(results: list[dict[str, Any]], primary: str) -> dict[str, dict[str, Any]]:
    """What the synthetic domains change in every metric.

    Args:
        results: of the proxies of both arms, with their `evaluation`.
        primary: the metric that was named before; its verdict is its own, those of the others are Holm's.

    Returns:
        metric -> means of both arms, mean of the paired differences (with minus without), its 95% interval, pairs, the
        p-value as it is and corrected, whether it is primary, and a verdict: better, worse or inconclusive.

    Raises:
        DataError: `primary` was not measured.
    """
    from mixtures.compare import LEVEL, compare
    from mixtures.multiple import holm, paired_p

    arms: dict[str, dict[int, dict[str, float]]] = {arm: {} for arm in ARMS}
    for result in results:
        arms[result["id"].rpartition("-seed")[0]][result["seed"]] = dict(_metrics(result["evaluation"]))
    seeds = sorted(arms["with"])
    found = {}
    for metric in sorted(arms["with"][seeds[0]]):
        sign = 1 if metric.startswith("bits_per_byte") else -1  # compare() takes losses: less is better
        without, with_ = ([arms[arm][seed][metric] for seed in seeds] for arm in ARMS)
        verdict = compare([sign * v for v in without], [sign * v for v in with_])
        interval = verdict.interval and sorted(sign * end for end in verdict.interval)
        found[metric] = {
            "without": sum(without) / len(seeds), "with": sum(with_) / len(seeds), "pairs": verdict.pairs,
            "difference": sign * verdict.difference, "interval95": interval, "verdict": verdict.verdict,
            "p_value": paired_p(without, with_), "primary": metric == primary,
        }  # fmt: skip
    check_primary(primary, list(found))
    others = [one for one in found.values() if not one["primary"]]
    found[primary]["p_corrected"] = found[primary]["p_value"]
    for one, corrected in zip(others, holm([one["p_value"] for one in others]), strict=True):
        one["p_corrected"] = corrected
        one["verdict"] = one["verdict"] if corrected <= 1 - LEVEL else "inconclusive"
    return found


def _metrics(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Name and value of what is compared: bits per byte by domain, accuracy and the right answers' share of items."""
    for domain, found in evaluation["domains"].items():
        if found["bits_per_byte"] is not None:
            yield f"bits_per_byte/{domain}", found["bits_per_byte"]
    if "all_domains" in evaluation:
        yield "bits_per_byte/all", evaluation["all_domains"]["bits_per_byte"]
    for benchmark, found in evaluation["benchmarks"].items():
        if found["items"]:
            # a right and a corrupted chain are told apart by perplexity, answers by likelihood per character
            yield f"accuracy/{benchmark}", found["acc_ppl" if benchmark.startswith(PREFIX) else "acc_norm"]
            yield f"gold_probability/{benchmark}", found["gold_probability"]
