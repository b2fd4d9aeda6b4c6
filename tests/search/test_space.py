from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from data.errors import UserError
from search.space import checked_point, grid, make_space, nearest, nearest_known, same_point
from studies.config import Range

SPACE = make_space(
    {
        "learning_rate": Range(low=1e-4, high=0.1, log=True),
        "batch_size": Range(low=16, high=256, log=True),
        "optimizer": ("sgd", "adam"),
        "width": (8,),
    }
)


def test_each_kind_of_parameter_becomes_its_distribution() -> None:
    assert {
        "learning_rate": FloatDistribution(1e-4, 0.1, log=True),
        "batch_size": IntDistribution(16, 256, log=True),
        "optimizer": CategoricalDistribution(("sgd", "adam")),
        "width": CategoricalDistribution((8,)),
    } == SPACE


def test_the_nearest_point_is_clipped_to_the_ranges_and_leaves_fixed_values_alone() -> None:
    configuration = {"learning_rate": 1.0, "batch_size": 8, "optimizer": "adam", "width": 64}
    assert nearest(SPACE, configuration) == {
        "learning_rate": 0.1,
        "batch_size": 16,
        "optimizer": "adam",
    }


def test_a_choice_that_the_space_lacks_is_named() -> None:
    assert nearest(SPACE, {"optimizer": "lion"}) == "optimizer"


def test_what_the_space_lacks_is_left_out_where_that_will_do() -> None:
    known = nearest_known(SPACE, {"optimizer": "lion", "batch_size": 40.4, "momentum": 0.9})
    assert known == {"batch_size": 40}
    assert nearest_known(SPACE, {"learning_rate": True, "batch_size": "big"}) == {}
    assert nearest_known(make_space({"x": (0, 1, 2)}), {"x": True}) == {}


CONFIGURATION = {"learning_rate": 0.01, "batch_size": 64, "optimizer": "adam", "width": 64}


@pytest.mark.parametrize("width", [8, 64])
def test_a_fixed_parameter_that_another_space_fixes_too_sets_no_point_apart(width: int) -> None:
    configuration = {**CONFIGURATION, "width": width}
    same = {**CONFIGURATION, "width": 8}
    assert same_point(SPACE, configuration, constant={"width"}) == same
    assert same_point(SPACE, configuration, constant=set()) == (same if width == 8 else None)


def test_a_fixed_parameter_that_another_space_lacks_sets_no_point_apart() -> None:
    configuration = {name: value for name, value in CONFIGURATION.items() if name != "width"}
    assert same_point(SPACE, configuration, constant=set()) == {**configuration, "width": 8}


@pytest.mark.parametrize(
    "change", [{"learning_rate": 0.2}, {"batch_size": 20.5}, {"optimizer": "lion"}]
)
def test_a_configuration_outside_the_space_is_none_of_its_points(change: dict[str, Any]) -> None:
    assert same_point(SPACE, {**CONFIGURATION, **change}, constant={"width"}) is None


def test_a_configuration_without_a_varied_parameter_is_no_point() -> None:
    assert same_point(SPACE, {"learning_rate": 0.01, "optimizer": "adam"}, constant=set()) is None


def test_a_user_s_own_point_is_taken_as_it_is_and_with_the_space_s_types() -> None:
    point = checked_point(SPACE, {"optimizer": "sgd", "batch_size": 17, "learning_rate": 1e-4})
    assert point == {"optimizer": "sgd", "batch_size": 17, "learning_rate": 1e-4}
    wide = make_space({"rate": Range(low=0.5, high=2.0)})
    assert isinstance(checked_point(wide, {"rate": 1})["rate"], float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": 0.2}, "here.learning_rate=0.2: not from 0.0001 to 0.1"),
        ({"batch_size": 64.0}, "here.batch_size=64.0: not a whole number"),
        ({"optimizer": "lion"}, "here.optimizer=lion: the study offers sgd, adam"),
        ({"rate": 1}, "here.rate: no such parameter; there are learning_rate, batch_size"),
    ],
)
def test_a_user_s_own_point_outside_the_space_is_refused_by_name(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        checked_point(SPACE, values, "here.")
    assert message in str(error.value)


def test_a_grid_holds_every_combination_once_in_an_order_of_its_seed() -> None:
    points = grid(SPACE, points_per_range=3, seed=0)
    assert len(points) == 3 * 3 * 2
    assert len({tuple(point.items()) for point in points}) == len(points)
    rates = sorted({point["learning_rate"] for point in points})
    assert rates == pytest.approx([1e-4, 10**-2.5, 0.1])
    assert sorted({point["batch_size"] for point in points}) == [16, 64, 256]
    assert grid(SPACE, points_per_range=3, seed=0) == points
    assert grid(SPACE, points_per_range=3, seed=1) != points


def test_every_point_of_a_grid_lies_in_the_space() -> None:
    for point in grid(SPACE, points_per_range=5, seed=0):
        for name, value in point.items():
            assert SPACE[name]._contains(SPACE[name].to_internal_repr(value))


def test_a_grid_that_is_too_large_is_refused_with_its_size() -> None:
    space = make_space({name: tuple(range(11)) for name in "abc"})
    with pytest.raises(UserError, match=r"1,331 points \(11 a x 11 b x 11 c\)"):
        grid(space, points_per_range=3, seed=0)
