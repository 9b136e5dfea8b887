"""Domains and mixtures: what there is, and in which proportions to read it.

Everything is keyed by the domain's name, never by its position: a cap that lands on the wrong column ruins a run in
silence. Weights that do not sum to 1 are an error, because renormalising them hides the typo. Epochs are weight times
budget over unique tokens.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.errors import DataError, RecipeError
from pipelines.files import write_atomically
from pipelines.manifest import digest_of
from pipelines.quantities import Tokens
from pipelines.recipe import Section, dump_yaml, load_recipe

SUM_TOLERANCE = 1e-6
MILLION = 10**6  # written weights are whole millionths, so that their sum is exactly 1

TABLE_COLUMNS = ("run", "name", "index", "params", "tokens")  # `tables` and `runs` read them as something else


def _plain_name(name: str) -> str:
    if name != name.strip() or not name.isprintable():
        raise ValueError(f"name {name!r} begins or ends with a space, or holds a sign that cannot be seen")
    return name


Name = Annotated[str, Field(min_length=1)]
DomainName = Annotated[Name, AfterValidator(_plain_name)]
Epochs = Annotated[float, Field(gt=0, allow_inf_nan=False)]
EpochCap = Annotated[
    Annotated[Epochs, Tag("number")] | Annotated[dict[str, Epochs], Tag("patterns")],
    Discriminator(lambda value: "patterns" if isinstance(value, Mapping) else "number"),  # an error names one of them
]


class Domain(Section):
    """A named share of the corpus.

    Attributes:
        name: source, topic and quality bucket, as far as they are told apart: `web_en/news/high`.
        unique_tokens: tokens before any repetition.
        licence: what the texts may be used under, where it is known.
    """

    name: DomainName
    unique_tokens: Annotated[Tokens, Field(gt=0)]
    licence: str | None = None


class Domains(Section):
    """The domains that a mixture may draw from, in the order of their file."""

    domains: tuple[Domain, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> "Domains":
        seen: set[str] = set()
        for domain in self.domains:
            if domain.name in TABLE_COLUMNS:
                raise ValueError(f"{domain.name!r} is the name of another column in tables of runs; rename the domain")
            if domain.name in seen:
                raise ValueError(f"domain {domain.name!r} is listed twice")
            seen.add(domain.name)
        return self

    @classmethod
    def of(cls, unique_tokens: Mapping[str, int]) -> "Domains":
        """Domains from a mapping of name to unique tokens."""
        return cls(domains=tuple(Domain(name=name, unique_tokens=count) for name, count in unique_tokens.items()))

    @classmethod
    def read(cls, path: Path) -> "Domains":
        """Read a domains file: a list of `{name, unique_tokens}`, or the same list under the key `domains`.

        Raises:
            RecipeError: unreadable, or not such a list; names the file and the entry.
        """
        try:
            tree = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        except YAMLError as error:
            raise RecipeError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise RecipeError(f"{path}: cannot be read: {error}") from None
        try:
            return cls.model_validate(tree if isinstance(tree, dict) else {"domains": tree})
        except ValidationError as error:
            raise RecipeError(f"{path}: {_first_problem(error)}") from None

    def write(self, path: Path) -> None:
        """Write a domains file that `read` reads back equal."""
        write_atomically(path, dump_yaml(self).encode())

    @property
    def names(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(domain.name for domain in self.domains)

    @property
    def unique_tokens(self) -> dict[str, int]:
        """Name -> unique tokens."""
        return {domain.name: domain.unique_tokens for domain in self.domains}

    @property
    def total(self) -> int:
        """Unique tokens of all domains."""
        return sum(domain.unique_tokens for domain in self.domains)

    def ordered(self, names: Sequence[str]) -> "Domains":
        """The domains called `names`, in that order.

        Raises:
            DataError: a name is not there.
        """
        check_same_names("the choice of domains", names, "the domains", self.names, subset=True)
        held = {domain.name: domain for domain in self.domains}
        return Domains(domains=tuple(held[name] for name in names))

    def digest(self) -> str:
        """Hash of names and tokens; the order does not matter."""
        return digest_of(self.unique_tokens)

    def __len__(self) -> int:
        return len(self.domains)


class Mixture(Section):
    """Proportions of domains, with the budget and the cap that they were made for.

    Attributes:
        kind: that of a recipe.
        name: what to call it.
        about: what it is, in a line.
        weights: domain -> share of the training tokens; sums to 1 within 1e-6.
        tokens: training budget, where one is set.
        epoch_cap: how often a domain may be read, where that is limited: one number, or domain or pattern -> number.
        provenance: what it was found by: digests of swarm and domains, the law, the verdict; nothing depends on it.
    """

    kind: Literal["mixture"] = "mixture"
    name: Name
    about: str = ""
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(min_length=1)
    tokens: Annotated[Tokens, Field(gt=0)] | None = None
    epoch_cap: EpochCap | None = None
    provenance: dict[str, str] = Field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that name these proportions with their budget and caps, whatever they are called."""
        return digest_of(self.model_dump(mode="json", include={"weights", "tokens", "epoch_cap"}))[:12]

    @model_validator(mode="after")
    def _sums_to_one(self) -> "Mixture":
        total = sum(self.weights.values())
        if abs(total - 1) > SUM_TOLERANCE:
            hint = "; these look like percentages: divide by 100" if abs(total - 100) < 1 else ""
            raise ValueError(f"weights of mixture {self.name!r} sum to {total:.8g}, expected 1 within 1e-6{hint}")
        return self

    @classmethod
    def rounded(cls, name: str, weights: Mapping[str, float], **budget: Any) -> "Mixture":
        """A mixture whose weights are rounded to whole millionths, for writing down."""
        whole = in_millionths(list(weights.values()))
        return cls(name=name, weights=dict(zip(weights, whole, strict=True)), **budget)

    @classmethod
    def read(cls, path: Path) -> "Mixture":
        """Read `mixture.yaml`.

        Raises:
            RecipeError: names file, line and field; weights that do not sum to 1 are one such error.
        """
        return load_recipe(str(path), cls)

    def write(self, path: Path) -> None:
        """Write `mixture.yaml`, atomically."""
        write_atomically(path, dump_yaml(self).encode())

    def epochs(self, domains: Domains, tokens: int | None = None) -> dict[str, float]:
        """How often each domain is read: weight x budget / unique tokens.

        Args:
            domains: what there is.
            tokens: budget; the mixture's own when not given.

        Raises:
            DataError: no budget is known, or the mixture names a domain that does not exist.
        """
        budget = tokens or self.tokens
        if budget is None:
            raise DataError(f"mixture {self.name!r} has no token budget: give `tokens` to count epochs")
        check_same_names(f"mixture {self.name!r}", self.weights, "the domains", domains.names, subset=True)
        held = domains.unique_tokens
        return {name: weight * budget / held[name] for name, weight in self.weights.items()}

    def by_part(self, parts: int = 1) -> dict[str, float]:
        """Weights added up over the first parts of the names: 1 gives sources, 2 gives sources with topics."""
        sums: dict[str, list[float]] = {}
        for name, weight in self.weights.items():
            sums.setdefault("/".join(name.split("/")[:parts]), []).append(weight)
        return {name: math.fsum(weights) for name, weights in sums.items()}


def check_same_names(what: str, found: Sequence[str] | Mapping, where: str, known: Sequence[str],
                     subset: bool = False) -> None:  # fmt: skip
    """Compare two sets of names.

    Raises:
        DataError: `found` holds names that `known` lacks or, unless `subset`, the other way round; lists the first few.
    """
    extra = sorted(set(found) - set(known))
    missing = [] if subset else sorted(set(known) - set(found))
    parts = [f"{verb} {', '.join(map(repr, names[:3]))}{' ...' if len(names) > 3 else ''}"
             for verb, names in (("unknown", extra), ("missing", missing)) if names]  # fmt: skip
    if parts:
        there = f"{', '.join(known[:12])}{' ...' if len(known) > 12 else ''}"
        rule = "" if subset else "; names must be equal"
        raise DataError(f"{what} does not match {where}: {'; '.join(parts)}; there are {there}{rule}")


def in_millionths(weights: Sequence[float], uppers: Sequence[float] | None = None) -> list[float]:
    """Round weights to whole millionths that sum to exactly one million, by largest remainder.

    Args:
        weights: sum to 1 within 1e-6.
        uppers: caps that the rounded weights must not pass, where there are any.
    """
    exact = [weight * MILLION for weight in weights]
    whole = [int(value + 1e-9) for value in exact]
    room = [MILLION] * len(exact) if uppers is None else [int(upper * MILLION + 1e-6) for upper in uppers]
    order = sorted(range(len(exact)), key=lambda i: (whole[i] - exact[i], i))
    while (left := MILLION - sum(whole)) > 0:
        given = [i for i in order if whole[i] < room[i]] or order  # caps that sum to 1 are passed by a millionth
        for i in given[:left]:
            whole[i] += 1
    whole[max(range(len(whole)), key=whole.__getitem__)] += left  # below 0 only when the weights passed 1 by rounding
    return [count / MILLION for count in whole]


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"]) or "domains"
    told = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("tuple_type", "model_type", "missing", "extra_forbidden", "string_type"):
        found = {"missing": "nothing", "extra_forbidden": "a key that domains do not have"}
        told = f"found {found.get(problem['type'], _described(problem['input']))}"
    return f"{where}: {told}; expected a list such as `- {{name: web, unique_tokens: 5B}}`"


def _described(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
