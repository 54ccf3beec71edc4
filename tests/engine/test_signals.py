import os
import signal
import threading

import pytest

from anykd.engine import StopSignals
from anykd.errors import StoppedError

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)


def handlers() -> list:
    return [signal.getsignal(number) for number in NUMBERS]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
class TestStopSignals:
    def test_raise_at_once(self, number):
        before = handlers()
        with pytest.raises(StoppedError) as caught, StopSignals():
            os.kill(os.getpid(), number)
        assert caught.value.status == 128 + number
        assert handlers() == before

    def test_are_noted_while_deferred_and_everything_is_as_before_afterwards(self, number):
        before = handlers()
        with StopSignals() as signals:
            with signals.deferred():
                assert not signals.asked()
                os.kill(os.getpid(), number)
                assert signals.asked()
                # A second one ends the process: nobody is kept from ending a run that hangs.
                assert handlers()[:2] == before[:2]
            with pytest.raises(StoppedError):
                signals.check()
        assert handlers() == before

    def test_that_were_noted_raise_where_they_may(self, number):
        with StopSignals() as signals, signals.deferred():
            os.kill(os.getpid(), number)
            with pytest.raises(StoppedError), signals.at_once():
                pytest.fail("it was to raise before")


def test_is_no_exception_that_others_take_for_their_own():
    assert not issubclass(StoppedError, Exception)


def test_other_threads_catch_nothing():
    before, inside = handlers(), []

    def look() -> None:
        with StopSignals():
            inside.append(handlers())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert inside == [before]
