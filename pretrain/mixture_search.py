"""Which mixture trains best: small runs on many mixtures, a fit of their losses, the best ones compared. On Ray Tune.

    labels ─► features ─► thetas (pairs of opposite directions) ─► a small run each ─► fit ─► the best theta
    arms: uniform (no search), domain (one label's classes), instance (all features); then each arm's best, over seeds

The report optimises its mixture for every instance, with the labels of its annotation system, through ablations on
small proxy models (arXiv 2505.09388, section 3.1); how is not said, this is the project's own way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from pretrain.data.document import shards_of
from pretrain.data.mixture import Part, expected_copies, whole_copies
from pretrain.data.mixture_fit import Fit, draw_thetas, fit_losses
from pretrain.data.mixture_stage import read_columns
from pretrain.data.packing import concatenate
from pretrain.data.token_store import TokenStore
from pretrain.data.tokens import document_order, gather
from pretrain.data.weighting import Feature, Weighting, features_of
from pretrain.proxies import SmallRun, TextRows, run_points, train_small
from rlplatform.config import ConfigError, MixtureSearchConfig
from rlplatform.datafiles import DataError
from rlplatform.runs import RunFolder

UNIFORM, DOMAIN, INSTANCE = "uniform", "domain", "instance"
ALL = {"all": Part(1.0, {})}
Progress = Callable[[str, int, int], None]  # what runs, how many are finished, of how many


def search_mixture(config: MixtureSearchConfig, *, progress: Progress = lambda what, done, num: None) -> dict[str, Any]:
    """Leaves ``weights.json`` (the instance arm's best), ``weights_domain.json`` and ``search.json``; the summary.

    Raises:
        DataError: tokens of other documents, or a label that is not there.
        ConfigError: the documents hold fewer tokens than a proxy trains on.
        ProxyError: a small run failed.
    """
    folder = RunFolder(config.run_dir)
    corpus = Corpus.read(config)
    search = Search(config, corpus, config.heldout, folder, progress)
    domain = features_of(corpus.columns, corpus.sizes, [config.domain], [])
    instance = features_of(corpus.columns, corpus.sizes, [config.domain, *config.classes], config.numbers)
    fits = {arm: search.fit(arm, features) for arm, features in ((DOMAIN, domain), (INSTANCE, instance))}
    arms = {
        UNIFORM: Weighting((), ()),
        DOMAIN: Weighting(domain, tuple(fits[DOMAIN][0].best(config.radius).tolist())),
        INSTANCE: Weighting(instance, tuple(fits[INSTANCE][0].best(config.radius).tolist())),
    }
    seeds = [config.seed + 1 + k for k in range(config.num_seeds)]
    compared = replace(search, heldout=config.test or config.heldout)
    table = {arm: compared.losses(f"{arm}, again", weighting, seeds) for arm, weighting in arms.items()}
    arms[INSTANCE].save(folder.path / "weights.json")
    arms[DOMAIN].save(folder.path / "weights_domain.json")
    folder.save_json(
        "search.json",
        {
            "proxies": {arm: points for arm, (_, points) in fits.items()},
            "heldout_loss": table,
            "measured_on": "test" if config.test else "heldout",
            "seeds": seeds,
        },
    )
    return {
        "documents": len(corpus.ids),
        "features": {arm: len(weighting.features) for arm, weighting in arms.items()},
        "rank_correlation": {arm: round(fit.rank_correlation, 4) for arm, (fit, _) in fits.items()},
        "heldout_loss": {arm: round(_mean(losses), 5) for arm, losses in table.items()},
    }


def _mean(losses: Sequence[Mapping[str, float]]) -> float:
    """Over runs and held-out sets."""
    return float(np.mean([list(one.values()) for one in losses]))


@dataclass(frozen=True)
class Corpus:
    """The documents in memory."""

    texts: list[np.ndarray]  # int32 of each, its separator at its end
    ids: list[str]
    columns: dict[str, np.ndarray]  # of every label that a feature needs
    fingerprint: str

    @property
    def sizes(self) -> np.ndarray:
        """int64 [N], tokens."""
        return np.array([len(text) for text in self.texts])

    @staticmethod
    def read(config: MixtureSearchConfig) -> Corpus:
        store = TokenStore(config.tokens)
        columns = read_columns(shards_of(config.documents), [config.domain, *config.classes], config.numbers)
        ids = columns.pop("id").tolist()
        if len(ids) != store.manifest.num_documents:
            raise DataError(
                f"tokens={config.tokens}: expected the {len(ids)} documents of {config.documents}, packed without a "
                f"mixture; got {store.manifest.num_documents}"
            )
        corpus = Corpus(store.texts(), ids, columns, "".join(shard.blake2b for shard in store.manifest.shards))
        holds = config.max_copies * corpus.sizes.sum()
        if config.proxy_tokens > holds:
            raise ConfigError(
                f"proxy_tokens={config.proxy_tokens:,}: expected at most {holds:,.0f}, which the documents hold at "
                f"max_copies={config.max_copies:g}"
            )
        return corpus


def rows_of(path: str) -> TextRows:
    """Packed tokens in memory."""
    store = TokenStore(path)
    batch = store.read(range(len(store)))
    return TextRows(batch.token_ids, batch.cu_pieces, batch.cu_rows)


@dataclass(frozen=True)
class Search:
    """Small runs of one search."""

    config: MixtureSearchConfig
    corpus: Corpus
    heldout: Mapping[str, str]  # name -> packed tokens whose loss is measured
    folder: RunFolder
    progress: Progress

    def fit(self, arm: str, features: tuple[Feature, ...]) -> tuple[Fit, list[dict[str, Any]]]:
        """The fit of an arm's proxies, and every proxy's theta and losses."""
        config = self.config
        if not features:
            raise DataError(f"{config.documents}: the labels of the {arm} arm do not vary; nothing can be searched")
        thetas = draw_thetas(config.num_proxies, len(features), radius=config.radius, seed=config.seed)
        losses = self._run(arm, features, thetas.tolist(), [config.seed] * len(thetas))
        fit = fit_losses(thetas, np.array([np.mean(list(one.values())) for one in losses]))
        return fit, [{"theta": theta, "loss": one} for theta, one in zip(thetas.tolist(), losses, strict=True)]

    def losses(self, what: str, weighting: Weighting, seeds: Sequence[int]) -> list[dict[str, float]]:
        """Nats per target of every held-out set, of one run a seed."""
        return self._run(what, weighting.features, [list(weighting.theta)] * len(seeds), seeds)

    def _run(
        self, what: str, features: Sequence[Feature], thetas: Sequence[Sequence[float]], seeds: Sequence[int]
    ) -> list[dict[str, float]]:
        config = self.config
        points = [{"theta": list(theta), "seed": seed} for theta, seed in zip(thetas, seeds, strict=True)]
        run = SmallRun(config.architecture, self._vocab_size, config.rows_per_step, config.lr)
        measured = {name: asdict(TokenStore(path).manifest) for name, path in sorted(self.heldout.items())}
        settings = [asdict(run), config.proxy_tokens, config.max_copies, self._row_tokens, measured]
        return run_points(
            proxy,
            points,
            self.folder.path,
            shared={
                "corpus": self.corpus,
                "features": tuple(features),
                "heldout": {name: rows_of(path) for name, path in self.heldout.items()},
                "run": run,
                "num_tokens": config.proxy_tokens,
                "max_copies": config.max_copies,
                "row_tokens": self._row_tokens,
            },
            key=json.dumps([self.corpus.fingerprint, [asdict(feature) for feature in features], settings]),
            num_parallel=config.num_parallel,
            progress=partial(self.progress, what),
        )

    @cached_property
    def _row_tokens(self) -> int:
        return TokenStore(self.config.tokens).manifest.row_tokens

    @cached_property
    def _vocab_size(self) -> int:
        """Of the corpus and of all that is measured: equal for every run of a search, as its model has to be."""
        paths = {*self.config.heldout.values(), *self.config.test.values()}
        highest = [int(rows_of(path).token_ids.max()) for path in paths]
        return 1 + max(*highest, *(int(text.max()) for text in self.corpus.texts))


def proxy(
    corpus: Corpus,
    features: tuple[Feature, ...],
    heldout: Mapping[str, TextRows],
    run: SmallRun,
    num_tokens: int,
    max_copies: float,
    row_tokens: int,
    theta: Sequence[float],
    seed: int,
) -> dict[str, float]:
    """One small run on the mixture of ``theta``: nats per target of every held-out set."""
    num = len(corpus.ids)
    weights = Weighting(features, tuple(theta)).weights(corpus.columns, num)
    everywhere = np.zeros(num, dtype=np.int64)
    expected = expected_copies(corpus.sizes, weights, everywhere, ALL, num_tokens=num_tokens, max_copies=max_copies)
    order = document_order(num, whole_copies(expected, corpus.ids, seed=seed), seed=seed, shard=0)
    order, lengths = just(num_tokens, order, corpus.sizes)
    texts = [corpus.texts[k] for k in order]
    rows = concatenate(lengths, row_tokens)
    cu_texts = np.concatenate(([0], np.cumsum(rows.length)))
    trained = train_small(
        replace(run, seed=seed), TextRows(gather(texts, rows), cu_texts, cu_texts[rows.cu_pieces]), heldout
    )
    return trained.heldout


def just(num_tokens: int, order: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``order`` cut to, or begun again up to, exactly ``num_tokens``: documents, and int64 tokens of each.

    Whole copies are drawn, so a mixture has some percent more or less; runs that are compared must not.

    Raises:
        ValueError: no document was drawn.
    """
    if not len(order):
        raise ValueError(f"proxy_tokens={num_tokens}: expected enough for a document, not one was drawn")
    while sizes[order].sum() < num_tokens:
        order = np.tile(order, 2)
    ends = np.cumsum(sizes[order])
    last = int(np.searchsorted(ends, num_tokens))
    lengths = sizes[order[: last + 1]]
    lengths[-1] -= ends[last] - num_tokens
    return order[: last + 1], lengths
