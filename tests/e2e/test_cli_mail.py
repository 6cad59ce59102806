"""`roost mail`: what it sends, what it shows, and what it says when it may not."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
from roost_server import DEADLINE, Api, Server, environment, fresh, roost

from roost.v1 import types_pb2 as types


def mail(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    return roost("mail", *arguments, "--target", server.address)


def test_send_list_and_wait(shared: Server, api: Api) -> None:
    name, sender = api.open().session.session_id, api.open().session.session_id
    sent = mail(
        shared, "send", name, "grüße\nan alle", "--from", sender, "--label", "a=b=c", "--trigger", "--ttl", "60"
    )
    assert (sent.returncode, sent.stderr) == (0, "")
    message_id = sent.stdout.strip()
    (there,) = api.list_mail(name)
    assert (there.message_id, there.content.decode(), there.sender_session_id) == (message_id, "grüße\nan alle", sender)
    assert (dict(there.labels), there.trigger, there.content_type) == ({"a": "b=c"}, True, "text/plain; charset=utf-8")
    assert there.expire_time.ToMilliseconds() == there.create_time.ToMilliseconds() + 60_000

    waited = json.loads(mail(shared, "wait", name, "-o", "json").stdout)
    assert (waited["queued"], waited["runnable"]) == (1, True)
    none = json.loads(mail(shared, "wait", name, "--wait", "0", "--after", str(waited["cursor"]), "-o", "json").stdout)
    assert none == {"queued": 0, "cursor": waited["cursor"], "runnable": True}

    api.turn(name)
    api.send(name, b"\xff\x00", ttl=3_600)
    shown = json.loads(mail(shared, "list", name, "-o", "json").stdout)
    assert [m["state"] for m in shown] == ["MESSAGE_STATE_CONSUMED", "MESSAGE_STATE_QUEUED"]
    assert (shown[0]["content"], shown[1]["content"]) == ("grüße\nan alle", None)
    assert base64.b64decode(shown[1]["content_base64"]) == b"\xff\x00"
    table = mail(shared, "list", name).stdout
    (first, second) = (line for line in table.splitlines() if name in line)
    assert message_id in first
    assert "consumed" in first
    assert "grüße an alle" in first
    assert "queued" in second
    listed = json.loads(mail(shared, "list", "--from", sender, "--omit-content", "-o", "json").stdout)
    assert [(m["message_id"], m["content"]) for m in listed] == [(message_id, "")]
    found = json.loads(mail(shared, "list", name, "--state", "dead", "--state", "queued", "-o", "json").stdout)
    assert [m["message_id"] for m in found] == [shown[1]["message_id"]]
    cut = mail(shared, "list", name, "--limit", "1", "-o", "json")
    assert [m["message_id"] for m in json.loads(cut.stdout)] == [message_id]
    assert "there are more than 1" in cut.stderr


def test_a_file_or_standard_input_is_sent_as_it_is(shared: Server, api: Api, tmp_path: Path) -> None:
    name, content = api.open().session.session_id, bytes(range(256))
    (tmp_path / "letter").write_bytes(content)
    assert mail(shared, "send", name, "--file", str(tmp_path / "letter"), "--type", "x/y").returncode == 0
    command = [sys.executable, "-m", "roost", "mail", "send", name, "--file", "-", "--target", shared.address]
    piped = subprocess.run(
        command, input=content, env=environment(), capture_output=True, timeout=DEADLINE, check=False
    )
    assert piped.returncode == 0, piped.stderr
    assert [(m.content, m.content_type) for m in api.list_mail(name)] == [(content, "x/y"), (content, "")]


def test_i21_with_one_request_id_it_is_sent_once(shared: Server, api: Api) -> None:
    name = api.open().session.session_id
    answers = [json.loads(mail(shared, "send", name, "x", "--request-id", "r", "-o", "json").stdout) for _ in range(2)]
    assert answers[0]["message_id"] == answers[1]["message_id"]
    assert [answer["repeated"] for answer in answers] == [False, True]
    assert [m.state for m in api.list_mail(name)] == [types.MESSAGE_STATE_QUEUED]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("send", "nobody", "x"), 1, "SESSION_NOT_FOUND"),
        (("list", "nobody"), 1, "SESSION_NOT_FOUND"),
        (("wait", "nobody"), 1, "SESSION_NOT_FOUND"),
        (("send", "nobody", ""), 1, "message.content"),
        (("send", "nobody"), 2, "--file"),
        (("send", "nobody", "x", "--file", "y"), 2, "--file"),
        (("send", "nobody", "x", "--label", "novalue"), 2, "KEY=VALUE"),
        (("send", "nobody", "--file", "/nowhere/at/all"), 69, "/nowhere/at/all"),
        (("list",), 2, "--from"),
        (("list", "a", "--from", "b"), 2, "--from"),
        (("list", "a", "--state", "lost"), 2, "lost"),
        (("wait", "a", "--wait", "301"), 2, "--wait"),
    ],
)
def test_what_may_not_be_is_said(shared: Server, arguments: tuple[str, ...], code: int, says: str) -> None:
    done = mail(shared, *arguments)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_an_empty_list_is_no_output(shared: Server, api: Api) -> None:
    name = api.open(fresh()).session.session_id
    done = mail(shared, "list", name)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no messages\n")
