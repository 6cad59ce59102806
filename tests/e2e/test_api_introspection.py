"""Health, reflection and channelz."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from conftest import Start
from google.protobuf import descriptor_pb2
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from roost_server import DEADLINE, Api


@pytest.mark.parametrize("service", ["", "live", "ready"])
def test_health_says_serving(api: Api, service: str) -> None:
    stub = health_pb2_grpc.HealthStub(api.channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def ask(api: Api, path: str, request: reflection_pb2.ServerReflectionRequest) -> Any:
    call = api.channel.stream_stream(
        path,
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    return next(iter(call(iter([request]), timeout=DEADLINE)))


@pytest.mark.parametrize("version", ["v1alpha", "v1"])
def test_reflection_in_both_versions(api: Api, version: str) -> None:
    path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    listed = ask(api, path, reflection_pb2.ServerReflectionRequest(list_services=""))
    names = {service.name for service in listed.list_services_response.service}
    assert {"roost.v1.SessionService", "roost.v1.TurnService", "grpc.health.v1.Health"} <= names
    found = ask(api, path, reflection_pb2.ServerReflectionRequest(file_containing_symbol="roost.v1.TurnService"))
    file = descriptor_pb2.FileDescriptorProto.FromString(found.file_descriptor_response.file_descriptor_proto[0])
    assert file.package == "roost.v1"


def test_channelz_counts_calls(api: Api) -> None:
    stub = channelz_pb2_grpc.ChannelzStub(api.channel)
    answer = stub.GetServers(channelz_pb2.GetServersRequest(), timeout=DEADLINE)
    assert answer.server[0].data.calls_started > 0


def test_introspection_can_be_switched_off(start: Start) -> None:
    with start("--introspection", "off").api() as api:
        stub = reflection_pb2_grpc.ServerReflectionStub(api.channel)
        with pytest.raises(grpc.RpcError) as error:
            next(stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")])))
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.RpcError) as error:
            channelz_pb2_grpc.ChannelzStub(api.channel).GetServers(channelz_pb2.GetServersRequest(), timeout=DEADLINE)
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert api.stats().epoch == 1
