import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtures.interop import write_ratios_as
from mixtures.tables import Metrics, Ratios
from pipelines.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


SWARM = Ratios.of({"r1": {"web": 0.1, "code": 0.9}, "r2": {"web": 1.0}})


def read(tmp_path, text, reader=Ratios.read_csv):
    path = tmp_path / "table.csv"
    path.write_text(text)
    return reader(path)


def test_round_trip_is_exact(tmp_path):
    SWARM.write_csv(tmp_path / "r.csv")
    assert Ratios.read_csv(tmp_path / "r.csv").rows() == [
        ("r1", {"web": 0.1, "code": 0.9}),
        ("r2", {"web": 1, "code": 0}),
    ]
    metrics = Metrics.of({"r1": {"loss": 1 / 3}, "r2": {"loss": 2.5}})
    metrics.write_csv(tmp_path / "m.csv")
    assert np.array_equal(Metrics.read_csv(tmp_path / "m.csv").values_PM, metrics.values_PM)


@pytest.mark.parametrize("layout", ["loam", "regmix", "olmix"])
def test_layouts_of_other_projects_are_read(tmp_path, layout):
    write_ratios_as(tmp_path / "r.csv", SWARM, layout)
    assert Ratios.read_csv(tmp_path / "r.csv").rows() == SWARM.rows()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("id,a,b\nr1,0.5,0.5\nr2,0.5,0.4\n", "row 'r2' sums to 0.9, expected 1$"),
        ("id,a,b\nr1,50,50\n", "row 'r1' sums to 100, expected 1; these look like percentages"),
        ("id,a,b\nr1,1.5,-0.5\n", "row 'r1' holds a weight below 0"),
        ("id,a,b\nr1,0.5,\n", "row 'r1', column 'b': '' is not a finite number"),
        ("id,a,b\nr1,0.5,nan\n", "row 'r1', column 'b'"),
        ("id,a,b\nr1,1.0\n", "row 'r1' has 2 cells, the header has 3"),
        ("id,a,a\nr1,0.5,0.5\n", "column 'a' appears twice"),
        ("id,a,b\nr1,0.5,0.5\nr1,1,0\n", "id 'r1' appears twice"),
        ("id,a\n", "at least one row"),
        ("", "at least one row"),
        ("id;a;b\nr1;0.5;0.5\n", "columns are separated by semicolons; expected"),
        ("id\ta\tb\nr1\t0.5\t0.5\n", "columns are separated by tabs; expected"),
        ("# made by hand\nid,a,b\nr1,0.5,0.5\n", "the first line is '# made by hand'; expected a header"),
        ("r1,0.5,0.25,0.25\nr2,0.2,0.3,0.5\n", r"column '0.25' appears twice"),
        ("r1,0.5,0.2,0.3\nr2,0.2,0.3,0.5\n", r"the first line holds numbers \(0.5\); expected a header"),
        ("id,a,\nr1,0.5,0.5\n", "column 2 of 2 is empty; name it"),
        ("id,a,b\nr1,0.5,0.5\n,1,0\n", "id 2 of 2 is empty; name it"),
        ('id,a,b\n"r1,0.5,0.5\nr2,1,0\n"", "', "cells, the header has 3|line break"),
        ('id,a,b\n"r\n1",0.5,0.5\n', "holds a line break"),
        ("id,a,b\nr1,0_1,0\n", "'0_1' is not a finite number"),
    ],
)
def test_bad_ratios_name_the_row(tmp_path, text, problem):
    with pytest.raises(DataError, match=problem):
        read(tmp_path, text)


def test_a_measurement_whose_square_overflows_is_refused(tmp_path):
    assert read(tmp_path, "id,loss\nr1,1e29\n", Metrics.read_csv).values_PM == 1e29
    with pytest.raises(DataError, match="row 'r1', column 'loss': -1e308 is beyond 1e\\+30; a run that diverged"):
        read(tmp_path, "id,loss\nr1,-1e308\n", Metrics.read_csv)


def test_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        Ratios.read_csv(tmp_path / "none.csv")


def test_a_sum_off_by_its_written_rounding_is_counted_not_refused(tmp_path):
    table = read(tmp_path, "id,a,b,c\nr1,0.333,0.333,0.333\nr2,0.2,0.3,0.5\n")
    assert (table.rounded, table.weights_PD[0].tolist()) == (1, [1 / 3] * 3)


def test_two_decimals_do_not_excuse_three_percent(tmp_path):
    with pytest.raises(DataError, match=r"sums to 0\.97"):
        read(tmp_path, "id,a,b,c\nr1,0.30,0.30,0.37\n")


def test_decimals_are_those_that_were_written(tmp_path):
    table = read(tmp_path, "id,a,b,c\nr1,0.33333,0.66665,1e-05\nr2,0.30000000000000004,0.33,0.36\n")
    assert table.rounded == 2
    assert table.weights_PD.sum(axis=1).tolist() == pytest.approx([1, 1], abs=1e-15)
    with pytest.raises(DataError, match=r"row 'r1' sums to 0\.99"):
        read(tmp_path, "id,a,b,c\nr1,0.333000000001,0.333,0.324\n")


def test_a_table_in_percent_is_read_as_such(tmp_path):
    table = read(tmp_path, "id,a,b,c\nr1,50,25,25\nr2,33.33,33.33,33.33\n")
    assert table.weights_PD == pytest.approx(np.array([[0.5, 0.25, 0.25], [1 / 3] * 3]), abs=1e-15)
    with pytest.raises(DataError, match="row 'r1' sums to 100"):  # no row tells the unit of another
        read(tmp_path, "id,a,b\nr1,50,50\nr2,0.5,0.5\n")
    with pytest.raises(DataError, match="row 'r1' sums to 100"):
        read(tmp_path, "id,a,b\nr1,50,50\nr2,50.00,49.96\n")


def test_runs_that_lack_a_metric_are_left_and_so_is_a_metric_that_most_lack(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("id,a,b,c\nr1,1,2,\nr2,1.5,nan,\nr3,3,4,5\n")
    table = Metrics.read_csv(path, gaps=True)
    assert np.isnan(table.values_PM).sum() == 3
    whole = table.without_gaps()
    assert (whole.ids, whole.names, whole.values_PM.tolist()) == (("r1", "r3"), ("a", "b"), [[1, 2], [3, 4]])
    with pytest.raises(DataError, match="row 'r1', column 'c': '' is not a finite number"):
        Metrics.read_csv(path)
    path.write_text("id,a,b\nr1,,2\nr2,1,\n")
    with pytest.raises(DataError, match="no run has a value of every metric"):
        Metrics.read_csv(path, gaps=True).without_gaps()
    path.write_text("id,a\nr1,diverged\n")
    with pytest.raises(DataError, match="'diverged' is not a finite number"):
        Metrics.read_csv(path, gaps=True)


def test_columns_are_matched_by_name():
    assert SWARM.ordered(["code", "web"]).weights_PD.tolist() == [[0.9, 0.1], [0.0, 1.0]]
    with pytest.raises(DataError, match="unknown 'web'; missing 'maths'"):
        SWARM.ordered(["code", "maths"])


def test_runs_of_the_two_tables_must_agree():
    with pytest.raises(DataError, match="unknown 'r3'; missing 'r2'"):
        Metrics.of({"r1": {"loss": 1}, "r3": {"loss": 2}}).ordered(SWARM.ids)


def test_published_regmix_tables_are_read(published):
    regmix = published / "regmix"
    ratios, metrics = (
        Ratios.read_csv(regmix / "train_mixture_1m.csv"),
        Metrics.read_csv(regmix / "train_pile_loss_1m.csv"),
    )
    assert ratios.weights_PD.shape == (512, 17)
    assert ratios.rounded == 303  # rows written with three decimals; their sums run from 0.996 to 1.003
    assert metrics.values_PM.shape == (512, 13)


@given(st.text(st.sampled_from('id,ab0.51e-\n\r"; \x00nan½'), max_size=60))
def test_any_text_is_a_table_or_one_line(folder, text):
    (folder / "t.csv").write_text(text, encoding="utf-8", newline="")
    for reader in (Ratios.read_csv, Metrics.read_csv):
        try:
            found = ", ".join(reader(folder / "t.csv").ids)
        except DataError as error:
            found = str(error)
        assert found
        assert "\n" not in found


def test_permuted_columns_and_rows_are_the_same_runs(tmp_path):
    first = read(tmp_path, "id,a,b,c\nr1,0.2,0.3,0.5\nr2,0.333,0.333,0.333\n")
    second = read(tmp_path, "id,c,a,b\nr2,0.333,0.333,0.333\nr1,0.5,0.2,0.3\n")
    assert dict(first.rows()) == {run: {name: dict(second.rows())[run][name] for name in "abc"} for run in ("r1", "r2")}


def test_many_rows_are_read_in_time_proportional_to_them(tmp_path):
    lines = ["id,a,b", *(f"r{i},0.5,0.5" for i in range(20_000))]
    assert len(read(tmp_path, "\n".join(lines)).ids) == 20_000
