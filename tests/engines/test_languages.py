"""Languages other than Python: a shell, JavaScript and C, each in an image without Python, on both runtimes."""

import uuid

import language_images
import pytest

from crucible_worker.errors import TaskError
from crucible_worker.model import Language, Reason, Status

pytestmark = pytest.mark.engine

COMPILE = ("/bin/sh", "-c", 'tcc -o main main.c && exec ./main "$@"', "sh")


@pytest.fixture(scope="session")
def image(daemon):
    """Makes an image once, by the name of its maker in `language_images`; all are gone in the end."""
    import docker

    client = docker.APIClient(base_url=daemon.url, version="auto", timeout=120)
    made: dict[str, str] = {}

    def make(name: str) -> str:
        if name not in made:
            tag = f"crucible-test-{name.replace('_', '-')}:{uuid.uuid4().hex}"
            client.import_image_from_data(getattr(language_images, name)(), *tag.split(":"))
            made[name] = tag
        return made[name]

    yield make
    for tag in made.values():
        client.remove_image(tag)
    client.close()


@pytest.fixture
def shell(image) -> Language:
    return Language(image("busybox"), ("sh", "main.sh"), "main.sh")


@pytest.fixture
def javascript(image) -> Language:
    return Language(image("node"), ("node", "main.js"), "main.js")


@pytest.fixture
def c(image) -> Language:
    return Language(image("c_compiler"), COMPILE, "main.c", exec=True)


def test_a_shell_script_gets_all_that_its_task_brings(sandbox, shell):
    files = {"a b/it's.txt": b"deep\n", "bin": bytes(range(256)) * 5000, "empty": b""}
    code = """
read -r first; echo "$first|$(cat)|$#|$1|$2|"
cat "a b/it's.txt"; wc -c < bin; wc -c < empty
echo "$0 $PWD $HOME $(cat /proc/self/oom_score_adj)"; echo oops >&2
ls=/sandbox/*; echo $ls; echo /tmp/.[a-z]*; exit 7
"""
    run = sandbox(code, "line\nthe rest", language=shell, args=["o'ne \\n $x", "two\nlines"], files=files)
    assert run.stdout.data.decode().splitlines() == [
        "line|the rest|2|o'ne \\n $x|two", "lines|", "deep", "1280000", "0", "main.sh /sandbox /sandbox 1000",
        "/sandbox/a b /sandbox/bin /sandbox/empty /sandbox/main.sh /sandbox/out", "/tmp/.[a-z]*",
    ]  # fmt: skip
    assert run.stderr.data == b"oops\n"
    assert (run.verdict.reason, run.verdict.exit_code) == (Reason.EXITED_NONZERO, 7)
    assert run.cpu_ms is not None
    assert run.cpu_ms > 0


def test_how_a_script_ends_is_told_from_what_it_says(sandbox, shell):
    scripts = {
        "exit 0": (Reason.EXITED, 0, None),
        "exit 255": (Reason.EXITED_NONZERO, 255, None),
        "kill -9 $$": (Reason.SIGNALED, None, 9),
        "kill -2 $$": (Reason.SIGNALED, None, 2),
        "kill -9 -1 2>/dev/null; exit 5": (Reason.EXITED_NONZERO, 5, None),
        "(sleep 1000; echo late) & (sleep 1000 & ) ; exit 3": (Reason.EXITED_NONZERO, 3, None),
        "exec 0<&- 1>&- 2>&-; exit 4": (Reason.EXITED_NONZERO, 4, None),
        "printf '0123456789abcdefE\\000'; exit 6": (Reason.EXITED_NONZERO, 6, None),
    }
    for (reason, code, signal), run in zip(
        scripts.values(), sandbox.all(*(f"echo begun\n{code}" for code in scripts), language=shell), strict=True
    ):
        assert (run.verdict.reason, run.verdict.exit_code, run.verdict.signal) == (reason, code, signal), run
        assert run.stdout.data.startswith(b"begun\n")
        assert run.stderr.data == b""


def test_a_script_is_held_to_its_limits(sandbox, shell):
    late, flood = sandbox.all("while :; do :; done", "while :; do echo 0123456789; done", language=shell,
                              timeout_seconds=2.0, output_limit_bytes=1 << 16)  # fmt: skip
    assert late.verdict.status is Status.TIMEOUT
    assert flood.verdict.reason is Reason.OUTPUT_LIMIT


def test_an_odd_source_is_the_languages_to_judge(sandbox, shell):
    empty, broken = sandbox.all("", "if", language=shell)
    assert (empty.verdict.status, empty.stdout.data) == (Status.COMPLETED, b"")
    assert broken.verdict.reason is Reason.EXITED_NONZERO


def test_javascript(sandbox, javascript):
    code = """
const fs = require("fs");
console.log(process.argv.slice(2).join(), fs.readFileSync(0, "utf8"), require("./lib/x.js").n);
fs.writeFileSync("out/made.json", "[1]");
throw new Error("in the end");
"""
    run = sandbox(code, "in", language=javascript, args=["a", "ü"], files={"lib/x.js": b"exports.n = 42"},
                  memory_bytes=512 << 20, processes=128)  # fmt: skip
    assert run.stdout.data.decode() == "a,ü in 42\n", run.stderr.data
    assert b"Error: in the end" in run.stderr.data
    assert run.verdict.exit_code == 1
    assert [(a.name, a.data, a.refused) for a in run.artifacts] == [("made.json", b"[1]", None)]


def test_c_is_compiled_and_run(sandbox, c):
    code = """
#include <stdio.h>
int main(int count, char **args) {
    char line[9];
    printf("%d %s %s", count, args[1], fgets(line, 9, stdin));
    return 9;
}
"""
    works, crashes, fails = (
        sandbox(code, "in\n", language=c, args=["arg"]),
        sandbox("int main() { return *(int *)0; }", language=c),
        sandbox("int main() { return nothing; }", language=c),
    )
    assert (works.stdout.data, works.verdict.exit_code) == (b"2 arg in\n", 9), works.stderr.data
    assert (crashes.verdict.signal, crashes.stderr.data) == (11, b"")
    assert b"nothing" in fails.stderr.data
    assert fails.verdict.exit_code == 1


def test_only_a_language_that_says_so_may_execute_what_it_has_written(sandbox, c):
    """Then in /sandbox and nowhere else."""
    without = Language(c.image, c.command, c.file)
    run = sandbox("int main() { return 0; }", language=without)
    assert run.verdict.exit_code == 126
    assert b"Permission denied" in run.stderr.data
    elsewhere = ("/bin/sh", "-c", "tcc -o /tmp/main main.c && exec /tmp/main")
    run = sandbox("int main() { return 0; }", language=Language(c.image, elsewhere, c.file, exec=True))
    assert run.verdict.exit_code == 126


def test_a_command_that_is_not_there_is_the_codes_failure_and_a_shell_that_is_not_the_engines(sandbox, shell):
    run = sandbox("", language=Language(shell.image, ("no-such-program",), "x"))
    assert (run.verdict.reason, run.verdict.exit_code) == (Reason.EXITED_NONZERO, 127)
    with pytest.raises(TaskError) as caught:
        sandbox("", language=Language(sandbox.image, ("x",), "x"))
    assert caught.value.reason is Reason.ENGINE_UNAVAILABLE
    assert "/bin/sh" in str(caught.value)
