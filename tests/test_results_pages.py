"""docs/results: each page says how it was made, shows small pictures that exist, and the published numbers."""

import re
from pathlib import Path

import pytest

from pyro_bvae.recipes import SCALES, read_recipe, recipe_names

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "results"
PAGES = sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")
KILOBYTES = 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_says_how_it_was_made(page):
    text = page.read_text(encoding="utf-8")
    command = re.search(
        r"^    (pyro-bvae reproduce |python examples/)(\S*) ?(.*)$", text, re.MULTILINE
    )
    if command[1].startswith("pyro-bvae"):
        scale = re.search(r"--scale (\w+)", command[3])[1]
        assert command[2] in recipe_names() and scale in SCALES
        assert read_recipe(command[2], scale).title in text
    else:
        assert (ROOT / "examples" / command[2]).is_file()
    assert re.search(r"\b20\d\d-\d\d-\d\d\b", text) and "torch 2" in text
    assert "## What it shows" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_pictures_are_there_and_small(page):
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert pictures
    for picture in pictures:
        assert (FOLDER / picture).stat().st_size <= KILOBYTES * 1024, picture


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_published_numbers_are_the_recipes(page):
    """A table's column "published" holds what the recipe says, in its row."""
    text = page.read_text(encoding="utf-8")
    rows = [re.split(r" \| ", line[2:-2]) for line in text.splitlines() if line.startswith("| ")]
    named = re.search(r"pyro-bvae reproduce (\S+)", text)
    published = read_recipe(named[1]).published if named else {}
    if not published:
        assert not rows or "published" not in rows[0]
        return
    columns = [i for i, name in enumerate(rows[0]) if name == "published"]
    for row in rows[2:]:
        shown = [float(row[i].split(" ± ")[0]) for i in columns if row[i] != "–"]
        assert shown == [value for value, _ in published.get(row[0], {}).values()]


def test_the_index_names_every_page_and_every_picture_belongs_to_one():
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if f"({page.name})" not in index] == []
    shown = {
        (FOLDER / name).resolve()
        for page in PAGES
        for name in re.findall(r"\]\(([^)]+\.png)\)", page.read_text(encoding="utf-8"))
    }
    assert {path.resolve() for path in FOLDER.rglob("*.png")} == shown
