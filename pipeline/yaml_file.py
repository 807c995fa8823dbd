"""Reading YAML that people wrote: bounded, no key given twice, no aliases, 1e-4 is a number."""

import re
from pathlib import Path
from typing import Any

import yaml

from pipeline.problems import InputError, Problem

MAX_BYTES = 4 * 2**20


class _Loader(yaml.SafeLoader):
    """``SafeLoader`` that refuses what it would pass over in silence."""

    # Aliases let a few lines stand for billions of values; nothing here needs them.
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                text = f"key {key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, text, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-4 and 1.5e3 as strings; to everyone else they are numbers.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: not YAML, in one line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    # A date such as 2024-13-45 and a number of 5,000 digits end in a bare ValueError.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split()) or "nested too deep") from None


def read_mapping(path: Path, remedy: str) -> dict[str, Any]:
    """The mapping in a YAML file of at most 4 MiB; ``remedy`` ends each message.

    Raises:
        InputError: the file cannot be read, is no YAML or holds something else than a mapping.
    """

    def refused(what: str, value: object = None) -> InputError:
        return InputError([Problem(str(path), "", value, what, remedy)])

    if not path.exists():
        raise refused("no such file")
    if not path.is_file():
        raise refused("not a file")
    if path.stat().st_size > MAX_BYTES:
        raise refused(f"larger than {MAX_BYTES} bytes", path.stat().st_size)
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise refused(f"not UTF-8 text: {error}") from None
    except OSError as error:
        raise refused(f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise refused(f"not YAML: {error}") from None
    if not isinstance(data, dict):
        raise refused("not a mapping", type(data).__name__)
    return data


def apply_override(data: dict[str, Any], override: str) -> None:
    """Put ``section.key=value``, the value in YAML, into a mapping. Raises InputError."""

    def refused(what: str, remedy: str) -> InputError:
        return InputError([Problem("--set", key, override, what, remedy)])

    key, separator, text = override.partition("=")
    if not separator or not key:
        raise refused("not KEY=VALUE", "write --set distill.rounds=100")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise refused(f"the value is not YAML: {error}", "quote it") from None
    *sections, last = key.split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise refused(f"{section} is not a section", "check the key")
    data[last] = value
