"""Which of several operators works: the one that holds a Lease.

Owns how a Lease is taken, kept, lost and given back. Must not know what its holder does.

Nobody's clock is compared with anybody else's: a candidate measures on its own clock for how long
the Lease has not changed, and a holder stops working, on its own clock, some seconds before the
others may take it. So clocks that show different times do no harm, and only ones that run at
different speeds would. What a Lease cannot do is to call back a request which a holder sent before
it was stopped; every change that the operator makes is one which two may make.

Source: https://kubernetes.io/docs/concepts/architecture/leases/.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import trio
from attrs import frozen

from kars_router.errors import KarsError, UserError
from kars_router.kube import Kube
from kars_router.kube.errors import ConflictError, KubeError, NotFoundError
from kars_router.kube.resources import LEASES
from kars_router.telemetry import log

Lease = dict[str, Any]

_RELEASE_SECONDS: Final = 3.0


class LeaseLost(KarsError):
    """Somebody else holds the Lease, or nobody does."""


@frozen(kw_only=True)
class Term:
    """The times of an election, in seconds.

    Attributes:
        duration: others may take the Lease when it has not been renewed for so long.
        renewal: the holder stops working when it has not been renewed for so long. What is left
            of `duration` is for the end of its work.
        retry: between renewals, and between looks at somebody else's Lease.

    Raises:
        ValueError: they are not in this order, with room for a second try.
    """

    duration: float = 15.0
    renewal: float = 10.0
    retry: float = 2.0

    def __attrs_post_init__(self) -> None:
        if not 0 < self.retry * 2 <= self.renewal < self.duration:
            raise ValueError("a lease needs 2 * retry <= renewal < duration")


class Election:
    """One candidate for a Lease.

    Args:
        kube: the API server.
        name: of the Lease.
        namespace: of the Lease.
        identity: this candidate; no other may ever have the same, not even after a restart.
        term: its times.
        changed: told when this candidate becomes the leader and when it ceases to be; must not
            raise or wait.
        random: returns a float in [0, 1).
        now: the time of day, which is only for people to read.

    Attributes:
        leading: whether this candidate is the leader.
        holder: who was seen to hold the Lease last; empty if nobody was.
        terms: how often this candidate has become the leader.
        problem: why the Lease could not be had or renewed, as one clause; empty if nothing is.
    """

    def __init__(
        self,
        kube: Kube,
        name: str,
        namespace: str,
        *,
        identity: str,
        term: Term | None = None,
        changed: Callable[[bool], None] = lambda _: None,
        random: Callable[[], float] = random.random,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.name = name
        self.namespace = namespace
        self.identity = identity
        self.leading = False
        self.holder = ""
        self.terms = 0
        self.problem = ""
        self._kube = kube
        self._term = term or Term()
        self._changed = changed
        self._random = random
        self._now = now
        self._seen: tuple[str, str] | None = None
        self._seen_at = -math.inf

    async def run(
        self,
        work: Callable[[], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Does the work whenever this candidate leads, until the work ends by itself.

        The work is cancelled as soon as the Lease is lost, and begun anew when it is had again.
        How long it may take to end then is `duration - renewal`; what it shields must be shorter.
        When the work has ended by itself, was cancelled from outside or has raised, the Lease is
        given back, so that the next candidate need not wait for its end; what the work raised
        comes out in a group.
        """
        task_status.started()
        while True:
            lease, sent = await self._acquire()
            if await self._lead(work, lease, sent):
                return

    async def _acquire(self) -> tuple[Lease, float]:
        """Waits until the Lease is ours.

        Returns:
            The Lease, and a moment before which nobody can have seen that it is ours.
        """
        while True:
            asked = trio.current_time()
            taken = None
            try:
                with trio.fail_after(self._term.renewal / 2):
                    taken = await self._try()
                self.problem = ""
            except (KubeError, UserError, trio.TooSlowError) as error:
                self._trouble(error)
            if taken is not None:
                return taken
            # Candidates that wait for the same end need not all ask at once.
            await trio.sleep_until(asked + self._term.retry * (1 + self._random() / 5))

    async def _try(self) -> tuple[Lease, float] | None:
        """Takes the Lease, if it may be taken."""
        try:
            lease = await self._kube.get(LEASES, self.name, self.namespace)
        except NotFoundError:
            lease, write = self._blank(), self._kube.create
        else:
            self._notice(lease)
            if not self._free(lease):
                return None
            write = self._kube.replace
        sent = trio.current_time()
        try:
            return await write(self._taken(lease)), sent
        except ConflictError:
            return None  # another was faster

    def _free(self, lease: Lease) -> bool:
        if self.holder in {"", self.identity}:
            return True
        duration = _spec(lease).get("leaseDurationSeconds") or self._term.duration
        return bool(trio.current_time() >= self._seen_at + duration)

    async def _lead(self, work: Callable[[], Awaitable[None]], lease: Lease, sent: float) -> bool:
        """Does the work while the Lease is ours.

        Returns:
            Whether the work has ended by itself.
        """
        ended = False
        tenure = trio.CancelScope(deadline=sent + self._term.renewal)
        self._set(leading=True)
        try:
            with tenure:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._keep, lease, sent, tenure)
                    await work()
                    ended = True
                    nursery.cancel_scope.cancel()
        finally:
            self._set(leading=False)
            if ended or not tenure.cancel_called:
                with trio.move_on_after(_RELEASE_SECONDS, shield=True):
                    await self._release()
            else:
                why = self.problem or "it could not be renewed in time"
                log().warning("lease_lost", **self._named, holder=self.holder, why=why)
        return ended

    async def _keep(self, lease: Lease, sent: float, tenure: trio.CancelScope) -> None:
        """Renews the Lease; the end of the tenure moves with each success, and only then."""
        asked = sent
        while True:
            await trio.sleep_until(asked + self._term.retry)
            asked = trio.current_time()
            try:
                with trio.fail_after(self._term.renewal / 2):
                    lease = await self._renew(lease)
            except LeaseLost as error:
                self.problem = str(error)
                tenure.cancel()
                return
            except (KubeError, UserError, trio.TooSlowError) as error:
                self._trouble(error)
            else:
                self.problem = ""
                # From before it was sent: so long nobody who watches it can count it as over.
                tenure.deadline = asked + self._term.renewal

    async def _renew(self, lease: Lease) -> Lease:
        try:
            return await self._kube.replace(self._taken(lease))
        except NotFoundError as error:
            raise LeaseLost("the Lease was deleted") from error
        except ConflictError:
            pass
        # Not necessarily another holder: a renewal whose answer was lost has changed it as well.
        try:
            lease = await self._kube.get(LEASES, self.name, self.namespace)
        except NotFoundError as error:
            raise LeaseLost("the Lease was deleted") from error
        self._notice(lease)
        if self.holder != self.identity:
            raise LeaseLost(f"it is held by {self.holder or 'nobody'}")
        return await self._kube.replace(self._taken(lease))

    async def _release(self) -> None:
        for _ in range(2):  # a renewal that was under way may come in between
            try:
                lease = await self._kube.get(LEASES, self.name, self.namespace)
                if _spec(lease).get("holderIdentity") == self.identity:
                    await self._kube.replace(self._given_back(lease))
                    log().info("lease_released", **self._named)
            except ConflictError:
                continue
            except (KubeError, UserError) as error:
                log().info("lease_not_released", **self._named, error=str(error))
            return

    def _notice(self, lease: Lease) -> None:
        """Takes note of a Lease; every write by anybody counts as a sign of life."""
        metadata = lease["metadata"]
        seen = (str(metadata.get("uid")), str(metadata.get("resourceVersion")))
        if seen != self._seen:
            self._seen, self._seen_at = seen, trio.current_time()
        holder = _spec(lease).get("holderIdentity") or ""
        if holder not in {self.holder, self.identity, ""}:
            log().info("lease_held", **self._named, holder=holder)
        self.holder = holder

    def _set(self, *, leading: bool) -> None:
        self.leading = leading
        if leading:
            self.holder = self.identity
            self.terms += 1
            log().info("lease_acquired", **self._named, identity=self.identity)
        self._changed(leading)

    def _trouble(self, error: Exception) -> None:
        slow = isinstance(error, trio.TooSlowError)
        problem = "the API server took too long" if slow else str(error)
        say = log().debug if self.problem else log().warning
        say("lease_trouble", **self._named, error=problem, leading=self.leading)
        self.problem = problem

    def _blank(self) -> Lease:
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"name": self.name, "namespace": self.namespace},
        }

    def _taken(self, lease: Lease) -> Lease:
        """The Lease as it is to be while this candidate holds it."""
        before, now = _spec(lease), _written(self._now())
        ours = before.get("holderIdentity") == self.identity
        first = "holderIdentity" not in before
        transitions = before.get("leaseTransitions") or 0
        spec = {
            **before,
            "holderIdentity": self.identity,
            "leaseDurationSeconds": math.ceil(self._term.duration),
            "acquireTime": before.get("acquireTime", now) if ours else now,
            "renewTime": now,
            "leaseTransitions": transitions if ours or first else transitions + 1,
        }
        return {**lease, "spec": spec}

    def _given_back(self, lease: Lease) -> Lease:
        now = _written(self._now())
        # The shortest duration there is, for candidates that look at nothing else.
        spec = {**_spec(lease), "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": now}
        return {**lease, "spec": spec}

    @property
    def _named(self) -> dict[str, str]:
        return {"lease": f"{self.namespace}/{self.name}"}


def _spec(lease: Mapping[str, Any]) -> dict[str, Any]:
    return lease.get("spec") or {}


def _written(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
