"""TLS by setting, on both APIs of a real server."""

import ssl
from pathlib import Path

import grpc
import trustme
from aiohttp import ClientSession

from protos.spendstream.v1 import ingest_pb2, ingest_pb2_grpc
from tests.support.events import make_event, to_ndjson, to_proto
from tests.support.server import KEY, Server, run_cli


async def test_both_doors_speak_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    chain, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    server = Server(tmp_path / "data", "api", tls_cert=chain, tls_key=key)
    server.start()
    try:
        trust = ssl.create_default_context()
        authority.configure_trust(trust)
        async with ClientSession() as session:
            answer = await session.post(
                f"https://{server.http}/v1/ingest",
                data=to_ndjson([make_event()]),
                headers={"x-api-key": KEY, "Content-Type": "application/x-ndjson"},
                ssl=trust,
            )
            assert (answer.status, await answer.json()) == (202, {"accepted": 1})
        credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        async with grpc.aio.secure_channel(server.grpc, credentials) as channel:
            stub = ingest_pb2_grpc.IngestServiceStub(channel)
            request = ingest_pb2.IngestRequest(events=[to_proto(make_event())])
            assert (await stub.Ingest(request, metadata=[("x-api-key", KEY)])).accepted == 1
    finally:
        server.stop()


def test_files_that_cannot_be_used_are_named_with_their_settings(tmp_path: Path) -> None:
    missing = tmp_path / "no.pem"
    done = run_cli(tmp_path / "data", "api", "--tls-cert", str(missing), "--tls-key", str(missing))
    assert done.returncode == 2
    assert f"SPENDSTREAM_TLS_CERT ({missing}) and SPENDSTREAM_TLS_KEY ({missing}): No such file" in done.stderr
    assert "Errno" not in done.stderr
    assert "Traceback" not in done.stderr
