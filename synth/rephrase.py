"""The five rephrasings of Nemotron-CC: text of the web written again, in five ways.

A document is cut into segments that fit the prompt, each is asked about once, and what comes back is cleaned, checked
against its segment and joined again to one sample per document. After arXiv:2412.02595 (section 2.3 for the routing);
prompts and checks are Loam's. Against the published code, long lines are split instead of dropped, and the draw of
questions is seeded.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import DataError
from synth.kind import Inputs, Stage
from synth.prompt_files import Prompt, Prompts, prompt_language
from synth.recipe import SynthSettings, prompts_of
from synth.rephrase_answers import (
    drawn_pairs,
    parse_pairs,
    render_pairs,
    strip_bullets,
    strip_markdown,
    strip_quotes,
    without_prefix,
)
from synth.rephrase_segments import long_enough, segments_of
from synth.token_counts import token_counter
from synth.verification import Limits, Span, check_prose

CEILING = 2
"""Tokens below the ceiling from which on an answer counts as cut off, as published."""
JOINT = "\n\n"


@dataclass(frozen=True)
class Rephrasing:
    """One segment, or after joining one document.

    Attributes:
        key: of document and segment, for what is drawn.
        source: text of the segment; empty after joining.
        span: where it stands in the document.
        language: of the prompts.
        tokens: of the segment.
        text: what was made of it.
        written: what of that the model wrote.
        pairs: questions in `text`.
        spans: of the segments that went into it, after joining.
        lost: why other segments of the document did not.
    """

    key: str
    source: str
    span: Span
    language: str
    tokens: int
    text: str = ""
    written: str = ""
    pairs: int = 0
    spans: tuple[Span, ...] = ()
    lost: tuple[str, ...] = ()


class Rephrase:
    """One of the recipes `diverse_qa`, `distill`, `extract_knowledge`, `knowledge_list` and `wrap`.

    Args:
        settings: with the name of the recipe.
        inputs: the model folder, whose tokenizer counts.
    """

    identity = ""

    def __init__(self, settings: SynthSettings, inputs: Inputs) -> None:
        self.recipe, self.seed, self.own = settings.recipe, settings.seed, settings.rephrase
        self.limits = self.own.limits(self.recipe)
        self.prompts: Prompts = prompts_of(settings)
        self.ceiling = settings.sampling.max_tokens
        self.count, self.counter = token_counter(inputs.model)
        self.buckets = read_buckets(self.own.buckets) if self.own.route and self.own.buckets else {}
        slots = lambda draft, limits: {"segment": draft.source}  # noqa: E731
        self.stages = (Stage(self.recipe, slots, self.read),)

    def units(self, row: Mapping[str, Any]) -> Sequence[tuple[str, Rephrasing]] | str:
        """Segments of the document, or why it has none."""
        if (reason := self._misrouted(row)) is not None:
            return reason
        text, language = row["text"], prompt_language(row["language"], row["text"])
        if self.count([text])[0] < self.limits.min_document:
            return "document_too_short"
        spans = segments_of(text, self.room(self.prompts.of(self.recipe, language)), self.count)
        kept, short = long_enough(text, spans, self.limits.min_segment, self.count)
        if not kept:
            return "segments_too_short"
        texts = [text[span.start : span.end] for span in kept]
        lost = ("segment_too_short",) * short
        key = f"{row['id']}#{self.recipe}"
        return [
            (f"segment-{number}", Rephrasing(f"{key}#{number}", source, span, language, tokens, lost=lost))
            for number, (source, span, tokens) in enumerate(zip(texts, kept, self.count(texts), strict=True))
        ]

    def _misrouted(self, row: Mapping[str, Any]) -> str | None:
        """Why a document is not for this task, by its quality."""
        if not self.own.route:
            return None
        bucket = self.buckets.get(row["id"]) if self.own.buckets else _number(row["metadata"], self.own.bucket_key)
        if bucket is None:
            return "no_bucket"
        return None if (bucket > self.own.high_above) == self.limits.high else "other_bucket"

    def room(self, prompt: Prompt) -> int:
        """Tokens that a segment may have: what the prompt leaves of the input, and at least half of it.

        The half is for tokenizers that know few words, with which a prompt alone would fill the input.
        """
        bare = self.count([prompt.fill({"segment": ""})])[0]
        return max(self.limits.max_input - bare - CEILING, self.limits.max_input // 2)

    def read(self, answer: str, draft: Rephrasing, limits: Limits) -> Rephrasing | str:
        """An answer to text, or the reason why not."""
        prompt = self.prompts.of(self.recipe, draft.language)
        most = min(prompt.max_tokens, self.ceiling or prompt.max_tokens)
        if self.counter == "tokenizer" and self.count([answer])[0] > most - CEILING:
            return "truncated"
        text = strip_markdown(answer)
        if prompt.prefix:
            found = without_prefix(text, prompt.prefix)
            if found is None:
                return "missing_prefix"
            text = found
        text = strip_quotes(text)
        if self.recipe == "diverse_qa":
            return self._questions(text, draft, limits)
        text = strip_bullets(text) if self.recipe == "knowledge_list" else text
        return check_prose(text, draft.source, limits) or replace(draft, text=text, written=text)

    def _questions(self, text: str, draft: Rephrasing, limits: Limits) -> Rephrasing | str:
        """The segment with some of its questions; questions that do not hold by themselves are left out."""
        pairs = parse_pairs(text)
        if pairs is None:
            return "pairs_malformed"
        reasons = [check_prose("\n".join(pair), draft.source, limits) for pair in pairs]
        sound = [pair for pair, reason in zip(pairs, reasons, strict=True) if reason is None]
        if not sound:
            return reasons[0] or "pairs_malformed"
        drawn = drawn_pairs(sound, draft.tokens, draft.key, self.seed)
        written = render_pairs(drawn, draft.language)
        return replace(draft, text=draft.source + JOINT + written, written=written, pairs=len(drawn))

    def settle(self, ended: Sequence[tuple[str, Any]]) -> Sequence[tuple[str, Any]]:
        """Segments joined to one sample; of a document of which nothing is left, the first segment's reject."""
        drafts = [draft for _, draft in ended if isinstance(draft, Rephrasing)]
        lost = tuple(reason for _, reason in ended if isinstance(reason, str))
        if not drafts:
            return ended[:1]
        text = JOINT.join(draft.text for draft in drafts)
        if self.count([text])[0] < self.limits.min_sample:
            return [("", "sample_too_short")]
        written = JOINT.join(draft.written for draft in drafts)
        joined = replace(drafts[0], source="", text=text, written=written, pairs=sum(draft.pairs for draft in drafts),
                         spans=tuple(draft.span for draft in drafts), lost=(*drafts[0].lost, *lost))  # fmt: skip
        return [("", joined)]

    def sample_slots(self, draft: Rephrasing) -> Mapping[str, str]:
        """The text."""
        return {"text": draft.text}

    def written(self, draft: Rephrasing) -> str:
        """The text; of `diverse_qa` the questions with their answers, without the segments before them."""
        return draft.written

    def shown(self, draft: Rephrasing) -> str:
        """It is the document."""
        return ""

    def provenance(self, draft: Rephrasing, mates: Sequence[str]) -> Mapping[str, str]:
        """Which segments went into it, why others did not, and what counted tokens."""
        known = {
            "segments": json.dumps([[span.start, span.end] for span in draft.spans]),
            "lost_segments": json.dumps(dict(sorted(Counter(draft.lost).items()))),
            "tokens_by": self.counter,
        }
        return known | ({"pairs": str(draft.pairs)} if self.recipe == "diverse_qa" else {})

    def close(self) -> None:
        """Nothing is held."""


def read_buckets(path: Path) -> dict[str, int]:
    """Quality buckets by id of document.

    Raises:
        DataError: no table, or not one with `id` and `bucket`.
    """
    try:
        table = pq.read_table(path, columns=["id", "bucket"])
        return {
            name: int(bucket) for name, bucket in zip(*table.to_pydict().values(), strict=True) if bucket is not None
        }
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: expected a table of id and bucket (a number), as loam quality ensemble writes it: "
                        f"{error}") from None  # fmt: skip


def _number(metadata: Any, key: str) -> int | None:
    try:
        return int(dict(metadata or ()).get(key, ""))
    except ValueError:
        return None


def open_rephrase(settings: SynthSettings, inputs: Inputs) -> Rephrase:
    """The kind that the settings name, one of five."""
    return Rephrase(settings, inputs)
