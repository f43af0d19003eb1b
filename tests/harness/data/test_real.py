"""Real logs against the counts that were taken from them by other means, where the logs are at hand.

REAL_DATA_DIR names the folder that holds deskdrop/ and ml100k_posters/; neither may be passed on.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from harness.config import ProtocolConfig, SameItemHistory
from harness.data.dataset import Dataset, verify
from harness.prepare import main

FOLDER = Path(os.environ.get("REAL_DATA_DIR", Path(__file__).parents[4] / "shared" / "data"))
DROP = ProtocolConfig()
KEEP = ProtocolConfig(same_item_history=SameItemHistory.keep)


def needs(name: str) -> Path:
    if not (FOLDER / name / "interactions.parquet").is_file():
        pytest.skip(
            f"{name} is not at hand and may not be passed on (REAL_DATA_DIR names its folder)"
        )
    return FOLDER / name


def test_deskdrop_has_the_known_counts(tmp_path: Path) -> None:
    folder = needs("deskdrop")
    assert main(["deskdrop", "--raw", str(folder), "--data-dir", str(tmp_path)]) == 0
    data = Dataset.open(tmp_path, "deskdrop")
    counts = data.manifest["counts"]
    assert counts["rows_ignored"] == {"comment": 1_611, "follow": 1_407}
    assert counts["raw_events"] == 61_086 + 8_208
    assert counts["raw_users"] == 1_895
    assert (counts["users"], counts["users_with_two_favors"]) == (818, 604)
    split = data.split(DROP)
    events = split.events
    lengths, favor = np.diff(events.offsets), events.behaviour.numpy() == 2
    favors = np.bincount(events.user, weights=favor)
    two = favors >= 2
    assert lengths[two].sum() == 56_119
    assert favors[two].mean() == pytest.approx(13.1, abs=0.05)
    assert (lengths - favors)[two].mean() == pytest.approx(79.8, abs=0.05)
    assert np.median(lengths[two]) == 43.5
    assert (lengths[two] > 50).mean() == pytest.approx(0.45, abs=0.005)
    assert (lengths[two] <= 10).sum() == 50
    assert len(np.unique(events.item.numpy()[two[events.user]])) == 2_951

    kept = data.split(KEEP)
    seen = []
    for user, place, item in zip(
        kept.test.user.tolist(), kept.test.position.tolist(), kept.test.item.tolist(), strict=True
    ):
        start = max(int(events.offsets[user]), place - 50)
        seen.append(item in events.item[start:place].tolist())
    assert np.array(seen)[two].mean() == pytest.approx(0.96, abs=0.005)
    verify(data)


def test_posters_have_the_known_counts(tmp_path: Path) -> None:
    folder = needs("ml100k_posters")
    arguments = [
        "table", "--interactions", str(folder / "interactions.parquet"),
        "--items", str(folder / "items.parquet"),
        "--image", str(folder / "image_effnetlite0_1280.npy"),
        "--text", str(folder / "text_minilm_384.npy"),
        "--name", "posters", "--data-dir", str(tmp_path),
    ]  # fmt: skip
    assert main(arguments) == 0
    data = Dataset.open(tmp_path, "posters")
    counts, table1 = data.manifest["counts"], data.manifest["table1"]
    assert (counts["users"], counts["items"], counts["interactions"]) == (942, 1_682, 155_355)
    assert counts["raw_events"] == 155_375
    assert table1["clicks_per_user"] == pytest.approx(106.1, abs=0.05)
    assert table1["favors_per_user"] == pytest.approx(58.8, abs=0.05)
    assert data.manifest["vectors"] == {
        "image": {"width": 1_280, "present": 1_422},
        "text": {"width": 384, "present": 1_682},
    }
    split = data.split(KEEP)
    before = split.events.item[split.test.position - 1]
    assert before.equal(split.test.item)  # the leak that the threshold builds in
    verify(data)
