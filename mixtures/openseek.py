"""OpenSeek's published mixtures as recipes, its experiments as tables of runs, and PT-8T, which was never published.

The numbers are those of OpenSeek's repository (Apache-2.0, `recipes/openseek/`): percentages as they are printed, which
miss 100 by their rounding, and accuracies. Everything else is computed here, so that every shipped recipe can be made
again, byte for byte: `python -m mixtures.openseek`. What contradicts what is in docs/openseek-mixtures.md.
"""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mixtures.closed_forms import ClosedSettings, closed_form
from mixtures.mixture import Domains, Mixture
from mixtures.tables import Metrics, Ratios, write_table
from pipelines.files import write_atomically
from pipelines.recipe import to_yaml

RECIPES = Path(__file__).resolve().parent / "recipes"
TABLES = RECIPES / "openseek"
V01, NO_SAMPLING, PHI4, BASELINE = (
    "pt-1.3t-v0.1", "pt-1.3t-v1.0-no-sampling", "pt-1.3t-v1.0-phi4", "100b-baseline",
)  # fmt: skip
UNIQUE_TOKENS = 10**13  # "more than 10T tokens" are said to exist; no table of tokens is published
PT_8T = ClosedSettings(
    name="openseek-pt-8t", kind="proportional", tokens=8 * 10**12, epoch_cap=4.0
)  # returns vanish beyond 4 epochs, arXiv:2305.16264

ENGLISH = ("HellaSwag", "TruthfulQA", "Winogrande", "CommonsenseQA", "PIQA", "OpenBookQA", "BoolQ", "ARC-Easy",
           "ARC-Challenge", "MMLU")  # fmt: skip
MATH, CHINESE = ("GSM8K", "MinervaMath"), ("CEval", "CMMLU")
TASKS = (*ENGLISH, *MATH, *CHINESE)
AVERAGES = {"EN_noMath": ENGLISH, "EN": (*ENGLISH, *MATH), "ZH": CHINESE, "All": TASKS,
            "All_noMath": (*ENGLISH, *CHINESE)}  # fmt: skip
RUNS = {  # run of the ratio and version experiments -> its mixture
    "data_mix/No-Sampling_16B_100B": NO_SAMPLING, "data_mix/Phi4-Sampling_16B_100B": PHI4,
    "dataset_version/A3B-v0.1_100B": V01,
    "dataset_version/A3B-v0.1_200B": V01, "dataset_version/A3B-v1.0-baseline_200B": NO_SAMPLING,
    "dataset_version/A3B-v0.1_300B": V01, "dataset_version/A3B-v1.0-baseline_300B": NO_SAMPLING,
}  # fmt: skip

ABOUT = {
    V01: ("OpenSeek PT-1.3T v0.1, 26 datasets.", 1.33e12, """\
Source: the history of OpenSeek's repository, pretraining/v0.1/train_aquila_3b.yaml. The printed percentages sum to
99.99 and are divided by that. The YAML of its ratio experiment is the same list without pes2o."""),
    NO_SAMPLING: ("OpenSeek PT-1.3T v1.0 without sampling, 38 datasets and buckets.", 1.33e12, """\
Source: the pie chart in the history of OpenSeek's documentation, by 15 domains; they sum to 100.00. Weights by dataset
were not published: within CC-EN, the only domain of several datasets, they are those of the Phi4 sampling."""),
    PHI4: ("OpenSeek PT-1.3T v1.0, Phi4 sampling, 38 datasets and buckets.", 1.33e12, """\
Source: OpenSeek, train_deepseek_v3_3b_1330B.yaml (the model is not of 3B). The printed percentages sum to 99.96 and
are divided by that; the pie chart of the same mixture has 64.23 for CC-EN, the rows have 64.19. Against no sampling,
all reasoning data is raised 4.7-fold and Chinese is halved."""),
    BASELINE: ("OpenSeek-Pretrain-100B, 84 shards.", 103_050_000_000, """\
Source: OpenSeek's baseline configuration. Not a sample of the corpus: one shard file of each dataset, weighted by the
tokens that this file happens to hold of 103.05B, so that reasoning over arXiv is 47% of it and English web text 12%.
The first table of these shards had 109.73B tokens; eight days later it was reweighted and the table removed."""),
}  # fmt: skip


HOW_8T = """\
No weights were published. What was, are three mixtures with results at 100B tokens (openseek/ratios_100B.csv), and
`loam mix fit` refuses to fit a law to three. Where nothing was learned `loam mix propose` gives the prior inside the
bounds, and so does `loam mix closed --kind proportional --tokens 8T --epoch-cap 4` over openseek/domains.yaml. Its
unique tokens are an estimate, namely the published proportions without sampling, of the 10T tokens that are said to
exist; every domain is read 0.8 times."""


class Row(NamedTuple):
    """One published weight; `dataset`, `bucket` and `part` are empty where the table does not go so deep."""

    mixture: str
    domain: str
    dataset: str
    bucket: str
    part: str
    percent: float

    @property
    def name(self) -> str:
        """Source, topic, bucket and part."""
        return "/".join(filter(None, (self.domain, self.dataset, self.bucket, self.part)))


def published_rows(mixture: str) -> list[Row]:
    """The published percentages of one mixture, as printed."""
    with (TABLES / "weights.csv").open(newline="", encoding="utf-8") as file:
        return [Row(*row[:-1], percent=float(row[-1])) for row in csv.reader(file) if row[0] == mixture]


def by_domain(mixture: str) -> dict[str, float]:
    """Published percentages added up by domain."""
    sums: dict[str, list[float]] = {}
    for row in published_rows(mixture):
        sums.setdefault(row.domain, []).append(row.percent)
    return {domain: math.fsum(percents) for domain, percents in sums.items()}


def by_path(mixture: str) -> dict[str, float]:
    """Percentages by dataset and bucket; of no sampling, its domains split as the Phi4 sampling splits them."""
    if mixture != NO_SAMPLING:
        return {row.name: row.percent for row in published_rows(mixture)}
    own, other = by_domain(NO_SAMPLING), by_domain(PHI4)
    return {row.name: own[row.domain] * row.percent / other[row.domain] for row in published_rows(PHI4)}


def mixture_of(mixture: str) -> Mixture:
    """A published mixture by dataset and bucket, its weights divided by their sum."""
    about, tokens, _ = ABOUT[mixture]
    return _normalised(f"openseek-{mixture}", about, by_path(mixture), round(tokens))


def unique_tokens() -> Domains:
    """An estimate of what OpenSeek's corpus holds by domain: its proportions without sampling, of 10T tokens."""
    return Domains.of({name: round(percent / 100 * UNIQUE_TOKENS) for name, percent in by_domain(NO_SAMPLING).items()})


def pt_8t() -> Mixture:
    """PT-8T: no law can be fitted to what was published, and then the prior stands, within the bounds."""
    found = closed_form(unique_tokens(), PT_8T)
    about = "OpenSeek PT-8T, whose weights were never published: proportional, at 8T tokens."
    return Mixture.rounded(found.name, found.weights, about=about, tokens=found.tokens, epoch_cap=found.epoch_cap)


def benchmark_rows() -> dict[str, dict[str, float]]:
    """`experiment/variant` -> accuracy of each task and the averages that were printed (`pub_...`)."""
    with (TABLES / "benchmarks.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {f"{row['experiment']}/{row['variant']}": {name: float(value) for name, value in row.items()
            if name not in ("experiment", "variant")} for row in rows}  # fmt: skip


def corrected_averages(accuracies: Mapping[str, float]) -> dict[str, float]:
    """Plain means over the tasks, as the printed averages are defined."""
    return {name: math.fsum(accuracies[task] for task in tasks) / len(tasks) for name, tasks in AVERAGES.items()}


def runs_at(tokens: str) -> tuple[Ratios, Metrics]:
    """The experiments of one training length (`100B`) as tables: weights of 15 domains, error rates of 14 tasks.

    Laws take losses, so that accuracies become error rates; the corrected averages are no metrics, being made of them.
    """
    chosen = {run: mixture for run, mixture in RUNS.items() if run.endswith(f"_{tokens}")}
    rows, domains = benchmark_rows(), tuple(by_domain(NO_SAMPLING))
    weights = {mixture: by_domain(mixture) for mixture in chosen.values()}
    ratios = {mixture: {name: found.get(name, 0.0) / math.fsum(found.values()) for name in domains}
              for mixture, found in weights.items()}  # fmt: skip
    errors = {mixture: {task: round(1 - rows[run][task], 6) for task in TASKS} for run, mixture in chosen.items()}
    return Ratios.of(ratios), Metrics.of(errors)


def recipe_text(mixture: Mixture, comment: str) -> str:
    """A mixture as a recipe, under a comment that says where it comes from."""
    lines = [f"# {line}" for line in ["Made by `python -m mixtures.openseek`.", *comment.splitlines()]]
    stated = {"kind": mixture.kind, **mixture.model_dump(mode="json", exclude_defaults=True)}
    return "\n".join([*lines, to_yaml(stated)])


def shipped() -> dict[str, str]:
    """File name -> text of every recipe and table that is made here."""
    texts = {f"openseek-{name}.yaml": recipe_text(mixture_of(name), comment) for name, (_, _, comment) in ABOUT.items()}
    texts["openseek-pt-8t.yaml"] = recipe_text(pt_8t(), HOW_8T)
    return texts


def write_tables(folder: Path) -> None:
    """Write the runs of each training length and the estimate of unique tokens."""
    for tokens in ("100B", "200B", "300B"):
        ratios, metrics = runs_at(tokens)
        ratios.write_csv(folder / f"ratios_{tokens}.csv")
        metrics.write_csv(folder / f"metrics_{tokens}.csv")
    unique_tokens().write(folder / "domains.yaml")
    rows = benchmark_rows()
    values = np.array([[*(row[f"pub_{name}"] for name in AVERAGES), *corrected_averages(row).values()]
                       for row in rows.values()])  # fmt: skip
    names = [*(f"printed_{name}" for name in AVERAGES), *(f"corrected_{name}" for name in AVERAGES)]
    write_table(folder / "averages.csv", list(rows), names, values.round(6))


def _normalised(name: str, about: str, percents: Mapping[str, float], tokens: int) -> Mixture:
    total = math.fsum(percents.values())
    return Mixture.rounded(
        name, {key: percent / total for key, percent in percents.items()}, about=about, tokens=tokens
    )


def main() -> None:
    """Write every recipe and table."""
    for file, text in shipped().items():
        write_atomically(RECIPES / file, text.encode())
    write_tables(TABLES)


if __name__ == "__main__":
    main()
