"""The cards of what is published: README.md with YAML front matter, for a dataset and for a model.

Every number in a card is read from a manifest or from the published files themselves; none is typed in, so a card
cannot disagree with what it describes. The front matter is that of the Hugging Face Hub.
"""

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML

from flows.card_licences import Terms
from flows.publish_rejects import CONFIG, FOLDER, Rejects

SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
         (10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"), (10**11, "10B<n<100B"),
         (10**12, "100B<n<1T"))  # fmt: skip
TABLE_ROWS = 60  # of one manifest's numbers; a card is for reading, MANIFEST.json has the rest


@dataclass(frozen=True)
class Part:
    """One published split of one domain.

    Attributes:
        config: name of the configuration, `web_en-high`.
        domain: as in the corpus, `web_en/high`.
        split: `train` or `validation`.
        files: how many.
        documents: rows.
        text_bytes: UTF-8 bytes of their text.
        languages: documents per language, ISO 639-3.
        licences: documents per source and licence, as their metadata state it.
        passages: passages that samples quote, likewise.
    """

    config: str
    domain: str
    split: str
    files: int
    documents: int
    text_bytes: int
    languages: Mapping[str, int]
    licences: Mapping[Terms, int]
    passages: Mapping[Terms, int]


def size_category(rows: int) -> str:
    """The Hub's size class of a number of rows: 1500 -> '1K<n<10K'."""
    return next((name for limit, name in SIZES if rows < limit), "n>1T")


def dataset_card(
    parts: Sequence[Part], lineage: Mapping[str, Any], name: str, licence: Mapping[str, str], reproduce: str,
    rejects: Rejects | None = None,
) -> str:  # fmt: skip
    """README.md of a dataset.

    Args:
        parts: what was published, in order.
        lineage: `recipe` (name), `funnel` and `synth` (step -> manifest as JSON values), `licences` (by source).
        name: of the dataset.
        licence: the front matter's licence fields.
        reproduce: the command that builds it again.
        rejects: of synthesis, where they are published, too.
    """
    languages = _sum(part.languages for part in parts)
    front = {
        **licence,
        "pretty_name": name,
        "language": [code for code in languages if code],
        "size_categories": [size_category(sum(part.documents for part in parts))],
        "task_categories": ["text-generation"],
        "tags": ["pretraining", *(["synthetic"] if _synthesized(lineage) else [])],
        "configs": _configs(parts) + _rejects_config(rejects),
    }
    body = [
        f"# {name}",
        "A pretraining corpus in which every document names the raw record that it came from (column `origin`: file, "
        "offset or row, length and sha256 of the record's bytes). Built by Loam from the recipe "
        f"`{lineage.get('recipe', '?')}`. All numbers below are generated from the manifests of the run.",
        "## Contents",
        _contents(parts),
        "## What was kept, and why the rest was not",
        *_funnel(lineage.get("funnel", {})),
        *_generation(lineage.get("synth", {})),
        *_rejects(rejects),
        "## Licences by source",
        _licences(parts, lineage.get("licences", {})),
        "## Known limits",
        *_limits(parts, lineage),
        "## How to reproduce",
        f"```\n{reproduce}\n```",
        "The files of this folder with their sizes and sha256 are in `MANIFEST.json`, beside the id and digest of "
        "every step that led here.",
    ]
    return front_matter(front) + "\n" + "\n\n".join(body) + "\n"


def model_card(
    facts: Mapping[str, Any], shape: Mapping[str, Any], name: str, licence: Mapping[str, str], dataset: str | None,
    reproduce: str,
) -> str:  # fmt: skip
    """README.md of a model.

    Args:
        facts: `recipe` (name) and step -> manifest as JSON values, in the order to tell them.
        shape: what the model's own files say: architecture, parameters, ...
        name: of the model.
        licence: the front matter's licence fields.
        dataset: name of the dataset that it was trained on, if published.
        reproduce: the command that builds it again.
    """
    front = {
        **licence,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["loam", "pretraining"],
        **({"datasets": [dataset]} if dataset else {}),
    }
    body = [
        f"# {name}",
        f"A causal language model trained from nothing by Loam, recipe `{facts.get('recipe', '?')}`. All numbers below "
        "are generated from the model's files and from the manifests of the run.",
        "## The model",
        _table(("what", "value"), [(key, _cell(value)) for key, value in shape.items()]),
    ]
    for step, manifest in facts.items():
        if isinstance(manifest, Mapping) and (rows := _numbers(manifest.get("metrics", {}))):
            body += [f"## Step `{step}`", _table(("what", "value"), rows)]
    body += [
        "## Known limits",
        "It continues text; it was not tuned to follow instructions or to be safe, and repeats its corpus' faults.",
        "## How to reproduce",
        f"```\n{reproduce}\n```",
        "The files of this folder with their sizes and sha256 are in `MANIFEST.json`.",
    ]
    return front_matter(front) + "\n" + "\n\n".join(body) + "\n"


def front_matter(fields: Mapping[str, Any]) -> str:
    """YAML between `---` lines; empty lists are left out."""
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[attr-defined]
    yaml.dump({key: value for key, value in fields.items() if value not in ([], None)}, stream)
    return f"---\n{stream.getvalue()}---\n"


def _configs(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """One configuration per domain, and `all`; a glob per split that has files."""
    by_config: dict[str, list[str]] = {}
    for part in parts:
        by_config.setdefault(part.config, []).append(part.split)
    splits = [split for split in ("train", "validation") if any(part.split == split for part in parts)]
    configs: list[dict[str, Any]] = [{"config_name": "all", "default": True, "data_files": _data_files("*", splits)}]
    configs += [{"config_name": name, "data_files": _data_files(name, have)} for name, have in by_config.items()]
    return configs


def _data_files(config: str, splits: Sequence[str]) -> list[dict[str, str]]:
    return [{"split": split, "path": f"data/{config}/{split}-*.parquet"} for split in splits]


def _contents(parts: Sequence[Part]) -> str:
    rows = [(p.config, p.split, p.files, f"{p.documents:,}", f"{p.text_bytes:,}") for p in parts]
    total = (f"{sum(p.documents for p in parts):,}", f"{sum(p.text_bytes for p in parts):,}")
    return _table(
        ("config", "split", "files", "documents", "bytes of text"),
        [*rows, ("**all**", "", sum(p.files for p in parts), *total)],
    )


def _funnel(steps: Mapping[str, Any]) -> Iterator[str]:
    counted = {name: manifest["counts"] for name, manifest in steps.items() if manifest.get("counts")}
    if not counted:
        yield "No step of the run counted documents."
        return
    rows = [
        (
            name,
            f"{c['docs_in']:,}",
            f"{c['kept']:,}",
            f"{sum(c['dropped'].values()):,}",
            f"{sum(c['rejected'].values()):,}",
        )
        for name, c in counted.items()
    ]
    yield _table(("step", "documents in", "kept", "dropped", "rejected"), rows)
    reasons = [
        (name, reason, fate, f"{number:,}")
        for name, c in counted.items()
        for fate in ("dropped", "rejected")
        for reason, number in sorted(c[fate].items(), key=lambda item: (-item[1], item[0]))
    ]
    if reasons:
        yield _table(("step", "reason", "fate", "documents"), reasons)


def _synthesized(lineage: Mapping[str, Any]) -> int:
    last = list(lineage.get("synth", {}).values())[-1:]
    return sum((manifest.get("counts") or {}).get("kept", 0) for manifest in last)


def _generation(steps: Mapping[str, Any]) -> Iterator[str]:
    """How synthetic text was made, accepted and rejected."""
    for name, manifest in steps.items():
        yield f"## Generated text: step `{name}`"
        yield _table(("setting", "value"), _numbers(manifest.get("settings", {})) or [("none", "")])
        yield from _funnel({name: manifest}) if manifest.get("counts") else ()
        if rows := _numbers(manifest.get("metrics", {})):
            yield _table(("what", "value"), rows)


def _rejects_config(rejects: Rejects | None) -> list[dict[str, Any]]:
    files = [{"split": "train", "path": f"{FOLDER}/*.parquet"}]
    return [{"config_name": CONFIG, "data_files": files}] if rejects else []


def _rejects(rejects: Rejects | None) -> Iterator[str]:
    """What was generated and not accepted."""
    if rejects is None:
        return
    yield "## Rejected generations"
    yield (f"{rejects.rows:,} generations that verification turned down are the configuration `{CONFIG}`, which `all` "
           "does not hold: reason, stage, an excerpt of what was said, and the key columns of samples. Of "
           f"{rejects.withheld:,} no word is told: what was said holds items of evaluation sets or personal "
           "data.")  # fmt: skip
    rows = [(reason, stage, f"{number:,}") for (reason, stage), number in rejects.counts.items()]
    yield _table(("reason", "stage", "generations"), rows)


def _licences(parts: Sequence[Part], licences: Mapping[str, str]) -> str:
    documents = _terms((part.licences for part in parts), licences)
    passages = _terms((part.passages for part in parts), licences)
    rows = [(*terms, f"{documents.get(terms, 0):,}") for terms in dict.fromkeys((*documents, *passages))]
    if not passages:
        return _table(("source", "licence", "documents"), rows)
    wider = [(*row, f"{passages.get(row[:2], 0):,}") for row in rows]
    return _table(("source", "licence", "documents", "passages in generated text"), wider)


def _terms(counts: Iterable[Mapping[Terms, int]], licences: Mapping[str, str]) -> dict[Terms, int]:
    """Counts by terms in words: a licence of their own, else the one that the recipe states of the source."""
    words: dict[Terms, int] = {}
    for each in counts:
        for (source, licence), number in each.items():
            terms = (source or "not stated", licence or licences.get(source, "not stated"))
            words[terms] = words.get(terms, 0) + number
    return dict(sorted(words.items(), key=lambda item: (-item[1], item[0])))


def _limits(parts: Sequence[Part], lineage: Mapping[str, Any]) -> Iterator[str]:
    documents = sum(part.documents for part in parts)
    stated = _terms((part.licences for part in parts), lineage.get("licences", {}))
    unlicensed = sum(n for (_, licence), n in stated.items() if licence == "not stated")
    untold = documents - sum(n for code, n in _sum(part.languages for part in parts).items() if code)
    yield "\n".join((
        f"- {untold:,} of {documents:,} documents carry no language label.",
        f"- {unlicensed:,} documents have no stated licence, neither of their own nor of their source.",
        f"- {_synthesized(lineage):,} documents are generated by a model.",
        "- Filters and masks are heuristics: unwanted or personal text may remain, and good text was lost.",
    ))  # fmt: skip


def _numbers(tree: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The scalars of a nested mapping under dotted names; lists stay in MANIFEST.json."""
    rows = [(name, _cell(value)) for name, value in _leaves(tree)]
    more = len(rows) - TABLE_ROWS
    return [*rows[:TABLE_ROWS], ("...", f"{more} more in MANIFEST.json")] if more > 0 else rows


def _leaves(tree: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{at}{key}.")
        elif value is not None and not isinstance(value, (list, tuple)):
            yield f"{at}{key}", value


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else str(value)
    return f"{value:,}"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines)


def _escaped(cell: object) -> str:
    return " ".join(str(cell).replace("|", "\\|").split())


def _sum(counts: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for key, number in each.items():
            total[key] = total.get(key, 0) + number
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))
