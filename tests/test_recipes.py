"""The recipes of docs/recipes.md, run one by one."""

import re
import shlex
from pathlib import Path

import pytest

import launch

ROOT = Path(__file__).parent.parent
RECIPES = re.findall(r"^## (.*?)$(.*?)(?=^## |\Z)", (ROOT / "docs" / "recipes.md").read_text(), re.S | re.M)
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.S | re.M)
SLOW = {"Plan energies and dose", "Train on your own data set"}
OPTIONAL = ("docs/interconnect", "bsevox_jax/shipped/instrument")  # what a recipe may need and say so
LINES = 10
SMALL = {  # flags that let a command end within seconds
    "train": [
        "--config.model.widths=(4, 8)",
        "--config.model.blocks=(1, 1)",
        "--config.data.symmetries=False",
        "--config.optim.name=adamw",
        "--config.optim.warmup_epochs=0",
        "--config.phase1.epochs=1",
        "--config.phase2.epochs=0",
    ]
}


def _marked(title, text):
    marks = [pytest.mark.slow] if title in SLOW else []
    missing = [path for path in OPTIONAL if path in text and not (ROOT / path).exists()]
    marks += [pytest.mark.skip(reason=f"without {path}") for path in missing]
    return pytest.param(text, id=title, marks=marks)


@pytest.mark.parametrize("text", [_marked(*recipe) for recipe in RECIPES if BLOCK.search(recipe[1])])
def test_recipe_runs(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    for language, code in BLOCK.findall(text):
        if language == "python":
            exec(compile(code, "recipe", "exec"), {})
            continue
        for line in code.replace("\\\n", " ").splitlines():
            python, program, *flags = shlex.split(line)
            assert (python, program) == ("python", "launch.py")
            mode = next((flag[len("--mode=") :] for flag in flags if flag.startswith("--mode=")), "train")
            assert launch.main(flags + SMALL.get(mode, [])) == 0, capsys.readouterr().err


def test_recipes_are_short_and_all_are_run():
    titles = [title for title, _ in RECIPES]
    assert len(titles) == len(set(titles)) >= 10 and SLOW <= set(titles)
    for title, text in RECIPES:
        blocks = re.findall(r"^```\w+\n(.*?)^```$", text, re.S | re.M)
        assert blocks, title
        for block in blocks:
            lines = [line for line in block.splitlines() if line]
            assert len(lines) <= LINES and max(map(len, lines)) <= 110, title
