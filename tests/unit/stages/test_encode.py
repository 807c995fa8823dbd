"""Samples in keys: their sources, their buckets, and what a key depends on."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bank import load_bank
from pipeline.config import ModelSettings, Recipe
from pipeline.prompting import make_prompts
from pipeline.stages.distill import plan_settings
from pipeline.stages.encode import Collection, Encodings, collect, photograph_names
from pipeline.types import EffectEntry, Manifest, TargetJob
from tests.tiny_flux import write_tiny_flux
from tests.unit.malformed.good_bank import Work, good_work, write_image, write_rows

BASE = Path("pipeline/miniature/base")
SQUARE, WIDE, TALL = (1, 4, 4), (1, 2, 4), (1, 4, 2)


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Path]:
    sizes = {"square": (40, 40), "wide": (90, 60), "tall": (50, 80)}
    for seed, (name, size) in enumerate(sizes.items()):
        write_image(tmp_path / f"{name}.png", seed, size)
    return {name: tmp_path / f"{name}.png" for name in sizes}


def test_the_last_source_or_the_edited_picture_decides_the_bucket(
    pictures: dict[str, Path],
) -> None:
    encodings = Encodings(ModelSettings(path=str(BASE)))
    square, wide, tall = pictures.values()
    # Sources keep the area of 64 x 64, as the stock pipeline has them; edits the long side.
    one = encodings.sample([wide], "a", "b")
    assert one.shapes == (WIDE, (1, 4, 4))
    two = encodings.sample([wide, tall], "a", "b")
    assert (two.shapes[0], len(two.shapes), len(two.sources)) == (TALL, 3, 2)
    assert two.sources[0] == one.sources[0]
    taught = encodings.sample([square], "a", "b", wide)
    assert (taught.shapes[0], taught.shapes[1]) == (WIDE, SQUARE)
    assert encodings.jobs[encodings.edited(wide)].width == 64
    assert encodings.jobs[encodings.edited(wide)].height == 32


def test_a_prompt_is_keyed_by_all_its_pictures_in_order(pictures: dict[str, Path]) -> None:
    encodings = Encodings(ModelSettings(path=str(BASE)))
    square, wide, _ = pictures.values()
    keys = [encodings.prompt("a", paths) for paths in ([square], [square, wide], [wide, square])]
    assert len(set(keys)) == 3
    assert encodings.jobs[keys[1]].paths == (str(square), str(wide))


def test_a_prompt_that_no_picture_enters_is_encoded_once(
    pictures: dict[str, Path], tmp_path: Path
) -> None:
    encodings = Encodings(ModelSettings(path=str(write_tiny_flux(tmp_path / "flux"))))
    square, wide, _ = pictures.values()
    assert encodings.prompt("a", [square]) == encodings.prompt("a", [wide])
    assert encodings.prompt("a", [square]) != encodings.prompt("b", [square])
    assert {job.paths for job in encodings.jobs.values()} == {()}


def collected(work: Work) -> Collection:
    work.recipe["model"] = {"path": str(BASE)}
    work.save()
    recipe, bank = Recipe.model_validate(work.recipe), load_bank(work.bank_file)
    return collect(recipe, bank, make_prompts(bank.effects, recipe.prompts, 0))[0]


def test_a_bank_of_several_shapes_and_sources(tmp_path: Path) -> None:
    work = good_work(tmp_path)
    write_image(work.file("general/wide.png"), 7, (90, 60))
    rows = [["general/1.png"], ["general/wide.png"], ["general/wide.png", "general/1.png"]]
    write_rows(work.file("general.jsonl"), [{"image": row, "prompt": "join"} for row in rows])
    write_image(work.file("pairs/snow_2_source.png"), 8, (90, 60))
    pair = {"target": "pairs/snow_1_target.png"}
    both = ["pairs/negative_1_source.png", "pairs/negative_2_source.png"]
    sources = ["pairs/snow_1_source.png", "pairs/snow_2_source.png"]
    lines = [{"effect": "snow", "source": source, **pair} for source in sources]
    write_rows(work.file("pairs.jsonl"), [*lines, {"effect": "negative", "source": both, **pair}])
    collection = collected(work)
    snow, negative = collection.effects
    # The unlabelled photograph is one picture: no source for an effect of two.
    assert [len(s.sources) for s in snow.samples] == [1, 1, 1]
    assert [len(s.sources) for s in negative.samples] == [2]

    entries = (
        EffectEntry(e.effect.name, "", "", e.effect.weight, e.samples) for e in collection.effects
    )
    manifest = Manifest(tuple(entries), collection.general)
    plan = plan_settings(Recipe.model_validate(work.recipe), manifest)
    counted = Counter(
        {b: (c.samples, c.general) for b, c in zip(manifest.buckets, plan.buckets, strict=True)}
    )
    assert counted == {
        (SQUARE, SQUARE): ((2, 0), 1),
        (WIDE, SQUARE): ((1, 0), 1),
        (SQUARE, SQUARE, SQUARE): ((0, 1), 1),
    }
    assert Manifest.from_dict(manifest.to_dict()) == manifest
    job = TargetJob("key", "a.safetensors", "hash", negative.samples[0], 7)
    row = job.row()
    assert TargetJob.from_row(*(row[name] for name in TargetJob.COLUMNS)) == job


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["test/a.png", "test/b.png"], ["a", "b"]),
        (["one/a.png", "two/a.png", "two/b.png"], ["one_a", "two_a", "b"]),
        # As `init` finds them: effects of equal numbers of pairs.
        (
            ["snow/before/1.png", "rain/before/1.png", "rain/before/2.png"],
            ["snow_before_1", "rain_before_1", "2"],
        ),
        (["test/1.png", "test/1.jpg"], ["1_png", "1_jpg"]),
        (["/a/x.png", "/b/x.png"], ["a_x", "b_x"]),
    ],
)
def test_held_out_pictures_have_names_of_their_own(paths: list[str], names: list[str]) -> None:
    assert photograph_names([Path(path) for path in paths]) == names


PARTS = st.sampled_from(["a", "b", "a_b", "1"])


@given(st.lists(st.tuples(st.lists(PARTS, max_size=3), PARTS, st.sampled_from([".png", ".jpg"]))))
def test_no_two_pictures_share_a_name(places: list[tuple[list[str], str, str]]) -> None:
    paths = list({Path(*folders, stem + ending) for folders, stem, ending in places})
    names = photograph_names(paths)
    assert len(set(names)) == len(paths)
    assert not any("/" in name for name in names)
