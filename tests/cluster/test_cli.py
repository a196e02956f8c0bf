"""The `kitbash` command as people run it, against the running cluster."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from actors.haproxy import free_port
from kitbash_ray import Kitbash
from kitbash_ray.config import PROJECT

from .harness import ATP, FICTION, KITBASH, UNKNOWN, Cluster, eventually, fact_text, is_free, naming, run

KEYS = {"query_id", "query", "status", "answer", "layer", "confidence", "sources", "path", "latency_ms"}
ESCAPE = "\x1b"
#: A foreground or background colour among the codes of a sequence.
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:[349][0-8]|10[0-7])[;m]")


def one_object(text: str) -> dict[str, object]:
    """The one JSON object that is all of `text`."""
    assert len(text.strip().splitlines()) == 1, text
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def test_ask_with_json_prints_one_object_and_nothing_else(cluster: Cluster) -> None:
    done = cluster.command("ask", "--json", "--mode", "redis", "What is ATP?")
    assert done.returncode == 0, done.stderr
    answer = one_object(done.stdout)
    assert set(answer) >= KEYS
    assert (answer["query"], answer["status"], answer["layer"]) == ("What is ATP?", "answered", "grain")
    assert answer["answer"] == fact_text(ATP)
    assert answer["recorded"] is True
    assert done.stderr == ""


def test_the_words_of_a_question_need_no_quotes(cluster: Cluster) -> None:
    assert one_object(cluster.command("ask", "--json", "What", "is", "ATP?").stdout)["query"] == "What is ATP?"


def test_ask_shows_the_answer_its_source_and_its_path(cluster: Cluster) -> None:
    done = cluster.command("ask", "What is ATP?", COLUMNS="200")
    assert done.returncode == 0
    for part in ("ATP (adenosine triphosphate)", "confidence", f"biochemistry:{ATP}", "Berg", "grain", "total"):
        assert part in done.stdout


def test_ask_from_a_pipe_answers_line_by_line_in_order(cluster: Cluster) -> None:
    questions = ["What is ATP?", UNKNOWN, "What does ray status print?", "Wie heißt das? 💥", "What is ATP?"]
    done = cluster.command("ask", "-", stdin="\n".join([questions[0], "", "  ", *questions[1:]]))
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["query"] for answer in answers] == questions
    assert all(set(answer) >= KEYS for answer in answers)


def test_a_bad_line_of_a_pipe_gets_its_object_and_the_others_their_answers(cluster: Cluster) -> None:
    done = cluster.command("ask", "-", stdin="What is ATP?\n" + "a" * 9000 + "\nWhat is ATP?\n")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["status"] for answer in answers] == ["answered", "failed", "answered"]
    assert "9000" in answers[1]["reason"]
    assert done.returncode == 1


def test_a_nul_in_a_line_costs_that_line_only(cluster: Cluster) -> None:
    done = cluster.command("ask", "-", stdin=b"What is ATP?\nWhat\0is ATP?\n\xff\xfe?\nWhat is ATP?\n")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == 4, done.stderr
    assert (answers[0]["answer"], answers[3]["answer"]) == (fact_text(ATP),) * 2
    assert "Traceback" not in done.stderr


def test_ask_of_a_faction_and_of_a_cartridge(cluster: Cluster) -> None:
    question = FICTION["asks"][0]
    assert one_object(cluster.command("ask", "--json", "--faction", "fiction", question).stdout)["answer"] == FICTION["fact"]
    assert one_object(cluster.command("ask", "--json", question).stdout)["answer"] != FICTION["fact"]
    assert one_object(cluster.command("ask", "--json", "--cartridge", "ray_redis", "What is ATP?").stdout)["layer"] != "grain"


def test_direct_mode_answers_in_this_process_from_a_folder(cluster: Cluster) -> None:
    done = cluster.command("ask", "--json", "--mode", "direct", "--cartridges", str(PROJECT / "cartridges"), "What is ATP?")
    assert done.returncode == 0, done.stderr
    answer = one_object(done.stdout)
    assert (answer["answer"], answer["layer"], answer["recorded"]) == (fact_text(ATP), "grain", False)


def test_status_shows_the_layers_and_where_everything_is(cluster: Cluster) -> None:
    done = cluster.command("status", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    for part in (
        "grain",
        "bitnet",
        "cartridge",
        "kobold",
        "ready",
        cluster.url,
        str(cluster.pid("kobold")),
        "redis.sock",
        "token",
    ):
        assert part in done.stdout
    assert cluster.token not in done.stdout


def test_status_as_json_is_one_object(cluster: Cluster) -> None:
    done = cluster.command("status", "--json")
    found = one_object(done.stdout)
    assert found["health"] == {"status": "ok"}
    assert found["cluster"]["url"] == cluster.url  # type: ignore[index]
    assert [layer["layer"] for layer in found["layers"]] == ["grain", "bitnet", "cartridge", "kobold"]  # type: ignore[attr-defined]
    assert cluster.token not in done.stdout


def start(cluster: Cluster, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(KITBASH), *arguments], env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("as_json", [False, True])
def test_feed_shows_questions_until_ctrl_c_and_exits_with_130(cluster: Cluster, client: Kitbash, as_json: bool) -> None:
    following = start(cluster, "feed", *(["--json"] if as_json else []))
    assert following.stdout
    try:
        heard = eventually(
            lambda: client.ask("What is ATP?") and _readable(following.stdout.fileno()), 30, "the feed shows something"
        )
        assert heard
        line = following.stdout.readline()
        assert (json.loads(line)["query_id"] if as_json else line.split()[1]).startswith("q_")
    finally:
        following.send_signal(signal.SIGINT)
        _, errors = following.communicate(timeout=20)
    assert following.returncode == 130
    assert "Traceback" not in errors


def _readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0.2)[0])


def test_feed_into_a_closed_pipe_ends_quietly(cluster: Cluster, client: Kitbash) -> None:
    client.ask("What is ATP?")
    done = run(["bash", "-c", f"{KITBASH} feed --after 0 | head -n 1"], cluster.environment)
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


class Terminal:
    """A `kitbash` command at a terminal of its own."""

    def __init__(self, cluster: Cluster, *arguments: str, **changes: str) -> None:
        self._master, slave = pty.openpty()
        environment = {**cluster.environment, "TERM": "xterm-256color", "COLUMNS": "160", **changes}
        self.process = subprocess.Popen([str(KITBASH), *arguments], env=environment, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self.shown = ""

    def type(self, line: str) -> None:
        os.write(self._master, line.encode() + b"\n")

    def wait_for(self, *parts: str, seconds: float = 40) -> str:
        """What was shown since the last call, up to all of `parts`."""
        end, text = time.monotonic() + seconds, ""
        while not all(part in plain(text) for part in parts):
            assert time.monotonic() < end, f"{parts} not in {plain(text)!r}"
            if _readable(self._master):
                text += os.read(self._master, 65536).decode(errors="replace")
        self.shown += text
        return plain(text)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.fixture
def chat(cluster: Cluster) -> Iterator[Terminal]:
    terminal = Terminal(cluster, "chat")
    yield terminal
    terminal.close()


def test_a_chat_at_a_terminal(chat: Terminal) -> None:
    chat.wait_for("redis mode", "> ")
    chat.type("What is ATP?")
    assert "grain" in chat.wait_for("adenosine triphosphate", "> ")
    chat.type("/why")
    chat.wait_for("question", f"biochemistry:{ATP}", "total", "> ")
    chat.type("/feed")
    chat.wait_for("query.received", "layer.finished", "query.finished", "> ")
    chat.type("/layers")
    chat.wait_for("kobold", "ready", "> ")
    chat.type("And why is that?")
    assert "a follow-up that does not stand on its own" in chat.wait_for("kobold", "> ")
    chat.type("/new")
    chat.wait_for("forgotten", "> ")
    chat.type("/nonsense")
    chat.wait_for("No such command", "/quit", "> ")
    chat.type("/quit")
    assert chat.process.wait(10) == 0
    assert ESCAPE in chat.shown


def test_a_chat_survives_ctrl_c_at_the_prompt_by_leaving(chat: Terminal) -> None:
    chat.wait_for("> ")
    # A press just before input() waits is kept by Python until the next key; people press again then.
    for _ in range(3):
        chat.process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            assert chat.process.wait(5) == 0
            return
    raise AssertionError("the chat does not end")


def test_a_chat_from_a_pipe_ends_at_its_end(cluster: Cluster) -> None:
    done = cluster.command("chat", stdin="What is ATP?\n/why\n/layers\n/feed\n/help\n")
    assert done.returncode == 0, done.stderr
    assert "adenosine triphosphate" in done.stdout
    assert "Traceback" not in done.stderr


def test_up_says_that_it_runs_already(cluster: Cluster) -> None:
    done = cluster.command("up")
    assert done.returncode == 0, done.stderr
    assert "already running" in done.stderr
    assert cluster.url in done.stdout


def test_without_a_cluster_commands_exit_with_6_and_one_sentence(cluster: Cluster, tmp_path: Path) -> None:
    nowhere = {"KITBASH_STATE_DIR": str(tmp_path / "state"), "KITBASH_TOKEN": "a" * 24, "KITBASH_PORT": str(free_port())}
    for command in (["status"], ["ask", "--mode", "redis", "What is ATP?"], ["feed"]):
        done = cluster.command(*command, **nowhere)
        assert done.returncode == 6, (command, done.stderr)
        assert done.stdout == ""
        assert done.stderr.startswith("kitbash: ")
        assert done.stderr.count("\n") == 1
        assert "kitbash up" in done.stderr


def test_down_without_a_cluster_says_so(cluster: Cluster, tmp_path: Path) -> None:
    done = cluster.command("down", KITBASH_STATE_DIR=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "nothing was running\n")


def test_a_wrong_token_is_one_sentence(cluster: Cluster) -> None:
    done = cluster.command("ask", "--mode", "redis", "What is ATP?", KITBASH_TOKEN="wrong" * 5)
    assert done.returncode == 7
    assert done.stderr.startswith("kitbash: A token is needed")


@pytest.mark.parametrize(
    ("name", "value"),
    [("KITBASH_PORT", "eighty"), ("KITBASH_PROT", "8000"), ("KITBASH_MAX_ERROR", "2"), ("KITBASH_TOKEN", "short")],
)
def test_a_bad_setting_is_one_sentence_and_exit_code_2(cluster: Cluster, name: str, value: str) -> None:
    for command in (["status"], ["up"], ["ask", "What is ATP?"]):
        done = cluster.command(*command, **{name: value})
        assert done.returncode == 2, done.stderr
        assert name in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask"],
        ["ask", ""],
        ["ask", "a" * 9000],
        ["ask", "--faction", "romance", "a"],
        ["ask", "--max-error", "2", "a"],
        ["nonsense"],
    ],
)
def test_a_bad_command_line_is_exit_code_2(cluster: Cluster, arguments: list[str]) -> None:
    done = cluster.command(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["ask", "What is ATP?"], ["status"], ["--help"]])
def test_no_color_gives_no_colour_even_at_a_terminal(cluster: Cluster, arguments: list[str]) -> None:
    """Bold and dim remain, as https://no-color.org allows."""
    shown = {}
    for name, changes in (("colour", {}), ("none", {"NO_COLOR": "1"})):
        terminal = Terminal(cluster, *arguments, **changes)
        shown[name] = _until_end(terminal)
        terminal.close()
    assert COLOUR.search(shown["colour"])
    assert not COLOUR.search(shown["none"]), shown["none"]


def _until_end(terminal: Terminal) -> str:
    text = b""
    while True:
        try:
            piece = os.read(terminal._master, 65536)
        except OSError:  # the other end is closed
            break
        text += piece
    terminal.process.wait(10)
    return text.decode()


def test_output_into_a_pipe_has_no_escape_codes(cluster: Cluster) -> None:
    for command in (["ask", "What is ATP?"], ["status"], ["up"], ["--help"]):
        done = cluster.command(*command, NO_COLOR="1")
        assert ESCAPE not in done.stdout + done.stderr


@pytest.mark.parametrize("which", ["KITBASH_PORT", "KITBASH_DASHBOARD_PORT"])
def test_a_taken_port_is_one_sentence_and_nothing_stays(cluster: Cluster, tmp_path: Path, which: str) -> None:
    ports = {"KITBASH_PORT": str(free_port()), "KITBASH_DASHBOARD_PORT": str(free_port())}
    taken = cluster.settings.kitbash_port
    state = tmp_path / "s"
    done = cluster.command("up", **{**ports, which: str(taken), "KITBASH_STATE_DIR": str(state)})
    assert done.returncode == 6
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"kitbash: Port {taken} is taken")
    assert which in last
    assert not (state / "cluster.json").exists()
    assert not naming(str(state))
    assert all(is_free(int(port)) for name, port in ports.items() if name != which)
