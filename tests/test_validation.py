"""The physics beside published values: `make validate` asserts them and writes docs/physics.md's tables.

A topic is published before it is asserted, so that the page shows also what does not fit.
"""

import functools
import math
import statistics

import pytest

from benchmarks.validation import (
    bulk,
    conservation,
    elastic,
    films,
    losses,
    others,
    report,
    spectra,
    tilt,
    variants,
    yields,
)

pytestmark = pytest.mark.slow


@functools.cache
def published(topic):
    """Results of a topic, computed and published once."""
    results = topic.compute()
    name = topic.__name__.split(".")[-1]
    picture = topic.figure(results) if hasattr(topic, "figure") else None
    report.publish(topic.tables(results), name, picture)
    return results


def chosen(rows, **wanted):
    """The rows that have all these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


@pytest.mark.parametrize("element", ["Si", "Cu"])
def test_elastic_cross_sections_are_those_of_elsepa(element):
    total, first, second = elastic.relative_deviations(published(elastic), element)
    assert max(map(abs, total)) < 0.02
    assert max(map(abs, first + second)) < 0.01


@pytest.mark.parametrize("element", ["N", "O", "Al", "Ti", "Ge", "Ta", "W", "Au"])
def test_elastic_cross_sections_of_other_elements_are_those_of_elsepa(element):
    for deviations in elastic.relative_deviations(published(elastic), element):
        assert len(deviations) >= 5 and max(map(abs, deviations)) < 0.03


def test_optical_data_obey_both_sum_rules():
    for row in published(losses)["sums"]:
        # k of TiN is short of 1.3 electrons, and no other source of it reaches beyond 6 eV.
        tolerance = 0.045 if row["material"] == "TiN" else 0.02
        assert row["f_sum"] == pytest.approx(row["f_expected"], rel=tolerance), row["material"]
        assert row["ps_sum"] == pytest.approx(row["ps_expected"], rel=0.01), row["material"]


def test_mean_free_paths_are_those_of_the_full_penn_algorithm():
    rows = chosen(published(losses)["paths"], source="Shinotsuka2015")
    assert {row["material"] for row in rows} >= {"Si", "Cu"}
    for row in rows:
        assert row["full_nm"] == pytest.approx(row["imfp_nm"], rel=0.07), row


def test_stopping_power_is_near_joy_and_luo_where_their_formula_is_meant_to_hold():
    for row in published(losses)["stopping"]:
        assert row["half"] < row["full"]
        if row["material"] in losses.WRITTEN_OUT and row["energy_kev"] >= 1:
            assert 0.9 < row["half"] / row["joy_luo"] < 1.07, row


@pytest.mark.parametrize("energy_kev", [1.0, 2.0, 3.5, 5.0, 10.0])
def test_bulk_yield_of_silicon_is_that_of_jmonsel(energy_kev):
    (row,) = chosen(published(bulk), material="Si", energy_kev=energy_kev)
    theirs = yields.published("Si", program="JMONSEL")[energy_kev]
    assert row["all"].deviates_at_most(0.05, theirs), (row["all"], theirs)


@pytest.mark.parametrize("material, kind", [("Si", "all"), ("Cu", "primary")])
def test_bulk_yields_are_near_the_median_of_the_measured(material, kind):
    compared = 0
    for row in chosen(published(bulk), material=material):
        etas = yields.measured_at(material, row["energy_kev"])
        if len(etas) >= 3:
            compared += 1
            assert row[kind].deviates_at_most(0.12, statistics.median(etas)), (row, etas)
    assert compared >= 4


def test_copper_with_its_freed_electrons_lies_above_the_measured_by_a_known_excess():
    """Nobody has explained it; neither may it grow nor vanish unnoticed."""
    for row in chosen(published(bulk), material="Cu"):
        etas = yields.measured_at("Cu", row["energy_kev"])
        if len(etas) >= 3:
            assert 1.05 < row["all"].eta / statistics.median(etas) < 1.28, row


@pytest.mark.parametrize("energy_kev", [1.0, 2.0, 5.0, 10.0])
def test_bulk_yield_of_copper_is_that_of_nebula(energy_kev):
    (row,) = chosen(published(bulk), material="Cu", energy_kev=energy_kev)
    theirs = yields.published("Cu", program="Nebula")[energy_kev]
    assert row["all"].deviates_at_most(0.06, theirs), (row["all"], theirs)


def test_errors_of_bulk_yields_are_small_and_every_electron_ends():
    for row in published(bulk):
        assert row["all"].standard_error < 0.005 * row["all"].eta
        assert row["transmitted"] == row["unfinished"] == 0


def test_yields_under_tilt_are_those_of_jmonsel():
    compared = 0
    for row in published(tilt):
        theirs = tilt.reference(row)
        if theirs and row["energy_kev"] >= 1:
            compared += 1
            assert row["all"].deviates_at_most(0.05, theirs), (row, theirs)
    assert compared == 12


@pytest.mark.parametrize("tilt_deg", tilt.ANGLES_DEG)
def test_yields_under_tilt_at_half_a_kev_are_those_of_jmonsel_within_its_own_error(tilt_deg):
    (row,) = chosen(published(tilt), material="Si", energy_kev=0.5, tilt_deg=tilt_deg)
    theirs, their_error = tilt.reference(row), 0.0035  # two runs of 10 000 trajectories
    error = math.hypot(row["all"].standard_error, their_error)
    assert abs(row["all"].eta - theirs) < 0.05 * theirs + 2 * error


def test_yield_grows_with_tilt():
    for material, energies_kev in tilt.ENERGIES_KEV.items():
        for energy_kev in energies_kev:
            rows = chosen(published(tilt), material=material, energy_kev=energy_kev)
            etas = [row["all"].eta for row in rows]
            assert etas == sorted(etas) and len(etas) == 3


def test_yields_of_films_are_near_nebula_whose_own_uncertainty_grows_above_2_kev():
    for row in chosen(published(films), film_nm=20.0):
        tolerance = 0.13 if row["energy_kev"] < 3 else 0.18
        assert row["all"].deviates_at_most(tolerance, films.reference(row, "all")), row


def test_thicker_films_return_more():
    for row in chosen(published(films), film_nm=10.0):
        same = {"material": row["material"], "energy_kev": row["energy_kev"]}
        (thicker,) = chosen(published(films), film_nm=20.0, **same)
        assert row["all"].eta < thicker["all"].eta + 4 * thicker["all"].standard_error


def test_yields_of_other_materials_order_by_atomic_number_at_10_kev():
    etas = {row["material"]: row["all"].eta for row in chosen(published(others), energy_kev=10.0)}
    copper = chosen(published(bulk), material="Cu", energy_kev=10.0)[0]["all"].eta
    assert etas["Al"] < etas["Ti"] < copper < etas["Ge"] < etas["W"]
    assert max(etas["SiO2"], etas["TiN"]) < copper and etas["Au"] > etas["Ge"]


def changes(variant, case, kind="all"):
    """By energy: what a variant changes, as a share, and the standard error of that."""
    pairs = zip(
        chosen(published(variants), variant=variant, case=case),
        chosen(published(variants), variant=variants.AS_IT_IS, case=case),
        strict=True,
    )
    found = [(row[kind], ours[kind]) for row, ours in pairs]
    return [(a.eta / b.eta - 1, math.hypot(a.standard_error, b.standard_error) / b.eta) for a, b in found]


def test_excess_of_copper_at_1_and_2_kev_lies_in_electrons_below_200_ev():
    for (change, error), energy_kev in zip(
        changes("threshold 200 eV", "bulk Cu")[1:3], (1.0, 2.0), strict=True
    ):
        (row,) = chosen(published(bulk), material="Cu", energy_kev=energy_kev)
        median = statistics.median(yields.measured_at("Cu", energy_kev))
        assert change < median / row["all"].eta - 1 + 2 * error


def test_shell_of_the_struck_electron_matters_most_and_only_to_the_struck_electrons():
    for variant in ("no inner shells", "shells by photoabsorption"):
        assert changes(variant, "bulk Cu")[1][0] > 0.05
        assert all(abs(change) < 4 * error for change, error in changes(variant, "bulk Cu", "primary"))


@pytest.mark.parametrize(
    "variant, limit",
    [("joint density of states", 0.005), ("bands of Nebula", 0.01), ("surface losses", 0.045)],
)
def test_start_energies_bands_and_surface_losses_do_not_explain_the_excess_of_copper(variant, limit):
    for case in ("bulk Si", "bulk Cu"):
        assert all(abs(change) < limit + 2 * error for change, error in changes(variant, case))


def test_electrons_leave_a_bulk_specimen_nearly_by_the_cosine_law():
    for row in published(spectra):
        assert row["mean_cosine"] == pytest.approx(2 / 3, rel=0.05), row


def test_share_near_the_beam_energy_falls_with_it_and_rises_with_the_atomic_number():
    near = {(row["material"], row["energy_kev"]): row["near"] for row in published(spectra)}
    assert near["Si", 1.0] > near["Si", 5.0] and near["Cu", 1.0] > near["Cu", 5.0]
    assert near["Cu", 1.0] > near["Si", 1.0] and near["Cu", 5.0] > near["Si", 5.0]


def test_every_collision_conserves_energy_and_momentum():
    for row in published(conservation)["collisions"]:
        assert row["energy_residual"] < 1e-6, row
        assert row["momentum_residual"] < 2e-5, row


def test_collisions_lose_the_stopping_power_and_turn_by_the_transport_cross_section():
    for row in published(conservation)["collisions"]:
        for kind in ("loss", "turn"):
            assert abs(row[kind].eta - 1) < 0.003 + 3 * row[kind].standard_error, row


def test_every_electron_is_accounted_for():
    for row in published(conservation)["accounts"]:
        followed = sum(row["fates"].values())
        assert row["fates"]["unfinished"] == row["fates"]["missed"] == 0
        assert followed > 1 if row["secondaries"] else followed == pytest.approx(1, abs=1e-12)


def test_spectra_hold_the_electrons_of_the_images_and_less_energy_than_the_beam():
    for row in published(spectra):
        (same,) = chosen(published(bulk), material=row["material"], energy_kev=row["energy_kev"])
        assert row["eta"] == pytest.approx(same["all"].eta, rel=1e-12)
        assert 0 < row["energy_share"] < row["eta"]


def test_yields_do_not_depend_on_voxels_depth_azimuth_or_electrons_given_up():
    for group in published(conservation)["alike"]:
        assert max(map(abs, conservation.deviations(group))) < 4, group


def test_turned_specimens_give_turned_images():
    for row in published(conservation)["images"]:
        assert 0.7 < row["chi2"] < 1.3 and row["chi2_not_turned_back"] > 5, row


def test_block_of_the_page_is_replaced_and_nothing_else():
    page = "a\n<!-- table: x -->\nold\n<!-- end -->\nb\n<!-- table: y -->\nkept\n<!-- end -->\n"
    expected = "a\n<!-- table: x -->\nnew\n<!-- end -->\nb\n<!-- table: y -->\nkept\n<!-- end -->\n"
    assert report.with_block(page, "x", "new") == expected
    assert report.with_block(expected, "x", "new") == expected
    with pytest.raises(ValueError, match="must hold <!-- table: z -->"):
        report.with_block(page, "z", "new")


def test_interrupted_publication_leaves_the_page_whole(tmp_path, monkeypatch, smallest_files):
    page = tmp_path / "physics.md"
    text = "<!-- table: x -->\nold\n<!-- end -->\n" + "prose\n" * 100
    page.write_text(text)
    monkeypatch.setattr(report, "PAGE", page)
    with smallest_files(64), pytest.raises(OSError):
        report.publish({"x": "new"})
    assert page.read_text() == text
