"""Everything that can happen to a pool, in any order: the limits hold, the queue is fair, and nobody is forgotten."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from vaultfs.mesh.pool_actions import Reason
from vaultfs.mesh.pool_records import PoolLimits

from .desk import A, B, C, D, Desk, Doing


class Pool(RuleBasedStateMachine):
    desk: Desk

    @initialize(
        per_peer=st.integers(1, 3),
        total=st.integers(0, 3),
        idle=st.integers(0, 6),
        depth=st.sampled_from((1, 2, 3, 8)),
    )
    def begin(self, per_peer: int, total: int, idle: int, depth: int) -> None:
        most = per_peer + total
        self.desk = Desk(
            PoolLimits(max_per_peer=per_peer, max_total=most, max_idle=min(idle, most), pipeline_depth=depth)
        )

    @rule(peer=st.sampled_from((A, B, C, D)), shared=st.booleans(), wait_s=st.sampled_from((0.0, 1.0, 60.0)))
    def ask(self, peer: bytes, shared: bool, wait_s: float) -> None:
        self.desk.ask(peer, shared=shared, wait_s=wait_s)  # type: ignore[arg-type]  # of these four

    @precondition(lambda self: self.desk.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.desk.cancel(data.draw(st.sampled_from(sorted(self.desk.waiting))))

    @precondition(lambda self: self.desk.held)
    @rule(data=st.data(), breaks=st.sampled_from((False, False, True)))
    def release(self, data: st.DataObject, breaks: bool) -> None:
        lease = data.draw(st.sampled_from(sorted(self.desk.held)))
        line = self.desk.lines.get(self.desk.held[lease])
        if breaks and line is not None:
            line.is_closed = True
        self.desk.release(lease)

    @precondition(lambda self: self.desk.dialled())
    @rule(data=st.data(), succeeds=st.booleans())
    def dial(self, data: st.DataObject, succeeds: bool) -> None:
        connection = data.draw(st.sampled_from(self.desk.dialled()))
        if succeeds:
            self.desk.open(connection)
        else:
            self.desk.fail(connection)

    @precondition(lambda self: self.desk.pinged())
    @rule(data=st.data(), is_alive=st.booleans())
    def answer(self, data: st.DataObject, is_alive: bool) -> None:
        self.desk.answer(data.draw(st.sampled_from(self.desk.pinged())), is_alive=is_alive)

    @precondition(lambda self: self.desk.leaving())
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.desk.end(data.draw(st.sampled_from(self.desk.leaving())))

    @precondition(lambda self: self.desk.lines)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        """The network cuts a connection, or an attempt to make one ends without a result."""
        self.desk.end(data.draw(st.sampled_from(sorted(self.desk.lines))))

    @precondition(lambda self: any(line.leases for line in self.desk.lines.values()))
    @rule(data=st.data())
    def hear_goodbye(self, data: st.DataObject) -> None:
        """A connection takes no more requests; answers may still come."""
        used = [key for key, line in self.desk.lines.items() if line.leases]
        self.desk.lines[data.draw(st.sampled_from(used))].is_closed = True

    @rule(for_s=st.sampled_from((0.0, 0.3, 1.0, 29.0, 31.0, 301.0)))
    def pass_time(self, for_s: float) -> None:
        self.desk.pass_time(for_s)

    def teardown(self) -> None:
        """Whatever happened: when peers answer and leases end, nobody waits any more, and then nothing is left."""
        if not hasattr(self, "desk"):
            return
        desk = self.desk
        patient = [lease for lease, wish in desk.waiting.items() if wish.deadline_s > desk.now_s + 1]
        for _ in range(1000):
            if not desk.waiting:
                break
            for connection in tuple(desk.lines):
                line = desk.lines.get(connection)
                if line is None:
                    continue
                if line.doing is Doing.DIALLED:
                    desk.open(connection)
                elif line.doing is Doing.PINGED:
                    desk.answer(connection, is_alive=True)
                elif line.doing is Doing.LEAVING:
                    desk.end(connection)
            for lease in tuple(desk.held):
                desk.release(lease)
        assert not desk.waiting, "somebody waits for ever"
        for lease in patient:
            assert lease not in desk.failed or desk.failed[lease].reason is Reason.FAILURE
        desk.close()
        for connection in tuple(desk.lines):
            desk.end(connection)
        counters = desk.policy.counters()
        assert (counters.open, counters.opening, counters.idle, counters.leases, counters.waiting) == (0, 0, 0, 0, 0)
        assert desk.policy.is_empty()


def test_whatever_happens_the_pool_is_fair_and_forgets_nobody(long_run: bool) -> None:
    run_state_machine_as_test(
        Pool,
        settings=settings(
            max_examples=5_000 if long_run else 80,
            stateful_step_count=60,
            deadline=None,
            database=None,
            derandomize=not long_run,
            suppress_health_check=list(HealthCheck),
        ),
    )
