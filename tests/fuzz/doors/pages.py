"""The door for requests to the page of metrics, which any program of the host may make."""

from contextlib import suppress

from tests.fuzz.doors.door import door

from status_service.http import BadRequest, read_untrusted

REQUESTS = (
    b"GET /metrics?a=b HTTP/1.1\r\nHost: localhost:9586\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: [::1]:1\r\nhost: x\r\n\r\n",
    b"HEAD /readyz HTTP/1.0\r\n\r\n",
    b"POST / HTTP/1.1\r\n\r\n",
    b"\xff\xfe /\0 HTTP/1.\r\n",
)


@door(read_untrusted, seeds=lambda: REQUESTS)
def http_requests(data: bytes) -> None:
    """Reads a request."""
    with suppress(BadRequest):
        path, _ = read_untrusted(data)
        assert "\n" not in path or b"\n" in data.partition(b"\r\n")[0]
