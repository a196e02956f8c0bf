"""What the record of past questions tells: why, replay, feedback, report; and asking with a key."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from kitbash_ray import Kitbash
from kitbash_ray.errors import ClientError

from .harness import Cluster

QUESTION = "What is ATP?"
#: Layer 0 answers it from its evidence, not by an exact match.
PARAPHRASE = "Which molecule is the main energy currency of the cell?"


@pytest.fixture
def asked(client: Kitbash) -> str:
    """The id of a question that layer 0 answered by an exact match."""
    answer = client.ask(QUESTION)
    assert (answer.status, answer.layer) == ("answered", "grain")
    return answer.query_id


def test_why_tells_each_decision_with_its_rule_and_the_calibration(cluster: Cluster, client: Kitbash) -> None:
    answer = client.ask("Which molecule is the main energy currency of the cell?")
    done = cluster.command("why", answer.query_id, "--evidence", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert answer.calibration
    for part in ("energy currency of the cell", "next-layer", "ask grain", answer.policy, answer.calibration, "uncovered"):
        assert str(part) in done.stdout


def test_why_and_replay_of_an_unknown_question_say_so(cluster: Cluster) -> None:
    for command in ("why", "replay"):
        done = cluster.command(command, "q_0000000000000000")
        assert done.returncode == 7
        assert "There is no query" in done.stderr
        assert "Traceback" not in done.stderr


def test_replay_decides_anew_with_the_other_policy(cluster: Cluster, asked: str) -> None:
    done = cluster.command("replay", asked, "--policy", "fixed", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert "fixed-threshold" in done.stdout
    assert "calibrated/within-budget" in done.stdout


def test_replay_says_which_layer_was_not_asked_then(cluster: Cluster, client: Kitbash) -> None:
    answer = client.ask(PARAPHRASE)
    assert (answer.status, answer.layer, len(answer.path)) == ("answered", "grain", 1)
    done = cluster.command("replay", answer.query_id, "--policy", "calibrated", "--max-error", "0.001", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert "was not asked then" in done.stdout


def test_feedback_is_on_the_blackboard_in_the_events_and_in_the_report(cluster: Cluster, client: Kitbash, asked: str) -> None:
    before = json.loads(cluster.command("report", "--json").stdout)
    done = cluster.command("feedback", asked, "wrong")
    assert (done.returncode, done.stdout.strip()) == (0, "noted")
    assert client.query(asked)["judged"] == "wrong"
    last = client.events(asked)[-1]
    assert (last.kind, last.right, last.layer) == ("query.judged", False, "grain")
    after = json.loads(cluster.command("report", "--json").stdout)
    assert (after["judged"], after["wrong"]) == (before["judged"] + 1, before["wrong"] + 1)
    client.feedback(asked, right=True)
    assert client.query(asked)["judged"] == "right"


def test_feedback_on_what_was_not_answered_is_refused(client: Kitbash) -> None:
    with pytest.raises(ClientError, match="There is no answer"):
        client.feedback("q_0000000000000000", right=True)


@pytest.mark.parametrize("body", ["", "{}", '{"right": "yes"}', '{"right": true, "more": 1}', "[]", "nothing"])
def test_bad_feedback_gets_a_sentence(http: httpx.Client, asked: str, body: str) -> None:
    reply = http.post(f"/v1/queries/{asked}/feedback", content=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"]


def test_the_report_has_every_layer_that_was_asked(cluster: Cluster, client: Kitbash, asked: str) -> None:
    client.ask("Who won the football match yesterday evening?", max_error=0.01)
    report = json.loads(cluster.command("report", "--json").stdout)
    assert report["queries"] == sum(report[status] for status in ("answered", "abstained", "failed", "cancelled"))
    assert {layer["layer"] for layer in report["layers"]} == {"grain", "bitnet", "cartridge", "kobold"}
    grain = report["layers"][0]
    assert 0 < grain["hit_rate"] <= 1
    assert 0 < grain["p50_ms"] <= grain["p95_ms"] <= grain["p99_ms"]
    shown = cluster.command("report", "--since", "1h", COLUMNS="200").stdout
    assert "hit rate" in shown
    assert "grain" in shown


def test_a_report_on_nonsense_time_is_refused(cluster: Cluster) -> None:
    done = cluster.command("report", "--since", "yesterday")
    assert done.returncode == 2
    assert "90m" in done.stderr


def test_the_feed_without_following_ends(http: httpx.Client, asked: str) -> None:
    reply = http.get("/v1/feed?after=0&follow=false")
    assert reply.status_code == 200
    assert asked in reply.text
    assert http.get("/v1/feed?follow=maybe").status_code == 400


def test_eval_counts_right_wrong_and_abstained(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(
        '{"query": "What is ATP?", "expected": ["biochemistry:atp-energy-currency"], "kind": "ask"}\n'
        '{"query": "What is ATP?", "answers": ["main energy currency"], "kind": "ask"}\n'
        '{"query": "What is ATP?", "expected": [], "kind": "trap"}\n'
    )
    pictures = tmp_path / "pictures"
    done = cluster.command("eval", str(file), "--mode", "redis", "--json", "--plots", str(pictures))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["questions"], found["right"], found["wrong"], found["abstained"]) == (3, 2, 1, 0)
    assert found["kinds"]["trap"]["wrong"] == 1
    assert found["layers"]["grain"]["asked"] == 3
    for name in ("risk_coverage.png", "reliability.png"):
        assert (pictures / name).read_bytes().startswith(b"\x89PNG")


def test_eval_of_a_bad_file_names_the_line(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"query": "fine"}\n{"question": "x"}\n')
    done = cluster.command("eval", str(tmp_path / "bad.jsonl"))
    assert done.returncode == 3
    assert "bad.jsonl:2" in done.stderr


def test_a_key_asks_with_its_own_budget_until_it_is_removed(cluster: Cluster) -> None:
    key = cluster.command("key", "add", "strict", "--max-error", "0.0011").stdout.strip()
    try:
        assert "strict" in cluster.command("key", "list").stdout
        with cluster.http(headers={"Authorization": f"Bearer {key}"}) as http:
            answer = http.post("/v1/query", json={"query": "Which molecule is the main energy currency of the cell?"}).json()
            own = http.post("/v1/query", json={"query": "Which molecule is the main energy currency?", "max_error": 0.5}).json()
        assert answer["status"] == "abstained"
        assert own["status"] == "answered"
    finally:
        cluster.command("key", "remove", "strict")
    with cluster.http(headers={"Authorization": f"Bearer {key}"}) as http:
        assert http.get("/v1/layers").status_code == 401
