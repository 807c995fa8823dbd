"""Banks whose lists are wrong: bank.yaml and the JSONL files."""

import json
import shutil
from collections.abc import Callable
from typing import Any

from tests.unit.malformed.case import Case
from tests.unit.malformed.good_bank import Work, write_image, write_rows

STAYS = "inside it"


def _effect(key: str, value: Any) -> Callable[[Work], None]:
    def spoil(work: Work) -> None:
        work.bank["effects"][1][key] = value

    return spoil


def _top(key: str, value: Any) -> Callable[[Work], None]:
    def spoil(work: Work) -> None:
        work.bank[key] = value

    return spoil


def _append(file: str, line: str) -> Callable[[Work], None]:
    def spoil(work: Work) -> None:
        with work.file(file).open("a") as rows:
            rows.write(line + "\n")

    return spoil


def _no_bank(work: Work) -> None:
    work.recipe["bank"] = str(work.folder / "nowhere")


def _folder_without_yaml(work: Work) -> None:
    work.recipe["bank"] = str(work.folder / "model")


def _unknown_subset(work: Work) -> None:
    work.recipe["effects"] = ["snow", "rain"]


def _subset_twice(work: Work) -> None:
    work.recipe["effects"] = ["snow", "snow"]


def _no_pairs_no_adapter(work: Work) -> None:
    work.bank["effects"].append({"name": "grain", "prompt": "add grain"})


def _prompt_missing(work: Work) -> None:
    del work.bank["effects"][1]["prompt"]


def _effect_not_in_bank(work: Work) -> None:
    work.bank["effects"].pop()


def _general_missing(work: Work) -> None:
    del work.bank["general"]


def _general_missing_at_the_start(work: Work) -> None:
    _general_missing(work)
    work.recipe["distill"] = {"p_switch": 1.0, "warm_start": {"steps": 5, "general": 2}}


def _general_empty(work: Work) -> None:
    work.file("general.jsonl").write_text("\n")


def _no_sources(work: Work) -> None:
    del work.bank["photographs"]
    del work.bank["pairs"]


def _unknown_to_the_miniature(work: Work) -> None:
    adapter = "adapters/snow.safetensors"
    work.bank["effects"].append({"name": "my_own", "prompt": "do it", "adapter": adapter})


def _test_undeclared(work: Work) -> None:
    del work.bank["test"]


def _test_missing(work: Work) -> None:
    shutil.rmtree(work.file("test"))


def _test_empty(work: Work) -> None:
    work.file("test/1.png").unlink()


def _test_in_two_ways(work: Work) -> None:
    write_image(work.file("test/animal/2.png"), 200)


def _test_trained_on(work: Work) -> None:
    shutil.copy(work.file("photographs/1.png"), work.file("test/2.png"))


def _link_out(work: Work) -> None:
    write_image(work.folder / "outside.png")
    work.file("general/link.png").symlink_to(work.folder / "outside.png")
    row = {"image": "general/link.png", "prompt": "make it brighter"}
    write_rows(work.file("general.jsonl"), [row])


def _link_loop(work: Work) -> None:
    work.file("general/link.png").symlink_to("link.png")
    row = {"image": "general/link.png", "prompt": "make it brighter"}
    write_rows(work.file("general.jsonl"), [row])


def _pair(**row: str) -> str:
    whole = {
        "effect": "snow",
        "source": "pairs/snow_1_source.png",
        "target": "pairs/snow_1_target.png",
    } | row
    return "{" + ", ".join(f'"{k}": "{v}"' for k, v in whole.items() if v) + "}"


def _general_of(*images: str) -> Callable[[Work], None]:
    def spoil(work: Work) -> None:
        write_rows(work.file("general.jsonl"), [{"image": list(images), "prompt": "join them"}])

    return spoil


def _second_image_broken(work: Work) -> None:
    work.file("general/broken.png").write_bytes(work.file("general/1.png").read_bytes()[:60])
    _general_of("general/1.png", "general/broken.png")(work)


def _two_sources_for_flux(work: Work) -> None:
    index = {"_class_name": "FluxKontextPipeline"}
    (work.folder / "model" / "model_index.json").write_text(json.dumps(index))
    _general_of("general/1.png", "photographs/1.png")(work)


def _of_effect(name: str, key: str, value: Any, remedy: str) -> Case:
    return Case(name, _effect(key, value), "bank.yaml", f"effects.1.{key}", remedy)


def _of_pair(name: str, field: str, remedy: str, line: str) -> Case:
    return Case(name, _append("pairs.jsonl", line), "pairs.jsonl", f"line 5{field}", remedy)


def _of_general(name: str, field: str, remedy: str, line: str) -> Case:
    return Case(name, _append("general.jsonl", line), "general.jsonl", f"line 2{field}", remedy)


BANK_CASES = (
    Case("no_bank_folder", _no_bank, "nowhere", "no such file", "give a bank"),
    Case("no_bank_yaml", _folder_without_yaml, "bank.yaml", "no such file", "give a bank"),
    Case("bank_empty", _top("effects", []), "bank.yaml", "effects", "at least one effect"),
    Case("effects_is_text", _top("effects", "snow"), "bank.yaml", "effects", "stated type"),
    Case("effect_is_text", _top("effects", ["snow"]), "bank.yaml", "effects.0", "mapping with"),
    Case("unknown_bank_key", _top("pair", "x"), "bank.yaml", "pair", "check its spelling"),
    _of_effect("effect_twice", "name", "snow", "its own name"),
    _of_effect("trigger_twice", "trigger", "<snow_ab12>", "give each effect its own"),
    _of_effect("trigger_with_spaces", "trigger", "two words", "stated form"),
    _of_effect("name_is_a_path", "name", "../snow", "stated form"),
    _of_effect("name_with_capitals", "name", "Snow", "stated form"),
    _of_effect("name_too_long", "name", "a" * 65, "stated form"),
    _of_effect("name_is_a_number", "name", 7, "stated type"),
    _of_effect("weight_0", "weight", 0.0, "stated type and range"),
    _of_effect("prompt_blank", "prompt", "  ", "stated form"),
    _of_effect("unknown_effect_key", "promt", "x", "check its spelling"),
    _of_effect("adapter_missing", "adapter", "adapters/none.safetensors", "correct the path"),
    _of_effect("adapter_outside", "adapter", "../a.safetensors", STAYS),
    _of_effect("adapter_absolute", "adapter", "/etc/passwd", STAYS),
    Case("prompt_missing", _prompt_missing, "bank.yaml", "effects.1.prompt", "add it"),
    Case("subset_unknown", _unknown_subset, "bank.yaml", "'rain'", "the bank has: snow, negative"),
    Case("subset_twice", _subset_twice, "bank.yaml", "effects", "name it once"),
    Case("no_pairs_no_adapter", _no_pairs_no_adapter, "bank.yaml", "effects.2", "add rows"),
    Case("pairs_missing", _top("pairs", "no.jsonl"), "bank.yaml", "pairs", "correct the path"),
    Case("pairs_outside", _top("pairs", "../p.jsonl"), "bank.yaml", "pairs", STAYS),
    Case(
        "effect_not_in_bank", _effect_not_in_bank, "pairs.jsonl", "line 3.effect", "add the effect"
    ),
    _of_pair("pair_no_json", "", "one JSON object a line", "{'effect': 'snow'}"),
    _of_pair("pair_cut_short", "", "one JSON object a line", _pair()[:-20]),
    _of_pair("pair_a_list", "", "mapping with effect", "[1, 2]"),
    _of_pair("pair_too_long", "", "one JSON object a line", "x" * 70_000),
    _of_pair("pair_too_deep", "", "one JSON object a line", "[" * 60_000),
    _of_pair("pair_no_target", ".target", "add it", _pair(target="")),
    _of_pair("pair_no_source", ".source", "add it", _pair(source="")),
    _of_pair("pair_image_missing", ".source", "correct the path", _pair(source="pairs/no.png")),
    _of_pair("pair_outside", ".target", STAYS, _pair(target="../outside.png")),
    _of_pair("pair_absolute", ".source", STAYS, _pair(source="/dev/zero")),
    _of_pair("pair_unknown_key", ".caption", "check its spelling", _pair(caption="x")),
    _of_general("general_no_prompt", ".prompt", "add it", '{"image": "general/1.png"}'),
    _of_general("general_no_image", ".image", "add it", '{"prompt": "brighter"}'),
    _of_general(
        "general_blank_prompt",
        ".prompt",
        "stated form",
        '{"image": "general/1.png", "prompt": " "}',
    ),
    _of_general("general_nul", ".image", "stated form", '{"image": "a\\u0000", "prompt": "b"}'),
    _of_general(
        "general_image_a_number", ".image", "stated type", '{"image": 7, "prompt": "brighter"}'
    ),
    Case(
        "general_four_images",
        _general_of(*["general/1.png"] * 4),
        "general.jsonl",
        "line 1.image",
        "at most 3",
    ),
    Case("general_no_images", _general_of(), "general.jsonl", "line 1.image", "stated type"),
    Case(
        "general_second_missing",
        _general_of("general/1.png", "general/2.png"),
        "general.jsonl",
        "line 1.image.1",
        "correct the path",
    ),
    Case("general_second_broken", _second_image_broken, "broken.png", "content", "save it again"),
    Case(
        "general_second_outside",
        _general_of("general/1.png", "../1.png"),
        "general.jsonl",
        "line 1.image.1",
        STAYS,
    ),
    Case("two_sources_for_flux", _two_sources_for_flux, "bank.yaml", "general", "takes 1"),
    Case("general_link_out", _link_out, "general.jsonl", "line 1.image", STAYS),
    Case("general_link_loop", _link_loop, "general.jsonl", "line 1.image", STAYS),
    Case("general_undeclared", _general_missing, "bank.yaml", "general", "p_switch to 1"),
    Case(
        "general_undeclared_for_the_start",
        _general_missing_at_the_start,
        "bank.yaml",
        "general",
        "warm_start.general to 0",
    ),
    Case("general_empty", _general_empty, "bank.yaml", "general", "p_switch to 1"),
    Case("no_sources", _no_sources, "bank.yaml", "photographs", "add a folder of photographs"),
    Case(
        "not_in_the_miniature",
        _unknown_to_the_miniature,
        "recipe.yaml",
        "evaluate.truth",
        "set evaluate.truth to pairs",
    ),
    Case("test_undeclared", _test_undeclared, "bank.yaml", "test", "add a folder of photographs"),
    Case("test_missing", _test_missing, "bank.yaml", "test", "add the folder"),
    Case("test_empty", _test_empty, "bank.yaml", "test", "add files ending in"),
    Case("test_in_two_ways", _test_in_two_ways, "bank.yaml", "test", "one of both ways"),
    Case("test_trained_on", _test_trained_on, "test/2.png", "content", "remove one of them"),
)
