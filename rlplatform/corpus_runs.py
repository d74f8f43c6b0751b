"""What each kind of stage that makes a corpus does: raw files to documents, labels, mixtures, packed tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlplatform.config import (
    AnnotateConfig,
    CleanConfig,
    DocumentsConfig,
    MixtureConfig,
    MixtureSearchConfig,
    ScalingLawConfig,
    TokensConfig,
    TrainLabellerConfig,
)
from rlplatform.launch import Outcome, ray_session
from rlplatform.runs import RunFolder
from rlplatform.trackers import say


def documents(config: DocumentsConfig) -> Outcome:
    """Raw files of all sources to documents."""
    from pretrain.data.documents import make_documents

    RunFolder(config.run_dir).begin(config)
    with ray_session():
        summary = make_documents(config, progress_of(config.name, "tasks"))
    return Outcome(config.run_dir, summary)


def mixture(config: MixtureConfig) -> Outcome:
    """How often each document is taken."""
    from pretrain.data.mixture_stage import make_mixture

    RunFolder(config.run_dir).begin(config)
    return Outcome(config.run_dir, make_mixture(config))


def mixture_search(config: MixtureSearchConfig) -> Outcome:
    """The weights that train best, by small runs."""
    from pretrain.mixture_search import search_mixture

    RunFolder(config.run_dir).begin(config)
    with ray_session():
        summary = search_mixture(config, progress=lambda what, done, num: say(f"{config.name}: {what} {done} of {num}"))
    return Outcome(config.run_dir, summary)


def scaling_law(config: ScalingLawConfig) -> Outcome:
    """A grid of small runs, and what it predicts."""
    from pretrain.scaling import find_law

    RunFolder(config.run_dir).begin(config)
    with ray_session():
        summary = find_law(config, progress=lambda done, num: say(f"{config.name}: {done} of {num} small runs"))
    return Outcome(config.run_dir, summary)


def tokens(config: TokensConfig) -> Outcome:
    """Documents to packed tokens."""
    from pretrain.data.documents import workers_of
    from pretrain.data.tokens import TokenSettings, write_tokens

    folder = RunFolder(config.run_dir)
    folder.begin(config)
    with ray_session():
        manifest = write_tokens(
            Path(config.documents),
            folder.path,
            config.tokenizer,
            TokenSettings(config.row_tokens, config.packing, config.seed, config.groups),
            copies=Path(config.mixture) if config.mixture else None,
            workers=workers_of(config.workers),
            progress=progress_of(config.name, "shards"),
        )
    summary = {
        "documents": manifest.num_documents,
        "placed": manifest.num_placed,
        "tokens": manifest.num_tokens,
        "rows": manifest.num_rows,
        "cuts": manifest.num_cuts,
        "waste": round(manifest.waste, 6),
    }
    return Outcome(config.run_dir, summary)


def annotate(config: AnnotateConfig) -> Outcome:
    """Labels on every document."""
    from pretrain.data.annotate import annotate as label_documents
    from pretrain.data.annotate import labellers_of, table

    labellers_of(config)  # what is wrong with them is said before Ray starts
    RunFolder(config.run_dir).begin(config)
    with ray_session():
        summary = label_documents(config, progress_of(config.name, "shards"))
    for line in table(summary):
        say(line)
    return Outcome(config.run_dir, {name: summary[name] for name in ("documents", "shards", "label_version")})


def train_labeller(config: TrainLabellerConfig) -> Outcome:
    """A small classifier and its scores."""
    from pretrain.data.ngrams import MODEL_FILE
    from pretrain.data.train_labeller import table
    from pretrain.data.train_labeller import train_labeller as train

    RunFolder(config.run_dir).begin(config)
    summary = train(config)
    for line in table(summary):
        say(line)
    held_out = {name: summary["held_out"][name] for name in ("macro_f1", "accuracy", "texts")}
    return Outcome(str(Path(config.run_dir) / MODEL_FILE), {"label": config.label, **held_out})


def check_settings(config: Any) -> None:
    """Raises ConfigError for settings that only the functions behind them can judge; before anything starts."""
    if isinstance(config, CleanConfig):
        from pretrain.data.clean_steps import steps_of

        steps_of(config.steps)


def clean(config: CleanConfig) -> Outcome:
    """Documents through the steps of the config; what was kept, dropped and changed, and the flow."""
    from pretrain.data.cleaning import clean_documents
    from rlplatform.evaluation.contents import items_of

    check_settings(config)
    RunFolder(config.run_dir).begin(config)
    with ray_session():
        cleaned = clean_documents(
            config,
            items=lambda step: items_of(step.settings),
            progress=lambda name: progress_of(f"{config.name}: {name}", "tasks"),
        )
    say(cleaned.table)
    return Outcome(config.run_dir, cleaned.summary)


def progress_of(name: str, what: str) -> Callable[[int, int], None]:
    """About twenty lines of progress for a stage that works on ``what``: (finished, in all)."""

    def show(finished: int, num: int) -> None:
        if finished and (finished % max(num // 20, 1) == 0 or finished == num):
            say(f"{name}: {finished} of {num} {what}")

    return show


CORPUS_STAGES: dict[str, Callable[[Any], Outcome]] = {
    "documents": documents,
    "annotate": annotate,
    "train_labeller": train_labeller,
    "clean": clean,
    "mixture": mixture,
    "mixture_search": mixture_search,
    "scaling_law": scaling_law,
    "tokens": tokens,
}
