"""Ray's fake nodes (processes of this machine), which come some time after they were launched, as a cloud's do."""

from __future__ import annotations

import time
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class SlowNodes(FakeMultiNodeProvider):
    """`provider: {type: external, module: slow_nodes.SlowNodes, delay_s: ...}`"""

    def create_node_with_resources_and_labels(self, *arguments: Any) -> None:
        time.sleep(self.provider_config["delay_s"])  # the cloud's call takes its time; other calls go on meanwhile
        super().create_node_with_resources_and_labels(*arguments)
