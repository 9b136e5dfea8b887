"""Samples of a run by number: sample k of a phase is a function of (seed, plan, k), so resuming is a number.

A phase is a part of a stage with one length of samples. Its domains are interleaved by Megatron's greedy rule
(`build_blending_indices`); each domain goes on where the phases before left it (`shard_stream.py`), so that a blend may
change between stages without losing or repeating a sample, and what is replayed is drawn from what earlier stages
were trained on. A batch is a range of sample numbers, and a rank takes its rows of it: the order of data does not know
how many ranks there are.

Legend: B samples of a batch, S sequence length, N samples of a phase, P parts of the blend.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipelines.compiled import kernel
from pipelines.errors import DataError
from pipelines.shards import Blend, Shard
from trainer.fill_in_middle import FillInMiddle, cut_sample
from trainer.recipe import Phase, StageSettings, TrainRecipe
from trainer.shard_stream import ReplayStream, ShardReader, ShardStream
from trainer.tape import Tape

CAP_TOLERANCE = 1.01  # whole batches and samples round a share up
CUT = 3  # tells the seeds of fill-in-the-middle apart


@kernel
def greedy_blend(weights_P: np.ndarray, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Interleave parts so that after every sample each part's count is as near to its share as can be.

    Args:
        weights_P: float64 shares that sum to 1.
        samples: how many to draw.

    Returns:
        int16 (samples,): the part of each; int64 (samples,): its number within that part.
    """
    part_N = np.empty(samples, dtype=np.int16)
    number_N = np.empty(samples, dtype=np.int64)
    counts_P = np.zeros(len(weights_P), dtype=np.int64)
    for t in range(samples):
        scale = max(float(t), 1.0)
        best, best_lag = 0, weights_P[0] * scale - counts_P[0]
        for p in range(1, len(weights_P)):
            lag = weights_P[p] * scale - counts_P[p]
            if lag > best_lag:  # strictly: the first of equals wins
                best, best_lag = p, lag
        part_N[t], number_N[t] = best, counts_P[best]
        counts_P[best] += 1
    return part_N, number_N


class Source(Protocol):
    """Samples by number."""

    reader: ShardReader

    def read(self, number: int, inputs_S: np.ndarray, targets_S: np.ndarray, documents_S: np.ndarray) -> None:
        """Fill three int64 (S,) arrays."""


@dataclass(frozen=True)
class Part:
    """A domain's share of a phase.

    Attributes:
        weight: of its samples; those of all parts sum to 1.
        source: its samples.
        first: number of the first one.
        replayed: whether they were trained on before.
    """

    weight: float
    source: Source
    first: int = 0
    replayed: bool = False


@dataclass(frozen=True)
class Samples:
    """Rows of a batch.

    Attributes:
        inputs_BS: int64 token ids.
        targets_BS: int64, the token that follows each.
        documents_BS: int64, the document of each within its row, from 0.
        domains: the domain of each row.
    """

    inputs_BS: np.ndarray
    targets_BS: np.ndarray
    documents_BS: np.ndarray
    domains: tuple[str, ...]

    def require_known(self, vocabulary: int) -> None:
        """Refuse tokens that a model does not know.

        Args:
            vocabulary: tokens that it knows.

        Raises:
            DataError: names the domain and the token.
        """
        highest_B = np.maximum(self.inputs_BS.max(axis=1), self.targets_BS.max(axis=1))
        if highest_B[row := int(highest_B.argmax())] >= vocabulary:
            raise DataError(
                f"domain {self.domains[row]} has token {highest_B[row]}, the model knows {vocabulary}: the shards are "
                "another tokenizer's; give theirs, or set model.vocab_size"
            )


class BlendStream:
    """The samples of one phase.

    Args:
        parts: where they come from.
        length: tokens that a sample trains on.
        samples: how many the phase needs.
        key: numbers that seed what is drawn per sample.
        cut: how documents are cut for filling in the middle.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        length: int,
        samples: int,
        key: tuple[int, ...] = (),
        cut: FillInMiddle | None = None,
    ) -> None:
        self.parts, self.length, self.samples = parts, length, samples
        self._key, self._cut = key, cut
        weights_P = np.array([part.weight for part in parts])
        self._part_N, self._number_N = greedy_blend(weights_P / weights_P.sum(), samples)

    def batch(self, first: int, count: int, rank: int = 0, ranks: int = 1) -> Samples:
        """Samples `first` to `first + count - 1`, or a rank's rows of them.

        Args:
            first: number of the batch's first sample.
            count: samples of the whole batch.
            rank: which of the ranks asks.
            ranks: among how many the batch is split; their rows, one after the other, are the batch.
        """
        rows = range(first + rank * count // ranks, first + (rank + 1) * count // ranks)
        inputs_BS, targets_BS, documents_BS = np.empty((3, len(rows), self.length), np.int64)
        for row, number in enumerate(rows):
            self._read(number, inputs_BS[row], targets_BS[row], documents_BS[row])
        return Samples(inputs_BS, targets_BS, documents_BS, tuple(self._name(number) for number in rows))

    def _name(self, number: int) -> str:
        return self.parts[self._part_N[number]].source.reader.shard.name

    def _read(self, number: int, inputs_S: np.ndarray, targets_S: np.ndarray, documents_S: np.ndarray) -> None:
        part = self.parts[self._part_N[number]]
        part.source.read(part.first + int(self._number_N[number]), inputs_S, targets_S, documents_S)
        cut = self._cut
        if cut and (not cut.domains or part.source.reader.shard.domain in cut.domains):
            random = np.random.default_rng([*self._key, CUT, number])
            row_T = np.append(inputs_S, targets_S[-1])
            row_T, documents_T = cut_sample(row_T, np.append(documents_S, documents_S[-1]), cut, random)
            inputs_S[:], targets_S[:], documents_S[:] = row_T[:-1], row_T[1:], documents_T[:-1]

    def drawn(self) -> list[int]:
        """Samples that the whole phase draws from each part."""
        return np.bincount(self._part_N, minlength=len(self.parts)).tolist()


@dataclass
class _Domain:
    """How far a shard has been read."""

    stream: ShardStream
    number: int = 0

    def goes_on(self, length: int) -> None:
        if self.stream.length != length:
            self.stream, self.number = self.stream.recut(self.number, length), 0

    def trained_on(self) -> Tape:
        return self.stream.rest(self.number).before()


class TrainingData:
    """The phases of a run, each made when it is first asked for, after those before it.

    Args:
        recipe: stages and seed.
        blends: of each stage.

    Attributes:
        least_replay: share of replayed samples that each stage has at least; read when a phase of it is made.

    Raises:
        DataError: a shard is missing, damaged or empty.
    """

    def __init__(self, recipe: TrainRecipe, blends: Sequence[Blend]) -> None:
        self._recipe, self._blends = recipe, blends
        self._plan = [(number, phase) for number, stage in enumerate(recipe.stages) for phase in stage.phases]
        self._domains: dict[tuple[str, str], _Domain] = {}
        self._before: dict[tuple[str, str], Tape] = {}  # what earlier stages were trained on
        self._streams: list[BlendStream] = []
        self._ledgers: list[dict[str, dict[str, float]]] = [{} for _ in recipe.stages]
        self.least_replay = [0.0 for _ in recipe.stages]

    def phase(self, number: int) -> BlendStream:
        """The samples of a phase, counted from 0 through all stages."""
        while len(self._streams) <= number:
            self._streams.append(self._next())
        return self._streams[number]

    def ledger(self, stage: int) -> dict[str, dict[str, float]]:
        """Tokens drawn from each domain in a stage, how many passes over it they are, and tokens drawn again."""
        self.phase(max(place for place, (of, _) in enumerate(self._plan) if of == stage))
        return self._ledgers[stage]

    def _next(self) -> BlendStream:
        place = len(self._streams)
        stage, phase = self._plan[place]
        if place and self._plan[place - 1][0] != stage:
            self._before = {key: domain.trained_on() for key, domain in self._domains.items()}
        replay = max(self._recipe.stages[stage].replay, self.least_replay[stage])
        parts = self._new_parts(stage, phase, 1 - replay) + (
            self._replayed_parts(place, phase, replay) if replay else []
        )
        key = (self._recipe.seed, place)
        stream = BlendStream(
            parts, phase.sequence_length, phase.samples, key, self._recipe.stages[stage].fill_in_middle
        )
        for part, drawn in zip(parts, stream.drawn(), strict=True):
            self._count(stage, part, drawn * phase.sequence_length)
            if not part.replayed:
                self._domains[_key(part.source.reader.shard)].number += drawn
        return stream

    def _new_parts(self, stage: int, phase: Phase, share: float) -> list[Part]:
        parts = []
        for weight, shard in self._blends[stage].parts:
            if weight > 0:
                if (key := _key(shard)) not in self._domains:
                    stream = ShardStream(ShardReader(shard, self._recipe.seed), phase.sequence_length)
                    self._domains[key] = _Domain(stream)
                domain = self._domains[key]
                domain.goes_on(phase.sequence_length)
                parts.append(Part(share * weight, domain.stream, domain.number))
        return parts

    def _replayed_parts(self, place: int, phase: Phase, share: float) -> list[Part]:
        total = sum(tape.length for tape in self._before.values())
        return [
            Part(share * tape.length / total,
                 ReplayStream(self._domains[key].stream.reader, phase.sequence_length, tape, place), replayed=True)
            for key, tape in self._before.items()
            if tape.length
        ]  # fmt: skip

    def _count(self, stage: int, part: Part, tokens: int) -> None:
        reader = part.source.reader
        entry = self._ledgers[stage].setdefault(reader.shard.name, {"tokens": 0, "epochs": 0.0})
        if part.replayed:
            entry["replayed"] = entry.get("replayed", 0) + tokens
        else:
            entry["tokens"] += tokens
            entry["epochs"] = round(entry["tokens"] / reader.tokens, 6)


def _key(shard: Shard) -> tuple[str, str]:
    return shard.name, shard.sha256


def check_epochs(stages: Sequence[StageSettings], blends: Sequence[Blend], cap: float | None) -> None:
    """Refuse a plan that passes over a domain more often than allowed; what is replayed does not count.

    Args:
        stages: of the recipe.
        blends: of each stage.
        cap: most passes, all stages together; None allows any number.

    Raises:
        DataError: names the worst domain, its passes and the cap.
    """
    passes: dict[str, float] = {}
    for stage, blend in zip(stages, blends, strict=True):
        for name, epochs in blend.epochs(stage.fresh_tokens).items():
            passes[name] = passes.get(name, 0.0) + epochs
    worst = max(passes, key=lambda name: passes[name])
    if cap is not None and passes[worst] > cap * CAP_TOLERANCE:
        raise DataError(
            f"domain {worst} would be passed over {passes[worst]:.2f} times, the cap is {cap:g}: "
            "lower its weight or the tokens, or raise epoch_cap"
        )


def check_cut_domains(stages: Sequence[StageSettings], blends: Sequence[Blend]) -> None:
    """Refuse to fill in the middle of what is not there: a misspelt name would cut nothing, in silence.

    Args:
        stages: of the recipe.
        blends: of each stage.

    Raises:
        DataError: a stage cuts a domain that its blend does not have.
    """
    for stage, blend in zip(stages, blends, strict=True):
        known = sorted({shard.domain for _, shard in blend.parts})
        for name in stage.fill_in_middle.domains if stage.fill_in_middle else ():
            if name not in known:
                raise DataError(
                    f"stage {stage.name}: fill_in_middle names domain {name!r}; there is: {', '.join(known)}"
                )


def blends_of_stages(stages: Sequence[StageSettings], blends: Mapping[str, Blend] | Blend) -> list[Blend]:
    """The blend of each stage.

    Raises:
        DataError: a stage names a blend that was not given, or names none though several were.
    """
    if isinstance(blends, Blend):
        return [blends] * len(stages)
    found = []
    for stage in stages:
        name = next(iter(blends)) if stage.blend is None and len(blends) == 1 else stage.blend
        if name is None or name not in blends:
            there = ", ".join(sorted(blends))
            raise DataError(f"stage {stage.name} draws from blend {name!r}; there are: {there}")
        found.append(blends[name])
    return found
