"""A server of JSON over HTTP, for tests of what talks to one."""

import contextlib
import http.server
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def json_server(*answers: tuple) -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    """Serves on a free port of this machine until the context ends.

    Args:
        *answers: Status, body and any headers of each answer in turn; the last one for ever.

    Yields:
        The address, and a list that grows by method, path and body of each request.
    """
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            requests.append((self.command, self.path, body))
            status, answer, *headers = answers[min(len(requests), len(answers)) - 1]
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            for header in headers:
                self.send_header(*header)
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = _answer  # noqa: N815  The names http.server calls.

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()
            thread.join()
