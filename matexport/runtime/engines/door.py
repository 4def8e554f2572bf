"""The one door to what runs graphs: an `Engine` that is asked for -> a session on a checked graph, or a refusal.

Nothing else in matexport knows which engines there are. Each has a module of its own beside this one, imported when it
is asked for; all are given the bytes that were digested and looked at (`family.integrity.Contents`), and open no file.
"""

from __future__ import annotations

from typing import Protocol

from matexport.errors import RequestError
from matexport.family.integrity import Contents
from matexport.runtime.engines.session import Session
from matexport.spec.measured import CPU, ENGINES, NATIVE, ONNXRUNTIME, PROVIDERS, Engine, EngineFacts


class EngineModule(Protocol):
    """What the module of an engine has."""

    def require_engine(self) -> None:
        """Raise MissingExtraError, with the pip line, or RequestError unless what it needs is installed."""

    def load_runtime(self) -> object:
        """Import its library, or load it."""

    def open_checked(self, contents: Contents, graph: str, engine: Engine, /) -> Session:
        """As the door's."""

    def describe_engine(self, engine: Engine, /) -> EngineFacts:
        """As the door's."""


def check_engine(engine: Engine) -> None:
    """Refuse an engine that nobody knows, that has no such provider or whose package is not installed.

    Raises:
        RequestError: there is no such engine or provider; those that there are are listed.
        MissingExtraError: its package is not installed; the message has the pip command.
    """
    if engine.name not in ENGINES:
        raise RequestError(f"the engine {engine.name} was asked; known are: {', '.join(ENGINES)}")
    if engine.provider not in PROVIDERS:
        raise RequestError(f"the provider {engine.provider} was asked; known are: {', '.join(PROVIDERS)}")
    if engine.name == ONNXRUNTIME:
        return
    if engine.provider != CPU:
        raise RequestError(
            f"the engine {engine.name} was asked with the provider {engine.provider}; providers are onnxruntime's: "
            "leave out one of the two"
        )
    _find_module(engine).require_engine()


def load_engine(engine: Engine) -> None:
    """Import an engine's library, which takes most of a cold start, before there is anything to run.

    Raises:
        RequestError, MissingExtraError: as `check_engine`.
    """
    check_engine(engine)
    if engine.name == ONNXRUNTIME:
        from matexport.runtime.engines import onnxruntime

        onnxruntime.load_runtime()
        return
    _find_module(engine).load_runtime()


def open_checked(contents: Contents, graph: str, engine: Engine | None = None) -> Session:
    """A session on a graph of a family: on what was asked for, or not at all.

    Args:
        contents: has the graph and its weights; the session keeps it.
        engine: onnxruntime on the CPU by default.

    Raises:
        RequestError, MissingExtraError: as `check_engine`; or the engine does not start here, or not as it was asked.
        FamilyError: the engine refuses the graph, or would run some of it elsewhere than it was asked to.
    """
    engine = engine or Engine()
    check_engine(engine)
    if engine.name == ONNXRUNTIME:
        from matexport.runtime.engines import onnxruntime

        opened: Session = onnxruntime.open_checked(contents, graph, threads=engine.threads, provider=engine.provider)
        return opened
    return _find_module(engine).open_checked(contents, graph, engine)


def describe_engine(engine: Engine) -> EngineFacts:
    """An engine as it runs here: its version, and the device that it says it has.

    Raises:
        RequestError, MissingExtraError: as `check_engine`; or it does not start here.
    """
    check_engine(engine)
    if engine.name == ONNXRUNTIME:
        from matexport.runtime.engines import onnxruntime

        return onnxruntime.describe_engine(engine)
    return _find_module(engine).describe_engine(engine)


def _find_module(engine: Engine) -> EngineModule:
    """What runs graphs in a library of its own."""
    if engine.name == NATIVE:
        from matexport.runtime.engines.native import session

        return session
    if engine.name == "tract":
        from matexport.runtime.engines import tract

        return tract
    if engine.name == "opencv":
        from matexport.runtime.engines import opencv

        return opencv
    from matexport.runtime.engines import openvino

    return openvino
