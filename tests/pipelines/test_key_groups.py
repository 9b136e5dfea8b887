import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.key_groups import key_groups


@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 7, 2**63, 2**64 - 1]), st.integers(0, 1)), max_size=30),
    st.integers(1, 8), st.integers(0, 10),
)  # fmt: skip
def test_groups_are_those_of_a_dictionary_whatever_fits_into_memory(tmp_path_factory, keys, most, old):
    folder = tmp_path_factory.mktemp("keys")
    expected: dict = {}
    for row, key in enumerate(keys):
        expected.setdefault(key, []).append(row)
    wanted = [rows for _, rows in sorted(expected.items()) if len(rows) > 1 and rows[-1] >= old]
    columns = np.array(keys, np.uint64).reshape(-1, 2)
    half = len(keys) // 2

    scans = []

    def scan():
        scans.append(1)
        for part in (slice(0, half), slice(half, len(keys))):
            yield np.arange(len(keys))[part], columns[part, 0], columns[part, 1]

    found = [g for groups in key_groups(scan, len(keys), folder, old, most) for g in _split(groups)]
    assert found == wanted
    assert len(scans) == 1
    assert not list(folder.iterdir())


def _split(groups):
    return [part.tolist() for part in np.split(groups.members, np.cumsum(groups.sizes)[:-1]) if len(part)]
