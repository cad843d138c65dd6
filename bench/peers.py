"""Other sandboxes, one a process, in an environment of their own: a program a line in, its milliseconds a line out.

    python peers.py NAME IMAGE RUNTIME

Each gets a fresh container for each program, the same image and the same limits as far as it knows them. In: one JSON
object `{"code": …}` a line. Out: `{"ms": …, "bytes": …}`, the time from the call to its result, clean-up included, and
how much output came back; `{"error": …}` where it did not work.
"""

import asyncio
import io
import json
import os
import sys
import tarfile
import time
from collections.abc import Callable

MEMORY_MB, SECONDS = 256, 30
Program = Callable[[str], str]


def epicbox2(image: str, runtime: str) -> Program:
    import epicbox

    if runtime != "runc":
        raise ValueError("it knows the daemon's default runtime only")
    epicbox.configure(profiles={"python": {"docker_image": image, "user": "nobody", "command": "python3 main.py"}})
    limits = {"cputime": SECONDS, "realtime": SECONDS, "memory": MEMORY_MB}

    def run(code: str) -> str:
        done = epicbox.run("python", files=[{"name": "main.py", "content": code.encode()}], limits=limits)
        return done["stdout"].decode()

    return run


def llm_sandbox(image: str, runtime: str) -> Program:
    from llm_sandbox import SandboxSession

    configuration = {
        "runtime": runtime, "network_mode": "none", "mem_limit": f"{MEMORY_MB}m", "nano_cpus": 10**9, "pids_limit": 64,
    }  # fmt: skip

    def run(code: str) -> str:
        with SandboxSession(
            image=image, lang="python", skip_environment_setup=True, keep_template=True, runtime_configs=configuration
        ) as session:
            return str(session.run(code).stdout)

    return run


def autogen_ext(image: str, runtime: str) -> Program:
    from autogen_core import CancellationToken
    from autogen_core.code_executor import CodeBlock
    from autogen_ext.code_executors.docker import DockerCommandLineCodeExecutor

    if runtime != "runc":
        raise ValueError("it knows the daemon's default runtime only")

    async def once(code: str) -> str:
        async with DockerCommandLineCodeExecutor(image=image, timeout=SECONDS) as executor:
            done = await executor.execute_code_blocks([CodeBlock(code=code, language="python")], CancellationToken())
            return done.output

    return lambda code: asyncio.run(once(code))


# Its image is not in its package; this does of its entry point what a program without requirements needs.
TAKO_ENTRYPOINT = rb"""#!/bin/sh
exec timeout --kill-after=10 "$TAKO_EXECUTION_TIMEOUT" \
  perl -e '$) = "65534 65534"; $( = 65534; ($<, $>) = (65534, 65534); exec @ARGV' python3 /code/main.py
"""


def tako_vm(image: str, runtime: str) -> Program:
    os.environ |= {"TAKO_VM_CONTAINER_RUNTIME": runtime, "TAKO_VM_SECURITY_MODE": "permissive"}
    import docker
    from tako_vm import Sandbox

    client = docker.from_env()
    made = client.containers.create(image, "true")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo("entrypoint.sh")
        entry.size, entry.mode = len(TAKO_ENTRYPOINT), 0o755
        tar.addfile(entry, io.BytesIO(TAKO_ENTRYPOINT))
    made.put_archive("/", packed.getvalue())
    name = f"{image.partition(':')[0]}:tako-vm"
    made.commit(*name.split(":"), changes='ENTRYPOINT ["/entrypoint.sh"]')
    made.remove()
    sandbox = Sandbox(image=name, timeout=SECONDS, memory_limit=f"{MEMORY_MB}m", auto_build=False)

    def run(code: str) -> str:
        done = sandbox.run(code)
        if not done.success:
            raise RuntimeError(done.error or done.stderr)
        return done.stdout

    return run


PEERS = {"epicbox2": epicbox2, "llm-sandbox": llm_sandbox, "autogen-ext": autogen_ext, "tako-vm": tako_vm}


def main() -> None:
    name, image, runtime = sys.argv[1:]
    answers, sys.stdout = sys.stdout, sys.stderr
    program = None
    for line in sys.stdin:
        try:
            program = program or PEERS[name](image, runtime)
            began = time.perf_counter()
            output = program(json.loads(line)["code"])
            answer = {"ms": (time.perf_counter() - began) * 1000, "bytes": len(output)}
        except Exception as error:  # noqa: BLE001 - a peer may fail in any way, and that is a result
            answer = {"error": str(error) or type(error).__name__}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
