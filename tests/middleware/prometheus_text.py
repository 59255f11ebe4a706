"""The text format of Prometheus."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

#: "name{label=value,...}" -> value
Numbers = dict[str, float]


def parse(text: str) -> Numbers:
    numbers = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            numbers[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return numbers
