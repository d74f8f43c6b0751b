from __future__ import annotations

from pathlib import Path

import pytest

from rlplatform.config import ConfigError, PretrainConfig, RecipeConfig, RLConfig, RolloutConfig, SFTConfig
from rlplatform.configfile import derived, difference_to_defaults, flat, load, load_values, placement, stages, to_dict
from rlplatform.paths import configs_dir

MINIMAL = {"kind": "rl", "name": "x", "reward": {"functions": {"math": 1.0}}}


def rl(**changes: object) -> RLConfig:
    config = load_values({**MINIMAL, **changes})
    assert isinstance(config, RLConfig)
    return config


@pytest.mark.parametrize("path", sorted(configs_dir().rglob("*.yaml")), ids=lambda p: p.name)
def test_every_config_of_the_project_loads(path: Path) -> None:
    config = load(path)
    if isinstance(config, RecipeConfig):
        assert stages(config)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizr.lr=1", "Did you mean: 'optimizer'"),
        ("optimizer.lrr=1", "optimizer.lrr: Key 'lrr'"),
        ("optimizer.lr=abc", "optimizer.lr: Value 'abc'"),
        ("learner.zero_stage=5", "expected one of [0, 1, 2, 3]"),
        ("kind=recpe", "did you mean 'recipe'"),
        ("optimizer.lr", "expected key=value"),
        ("updates_per_step=7", "16 prompts x 8 samples = 128 rows do not divide into 7"),
        ("group_size=300", "rollout.max_num_seqs=256"),
        ("algorithm.dual_clip=0.5", "expected 0 (off) or > 1"),
        ("data.max_prompt_tokens=0", "data.max_prompt_tokens"),
    ],
)
def test_a_wrong_override_says_what_was_expected(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r".*") as error:
        load_values(MINIMAL, [override])
    assert said in str(error.value)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text("kind: rl")
    with pytest.raises(ConfigError, match="did you mean"):
        load(tmp_path / "dem.yaml")


def test_the_three_knobs_and_what_follows_from_them() -> None:
    config = rl(prompts_per_step=6, group_size=4, updates_per_step=3, num_steps=5)
    assert config.rows_per_step == 24
    assert config.num_optimizer_steps == 15
    assert config.max_model_len == 512 + 256
    assert dict(derived(config))["rows an optimiser step"] == "24 / 3 updates = 8"
    assert ("rollout worker", 1, 1.0, 0.0) in placement(config)


def test_configs_are_frozen_and_checked_where_they_are_owned() -> None:
    with pytest.raises(AttributeError):
        rl().seed = 3  # type: ignore[misc]
    with pytest.raises(ConfigError, match=r"rollout\.num_workers"):
        RolloutConfig(num_workers=0)
    with pytest.raises(ConfigError, match="tokens_per_step=100"):
        SFTConfig(tokens_per_step=100, max_tokens=101)
    with pytest.raises(ConfigError, match=r"decay_tokens=5: expected optimizer\.decay linear or cosine"):
        PretrainConfig(decay_tokens=5)


def test_difference_to_defaults_holds_what_was_set_and_nothing_else() -> None:
    changed = difference_to_defaults(rl(optimizer={"lr": 1e-4}))
    assert changed["optimizer.lr"] == 1e-4
    assert "optimizer.eps" not in changed
    assert set(changed) == {"name", "run_dir", "reward.functions.math", "optimizer.lr"}


def test_resolved_config_reads_back_equal(tmp_path: Path) -> None:
    config = rl(seed=7, evaluation={"every": 3})
    assert load_values(to_dict(config)) == config
    assert flat(to_dict(config))["evaluation.every"] == 3


def test_stages_inherit_seed_and_folder_and_know_their_order() -> None:
    recipe = load_values(
        {
            "kind": "recipe",
            "name": "r",
            "seed": 5,
            "stages": {
                "data": {"kind": "dataset", "function": "a:b"},
                "rl": {**MINIMAL, "name": "rl", "model": {"path": "stage:sft"}},
            },
        }
        | {"stages": {"data": {"kind": "dataset", "function": "a:b"}}}
    )
    assert isinstance(recipe, RecipeConfig)
    built = stages(recipe)
    assert built["data"].seed == 5
    assert built["data"].run_dir == "runs/r/data"
    with pytest.raises(ConfigError, match="needs stage:sft"):
        load_values(
            {"kind": "recipe", "stages": {"rl": {**MINIMAL, "model": {"path": "stage:sft"}}}},
        )
    with pytest.raises(ConfigError, match=r"stages\.rl: optimizer\.lrr"):
        load_values({"kind": "recipe", "stages": {"rl": {**MINIMAL, "optimizer": {"lrr": 1}}}})


def test_the_configuration_page_is_up_to_date() -> None:
    from rlplatform.configdocs import markdown

    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text() == markdown(), "run: python -m rlplatform.configdocs > docs/configuration.md"
