"""Metrics, the page, and what it asks for."""

import re
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from blockexport.serving.service import Ending

ASK: dict[str, Any] = {"model": "tiny", "prompt": "w1", "max_tokens": 6, "blockexport": {"budget_ms": 11}}


def samples(client: TestClient) -> dict[str, float]:
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.text)
    return {
        sample.name + "".join(f",{value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith(("_bucket", "_created"))
    }


def test_metrics_count_what_was_answered(client: TestClient, service: Any) -> None:
    assert client.post("/v1/completions", json=ASK).status_code == 200
    service.refuse = Ending("shed", None, "no room", {}, 0, None, 0.1, False, retry_after_ms=10)
    assert client.post("/v1/completions", json=ASK).status_code == 429
    found = samples(client)
    assert found["blockexport_requests_total,served"] == 1
    assert found["blockexport_requests_total,shed"] == 1
    assert found["blockexport_delivered_tokens_total,4,d4"] == 4
    assert found["blockexport_delivered_tokens_total,2,d2"] == 2
    assert found["blockexport_level_switches_total"] == 1
    assert found["blockexport_promises_total,true"] == 1
    # Predicted and observed in pairs, of the same requests.
    assert found["blockexport_predicted_seconds_count"] == found["blockexport_observed_seconds_count"] == 1
    assert found["blockexport_predicted_seconds_sum"] == 0.01
    assert found["blockexport_observed_seconds_sum"] == 0.012
    assert round(found["blockexport_tardiness_seconds_sum"], 6) == 0.001
    assert found["blockexport_slowdown_factor"] == 1.25
    assert found["blockexport_coverage_ratio,steps"] == 0.96
    assert found["blockexport_breaker_state,d4,closed"] == 1
    assert found["blockexport_breaker_state,d4,open"] == 0


def test_the_names_of_vllm_are_there(client: TestClient) -> None:
    assert client.post("/v1/completions", json=ASK).status_code == 200
    found = samples(client)
    assert found["vllm:num_requests_waiting,tiny"] == 3
    assert found["vllm:prompt_tokens_total,tiny"] == 1
    assert found["vllm:generation_tokens_total,tiny"] == 6
    assert found["vllm:request_success_total,length,tiny"] == 1
    assert found["vllm:inter_token_latency_seconds_count,tiny"] == 5
    for name in ("time_to_first_token_seconds", "time_per_output_token_seconds", "e2e_request_latency_seconds"):
        assert found[f"vllm:{name}_count,tiny"] == 1
    assert {"vllm:num_requests_running,tiny", "vllm:kv_cache_usage_perc,tiny"} <= found.keys()


def test_status_tells_the_page(client: TestClient) -> None:
    assert client.post("/v1/completions", json=ASK).status_code == 200
    told = client.get("/status").json()
    assert told["model"] == "tiny"
    assert [(level["name"], level["breaker"]) for level in told["levels"]] == [("d4", "closed"), ("d2", "closed")]
    recent = told["recent"]
    assert (recent["count"], recent["attainment"], recent["bounds_kept"]) == (1, 1, 1)
    assert recent["mean_depth"] == (4 * 4 + 2 * 2) / 6
    (one,) = recent["requests"]
    assert (one["observed_ms"], one["predicted_ms"], one["bound_ms"], one["budget_ms"]) == (12, 10, 20, 11)


def test_the_page_is_whole_and_asks_nobody_else(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = answer.text
    assert re.findall(r"""(?:src|href)=["']""", page) == []
    assert set(re.findall(r"https?://[^\s\"']+", page)) == {"http://www.w3.org/2000/svg"}
    ids = set(re.findall(r'id="(\w+)"', page))
    assert set(re.findall(r'\$\("(\w+)"\)', page)) <= ids
