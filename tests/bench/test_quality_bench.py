"""The quality classifier on pages that people judged, and its speed against datatrove's block with the same model."""

import gzip
import json
import time

import numpy as np
import pyarrow as pa
import pytest

from filters.calibration import auc_interval
from filters.quality import POSITIVE, QualitySettings, ScoreQuality, train_quality
from pipelines.document import STREAM, conform

pytestmark = pytest.mark.bench
HALVES = 3


def documents(texts: list[str]) -> pa.Table:
    return conform(pa.table({"id": [str(n) for n in range(len(texts))], "text": texts}), STREAM)


def judged(shared, name: str) -> list[dict]:
    return [json.loads(line) for line in (shared / f"quality/dclm_{name}_data.jsonl").read_text().splitlines()]


def test_human_labels(shared, tmp_path):
    """Halves of the pages that most judges agreed on (and of those that all did): train on one, judge the other."""
    for name in ("majority", "agreement"):
        rows, areas = judged(shared, name), []
        for number in range(HALVES):
            order = np.random.default_rng(number).permutation(len(rows))
            half, other = np.array_split(order, 2)
            path = tmp_path / f"{name}-{number}.jsonl"
            path.write_text("".join(json.dumps(rows[n]) + "\n" for n in half))
            train_quality([path], tmp_path / f"{name}-{number}", QualitySettings())
            block = ScoreQuality(QualitySettings(), tmp_path / f"{name}-{number}")
            scores = block.apply(documents([rows[n]["text"] for n in other]))["quality.score"].to_numpy()
            areas.append(auc_interval(np.array([int(rows[n]["label"]) == 1 for n in other]), scores))
        middle = np.array(areas).mean(axis=0)
        print(f"\n{name}: area under the curve {middle[0]:.3f} [{middle[1]:.3f}, {middle[2]:.3f}], "
              f"single halves {min(a[0] for a in areas):.3f} to {max(a[0] for a in areas):.3f}")  # fmt: skip
        assert middle[0] > 0.75


def test_speed_against_datatrove(shared, tmp_path):
    from datatrove.data import Document
    from datatrove.pipeline.filters import FastTextClassifierFilter

    train_quality([shared / "quality/dclm_majority_data.jsonl"], tmp_path, QualitySettings())
    texts = [entry["text"] for entry in json.loads((shared / "web/c4_demo.json").read_text())]
    with gzip.open(shared / "dedup/extractor_variants.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts += [json.loads(line)["text"] for line in lines]
    size = sum(len(text.encode()) for text in texts) / 1e6
    ours = ScoreQuality(QualitySettings(positive_label=POSITIVE), tmp_path / "model.bin")
    whole = ScoreQuality(QualitySettings(), tmp_path)
    pytest.importorskip("fasteners")
    theirs = FastTextClassifierFilter(
        str(tmp_path / "model.bin"), keep_labels=(POSITIVE.removeprefix("__label__"), 0.5)
    )
    table = documents(texts)
    _ = ours.apply(table.slice(0, 1)), whole.apply(table.slice(0, 1)), theirs.filter(Document("a b", "0"))
    seconds = []
    for block in (ours, whole):
        begin = time.process_time()
        block.apply(table)
        seconds.append(time.process_time() - begin)
    begin = time.process_time()
    for text in texts:
        theirs.filter(Document(text=text, id="0"))
    anchor = time.process_time() - begin
    print(f"\nquality: {size / seconds[0]:.1f} MB/s on raw lines, {size / seconds[1]:.1f} MB/s with normalisation, "
          f"datatrove {size / anchor:.1f} MB/s on raw lines with the same model")  # fmt: skip
    assert seconds[0] < 1.5 * anchor  # both are fastText's own speed; what is compared is what lies around it
