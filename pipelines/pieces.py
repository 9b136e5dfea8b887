"""Encoded documents on their way to shards: the pieces that parallel tasks write, one folder for each input file.

In a folder lie a raw token file and an Arrow table for each domain; `pipelines/merge.py` shuffles the documents of all
of them into shards. A batch's segments are put end to end by one compiled pass, straight into the piece's dtype.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.compiled import kernel
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


@kernel
def put_end_to_end(ids_T, start_S, length_S, lead_S2, last_S, eos_id, out_T):
    """Copy segments one after another, special tokens before them, the end token after each document's last.

    Args:
        ids_T: ids that segments are parts of.
        start_S: where each segment begins in `ids_T`.
        length_S: its tokens.
        lead_S2: ids that stand before it, -1 for none.
        last_S: whether it ends its document.
        eos_id: the end token.
        out_T: receives them; exactly as long as needed.
    """
    used = 0
    for s in range(len(start_S)):
        for lead in lead_S2[s]:
            if lead >= 0:
                out_T[used] = lead
                used += 1
        for at in range(start_S[s], start_S[s] + length_S[s]):
            out_T[used] = ids_T[at]
            used += 1
        if last_S[s]:
            out_T[used] = eos_id
            used += 1
    return used


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
