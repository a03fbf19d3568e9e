"""uvicorn's HTTP/1.1 protocol with an end to what a client may send before its request is one.

Left to itself the parser keeps collecting a header that never ends, before any of our code is asked.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def bounded_protocol(max_header_bytes: int) -> type[HttpToolsProtocol]:
    """A protocol class that closes a connection, with a 400, once its unfinished headers have passed the limit.

    The limit is looked at before each read is parsed, so one read (at most 256 KiB) may go beyond it. Headers that are
    whole and too large get the middleware's 431.
    """

    class BoundedProtocol(HttpToolsProtocol):
        reads_headers = True
        header_bytes = 0

        def data_received(self, data: bytes) -> None:
            if self.reads_headers:
                if self.header_bytes > max_header_bytes:
                    self.send_400_response("The request's headers are too large.")
                    return
                self.header_bytes += len(data)
            super().data_received(data)

        def on_message_begin(self) -> None:
            self.reads_headers, self.header_bytes = True, 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self.reads_headers = False
            super().on_headers_complete()

    return BoundedProtocol
