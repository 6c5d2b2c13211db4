"""YAML that says each thing once, and numbers as people read them."""

from pathlib import Path
from typing import Any

import yaml

__all__ = ["read_yaml"]


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` that refuses a key that is given twice, of which the last would count."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[str, yaml.Mark] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    f"{key.value!r} is given first",
                    seen[key.value],
                    "and once more; leave one of them out",
                    key.start_mark,
                )
            seen[key.value] = key.start_mark
        return node

    def construct_number(self, node: yaml.ScalarNode) -> int | float | str:
        """Read a number; 1:30, which is 90 in YAML 1.1, stays as it is written."""
        if ":" in node.value:
            return node.value
        if node.tag.endswith("int"):
            return self.construct_yaml_int(node)
        return self.construct_yaml_float(node)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises
    ------
    OSError, yaml.YAMLError
        If it cannot be read, is no text, or gives a key twice.
    """
    with path.open("rb") as file:  # as text it would be in the encoding of the locale
        return yaml.load(file, _Loader)
