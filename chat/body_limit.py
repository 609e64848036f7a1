"""Limit of the requests that the chat page's server reads."""

from collections.abc import Awaitable, Callable

MAX_BODY_BYTES = 8 << 20  # a message with a long conversation before it
Handler = Callable[..., Awaitable]


class BodyLimit:
    """ASGI middleware that answers bodies above MAX_BODY_BYTES with 413."""

    def __init__(self, app: Handler):
        self.app = app

    async def __call__(self, scope: dict, receive: Handler, send: Handler) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            await _refuse(send, 413)
        else:
            await self.app(scope, _limited(receive), send)


def _limited(receive: Handler) -> Handler:
    """`receive` for a body without content-length: what is longer than the limit ends as a lost connection."""
    count = 0

    async def limited() -> dict:
        nonlocal count
        message = await receive()
        count += len(message.get("body", b""))
        return message if count <= MAX_BODY_BYTES else {"type": "http.disconnect"}

    return limited


async def _refuse(send: Handler, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
