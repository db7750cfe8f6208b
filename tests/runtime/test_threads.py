"""The threads of plain functions."""

import threading

import pytest

from outrider.runtime.threads import Threads


def test_no_more_threads_run_than_allowed_and_all_calls_are_made():
    threads = Threads(3, "test")
    running, most, lock = 0, 0, threading.Lock()

    def work(n: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.001)
        with lock:
            running -= 1
        return n

    futures = [threads.submit(work, n) for n in range(50)]
    assert [future.result(10) for future in futures] == list(range(50))
    assert most <= 3
    threads.shutdown()


def test_a_thread_given_up_makes_room_until_it_is_back():
    threads, release = Threads(1, "test"), threading.Event()
    lost = threads.submit(release.wait, 10)
    waiting = threads.submit(lambda: "ran")
    threads.give_up(1)
    assert waiting.result(10) == "ran"
    release.set()
    assert lost.result(10)
    threads.taken_back()
    assert threads.submit(lambda: "again").result(10) == "again"
    threads.shutdown()


@pytest.mark.parametrize(
    "error", [SystemExit(1), KeyboardInterrupt(), StopIteration(), GeneratorExit(), ValueError()], ids=repr
)
def test_whatever_a_call_raises_reaches_its_future(error: BaseException):
    threads = Threads(1, "test")

    def fail() -> None:
        raise error

    assert threads.submit(fail).exception(10) is error
    assert threads.submit(lambda: 1).result(10) == 1
    threads.shutdown()


def test_threads_that_are_shut_down_take_nothing_more():
    threads, release = Threads(1, "test"), threading.Event()
    threads.submit(release.wait, 10)
    queued = threads.submit(lambda: None)
    threads.shutdown(cancel_futures=True)
    assert queued.cancelled()
    with pytest.raises(RuntimeError):
        threads.submit(lambda: None)
    release.set()
