import subprocess
import sys

import pytest

from crucible_worker.cli.main import main
from crucible_worker.observe.server import HealthReport, HealthServer

WELL = HealthReport(ok=True, ready=True)
ILL = HealthReport(ok=False, ready=False, reasons=["polling has stalled", "\x1b[2J"])


def serving(report: HealthReport, address: str = "127.0.0.1:0") -> HealthServer:
    return HealthServer(address, health=lambda: report, status=dict, metrics=lambda: ("text/plain", b""))


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    monkeypatch.delenv("CRUCIBLE_HEALTH_ADDRESS", raising=False)
    monkeypatch.delenv("CRUCIBLE_CONFIG", raising=False)


def test_a_healthy_worker_is_0_and_one_line(capsys):
    with serving(WELL) as running:
        assert main(["healthcheck", "--address", f"127.0.0.1:{running.port}"]) == 0
    assert capsys.readouterr() == ("healthy\n", "")


def test_an_unhealthy_worker_is_1_and_why(capsys):
    with serving(ILL) as running:
        assert main(["healthcheck", "--address", f"127.0.0.1:{running.port}"]) == 1
    assert capsys.readouterr() == ("unhealthy: polling has stalled; \\x1b[2J\n", "")


def test_no_worker_is_1(capsys):
    with serving(WELL) as running:
        port = running.port
    assert main(["healthcheck", "--address", f"127.0.0.1:{port}"]) == 1
    assert capsys.readouterr().out.startswith(f"unreachable: 127.0.0.1:{port}: ")


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", ""])
def test_a_wildcard_is_asked_on_the_loopback(monkeypatch, host):
    with serving(WELL, f"{host or '0.0.0.0'}:0") as running:
        monkeypatch.setenv("CRUCIBLE_HEALTH_ADDRESS", f"{host}:{running.port}")
        assert main(["healthcheck"]) == 0


def test_the_address_may_stand_in_the_configuration_file_whatever_else_is_in_it(monkeypatch, tmp_path):
    config = tmp_path / "worker.toml"
    monkeypatch.setenv("CRUCIBLE_CONFIG", str(config))
    monkeypatch.setenv("CRUCIBLE_MEMORY", "rubbish")
    with serving(WELL) as running:
        config.write_text(f'health_address = "127.0.0.1:{running.port}"\nmemory = "rubbish"\n')
        assert main(["healthcheck"]) == 0
        config.write_text("not TOML")
        assert main(["healthcheck"]) == 64


@pytest.mark.parametrize(
    "argv", [["--address", "8082"], ["--timeout", "0"], ["--timeout", "nan"], ["--timeout", "x"], ["now"]]
)
def test_bad_usage_is_64_and_one_line(capsys, argv):
    assert main(["healthcheck", *argv]) == 64
    assert capsys.readouterr().err.count("\n") == 1


def test_it_imports_nothing_costly():
    code = (
        "import sys; from crucible_worker.cli.main import main; main(['healthcheck', '--address', '127.0.0.1:1']);"
        "costly = {'docker', 'structlog', 'prometheus_client', 'redis', 'urllib.request'};"
        "sys.exit(', '.join(costly & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (0, "")
