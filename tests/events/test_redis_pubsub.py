import json
import socket
import subprocess
import sys

import pytest
import redis

from crucible_worker.errors import ExitError, KeyRefusedError, RejectedError, RetryError
from crucible_worker.events import redis_pubsub
from crucible_worker.events.redis_pubsub import RedisPubSub


@pytest.fixture
def publisher(redis_server):
    publisher = RedisPubSub(redis_server.url)
    yield publisher
    publisher.close()


def received(subscriber) -> tuple[str, dict]:
    message = subscriber.get_message(ignore_subscribe_messages=True, timeout=5)
    while message is None or message["type"] not in {"message", "pmessage"}:
        message = subscriber.get_message(ignore_subscribe_messages=True, timeout=5)
    return message["channel"].decode(), json.loads(message["data"])


@pytest.fixture
def subscriber(redis_server):
    with redis.Redis.from_url(redis_server.url) as client, client.pubsub() as subscriber:
        subscriber.psubscribe("evaluation:*")
        assert subscriber.get_message(timeout=5)["type"] == "psubscribe"
        yield subscriber


def test_a_subscriber_gets_the_data_on_the_channel_of_its_kind(publisher, subscriber, event):
    publisher.publish(event)
    assert received(subscriber) == ("evaluation:completed", dict(event.data))


def test_it_connects_again_after_redis_was_away(redis_server, publisher, event):
    publisher.publish(event)
    redis_server.stop()
    with pytest.raises(RetryError):
        publisher.publish(event)
    redis_server.start()
    publisher.publish(event)


def test_a_connection_cut_while_idle_costs_no_event(redis_server, publisher, event):
    publisher.publish(event)
    redis_server.stop()
    redis_server.start()
    publisher.publish(event)


def test_a_redis_that_never_was_there_is_tried_again(event, closed_port):
    with pytest.raises(RetryError):
        RedisPubSub(f"redis://127.0.0.1:{closed_port}").publish(event)


def test_a_peer_that_never_answers_is_given_up_in_time(event, monkeypatch):
    monkeypatch.setattr(redis_pubsub, "TIMEOUT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        publisher = RedisPubSub(f"redis://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(RetryError):
            publisher.publish(event)
        publisher.close()


def test_a_missing_or_wrong_password_is_a_refused_key_and_never_repeated(redis_server, event):
    redis_server.stop()
    redis_server.start("--requirepass", "right")
    for userinfo in ("", ":wr0ng@", "nobody:wr0ng@"):
        publisher = RedisPubSub(f"redis://{userinfo}127.0.0.1:{redis_server.port}")
        with pytest.raises(KeyRefusedError) as caught:
            publisher.publish(event)
        assert "wr0ng" not in str(caught.value)
        publisher.close()
    publisher = RedisPubSub(f"redis://:right@127.0.0.1:{redis_server.port}")
    publisher.publish(event)
    publisher.close()


def test_a_user_without_the_right_to_publish_is_a_refused_key(redis_server, event):
    with redis.Redis.from_url(redis_server.url) as client:
        client.execute_command("ACL", "SETUSER", "mute", "on", ">pw", "+@all", "-publish")
    publisher = RedisPubSub(f"redis://mute:pw@127.0.0.1:{redis_server.port}")
    with pytest.raises(KeyRefusedError):
        publisher.publish(event)
    publisher.close()


def test_any_other_refusal_is_for_good(redis_server, event):
    redis_server.stop()
    redis_server.start("--rename-command", "PUBLISH", "")
    publisher = RedisPubSub(redis_server.url)
    with pytest.raises(RejectedError):
        publisher.publish(event)
    publisher.close()


@pytest.mark.parametrize("url", ["redis://h:port", "http://h", "redis://h:6379/0?socket_timeout=soon"])
def test_a_url_that_is_none_is_one_line(url):
    with pytest.raises(ExitError, match="EVENT_BUS_URL") as caught:
        RedisPubSub(url)
    assert "\n" not in str(caught.value)


def test_redis_is_imported_only_when_it_is_used():
    code = "import sys, crucible_worker.events.redis_pubsub; sys.exit('redis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
