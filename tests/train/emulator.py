"""An emulator of Google's store on this machine, for tests of gs:// URLs."""

import contextlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

# As published it serves one connection at a time, and keeps each open until its client closes it.
SERVER = """
import sys
from http import server
server.HTTPServer = server.ThreadingHTTPServer
from gcp_storage_emulator.server import create_server
create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket").run()
"""


@contextlib.contextmanager
def emulator():
    """Starts it with an empty bucket; gives the environment in which gs://bucket is that bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(process, f"http://127.0.0.1:{port}/storage/v1/b/bucket")
        yield {
            "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",
            # gcsfs would ask a real service for the kind of the bucket, and wait a minute for it.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "FSSPEC_GS_TOKEN": "anon",
        }
    finally:
        process.kill()
        process.wait()


def wait_for(process, url):
    """Waits until the emulator answers."""
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < deadline
            time.sleep(0.05)


@contextlib.contextmanager
def gs_bucket():
    """Makes gs://bucket that of a new emulator, in this process and in those that it starts."""
    import fsspec.config
    from fsspec.registry import _registry

    pytest.importorskip("gcp_storage_emulator")
    with emulator() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        # The variables are read when the packages are imported, which may have been before.
        patch.setitem(fsspec.config.conf, "gs", {"token": environment["FSSPEC_GS_TOKEN"]})
        core = pytest.importorskip("gcsfs.core")
        patch.setitem(_registry, "gs", core.GCSFileSystem)
        yield "gs://bucket"
