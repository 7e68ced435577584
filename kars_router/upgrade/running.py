"""Runs Helm for real: tells how far it is, lets it end in its own way, and sees what came of it.

An interrupt is passed on to Helm once, which then takes back what it has done; Helm has a session
of its own, so that nothing else reaches it and it outlives a closed terminal. Only a second
interrupt ends it at once, and leaves the release pending.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from typing import Final

import trio
from attrs import define, evolve, frozen

from kars_router.errors import KarsError
from kars_router.upgrade.helm import Helm, what_it_said
from kars_router.upgrade.plan import Plan
from kars_router.upgrade.release import Release, read_release
from kars_router.upgrade.rollout import Rollout, Tell, Trouble

_LARGEST: Final = 256 * 1024  # of what Helm writes on stderr
_END_SECONDS: Final = 10.0
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@frozen(kw_only=True)
class Outcome:
    """What came of it.

    Attributes:
        succeeded: whether Helm says that it did all it was to do.
        said: its reason otherwise.
        troubles: what was wrong with the new pods.
        release: as it is afterwards; None if that could not be found out.
        interrupted: whether the user interrupted it.
    """

    succeeded: bool
    said: str = ""
    troubles: tuple[Trouble, ...] = ()
    release: Release | None = None
    interrupted: bool = False


@frozen
class Upgrade:
    """How a release is upgraded.

    Attributes:
        plan: what is to be done.
        options: the values, as options of Helm.
        timeout: until which everything has to be ready, as Helm writes it.
    """

    plan: Plan
    options: tuple[str, ...]
    timeout: str

    @property
    def by_helm(self) -> bool:
        """Whether Helm finds the way back on its own, should it fail."""
        return self.plan.release.returns == self.plan.release.good

    def words(self) -> tuple[str, ...]:
        """The command for Helm."""
        return (
            *("upgrade", self.plan.release.name, self.plan.chart.path, *self.options),
            *self._manner(),
            *(("--rollback-on-failure",) if self.by_helm else ()),
            *("--wait=watcher", "--timeout", self.timeout, "--hide-notes"),
        )

    def way_back(self) -> tuple[str, ...]:
        """The command that takes it back."""
        return (
            *("rollback", self.plan.release.name, str(self.plan.release.good)),
            *self._manner(),
            *("--wait=watcher", "--timeout", self.timeout),
        )

    def _manner(self) -> tuple[str, ...]:
        # Said outright: Helm would go on client-side with a release that was made so, where
        # --force-conflicts is an error that leaves a failed revision behind.
        force = ("--force-conflicts",) if self.plan.force else ()
        return ("--server-side=true", *force)


async def upgrade(helm: Helm, how: Upgrade, *, rollout: Rollout, tell: Tell) -> Outcome:
    """Upgrades a release, and takes it back if that fails.

    Args:
        helm: for the namespace of the release.
        how: what is to be done.
        rollout: watches its workloads meanwhile.
        tell: hears that an interrupt is passed on.
    """
    release = how.plan.release
    outcome = await run(helm, how.words(), release, rollout=rollout, tell=tell)
    if outcome.succeeded or how.by_helm or release.good is None:
        return outcome
    if outcome.release is not None and outcome.release.last.number == release.last.number:
        return outcome  # it had not begun
    back = await run(helm, how.way_back(), release, rollout=rollout.nothing(), tell=tell)
    said = outcome.said if back.succeeded else f"{outcome.said}; on the way back: {back.said}"
    return evolve(outcome, said=said, release=back.release)


async def run(
    helm: Helm, words: Sequence[str], release: Release, *, rollout: Rollout, tell: Tell
) -> Outcome:
    """Runs a command of Helm's that changes the release.

    Args:
        helm: for the namespace of the release.
        words: the command.
        release: which one.
        rollout: watches its workloads meanwhile.
        tell: hears that an interrupt is passed on.
    """
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        process = await trio.lowlevel.open_process(
            helm.command(*words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=helm.environ,
        )
        interrupts = _Interrupts(process, tell)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(interrupts.run, signals)
                nursery.start_soon(rollout.run)
                stderr = await _read(process)
                if await process.wait() == 0:
                    await rollout.look()
                nursery.cancel_scope.cancel()
        finally:
            # Nothing is left behind, should something have gone wrong here.
            if process.returncode is None:
                process.terminate()
                with trio.move_on_after(_END_SECONDS, shield=True):
                    await process.wait()
    after = None
    with contextlib.suppress(KarsError):  # what Helm said is all that is known then
        after = await read_release(helm, release.name)
    return Outcome(
        succeeded=process.returncode == 0,
        said=what_it_said(stderr),
        troubles=rollout.troubles,
        release=after,
        interrupted=interrupts.count > 0,
    )


@define
class _Interrupts:
    """Passes interrupts on."""

    _process: trio.Process
    _tell: Tell
    count: int = 0

    async def run(self, signals: AsyncIterator[int]) -> None:
        async for _ in signals:
            self.count += 1
            if self.count == 1:
                self._tell(
                    "interrupted: Helm takes back what it has done; once more ends it at once"
                )
                self._process.terminate()
            else:
                self._process.kill()


async def _read(process: trio.Process) -> bytes:
    """All that it writes on stderr, as far as it is kept."""
    assert process.stderr is not None
    kept = bytearray()
    async with process.stderr as stream:
        async for piece in stream:
            kept += piece
            del kept[:-_LARGEST]
    return bytes(kept)
