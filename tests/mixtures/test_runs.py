import pytest

from mixtures.runs import Runs, common_metrics, read_runs
from mixtures.scale import Scale
from mixtures.tables import Metrics, Ratios
from pipelines.errors import DataError

RATIOS = "id,sand,clay\nb,0.25,0.75\na,1,0\n"
METRICS = "id,loss,other\na,3,1\nb,4,2\n"


@pytest.fixture
def table(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_rows_and_domains_are_sorted_and_matched_by_name(table):
    (runs,) = read_runs([table("r.csv", RATIOS)], [table("m.csv", METRICS)], ["60M/1B"])
    assert (runs.ratios.ids, runs.ratios.domains, runs.scale) == (("a", "b"), ("clay", "sand"), Scale.parse("60M/1B"))
    assert runs.ratios.weights_PD.tolist() == [[0, 1], [0.75, 0.25]]
    assert runs.metrics.values_PM.tolist() == [[3, 1], [4, 2]]


def test_any_label_will_do_for_a_single_scale(table):
    pair = [table("r.csv", RATIOS)], [table("m.csv", METRICS)]
    assert read_runs(*pair, ["tiny"])[0].scale is None
    assert read_runs(*pair, [])[0].scale is None
    with pytest.raises(DataError, match="scale '1Q/2Z': expected parameters and tokens"):
        read_runs(*pair, ["1Q/2Z"])


def test_pairs_are_matched_in_order_and_sorted_by_scale(table):
    ratios, metrics = table("r.csv", RATIOS), [table("m.csv", METRICS), table("n.csv", METRICS.replace("a,3", "a,2"))]
    runs = read_runs([ratios, ratios], metrics, ["60M/1B", "1M/1B"])
    assert [str(each.scale) for each in runs] == ["1M/1B", "60M/1B"]
    assert [each.metrics.values_PM[0, 0] for each in runs] == [2, 3]


def test_columns_of_scale_split_a_table(table):
    ratios = table("r.csv", "id,params,sand,clay,tokens\na,60M,1,0,1B\nb,1e6,0.5,0.5,2e9\nc,60000000,0,1,1.0B\n")
    metrics = table("m.csv", "id,loss\nc,1\nb,2\na,3\n")
    runs = read_runs([ratios], [metrics], [])
    assert [(str(each.scale), each.ratios.ids) for each in runs] == [("1M/2B", ("b",)), ("60M/1B", ("a", "c"))]
    assert runs[1].metrics.values_PM.tolist() == [[3], [1]]


def test_pairs_of_one_scale_are_joined(table):
    more = table("s.csv", "id,clay,sand\nc,0.5,0.5\n"), table("n.csv", "id,loss\nc,9\n")
    pairs = [table("r.csv", RATIOS), more[0]], [table("m.csv", METRICS), more[1]]
    (runs,) = read_runs(*pairs, ["1M", "1M"])
    assert (runs.ratios.ids, runs.metrics.names) == (("a", "b", "c"), ("loss",))
    with pytest.raises(DataError, match="run 'a' is in two tables of scale 1M"):
        read_runs([pairs[0][0]] * 2, [pairs[1][0]] * 2, ["1M", "1M"])


@pytest.mark.parametrize(
    ("ratios", "metrics", "scales", "problem"),
    [
        (2, 1, 2, "2 --ratios, 1 --metrics and 2 --scale"),
        (2, 2, 1, "the same order"),
        (1, 1, 2, "the same order"),
        (2, 2, 0, "which scale"),
    ],
)
def test_options_that_do_not_match(table, ratios, metrics, scales, problem):
    left, right = table("r.csv", RATIOS), table("m.csv", METRICS)
    with pytest.raises(DataError, match=problem):
        read_runs([left] * ratios, [right] * metrics, ["1M", "2M"][:scales])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("id,params,sand\na,big,1\n", "row 'a': scale 'big/'"),
        ("id,params,tokens,sand\na,1M,none,1\n", "row 'a': scale '1M/none'"),
        ("id,tokens,sand\na,1B,1\n", "without `params`"),
    ],
)
def test_bad_columns_of_scale(table, text, problem):
    with pytest.raises(DataError, match=problem):
        read_runs([table("r.csv", text)], [table("m.csv", "id,loss\na,1\n")], [])


def test_other_domains_at_another_scale_are_an_error(table):
    other = table("s.csv", "id,sand,silt\na,1,0\nb,0,1\n")
    with pytest.raises(DataError, match="unknown 'silt'; missing 'clay'"):
        read_runs([table("r.csv", RATIOS), other], [table("m.csv", METRICS)] * 2, ["1M", "2M"])


def test_common_metrics():
    ratios = Ratios.of({"a": {"x": 1.0}})
    one, two = (Runs.of(ratios, Metrics.of({"a": dict.fromkeys(names, 1.0)})) for names in (("b", "a"), ("b", "c")))
    assert common_metrics([one, two]) == (["b"], ["a", "c"])
    with pytest.raises(DataError, match="no metric is in all tables: a"):
        common_metrics([one.select(["a"]), two])


def test_scales_beside_the_metrics_alone_are_refused(table):
    metrics = table("m.csv", "id,loss,params\na,3,1M\nb,4,60M\n")
    with pytest.raises(DataError, match=r"scales stand beside the domains; move params and tokens to .*r\.csv"):
        read_runs([table("r.csv", RATIOS)], [metrics], [])


def test_gaps_are_those_of_a_scale(table):
    ratios = table("r.csv", "id,params,sand,clay\na,1M,1,0\nb,1M,0,1\nc,60M,1,0\nd,60M,0.5,0.5\n")
    metrics = table("m.csv", "id,loss,late\na,1,5\nb,2,\nc,3,\nd,4,\n")
    small, large = read_runs([ratios], [metrics], [])
    assert (small.ratios.ids, small.metrics.names) == (("a",), ("loss", "late"))
    assert (large.ratios.ids, large.metrics.names) == (("c", "d"), ("loss",))
