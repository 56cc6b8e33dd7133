"""Recipes: what is shipped loads, what is wrong is named, what is written reads back."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agelens.errors import ArgumentError
from agelens.training.recipe import Recipe, shipped_recipes, toml_text

Tiny = Callable[..., dict[str, Any]]


GOES_ON = ("finetune", "agelens-s-research")
"""Recipes that need a network to start from."""


def test_seven_recipes_are_shipped() -> None:
    assert shipped_recipes() == (
        "agelens-s",
        "agelens-s-research",
        "efficientnet_b2",
        "finetune",
        "mobilenetv3_large",
        "small",
        "vit_base_16",
    )


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipe_reads_back_as_written(name: str) -> None:
    recipe = Recipe.load(name, ["init=run"] if name in GOES_ON else [])

    again = Recipe.from_table(tomllib.loads(recipe.to_toml()))

    assert again == recipe


def test_finetune_asks_what_to_start_from() -> None:
    with pytest.raises(ArgumentError, match="a trained network to start from is needed: init ="):
        Recipe.load("finetune")


def test_override_changes_one_value(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(toml_text(tiny()))

    recipe = Recipe.load(
        path,
        ["loop.epochs=7", "name=other", "heads.ordinal.loss=coral", "heads.gender=none"],
    )

    assert (recipe.loop.epochs, recipe.name) == (7, "other")
    assert recipe.heads is not None
    assert recipe.heads.ages == ("distribution", "ordinal")
    assert recipe.heads.gender is None
    assert Recipe.from_table(tomllib.loads(recipe.to_toml())) == recipe


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loop__epohcs": 3}, "loop.epohcs: unknown key; did you mean loop.epochs?"),
        ({"lop": {}}, "lop: unknown key; did you mean loop?"),
        ({"loop__epochs": "3"}, "loop.epochs: expected a whole number, found '3' (str)"),
        ({"loop__epochs": 2.5}, "loop.epochs: expected a whole number, found 2.5 (float)"),
        ({"loop__epochs": 0}, "loop.epochs: input should be greater than or equal to 1, found 0"),
        ({"loop__channels_last": 1}, "loop.channels_last: expected true or false, found 1 (int)"),
        ({"loop": 3}, "loop: expected a table, found 3 (int)"),
        ({"network__backbone": 5}, "network.backbone: expected text, found 5 (int)"),
        ({"optimizer__betas": [0.9]}, "optimizer.betas.1: missing"),
        ({"heads": {}}, "heads: one or two age heads"),
        ({"heads__ranges": {"starts": [3, 10]}}, "heads.ranges: starts must rise from 0"),
        ({"heads__exported": "ordinal"}, "exported = 'ordinal' is none of the heads: distribution"),
        ({"heads__distribution": {"loss": "dld"}}, "expected one of 'dldl', 'dldl_v2'"),
        (
            {"augmentation__flp": 1.0},
            "augmentation.flp: unknown key; did you mean augmentation.flip",
        ),
        (
            {"augmentation__jpeg_quality": [90, 20]},
            "jpeg_quality: expected two rising numbers within 1..100, found [90, 20]",
        ),
        ({"schema": "agelens.recipe/9"}, "schema: expected one of 'agelens.recipe/1'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_mistake_is_named_with_what_was_expected(
    tiny: Tiny, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ArgumentError) as caught:
        Recipe.from_table(tiny(**change), where="mine.toml")

    assert str(caught.value).startswith("mine.toml: ")
    assert said in str(caught.value)


def test_every_mistake_is_named_at_once(tiny: Tiny) -> None:
    with pytest.raises(ArgumentError) as caught:
        Recipe.from_table(tiny(loop__epochs="x", data__workres=2))

    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("override", ["loop.epochs", "=3", "loop..epochs=3", "name.first=x"])
def test_override_of_another_form_is_refused(override: str) -> None:
    with pytest.raises(ArgumentError, match="--set"):
        Recipe.load("small", [override])


def test_recipe_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(ArgumentError, match=r"no such recipe.*efficientnet_b2, finetune"):
        Recipe.load("smal")


def test_text_that_is_no_toml_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("loop = [")

    with pytest.raises(ArgumentError, match=r"broken\.toml: not valid TOML"):
        Recipe.load(path)


def test_preset_gives_what_is_not_set_beside_it(tiny: Tiny) -> None:
    recipe = Recipe.from_table(tiny(augmentation={"preset": "strong", "jpeg": 0.0}))

    assert (recipe.augmentation.jpeg, recipe.augmentation.rotation) == (0.0, 15.0)


values = st.recursive(
    st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
tables = st.recursive(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), values, max_size=4),
    lambda inner: (
        st.dictionaries(st.text('ab." -é', max_size=4), inner | values, max_size=3)
        | st.dictionaries(
            st.text("xy", min_size=1, max_size=2), st.lists(inner, min_size=1, max_size=2)
        )
    ),
    max_leaves=6,
)


@given(tables)
def test_written_toml_reads_back_as_the_same_values(table: dict[str, Any]) -> None:
    assert tomllib.loads(toml_text(table)) == table


@pytest.mark.parametrize(
    ("distillation", "said"),
    [
        ({}, "teachers or a describer are needed"),
        ({"teachers": ["cc0"], "describer_judges": True}, "describer_judges needs a describer"),
        ({"teachers": ["cc0"], "describer_mirrors": True}, "describer_mirrors needs a describer"),
        ({"describer": "sface", "judges": 3}, "judges = 3 needs describer_judges = true"),
        ({"describer": "sface", "describer_judges": True, "judges": 0}, "judges"),
        ({"teachers": ["cc0"], "subjects": []}, "subjects"),
    ],
)
def test_distillation_without_anybody_to_learn_from_is_refused(
    tiny: Tiny, distillation: dict[str, Any], said: str
) -> None:
    with pytest.raises(ArgumentError, match=said):
        Recipe.from_table(tiny(distillation=distillation))


def test_groups_can_be_balanced_and_losses_weighed(tiny: Tiny) -> None:
    table = tiny(
        data__sampling="group_balanced",
        data__group_column=["race", "skin_tone"],
        data__reweight={"by": ["group", "decade"], "power": 0.5, "limit": 4.0},
    )

    part = Recipe.from_table(table).data

    assert part.group_column == ("race", "skin_tone")
    assert part.reweight is not None
    assert (part.reweight.by, part.reweight.limit) == (("group", "decade"), 4.0)
    assert Recipe.from_table(tomllib.loads(Recipe.from_table(table).to_toml())).data == part


@pytest.mark.parametrize(
    ("reweight", "said"),
    [
        ({"by": ["race"]}, "data.reweight.by.0: expected one of"),
        ({"power": 2.0}, "data.reweight.power: "),
        ({"limit": 0.5}, "data.reweight.limit: "),
        ({"powre": 1.0}, "data.reweight.powre: unknown key; did you mean data.reweight.power"),
    ],
)
def test_impossible_weights_are_refused(tiny: Tiny, reweight: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        Recipe.from_table(tiny(data__reweight=reweight))
