"""What the front door answers, and what it shows of how it got there."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest

from kitbash_ray import Kitbash, __version__
from kitbash_ray.types import Answer, Event, Turn, decode

from .conftest import MAX_IN_FLIGHT
from .harness import ATP, FICTION, UNKNOWN, Cluster, eventually, fact_text, stopped

FOLLOW_UP = (Turn("user", "What is ATP?"), Turn("assistant", "The main energy currency of cells."))


def cartridges(answer: Answer) -> set[str]:
    return {source.cartridge for source in answer.sources}


def test_a_stored_question_is_answered_by_layer_0_with_its_fact_and_source(client: Kitbash) -> None:
    answer = client.ask("What is ATP?")
    assert (answer.status, answer.layer, answer.answer) == ("answered", "grain", fact_text(ATP))
    assert [source.fact_id for source in answer.sources] == [f"biochemistry:{ATP}"]
    assert answer.sources[0].reference
    assert answer.confidence
    assert answer.confidence > 0.9
    assert [step.layer for step in answer.path] == ["grain"]


def test_capitals_spaces_and_a_missing_question_mark_do_not_matter(client: Kitbash) -> None:
    assert client.ask("  what IS  atp ").answer == fact_text(ATP)


def test_a_paraphrase_finds_the_same_fact_by_meaning(client: Kitbash) -> None:
    answer = client.ask("Which molecule is the main energy currency of the cell?")
    assert (answer.layer, answer.answer) == ("grain", fact_text(ATP))
    assert answer.confidence
    assert answer.confidence < client.ask("What is ATP?").confidence  # type: ignore[operator]


TWO_FACTS = "Where do glycolysis and the citric acid cycle take place?"


def test_a_question_for_two_facts_gets_both_as_sources_from_retrieval(client: Kitbash) -> None:
    asked = client.ask(TWO_FACTS, max_error=0.0001)  # no layer is that sure, so all are asked
    found = next(event.result for event in client.events(asked.query_id) if event.result and event.layer == "cartridge")
    assert all(source.reference and source.score for source in found.sources)
    assert {source.fact_id for source in found.sources[:2]} == {
        "biochemistry:glycolysis-location-oxygen",
        "biochemistry:citric-acid-cycle-location",
    }


def test_a_question_for_two_facts_is_answered_from_both(client: Kitbash) -> None:
    asked = client.ask(TWO_FACTS, max_error=0.0001)
    found = next(event.result for event in client.events(asked.query_id) if event.result and event.layer == "cartridge")
    assert found.text
    assert all(source.text in found.text for source in found.sources[:2])
    assert [mark in found.text for mark in ("[1]", "[2]", "[3]")] == [True, True, False]


def test_a_follow_up_does_not_hit_a_grain(client: Kitbash) -> None:
    answer = client.ask("And why is that?", history=FOLLOW_UP)
    outcomes = {step.layer: step.outcome for step in answer.path}
    assert (outcomes["grain"], outcomes["cartridge"]) == ("abstained", "abstained")
    assert answer.layer not in ("grain", "cartridge")


def test_a_question_that_stands_alone_hits_its_grain_in_a_conversation_too(client: Kitbash) -> None:
    assert client.ask("How many ATP does glycolysis make net?", history=FOLLOW_UP).layer == "grain"


@pytest.mark.parametrize("question", [*FICTION["asks"], FICTION["fact"], "Empress Vell the Ninth of Zarquon"])
def test_fiction_never_answers_a_general_question(client: Kitbash, question: str) -> None:
    answer = client.ask(question)
    assert "zarquon" not in cartridges(answer)
    assert FICTION["fact"] not in (answer.answer or "")


def test_fiction_answers_whoever_asks_for_it(client: Kitbash) -> None:
    answer = client.ask(FICTION["asks"][0], factions=["fiction"])
    assert (answer.layer, answer.answer, cartridges(answer)) == ("grain", FICTION["fact"], {"zarquon"})


def test_a_question_for_one_cartridge_is_not_answered_from_another(client: Kitbash) -> None:
    assert cartridges(client.ask("What is ATP?", cartridges=["ray_redis"])) <= {"ray_redis"}
    assert client.ask("What is ATP?", cartridges=["biochemistry"]).answer == fact_text(ATP)


def test_a_strict_error_budget_makes_it_abstain_rather_than_guess(client: Kitbash) -> None:
    answer = client.ask(UNKNOWN, max_error=0.01)
    assert (answer.status, answer.answer, answer.layer) == ("abstained", None, None)
    assert answer.candidate


def test_the_stream_shows_every_layer_and_the_words_of_the_generative_one(client: Kitbash) -> None:
    events = list(client.stream(UNKNOWN))
    assert [event.seq for event in events] == list(range(len(events)))
    assert events[0].kind == "query.received"
    assert events[-1].kind == "query.finished"
    assert [event.layer for event in events if event.kind == "layer.started"] == ["grain", "bitnet", "cartridge", "kobold"]
    said = "".join(event.text or "" for event in events if event.kind == "layer.delta" and event.layer == "kobold")
    assert events[-1].answer
    assert events[-1].answer.answer == said.strip()
    assert said.strip()


def test_the_stream_is_server_sent_events_with_ids(http: httpx.Client) -> None:
    with http.stream("POST", "/v1/query/stream", json={"query": "What is ATP?"}) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        blocks = reply.read().decode().strip().split("\n\n")
    assert blocks[0].startswith("id: 0\nevent: query.received\ndata: {")
    assert "event: query.finished" in blocks[-1]


@pytest.mark.parametrize("question", ["What is ATP?", UNKNOWN])
def test_state_and_events_are_there_right_after_the_reply(client: Kitbash, question: str) -> None:
    for _ in range(5):
        answer = client.ask(question)
        state = client.query(answer.query_id)
        assert (state["state"], state["text"]) == (answer.status, question)
        assert state["answer"]["answer"] == answer.answer
        events = client.events(answer.query_id)
        assert [event.seq for event in events] == list(range(len(events)))
        assert events[-1].answer == answer
        assert answer.recorded


def test_the_feed_shows_another_clients_question_as_it_happens(cluster: Cluster, client: Kitbash) -> None:
    with Kitbash(settings=cluster.settings) as watching:
        feed = watching.feed()
        seen: list[Event] = []
        following = threading.Thread(target=_read_until_finished, args=(feed, seen), daemon=True)
        following.start()
        # The feed begins "from now on", which the watcher cannot tell us: ask until it has heard something.
        eventually(lambda: client.ask("What is ATP?") and seen, 20, "the feed shows a question")
        following.join(10)
    assert not following.is_alive()
    assert {event.kind for event in seen} >= {"query.received", "query.finished"}


def _read_until_finished(feed: Iterator[Event], seen: list[Event]) -> None:
    for event in feed:
        seen.append(event)
        if event.kind == "query.finished" and any(e.kind == "query.received" and e.query_id == event.query_id for e in seen):
            return


def test_the_feed_goes_on_after_the_last_event_id(cluster: Cluster, client: Kitbash) -> None:
    first, second = client.ask("What is ATP?"), client.ask(UNKNOWN)
    client.query(second.query_id)  # both are recorded now
    entries = _feed_until(cluster, "0", second.query_id)
    place = next(entry_id for entry_id, event in entries if event.query_id == first.query_id and event.answer)
    again = _feed_until(cluster, place, second.query_id)
    assert again[0][1].query_id == second.query_id
    assert again[0][1].kind == "query.received"


def _feed_until(cluster: Cluster, after: str, query_id: str) -> list[tuple[str, Event]]:
    """The entries of the feed after `after` until `query_id` is finished."""
    entries: list[tuple[str, Event]] = []
    entry_id = ""
    with cluster.http() as http, http.stream("GET", "/v1/feed", headers={"Last-Event-ID": after}) as reply:
        for line in reply.iter_lines():
            if line.startswith("id: "):
                entry_id = line.removeprefix("id: ")
            elif line.startswith("data: "):
                event = decode(Event, line.removeprefix("data: "))
                entries.append((entry_id, event))
                if event.query_id == query_id and event.answer:
                    break
    return entries


def test_the_layers_are_listed_with_number_device_and_process(client: Kitbash) -> None:
    layers = client.layers()
    assert [(layer["layer"], layer["number"]) for layer in layers] == [
        ("grain", 0),
        ("bitnet", 1),
        ("cartridge", 2),
        ("kobold", 4),
    ]
    for layer in layers:
        assert layer["state"] == "ready"
        assert layer["node"]
        assert int(layer["pid"]) > 1
        assert layer["version"] == __version__
        assert float(layer["since"]) < time.time()
    assert {layer["layer"]: layer["device"] for layer in layers} == {
        "grain": "gpu_1060", "bitnet": "device_b", "cartridge": "device_b", "kobold": "device_c",
    }  # fmt: skip


def test_health_and_the_description_need_no_token(stranger: httpx.Client) -> None:
    for path in ("/health/live", "/health/ready", "/health/startup"):
        reply = stranger.get(path)
        assert (reply.status_code, reply.json()) == (200, {"status": "ok"})
    docs = stranger.get("/docs")
    assert docs.status_code == 200
    assert "/openapi.json" in docs.text


def test_the_openapi_document_is_whole(stranger: httpx.Client) -> None:
    document = stranger.get("/openapi.json").json()
    assert document["openapi"].startswith("3.")
    assert document["info"]["title"] == "Kitbash"
    assert {path for path in document["paths"] if path.startswith("/v1")} == {
        "/v1/query", "/v1/query/stream", "/v1/queries/{query_id}", "/v1/queries/{query_id}/events",
        "/v1/queries/{query_id}/feedback", "/v1/feed", "/v1/layers", "/v1/replicas", "/v1/layers/{layer}/adapter",
        "/v1/layers/{layer}/adapter/rollback", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models",
        "/v1/models/{name}", "/v1/queries", "/v1/queue", "/v1/dead-letters", "/v1/dead-letters/{query_id}",
        "/v1/dead-letters/{query_id}/requeue", "/v1/work/{layer}/claim", "/v1/work/{layer}/{work_id}/result",
        "/v1/work/{layer}/heartbeat",
    }  # fmt: skip
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(operation["summary"] and operation["responses"] for operation in operations)


def _dangling(node: object, document: dict[str, object]) -> list[str]:
    """References of an OpenAPI document that lead nowhere."""
    if isinstance(node, list):
        return [bad for item in node for bad in _dangling(item, document)]
    if not isinstance(node, dict):
        return []
    bad = [bad for item in node.values() for bad in _dangling(item, document)]
    if isinstance(reference := node.get("$ref"), str):
        place: object = document
        for part in reference.removeprefix("#/").split("/"):
            place = place.get(part) if isinstance(place, dict) else None
        bad += [] if place else [reference]
    return bad


def test_every_reference_of_the_openapi_document_leads_somewhere(stranger: httpx.Client) -> None:
    document = stranger.get("/openapi.json").json()
    assert _dangling(document, document) == []


def test_the_openapi_document_declares_the_query_ids_of_its_paths(stranger: httpx.Client) -> None:
    document = stranger.get("/openapi.json").json()
    for path in ("/v1/queries/{query_id}", "/v1/queries/{query_id}/events"):
        declared = [parameter["name"] for parameter in document["paths"][path]["get"].get("parameters", [])]
        assert declared == ["query_id"]


def test_under_overload_it_says_429_and_when_to_come_back(cluster: Cluster, http: httpx.Client) -> None:
    with ThreadPoolExecutor(MAX_IN_FLIGHT) as pool:
        with stopped(cluster.pid("kobold")):  # what reaches layer 4 stays there, so every place is taken for sure
            held = [pool.submit(_ask, cluster, f"{UNKNOWN} {number}") for number in range(MAX_IN_FLIGHT)]
            refused = eventually(lambda: _refused(http, "/v1/query"), 10, "a question is refused")
            streamed = _refused(http, "/v1/query/stream")
        answered = [future.result().status_code for future in held]
    assert answered == [200] * MAX_IN_FLIGHT
    for reply in (refused, streamed):
        assert reply
        assert int(reply.headers["retry-after"]) >= 1
        assert reply.json()["error"]["type"] == "overloaded"
    assert http.post("/v1/query", json={"query": "What is ATP?"}).status_code == 200


def _ask(cluster: Cluster, question: str) -> httpx.Response:
    with cluster.http() as http:
        return http.post("/v1/query", json={"query": question})


def _refused(http: httpx.Client, path: str) -> httpx.Response | None:
    reply = http.post(path, json={"query": "What is ATP?"})
    return reply if reply.status_code == 429 else None


def test_a_streamed_question_whose_client_is_gone_is_cancelled_though_the_layer_is_silent(
    cluster: Cluster, client: Kitbash
) -> None:
    with stopped(cluster.pid("kobold")):
        left = [_leave_at_layer_4(cluster) for _ in range(3)]
        eventually(lambda: {client.query(query_id)["state"] for query_id in left} == {"cancelled"}, 1, "all are cancelled")


def test_questions_whose_clients_are_gone_take_no_place(cluster: Cluster, client: Kitbash) -> None:
    questions = {f"{UNKNOWN} {number}" for number in range(MAX_IN_FLIGHT)}
    with stopped(cluster.pid("kobold")):
        with ThreadPoolExecutor(MAX_IN_FLIGHT) as pool:
            list(pool.map(lambda question: _leave_after(cluster, question, 1.5), sorted(questions)))
        eventually(lambda: questions <= _cancelled(client), 3, "every question is cancelled")


def _cancelled(client: Kitbash) -> set[str]:
    answers = [event.answer for event in client.feed("0", follow=False) if event.answer]
    return {answer.query for answer in answers if answer.status == "cancelled"}


def _leave_at_layer_4(cluster: Cluster) -> str:
    """Ask, and close the connection while layer 4 is at work. Returns the question's id."""
    with cluster.http() as leaving, leaving.stream("POST", "/v1/query/stream", json={"query": UNKNOWN}) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: "):
                event = decode(Event, line.removeprefix("data: "))
                if event.kind == "layer.started" and event.layer == "kobold":
                    return event.query_id
    raise AssertionError("layer 4 was not asked")


def _leave_after(cluster: Cluster, question: str, seconds: float) -> None:
    with cluster.http() as leaving, suppress(httpx.ReadTimeout):
        leaving.post("/v1/query", json={"query": question}, timeout=seconds)


def test_a_deadline_ends_a_question_in_time_with_what_is_known_by_then(cluster: Cluster, client: Kitbash) -> None:
    with stopped(cluster.pid("kobold")):
        answer = client.ask(UNKNOWN, timeout_s=2)
    assert answer.status == "abstained"
    assert answer.path[-1].outcome == "timeout"
    assert 1000 < answer.latency_ms < 4000
