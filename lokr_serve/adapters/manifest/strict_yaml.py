"""Reads YAML that says one thing only: no anchors, tags or merges, no key twice, no depths."""

from collections.abc import Hashable
from typing import Any

import yaml

from lokr_serve.errors import ManifestError

MAX_DEPTH = 8
MERGE_TAG = "tag:yaml.org,2002:merge"  # of a plain <<, whose keys hide behind those beside it


class _Loader(yaml.CSafeLoader):
    """Builds plain values; a key that stands twice, or takes in another mapping, is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _refusal(f"the key {key.value!r} twice", key)
                seen.add(key.value)
            if key.tag == MERGE_TAG:
                raise _refusal("a merge key", key)
        return super().construct_mapping(node, deep=deep)


def load_yaml(data: bytes) -> object:
    """Return the value of a YAML document.

    Raises:
        ManifestError: It is no YAML, more than one document, or has what makes files hard to read
            or dear to load: an anchor, an alias, a tag, a merge key, a key twice, or mappings in
            mappings in mappings.
    """
    try:
        text = data.decode()
        _check(text)
        return yaml.load(text, Loader=_Loader)
    except (UnicodeDecodeError, yaml.YAMLError, ValueError) as error:
        # A ValueError is of a scalar that looks like a number or a date, and is none.
        problem = " ".join(str(error).split()).replace('in "<unicode string>", ', "in ")
        raise ManifestError(f"the manifest is no YAML: {problem}") from error


def _check(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        match event:
            case yaml.AliasEvent():
                raise _refusal("an alias", event)
            case yaml.NodeEvent() if event.anchor is not None:
                raise _refusal("an anchor", event)
            case yaml.ScalarEvent() | yaml.CollectionStartEvent() if event.tag is not None:
                raise _refusal("a tag", event)
            case yaml.CollectionStartEvent():
                depth += 1
                if depth > MAX_DEPTH:
                    raise _refusal(f"more than {MAX_DEPTH} levels", event)
            case yaml.CollectionEndEvent():
                depth -= 1


def _refusal(what: str, at: yaml.Event | yaml.Node) -> ManifestError:
    line = "" if at.start_mark is None else f" in line {at.start_mark.line + 1}"
    return ManifestError(f"the manifest has {what}{line}")
