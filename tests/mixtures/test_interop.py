import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtures.blends import blend_rows, check_epochs, from_data_path, from_energon, sequence_weights, to_data_path
from mixtures.bounds import Bounds
from mixtures.interop import (
    read_mixture,
    read_regmix_mixture,
    write_metrics_as,
    write_ratios_as,
    write_regmix_mixture,
)
from mixtures.mixture import Domains, Mixture
from mixtures.olmix import read_olmix
from mixtures.table_verbs import ConvertSettings, mix_convert
from mixtures.tables import Metrics, Ratios
from pipelines.errors import DataError, LoamError
from pipelines.shards import Blend, Shard, ShardSet

MIXTURE = Mixture(name="m", weights={"web/high": 0.75, "code": 0.25}, tokens=8000, epoch_cap=4)
SHARDS = ShardSet(
    (
        Shard("code", Path("d/code"), documents=10, tokens=1000, size_bytes=2000, sha256="a"),
        Shard("web/high-00000-of-00002", Path("d/web/high-0"), documents=30, tokens=1500, size_bytes=3000, sha256="b"),
        Shard("web/high-00001-of-00002", Path("d/web/high-1"), documents=10, tokens=500, size_bytes=1000, sha256="c"),
    )
)


def convert(file, to, work, shards=None, **settings):
    work.mkdir(exist_ok=True)
    return mix_convert(file, shards, work, ConvertSettings(to=to, **settings))


def written(tmp_path, mixture=MIXTURE):
    mixture.write(tmp_path / "m.yaml")
    return tmp_path / "m.yaml"


def test_packed_samples_have_the_weights_of_tokens():
    assert sequence_weights(Blend.of(MIXTURE.weights, SHARDS)) == pytest.approx([0.5625, 0.1875, 0.25])


def test_documents_are_weighted_against_their_length():
    """Of 400 documents, 300 of 50 tokens and 50 of 100 tokens give 3 tokens of web to 1 of code."""
    weights = sequence_weights(Blend.of(MIXTURE.weights, SHARDS), "documents")
    assert weights == pytest.approx([0.5625 / 50 / 0.0175, 0.1875 / 50 / 0.0175, 0.25 / 100 / 0.0175])
    lengths = [50, 50, 100]
    tokens = [weight * length for weight, length in zip(weights, lengths, strict=True)]
    assert [share / sum(tokens) for share in tokens] == pytest.approx([0.5625, 0.1875, 0.25])


def test_an_empty_shard_is_refused():
    empty = ShardSet((Shard("code", Path("d/code"), documents=0, tokens=0, size_bytes=0, sha256="a"),))
    with pytest.raises(DataError, match="'code' holds 0 documents and 0 tokens"):
        blend_rows(Mixture(name="m", weights={"code": 1.0}), empty, "documents")


def test_oversampling_is_refused_with_domain_and_number():
    with pytest.raises(DataError) as caught:
        check_epochs({"web": 0.75, "code": 0.25}, Domains.of({"web": 9000, "code": 1000}), 20000, {"web": 4, "code": 4})
    assert str(caught.value) == (
        "domain 'code' would be read 5 times in 20K tokens, its cap is 4: give it at most 0.2 of the weight, "
        "or 250 more tokens"
    )
    check_epochs({"web": 0.75, "code": 0.25}, Domains.of({"web": 9000, "code": 1000}), 16000, {"code": 4})


def test_the_verb_refuses_oversampling_before_it_writes(tmp_path):
    with pytest.raises(DataError, match=r"'web/high' would be read 6 times in 16K tokens, its cap is 4"):
        convert(written(tmp_path), "megatron", tmp_path / "out", SHARDS, tokens=16000)
    assert list((tmp_path / "out").iterdir()) == []
    found = convert(written(tmp_path), "megatron", tmp_path / "out", SHARDS).metrics
    assert (found["parts"], found["most_epochs"]) == (3, 3.0)


def test_megatron_there_and_back_through_shards(tmp_path):
    convert(written(tmp_path), "megatron", tmp_path / "out", SHARDS)
    assert (tmp_path / "out" / "data_path.txt").read_text().splitlines()[0] == "0.5625 d/web/high-0"
    rows = list(csv.DictReader((tmp_path / "out" / "blend.csv").open()))
    assert [(row["domain"], row["epochs"]) for row in rows] == [
        ("web/high", "3.0"),
        ("web/high", "3.0"),
        ("code", "2.0"),
    ]
    convert(tmp_path / "out" / "data_path.txt", "loam", tmp_path / "back", SHARDS)
    assert Mixture.read(tmp_path / "back" / "mixture.yaml").weights == MIXTURE.weights


def test_documents_of_any_length_there_and_back_through_shards(tmp_path):
    for to, file in (("energon", "blend.yaml"), ("megatron", "data_path.txt")):
        convert(written(tmp_path), to, tmp_path / to, SHARDS, samples="documents")
        assert max(read_mixture(tmp_path / to / file).weights.values()) != 0.75  # shares of documents
        convert(tmp_path / to / file, "loam", tmp_path / f"{to}-back", SHARDS, samples="documents")
        found = Mixture.read(tmp_path / f"{to}-back" / "mixture.yaml").weights
        assert found == pytest.approx(MIXTURE.weights, rel=1e-12)
    with pytest.raises(DataError, match="energon draws documents"):
        convert(tmp_path / "energon" / "blend.yaml", "loam", tmp_path / "none")


@pytest.mark.parametrize(("to", "file"), [("megatron", "data_path.txt"), ("energon", "blend.yaml"),
                                          ("regmix", "regmix.yaml"), ("loam", "mixture.yaml")])  # fmt: skip
def test_every_format_there_and_back(tmp_path, to, file):
    convert(written(tmp_path), to, tmp_path / "out", samples="packed")
    assert read_mixture(tmp_path / "out" / file).weights == MIXTURE.weights


def test_olmix_table_of_one_mixture_there_and_back(tmp_path):
    convert(written(tmp_path), "olmix", tmp_path / "out")
    assert (tmp_path / "out" / "ratios.csv").read_text().startswith("run,name,index,web/high,code\nm,m,0,0.75,0.25\n")
    convert(tmp_path / "out" / "ratios.csv", "loam", tmp_path / "back", run="m")
    assert Mixture.read(tmp_path / "back" / "mixture.yaml").weights == MIXTURE.weights


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("any")


WEIGHTS = st.dictionaries(NAMES, st.integers(1, 1000), min_size=1, max_size=6)


@settings(max_examples=40)
@given(WEIGHTS)
def test_names_and_weights_of_any_kind_come_back_equal(folder, counts):
    weights = {name: count / sum(counts.values()) for name, count in counts.items()}
    mixture = Mixture(name="m", weights=weights)
    write_regmix_mixture(folder / "r.yaml", mixture)
    mixture.write(folder / "l.yaml")
    table = Ratios.of({"run": mixture.weights})
    assert read_regmix_mixture(folder / "r.yaml", "m") == mixture == Mixture.read(folder / "l.yaml")
    assert from_data_path(to_data_path([(w, n) for n, w in weights.items()])) == weights
    names = [name.strip() for name in weights]
    if not {"run", "name", "index", ""} & set(names):
        for layout in ("loam", "regmix", "olmix"):
            write_ratios_as(folder / "t.csv", table, layout)
            assert np.array_equal(Ratios.read_csv(folder / "t.csv").weights_PD, table.weights_PD)


@pytest.mark.parametrize("layout", ["loam", "regmix", "olmix"])
def test_tables_of_metrics_are_written_in_every_layout(tmp_path, layout):
    metrics = Metrics.of({"r1": {"loss, web": 1 / 3}, "r2": {"loss, web": 2.5}})
    metrics.write_csv(tmp_path / "m.csv")
    convert(tmp_path / "m.csv", layout, tmp_path / "out", table="metrics")
    back = Metrics.read_csv(tmp_path / "out" / "metrics.csv")
    assert (back.ids, back.names) == (metrics.ids, metrics.names)
    assert np.array_equal(back.values_PM, metrics.values_PM)
    write_metrics_as(tmp_path / "again.csv", back, "loam")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "m.csv").read_bytes()


def test_nested_energon_blends_are_multiplied_out():
    inner = {"weight": 1, "blend": [{"weight": 3, "path": "./web"}, {"weight": 1, "path": "code"}]}
    tree = {"splits": {"train": {"blend": [inner, {"weight": 1, "path": "./math"}]}}}
    assert from_energon(tree) == {"web": 0.375, "code": 0.125, "math": 0.5}


def test_megatron_data_path_adds_up_shards_of_a_domain():
    shards = {"d/w0": "web", "d/w1": "web", "d/code": "code"}
    assert from_data_path(["3", "d/w0", "3", "d/w1", "2", "d/code"], shards) == {"web": 0.75, "code": 0.25}
    with pytest.raises(DataError, match="prefix 'd/x' belongs to no domain"):
        from_data_path(["3", "d/x"], shards)


HOSTILE = {
    "odd.txt": "1 web 2",
    "word.txt": "x web",
    "zero.txt": "0 web",
    "negative.txt": "-1 web",
    "infinite.txt": "inf web",
    "nan.txt": "nan web 1 code",
    "huge.txt": "1e308 web 1e308 code",
    "empty.txt": "",
    "latin.txt": b"\xff\xfe",
    "nothing.yaml": "",
    "list.yaml": "- 1\n",
    "broken.yaml": "a: [\n b",
    "deep.yaml": "[" * 5000,
    "other.yaml": "foo: 1\nbar: 2\n",
    "train.yaml": "train: 3\n",
    "train_text.yaml": "train: {web: much}\n",
    "train_negative.yaml": "train: {web: 1.5, code: -0.5}\n",
    "train_nan.yaml": "train: {web: .nan}\n",
    "splits.yaml": "splits: 1\n",
    "splits_none.yaml": "splits: {val: {path: x}}\n",
    "epochized.yaml": "splits: {train: {blend_epochized: [{repetitions: 2, path: x}]}}\n",
    "blend_text.yaml": "splits: {train: {blend: x}}\n",
    "blend_weight.yaml": "splits: {train: {blend: [{weight: [1], path: x}]}}\n",
    "blend_items.yaml": "splits: {train: {blend: [1, 2]}}\n",
    "data_path.yaml": "data_path: 5\n",
    "data_path_odd.yaml": "data: {data_path: [0.5, web, 0.5]}\n",
    "priors.yaml": "priors: {relative_sizes: {a: 1.0}}\n",
    "priors_text.yaml": "priors: {token_counts: {a: many}}\n",
    "priors_zero.yaml": "priors: {token_counts: {a: 0}}\n",
    "priors_names.yaml": "priors: {relative_sizes: {b: 1.0}, token_counts: {a: 5}}\n",
    "priors_sum.yaml": "priors: {relative_sizes: {a: 0.5}, token_counts: {a: 5}}\n",
    "priors_cap.yaml": "priors: {token_counts: {a: 5}}\nconstraints: {enabled: true, target_tokens: 5}\n",
    "topics.yaml": "priors: {token_counts: {a: 5}}\ndata: {sources: [{name: a, topics: [{name: x, weight: 0.5}]}]}\n",
    "topics_some.yaml": "priors: {token_counts: {a: 5}}\n"
    "data: {sources: [{topics: [{name: x, weight: 1}, {name: y}]}]}\n",
    "weights.yaml": "name: m\nweights: {web: 0.5}\n",
    "table.csv": "index,a\nr1,0.5\n",
    "missing.yaml": None,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_end_in_one_line(tmp_path, name):
    if (content := HOSTILE[name]) is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LoamError) as caught:
        convert(tmp_path / name, "loam", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_what_a_blend_cannot_say_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"energon draws documents.*--shards"):
        convert(written(tmp_path), "energon", tmp_path / "out")
    SWARM = Ratios.of({"r1": {"web": 0.1, "code": 0.9}, "r2": {"web": 1.0}})
    SWARM.write_csv(tmp_path / "r.csv")
    with pytest.raises(DataError, match="choose with --set run=ID"):
        convert(tmp_path / "r.csv", "megatron", tmp_path / "out")
    with pytest.raises(DataError, match="no run 'r9'"):
        convert(tmp_path / "r.csv", "megatron", tmp_path / "out", run="r9")
    spaced = written(tmp_path, Mixture(name="m", weights={"my web": 1.0}))
    with pytest.raises(DataError, match="'my web' holds one"):
        convert(spaced, "megatron", tmp_path / "out")


def test_regmix_yaml_there_and_back(tmp_path):
    mixture = Mixture(name="m", weights={"train_web": 0.25, "train_code": 0.75})
    write_regmix_mixture(tmp_path / "m.yaml", mixture, "valid_web", "tinyllama_1_1b")
    assert read_regmix_mixture(tmp_path / "m.yaml") == mixture
    assert "model_name: tinyllama_1_1b" in (tmp_path / "m.yaml").read_text()


def test_published_regmix_mixtures(published):
    regmix = published / "regmix"
    assert read_regmix_mixture(regmix / "pile_cc_only.yaml").weights == {"train_the_pile_pile_cc": 1.0}
    assert sum(read_mixture(regmix / "regmix.yaml").weights.values()) == pytest.approx(1)
    with pytest.raises(DataError, match=r"sum to 0\.7868"):
        read_regmix_mixture(regmix / "human.yaml")
    assert sum(read_regmix_mixture(regmix / "human.yaml", relative=True).weights.values()) == pytest.approx(1)


def test_published_regmix_table_there_and_back(published, tmp_path):
    for name, table in (("train_mixture_1m.csv", "ratios"), ("train_pile_loss_1m.csv", "metrics")):
        convert(published / "regmix" / name, "olmix", tmp_path / table, table=table)
        convert(tmp_path / table / f"{table}.csv", "regmix", tmp_path / f"{table}2", table=table)
    first, second = (Ratios.read_csv(file) for file in (published / "regmix" / "train_mixture_1m.csv",
                                                        tmp_path / "ratios2" / "ratios.csv"))  # fmt: skip
    assert first.ids == second.ids
    assert np.array_equal(first.weights_PD, second.weights_PD)


def test_published_olmix_configurations(published):
    folder = published / "olmix_configs"
    fit = read_olmix(folder / "mixture_reuse_case_study__fit__0_dclm.yaml")
    assert fit.bounds == Bounds(tokens=10**12, epoch_cap=4)
    assert (len(fit.domains), fit.kl, fit.domains.unique_tokens["games"]) == (24, 0.05, 229_992_491_702)
    assert fit.prior.weights["games"] == pytest.approx(0.0510904592313224, rel=1e-6)
    misplaced = read_olmix(folder / "mixture_reuse_case_study__fit__1_add_stackedu.yaml")  # counts outside `priors`
    assert misplaced.domains.unique_tokens["dclm"] == 5_000_000_000_000
    generate = read_olmix(folder / "mixture_reuse_case_study__generate__1_add_stackedu.yaml")
    assert list(generate.fixed) == ["dclm"]
    assert generate.fixed["dclm"]["games"] == pytest.approx(0.02892978, abs=1e-6)
    assert generate.bounds == Bounds()
    for file in sorted(folder.glob("*.yaml")):
        assert sum(read_olmix(file).prior.weights.values()) == pytest.approx(1, abs=1e-9)
