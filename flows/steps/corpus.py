"""Steps of a corpus recipe: near duplicates by groups, decontamination, perplexity buckets, tokens, the mixture."""

from collections.abc import Sequence
from pathlib import Path

from flows.corpus import CorpusRecipe
from flows.steps.build import dedup_step, source_steps
from flows.steps.step import Place, Step, digests_of, plain, require
from pipelines.files import expand_inputs, sha256_of
from pipelines.store import Outcome

FILTERS = ("pipelines", "filters")


def corpus_steps(recipe: CorpusRecipe) -> list[Step]:
    """The steps from sources to tokens, and to a mixture where the recipe has weights."""
    groups = recipe.near_groups()
    near = [
        dedup_step(name, recipe.near_settings(domains[0]), "dedup_exact", domains) for name, domains in groups.items()
    ]
    steps = [*source_steps(recipe), dedup_step("dedup_exact", recipe.dedup.exact, "filter"), *near]
    live = list(groups)
    if recipe.items.files:
        steps.append(_decontaminate(recipe, live))
        live = ["decontaminate"]
    steps.append(_tokenizer(recipe, live))
    if recipe.scorer is not None:
        steps += [_perplexity(recipe, live), _buckets(recipe), _bucketed(live)]
        live = ["bucketed"]
    steps.append(_tokens(recipe, live))
    if recipe.weights:
        steps.append(_mixture(recipe))
    return steps


def _documents(place: Place, steps: Sequence[str]) -> list[Path]:
    """Live documents of several steps, none of which has a domain of another."""
    return list(require([file for step in steps for file in place.documents(step)], " and ".join(steps)))


def _decontaminate(recipe: CorpusRecipe, parents: Sequence[str]) -> Step:
    def items() -> list[Path]:
        return expand_inputs([Path(recipe.root) / name for name in recipe.items.files])

    def action(place: Place, work: Path) -> Outcome:
        from pipelines.decontaminate import decontaminate

        return decontaminate(_documents(place, parents), items(), work, recipe.decontaminate, place.workers)

    return Step(
        "decontaminate", action, "documents that hold evaluation items are dropped",
        plain(decontaminate=recipe.decontaminate, items=recipe.items), parents,
        inputs=lambda: {f"items:{number}:{path.name}": sha256_of(path) for number, path in enumerate(items())},
    )  # fmt: skip


def _tokenizer(recipe: CorpusRecipe, parents: Sequence[str]) -> Step:
    given = recipe.tokenizer.path and str(Path(recipe.root) / recipe.tokenizer.path)
    settings = recipe.tokenizer.model_copy(update={"path": given})

    def action(place: Place, work: Path) -> Outcome:
        from pipelines.tokenizer import train_tokenizer

        return train_tokenizer(_documents(place, parents), work, settings)

    about = "the recipe's tokenizer, or one trained on the corpus"
    return Step("tokenizer", action, about, plain(tokenizer=recipe.tokenizer), parents,
                inputs=lambda: digests_of({"tokenizer": given}))  # fmt: skip


def _perplexity(recipe: CorpusRecipe, parents: Sequence[str]) -> Step:
    assert recipe.scorer is not None
    model = Path(recipe.root) / recipe.scorer.path
    named = {key: getattr(recipe.scorer, key) for key in ("path", "dataset", "licence")}  # not what it costs

    def action(place: Place, work: Path) -> Outcome:
        from filters.perplexity import score_perplexity

        return score_perplexity(_documents(place, parents), work, recipe.perplexity, model, place.workers)

    return Step("perplexity", action, "negative log-likelihood of every document",
                plain(perplexity=recipe.perplexity, scorer=named), parents, FILTERS,
                lambda: digests_of({"scorer": model}))  # fmt: skip


def _buckets(recipe: CorpusRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from filters.buckets import buckets

        return buckets(place.documents("perplexity", "scores"), work, recipe.buckets)

    return Step("buckets", action, "high, mid, low per domain; high is lowest perplexity",
                plain(buckets=recipe.buckets), ["perplexity"], FILTERS)  # fmt: skip


def _bucketed(parents: Sequence[str]) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from filters.buckets import assign

        return assign(
            _documents(place, parents), place.of("buckets") / "buckets.parquet",
            place.documents("perplexity", "scores"), work, place.workers,
        )  # fmt: skip

    return Step("bucketed", action, "documents by domain and bucket", {}, [*parents, "perplexity", "buckets"], FILTERS)


def _tokens(recipe: CorpusRecipe, parents: Sequence[str]) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from pipelines.encode import encode

        tokenizer = place.of("tokenizer") / "tokenizer"
        return encode(_documents(place, parents), work, tokenizer, recipe.encode, place.workers)

    return Step("tokens", action, "Megatron shards by domain and bucket", plain(encode=recipe.encode),
                [*parents, "tokenizer"])  # fmt: skip


def _mixture(recipe: CorpusRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from mixtures.mixture import Mixture
        from pipelines.indexed import load_shards

        train = place.of("tokens") / "train"
        shards = load_shards(train if train.is_dir() else place.of("tokens")).shards
        sizes = {domain: sum(s.tokens for s in shards if _is_of(s.name, domain)) for domain in recipe.weights}
        shares = {
            shard.name: weight * shard.tokens / sizes[domain]
            for domain, weight in recipe.weights.items()
            for shard in shards
            if _is_of(shard.name, domain)
        }
        missing = sorted(domain for domain, tokens in sizes.items() if not tokens)
        total = sum(shares.values())  # below 1 when a domain came out empty: its share goes to the others, and is told
        budget = {"tokens": recipe.tokens} if recipe.tokens else {}
        mixture = Mixture.rounded(recipe.name, {name: share / total for name, share in shares.items()}, **budget)
        mixture.write(work / "mixture.yaml")
        epochs = {d: recipe.tokens * w / sizes[d] for d, w in recipe.weights.items() if recipe.tokens and sizes[d]}
        return Outcome(metrics={"tokens": sizes, "epochs": epochs, "empty": missing})

    return Step("mixture", action, "the recipe's weights over what there is, buckets by their tokens",
                plain(weights=recipe.weights, tokens=recipe.tokens), ["tokens"], ("pipelines", "mixtures"))  # fmt: skip


def _is_of(shard: str, domain: str) -> bool:
    """Whether a shard holds a domain, or a bucket of it."""
    return shard == domain or shard.rpartition("/")[0] == domain
