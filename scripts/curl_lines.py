"""A line of buf curl and one of grpcurl for each method of the API, as docs/API.md shows them.

Services, methods and the order of both come from the protos. A method whose request is better not empty has one here,
checked against the protos as well.
"""

from __future__ import annotations

import json
import re
from typing import Any

from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor

from roost.v1 import (
    admin_service_pb2,
    mail_service_pb2,
    resource_service_pb2,
    session_service_pb2,
    trajectory_service_pb2,
    turn_service_pb2,
)

ADDRESS = "127.0.0.1:7117"
FILES = (
    session_service_pb2,
    turn_service_pb2,
    mail_service_pb2,
    resource_service_pb2,
    trajectory_service_pb2,
    admin_service_pb2,
)
SERVICES = [service for file in FILES for service in file.DESCRIPTOR.services_by_name.values()]
SESSION = {"sessionId": "task-17"}
LEASE = {"sessionId": "task-17", "lease": "$LEASE"}
# What begins with $ the shell fills in.
REQUESTS: dict[str, dict[str, Any]] = {
    "OpenSession": {**SESSION, "options": {"labels": {"team": "red"}}},
    "GetSession": SESSION,
    "ListSessions": {"state": "SESSION_STATE_OPEN", "pageSize": 10},
    "UpdateSession": {**SESSION, "labels": {"team": "blue"}, "staleTimeout": "7200s"},
    "ReadHistory": {**SESSION, "statuses": ["RECORD_STATUS_COMMITTED"]},
    "CloseSession": {**SESSION, "reason": "CLOSE_REASON_QUIT"},
    "ReopenSession": SESSION,
    "InterruptSession": SESSION,
    "WatchSessions": {"kinds": ["SESSION_EVENT_KIND_OPENED", "SESSION_EVENT_KIND_CLOSED"]},
    "BeginTurn": {**SESSION, "open": {}, "wait": "5s", "owner": "me"},
    "RenewTurns": {"renewals": [LEASE]},
    "CommitTurn": {**LEASE, "record": {"content": "aGVsbG8=", "contentType": "text/plain"}},
    "AbortTurn": LEASE,
    "GetCheckpoint": LEASE,
    "PollTurn": {"owner": "me", "wait": "1s"},
    "WatchOwner": {"owner": "me"},
    "SendMessage": {**SESSION, "message": {"content": "aGVsbG8="}},
    "WaitMail": {**SESSION, "wait": "1s"},
    "ListMail": SESSION,
    "AttachResource": {**SESSION, "kind": "RESOURCE_KIND_CLIENT", "owner": "me"},
    "DetachResource": {**SESSION, "name": "$NAME"},
    "ListResources": SESSION,
    "ReconcileInventory": {"node": "node-3", "items": [{"name": "$NAME", "instance": "1"}], "dryRun": True},
    "SetReward": {**SESSION, "reward": 1.0},
    "FinishTrajectory": SESSION,
    "ExportTrajectories": {"sessionIds": ["task-17"], "style": "EXPORT_STYLE_CONCAT"},
    "AckTrajectories": {"trajectoryIds": ["$TRAJECTORY"]},
    "RestoreSessions": {"dumpNames": ["$DUMP"]},
    "Sweep": {"dryRun": True},
    "CreateApiKey": {"tenant": "my-team"},
    "RevokeApiKey": {"keyId": "$KEY_ID"},
    "SetLimits": {"limits": {"max_turns_per_tree": 16}},
    "ListApiKeys": {"tenant": "my-team"},
}


def shown(method: MethodDescriptor) -> str:
    """The request in JSON, quoted for a shell, which fills in its variables."""
    request = REQUESTS.get(method.name, {})
    text = json.dumps(request)
    # The checked one has something in the place of each variable that is good as bytes, too.
    message = message_factory.GetMessageClass(method.input_type)()
    try:
        json_format.ParseDict(json.loads(re.sub(r"\$\w+", "AAAA", text)), message)
    except json_format.ParseError as error:
        raise SystemExit(f"curl_lines: the request of {method.name}: {error}") from None
    return "'" + re.sub(r"\$\w+", r"'\g<0>'", text) + "'"


def lines() -> str:
    """All of them, by service."""
    unknown = set(REQUESTS) - {method.name for service in SERVICES for method in service.methods}
    if unknown:
        raise SystemExit(f"curl_lines: no methods any more: {', '.join(sorted(unknown))}")
    parts = []
    for service in SERVICES:
        calls = []
        for method in service.methods:
            path, request = f"{service.full_name}/{method.name}", shown(method)
            calls += [
                f"buf curl --protocol grpc --http2-prior-knowledge -d {request} http://{ADDRESS}/{path}",
                f"grpcurl -plaintext -d {request} {ADDRESS} {path}",
            ]
        parts.append(f"`{service.name}`:\n\n```\n" + "\n".join(calls) + "\n```")
    return "\n" + "\n\n".join(parts) + "\n"
