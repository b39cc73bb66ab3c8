"""YAML that somebody else may have written (job files, cluster files, model cards): plain values, and one kind of error
for whatever is wrong. No code is ever made of a tag.
"""

from __future__ import annotations

from typing import Any

import yaml

_MOST_REPEATED = 100_000
"""Values that aliases may add to those which are written out. Ten lines of aliases of aliases stand for billions, and
the first who copies the values is out of memory."""
_PER_VALUE = 64
"""Characters of a text that count as one value."""


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError: it is no YAML, a key stands twice in a mapping, it is nested deeper than Python follows, or its
            aliases stand for far more than is written out.
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except RecursionError:
        raise yaml.YAMLError("it is nested too deep") from None
    except ValueError as error:  # what YAML takes for a date or a number, and is none
        raise yaml.YAMLError(str(error)) from None


class _Loader(yaml.SafeLoader):
    """`SafeLoader` keeps the last value of a key that is given twice, and follows any number of aliases."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.composer.ComposerError(
                        None, None, f"the key '{key.value}' stands there twice", key.start_mark
                    )
                seen.add(key.value)
        return node

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            sizes: dict[int, int] = {}
            written: list[int] = []
            if _size(node, sizes, written) - sum(written) > _MOST_REPEATED:
                raise yaml.composer.ComposerError(
                    None, None, f"its aliases stand for more than {_MOST_REPEATED:,} values", node.start_mark
                )
        return node


def _size(node: Any, sizes: dict[int, int], written: list[int]) -> int:
    """How many values a node stands for, once all aliases are written out.

    Args:
        sizes: of the nodes that were counted already, by identity; 0 while they are counted.
        written: gets what each node counts by itself.
    """
    if (found := sizes.get(id(node))) is not None:
        if not found:
            raise yaml.composer.ComposerError(None, None, "an alias stands for what it is a part of", node.start_mark)
        return found
    sizes[id(node)] = 0
    own = 1 + len(node.value) // _PER_VALUE if isinstance(node, yaml.ScalarNode) else 1
    written.append(own)
    parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    below = 0 if isinstance(node, yaml.ScalarNode) else sum(_size(part, sizes, written) for part in parts)
    sizes[id(node)] = own + below
    return own + below
