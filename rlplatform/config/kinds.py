"""``kind: recipe``, and which dataclass reads which kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from rlplatform.config.base import require
from rlplatform.config.corpus_annotate import AnnotateConfig, TrainLabellerConfig
from rlplatform.config.corpus_clean import CleanConfig
from rlplatform.config.corpus_documents import DocumentsConfig
from rlplatform.config.data_stages import DatasetConfig, FilterConfig, FusionConfig, InitModelConfig, SampleConfig
from rlplatform.config.evaluation import BenchmarksConfig, EvalConfig
from rlplatform.config.pretraining import (
    MixtureConfig,
    MixtureSearchConfig,
    PretrainConfig,
    ScalingLawConfig,
    TokensConfig,
)
from rlplatform.config.rl import RLConfig
from rlplatform.config.supervised import DPOConfig, PreferenceConfig, SFTConfig
from rlplatform.reads import TrackedReads


@dataclass(frozen=True)
class RecipeConfig(TrackedReads):
    """Named stages, run in order on one Ray cluster, each skipped when it is already finished."""

    kind: Literal["recipe"] = "recipe"  # which kind of run this file is
    name: str = "recipe"  # shown in progress and reports
    seed: int = 0  # every random draw of the run derives from it
    run_dir: str = "runs/${name}"  # where everything the run leaves behind lies
    stages: dict[str, Any] = field(default_factory=dict)  # name -> a config of any other kind

    def __post_init__(self) -> None:
        require(bool(self.stages), "stages: expected at least one")


RunConfig = (
    RLConfig
    | SFTConfig
    | PreferenceConfig
    | DPOConfig
    | EvalConfig
    | BenchmarksConfig
    | DatasetConfig
    | InitModelConfig
    | SampleConfig
    | FilterConfig
    | FusionConfig
    | DocumentsConfig
    | MixtureConfig
    | MixtureSearchConfig
    | ScalingLawConfig
    | TokensConfig
    | PretrainConfig
    | AnnotateConfig
    | TrainLabellerConfig
    | CleanConfig
    | RecipeConfig
)
KINDS: dict[str, type] = {
    "rl": RLConfig,
    "sft": SFTConfig,
    "preference": PreferenceConfig,
    "dpo": DPOConfig,
    "eval": EvalConfig,
    "benchmarks": BenchmarksConfig,
    "dataset": DatasetConfig,
    "init_model": InitModelConfig,
    "sample": SampleConfig,
    "filter": FilterConfig,
    "fusion": FusionConfig,
    "documents": DocumentsConfig,
    "mixture": MixtureConfig,
    "mixture_search": MixtureSearchConfig,
    "scaling_law": ScalingLawConfig,
    "tokens": TokensConfig,
    "pretrain": PretrainConfig,
    "annotate": AnnotateConfig,
    "train_labeller": TrainLabellerConfig,
    "clean": CleanConfig,
    "recipe": RecipeConfig,
}
