"""The queue of record: enqueue, claim, lease, fence, cancel. The table is the queue.

Every change of hands is a guarded update whose rows are counted, or an update of rows that its
transaction has locked; the database's clock is the only one that counts.
"""

import logging
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import DatabaseError, connection, transaction
from django.db.models import F, Q, QuerySet, Value
from django.db.models.functions import Greatest, Now, Replace

from inference import doorbell, fairness, wakeups
from inference.database import log_failure, now_sql
from inference.saving import FOR_UPDATE

if TYPE_CHECKING:
    from accounts.models import User
    from inference.models import Generation, Release

log = logging.getLogger(__name__)
LEASE = timedelta(seconds=10)
SUSPECT_WAITS = timedelta(seconds=3)  # for an idle worker, until workers take nothing else
SKIP_LOCKED = {"sqlite": "", "postgresql": "FOR UPDATE SKIP LOCKED"}


class Candidate(NamedTuple):
    """A run that may be claimed."""

    key: Any
    is_suspected: bool  # tried in vain before, so that it may run only alone
    has_waited: bool  # beyond its lease (a voided one ended ten seconds ago), and then some


class GenerationQuerySet(QuerySet["Generation"]):
    def visible_to(self, user: Any) -> "GenerationQuerySet":
        return self.filter(user_id=user.pk) if user.is_authenticated else self.none()

    def active(self) -> "GenerationQuerySet":
        return self.filter(status__in=self.model.ACTIVE)

    def unheld(self) -> "GenerationQuerySet":
        """Queued, or left behind by a worker whose lease ran out."""
        # The first condition is implied by the second; it is the one an index serves.
        left_behind = Q(status="running", lease_until__lt=Now())
        return self.active().filter(Q(status="queued") | left_behind)

    def exhausted(self) -> "GenerationQuerySet":
        """Left behind too often without a single new token: the next try would be no better."""
        return self.unheld().filter(fruitless_attempts__gte=self.model.MAX_FRUITLESS_ATTEMPTS)

    def fail_exhausted(self) -> None:
        exhausted = self.exhausted()
        exhausted._fail(exhausted, "The model stopped working at this point three times.")

    def fail_unheld(self, reason: str) -> None:
        """End those that no living worker holds."""
        self.unheld()._fail(None, reason)

    def _fail(self, among: "GenerationQuerySet | None", reason: str) -> None:
        for run in self.all():
            # Ends in a transaction of its own: one that cannot be ended holds up no other.
            try:
                run.log.end_unclaimed("failed", reason, among)
            except DatabaseError:
                log_failure(log, f"{run} could not be ended; it is tried again.")

    def move_unstarted(self, former: "Release", release: "Release") -> None:
        """Those of `former` that no worker has begun are answered by another of its model."""
        moved = self.filter(release=former, status="queued", fence=0, inherited_tokens=0)
        arm = Replace(F("arm"), Value(str(former)), Value(str(release)))
        if moved.update(release=release, arm=arm):
            doorbell.ring("work")

    def enqueue(
        self,
        *,
        user: "User",
        release: "Release",
        messages: list[dict[str, str]],
        parameters: dict[str, Any] | None = None,
        left_out_before: int = 0,
        common: int = 0,
        lengthens: "Generation | None" = None,
        **fields: Any,
    ) -> "Generation":
        """Store a run and its frozen prompt; wake a worker once the transaction commits.

        `lengthens` starts the log with an ended run's whole text and tokens, so that the
        worker goes on after them exactly as it does after a crash. Raises IntegrityError
        when the branch already has an active run.
        """
        from inference.models import Prompt

        chosen = {"priority": user.priority, "arm": release.arm or str(release), **fields}
        with transaction.atomic(savepoint=False):
            turn = fairness.turn_of(user, release, chosen["priority"])
            generation = self.create(user=user, release=release, turn=turn, **chosen)
            Prompt.objects.create(
                generation=generation,
                messages=messages,
                parameters=release.sampling_for(parameters or {}),
                left_out_before=left_out_before,
                common=common,
                summary=lengthens.prompt.summary if lengthens else "",
            )
            if lengthens:
                generation.log.inherit(lengthens)
            transaction.on_commit(lambda: wakeups.run_waits(release, generation.priority))
        return generation

    def claim(
        self,
        release: "Release",
        boot_id: UUID,
        limit: int,
        idle: bool = True,
        lanes: Iterable[str] = tuple(wakeups.LANES),
    ) -> "list[Generation]":
        """Take up to `limit` runs of a release for this worker: fence raised, lease started.

        `lanes`: of wakeups.LANES, those that this worker serves.
        A run that was tried twice in vain is taken only by an idle worker, and alone: should
        the process die again, it is to blame, and nobody else's answer is lost with it. When it
        has waited for that, workers take nothing else, so that one of them becomes idle.
        """
        with transaction.atomic():
            chosen = _together(self._lock_candidates(release, limit, tuple(lanes)), idle)
            alone = idle and len(chosen) == 1
            return self._take(chosen, boot_id, alone) if chosen else []

    def _lock_candidates(
        self, release: "Release", limit: int, lanes: tuple[str, ...]
    ) -> list[Candidate]:
        """Runs that are nobody's, first come first."""
        # Raw SQL, here and below: every first token waits for it, and building the same
        # queries through the ORM took three times as long as running them. Two parts, each in
        # the order of an index, because the queue may have a million rows; where the first one
        # finds enough, the second is not looked at and locks nothing.
        left_behind = self._unlocked(f"status = 'running' AND lease_until < {now_sql()}", lanes)
        queued = self._unlocked("status = 'queued'", lanes)
        sql = f"""
            WITH left_behind AS ({left_behind}), queued AS ({queued})
            SELECT * FROM left_behind UNION ALL SELECT * FROM queued LIMIT %s
        """
        with connection.cursor() as cursor:
            cursor.execute(sql, [*2 * [release.pk, limit], limit])
            return [Candidate(*row) for row in cursor.fetchall()]

    def _unlocked(self, condition: str, lanes: tuple[str, ...]) -> str:
        """The statement that locks such runs of a release, so many at most."""
        if set(lanes) != set(wakeups.LANES):
            ranges = (wakeups.LANES[lane] for lane in lanes)
            among = " OR ".join(f"priority BETWEEN {first} AND {last}" for first, last in ranges)
            condition = f"{condition} AND ({among})"
        most, unsuspected = self.model.MAX_FRUITLESS_ATTEMPTS, self.model.UNSUSPECTED_ATTEMPTS
        return f"""
            SELECT id, fruitless_attempts + shared_attempts >= {unsuspected},
                COALESCE(lease_until < {now_sql(-LEASE - SUSPECT_WAITS)}, FALSE)
            FROM inference_generation
            WHERE release_id = %s AND {condition} AND fruitless_attempts < {most}
            ORDER BY priority, turn, queued_at, id LIMIT %s {SKIP_LOCKED[connection.vendor]}
        """

    def _take(self, keys: list[Any], boot_id: UUID, alone: bool) -> "list[Generation]":
        """Claim these rows, which this transaction has locked; they come with their prompts."""
        from inference.models import Prompt

        marks = ", ".join(["%s"] * len(keys))
        sql = f"""
            UPDATE inference_generation
            SET status = 'running', fence = fence + 1, attempts = attempts + 1,
                fruitless_attempts = fruitless_attempts + {int(alone)},
                shared_attempts = shared_attempts + {int(not alone)}, boot_id = %s,
                lease_until = {now_sql(LEASE)}, started_at = COALESCE(started_at, {now_sql()})
            WHERE id IN ({marks}) RETURNING *
        """
        boot_key = self.model._meta.pk.get_db_prep_value(boot_id, connection)
        runs = sorted(
            self.raw(sql, [boot_key, *keys]), key=lambda r: (r.priority, r.turn, r.queued_at, r.pk)
        )
        sql = f"SELECT * FROM inference_prompt WHERE generation_id IN ({marks})"
        prompts = {prompt.pk: prompt for prompt in Prompt.objects.raw(sql, keys)}
        for run in runs:
            run.prompt = prompts[run.pk]
        return runs

    def renew(self, fences: dict[UUID, int]) -> set[UUID]:
        """Extend the leases of these runs; returns those still held under the fence given."""
        if not fences:
            return set()
        keys = {self.model._meta.pk.get_db_prep_value(pk, connection): pk for pk in fences}
        sql = f"""
            UPDATE inference_generation SET lease_until = {now_sql(LEASE)}
            WHERE id IN (
                SELECT id FROM inference_generation
                WHERE (id, fence) IN (VALUES {", ".join(["(%s, %s)"] * len(keys))})
                    AND status = 'running' {FOR_UPDATE[connection.vendor]}
            )
            RETURNING id
        """
        values = [value for key, pk in keys.items() for value in (key, fences[pk])]
        with connection.cursor() as cursor:
            cursor.execute(sql, values)
            return {keys[key] for (key,) in cursor.fetchall()}

    def _held(self, pk: UUID, fence: int) -> "GenerationQuerySet":
        return self.filter(pk=pk, fence=fence, status="running")

    def give_back(self, pk: UUID, fence: int) -> bool:
        """Release a run that is not to blame: anyone may claim it now, and no try is counted."""
        released = self._held(pk, fence).update(
            fence=F("fence") + 1,
            lease_until=Now() - LEASE,
            attempts=F("attempts") - 1,
            fruitless_attempts=Greatest(F("fruitless_attempts"), 1) - 1,  # 0 after any token
            shared_attempts=Greatest(F("shared_attempts"), 1) - 1,  # which it was is not known
        )
        doorbell.ring("work")
        return bool(released)

    def void_leases(self, boot_id: UUID) -> int:
        """A worker is known to be dead: what it held can be claimed at once."""
        held = self.filter(boot_id=boot_id, status="running")
        with transaction.atomic():
            # In the order in which everybody locks them: its last save may still be at work.
            keys = list(held.order_by("pk").select_for_update().values_list("pk", flat=True))
            voided = held.filter(pk__in=keys).update(lease_until=Now() - LEASE)
        if voided:
            doorbell.ring("work")
        return voided

    def cancel(self) -> None:
        """Ask these runs to stop. A queued one ends here; a running one at its next flush."""
        for run in self.active():
            self.filter(pk=run.pk, cancelled_at=None).update(cancelled_at=Now())
            if not run.log.end_unclaimed("stopped"):
                run.log.ask_to_stop()
                # Asked for after the cancel: whoever claims from now on is told of that.
                holder = self.filter(pk=run.pk).values_list("boot_id", flat=True).first()
                doorbell.ring(f"cancel:{holder}")

    def stop_disabled(self) -> None:
        """Those of people who were disabled since they asked."""
        self.active().filter(user__is_active=False, cancelled_at=None).cancel()

    def asked_to_stop(self, ids: Iterable[UUID]) -> set[UUID]:
        """Which of these runs somebody wants to stop."""
        return set(self.filter(pk__in=ids, cancelled_at__isnull=False).values_list("pk", flat=True))

    def position_of(self, run: "Generation") -> int:
        """How many runs, this one included, wait for the same release up to this one's turn."""
        # Compared inside the database: SQLite keeps times as text, to the millisecond, and a
        # time that has been through Python has more digits.
        queued_at = self.filter(pk=run.pk).values("queued_at")[:1]
        same = Q(priority=run.priority, turn=run.turn, queued_at__lt=queued_at)
        sooner = Q(priority__lt=run.priority) | Q(priority=run.priority, turn__lt=run.turn)
        ahead = sooner | same
        return self.filter(ahead, release_id=run.release_id, status="queued").count() + 1

    def forget(self) -> None:
        """Blank what was asked and answered; what it took and cost stays."""
        from inference.models import Chunk, Prompt

        ended = self.exclude(status__in=self.model.ACTIVE)
        for kind in (Chunk, Prompt):
            kind.objects.filter(generation__in=ended.values("pk")).delete()
        ended.update(text="", token_ids=b"", error="")

    def expire_logs(self) -> None:
        """Drop the events of runs that ended a while ago; their text is on the row itself."""
        from inference.models import Chunk

        age = timedelta(seconds=settings.LOG_RETENTION_SECONDS)
        old = Chunk.objects.filter(generation__finished_at__lt=Now() - age)
        ids = old.values_list("generation", flat=True).distinct()[:100]
        Chunk.objects.filter(generation__in=list(ids)).delete()


def _together(candidates: Sequence[Candidate], idle: bool) -> list[Any]:
    """Keys of the first candidates that may run side by side; a suspected one only alone."""
    for one in candidates:
        if one.is_suspected and one.has_waited:
            return [one.key] if idle else []
    chosen: list[Any] = []
    for one in candidates:
        if one.is_suspected:
            return chosen or ([one.key] if idle else [])
        chosen.append(one.key)
    return chosen
