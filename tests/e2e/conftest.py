import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.certificates import Authority  # noqa: E402
from support.influxdb import InfluxDB  # noqa: E402
from support.server import ROOT, Server, binary  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="200 kills, 30 s outages, more points: about an hour")


def pytest_configure(config):
    if not binary().exists():
        raise pytest.UsageError(f"{binary()} is missing: cargo build --release, or set METRICSTREAM_BIN")
    # The stand-in runs in the Python of the tests, which has zstandard.
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@pytest.fixture(scope="session")
def long(request):
    return request.config.getoption("--long")


@pytest.fixture(scope="session")
def is_stand_in():
    return binary().name == "stand_in.py"


@pytest.fixture
def real_server_only(is_stand_in):
    if is_stand_in:
        pytest.skip("asks for what the stand-in does not do")


@pytest.fixture
def influxdb(tmp_path):
    server = InfluxDB(tmp_path / "influxdb").start()
    yield server
    server.close()
    shutil.rmtree(server.directory, ignore_errors=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """An authority that nobody trusts."""
    return Authority(tmp_path_factory.mktemp("stranger"), "another authority")


@pytest.fixture
def make_server(tmp_path):
    """Factory of servers that are stopped, and whose data is deleted, after the test."""
    made = []

    def make(name="server", **settings):
        server = Server(tmp_path / name, **settings)
        made.append(server)
        return server

    yield make
    for server in made:
        server.close()
        shutil.rmtree(server.data_dir, ignore_errors=True)


@pytest.fixture
def server(make_server):
    return make_server().start()


@pytest.fixture(scope="session")
def cache():
    return Path(os.environ.get("METRICSTREAM_TEST_CACHE", ROOT / ".cache"))


@pytest.fixture(scope="session")
def telegraf_binary(cache):
    path = cache / "bin" / "telegraf"
    assert path.exists(), f"{path} is missing: tests/run builds it"
    return path
