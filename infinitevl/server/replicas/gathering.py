"""Makes one answer of what every replica answers: lists of streams, and counts."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


def joined_lists(bodies: Iterable[bytes]) -> dict[str, Any]:
    """One list of streams, oldest first."""
    lists = [json.loads(body) for body in bodies]
    streams = {stream["id"]: stream for each in lists for stream in each["data"]}
    return lists[0] | {"data": sorted(streams.values(), key=lambda stream: stream["created"])}


def joined_metrics(texts: Mapping[str, str]) -> bytes:
    """The counts of all replicas in Prometheus' format, each with the name of its replica as a label."""
    registry = CollectorRegistry()
    registry.register(_Counts(texts))
    return generate_latest(registry)


class _Counts(Collector):
    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        found: dict[str, Metric] = {}
        for replica, text in self._texts.items():
            for family in text_string_to_metric_families(text):
                metric = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    metric.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
        return found.values()
