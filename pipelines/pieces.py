"""Encoded documents on their way to shards: the pieces that parallel tasks write, one folder for each input file.

In a folder lie a raw token file and an Arrow table for each domain; `pipelines/merge.py` shuffles the documents of all
of them into shards. A batch's segments are put end to end by a few array operations, straight into the piece's dtype.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.document import ORIGIN, SCHEMA

SIDECAR = pa.schema(
    [
        *(SCHEMA.field(name) for name in ("id", "url", "source", "domain")),
        ("origin", ORIGIN),
        ("tokens", pa.int64()),  # length of the sequence, end of text included
        ("bytes", pa.int64()),  # UTF-8 bytes of the text that it encodes: for bits per byte
        ("fim", pa.string()),  # `psm` or `spm` when its middle stands last (pipelines/fim.py), else null
    ]
)
PIECE = pa.schema([*SIDECAR, ("order", pa.uint64()), ("held", pa.uint64())])
TALLY = "tally.json"


def put_end_to_end(
    ids_T: np.ndarray, start_S: np.ndarray, length_S: np.ndarray, lead_S2: np.ndarray, last_S: np.ndarray, eos_id: int,
    dtype: np.dtype,
) -> np.ndarray:  # fmt: skip
    """Copy segments one after another, special tokens before them, the end token after each document's last.

    Array operations, not a kernel: a short text is encoded sooner than numba has come up.

    Args:
        ids_T: ids that segments are parts of.
        start_S: where each segment begins in `ids_T`.
        length_S: its tokens.
        lead_S2: ids that stand before it, -1 for none.
        last_S: whether it ends its document.
        eos_id: the end token.
        dtype: of what is returned.
    """
    size_S = (lead_S2 >= 0).sum(axis=1) + length_S + last_S
    end_S = np.cumsum(size_S)
    out_T = np.full(int(size_S.sum()), eos_id, dtype)
    is_text = np.ones(len(out_T), bool)
    is_text[(end_S - 1)[last_S]] = False
    for number, lead_S in enumerate(lead_S2.T):
        at = (end_S - size_S + number)[lead_S >= 0]
        out_T[at], is_text[at] = lead_S[lead_S >= 0], False
    place_S = np.cumsum(length_S) - length_S
    out_T[is_text] = ids_T[np.repeat(start_S - place_S, length_S) + np.arange(int(length_S.sum()))]
    return out_T


@dataclass
class PieceWriter:
    """One task's output: `<folder>/<number>.bin` and `.arrow` for each domain, and a tally; appears whole, by rename.

    Args:
        folder: of this task.
        dtype: of the tokens.
    """

    folder: Path
    dtype: np.dtype
    _open: dict[str, tuple] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # The process id keeps a worker that outlives its killed parent out of the way of the one that resumes.
        self.temporary = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)

    def append(self, domain: str, tokens_T: np.ndarray, rows: pa.Table) -> None:
        """Append documents of one domain: their tokens end to end, and their `PIECE` rows."""
        if domain not in self._open:
            number = len(self._open)
            tokens = (self.temporary / f"{number}.bin").open("wb")
            table = pa.ipc.new_file(str(self.temporary / f"{number}.arrow"), PIECE)
            self._open[domain] = (tokens, table)
        tokens, table = self._open[domain]
        tokens.write(np.ascontiguousarray(tokens_T, self.dtype).data)
        table.write_table(rows)

    def close(self, tally: Mapping[str, int | str], silent: Sequence[str]) -> None:
        """Finish: `tally` counts documents and names the engine, `silent` names domains that had a file without any."""
        for tokens, table in self._open.values():
            tokens.close()
            table.close()
        summary = {"domains": list(self._open), "silent": list(silent), **tally}
        (self.temporary / TALLY).write_text(json.dumps(summary))
        if self.folder.exists():  # the same bytes, by a task that was killed before it was marked complete
            shutil.rmtree(self.temporary)
        else:
            self.temporary.replace(self.folder)


def read_tally(folder: Path) -> dict:
    """What `PieceWriter.close` wrote."""
    return json.loads((folder / TALLY).read_bytes())
