"""The verdict: what a judge of documents says of each one, kept or a reason.

The one choice that matters: a verdict is a column, not an object: null keeps the document, a string `<group>.<rule>`
names the first rule that it failed. `pipelines.document.with_fate` turns it into a dropped document with that reason.
Source: datatrove's habit that a drop carries a reason.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def first_failure(failures_RN: Sequence[np.ndarray], reasons: Sequence[str], rows: int) -> pa.Array:
    """Turn the failures of rules into verdicts.

    Args:
        failures_RN: per rule (R), bool (N,), true where a document fails; in the order in which rules are asked.
        reasons: the reason of each rule.
        rows: N.

    Returns:
        string (N,): null where no rule fails, else the reason of the first that does.
    """
    first_N = np.full(rows, -1, np.int64)
    for rule, fails_N in enumerate(failures_RN):
        first_N[(first_N < 0) & fails_N] = rule
    indices = pa.array(first_N, mask=first_N < 0)
    return pa.DictionaryArray.from_arrays(indices, pa.array(list(reasons), pa.string())).cast(pa.string())
