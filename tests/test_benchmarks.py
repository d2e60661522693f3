"""The benchmark of the simulator, with next to no work: what it prints is complete and makes sense."""

import json
import math

import jax
import pytest
from absl.testing import flagsaver

from benchmarks import roofline, simulator

SPEED = {"electrons_per_core_second", "electrons_per_second", "steps_per_electron", "ns_per_step"}


def numbers(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, (int, float))]


@pytest.mark.slow
def test_benchmark_prints_one_complete_object_and_draws_it(tmp_path, capsys, monkeypatch):
    for name, few in (("SIZES", (1, 2)), ("TILES", (1, 2)), ("LANES_CPU", (1,))):
        monkeypatch.setattr(simulator, name, few)
    # What was compiled, in this run or before, is kept: JAX settles with the first program whether it looks.
    jax.jit(lambda: 0)()
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    monkeypatch.setattr(simulator.compilation_cache, "reset_cache", lambda: None)
    monkeypatch.setattr(roofline, "MEMORY_BYTES", 2**20)
    tiny = {"minutes": 1e-3, "lanes": 64, "energies_kev": ["1", "10"], "output": str(tmp_path)}
    simulator.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**tiny):
        simulator.main(None)

    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == json.loads((tmp_path / "simulator.json").read_text())
    assert (tmp_path / "simulator.png").stat().st_size > 10_000
    series = result.pop("scaling")
    growth = [of_one.pop("growth_beyond_results_mb") for of_one in series.values()]
    exponents = [of_one.pop("exponent") for of_one in series.values()]
    assert list(series) == ["dose", "specimens", "pixels"]
    assert all(map(math.isfinite, growth + exponents + numbers(series)))
    assert result.pop("seed") == 0
    assert all(math.isfinite(number) and number > 0 for number in numbers(result))
    assert SPEED < set(result) and all(SPEED < set(of_one) for of_one in result["per_energy"])
    assert [of_one["energy_kev"] for of_one in result["per_energy"]] == [1, 10]
    assert result["per_energy"][0]["steps_per_electron"] > result["per_energy"][1]["steps_per_electron"]
    assert [of_one["lanes"] for of_one in result["per_lanes"]] == [64]
    assert result["per_workers"][0]["speed_up"] == 1
    assert 0 < result["roofline"]["fraction"] < 1.5
    assert {"compile_s", "memory", "paper_set", "device", "jax", "simulator", "cores"} < set(result)


def test_copper_is_eight_percent_of_the_box():
    assert (simulator.box() == 2).mean() == 0.08
