"""Both doors of the real application in this process, with a log in memory, and what must hold whatever they get."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import grpc

from processor.core.events import message
from protos.spendstream.v1 import ingest_pb2 as pb
from server.grpc_api.otlp_servicer import TRACES
from server.otlp.export_responses import content_type_of
from tests.contract.doors import SECRET, Doors, key_metadata, open_doors
from tests.fuzz.inputs import Packed
from tests.fuzz.otlp_inputs import Export

HTTP: Final = {202, 400, 413}
GRPC: Final = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}


class Target:
    """Sends one input and checks the answer; raises `AssertionError`."""

    def __init__(self, doors: Doors, runner: asyncio.Runner) -> None:
        self._doors = doors
        self._runner = runner
        self._ingest = doors.unary("IngestService/Ingest", pb.IngestResponse)

    def post(self, packed: Packed) -> int:
        """POST it; returns the status."""
        answer = self._runner.run(self._doors.post(packed.body, Content_Encoding=packed.encoding))
        assert answer.status in HTTP, (answer.status, answer.body)
        told = json.loads(answer.body)
        taken = self._stored()
        if answer.status == 202:
            assert taken == told["accepted"] > 0
        else:
            assert isinstance(told["error"], str)
            assert told["error"]
            assert taken == 0
        for item in told.get("rejected", []):
            assert set(item) == {"line", "event_id", "field", "code", "message"}
            assert item["line"] >= 1
        if packed.encoding == "identity" and answer.status == 202:
            written = [line for line in _lines(packed.body) if line.strip(b" \t\r\n")]
            assert told["accepted"] + len(told.get("rejected", [])) == len(written)
        return answer.status

    def call(self, raw: bytes) -> grpc.StatusCode:
        """Call `Ingest` with it; returns the code."""
        return self._runner.run(self._call(raw))

    async def _call(self, raw: bytes) -> grpc.StatusCode:
        try:
            answer = await self._ingest(raw, metadata=key_metadata())
        except grpc.aio.AioRpcError as error:
            code, accepted = error.code(), 0
        else:
            code, accepted = grpc.StatusCode.OK, answer.accepted
        assert code in GRPC, code
        assert accepted == self._stored()
        assert (accepted > 0) == (code is grpc.StatusCode.OK)
        return code

    def export(self, export: Export) -> str:
        """Send it over OTLP; returns the status, of a protobuf body the same over gRPC."""
        return self._runner.run(self._export(export))

    async def _export(self, export: Export) -> str:
        doors = self._doors
        headers = {"x-api-key": SECRET, "Content-Type": content_type_of(export.encoding)}
        async with doors.session.post(f"{doors.url}/v1/traces", data=export.body, headers=headers) as response:
            status, body = response.status, await response.read()
        taken = self._stored()
        assert status in {200, 400}, (status, body)
        assert status == 200 or not taken
        if export.encoding == "protobuf":
            expected: tuple[int, object]
            found: tuple[int, object]
            call: Any = doors.channel.unary_unary(f"/{TRACES}/Export", response_deserializer=bytes)
            try:
                told = await call(export.body, metadata=key_metadata())
            except grpc.aio.AioRpcError as error:
                expected, found = (400, grpc.StatusCode.INVALID_ARGUMENT), (status, error.code())
            else:
                expected, found = (200, body), (status, told)
            assert found == expected
            assert self._stored() == taken
        return f"otlp {status}"

    def _stored(self) -> int:
        """How many events have reached the log since the last question; each of them can be read again."""
        count = 0
        for values in self._doors.publisher.messages.values():
            for value in values:
                count += sum(len(events) for _, events in message.events(message.decode(value)))
            values.clear()
        return count


def _lines(body: bytes) -> list[bytes]:
    return body.removeprefix(b"\xef\xbb\xbf").split(b"\n")


@contextmanager
def target() -> Iterator[Target]:
    """The doors, open for the length of the block."""
    with asyncio.Runner() as runner:
        opened = open_doors()
        doors = runner.run(opened.__aenter__())
        try:
            yield Target(doors, runner)
        finally:
            runner.run(opened.__aexit__(None, None, None))
