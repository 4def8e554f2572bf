"""A family as tests of pytest: one item per check of its files and of each profile, beside what pytest collects.

    pytest --matexport-family artifacts/minilm
    artifacts/minilm::digests  artifacts/minilm::token-ids  artifacts/minilm::L02-D064-int8::batched ...

Without a family this costs a few options: nothing else of the package is imported. What a check finds is
`matexport.verify.checks`'s business. PYTEST_DONT_REWRITE: no assertions are made here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from matexport.verify.checks import Check, FamilyChecks


FAMILIES, RETENTION, TASK = "matexport_families", "matexport_min_retention", "matexport_task"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("matexport", "families of matexport")
    group.addoption(
        "--matexport-family", action="append", default=[], metavar="DIR",
        help="also check the family or pack in DIR: its files, and each profile's parity on this machine; may be "
        "repeated, and replaces the ini file's matexport_families",
    )  # fmt: skip
    group.addoption("--matexport-only", action="store_true", help="collect the families' checks and no other tests")
    group.addoption(
        "--matexport-min-retention", metavar="FLOOR",
        help="fail a profile that keeps less of the parent's quality than this share, such as 0.95, as "
        "`matexport evaluate` measured it; also one that nobody measured",
    )  # fmt: skip
    group.addoption("--matexport-task", metavar="NAME", help="the task whose retention counts (default: the worst)")
    group.addoption(
        "--matexport-threads", metavar="N",
        help="threads of each session (default: the CPUs of this process, shared among the workers of -n)",
    )  # fmt: skip
    parser.addini(FAMILIES, "families to check, one per line, relative to this file", type="paths")
    parser.addini(RETENTION, "floor of every profile's retention, as --matexport-min-retention")
    parser.addini(TASK, "the task whose retention counts, as --matexport-task")


def pytest_configure(config: pytest.Config) -> None:
    paths, floor = _list_families(config), _read_floor(config)
    if config.getoption("matexport_threads") is not None:
        _read_threads(config)
    if not paths and (config.getoption("matexport_only") or config.getoption("matexport_min_retention") is not None):
        raise pytest.UsageError("no family to check: give --matexport-family DIR")
    if floor is None and _read_task(config) is not None:
        raise pytest.UsageError("--matexport-task names the task of a floor: give --matexport-min-retention, too")
    config.option.matexport_family = [str(path) for path in paths.values()]  # which workers of -n are given
    if config.getoption("matexport_only"):
        config.args[:] = []


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The families follow what the session itself collects, so that -k, -m, --collect-only and -n see them, too."""
    report = yield
    if isinstance(collector, pytest.Session) and report.passed:
        report.result.extend(_make_families(collector))
    return report


def _make_families(session: pytest.Session) -> Iterator[FamilyCollector]:
    paths = _list_families(session.config)
    if not paths:
        return
    from matexport.verify.checks import FamilyChecks, Requirements

    requirements = Requirements(
        threads=_read_threads(session.config),
        min_retention=_read_floor(session.config),
        task=_read_task(session.config),
    )
    for name, path in paths.items():
        yield FamilyCollector.from_parent(session, name=name, nodeid=name, family=FamilyChecks(path, requirements))


class FamilyCollector(pytest.Collector):
    """The checks of one family."""

    def __init__(self, *, family: FamilyChecks, **options: Any) -> None:
        super().__init__(**options)
        self.family = family

    def collect(self) -> Iterator[pytest.Item | pytest.Collector]:
        """The checks of the files and of the tokenizer, then a collector for each profile."""
        profiles: dict[str, list[Check]] = {}
        for check in self.family.list_checks():
            if check.profile is None:
                yield CheckItem.from_parent(self, name=check.name, family=self.family, check=check)
            else:
                profiles.setdefault(check.profile, []).append(check)
        for profile, checks in profiles.items():
            yield ProfileCollector.from_parent(self, name=profile, family=self.family, checks=checks)


class ProfileCollector(pytest.Collector):
    """The checks of one profile."""

    def __init__(self, *, family: FamilyChecks, checks: list[Check], **options: Any) -> None:
        super().__init__(**options)
        self.family, self.checks = family, checks

    def collect(self) -> Iterator[pytest.Item]:
        for check in self.checks:
            yield CheckItem.from_parent(self, name=check.name, family=self.family, check=check)


class CheckItem(pytest.Item):
    """One check of a family."""

    def __init__(self, *, family: FamilyChecks, check: Check, **options: Any) -> None:
        super().__init__(**options)
        self.family, self.check = family, check
        if self.config.pluginmanager.hasplugin("xdist"):
            self.add_marker(pytest.mark.xdist_group(family.name_group(check)))

    def runtest(self) -> None:
        """Fail, or skip what cannot be made, unless nobody else would say why."""
        obstacle = self.family.find_obstacle(self.check)
        if obstacle and self is not self._find_speaker():
            pytest.skip(obstacle)
        reason = self.family.find_failure(self.check)
        if reason:
            raise CheckFailed(reason)

    def _find_speaker(self) -> CheckItem:
        """The item that fails when the family's files are refused: `digests`, or the first, if that was not selected.

        Workers of -n have all items in their session, so they agree.
        """
        items = [item for item in self.session.items if isinstance(item, CheckItem) and item.family is self.family]
        return next((item for item in items if self.family.find_obstacle(item.check) is None), items[0])

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The reason alone: where in the plugin it was raised helps nobody."""
        if isinstance(excinfo.value, CheckFailed):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.family.path, None, self.nodeid


class CheckFailed(Exception):  # noqa: N818 - a verdict, not an error
    """Why a check failed."""


def _list_families(config: pytest.Config) -> dict[str, Path]:
    """What each family is called in the items' names -> its folder, each folder once.

    Those of the ini file count as its `testpaths` do: when no path was given.
    """
    paths = [config.invocation_params.dir / path for path in config.getoption("matexport_family")]
    if not paths and config.args_source is not pytest.Config.ArgsSource.ARGS:
        paths = config.getini(FAMILIES)
    unique = dict.fromkeys(Path(os.path.abspath(path)) for path in paths)  # noqa: PTH100 - resolve would follow links
    return {_name_family(path, config.rootpath): path for path in unique}


def _name_family(path: Path, root: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) and path != root else path).as_posix()


def _read_floor(config: pytest.Config) -> float | None:
    given = config.getoption("matexport_min_retention")
    text = given if given is not None else config.getini(RETENTION)
    if not text:
        return None
    try:
        floor = float(text)
    except ValueError:
        floor = math.nan
    if not 0 < floor <= 1:
        raise pytest.UsageError(f"a floor of retention {text!r} was asked; it is a share above 0 and at most 1: 0.95")
    return floor


def _read_task(config: pytest.Config) -> str | None:
    return config.getoption("matexport_task") or config.getini(TASK) or None


def _read_threads(config: pytest.Config) -> int:
    text = config.getoption("matexport_threads")
    if text is not None:
        if not (text.isascii() and text.isdigit() and int(text)):
            raise pytest.UsageError(f"--matexport-threads {text} was asked; it is a whole number of at least 1")
        return int(text)
    from matexport.host import count_cpus

    return max(1, count_cpus() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
