"""Which energies and how many electrons: the arithmetic with made-up information, and the command."""

import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest

import launch
from bsevox_jax import forward, likelihood, plan


def random_information(energies, seed=0):
    """[e, 6, 6], full rank."""
    slopes = np.random.default_rng(seed).normal(size=(energies, 6, 40))
    return slopes @ slopes.transpose(0, 2, 1)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """The folder of the plan of a cube, and what was printed."""
    folder = tmp_path_factory.mktemp("plan") / "new"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = launch.main(["--mode=plan", "--input=box:6:4", "--precision_nm=1", f"--output={folder}"])
    assert code == 0
    return folder, printed.getvalue()


@pytest.mark.slow
def test_plan_is_written_whole_and_says_what_it_assumes(planned):
    folder, printed = planned
    assert sorted(path.name for path in folder.iterdir()) == ["plan.json", "plan.png"]
    assert (folder / "plan.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((folder / "plan.json").read_text())
    assert results["input"] == "box:6:4" and results["precision_nm"] == 1
    assert all(f"assumed: {line}" in printed for line in results["assumptions"])
    assert "plan.json and plan.png are in" in printed


@pytest.mark.slow
def test_every_energy_alone_five_sets_and_all_together_are_planned(planned):
    results = json.loads((planned[0] / "plan.json").read_text())
    energies = list(forward.load().beam_energies_kev)
    assert [row["beam_energies_kev"] for row in results["alone"]] == [[energy] for energy in energies]
    sets = [row["beam_energies_kev"] for row in results["best"]]
    assert [len(chosen) for chosen in sets] == [1, 2, 3, 4, 5]
    assert all(set(a) < set(b) for a, b in zip(sets, sets[1:], strict=False))
    assert [row["beam_energies_kev"] for row in results["every"]] == [energies]


@pytest.mark.slow
def test_worst_quantity_decides_what_all_need(planned):
    results = json.loads((planned[0] / "plan.json").read_text())
    for row in results["alone"] + results["best"] + results["every"]:
        electrons = row["electrons_per_pixel"]
        assert set(electrons) == {*plan.QUANTITIES, "all"}
        single = [electrons[name] for name in plan.QUANTITIES]
        assert electrons["all"] == (None if None in single else max(single))
        assert all(value is None or value > 0 for value in single)


@pytest.fixture
def needs(monkeypatch):
    """Needs at a precision, from random information of four energies, the third of which is blind."""
    information = random_information(4)
    information[2, 2] = information[2, :, 2] = 0  # does not see the depth
    monkeypatch.setattr(likelihood, "fisher_information", lambda *_: information)
    monkeypatch.setattr(likelihood, "model_scatter", lambda *_: 1e-4 * information)
    energies, covariance = (1.0, 2.0, 3.0, 4.0), np.ones((4, 2, 2))
    model = dataclasses.replace(forward.load(), covariance=covariance, beam_energies_kev=energies)
    return information, lambda precision_nm: plan.needs_of_box(model, 6, 4, precision_nm)


def test_electrons_that_are_needed_give_the_precision(needs):
    information, at = needs
    for need in (each for rows in at(0.5).values() for each in rows):
        chosen = [int(energy) - 1 for energy in need.beam_energies_kev]
        for name, group in plan.QUANTITIES.items():
            if np.isfinite(need.electrons_per_pixel[name]):
                dose = need.electrons_per_pixel[name] / len(chosen)
                errors = likelihood.standard_errors(dose * information[chosen].sum(0))
                np.testing.assert_allclose(errors[group].max(), 0.5, rtol=1e-6)


def test_half_the_error_takes_four_times_the_electrons_and_keeps_the_sets(needs):
    _, at = needs
    for one, half in zip(at(1.0)["best"], at(0.5)["best"], strict=True):
        assert one.beam_energies_kev == half.beam_energies_kev
        for name, electrons in one.electrons_per_pixel.items():
            np.testing.assert_allclose(half.electrons_per_pixel[name], 4 * electrons)
        assert one.model_error_nm == half.model_error_nm and one.model_error_nm["all"] > 0


def test_what_an_energy_does_not_show_takes_infinitely_many_electrons(needs):
    blind = needs[1](1.0)["alone"][2]
    assert blind.electrons_per_pixel["depth"] == blind.electrons_per_pixel["all"] == np.inf
    assert np.isfinite(blind.electrons_per_pixel["position"])


def test_best_sets_grow_by_the_energy_that_helps_most():
    information = random_information(5, seed=1)
    information[3] *= 100
    sets = plan.best_sets(information, 4)
    assert sets[0] == [3]

    def worst(chosen):
        return likelihood.standard_errors(information[list(chosen)].sum(0)).max()

    for smaller, larger in zip(sets, sets[1:], strict=False):
        others = [[*smaller, e] for e in range(5) if e not in smaller]
        assert worst(larger) <= min(map(worst, others)) * (1 + 1e-9) < worst(smaller)


def test_energies_that_only_together_show_all_are_found():
    halves = np.zeros((3, 6, 6))
    halves[0, :3, :3] = np.eye(3)
    halves[1, :2, :2] = 9 * np.eye(2)
    halves[2, 3:, 3:] = np.eye(3)
    assert plan.best_sets(halves, 2)[1] == [0, 2]


@pytest.mark.parametrize("flags, message", [
    (["--input=ball:6:4"], "what to plan for must be box:<size_nm>:<depth_nm>; got ball:6:4. Give"),
    (["--input=box:6"], "must be box:<size_nm>:<depth_nm>; got box:6."),
    (["--input=box:six:4"], "got box:six:4."),
    (["--input=box:nan:4"], "got size nan and depth 4"),
    (["--input=box:6:14"], "touch none of its faces; got size 6 and depth 14"),
    (["--input=box:6:0"], "got size 6 and depth 0"),
    (["--precision_nm=0"], "precision_nm must be above 0 and finite; got 0. Give e.g. 1."),
    (["--precision_nm=inf"], "precision_nm must be above 0 and finite; got inf"),
    (["--precision_nm=fine"], "--precision_nm=fine"),
    (["--output=/proc/new"], "files must be writable; got"),
])  # fmt: skip
def test_wrong_plan_is_refused_in_one_line(tmp_path, capsys, flags, message):
    given = ["--mode=plan", "--input=box:6:4", f"--output={tmp_path}/new", *flags]
    assert launch.main(given) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and len(err.splitlines()) == 1 and message in err, err
    assert not list(tmp_path.iterdir())


def test_missing_flag_is_refused(capsys):
    assert launch.main(["--mode=plan", "--output=x"]) == 2
    assert "--mode=plan needs --input; got none" in capsys.readouterr().err
    assert launch.main(["--mode=plan", "--input=box:6:4"]) == 2
    assert "--mode=plan needs --output; got none" in capsys.readouterr().err
