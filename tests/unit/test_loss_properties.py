"""The gradient of an optimiser step belongs to the batch, not to how the batch was cut.

A tiny causal transformer is trained on one global batch, cut into micro-batches of 1, 2 and 8 rows, over 1 and 2
data-parallel ranks, packed end to end or padded. Every way gives the gradient of a reference that knows none of the
code under test: each row alone, in float64, with the loss written out as a plain loop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewards.base import Verdict
from rlplatform.batching import loss_denominator, make_batch, subtract_kl
from rlplatform.losses import LOSSES, kl_estimate, reduce, truncated_importance_weights
from rlplatform.sharding import equalise, shard_rows, split_minibatches, take_train_rows
from rlplatform.types import FINISH_STOP, Prompt, Rollout, RolloutBatch, RolloutGroup, ScoredGroup, TrainBatch, rows

VOCABULARY, WIDTH, MAX_LENGTH, CONSTANT = 11, 16, 32, 12
AGGREGATIONS = ("token_mean", "sequence_mean", "constant_length")
CLIP_LOW, CLIP_HIGH, CAP = 0.2, 0.28, 1.5


@dataclass(frozen=True)
class Recipe:
    """One loss: what is added to what."""

    loss: str = "clipped_policy_gradient"
    dual_clip: float = 0.0
    importance: bool = False
    kl: str = ""  # estimator in the loss
    kl_coef: float = 0.0
    entropy_coef: float = 0.0


RECIPES = {
    "grpo": Recipe(),
    "dapo": Recipe(dual_clip=1.3, importance=True),
    "kl_k2": Recipe(kl="k2", kl_coef=0.3),
    "kl_k3": Recipe(kl="k3", kl_coef=0.3),
    "all": Recipe(dual_clip=1.3, importance=True, kl="k3", kl_coef=0.1, entropy_coef=0.05),
}


def test_every_loss_of_the_table_is_covered() -> None:
    assert {recipe.loss for recipe in RECIPES.values()} == set(LOSSES)


class Model(nn.Module):
    """Embedding, one causal attention head, linear head. Packed rows neither see each other nor share positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(MAX_LENGTH, WIDTH)
        self.qkv, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, token_ids: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Logits [T, V] of packed tokens."""
        lengths = cu_seqlens.diff()
        row = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        position = torch.arange(len(token_ids)) - cu_seqlens[:-1].long()[row]
        x = self.embed(token_ids.long()) + self.place(position)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        visible = (row[:, None] == row[None, :]) & (position[:, None] >= position[None, :])
        scores = (q @ k.T / math.sqrt(WIDTH)).masked_fill(~visible, -torch.inf)
        return self.head(x + scores.softmax(-1) @ v)


@cache
def weights() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return Model().state_dict()


def fresh_model(dtype: torch.dtype = torch.float32) -> Model:
    model = Model().to(dtype)
    model.load_state_dict(weights())
    return model


def token_logprobs(logits: Tensor, token_ids: Tensor, cu_seqlens: Tensor, fill: float) -> tuple[Tensor, Tensor]:
    """(logprobs, entropy) [T] of each token given the earlier ones; ``fill`` on a row's first token."""
    distribution = logits.log_softmax(-1).roll(1, 0)
    logprobs = distribution.gather(1, token_ids.long()[:, None])[:, 0]
    entropy = -(distribution.exp() * distribution).sum(-1)
    first = torch.zeros(len(token_ids), dtype=torch.bool)
    first[cu_seqlens[:-1].long()] = True
    return logprobs.masked_fill(first, fill), entropy.masked_fill(first, fill)


@cache
def train_batch() -> TrainBatch:
    """18 rows of 3 to 19 tokens, holes in the masks; old, reference and sampler logprobs off by up to e^±0.7."""
    rng = np.random.default_rng(5)
    groups = []
    for index in range(6):
        prompt = Prompt(f"p{index}", (), rng.integers(0, VOCABULARY, rng.integers(1, 5)).astype(np.int32), "")
        rollouts = []
        for _ in range(3):
            length = int(rng.integers(2, 15))
            mask = rng.random(length) < 0.8
            mask[0] = True
            rollouts.append(
                Rollout(
                    token_ids=rng.integers(0, VOCABULARY, length).astype(np.int32),
                    loss_mask=mask,
                    rollout_logprobs=np.where(mask, 0.0, np.nan).astype(np.float32),
                    policy_version=np.zeros(length, dtype=np.int32),
                    finish=FINISH_STOP,
                    text="",
                )
            )
        verdicts = tuple(Verdict(float(score)) for score in rng.random(3))
        groups.append(ScoredGroup(RolloutGroup(prompt, tuple(rollouts), step=0, index=index), verdicts))
    batch = make_batch(groups, advantage="group_mean_std")
    cu = torch.from_numpy(batch.cu_seqlens)
    tokens = torch.from_numpy(batch.token_ids)
    with torch.no_grad():
        current, _ = token_logprobs(fresh_model()(tokens, cu), tokens, cu, 0.0)

    def near() -> np.ndarray:
        noise = rng.uniform(-0.7, 0.7, len(tokens)).astype(np.float32)
        return np.where(batch.loss_mask, current.numpy() + noise, np.float32(np.nan)).astype(np.float32)

    batch = RolloutBatch(**{**vars(batch), "rollout_logprobs": near()})
    return TrainBatch(batch, old_logprobs=near(), ref_logprobs=near())


def flat_gradient(model: Model) -> np.ndarray:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).double().numpy()  # type: ignore[union-attr]


# --- the reference: rows alone, float64, plain loops ----------------------------------------------------------------


def reference_token_loss(
    recipe: Recipe, lp: Tensor, entropy: Tensor, old: float, ref: float, roll: float, a: float
) -> Tensor:
    ratio = torch.exp(lp - old)
    kept = min(max(ratio.item(), 1 - CLIP_LOW), 1 + CLIP_HIGH)
    surrogate = ratio * a if (ratio * a).item() <= kept * a else torch.tensor(kept * a)
    loss = -surrogate
    if recipe.dual_clip and a < 0 and loss.item() > recipe.dual_clip * -a:
        loss = torch.tensor(recipe.dual_clip * -a)
    if recipe.importance:
        loss = loss * min(math.exp(old - roll), CAP)
    if recipe.kl == "k2":
        loss = loss + recipe.kl_coef * (lp - ref) ** 2 / 2
    if recipe.kl == "k3":
        loss = loss + recipe.kl_coef * (torch.exp(ref - lp) - (ref - lp) - 1)
    return loss - recipe.entropy_coef * entropy


@cache
def reference_gradient(name: str, aggregation: str) -> tuple[float, np.ndarray]:
    """(loss, gradient) of the whole batch."""
    train, recipe, model = train_batch(), RECIPES[name], fresh_model(torch.float64)
    batch = train.batch
    assert train.old_logprobs is not None
    assert train.ref_logprobs is not None
    row_losses = []
    for span in rows(batch.cu_seqlens):
        tokens = torch.from_numpy(batch.token_ids[span])
        logits = model(tokens, torch.tensor([0, len(tokens)]))
        losses = []
        for t in range(len(tokens)):
            place = span.start + t
            if batch.loss_mask[place]:
                log_p = logits[t - 1].log_softmax(-1)
                values = (train.old_logprobs, train.ref_logprobs, batch.rollout_logprobs, batch.advantages)
                old, ref, roll, advantage = (float(array[place]) for array in values)
                entropy = -(log_p.exp() * log_p).sum()
                losses.append(reference_token_loss(recipe, log_p[int(tokens[t])], entropy, old, ref, roll, advantage))
        row_losses.append(torch.stack(losses))
    if aggregation == "token_mean":
        loss = torch.cat(row_losses).mean()
    elif aggregation == "sequence_mean":
        loss = torch.stack([row.mean() for row in row_losses]).mean()
    else:
        loss = torch.stack([row.sum() / CONSTANT for row in row_losses]).mean()
    loss.backward()
    return loss.item(), flat_gradient(model)


# --- the code under test, as the learner drives it ------------------------------------------------------------------


def micro_batch_loss(
    model: Model, train: TrainBatch, recipe: Recipe, aggregation: str, denominator: float, *, packed: bool
) -> Tensor:
    """This micro-batch's share of the loss. ``packed=False`` pads every row on the right to the longest."""
    batch = train.batch
    arrays = {
        "tokens": batch.token_ids,
        "mask": batch.loss_mask,
        "advantages": batch.advantages,
        "rollout": batch.rollout_logprobs,
        "old": train.old_logprobs,
        "ref": train.ref_logprobs,
    }
    cu = torch.from_numpy(batch.cu_seqlens)
    if packed:
        t = {name: torch.from_numpy(array) for name, array in arrays.items()}  # type: ignore[arg-type]
    else:
        longest = int(np.diff(batch.cu_seqlens).max(initial=0))
        pads = {"tokens": 0, "mask": False, "advantages": np.nan, "rollout": np.nan, "old": np.nan, "ref": np.nan}
        t = {}
        for name, array in arrays.items():
            assert array is not None
            padded = np.full((batch.num_rows, longest), pads[name], dtype=array.dtype)
            for i, span in enumerate(rows(batch.cu_seqlens)):
                padded[i, : span.stop - span.start] = array[span]
            t[name] = torch.from_numpy(padded.reshape(-1))
        cu = torch.arange(batch.num_rows + 1) * longest
    logprobs, entropy = token_logprobs(model(t["tokens"], cu), t["tokens"], cu, math.nan)
    weights = truncated_importance_weights(t["old"], t["rollout"], t["mask"], CAP) if recipe.importance else None
    per_token, _ = LOSSES[recipe.loss](
        logprobs,
        t["old"],
        t["advantages"],
        t["mask"],
        clip_low=CLIP_LOW,
        clip_high=CLIP_HIGH,
        dual_clip=recipe.dual_clip,
        importance_weights=weights,
    )
    if recipe.kl:
        per_token = per_token + recipe.kl_coef * kl_estimate(logprobs, t["ref"], t["mask"], recipe.kl)  # type: ignore[arg-type]
    per_token = per_token - recipe.entropy_coef * entropy
    return reduce(per_token, t["mask"], aggregation=aggregation, cu_seqlens=cu, denominator=denominator)  # type: ignore[arg-type]


def gradient_of_step(
    name: str, aggregation: str, *, micro_rows: int, num_ranks: int, packed: bool, local: bool = False
) -> tuple[float, np.ndarray]:
    """One optimiser step: shards, micro-batches, losses added up, gradients summed over ranks.

    ``local=True`` is the classic bug: each micro-batch has a denominator of its own, micro-batches are averaged.
    """
    train, recipe = train_batch(), RECIPES[name]
    denominator = loss_denominator(train.batch, aggregation=aggregation, constant_length=CONSTANT)
    shards = shard_rows(np.diff(train.batch.cu_seqlens), num_ranks)
    cut = [[shard[i : i + micro_rows].tolist() for i in range(0, len(shard), micro_rows)] for shard in shards]
    total_loss, total = 0.0, np.zeros(0)
    for micro in equalise(cut):
        model = fresh_model()  # each rank has weights and gradients of its own
        for row_ids in micro:
            part, share = take_train_rows(train, row_ids), denominator
            if local:
                own = loss_denominator(part.batch, aggregation=aggregation, constant_length=CONSTANT)
                share = own * len(micro) * num_ranks
            loss = micro_batch_loss(model, part, recipe, aggregation, share, packed=packed)
            loss.backward()
            total_loss += loss.item()
        gradient = flat_gradient(model)
        total = gradient if not len(total) else total + gradient
    return total_loss, total


def assert_same_gradient(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", RECIPES)
def test_gradient_does_not_depend_on_how_the_batch_is_cut(name: str, aggregation: str) -> None:
    expected_loss, expected = reference_gradient(name, aggregation)
    assert np.abs(expected).max() > 1e-3
    for micro_rows in (1, 2, 8):
        for num_ranks in (1, 2):
            for packed in (True, False):
                loss, gradient = gradient_of_step(
                    name, aggregation, micro_rows=micro_rows, num_ranks=num_ranks, packed=packed
                )
                assert_same_gradient(gradient, expected)
                assert loss == pytest.approx(expected_loss, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_the_property_catches_denominators_counted_per_micro_batch(aggregation: str) -> None:
    _, expected = reference_gradient("grpo", aggregation)
    _, gradient = gradient_of_step("grpo", aggregation, micro_rows=8, num_ranks=2, packed=True, local=True)
    with pytest.raises(AssertionError):
        assert_same_gradient(gradient, expected)


@pytest.mark.parametrize("name", RECIPES)
def test_the_batch_reaches_every_branch(name: str) -> None:
    """Both clips, the dual clip and the importance cap are active somewhere, so the property speaks of them too."""
    train, recipe = train_batch(), RECIPES[name]
    batch = train.batch
    cu, tokens, mask = (torch.from_numpy(a) for a in (batch.cu_seqlens, batch.token_ids, batch.loss_mask))
    old, rollout = torch.from_numpy(train.old_logprobs), torch.from_numpy(batch.rollout_logprobs)
    logprobs, _ = token_logprobs(fresh_model()(tokens, cu), tokens, cu, math.nan)
    weights = truncated_importance_weights(old, rollout, mask, CAP)
    _, stats = LOSSES[recipe.loss](
        logprobs,
        old,
        torch.from_numpy(batch.advantages),
        mask,
        clip_low=CLIP_LOW,
        clip_high=CLIP_HIGH,
        dual_clip=recipe.dual_clip,
        importance_weights=weights,
    )
    assert stats["clip_low"] > 3
    assert stats["clip_high"] > 3
    assert bool(stats["dual_clip"] > 3) == bool(recipe.dual_clip)
    assert 3 < (weights == CAP).sum() < mask.sum() / 2


def test_minibatches_add_up_to_the_batch() -> None:
    """Minibatch gradients, each over its own denominator, weighted by their tokens give the gradient of the batch."""
    train, recipe = train_batch(), RECIPES["grpo"]
    parts = split_minibatches(train.batch, 2, seed=0)
    gradients, tokens = [], []
    for part in parts:
        model, sub = fresh_model(), take_train_rows(train, part)
        denominator = loss_denominator(sub.batch, aggregation="token_mean")
        micro_batch_loss(model, sub, recipe, "token_mean", denominator, packed=True).backward()
        gradients.append(flat_gradient(model))
        tokens.append(sub.batch.num_loss_tokens)
    whole = sum(g * n for g, n in zip(gradients, tokens, strict=True)) / sum(tokens)
    assert_same_gradient(np.asarray(whole), reference_gradient("grpo", "token_mean")[1])


def clean_train_batch() -> TrainBatch:
    """On-policy: old logprobs are the model's own."""
    train = train_batch()
    tokens, cu = torch.from_numpy(train.batch.token_ids), torch.from_numpy(train.batch.cu_seqlens)
    with torch.no_grad():
        logprobs, _ = token_logprobs(fresh_model()(tokens, cu), tokens, cu, math.nan)
    return TrainBatch(train.batch, old_logprobs=logprobs.numpy(), ref_logprobs=train.ref_logprobs)


@pytest.mark.parametrize("coef", [0.05, 0.7])
def test_the_weight_of_kl_is_its_coefficient_in_both_modes(coef: float) -> None:
    """On-policy, k1 in the reward and k2 in the loss have one gradient: coef * (logprobs - ref) on each token."""
    train = clean_train_batch()
    assert train.old_logprobs is not None
    assert train.ref_logprobs is not None
    denominator = loss_denominator(train.batch, aggregation="token_mean")

    def gradient(batch: TrainBatch, recipe: Recipe) -> np.ndarray:
        model = fresh_model()
        micro_batch_loss(model, batch, recipe, "token_mean", denominator, packed=True).backward()
        return flat_gradient(model)

    plain = gradient(train, Recipe())
    in_loss = gradient(train, Recipe(kl="k2", kl_coef=coef)) - plain
    shaped = subtract_kl(train.batch, train.old_logprobs, train.ref_logprobs, coef)
    in_reward = gradient(TrainBatch(shaped, train.old_logprobs, train.ref_logprobs), Recipe()) - plain
    unit = gradient(train, Recipe(kl="k2", kl_coef=1.0)) - plain
    scale = np.abs(unit).max()
    np.testing.assert_allclose(in_loss, coef * unit, rtol=1e-3, atol=1e-5 * scale)
    np.testing.assert_allclose(in_reward, coef * unit, rtol=1e-3, atol=1e-5 * scale)
