"""An OpenAI-compatible endpoint on this machine that fails in every way it can."""

import http.server
import json
import re
import threading
import time

QUESTION = re.compile(r"Box (\S+) has (\S+) apples\.")


def in_korean(box: str, apples: str) -> str:
    return (
        f"상자 {box}번에는 사과가 {apples}개 있습니다. 그 안에는 모두 몇 개가 있습니까?"
    )


class Endpoint(http.server.ThreadingHTTPServer):
    """A server of chat completions that translates into Korean.

    fault: (number of the call, from 0) -> the name of what goes wrong with it, "" if nothing does
    delay: seconds that a reply takes
    """

    # Connections that wait to be accepted: more than ever ask at once.
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault = lambda call: ""
        self.delay = 0.0
        self.boxes: list[str] = []
        self.requests: list[dict] = []
        self.keys: set[str | None] = set()
        self.busy = 0
        self.most_busy = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address) -> None:
        """Says nothing: clients that are killed, or do not wait, are what is tested."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Endpoint

    def log_message(self, *arguments) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        box, apples = QUESTION.search(body["messages"][0]["content"]).groups()
        with server.lock:
            fault = server.fault(len(server.boxes))
            server.boxes.append(box)
            server.requests.append(body)
            server.keys.add(self.headers["Authorization"])
            server.busy += 1
            server.most_busy = max(server.most_busy, server.busy)
        time.sleep(server.delay)
        with server.lock:
            server.busy -= 1
        self.reply(fault, box, apples)

    def reply(self, fault: str, box: str, apples: str) -> None:
        right = in_korean(box, apples)
        contents = {
            "": f"<think>Box is 상자.</think>\n{right}\n",
            "English": f"Box {box} has {apples} apples, I think.",
            "no numbers": "상자에는 사과가 있습니다. 모두 몇 개가 있습니까?",
            "empty": " ",
            "solution": right * 40,
            "cut off": right,
            "null": None,
        }
        message = {"role": "assistant", "content": contents.get(fault)}
        reason = "length" if fault == "cut off" else "stop"
        choices = [{"message": message, "finish_reason": reason}]
        text = json.dumps({"choices": [] if fault == "no choices" else choices})
        if fault == "not JSON":
            text = "<html>Bad gateway</html>"
        if fault == "a list":
            text = "[1]"
        if fault == "closed":
            return
        if fault == "half":
            self.send(200, text[:20], length=1000)
            return
        if fault == "slow":
            time.sleep(1.5)
        if fault[:3].isdigit():
            self.send(int(fault[:3]), text, retry_after=fault[4:])
        else:
            self.send(200, text)

    def send(
        self, status: int, text: str, length: int = 0, retry_after: str = ""
    ) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(length or len(content)))
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(content)
