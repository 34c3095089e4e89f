"""Figures for Prometheus: own names, and those of vLLM that dashboards know."""

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest

from blockexport.server.answer import Answer
from blockexport.server.model import ServedModel
from blockexport.server.watch import Watch
from blockexport.serving.service import GenerationService

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
_BREAKERS = ("closed", "half-open", "open")


class Metrics:
    """Counts what is answered.

    Args:
        model: what is served.
        service: whose state is told; None for a model that continues nothing.
        watch: remembers the last answers for the page.
    """

    def __init__(self, model: ServedModel, service: GenerationService | None, watch: Watch) -> None:
        self._registry = CollectorRegistry()
        self._watch = watch
        self._depths = {level["name"]: level["depth"] for level in model.levels}
        self._own()
        self._aliases(model.name)
        info = Gauge("blockexport_bundle_info", "What is served", ["model", "digest"], registry=self._registry)
        info.labels(model.name, model.spec.digest).set(1)
        if service is not None:
            self._registry.register(_StateCollector(service, model.name))

    def _own(self) -> None:
        registry = self._registry
        self._requests = Counter("blockexport_requests", "Requests by how they ended", ["outcome"], registry=registry)
        self._in_time = Counter("blockexport_requests_in_time", "Requests that kept all limits", registry=registry)
        names = ["level", "depth"]
        self._tokens = Counter("blockexport_delivered_tokens", "Tokens by the depth", names, registry=registry)
        self._switches = Counter("blockexport_level_switches", "Changes between two tokens", registry=registry)
        self._promised = Counter("blockexport_promises", "Bounds by whether they held", ["kept"], registry=registry)
        self._predicted = _seconds("blockexport_predicted_seconds", "Predicted time to the end", registry)
        self._observed = _seconds("blockexport_observed_seconds", "Observed time of the same requests", registry)
        self._bounds = _seconds("blockexport_bound_seconds", "Bounds of the same requests", registry)
        self._tardiness = _seconds("blockexport_tardiness_seconds", "Time beyond the budget", registry)

    def _aliases(self, model: str) -> None:
        def histogram(name: str, what: str) -> Any:
            return _seconds(f"vllm:{name}", what, self._registry, ["model_name"]).labels(model)

        def counter(name: str, what: str) -> Any:
            return Counter(f"vllm:{name}", what, ["model_name"], registry=self._registry).labels(model)

        self._ttft = histogram("time_to_first_token_seconds", "Time to the first token")
        self._gaps = histogram("inter_token_latency_seconds", "Time between two tokens")
        self._tpot = histogram("time_per_output_token_seconds", "Mean time of a token after the first")
        self._e2e = histogram("e2e_request_latency_seconds", "Time to the end")
        self._prompt_tokens = counter("prompt_tokens", "Tokens of prompts")
        self._new_tokens = counter("generation_tokens", "Tokens of answers")
        labels = ["model_name", "finished_reason"]
        self._success = Counter("vllm:request_success", "Answers", labels, registry=self._registry)
        self._model = model

    def gap(self, seconds: float) -> None:
        """Between two tokens."""
        self._gaps.observe(seconds)

    def ended(self, answer: Answer) -> None:
        """An answer ended, or its request was refused."""
        ending = answer.ending
        assert ending is not None
        outcome = "served" if answer.is_answered and ending.outcome == "cancelled" else ending.outcome
        self._requests.labels(outcome).inc()
        self._in_time.inc(ending.is_in_time)
        self._prompt_tokens.inc(len(answer.request.tokens))
        self._new_tokens.inc(answer.num_tokens)
        self._switches.inc(len(answer.switches))
        for level, num_tokens in ending.tokens_at.items():
            self._tokens.labels(level, self._depths.get(level, 0)).inc(num_tokens)
        if answer.is_answered:
            self._success.labels(self._model, answer.finish_reason).inc()
            self._times(answer)
        self._watch.note(answer, outcome)

    def abandoned(self, answer: Answer) -> None:
        """Nobody waited for an answer any more."""
        self._requests.labels("cancelled").inc()
        self._watch.note(answer, "cancelled")

    def exposed(self) -> bytes:
        """All figures in the text format of Prometheus."""
        return bytes(generate_latest(self._registry))

    def _times(self, answer: Answer) -> None:
        ending, promise = answer.ending, answer.promise
        assert ending is not None
        observed_s = ending.observed_ms / 1000
        self._e2e.observe(observed_s)
        if ending.ttft_ms is not None:
            self._ttft.observe(ending.ttft_ms / 1000)
            if answer.num_tokens > 1:
                self._tpot.observe((observed_s - ending.ttft_ms / 1000) / (answer.num_tokens - 1))
        if promise is not None:
            self._predicted.observe(promise.predicted_ms / 1000)
            self._bounds.observe(promise.bound_ms / 1000)
            self._observed.observe(observed_s)
            self._promised.labels(str(ending.observed_ms <= promise.bound_ms).lower()).inc()
        budget = answer.request.contract.budget
        if budget is not None and budget.e2e_ms is not None:
            self._tardiness.observe(max(0.0, observed_s - budget.e2e_ms / 1000))


def _seconds(name: str, what: str, registry: Any, labels: Iterable[str] = ()) -> Any:
    return Histogram(name, what, list(labels), buckets=_SECONDS, registry=registry)


class _StateCollector:
    """Asks the service when it is asked itself."""

    def __init__(self, service: GenerationService, model: str) -> None:
        self._service = service
        self._model = model

    def collect(self) -> Iterable[Any]:
        """The state at this moment."""
        state = self._service.state()
        used = state["kv_tokens"] / max(1, state["kv_capacity_tokens"])
        yield from self._both("requests_running", "num_requests_running", "Requests that run", state["running"])
        yield from self._both("requests_waiting", "num_requests_waiting", "Requests that wait", state["waiting"])
        yield from self._both("kv_usage_ratio", "kv_cache_usage_perc", "Share of the cache in use, 0 to 1", used)
        yield _gauge("blockexport_slowdown_factor", "How much slower than profiled", [({}, state["slowdown"])])
        coverage = numbers(state["coverage"])
        parts = [({"of": part}, value) for part, value in coverage.items()]
        yield _gauge("blockexport_coverage_ratio", "Share within their bounds", parts)
        breakers = [
            ({"level": level["name"], "state": name}, float(_same(level["breaker"], name)))
            for level in state["levels"]
            for name in _BREAKERS
        ]
        yield _gauge("blockexport_breaker_state", "1 for the state that the breaker of a level is in", breakers)

    def _both(self, own: str, alias: str, what: str, value: float) -> Iterable[Any]:
        yield _gauge(f"blockexport_{own}", what, [({}, value)])
        yield _gauge(f"vllm:{alias}", what, [({"model_name": self._model}, value)])


def numbers(found: Any) -> dict[str, float]:
    """Figures by name; one without a name is called `all`, and what is not known yet is left out."""
    named = found if isinstance(found, Mapping) else {"all": found}
    return {name: float(value) for name, value in named.items() if value is not None}


def _same(breaker: str, name: str) -> bool:
    return breaker.replace("_", "-") == name


def _gauge(name: str, what: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> Any:
    samples = list(samples)
    family = GaugeMetricFamily(name, what, labels=list(samples[0][0]) if samples else [])
    for labels, value in samples:
        family.add_metric(list(labels.values()), value)
    return family
