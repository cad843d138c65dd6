"""What the code leaves in /sandbox/out: from real sandboxes of both kinds, and from supervisors that lie."""

import json
import os
import subprocess

import language_images
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_worker import outbox
from crucible_worker.engines.artifacts import MAX_ARTIFACTS, Collector, dismissal
from crucible_worker.engines.frames import python_frame, shell_frame
from crucible_worker.model import Artifact, Language, Reason, refused_name


def collected(*parts: bytes, quota: int = 1000) -> tuple[Artifact, ...]:
    collector = Collector(quota)
    for part in parts:
        collector.feed(part)
    return collector.artifacts()


def entry(kind: bytes, name: bytes, data: bytes = b"", size: int | None = None) -> bytes:
    return b"%s %d %d\n" % (kind, len(name), len(data) if size is None else size) + name + data


def test_files_come_as_they_are_and_others_with_a_reason():
    said = (
        entry(b"F", b"a/b.txt", b"\0data") + entry(b"L", b"link") + entry(b"S", b"fifo") + entry(b"Q", b"big", size=9)
    )
    assert collected(said, entry(b"U", b"shut"), b".") == (
        Artifact("a/b.txt", 5, b"\0data"),
        Artifact("link", 0, refused="a symbolic link"),
        Artifact("fifo", 0, refused="a device, a pipe or a socket"),
        Artifact("big", 9, refused="more than is left of the quota"),
        Artifact("shut", 0, refused="not readable"),
    )
    assert collected(b".") == collected() == ()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (b"/etc/passwd", "not a relative path"),
        (b"../x", "not a plain path"),
        (b"a/../../x", "not a plain path"),
        (b"", "empty"),
        (b"a//b", "not a plain path"),
        (b"n" * 256, "longer than 255 bytes"),
    ],
)
def test_a_name_that_is_no_path_below_a_folder_is_refused(name, reason):
    (artifact,) = collected(entry(b"F", name, b"x"), b".")
    assert (artifact.refused, artifact.data) == (reason, b"")


@pytest.mark.parametrize("name", [b"a\nb", b"\x1b[31mred", b"\xff\xfe", "a\u202eb".encode(), b"\0"])
def test_a_name_is_made_fit_for_logs_and_terminals(name):
    (artifact,) = collected(entry(b"F", name, b"x"), b".")
    assert artifact.name.isprintable()
    assert (artifact.data, artifact.refused) == (b"x", None)


def test_what_is_more_than_was_asked_for_is_not_taken():
    first, second = collected(entry(b"F", b"a", bytes(6)), entry(b"F", b"b", bytes(6)), b".", quota=10)
    assert (first.refused, second.refused, second.data) == (None, "more than is left of the quota", b"")
    many = [entry(b"L", b"x")] * (MAX_ARTIFACTS + 9)
    assert collected(*many, b".")[-1].refused == "the rest was lost"
    assert len(collected(*many, b".")) == MAX_ARTIFACTS + 1
    assert collected(*many[:MAX_ARTIFACTS], b"M.")[-1].refused == f"there are more than {MAX_ARTIFACTS}"


def test_a_flood_is_noticed_and_not_kept():
    collector = Collector(1000)
    for _ in range(100):
        collector.feed(bytes(1 << 20))
    assert collector.overfull
    assert len(collector._data) < 4 << 20
    nothing = Collector(0)
    nothing.feed(b".")
    assert nothing.overfull


@pytest.mark.parametrize("said", [b"F", b"F 1 5\nabc", b"F 99999 1\n", b"Z 1 1\nxx.", b"F -1 2\n", b"F 1 1\nab", b"\n"])
def test_what_breaks_off_or_makes_no_sense_is_lost_and_told(said):
    assert collected(entry(b"F", b"a", b"b"), said)[-1] == Artifact("", 0, refused="the rest was lost")


@given(st.lists(st.binary(max_size=40), max_size=4), st.integers(min_value=0, max_value=50))
def test_whatever_is_said_ends_in_bounded_json(parts, quota):
    artifacts = collected(*parts, entry(b"F", parts[0] if parts else b"", b"x" * 9), quota=quota)
    assert sum(len(artifact.data) for artifact in artifacts) <= quota
    assert all(artifact.refused or not refused_name(artifact.name) for artifact in artifacts)
    json.dumps([artifact.document() for artifact in artifacts])


def test_events_leave_them_out():
    assert "artifacts" in outbox._IN_EVENT


def test_the_dismissal_is_a_line_that_a_shell_can_read():
    assert dismissal(1 << 20) == b"1048576 256\n"


@given(
    st.binary(max_size=30),
    st.binary(max_size=30),
    st.lists(st.binary(max_size=9).filter(lambda arg: b"\0" not in arg), max_size=3),
)
def test_a_shells_frame_says_to_a_shell_what_was_meant(code, stdin, args):
    """Whatever bytes an argument has: the script that carries it is read by this host's sh."""
    frame = shell_frame(["run", "it's"], "main.x", code, stdin, args, {"a/b c": b"1"}, out=True)
    size, _, rest = frame.partition(b"\n")
    script, blobs = rest[: int(size)], rest[int(size) :]
    assert blobs == b"1" + code + stdin
    show = b'mkdir() { :; }\ntake() { printf "%s,%s;" "$1" "$2"; }\n' + script + b'for w; do printf "[%s]" "$w"; done'
    said = subprocess.run(["sh"], input=show, capture_output=True, env={"LC_ALL": "C"}).stdout
    took = f"1,/sandbox/a/b c;{len(code)},/sandbox/main.x;{len(stdin)},/tmp/.stdin;".encode()
    assert said == took + b"".join(b"[%s]" % word for word in [b"run", b"it's", *args])


def test_a_pythons_frame_has_its_parts_in_order():
    frame = python_frame(b"code", b"in", [b"arg"], {"n": b"file"}, out=True)
    sizes = (4).to_bytes(8) + (2).to_bytes(8) + (1).to_bytes(4) + (1).to_bytes(4) + b"\1"
    assert frame == sizes + b"codein" + (3).to_bytes(8) + b"arg" + (1).to_bytes(8) + b"n" + (4).to_bytes(8) + b"file"


LEAVE = """
import os, pathlib, socket
os.chdir("out")
pathlib.Path("a.txt").write_text("plain")
pathlib.Path("deep/er").mkdir(parents=True)
pathlib.Path("deep/er/b.bin").write_bytes(bytes(range(256)))
os.symlink("/etc/passwd", "c-link"); os.symlink("/", "d-root"); os.mkfifo("e-fifo")
open("f-big", "wb").truncate(5000)
os.close(os.open("g-shut", os.O_CREAT, 0)); open("h\\n\\x1b[31m", "w").close()
print("done")
"""


def shown(run) -> dict[str, bytes | str]:
    return {artifact.name: artifact.refused or artifact.data for artifact in run.artifacts}


def test_what_the_code_leaves_is_taken_along(sandbox):
    run = sandbox(LEAVE, artifact_bytes=4096)
    assert (run.verdict.exit_code, run.stdout.data) == (0, b"done\n"), run.stderr.data
    assert shown(run) == {
        "a.txt": b"plain",
        "deep/er/b.bin": bytes(range(256)),
        "c-link": "a symbolic link",
        "d-root": "a symbolic link",
        "e-fifo": "a device, a pipe or a socket",
        "f-big": "more than is left of the quota",
        "g-shut": "not readable",
        "h��[31m": b"",
    }


def test_it_takes_any_end_of_the_code_but_not_of_its_sandbox(sandbox):
    leave = "open('out/x', 'w').write('x')\n"
    ends = ["import os; os.kill(os.getpid(), 9)", "1/0", "raise SystemExit(0)", "while True: pass"]
    killed, failed, exited, late = sandbox.all(*(leave + end for end in ends), timeout_seconds=2.0)
    assert [shown(run) for run in (killed, failed, exited, late)] == [{"x": b"x"}] * 3 + [{}]
    assert (killed.verdict.signal, late.verdict.reason) == (9, Reason.TIMEOUT)


def test_no_folder_that_the_code_makes_of_it_breaks_anything(sandbox):
    too_many = f"there are more than {MAX_ARTIFACTS}"
    programs = {
        "import os, shutil; shutil.rmtree('out'); os.symlink('/etc', 'out')": {},
        "import os, shutil; shutil.rmtree('out'); open('out', 'w').close()": {},
        "import os\nfor n in range(300): open(f'out/{n:03}', 'w').close()": too_many,
        "import os\nos.chdir('out')\nfor n in range(999): os.mkdir('d'); os.chdir('d')": too_many,
    }
    for expected, run in zip(programs.values(), sandbox.all(*programs), strict=True):
        assert run.verdict.exit_code == 0, run.stderr.data
        assert shown(run) == expected or list(shown(run).values())[-1] == expected


def test_without_a_quota_there_is_no_folder_and_nothing_is_taken(sandbox):
    run = sandbox("import os\nprint(os.listdir())\nos.mkdir('out')\nopen('out/x', 'w')", artifact_bytes=0)
    assert (run.stdout.data, run.artifacts) == (b"['main.py']\n", ())


def test_a_shell_hands_out_the_same(sandbox, daemon):
    """busybox's, on the same things; where it cannot see a difference it says so."""
    import docker

    client = docker.APIClient(base_url=daemon.url, version="auto")
    tag = f"crucible-test-artifacts:{os.getpid()}"
    client.import_image_from_data(language_images.busybox(), *tag.split(":"))
    script = """
cd out; printf plain >a.txt; mkdir -p deep/er .hidden; printf '\\000\\377' >deep/er/b.bin; : >.hidden/.x
ln -s /etc/passwd c-link; ln -s / d-root; mkfifo e-fifo; dd if=/dev/zero of=f-big bs=5000 count=1 2>/dev/null
: >g-shut; cat >'h
x' </dev/null; : >'*'; : >..y; echo done
"""
    language = Language(tag, ("sh", "main.sh"), "main.sh")
    try:
        run, many = sandbox.all(script, "cd out; for n in $(seq 300); do : >$n; done", language=language,
                                artifact_bytes=4096)  # fmt: skip
    finally:
        sandbox.undertaker.finish(60)
        client.remove_image(tag)
        client.close()
    assert (run.verdict.exit_code, run.stdout.data, run.stderr.data) == (0, b"done\n", b"")
    assert shown(run) == {
        "a.txt": b"plain", "deep/er/b.bin": b"\0\xff", ".hidden/.x": b"", "..y": b"", "*": b"",
        "h�x": b"", "g-shut": b"",
        "c-link": "a symbolic link", "d-root": "a symbolic link", "e-fifo": "a device, a pipe or a socket",
        "f-big": "more than is left of the quota",
    }  # fmt: skip
    assert many.artifacts[-1].refused == f"there are more than {MAX_ARTIFACTS}"


def test_python_gets_arguments_and_files(sandbox):
    code = """
import sys, pathlib, lib.x
print(sys.argv, sys.orig_argv[-2:], lib.x.N, pathlib.Path("data").read_bytes() == bytes(range(256)))
"""
    files = {"lib/x.py": b"N = 42", "data": bytes(range(256))}
    run = sandbox(code, args=["a b", "ü\n"], files=files)
    assert run.stdout.data.decode() == "['/sandbox/main.py', 'a b', 'ü\\n'] ['a b', 'ü\\n'] 42 True\n", run.stderr.data
