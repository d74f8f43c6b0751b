"""The pretraining recipe, short: raw documents to a model of the third stage, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pretrain.data.document import read_documents
from pretrain.data.token_store import TokenStore
from rlplatform.config import KINDS
from rlplatform.reads import reads
from rlplatform.runs import RunFolder

from .conftest import Finished, rlplatform
from .test_demo import leaves

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # sixteen stages

SMALL = "{num_sums: 300, num_stories: 300, num_facts: 1, num_recalls: 400, num_long: 150, num_heldout: 10}"
FEWER = [f"stages.mix_s{stage}.num_tokens=20000" for stage in (1, 2, 3)]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    base = tmp_path_factory.mktemp("pretrain")
    tracked = base / "reads"
    tracked.mkdir()
    arguments = ("run", "configs/recipe/pretrain_mini.yaml", "--smoke", f"run_dir={base}/run")
    small = (f"stages.raw.args={SMALL}", *FEWER)
    done = rlplatform(*arguments, *small, env={"RLPLATFORM_TRACK_READS": str(tracked)}, timeout=1100)
    assert done.returncode == 0, done.stderr[-4000:]
    return Finished(base / "run-smoke", tracked, done.stdout + done.stderr)


def summary(folder: Path, stage: str) -> dict:
    return json.loads((folder / stage / "done.json").read_text())["summary"]


def test_every_stage_ends_with_what_the_next_one_takes(smoke: Finished) -> None:
    labelled = next(iter(read_documents(smoke.folder / "labelled")))
    names = {entry["name"] for entry in labelled["labels"]}
    assert {"length.tokens", "domain"} <= names
    assert (smoke.folder / "clean" / "flow.png").stat().st_size > 5_000
    for stage, row_tokens in (("tokens_s1", 128), ("tokens_s2", 128), ("tokens_s3", 512)):
        store = TokenStore(smoke.folder / stage, verify=True)
        assert store.manifest.row_tokens == row_tokens
        # concatenated documents leave room in the last row alone, whole ones in each of the few of so small a corpus
        assert store.manifest.waste <= (0.1 if stage == "tokens_s3" else 1 / store.manifest.num_rows)
    for stage in ("s1", "s2", "s3"):
        rows = RunFolder(smoke.folder / stage).read_metrics()
        assert [row["step"] for row in rows] == [1, 2]
        assert {"loss", "heldout/loss", "heldout/loss/source=sums", "tokens_seen", "tflops"} <= rows[-1].keys()
    config = json.loads((smoke.folder / "s3" / "model" / "config.json").read_text())
    assert (config.get("rope_theta") or config["rope_parameters"]["rope_theta"]) == 1_000_000.0


def test_long_documents_have_their_share_of_the_third_stage(smoke: Finished) -> None:
    parts = summary(smoke.folder, "mix_s3")["parts"]
    long, short = parts["long"]["tokens"], parts["short"]["tokens"]
    assert long / (long + short) == pytest.approx(0.75, abs=0.04)


def test_every_key_of_the_pretraining_kinds_is_read(smoke: Finished) -> None:
    seen = reads(smoke.reads)
    for kind in ("mixture", "tokens", "pretrain"):
        unread = leaves(KINDS[kind]) - seen
        assert not unread - {"PretrainConfig.decay_tokens", "MixtureConfig.seed"}, kind
