"""The command line, end to end, and what it says when something is wrong."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import small_export
import tifffile

import launch
from bsevox_jax import data

SMALL = [
    "--config=configs/quickstart.py",
    "--config.data.config=smoke",
    "--config.data.batch_size=8",
    "--config.model.widths=(8, 12)",
    "--config.model.blocks=(1, 1)",
    "--config.optim.warmup_epochs=0",
    "--config.phase1.epochs=2",
    "--config.phase2.epochs=1",
]


def run(*arguments, cwd):
    """Runs the launcher in a process of its own; returns exit code, stdout and stderr."""
    command = [sys.executable, os.path.join(launch.ROOT, "launch.py"), *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}  # jax has set it here
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the data set `data` and the run `run`, made by the launcher in another working folder."""
    folder = tmp_path_factory.mktemp("launch")
    code, out, err = run(*SMALL, f"--config.data.data_dir={folder}/data", "--workdir=run", cwd=folder)
    assert code == 0, err
    assert "Traceback" not in err and "exported" in out
    return folder


@pytest.mark.slow
def test_trained_network_is_evaluated(trained, capsys):
    arguments = [*SMALL, f"--config.data.data_dir={trained}/data", f"--workdir={trained}/run"]
    assert launch.main([*arguments, "--mode=evaluate"]) == 0
    metrics = json.loads((trained / "run" / "metrics.json").read_text())
    assert metrics["data_set"].startswith("bse_voxels/smoke") and 0 <= metrics["iou_cu_mean"] <= 1
    assert set(metrics["nanocube"]) == {"1", "2", "3", "4"}
    assert set(metrics["nanowire"]) == set(metrics["nanowire_lying"]) == {"2", "4", "6", "8", "10"}
    out = capsys.readouterr().out
    assert f"IoU(Cu) mean {metrics['iou_cu_mean']:.3f}" in out and "picture.png" in out
    assert (trained / "run" / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_simulated_stack_gives_the_same_volume_from_every_format(trained, tmp_path):
    simulated = [
        "--mode=simulate",
        "--input=nanocube:2",
        "--electrons_per_pixel=6",
        f"--output={tmp_path}/cube",
    ]
    assert launch.main(simulated) == 0
    counts = tifffile.imread(tmp_path / "cube" / "stack.tif")
    np.save(tmp_path / "cube" / "stack.npy", np.moveaxis(counts, 0, -1))
    energies = "--beam_energies_kev=" + ",".join(f"{0.5 * k:g}" for k in range(1, 21))
    volumes = []
    for name, given in (("npz", []), ("tif", []), ("npy", [energies, "--electrons_per_pixel=6"])):
        files = [f"--input={tmp_path}/cube/stack.{name}", f"--checkpoint={trained}/run/export"]
        assert launch.main(["--mode=reconstruct", *files, f"--output={tmp_path}/{name}", *given]) == 0
        with np.load(tmp_path / name / "volume.npz") as volume:
            volumes.append(volume["probability"])
    assert volumes[0].shape == (20, 20, 20) and volumes[0].std() > 0
    np.testing.assert_array_equal(volumes[0], volumes[1])
    np.testing.assert_array_equal(volumes[0], volumes[2])


@pytest.mark.slow
def test_file_of_labels_is_simulated_as_the_phantom_it_came_from(tmp_path):
    options = ["--mode=simulate", "--electrons_per_pixel=2", "--beam_energies_kev=1,3"]
    assert launch.main([*options, "--input=nanowire:6:x", f"--output={tmp_path}/a"]) == 0
    assert launch.main([*options, f"--input={tmp_path}/a/labels.npy", f"--output={tmp_path}/b"]) == 0
    assert (tmp_path / "a" / "stack.npz").read_bytes() == (tmp_path / "b" / "stack.npz").read_bytes()
    with np.load(tmp_path / "a" / "stack.npz") as stack:
        assert stack["counts"].shape == (20, 20, 2) and stack["counts"].sum() > 0


@pytest.mark.slow
def test_side_walls_of_the_command_line_reach_the_electrons(tmp_path, capsys):
    options = ["--mode=simulate", "--input=nanocube:1", "--electrons_per_pixel=2", "--beam_energies_kev=1,3"]
    counts = {}
    for walls in ("mirror", "periodic"):
        assert launch.main([*options, f"--side_walls={walls}", f"--output={tmp_path}/{walls}"]) == 0
        counts[walls] = np.load(tmp_path / walls / "stack.npz")["counts"]
    assert (counts["mirror"] != counts["periodic"]).any()
    assert launch.main([*options, "--side_walls=brick", f"--output={tmp_path}/brick"]) == 2
    assert "side_walls must be one of mirror, periodic, open; got 'brick'" in capsys.readouterr().err


@pytest.mark.slow
def test_data_set_of_a_configuration_is_simulated_by_either_simulator(trained, tmp_path, capsys):
    simulating = ["--mode=simulate", *SMALL[:2]]
    assert launch.main([*simulating, f"--config.data.data_dir={trained}/data"]) == 0  # it is there
    assert capsys.readouterr().out == f"{trained}/data/bse_voxels/smoke/3.0.0\n"
    program = tmp_path / "nebula"  # detects every primary
    program.write_text("#!/bin/sh\necho This is Nebula version 1.0.2 >&2\n[ $# = 0 ] || cat $6\n")
    program.chmod(0o755)
    (tmp_path / "any.mat").touch()
    of_nebula = [
        "--config.simulator.kind=nebula",
        f"--config.simulator.binary={program}",
        f"--config.simulator.materials=('{tmp_path}/any.mat', '{tmp_path}/any.mat')",
    ]
    assert launch.main([*simulating, *of_nebula, f"--config.data.data_dir={tmp_path}/data"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/data/bse_voxels/smoke_nebula/3.0.0\n"
    splits = data.load(f"{tmp_path}/data", "smoke", kind="nebula")
    assert all((split.counts == 4).all() for split in splits.values())
    cube = ["--mode=simulate", "--input=nanocube:2", "--electrons_per_pixel=3", f"--output={tmp_path}/cube"]
    assert launch.main([*cube, SMALL[0], *of_nebula]) == 0
    with np.load(tmp_path / "cube" / "stack.npz") as stack:
        assert (stack["counts"] == 3).all() and stack["counts"].shape == (20, 20, 20)


def test_help_names_every_flag(capsys):
    assert launch.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"--{name}: " in out for name in ("mode", "config", *(name for name, *_ in launch.FLAGS)))


# From here on: one line on stderr, exit code 2, nothing left behind.


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with the data set small.npz, the network run/export and the stack counts.npy."""
    folder = tmp_path_factory.mktemp("small")
    _, splits = small_export.write(folder)
    np.save(folder / "counts.npy", splits["test"].counts[0])
    return folder


@pytest.fixture
def refuses(small, capsys):
    """Asserts that the launcher refuses arguments with a message and leaves no new file in the folders."""

    def check(arguments, message, *folders):
        folders = (small, *folders)
        before = [sorted(folder.rglob("*")) for folder in folders]
        capsys.readouterr()
        assert launch.main(arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and len(err.splitlines()) == 1 and message in err, err
        assert [sorted(folder.rglob("*")) for folder in folders] == before

    return check


def training(folder, *more):
    """Arguments that train on small.npz."""
    shrink = ["--config.data.config=small.npz", "--config.data.batch_size=4", *SMALL[3:]]
    return [SMALL[0], *shrink, f"--config.data.data_dir={folder}", f"--workdir={folder}/new", *more]


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--config.phase1.lerning_rate=1", "must be a key of the configuration; got 'lerning_rate'"),
        ("--config.sed=1", 'Did you mean "seed"'),
        ("--config.seed=one", "--config.seed=one: invalid literal for int() with base 10: 'one'"),
        ("--config.data.symmetries=maybe", "--config.data.symmetries=maybe"),
        ("--config.model.name=compct", "got 'compct'"),
        ("--config.data.normalise=standard", "got 'standard'"),
        (
            "--config.data.batch_size=30",
            "batch_size must be divisible by the number of devices; got 30 and 4",
        ),
        ("--config.data.config=absent.npz", "the data set must exist; got"),
        (
            "--config.data.config=big",
            "textures, calibration; got 'big'. Take one",
        ),
        ("--config=configs/absent.py", "the configuration must exist; got configs/absent.py"),
        ("--confg=x", "Unknown command line flag 'confg'"),
        ("--mode=fly", "value should be one of <train|evaluate|reconstruct|simulate|plan|calibrate>"),
        ("stray", "flags only, as in --mode=evaluate; got stray"),
        ("--process=3", "got '', 0 and 3. Give all three."),
        ("--mode=reconstruct", "--mode=reconstruct needs --input"),
        ("--mode=simulate", "data.config must name a data set to simulate; got small.npz"),
    ],
)
def test_wrong_flag_or_value_is_refused(small, refuses, flag, message):
    refuses(training(small, flag), message)


def test_missing_flag_is_refused(small, refuses):
    refuses([f"--workdir={small}/new"], "--mode=train needs --config")
    refuses([SMALL[0]], "--mode=train needs --workdir")
    refuses(["--mode=simulate"], "--mode=simulate needs --input")
    refuses(["--mode=simulate", SMALL[0], "--config.simulator.kind=casino"], "must be bsevox or nebula")
    refuses(["--mode=simulate", "--input=nanocube:2"], "--mode=simulate needs --output")


def reconstructing(small, stack, **more):
    flags = {"checkpoint": small / "run" / "export", "output": small / "new", "electrons_per_pixel": 6,
             "beam_energies_kev": ",".join(f"{0.5 * k:g}" for k in range(1, 21))} | more  # fmt: skip
    return ["--mode=reconstruct", f"--input={stack}", *(f"--{name}={value}" for name, value in flags.items())]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c[0], "counts must be [y, x, e]; got shape (20, 20)"),
        (lambda c: c.astype(complex), "counts must be numbers; got dtype complex128"),
        (lambda c: c.astype(int) - 1, "counts must not be negative; got -1"),
        (lambda c: c + 0.5, "counts must be whole numbers; got"),
        (lambda c: np.where(c == 1, np.nan, c), "counts must be finite; got"),
        (lambda c: c[..., 1:], "got 19 images and 20 energies"),
    ],
)
def test_bad_stack_is_refused(small, refuses, tmp_path, change, message):
    np.save(tmp_path / "bad.npy", change(np.load(small / "counts.npy")))
    refuses(reconstructing(small, tmp_path / "bad.npy"), message, tmp_path)


@pytest.mark.parametrize(
    "more, message",
    [
        ({"beam_energies_kev": ",".join(map(str, range(1, 21)))}, "must be those of the network"),
        ({"beam_energies_kev": "1,two"}, "beam_energies_kev must be numbers; got ['1', 'two']"),
        ({"electrons_per_pixel": 0}, "electrons_per_pixel must be a whole number from 1; got 0"),
        ({"electrons_per_pixel": 0.5}, "--electrons_per_pixel=0.5"),
        ({"input": "/no/stack.tif"}, "the stack must exist; got /no/stack.tif"),
        ({"checkpoint": "/no/export"}, "an exported network must have a config.json; got /no/export"),
        ({"output": "/proc/new"}, "files must be writable; got"),
        ({"output": f"{__file__}/new"}, "files must be writable; got 'Not a directory'"),
    ],
)
def test_bad_reconstruction_is_refused(small, refuses, more, message):
    refuses(reconstructing(small, small / "counts.npy", **more), message)


@pytest.mark.parametrize("source, message", [
    ("nanocube:7", "position must be 1 to 4; got 7"),
    ("nanocube", "the phantom nanocube cannot be made"),
    ("nanowire:4:w", "axis must be"),
    ("random:x", "the phantom random:x cannot be made"),
    ("pyramid:2", "a specimen must be a file .npy or .npz, or nanocube:<position>"),
    ("absent.npy", "the file of labels must exist; got absent.npy"),
    ("counts.npy", "labels must be uint8; got uint16"),
])  # fmt: skip
def test_specimen_that_does_not_exist_is_refused(small, refuses, monkeypatch, source, message):
    monkeypatch.chdir(small)
    refuses(
        ["--mode=simulate", f"--input={source}", "--electrons_per_pixel=2", f"--output={small}/new"], message
    )


def test_error_of_the_program_is_one_line_and_exit_code_two(small, tmp_path):
    arguments = reconstructing(small, small / "counts.npy", output="/proc/new")
    code, out, err = run(*arguments, cwd=tmp_path)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1, err
    assert err.startswith("error: files must be writable; got") and os.listdir(tmp_path) == []


def flip_a_byte(folder):
    """Damages the largest file below a folder, or the file itself."""
    files = [path for path in folder.rglob("*") if path.is_file()] or [folder]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def test_damaged_checkpoint_is_refused(small, refuses, tmp_path):
    shutil.copytree(small / "run", tmp_path / "run")
    flip_a_byte(tmp_path / "run" / "export" / "weights")
    arguments = reconstructing(small, small / "counts.npy", checkpoint=tmp_path / "run" / "export")
    refuses(arguments, "the checkpoint must be whole; got", tmp_path)
    refuses([*training(small, "--mode=evaluate"), f"--workdir={tmp_path}/run"], "must be whole", tmp_path)


def test_missing_checkpoint_is_refused(small, refuses):
    refuses(training(small, "--mode=evaluate"), "an exported network must have a config.json")


@pytest.mark.slow
def test_damaged_data_set_is_refused(trained, refuses, tmp_path):
    shutil.copytree(trained / "data", tmp_path / "data")
    flip_a_byte(tmp_path / "data" / "bse_voxels" / "smoke")
    smoke = [*SMALL, f"--config.data.data_dir={tmp_path}/data", f"--workdir={tmp_path}/new"]
    refuses(smoke, "is damaged", tmp_path)


def test_folders_that_cannot_be_written_are_refused(small, refuses, tmp_path):
    (tmp_path / "file").write_text("")
    refuses(training(small, f"--workdir={tmp_path}/file/run"), "file/run", tmp_path)
    refuses(
        [*SMALL, f"--config.data.data_dir={tmp_path}/file/data", f"--workdir={tmp_path}/new"], "cannot write"
    )


def test_full_disk_is_refused(small, refuses, smallest_files):
    with smallest_files(20_000):  # a write beyond it fails half-way
        refuses(reconstructing(small, small / "counts.npy"), "files must be writable; got")


@pytest.mark.parametrize("flag, message", [
    ("--config.optim.warmup_epochs=1", "the warm-up must be shorter than the phase; got 2 and 2 steps"),
    ("--config.phase2.loss.kind=sigmoid", "kind must be softmax or hinge"),
])  # fmt: skip
def test_value_that_only_the_second_phase_uses_is_refused_at_once(small, refuses, flag, message):
    refuses(training(small, flag), message)


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small disk")
def test_training_on_a_full_disk_is_refused(small, tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine lets no disk be mounted")
    try:
        code, _, err = run(*training(small, f"--workdir={tmp_path}/run"), cwd=tmp_path)
        left = [path.name for path in tmp_path.rglob("*")]
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    lines = [line for line in err.splitlines() if line and not line.startswith("phase 1")]
    assert code == 2 and len(lines) == 1, err
    assert lines[0].startswith("error: a checkpoint must be writable; got 'No space left on device'")
    assert not any("tmp" in name for name in left if not name.startswith("events"))


def test_damaged_npz_is_refused(small, refuses, tmp_path):
    shutil.copy(small / "small.npz", tmp_path)
    flip_a_byte(tmp_path / "small.npz")
    refuses(
        training(small, f"--config.data.data_dir={tmp_path}"), "the data set must be whole; got", tmp_path
    )
