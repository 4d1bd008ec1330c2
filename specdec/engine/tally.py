"""A histogram that is counted into once for several tokens: every round of every request tells of some."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Tally(Collector):
    """A Prometheus histogram of one label, `model_name`; a `prometheus_client.Histogram` takes ten times as long to count.

    Args:
        name: of the histogram.
        description: of what it counts.
        model_name: the label's value.
        limits: the upper ends of its buckets, ascending.
        registry: that tells it.
    """

    def __init__(
        self, name: str, description: str, model_name: str, limits: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name, self._description, self._model = name, description, model_name
        self._limits = list(limits)
        self._counts = [0] * (len(self._limits) + 1)
        self._sum = 0.0
        registry.register(self)

    def add(self, value: float, times: int) -> None:
        """Count a value so many times."""
        self._counts[bisect_left(self._limits, value)] += times
        self._sum += value * times

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """See `prometheus_client.registry.Collector`."""
        below = 0
        buckets: list[tuple[str, float]] = []
        for limit, count in zip((*self._limits, float("inf")), self._counts, strict=True):
            below += count
            buckets.append((str(floatToGoString(limit)), below))  # type: ignore[no-untyped-call]
        family = HistogramMetricFamily(self._name, self._description, labels=["model_name"])
        family.add_metric([self._model], buckets, self._sum)
        yield family
