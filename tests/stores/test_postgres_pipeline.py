"""Statements sent ahead: answers in their order, the first failure raised, and the connection of use afterwards."""

import psycopg
import pytest

from outrider.stores.postgres.database import Database, Link


@pytest.fixture
def link(postgres_url: str):
    with Database(postgres_url).connect() as connection:
        yield connection


def test_answers_come_in_the_order_of_the_statements_whichever_is_waited_for_first(link: Link):
    with link.ahead as pipeline:
        answers = [pipeline.say("select $1::bigint", [number]) for number in range(20)]
        assert answers[-1].fetchone() == (19,)
        assert [answer.fetchall() for answer in answers] == [[(number,)] for number in range(20)]


def test_after_a_failure_the_rest_is_skipped_and_said_again_it_runs(link: Link):
    later = "select $1::bigint + 1"

    def fail() -> None:
        with link.ahead as pipeline:
            pipeline.say("select 1 / $1::bigint", [0])
            pipeline.say(later, [1])  # the server skips its preparation too

    with pytest.raises(psycopg.errors.DivisionByZero):
        fail()
    with link.ahead as pipeline:
        assert pipeline.say(later, [1]).fetchone() == (2,)


def test_what_the_caller_raises_is_raised_and_what_was_said_has_been_answered(link: Link):
    def fail() -> None:
        with link.ahead as pipeline:
            pipeline.say("select $1::text", ["said"])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with link.ahead as pipeline:
        assert pipeline.say("select $1::text", ["again"]).fetchone() == ("again",)


def test_more_is_sent_and_answered_than_fits_into_any_buffer(link: Link):
    large = "x" * 3_000_000
    with link.ahead as pipeline:
        answers = [pipeline.say("select $1::text", [large]) for _ in range(5)]
        assert all(answer.fetchone() == (large,) for answer in answers)


def test_a_connection_that_the_server_ends_is_told(link: Link, postgres_url: str):
    def be_ended() -> None:
        with link.ahead as pipeline:
            (process,) = pipeline.say("select pg_backend_pid()").fetchone()
            with psycopg.connect(postgres_url, autocommit=True) as other:
                other.execute("select pg_terminate_backend(%s)", [process])
            pipeline.say("select 1").fetchone()

    with pytest.raises(psycopg.OperationalError):
        be_ended()
    with pytest.raises(psycopg.OperationalError), link.ahead as pipeline:
        pipeline.say("select 1")
