"""Configuration: frozen dataclasses, YAML + OmegaConf, strict. A key nobody knows is an error with the nearest name.

One file is one run. Its ``kind`` says which dataclass reads it (``KINDS``); ``recipe`` is a list of named stages, each
of a kind of its own. Values are checked in the dataclass that owns them; what can be derived is a property. The modules
here hold the sections that kinds share (``generation``, ``grading``, ``learner``, ``algorithm``) and the kinds
themselves; take the names from this package. ``rlplatform/configfile.py`` reads, prints and saves them.
"""

from __future__ import annotations

from rlplatform.config.algorithm import AlgorithmConfig, TeacherConfig
from rlplatform.config.base import ConfigError
from rlplatform.config.corpus_annotate import AnnotateConfig, FeaturesConfig, GoldConfig, TrainLabellerConfig
from rlplatform.config.corpus_clean import CleanConfig
from rlplatform.config.corpus_documents import (
    DocumentsConfig,
    EndpointConfig,
    PdfConfig,
    ResponsesConfig,
    SourceConfig,
    WorkersConfig,
)
from rlplatform.config.data_stages import DatasetConfig, FilterConfig, FusionConfig, InitModelConfig, SampleConfig
from rlplatform.config.evaluation import BenchmarksConfig, EvalConfig
from rlplatform.config.generation import DataConfig, ModelConfig, RolloutConfig, SamplingConfig
from rlplatform.config.grading import EnvironmentConfig, RewardConfig
from rlplatform.config.kinds import KINDS, RecipeConfig, RunConfig
from rlplatform.config.learner import CheckpointConfig, LearnerConfig, LoraConfig, OptimizerConfig
from rlplatform.config.pretraining import (
    CompletionsConfig,
    MixtureConfig,
    MixtureSearchConfig,
    PackedDataConfig,
    PartConfig,
    PretrainConfig,
    ScalingLawConfig,
    TokensConfig,
)
from rlplatform.config.rl import EvaluationConfig, PublishConfig, RLConfig, TrackerConfig
from rlplatform.config.supervised import DPOConfig, PreferenceConfig, SFTConfig

__all__ = [
    "KINDS",
    "AlgorithmConfig",
    "AnnotateConfig",
    "BenchmarksConfig",
    "CheckpointConfig",
    "CleanConfig",
    "CompletionsConfig",
    "ConfigError",
    "DPOConfig",
    "DataConfig",
    "DatasetConfig",
    "DocumentsConfig",
    "EndpointConfig",
    "EnvironmentConfig",
    "EvalConfig",
    "EvaluationConfig",
    "FeaturesConfig",
    "FilterConfig",
    "FusionConfig",
    "GoldConfig",
    "InitModelConfig",
    "LearnerConfig",
    "LoraConfig",
    "MixtureConfig",
    "MixtureSearchConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PackedDataConfig",
    "PartConfig",
    "PdfConfig",
    "PreferenceConfig",
    "PretrainConfig",
    "PublishConfig",
    "RLConfig",
    "RecipeConfig",
    "ResponsesConfig",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "SFTConfig",
    "SampleConfig",
    "SamplingConfig",
    "ScalingLawConfig",
    "SourceConfig",
    "TeacherConfig",
    "TokensConfig",
    "TrackerConfig",
    "TrainLabellerConfig",
    "WorkersConfig",
]
