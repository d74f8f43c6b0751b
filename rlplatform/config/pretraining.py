"""``kind: tokens`` and ``kind: pretrain``: documents to packed tokens, packed tokens to a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from rlplatform.config.base import require
from rlplatform.config.corpus_documents import WorkersConfig
from rlplatform.config.generation import ModelConfig
from rlplatform.config.learner import CheckpointConfig, LearnerConfig, OptimizerConfig
from rlplatform.reads import TrackedReads


@dataclass(frozen=True)
class PartConfig(TrackedReads):
    """A part of a mixture: its share of the tokens, and which documents it is taken from."""

    share: float = 1.0  # of all tokens; the shares of a mixture sum to 1
    labels: dict[str, Any] = field(default_factory=dict)  # label or source -> value or list of values; all must hold
    min_size: int = 0  # tokens of a document
    max_size: int = 0  # 0 = no bound

    def __post_init__(self) -> None:
        require(0 <= self.share <= 1, f"share: expected in [0, 1], got {self.share:g}")
        require(
            self.min_size >= 0 and (self.max_size == 0 or self.max_size >= self.min_size),
            f"min_size={self.min_size}, max_size={self.max_size}: expected 0 <= min_size <= max_size (0 = no bound)",
        )
        for label, value in self.labels.items():
            bools = any(isinstance(one, bool) for one in (value if isinstance(value, list | tuple) else [value]))
            require(
                not bools, f"labels.{label}: expected a value or a list of them, got {value!r}; quote words such as yes"
            )


@dataclass(frozen=True)
class MixtureConfig(TrackedReads):
    """How often each document is taken: copies-*.npy beside the documents' shards (docs/pretraining.md)."""

    kind: Literal["mixture"] = "mixture"  # which kind of run this file is
    name: str = "mixture"  # shown in progress and reports
    seed: int = 0  # every random draw of the run derives from it
    run_dir: str = "runs/${name}"  # where everything the run leaves behind lies
    documents: str = ""  # folder of labelled document shards, e.g. stage:clean
    num_tokens: int = 0  # of the mixture; 0 = as many as the documents hold
    max_copies: float = 4.0  # of any document (arXiv 2305.16264: four are worth almost as much as new text)
    size: str = "length.tokens"  # label with a document's tokens: labeller `length` with a tokenizer
    weights: str = ""  # weights.json of a mixture_search stage: an own weight for every document; "" = all alike
    parts: dict[str, PartConfig] = field(default_factory=dict)  # name -> part, the first that fits; {} = one of all

    def __post_init__(self) -> None:
        require(bool(self.documents), "documents: expected a folder of documents, e.g. stage:clean, got nothing")
        require(self.num_tokens >= 0, f"num_tokens: expected >= 0, got {self.num_tokens}")
        require(self.max_copies > 0, f"max_copies: expected > 0, got {self.max_copies:g}")
        total = sum(part.share for part in self.parts.values())
        require(not self.parts or abs(total - 1.0) < 1e-6, f"parts: expected shares that sum to 1, got {total:g}")

    @property
    def folders(self) -> list[str]:
        """Of shards that are read."""
        return [self.documents]

    @property
    def files(self) -> list[str]:
        """What is read beside them."""
        return [self.weights]


@dataclass(frozen=True)
class MixtureSearchConfig(TrackedReads):
    """Small runs on many mixtures, and the weights that train best (docs/pretraining.md).

    Leaves ``weights.json`` for a mixture stage, and ``search.json``: every proxy, and the arms beside each other.
    """

    kind: Literal["mixture_search"] = "mixture_search"  # which kind of run this file is
    name: str = "mixture_search"  # shown in progress and reports
    seed: int = 0  # every random draw of the run derives from it
    run_dir: str = "runs/${name}"  # where everything the run leaves behind lies
    documents: str = ""  # folder of labelled document shards, e.g. stage:clean
    tokens: str = ""  # the same documents packed without a mixture: stage:NAME
    heldout: dict[str, str] = field(default_factory=dict)  # name -> packed tokens; their mean loss is what is lowered
    test: dict[str, str] = field(default_factory=dict)  # sets the arms are compared on; {} = those of heldout
    domain: str = "source"  # class label (or source) of the domain arm; the instance arm has it as well
    classes: tuple[str, ...] = ()  # other class labels of the instance arm
    numbers: tuple[str, ...] = ()  # number labels of the instance arm, e.g. perplexity
    num_proxies: int = 16  # small runs of each searched arm
    num_seeds: int = 3  # runs of each arm's best, for the table
    radius: float = 1.0  # length of theta: how far from equal weights
    max_copies: float = 4.0  # of any document in a proxy's mixture
    proxy_tokens: int = 200_000  # of a proxy
    rows_per_step: int = 8
    lr: float = 3.0e-3  # peak
    architecture: dict[str, Any] = field(default_factory=dict)  # of the proxies: preset (default tiny) and fields
    num_parallel: int = 0  # small runs at a time; 0 = as many as the cluster has CPUs

    def __post_init__(self) -> None:
        require(bool(self.documents and self.tokens), "documents, tokens: expected the folders of two stages")
        require(bool(self.heldout), "heldout: expected at least one set of packed tokens to lower the loss of")
        require(self.num_proxies >= 4, f"num_proxies: expected >= 4, got {self.num_proxies}")
        require(self.num_seeds >= 1, f"num_seeds: expected >= 1, got {self.num_seeds}")
        require(self.radius > 0 and self.lr > 0, "radius, lr: expected > 0")
        require(self.proxy_tokens > 0 and self.rows_per_step > 0, "proxy_tokens, rows_per_step: expected > 0")

    @property
    def folders(self) -> list[str]:
        """Of shards that are read."""
        return [self.documents]

    @property
    def files(self) -> list[str]:
        """What is read beside them: of packed tokens the manifest, which holds their hashes."""
        return [f"{path}/manifest.json" for path in (self.tokens, *self.heldout.values(), *self.test.values())]


@dataclass(frozen=True)
class ScalingLawConfig(TrackedReads):
    """A grid of small runs, and the learning rate and batch size it predicts for a larger one (docs/pretraining.md)."""

    kind: Literal["scaling_law"] = "scaling_law"  # which kind of run this file is
    name: str = "scaling_law"  # shown in progress and reports
    seed: int = 0  # every random draw of the run derives from it
    run_dir: str = "runs/${name}"  # where everything the run leaves behind lies
    tokens: str = ""  # packed tokens to train on: a folder, or stage:NAME
    heldout: str = ""  # packed tokens whose loss decides
    sizes: dict[str, Any] = field(default_factory=dict)  # name -> architecture of the kind init_model
    num_tokens: tuple[int, ...] = (200_000,)  # data budgets; every size runs with every one
    rows_per_step: tuple[int, ...] = (8,)  # batch sizes
    lrs: tuple[float, ...] = ()  # peak learning rates, increasing
    num_seeds: int = 1  # runs of every point, whose mean loss counts: start and order of the rows differ
    check: dict[str, Any] = field(default_factory=dict)  # more sizes: run as well, not fitted, the law is held to them
    target: dict[str, Any] = field(default_factory=dict)  # architecture to predict for
    target_tokens: int = 0  # its data budget; 0 = the largest of num_tokens
    num_parallel: int = 0  # small runs at a time; 0 = as many as the cluster has CPUs

    def __post_init__(self) -> None:
        require(bool(self.tokens and self.heldout), "tokens, heldout: expected the folders of two tokens stages")
        require(len(self.sizes) >= 2, f"sizes: expected at least two, got {len(self.sizes)}")
        require(self.num_seeds >= 1, f"num_seeds: expected >= 1, got {self.num_seeds}")
        both = sorted(set(self.sizes) & set(self.check))
        require(not both, f"check: expected sizes that are not fitted, got {', '.join(both)} in both")
        increasing = list(self.lrs) == sorted(set(self.lrs)) and len(self.lrs) >= 3 and self.lrs[0] > 0
        require(increasing, f"lrs: expected at least three increasing rates > 0, got {list(self.lrs)}")
        require(min(self.num_tokens, default=0) > 0, f"num_tokens: expected numbers > 0, got {list(self.num_tokens)}")
        require(min(self.rows_per_step, default=0) > 0, f"rows_per_step: expected >= 1, got {list(self.rows_per_step)}")

    @property
    def files(self) -> list[str]:
        """The manifests of the packed tokens, which hold their hashes."""
        return [f"{path}/manifest.json" for path in (self.tokens, self.heldout)]


@dataclass(frozen=True)
class TokensConfig(TrackedReads):
    """Documents tokenised, joined by ``<|endoftext|>`` and laid into rows (docs/pretraining.md)."""

    kind: Literal["tokens"] = "tokens"  # which kind of run this file is
    name: str = "tokens"  # shown in progress and reports
    seed: int = 0  # every random draw of the run derives from it
    run_dir: str = "runs/${name}"  # where everything the run leaves behind lies
    documents: str = ""  # folder of document shards, e.g. stage:clean
    mixture: str = ""  # folder that says how often each document is taken, stage:NAME; "" = each once
    tokenizer: str = ""  # folder or hub id of a model or tokenizer, e.g. stage:init
    row_tokens: int = 4096  # tokens of a full row: the training length
    packing: Literal["concatenate", "best_fit"] = (
        "concatenate"  # end to end, cut at row_tokens; or documents whole wherever they fit (arXiv 2404.10830)
    )
    groups: tuple[str, ...] = ("source",)  # losses are told apart by these: source, or names of labels
    workers: WorkersConfig = field(default_factory=WorkersConfig)

    def __post_init__(self) -> None:
        require(bool(self.documents), "documents: expected a folder of documents, e.g. stage:clean, got nothing")
        require(bool(self.tokenizer), "tokenizer: expected a folder or hub id, e.g. stage:init, got nothing")
        require(self.row_tokens >= 2, f"row_tokens: expected >= 2, got {self.row_tokens}")

    @property
    def folders(self) -> list[str]:
        """Of shards that are read."""
        return [self.documents]

    @property
    def files(self) -> list[str]:
        """What is read beside them: the mixture, and the tokenizer."""
        return [self.mixture, f"{self.tokenizer}/tokenizer.json"]


@dataclass(frozen=True)
class PackedDataConfig(TrackedReads):
    """Packed tokens to train on."""

    tokens: str = ""  # what a `tokens` stage left: a folder, or stage:NAME
    heldout: str = ""  # packed tokens that are measured, never trained on; "" = none
    shuffle: bool = True  # a new order of rows every epoch, from (seed, epoch)
    cross_document_attention: bool = False  # let a token see the documents before its own in the row


@dataclass(frozen=True)
class CompletionsConfig(TrackedReads):
    """Samples of what the model writes while it trains: completions.jsonl."""

    prompts: tuple[str, ...] = ()  # text to go on with
    every: int = 0  # optimiser steps; 0 = after the last only
    max_new_tokens: int = 64
    temperature: float = 0.0  # 0 = greedy

    def __post_init__(self) -> None:
        require(self.max_new_tokens > 0, f"completions.max_new_tokens: expected > 0, got {self.max_new_tokens}")


@dataclass(frozen=True)
class PretrainConfig(TrackedReads):
    """Next-token training on packed tokens, on Ray Train (docs/pretraining.md)."""

    kind: Literal["pretrain"] = "pretrain"  # which kind of run this file is
    name: str = "pretrain"  # shown in progress and reports
    seed: int = 0  # every random draw of the run derives from it
    run_dir: str = "runs/${name}"  # where everything the run leaves behind lies
    num_tokens: int = 1_000_000  # of this stage; rounded up to whole optimiser steps
    tokens_per_step: int = 8192  # tokens of one optimiser step, all ranks together
    warmup_tokens: int = 0  # linear rise, in tokens; in place of optimizer.warmup_steps
    decay_tokens: int = 0  # the decay takes this many tokens at the end; in place of optimizer.decay_steps
    model: ModelConfig = field(default_factory=ModelConfig)
    data: PackedDataConfig = field(default_factory=PackedDataConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3, weight_decay=0.1))
    optimizer_state: str = ""  # stage:NAME of a pretrain stage whose Adam moments go on; "" = new ones
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(portable=True))
    evaluate_every: int = 0  # optimiser steps between measures of data.heldout; 0 = after the last only
    completions: CompletionsConfig = field(default_factory=CompletionsConfig)
    peak_tflops: float = 0.0  # of one rank's device, for MFU, e.g. 989 (H100, bfloat16, dense); 0 = not reported
    max_failures: int = 2  # Ray Train restarts from the last checkpoint this many times

    def __post_init__(self) -> None:
        require(self.num_tokens >= 1, f"num_tokens: expected >= 1, got {self.num_tokens}")
        require(self.tokens_per_step >= 1, f"tokens_per_step: expected >= 1, got {self.tokens_per_step}")
        require(
            not (self.completions.prompts and self.learner.zero_stage == 3),
            "completions.prompts: expected learner.zero_stage 0, 1 or 2, got 3, where no rank has the whole model",
        )
        for name in ("warmup", "decay"):
            tokens, steps = getattr(self, f"{name}_tokens"), getattr(self.optimizer, f"{name}_steps")
            require(tokens >= 0, f"{name}_tokens: expected >= 0, got {tokens}")
            require(
                not (tokens and steps),
                f"{name}_tokens={tokens} and optimizer.{name}_steps={steps}: expected one of them, they say the same",
            )
        require(
            not (self.decay_tokens and self.optimizer.decay == "constant"),
            f"decay_tokens={self.decay_tokens}: expected optimizer.decay linear or cosine with it, got constant, which "
            "never falls",
        )

    @property
    def files(self) -> list[str]:
        """The manifests of the packed tokens, which hold their hashes."""
        return [f"{path}/manifest.json" for path in (self.data.tokens, self.data.heldout) if path]

    @property
    def num_steps(self) -> int:
        """Optimiser steps."""
        return self.steps_of(self.num_tokens)

    def steps_of(self, tokens: int) -> int:
        return -(-tokens // self.tokens_per_step)
