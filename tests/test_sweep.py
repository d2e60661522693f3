"""The search over learning rate, weight decay and lambda."""

import json

import pytest
import small_run

from bsevox_jax.sweep import sweep
from configs import sweep as configuration


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Four points in two rounds, of the small data set."""
    folder = tmp_path_factory.mktemp("data")
    small_run.write_data(str(folder))
    config = small_run.get_config(folder)
    config.sweep = configuration.get_config("compact").sweep
    config.sweep.update(learning_rates=(1e-2, 1e-5), weight_decays=(1e-3,), lams=(0.5, 0.1))
    config.sweep.update(epochs=(3, 6), kept=0.5, side_by_side=3)
    return config


@pytest.fixture(scope="module")
def searched(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sweep")
    return workdir, sweep(config, str(workdir))


@pytest.mark.slow
def test_the_best_share_of_a_round_enters_the_next(searched):
    _, results = searched
    first, second = results["rounds"]
    assert [len(first["points"]), len(second["points"])] == [4, 2]
    scores = [row["iou_cu_mean"] for row in first["points"]]
    assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]

    def places(rows):
        return {(row["learning_rate"], row["lam"]) for row in rows}

    assert places(second["points"]) == places(first["points"][:2])


@pytest.mark.slow
def test_a_search_goes_on_where_it_stopped_and_ends_equal(config, searched):
    workdir, results = searched
    left = json.loads(json.dumps(results))
    left["rounds"] = [left["rounds"][0] | {"points": left["rounds"][0]["points"][:2]}]
    (workdir / "sweep.json").write_text(json.dumps(left))
    again = sweep(config, str(workdir))
    assert (workdir / "sweep.png").exists()
    for one, other in zip(results["rounds"], again["rounds"], strict=True):
        by_place = {(row["learning_rate"], row["lam"]): row["iou_cu_mean"] for row in other["points"]}
        for row in one["points"]:  # beside other points now, so equal within rounding
            assert by_place[row["learning_rate"], row["lam"]] == pytest.approx(row["iou_cu_mean"], abs=0.02)


@pytest.mark.slow
def test_results_of_another_search_are_refused(config, searched):
    other = config.copy_and_resolve_references()
    other.seed = 5
    with pytest.raises(ValueError, match="another in .*sweep.json. Choose another workdir"):
        sweep(other, str(searched[0]))


def test_the_grid_of_the_paper_has_252_points():
    grid = configuration.get_config().sweep
    assert len(grid.learning_rates) * len(grid.weight_decays) * len(grid.lams) == 252
