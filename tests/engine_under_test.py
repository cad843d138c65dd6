"""The engine that the tests run on: this host's, unless the environment names another (docs/engines.md)."""

import os

DOCKER_HOST = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
# What stands for runc there.
PLAIN_RUNTIME = os.environ.get("TEST_RUNTIME") or "runc"
