"""Training of the fastText classifier: its examples, and a process of its own that makes the same model every time.

The one choice that matters: fastText fills only a part of its input matrix (it cuts it in ten blocks, one per thread);
the rest is whatever lay in memory: in a process that has worked before, other bytes on each run, at times NaN. From
zeros, words start random, n-grams start at zero, and `model.bin` is the same bytes every time. Source: fastText
densematrix.cc.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.document import conform
from pipelines.errors import DataError, StepError
from pipelines.files import write_atomically

ZEROED = {"MALLOC_PERTURB_": "255", "MALLOC_MMAP_THRESHOLD_": "65536"}
"""glibc: fill what malloc returns with the complement of 255, and take large blocks fresh from the kernel."""


class Examples(NamedTuple):
    """What a classifier is trained and calibrated on.

    Attributes:
        texts: string (N,), normalised.
        labels_N: int, 1 good, 0 bad, -1 unknown.
        keys_N: uint64, what decides folds and order.
    """

    texts: pa.Array
    labels_N: np.ndarray
    keys_N: np.ndarray


def read_examples(
    files: Sequence[Path], normalise: Callable[[pa.Array], pa.Array], positive: Sequence[str], negative: Sequence[str],
    seed: int,
) -> Examples:  # fmt: skip
    """Read labelled documents.

    Args:
        files: Parquet documents, labelled by a column `label` or by domain and source (rows without id or text are left
            out); JSON lines (.gz, .zst) with `text` and `label`.
        normalise: brings texts to the form that the classifier reads.
        positive: domains or sources of good documents.
        negative: of bad ones; empty: all others.
        seed: of the keys.

    Raises:
        DataError: a file cannot be read, or a label is neither 0 nor 1.
    """
    from xxhash import xxh64_intdigest

    texts, labels, keys = [], [], []
    for file in files:
        by_label = ".jsonl" in file.name or ".json" in file.name
        ids, text, label = _labelled(file) if by_label else _by_origin(file, positive, negative)
        texts.append(normalise(text))
        labels.append(label)
        keys += [xxh64_intdigest(identity.encode("utf-8", "surrogatepass"), seed) for identity in ids]
    text = pa.chunked_array(texts, pa.string()).combine_chunks()
    return Examples(text, np.concatenate([*labels, np.zeros(0, int)]), np.array(keys, np.uint64))


def _labels(values: Sequence[Any], file: Path) -> np.ndarray:
    known = {0: 0, 1: 1, "0": 0, "1": 1}  # True and 1.0 are equal to 1
    for row, value in enumerate(values):
        if not isinstance(value, (int, float, str)) or value not in known:
            raise DataError(f"{file}: row {row}: label is {value!r}, expected 0 or 1")
    return np.array([known[value] for value in values], int)


def _labelled(file: Path) -> tuple[list[str], pa.Array, np.ndarray]:
    try:
        with pa.input_stream(str(file), compression="detect") as stream:
            rows = [json.loads(line) for line in stream.read().split(b"\n") if line.strip()]
        texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
        if wrong := [row for row, text in enumerate(texts) if not isinstance(text, str)]:
            raise TypeError(f"row {wrong[0]}: text is {texts[wrong[0]]!r}")
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"{file}: expected JSON lines with `text` and `label` (0 or 1): {error}") from None
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    return texts, pa.array(texts, pa.string()), _labels(labels, file)  # the text is the identity: copies fall together


def _by_origin(file: Path, positive: Sequence[str], negative: Sequence[str]) -> tuple[list[str], pa.Array, np.ndarray]:
    try:
        read = pq.ParquetFile(file).read()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file} is not readable Parquet: {error}") from None
    table = conform(read, file=file)
    whole = pc.and_(pc.is_valid(table["id"]), pc.is_valid(table["text"]))
    read, table = read.filter(whole), table.filter(whole)
    if "label" in read.column_names and not positive:
        return table["id"].to_pylist(), table["text"].combine_chunks(), _labels(read["label"].to_pylist(), file)
    good = _named(table, positive)
    bad = _named(table, negative) if negative else ~good
    return table["id"].to_pylist(), table["text"].combine_chunks(), np.where(good, 1, np.where(bad, 0, -1))


def _named(table: pa.Table, names: Sequence[str]) -> np.ndarray:
    """Bool (N,): documents whose domain (or a parent of it) or source has one of the names."""
    wanted = pa.array(list(names), pa.string())
    parents = pc.replace_substring_regex(pc.fill_null(table["domain"], ""), "/.*", "")
    found = [pc.is_in(column, value_set=wanted) for column in (table["domain"], parents, table["source"])]
    return np.logical_or.reduce([np.asarray(column) for column in found])


def balanced_rows(examples: Examples, chosen_N: np.ndarray) -> np.ndarray:
    """Rows to train on, in the order of their keys, equally many of each class: int (rows,)."""
    order = np.argsort(examples.keys_N, kind="stable")
    order = order[chosen_N[order]]
    classes = [order[examples.labels_N[order] == label] for label in (0, 1)]
    size = min(map(len, classes))
    picked = np.concatenate([rows[:size] for rows in classes])
    return picked[np.argsort(examples.keys_N[picked], kind="stable")]


def write_lines(examples: Examples, rows: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Write examples as fastText reads them, the label first; `names` are those of bad and good."""
    labels = pa.array([f"{names[label]} " for label in examples.labels_N[rows]], pa.string())
    lines = pc.binary_join_element_wise(labels, examples.texts.take(pa.array(rows)), "")
    write_atomically(path, ("\n".join(lines.to_pylist()) + "\n").encode("utf-8", "replace"))


def train(examples: Path, model: Path, arguments: Mapping[str, Any]) -> None:
    """Train a supervised model in a fresh process.

    Args:
        examples: one per line, label first.
        model: file to write.
        arguments: of `fasttext.train_supervised`; `thread` is always 1.

    Raises:
        StepError: fastText failed.
    """
    request = json.dumps({"input": str(examples), "model": str(model), **arguments, "thread": 1, "verbose": 0})
    command = [sys.executable, "-P", "-c", _PROGRAM, request]
    done = subprocess.run(command, env={**os.environ, **ZEROED}, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise StepError(f"fastText failed: {reason}; lower lr ({arguments['lr']}) or epoch ({arguments['epoch']})")


_PROGRAM = """
import json, sys
import fasttext
arguments = json.loads(sys.argv[1])
path = arguments.pop("model")
fasttext.train_supervised(**arguments).save_model(path)
"""
