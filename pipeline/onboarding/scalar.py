"""Texts as YAML values, as this project's own reader reads them."""

import json

import yaml

from pipeline.yaml_file import parse_yaml


def scalar(text: str) -> str:
    """A text as YAML on one line, quoted where it must be.

    PyYAML leaves 1e5 bare, which is a number to whom the file is for.
    """
    dumped: str = yaml.safe_dump(text, allow_unicode=True, width=10**6, default_flow_style=True)
    plain = dumped.removesuffix("...\n").strip()
    return plain if _reads_as(plain, text) else json.dumps(text, ensure_ascii=False)


def _reads_as(plain: str, text: str) -> bool:
    try:
        return bool(parse_yaml(f"key: {plain}   # comment") == {"key": text})
    except ValueError:
        return False
