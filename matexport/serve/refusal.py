"""What a request is refused with: a status, and the words, in the shape that OpenAI's clients read errors in."""

from __future__ import annotations

from collections.abc import Mapping

from matexport.errors import MatexportError

#: Type of an error in OpenAI's shape, by whether the client or the server is to do something about it.
_ASKED_WRONG, _SERVER = "invalid_request_error", "server_error"

#: Seconds after which a client that was told that too much is waiting may try again: some runs have ended by then.
RETRY_SECONDS = 1


class RefusedError(MatexportError):
    """A request that is not answered with what it asked for.

    Attributes:
        status: HTTP's. 400 it says something that it cannot; 404 there is no such model or page; 413 it is too large;
            422 it can be read, and the family has no vector for it; 503 too much is waiting.
        param: the field of the request that is wrong, if it is one.
        code: a word for programs, such as ``model_not_found``.
        unread: whether some of the request's body was not read: the connection ends with the answer.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, unread: bool = False
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.unread = status, param, code, unread

    @property
    def document(self) -> dict[str, object]:
        """The answer's body."""
        kind = _ASKED_WRONG if self.status < 500 else _SERVER
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> Mapping[str, str]:
        """What the answer's head says besides."""
        if self.status == 503:
            return {"Retry-After": str(RETRY_SECONDS)}
        return {"Connection": "close"} if self.unread else {}


def refuse_overload(what: str) -> RefusedError:
    """The error to raise where too much is waiting already."""
    return RefusedError(503, f"{what}; try again in {RETRY_SECONDS} s", code="overloaded")
