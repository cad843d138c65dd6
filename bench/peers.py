"""Other sandboxes, one a process, in an environment of their own: a program a line in, its milliseconds a line out.

    python peers.py NAME IMAGE RUNTIME

Each gets a fresh container for each program, the same image and the same limits as far as it knows them. In: one JSON
object `{"code": …}` a line. Out: `{"ms": …, "bytes": …}`, the time from the call to its result, clean-up included, and
how much output came back; `{"error": …}` where it did not work.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable

MEMORY_MB, SECONDS = 256, 30
Program = Callable[[str], str]


def epicbox2(image: str, runtime: str) -> Program:
    import epicbox

    if runtime != "runc":
        raise SystemExit("epicbox2 runs on the daemon's default runtime only")
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
        raise SystemExit("autogen-ext runs on the daemon's default runtime only")

    async def once(code: str) -> str:
        async with DockerCommandLineCodeExecutor(image=image, timeout=SECONDS) as executor:
            done = await executor.execute_code_blocks([CodeBlock(code=code, language="python")], CancellationToken())
            return done.output

    return lambda code: asyncio.run(once(code))


PEERS = {"epicbox2": epicbox2, "llm-sandbox": llm_sandbox, "autogen-ext": autogen_ext}


def main() -> None:
    name, image, runtime = sys.argv[1:]
    answers, sys.stdout = sys.stdout, sys.stderr
    program = PEERS[name](image, runtime)
    for line in sys.stdin:
        began = time.perf_counter()
        try:
            output = program(json.loads(line)["code"])
            answer = {"ms": (time.perf_counter() - began) * 1000, "bytes": len(output)}
        except Exception as error:  # noqa: BLE001 - a peer may fail in any way, and that is a result
            answer = {"error": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
