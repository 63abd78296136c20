"""The stories of what fails and what is done about it, one by one; then random worlds in which everything fails."""

import dataclasses
import itertools
import random
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from supervisor_world import Fault, Watched, World, size_of

from splitinfer.errors import UsageError
from splitinfer.supervisor import (
    Abandon,
    Accept,
    AnswerAlone,
    Answered,
    Arrived,
    Beat,
    Choice,
    Close,
    Closed,
    Deploy,
    Deployed,
    DeployFailed,
    Drained,
    DrainTier,
    Failed,
    GatewayLost,
    GatewayUp,
    Instruction,
    Machine,
    Mend,
    Missed,
    Ping,
    Reason,
    Refuse,
    ReturnTier,
    Send,
    Settings,
    Start,
    StartGateway,
    State,
    StopGateway,
    Switched,
    Tick,
    Undeploy,
)

SPLIT = Choice("edge+cloud", frozenset({"edge", "cloud"}), 0.2)  # down after 2.4 s of silence
EDGE = Choice("edge", frozenset({"edge"}), 0.25)  # 2.5 s
CLOUD = Choice("cloud", frozenset({"cloud"}), 0.5)  # 3 s


class Story:
    """A watched machine and the time; what it says is told with its time, pings and their answers left out."""

    def __init__(self, *family, alone=True, repeatable=True, **changes):
        self.watched = Watched(family, Settings(**changes), can_answer_alone=alone, repeatable=repeatable)
        self.machine, self.now_s = self.watched.machine, 0.0

    def at(self, now_s, *events):
        """What is said to these events, which come at this time."""
        self.now_s = now_s
        return [said for event in events for said in self.watched.handle(event, now_s)]

    def until(self, end_s, *alive, wakes=None):
        """(time, instruction) up to then, while these plans answer each ping at once; nothing else happens but time."""
        told = []
        for plan in alive:
            if plan in self.watched.out:
                told += [(self.now_s, one) for one in self.at(self.now_s, Beat(plan)) if not isinstance(one, Ping)]
        while (wake_s := self.machine.wake_s()) is not None and wake_s <= end_s:
            said = self.at(wake_s, Tick())
            for beat in [Beat(ping.plan) for ping in said if isinstance(ping, Ping) and ping.plan in alive]:
                said += self.at(wake_s, beat)
            told += [(round(wake_s, 6), one) for one in said if not isinstance(one, Ping)]
        self.now_s = end_s
        return told

    def start(self, *up):
        """At 0 s the gateway is up and these plans are deployed."""
        self.at(0, Start(), GatewayUp(), *(Deployed(choice.name) for choice in up))
        self.at(0, *(Beat(choice.name) for choice in up))
        return self


def plain(told):
    return [said for _, said in told]


# --- the ordinary way


def test_the_gateway_starts_the_plans_are_deployed_and_requests_take_the_best():
    story = Story(SPLIT, EDGE)
    assert story.at(0, Start()) == [StartGateway()]
    assert story.at(2, GatewayUp()) == [Deploy("edge+cloud"), Deploy("edge")]
    assert story.at(4, Deployed("edge")) == [Switched("edge", "plan 'edge' is deployed"), Ping("edge")]
    assert story.at(5, Deployed("edge+cloud")) == [
        Switched("edge+cloud", "plan 'edge+cloud' is deployed"),
        Ping("edge+cloud"),
    ]
    assert story.at(5, Arrived("a", 9)) == [Send("a", 0, "edge+cloud")]
    assert story.at(5.2, Answered("a", 0)) == [Accept("a", 0)]
    assert story.machine.in_flight == 0


def test_until_a_plan_is_up_the_device_answers_alone():
    story = Story(SPLIT)
    assert story.at(0, Arrived("a", 9), Start(), Arrived("b", 9)) == [AnswerAlone("a", 0), StartGateway(), AnswerAlone("b", 0)]
    assert story.at(1, Answered("b", 0), Answered("a", 0)) == [Accept("b", 0), Accept("a", 0)]


def test_a_device_that_cannot_answer_lets_requests_wait():
    story = Story(SPLIT, alone=False)
    assert story.at(0, Start(), Arrived("a", 3), Arrived("b", 9), GatewayUp()) == [StartGateway(), Deploy("edge+cloud")]
    why = "nobody could answer (no plan is up) within the 3 s that were allowed"
    assert story.until(3) == [(3, Refuse("a", Reason.DEADLINE, why))]
    assert story.at(4, Deployed("edge+cloud"))[:2] == [Switched("edge+cloud", "plan 'edge+cloud' is deployed"), Send("b", 0, "edge+cloud")]


def test_without_plans_there_is_no_gateway():
    story = Story()
    assert story.at(0, Start(), Arrived("a", 9)) == [AnswerAlone("a", 0)]
    assert story.machine.current is None


def test_pings_keep_their_distance_and_do_not_pile_up():
    story = Story(EDGE).start(EDGE)
    assert story.at(0.49, Tick()) == []
    assert story.at(0.5, Tick()) == [Ping("edge")]
    assert story.at(1.2, Tick()) == []  # the last one is still out
    assert story.at(1.3, Beat("edge")) == [Ping("edge")]  # it came late, so the next is due
    assert story.at(3.0, Answered("unknown", 0)) == []
    assert story.machine.wake_s() == 3.8  # silent for 2.5 s
    story.at(3.8, Tick())
    assert story.machine.plans["edge"].state is State.DOWN
    assert story.machine.wake_s() == 3.8 + 2.5  # the ping came due together with the silence: a new one went out at once


# --- a plan goes down


def test_a_silent_plan_is_left_for_the_next_one_with_all_its_requests():
    story = Story(SPLIT, EDGE).start(SPLIT, EDGE)
    assert story.at(0.1, Arrived("a", 9), Arrived("b", 9)) == [Send("a", 0, "edge+cloud"), Send("b", 0, "edge+cloud")]
    why = "plan 'edge+cloud' gave no sign of life for 2.4 s (limit 2.4 s)"
    assert story.until(3, "edge") == [
        (2.4, Switched("edge", why)),
        (2.4, Abandon("a", 0)),
        (2.4, Send("a", 1, "edge")),
        (2.4, Abandon("b", 0)),
        (2.4, Send("b", 1, "edge")),
    ]
    assert story.machine.plans["edge+cloud"].why == why


def test_with_no_plan_left_the_device_answers():
    story = Story(EDGE).start(EDGE)
    story.at(0.1, Arrived("a", 9))
    why = "plan 'edge' gave no sign of life for 2.5 s (limit 2.5 s)"
    assert story.until(3) == [(2.5, Switched(None, why)), (2.5, Abandon("a", 0)), (2.5, AnswerAlone("a", 1))]


def test_an_answer_is_a_sign_of_life():
    story = Story(EDGE).start(EDGE)
    story.at(0.1, Arrived("a", 9))
    assert story.at(2, Answered("a", 0))[0] == Accept("a", 0)
    assert story.until(4.4) == []
    assert plain(story.until(4.5)) == [Switched(None, "plan 'edge' gave no sign of life for 2.5 s (limit 2.5 s)")]


def test_a_ping_that_fails_at_once_takes_the_plan_down_at_once():
    story = Story(SPLIT, EDGE).start(SPLIT, EDGE)
    story.at(0.5, Tick(), Arrived("a", 9))
    assert story.at(0.6, Missed("edge+cloud", "no route")) == [
        Switched("edge", "plan 'edge+cloud' failed a ping: no route"),
        Abandon("a", 0),
        Send("a", 1, "edge"),
    ]


def test_a_lost_request_takes_the_plan_down_and_is_tried_again_at_once_with_all_others():
    story = Story(SPLIT, EDGE).start(SPLIT, EDGE)
    story.at(0.1, Arrived("a", 9), Arrived("b", 9))
    assert story.at(0.2, Failed("b", 0, True, "ActorDiedError")) == [
        Switched("edge", "plan 'edge+cloud' lost a request: ActorDiedError"),
        Abandon("a", 0),
        Send("a", 1, "edge"),
        Send("b", 1, "edge"),
    ]


def test_a_plan_that_was_down_is_used_again_after_two_pings_in_a_row():
    story = Story(SPLIT, EDGE).start(SPLIT, EDGE)
    story.at(0.5, Tick(), Beat("edge"), Missed("edge+cloud", "no route"))
    assert Ping("edge+cloud") in story.at(1, Tick())
    assert story.at(1.1, Beat("edge+cloud"), Beat("edge+cloud"), Beat("edge")) == []  # the same one twice counts once
    assert Ping("edge+cloud") in story.at(1.5, Tick())
    assert story.at(1.6, Missed("edge+cloud", "no route"), Beat("edge")) == []
    assert story.until(3.5, "edge+cloud", "edge") == [(2.5, Switched("edge+cloud", "plan 'edge+cloud' answered 2 pings in a row"))]


def test_a_ping_that_never_comes_back_breaks_the_row():
    story = Story(EDGE).start(EDGE)
    story.at(0.5, Tick())
    story.at(0.6, Missed("edge", "no route"))
    assert story.at(1, Tick(), Beat("edge")) == [Ping("edge")]
    assert story.at(1.5, Tick()) == [Ping("edge")]
    assert story.at(4, Tick(), Beat("edge")) == [Ping("edge")]  # the third one, so this beat is the first of a new row
    assert story.at(4.5, Tick(), Beat("edge")) == [Ping("edge"), Switched("edge", "plan 'edge' answered 2 pings in a row")]


def test_a_plan_that_fails_whenever_it_is_used_is_used_less_and_less():
    """Pings do not show every fault: what falls over at the first request must not get all of them, twice a second."""
    story = Story(EDGE).start(EDGE)
    times = [0.0]
    for number in range(7):
        story.at(story.now_s + 0.1, Arrived(str(number), story.now_s + 99), Failed(str(number), 0, True, "out of memory"))
        while story.machine.current is None:
            story.until(story.machine.wake_s(), "edge")
        times.append(story.now_s)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps[0] == pytest.approx(1)  # two pings
    assert all(backoff < gap < backoff + 1.1 for gap, backoff in zip(gaps[1:], [1, 2, 4, 8, 10, 10], strict=True))
    story.until(story.now_s + 11, "edge")  # well for longer than its last backoff: all is forgotten
    story.at(story.now_s, Arrived("z", 999), Failed("z", 0, True, "out of memory"))
    assert plain(story.until(story.now_s + 1, "edge")) == [Switched("edge", "plan 'edge' answered 2 pings in a row")]


# --- what becomes of a request


def test_the_first_answer_wins_even_from_an_attempt_that_was_given_up():
    story = Story(SPLIT, EDGE).start(SPLIT, EDGE)
    story.at(0.1, Arrived("a", 9))
    story.until(2.4, "edge")
    assert story.at(2.45, Answered("a", 0)) == [Abandon("a", 1), Accept("a", 0)]
    assert story.at(2.5, Answered("a", 1), Answered("a", 0), Failed("a", 1, True, "late")) == [Ping("edge")]


def test_the_failure_of_an_attempt_that_was_given_up_says_nothing_of_the_plan_now():
    story = Story(EDGE).start(EDGE)
    story.at(0.1, Arrived("a", 99))
    story.until(2.5)
    story.until(8, "edge")
    assert story.machine.current == "edge"
    assert story.at(8.01, Failed("a", 0, True, "cancelled"), Failed("a", 0, False, "cancelled")) == []
    assert story.at(8.02, Answered("a", 1)) == [Accept("a", 1)]


def test_an_error_of_the_model_is_final():
    story = Story(SPLIT, EDGE).start(SPLIT, EDGE)
    story.at(0.1, Arrived("a", 9))
    assert story.at(0.2, Failed("a", 0, False, "ValueError: bad shape")) == [Refuse("a", Reason.FAILED, "ValueError: bad shape")]
    assert story.machine.current == "edge+cloud"


def test_a_stateful_model_is_not_asked_twice():
    story = Story(SPLIT, EDGE, repeatable=False).start(SPLIT, EDGE)
    story.at(0.1, Arrived("a", 9), Arrived("b", 9))
    again = "a stateful model cannot be asked again: begin a new sequence"
    assert story.at(0.2, Failed("a", 0, True, "ActorDiedError")) == [
        Refuse("a", Reason.LOST, f"ActorDiedError; {again}"),
        Switched("edge", "plan 'edge+cloud' lost a request: ActorDiedError"),
        Abandon("b", 0),
        Refuse("b", Reason.LOST, f"plan 'edge+cloud' lost a request: ActorDiedError; {again}"),
    ]


def test_at_its_deadline_a_request_is_refused():
    story = Story(EDGE).start(EDGE)
    story.at(0.1, Arrived("a", 2))
    why = "plan 'edge' did not answer within the 1.9 s that were allowed"
    assert story.until(3, "edge") == [(2, Abandon("a", 0)), (2, Refuse("a", Reason.DEADLINE, why))]
    assert story.at(3, Arrived("b", 3)) == [Refuse("b", Reason.DEADLINE, "it arrived 0 s after its deadline; allow more time")]


def test_a_request_that_was_lost_waits_for_a_plan_and_says_why():
    story = Story(EDGE, alone=False).start(EDGE)
    story.at(0.1, Arrived("a", 5))
    story.at(0.2, Failed("a", 0, True, "ActorDiedError"))
    why = "nobody could answer (ActorDiedError) within the 4.9 s that were allowed"
    assert plain(story.until(5))[-1] == Refuse("a", Reason.DEADLINE, why)


def test_too_many_requests_are_refused_with_both_numbers():
    story = Story(EDGE, most_in_flight=2).start(EDGE)
    story.at(0.1, Arrived("a", 9), Arrived("b", 9))
    why = "2 requests are open and 2 are allowed; send fewer at a time or raise most_in_flight"
    assert story.at(0.2, Arrived("c", 9)) == [Refuse("c", Reason.OVERLOADED, why)]
    assert story.at(0.3, Answered("a", 0), Arrived("d", 9)) == [Accept("a", 0), Send("d", 0, "edge")]


def test_a_device_that_loses_a_request_is_not_asked_for_it_again():
    story = Story(EDGE)
    assert story.at(0, Start(), GatewayUp(), Arrived("a", 9))[-1] == AnswerAlone("a", 0)
    assert story.at(1, Failed("a", 0, True, "worker died")) == []  # no plan is up, it waits
    assert story.at(2, Deployed("edge"))[1:2] == [Send("a", 1, "edge")]
    assert story.at(2.1, Failed("a", 1, True, "ActorDiedError")) == [Switched(None, "plan 'edge' lost a request: ActorDiedError")]
    assert story.at(2.1, Arrived("b", 9)) == [AnswerAlone("b", 0)]


# --- the plan and its gateway come back


def test_a_restarted_stage_is_reloaded_and_later_again():
    story = Story(EDGE).start(EDGE)
    story.at(0.5, Tick())
    assert story.at(0.6, Missed("edge", "empty", restarted=True))[0] == Mend("edge")
    mends = []
    while story.now_s < 20:
        said = story.at(story.machine.wake_s(), Tick())
        if Ping("edge") in said:
            said += story.at(story.now_s, Missed("edge", "empty", restarted=True))
        mends += [story.now_s] * said.count(Mend("edge"))
        assert StopGateway() not in said  # what is being reloaded has as long as a deployment
    waits = [later - earlier for earlier, later in itertools.pairwise([0.6, *mends])]
    assert all(least <= wait < least + 0.5 for wait, least in zip(waits, [2, 4, 8], strict=False))
    assert story.until(22, "edge")[-1][1] == Switched("edge", "plan 'edge' answered 2 pings in a row")


def test_a_plan_that_stays_down_beside_others_is_deployed_anew_and_proves_itself_first():
    story = Story(SPLIT, EDGE).start(SPLIT, EDGE)
    assert story.until(25, "edge") == [
        (2.4, Switched("edge", "plan 'edge+cloud' gave no sign of life for 2.4 s (limit 2.4 s)")),
        (17.4, Undeploy("edge+cloud")),
        (19.4, Deploy("edge+cloud")),
    ]
    assert story.at(25, Deployed("edge+cloud")) == [Ping("edge+cloud")]
    assert story.until(26, "edge") == []
    assert plain(story.until(30, "edge", "edge+cloud")) == [Switched("edge+cloud", "plan 'edge+cloud' answered 2 pings in a row")]


def test_a_gateway_of_which_nobody_gives_a_sign_of_life_is_ended_and_started_anew():
    story = Story(SPLIT, EDGE).start(SPLIT, EDGE)
    told = story.until(20)
    assert told[-2:] == [(17.4, StopGateway()), (18.4, StartGateway())]
    assert story.machine.gateway.why == "the gateway is starting"
    assert story.machine.plans["edge"].why == "plan 'edge+cloud' did not come back within 15 s, and no other gave a sign of life"
    assert story.at(21, GatewayUp()) == [Deploy("edge+cloud"), Deploy("edge")]


def test_when_the_gateway_is_lost_its_requests_go_on_alone():
    story = Story(SPLIT, EDGE).start(SPLIT, EDGE)
    story.at(0.1, Arrived("a", 9))
    why = "the gateway is gone: exit code 1"
    assert story.at(0.2, GatewayLost("exit code 1")) == [Switched(None, why), Abandon("a", 0), AnswerAlone("a", 1)]
    assert story.at(0.3, GatewayLost("exit code 1")) == []  # told twice
    assert story.until(2) == [(1.2, StartGateway())]
    assert story.at(2, GatewayUp(), Deployed("edge+cloud"))[:4] == [
        Deploy("edge+cloud"), Deploy("edge"), Switched("edge+cloud", "plan 'edge+cloud' is deployed"), Ping("edge+cloud"),
    ]  # fmt: skip


def test_a_gateway_that_cannot_start_is_tried_later_and_later():
    story = Story(EDGE)
    story.at(0, Start())
    starts = [0.0]
    for _ in range(6):
        story.at(story.now_s, GatewayLost("no route"))
        assert plain(story.until(story.machine.wake_s())) == [StartGateway()]
        starts.append(story.now_s)
    assert [later - earlier for earlier, later in itertools.pairwise(starts)] == [1, 2, 4, 8, 10, 10]
    story.at(story.now_s, GatewayUp())
    ended_s = story.now_s + 60
    story.until(ended_s)
    story.at(ended_s, GatewayLost("killed"))  # it was well for long: not its fault
    assert story.machine.wake_s() == ended_s + 1


def test_a_gateway_whose_start_hangs_is_ended():
    story = Story(EDGE)
    story.at(0, Start())
    assert story.until(31) == [(30, StopGateway()), (31, StartGateway())]
    assert story.machine.gateway.state is State.COMING


def test_a_plan_that_cannot_be_deployed_is_tried_later_and_later():
    story = Story(SPLIT, EDGE).start(EDGE)
    tries = [0.0]
    for _ in range(5):
        story.at(story.now_s, DeployFailed("edge+cloud", "no such node"))
        while Deploy("edge+cloud") not in plain(story.until(story.now_s + 0.25, "edge")):
            pass
        tries.append(story.now_s)
    assert [later - earlier for earlier, later in itertools.pairwise(tries)] == [1, 2, 4, 8, 10]
    assert "no such node" not in story.machine.plans["edge+cloud"].why
    assert story.machine.current == "edge"


def test_a_deployment_that_hangs_is_broken_off_beside_a_plan_that_works():
    story = Story(SPLIT, EDGE).start(EDGE)
    assert story.until(122, "edge") == [(120, Undeploy("edge+cloud")), (121, Deploy("edge+cloud"))]


def test_deployments_that_all_hang_end_the_gateway():
    story = Story(SPLIT, EDGE)
    story.at(0, Start(), GatewayUp())
    assert story.until(122) == [(120, StopGateway()), (121, StartGateway())]


# --- drain, standby, close


def test_a_tier_is_drained_and_returned():
    story = Story(SPLIT, EDGE, CLOUD).start(SPLIT, EDGE, CLOUD)
    story.at(0.1, Arrived("a", 9))
    assert story.at(0.2, DrainTier("edge")) == [Switched("cloud", "plan 'edge+cloud' uses a tier that is being drained: edge")]
    assert story.machine.draining == {"edge"}
    assert story.at(0.3, Arrived("b", 9)) == [Send("b", 0, "cloud")]
    assert story.at(0.4, Answered("a", 0)) == [Accept("a", 0), Drained("edge")]
    assert story.at(0.4, DrainTier("edge"), DrainTier("unheard of")) == [Drained("edge"), Drained("unheard of")]
    assert story.machine.draining == {"edge"}
    assert story.at(0.45, ReturnTier("edge")) == [Switched("edge+cloud", "plan 'edge+cloud' is deployed")]
    assert story.at(0.45, Answered("b", 0)) == [Accept("b", 0)]


def test_a_request_that_moves_away_leaves_the_tier_drained():
    story = Story(SPLIT, CLOUD).start(SPLIT, CLOUD)
    story.at(0.1, Arrived("a", 9), DrainTier("edge"))
    said = story.at(0.2, Failed("a", 0, True, "ActorDiedError"))
    assert said == [Send("a", 1, "cloud"), Drained("edge")]


def test_a_drained_tier_is_left_alone_until_it_returns():
    story = Story(SPLIT, CLOUD).start(SPLIT, CLOUD)
    assert story.at(0.1, DrainTier("edge"))[-1] == Drained("edge")
    assert plain(story.until(60, "cloud")) == [Undeploy("edge+cloud")]  # its machine was switched off
    assert story.at(60, ReturnTier("edge"))[:1] == [Deploy("edge+cloud")]


def test_one_plan_stands_by_and_the_next_when_it_is_needed():
    story = Story(SPLIT, EDGE, CLOUD, standby=1)
    assert story.at(0, Start(), GatewayUp()) == [StartGateway(), Deploy("edge+cloud")]
    story.at(0, Deployed("edge+cloud"))
    why = "plan 'edge+cloud' lost a request: died"
    story.at(0.4, Arrived("a", 30))
    assert story.at(0.5, Failed("a", 0, True, "died")) == [Switched(None, why), AnswerAlone("a", 1), Deploy("edge")]
    assert story.at(1.5, Deployed("edge"))[0] == Switched("edge", "plan 'edge' is deployed")
    story.at(1.5, Arrived("b", 30))
    told = story.until(20, "edge", "edge+cloud")
    assert plain(told) == [Switched("edge+cloud", "plan 'edge+cloud' answered 2 pings in a row")]  # b is under way on the other one
    assert story.at(20, Answered("b", 0)) == [Accept("b", 0), Undeploy("edge")]


def test_the_next_plan_stands_by_while_the_first_is_drained():
    story = Story(SPLIT, EDGE, CLOUD, standby=1)
    story.at(0, Start(), GatewayUp(), Deployed("edge+cloud"))
    assert Deploy("cloud") in story.at(0.4, DrainTier("edge"))
    story.at(0.4, Deployed("cloud"))
    told = story.until(12, "cloud", "edge+cloud")
    assert [said for said in plain(told) if isinstance(said, Undeploy)] == [Undeploy("edge+cloud")]
    assert told[-1][0] == pytest.approx(10.4, abs=0.5)


def test_closing_waits_for_what_is_under_way():
    story = Story(EDGE).start(EDGE)
    story.at(0.1, Arrived("a", 9), Close(5))
    why = "the pipeline is being closed and takes no new requests; open another"
    assert story.at(0.2, Arrived("b", 9)) == [Refuse("b", Reason.CLOSED, why)]
    assert story.at(0.3, Answered("a", 0)) == [Accept("a", 0), Closed()]
    assert story.machine.wake_s() is None
    assert story.at(99, Tick(), GatewayLost("late"), DrainTier("nowhere"), Start(), Answered("a", 0)) == []
    assert story.at(99, Arrived("c", 200)) == [Refuse("c", Reason.CLOSED, why)]


def test_closing_does_not_wait_for_ever():
    story = Story(EDGE).start(EDGE)
    story.at(0.1, Arrived("a", 9), Close(2))
    refused = Refuse("a", Reason.CLOSED, "the pipeline was closed before there was an answer")
    assert story.until(3, "edge") == [(2, Abandon("a", 0)), (2, refused), (2, Closed())]
    assert Story(EDGE).at(0, Close(5)) == [Closed()]
    quiet = Story()
    quiet.at(0, Arrived("a", 9), Close(2))
    assert quiet.until(3) == [(2, Abandon("a", 0)), (2, refused), (2, Closed())]


# --- the rest


def test_a_pause_of_our_own_process_is_no_silence_of_the_others():
    """A laptop that slept for ten seconds wakes up with ten seconds of unread beats; the first thing it sees may be its timer."""
    story = Story(EDGE).start(EDGE)
    story.until(5, "edge")
    assert story.at(15, Tick()) == [Ping("edge")]
    assert story.machine.current == "edge"
    assert [at_s for at_s, _ in story.until(20)] == [pytest.approx(17, abs=0.51)]  # and from there on it counts as ever


def test_what_is_unknown_or_late_is_ignored():
    story = Story(SPLIT, EDGE).start(SPLIT, EDGE)
    story.at(0.1, Arrived("a", 9))
    events = [
        Answered("nobody", 0), Answered("a", 7), Answered("a", -1), Failed("a", 3, True, ""), Failed("nobody", 0, True, ""), GatewayUp(),
        Deployed("nobody"), Deployed("edge"), DeployFailed("edge", "late"), DeployFailed("nobody", ""), Beat("nobody"), Beat("edge"),
        Missed("edge", "late"), Missed("nobody", "", True), Missed("edge", "late", True), ReturnTier("edge"), Start(), Arrived("a", 20),
    ]  # fmt: skip
    before = story.machine.plans
    assert story.at(0.2, *events) == []
    assert story.machine.plans == before
    story.at(0.3, GatewayLost("killed"))
    assert story.at(0.4, GatewayUp(), Deployed("edge"), Beat("edge"), Missed("edge", "late")) == []


def test_time_does_not_run_backwards():
    machine = Machine([], Settings(), can_answer_alone=True, repeatable=True)
    machine.handle(Tick(), 5)
    assert machine.handle(Arrived("a", 4.5), 4) == [Refuse("a", Reason.DEADLINE, "it arrived 0.5 s after its deadline; allow more time")]


def test_the_state_is_there_to_be_shown():
    story = Story(SPLIT, EDGE).start(SPLIT)
    story.at(0.25, Arrived("a", 9), Arrived("b", 9))
    machine = story.machine
    assert (machine.in_flight, machine.gateway.in_flight, machine.gateway.state, machine.gateway.why) == (
        2,
        2,
        State.UP,
        "the gateway is up",
    )
    assert [(name, plan.state, plan.since_s, plan.in_flight) for name, plan in machine.plans.items()] == [
        ("edge+cloud", State.UP, 0, 2),
        ("edge", State.COMING, 0, 0),
    ]
    assert machine.plans["edge"].why == "plan 'edge' is being deployed"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beat_s": 0}, "beat_s is 0"),
        ({"silence_s": float("nan")}, "silence_s is nan"),
        ({"stuck_s": float("inf")}, "must be finite"),
        ({"longest_backoff_s": 0.5}, "below first_backoff_s, 1.0"),
        ({"steady_beats": 0}, "steady_beats is 0; it must be at least 1"),
        ({"most_in_flight": 0}, "most_in_flight is 0"),
        ({"standby": 0}, "standby is 0"),
    ],
)
def test_settings_out_of_range(change, message):
    with pytest.raises(UsageError, match=message):
        Settings(**change)


def test_plans_that_cannot_be():
    with pytest.raises(UsageError, match="latency of -1 s"):
        Choice("edge", frozenset(), -1)
    with pytest.raises(UsageError, match="the same name: edge, edge; rename one"):
        Machine([EDGE, dataclasses.replace(SPLIT, name="edge")], Settings(), can_answer_alone=True, repeatable=True)


# --- random worlds

KINDS = ["kill", "lose", "cut", "drain", "die", "hang"]
FAMILY = (SPLIT, EDGE, CLOUD)
faults = st.builds(
    Fault,
    st.floats(0, 40).map(lambda at_s: round(at_s, 2)),
    st.sampled_from([0.1, 1.0, 3.0, 8.0, 20.0]),
    st.sampled_from(KINDS),
    st.sampled_from(["edge", "cloud"]),
)
seeds = st.integers(0, 2**32)
worlds = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def live(seed, struck, arrivals, *, family=FAMILY, alone=True, repeatable=True, faulty=frozenset(), delay_s=0.3, **changes):
    """A world with these faults and arrivals, run until a minute after the last; (time, seconds allowed) for each request."""
    watched = Watched(family, Settings(**changes), can_answer_alone=alone, repeatable=repeatable)
    world = World(watched, random.Random(seed), struck, delay_s, faulty=faulty)
    world.tell(Start())
    for number, (at_s, allowed_s) in enumerate(arrivals):
        world.at(at_s, lambda name=str(number), by_s=at_s + allowed_s: world.tell(Arrived(name, by_s)))
    world.run(60 + max((at_s + allowed_s for at_s, allowed_s in arrivals), default=0))
    assert len(watched.verdicts) == len(arrivals) and not watched.open
    return world


arrivals = st.lists(st.tuples(st.floats(0, 50), st.sampled_from([0.2, 1.0, 5.0, 30.0])), max_size=20)


@worlds
@given(
    seeds, st.lists(faults, max_size=6), arrivals, st.permutations(FAMILY), st.integers(0, 3), st.booleans(),
    st.booleans(), st.sampled_from([None, 1, 2]), st.sampled_from([3, 256]), st.sampled_from([0.0, 0.3, 5.0]),
)  # fmt: skip
def test_whatever_happens_each_request_ends_once_and_in_time(seed, struck, arrivals, family, plans, alone, repeatable, standby, most, late):
    live(
        seed, struck, arrivals, family=family[:plans], alone=alone, repeatable=repeatable, standby=standby, most_in_flight=most,
        faulty=frozenset({"0", "3"}), delay_s=late,
    )  # fmt: skip


@worlds
@given(seeds, st.lists(faults, max_size=4), st.lists(st.floats(0, 50), max_size=30), st.sampled_from([None, 1, 2]))
def test_a_device_that_can_answer_alone_loses_no_request(seed, struck, times, standby):
    """Each fault costs a request one silence of each plan at most, and then the device answers."""
    world = live(seed, struck, [(at_s, 60.0) for at_s in times], faulty=frozenset({"1"}), standby=standby, most_in_flight=25)
    refused = {name: verdict for name, verdict in world.watched.verdicts.items() if isinstance(verdict, Refuse)}
    assert all(verdict.reason is Reason.OVERLOADED or name == "1" for name, verdict in refused.items())


@worlds
@given(seeds, st.lists(faults, max_size=6), st.booleans(), st.sampled_from([None, 1, 2]))
def test_when_the_faults_are_over_the_best_plan_is_soon_back(seed, struck, alone, standby):
    """Slowest: a deployment hangs, so does the start of the next gateway; the longest backoffs, and a deployment."""
    world = live(seed, struck, [], alone=alone, standby=standby, deploy_timeout_s=20.0)
    over_s = max((fault.at_s + fault.length_s for fault in struck), default=0)
    world.run(over_s + 20 + 30 + 3 * 10 + 5)
    assert world.watched.current == "edge+cloud"
    before = len(world.watched.verdicts)
    for number in range(20):
        world.later(number / 4, lambda name=f"late {number}", by_s=world.now_s + 10: world.tell(Arrived(name, by_s)))
    world.run(world.now_s + 10)
    late = list(world.watched.verdicts.items())[before:]
    assert len(late) == 20 and all(isinstance(verdict, Accept) and world.watched.tries[name] == 1 for name, verdict in late)
    assert world.handled < 40 * world.now_s + 500, "it hardly rests"


@pytest.mark.slow
def test_a_thousand_worlds():
    """The three properties at once, a close at the end; and the worlds are wild enough for every instruction to come up."""
    said = set()
    for seed in range(1000):
        chance = random.Random(seed)
        standby, repeatable = chance.choice([None, 1, 2]), chance.random() < 0.8
        struck = [
            Fault(chance.uniform(0, 40), chance.choice([0.1, 1, 3, 8, 20]), chance.choice(KINDS), chance.choice(["edge", "cloud"]))
            for _ in range(chance.randrange(5))
        ]
        world = live(seed, struck, [(chance.uniform(0, 50), 60.0) for _ in range(20)], repeatable=repeatable, standby=standby)
        refused = [verdict.reason for verdict in world.watched.verdicts.values() if isinstance(verdict, Refuse)]
        assert not refused or (not repeatable and set(refused) == {Reason.LOST})
        world.run(world.now_s + 120)
        assert world.watched.current == "edge+cloud"
        world.tell(Arrived("late", world.now_s + 9))
        world.tell(Close(world.now_s + 5))
        world.run(world.now_s + 5)
        assert world.watched.closed and isinstance(world.watched.verdicts["late"], Accept)
        said |= world.watched.said
    assert said == {*get_args(Instruction)}


names, whys = st.sampled_from("abcdefgh"), st.just("no reason")
plans, tiers = st.sampled_from([*(choice.name for choice in FAMILY), "nobody"]), st.sampled_from(["edge", "cloud", "nowhere"])
anything = st.one_of(
    st.just(Start()), st.just(GatewayUp()), st.builds(GatewayLost, whys), st.just(Tick()),
    st.builds(Deployed, plans), st.builds(DeployFailed, plans, whys), st.builds(Beat, plans), st.builds(Missed, plans, whys, st.booleans()),
    st.builds(Answered, names, st.integers(-1, 4)), st.builds(Failed, names, st.integers(0, 4), st.booleans(), whys),
    st.builds(DrainTier, tiers), st.builds(ReturnTier, tiers),
    st.floats(0, 20),  # a request arrives, and allows so many seconds
)  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.0, 0.1, 0.5, 3.0, 20.0]), anything), max_size=80),
    st.booleans(), st.booleans(), st.sampled_from([None, 1]), st.sampled_from([2, 256]),
)  # fmt: skip
def test_no_event_in_no_order_at_no_time_upsets_it(story, alone, repeatable, standby, most):
    """Not even when its timer is late, and nobody does as told."""
    settings = Settings(standby=standby, most_in_flight=most)
    watched = Watched(FAMILY, settings, can_answer_alone=alone, repeatable=repeatable)
    now_s, fresh = 0.0, iter("abcdefgh" + "x" * 80)
    for wait_s, event in [(0.0, Start()), (0.0, GatewayUp()), (0.0, Deployed("edge")), *story]:
        now_s += wait_s
        if isinstance(event, float):
            name = next(fresh)
            event = Arrived(name, now_s + event) if name != "x" else Tick()
        watched.handle(event, now_s)
    watched.handle(Close(now_s + 1), now_s)
    watched.handle(Tick(), now_s + 1)
    assert watched.closed and not watched.open


def test_nothing_stays_of_requests_that_have_ended():
    def world(requests):
        struck = [Fault(10.0 * number, 3.0, kind, "edge") for number, kind in enumerate(KINDS)]
        made = live(1, struck, [(60 * number / requests, 1.0) for number in range(requests)])
        return size_of(made.watched.machine)

    assert world(5000) <= world(50) + 5
