import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_worker.errors import ExitError
from crucible_worker.model import Language
from crucible_worker.secret import Secret
from crucible_worker.settings import Loaded, Settings, describe, load

SECRET = "s3cr3t-k3y"


def refusal(flags=None, environ=None, toml=None) -> str:
    with pytest.raises(ExitError) as caught:
        load(flags or {}, environ or {}, toml or {})
    assert caught.value.code == 64
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_the_documented_ones():
    settings = load({}, {}, {}).settings
    assert settings == Settings()
    assert settings.queue_url == "http://queue:8081"
    assert settings.engines == {"docker": "runc", "gvisor": "runsc"}
    assert (settings.memory, settings.concurrency, settings.health_address) == (256 << 20, 1, "0.0.0.0:8082")


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default():
    flags, environ, toml = {"memory": "7m"}, {"CRUCIBLE_MEMORY": "8m"}, {"memory": "9m"}
    seen = [
        load(flags, environ, toml),
        load({}, environ, toml),
        load({}, {}, toml),
        load({}, {}, {}),
    ]
    assert [loaded.settings.memory >> 20 for loaded in seen] == [7, 8, 9, 256]
    assert [loaded.sources["memory"] for loaded in seen] == [
        "--memory",
        "CRUCIBLE_MEMORY",
        "memory in the configuration file",
        "default",
    ]


def test_an_empty_variable_is_an_unset_one():
    assert load({}, {"CRUCIBLE_MEMORY": "", "QUEUE_SERVICE_URL": ""}, {}).settings == Settings()


def test_toml_values_may_be_numbers_and_tables():
    settings = load({}, {}, {"memory": 1 << 24, "cpus": 0.5, "engines": {"kata": "io.containerd.kata.v2"}}).settings
    assert (settings.memory, settings.cpus, settings.engines) == (1 << 24, 0.5, {"kata": "io.containerd.kata.v2"})


NODE = {"image": "node:22", "command": ["node", "main.js"], "file": "main.js"}
C = {"image": "tcc", "command": ["sh", "-c", "tcc main.c -o m && ./m"], "file": "main.c", "exec": True}


def test_languages_are_images_or_say_how_they_are_run():
    told = {"python": "py:1", "node": NODE, "c": C}
    expected = {
        "python": Language("py:1"),
        "node": Language("node:22", ("node", "main.js"), "main.js"),
        "c": Language("tcc", tuple(C["command"]), "main.c", exec=True),
    }
    assert load({}, {}, {"languages": told}).settings.languages == expected
    loaded = load({}, {"CRUCIBLE_LANGUAGES": json.dumps(told)}, {})
    assert loaded.settings.languages == expected
    assert ("languages", "python=py:1,node=node:22 (node main.js),c=tcc (sh -c tcc main.c -o m && ./m)",
            "CRUCIBLE_LANGUAGES") in loaded.rows()  # fmt: skip
    assert load({"languages": "python=a,pypy=b"}, {}, {}).settings.languages == {
        "python": Language("a"), "pypy": Language("b"),
    }  # fmt: skip


def test_nothing_may_be_taken_along():
    assert load({}, {"CRUCIBLE_ARTIFACTS": "0"}, {}).settings.limits().artifact_bytes == 0


@pytest.mark.parametrize("place", ["flag", "environ", "toml"])
def test_a_secret_can_come_from_a_file(tmp_path, place):
    file = tmp_path / "key"
    file.write_text(f"{SECRET}\n")
    given = {
        "flag": ({"api_key_file": str(file)}, {"API_KEY": "weaker"}, {}),
        "environ": ({}, {"API_KEY_FILE": str(file), "API_KEY": "weaker"}, {}),
        "toml": ({}, {}, {"api_key_file": str(file)}),
    }[place]
    loaded = load(*given)
    assert loaded.settings.api_key.reveal() == SECRET
    assert loaded.api_key_file == str(file)


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"two\nlines", "schlüssel".encode()])
def test_a_secret_file_that_cannot_be_used_is_one_line(tmp_path, content):
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    assert "API_KEY_FILE" in refusal(environ={"API_KEY_FILE": str(file)})


@pytest.mark.parametrize("path", ["\x00", 7, {"a": "b"}, [], True])
def test_a_path_that_is_none_is_one_line(path):
    assert "api_key_file" in refusal(toml={"api_key_file": path})


def test_a_key_that_could_forge_a_header_is_refused_and_not_shown():
    assert SECRET not in refusal(environ={"API_KEY": f"{SECRET}\r\nX-Evil: 1"})


def test_a_secret_never_shows_itself():
    loaded = load({}, {"API_KEY": SECRET, "EVENT_BUS_URL": f"redis://u:{SECRET}@h:6379/0"}, {})
    assert SECRET in loaded.settings.event_bus_url
    for shown in (repr(loaded), str(loaded.settings), repr(loaded.settings), repr(loaded.rows())):
        assert SECRET not in shown
    rows = {name: value for name, value, _ in loaded.rows()}
    assert rows["api_key"] == "****"
    assert rows["event_bus_url"] == "redis://****@h:6379/0"


def test_a_password_in_a_refused_url_is_not_shown():
    assert SECRET not in refusal(environ={"QUEUE_SERVICE_URL": f"http://u:{SECRET}@queue"})


def test_an_empty_secret_shows_nothing():
    assert (str(Secret()), bool(Secret()), bool(Secret("x"))) == ("", False, True)


def test_an_unknown_variable_is_refused_with_a_hint():
    assert "did you mean CRUCIBLE_MEMORY?" in refusal(environ={"CRUCIBLE_MEMROY": "1g"})
    assert "did you mean memory?" in refusal(toml={"memmory": "1g"})


def test_an_unknown_name_is_one_line_whatever_is_in_it():
    refusal(environ={"CRUCIBLE_A\nB": "1"})
    refusal(toml={"a\nb": "1"})


def test_variables_of_others_are_none_of_our_business():
    environ = {
        "PATH": "/bin",
        "CRUCIBLE_SERVICE_HOST": "10.0.0.1",
        "CRUCIBLE_SERVICE_PORT": "80",
        "CRUCIBLE_SERVICE_PORT_HTTP": "80",
        "CRUCIBLE_PORT": "tcp://10.0.0.1:80",
        "CRUCIBLE_PORT_80_TCP": "tcp://10.0.0.1:80",
        "CRUCIBLE_PORT_80_TCP_ADDR": "10.0.0.1",
        "CRUCIBLE_WORKER_SERVICE_HOST": "10.0.0.2",
    }
    assert load({}, environ, {}).settings == Settings()


BAD = [
    ("queue_url", "queue:8081"),
    ("queue_url", "ftp://queue"),
    ("queue_url", "http://"),
    ("queue_url", "http://[::1"),
    ("queue_url", "http://queue:99999"),
    ("queue_url", "http://queue:port"),
    ("queue_url", "http://the queue"),
    ("queue_url", "http://queue\x07"),
    ("docker_host", "ssh://host"),
    ("docker_host", "/var/run/docker.sock"),
    ("docker_host", "unix://"),
    ("docker_host", "tcp://host"),
    ("docker_host", "tcp://host:99999"),
    ("docker_host", "tcp://:2375"),
    ("memory", "1"),
    ("memory", "5m"),
    ("event_bus_url", "kafka://bus"),
    ("engines", ""),
    ("engines", "docker"),
    ("engines", "docker="),
    ("engine_fallback", "sometimes"),
    ("languages", ""),
    ("languages", "python"),
    ("languages", "{"),
    ("languages", "{}"),
    ("languages", "{" * 100_000),
    ("languages", '{"": "image"}'),
    ("languages", '{"x": 1}'),
    ("languages", '{"x": ""}'),
    ("languages", '{"x": {"image": "i", "command": "node main.js", "file": "main.js"}}'),
    ("languages", '{"x": {"image": "i", "command": ["node"]}}'),
    ("languages", '{"x": {"image": "i", "file": "main.js"}}'),
    ("languages", '{"x": {"image": "i", "command": ["a"], "file": "../main.js"}}'),
    ("languages", '{"x": {"image": "i", "command": ["a\\u0000"], "file": "x"}}'),
    ("languages", '{"x": {"image": "i", "exec": 1}}'),
    ("languages", '{"x": {"image": "i", "privileged": true}}'),
    ("artifacts", "-1"),
    ("memory", "0"),
    ("memory", "-1"),
    ("memory", "lots"),
    ("memory", "9" * 5000),
    ("cpus", "nan"),
    ("cpus", "inf"),
    ("cpus", "0"),
    ("cpus", "half"),
    ("concurrency", "0"),
    ("concurrency", "1.5"),
    ("concurrency", "²"),
    ("timeout_max", "0"),
    ("timeout_max", "9" * 400),
    ("drain_timeout", "-5"),
    ("drain_timeout", "1e3"),
    ("drain_timeout", "999999999h"),
    ("health_address", "8082"),
    ("health_address", "0.0.0.0:http"),
    ("health_address", "0.0.0.0:65536"),
    ("log_level", "loud"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_one_line_that_names_its_place_and_what_was_expected(name, value):
    message = refusal(flags={name: value})
    assert f"--{name.replace('_', '-')}" in message
    assert len(message) < 500


@pytest.mark.parametrize("value", [True, None, [1], {"a": 1}])
def test_a_toml_value_of_the_wrong_kind_is_one_line_or_absent(value):
    if value is None:
        assert load({}, {}, {"memory": value}).sources["memory"] == "default"
    else:
        assert "memory in the configuration file" in refusal(toml={"memory": value})


@pytest.mark.parametrize(
    ("text", "seconds"), [("30", 30.0), ("1.5", 1.5), ("45s", 45.0), ("10m", 600.0), ("2h", 7200.0), (" 3 S ", 3.0)]
)
def test_times_have_units(text, seconds):
    assert load({"drain_timeout": text}, {}, {}).settings.drain_timeout == seconds


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("2k", 2048), ("256m", 256 << 20), ("1GiB", 1 << 30)])
def test_sizes_have_units(text, size):
    assert load({"output": text}, {}, {}).settings.output == size


@pytest.mark.parametrize("bus", ["none", "http://bus/", "https://bus", "redis://r:6379/0", "rediss://:p@r"])
def test_events_go_to_http_redis_or_nowhere(bus):
    assert load({"event_bus_url": bus}, {}, {}).settings.event_bus_url == bus.rstrip("/")


def test_limits_are_made_of_the_settings():
    limits = load({"memory": "10m", "output": "7", "processes": "9"}, {}, {}).settings.limits()
    assert (limits.memory_bytes, limits.output_bytes, limits.processes) == (10 << 20, 7, 9)


def test_every_setting_is_described():
    described = describe()
    assert [d.name for d in described] == [f.name for f in dataclasses.fields(Settings)]
    assert all(d.help and d.flag.startswith("--") for d in described)
    assert {d.env for d in described} >= {"QUEUE_SERVICE_URL", "API_SERVICE_URL", "API_KEY", "HOSTNAME"}


NAMES = st.sampled_from([d.name for d in describe()] + ["api_key_file"])
VARIABLES = st.sampled_from([d.env for d in describe()] + ["API_KEY_FILE"]) | st.text().map("CRUCIBLE_".__add__)
NUMBERISH = st.from_regex(r"\A[0-9]{1,400}(\.[0-9]+)?[smhkg]?\Z")
TEXTS = st.text() | NUMBERISH | st.sampled_from(["http://[", "redis://x:y", "a=b", "::1:80"])
VALUES = TEXTS | st.integers() | st.floats() | st.booleans() | st.lists(TEXTS) | st.dictionaries(st.text(), TEXTS)


@given(
    st.dictionaries(NAMES, TEXTS, max_size=2),
    st.dictionaries(VARIABLES, TEXTS, max_size=2),
    st.dictionaries(NAMES | st.text(), VALUES, max_size=2),
)
def test_whatever_is_set_the_answer_is_settings_or_one_line(flags, environ, toml):
    try:
        loaded = load(flags, environ, toml)
    except ExitError as error:
        assert error.code == 64  # noqa: PT017 - either outcome is right
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert isinstance(loaded, Loaded)
        assert len(loaded.rows()) == len(describe())


def test_every_secret_may_be_in_a_file_whichever_way_it_is_named(tmp_path):
    file = tmp_path / "secret"
    file.write_text("from-a-file\n")
    for d in describe():
        if d.secret:
            name = f"{d.name}_file"
            for given in (
                ({name: str(file)}, {}, {}),
                ({}, {f"{d.env}_FILE": str(file)}, {}),
                ({}, {}, {name: str(file)}),
            ):
                loaded = load(*given)
                assert getattr(loaded.settings, d.name).reveal() == "from-a-file"
                assert loaded.secret_files == {d.name: str(file)}


@pytest.mark.parametrize("url", ["redis://:pass@h/0", "rediss://u:pass@h:1/0"])
def test_where_live_logs_go_shows_no_password(url):
    loaded = load({}, {"CRUCIBLE_LIVE_LOGS": url}, {})
    assert loaded.settings.live_logs == url
    assert "pass@" not in str(loaded.rows()) + repr(loaded.settings)
    with pytest.raises(ExitError, match="expected none, queue, or redis"):
        load({}, {"CRUCIBLE_LIVE_LOGS": "http://h"}, {})
