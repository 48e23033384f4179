"""What README shows runs as it stands."""

import re
from pathlib import Path

import pytest

from polytask.recipes.load import load_recipe

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.splitlines()[-1][:30])
def test_python_blocks_run(block, capsys):
    exec(compile(block, "README.md", "exec"), {})
    assert "False" not in capsys.readouterr().out


@pytest.mark.parametrize("block", blocks("yaml"))
def test_recipes_are_valid(block, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(block)
    assert load_recipe(path).tasks


def test_targets_that_it_names_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`make (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_pictures_and_files_that_it_names_exist():
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).exists(), path


def test_commands_that_it_names_exist():
    from polytask.cli import main

    found = set(re.findall(r"^polytask (\w+)", "\n".join(blocks("")), flags=re.MULTILINE))
    assert {"fit", "evaluate", "predict", "list"} <= found <= set(main.commands)
