"""The InfluxDB sink over https: a real InfluxDB with an authority of the operator's own, and every way to get it wrong.

A server has a sink for each case, so that one send reaches them all.
"""

import json
import ssl
import time

import pytest

from support.influxdb import InfluxDB
from support.scripted import ScriptedServer
from support.server import eventually
from support.verified import loadgen, verify

USER, PASSWORD, WRONG = "metricstream", "right-0123456789", "wrong-0123456789"
POINTS = 200


@pytest.fixture
def influxdb(tmp_path, authority):
    """It asks for a password, too."""
    server = InfluxDB(tmp_path / "influxdb", auth=True, tls=authority.issue("influxdb", "IP:127.0.0.1"),
                      trusted=authority.certificate).start()
    server.query(f"CREATE USER {USER} WITH PASSWORD '{PASSWORD}' WITH ALL PRIVILEGES")
    server.session.auth = (USER, PASSWORD)
    yield server
    server.close()


@pytest.fixture
def scripted():
    made = []

    def make(answer, tls=None):
        made.append(ScriptedServer(answer, tls))
        return made[-1]

    yield make
    for server in made:
        server.close()


def sink(name, **more):
    return {"name": name, "type": "influx", "send": "raw", "retry_every_max": "300 ms", "batch_within": "50 ms",
            "request_within": "20 s"} | more


def state(server, sink):
    metrics = server.metrics()
    return next(state for state in ("running", "retrying", "held", "stopped")
                if metrics.sum("metricstream_sink_state", sink=sink, state=state) == 1)


def waiting(server, sink):
    return server.metrics().sum("metricstream_sink_points_waiting", sink=sink)


def said(server, sink):
    return [line for line in server.log_path.read_text().splitlines() if f'sink="{sink}"' in line]


def wait_held(server, name, *words):
    def found():
        return state(server, name) == "held" and any(all(word in line for word in words) for line in said(server, name))
    eventually(found, 60, lambda: f"{name}: {words}\n" + "\n".join(said(server, name)[-10:]))
    assert waiting(server, name) == POINTS, "nothing is given up"


def send(server):
    base_ns = time.time_ns() // 10**6 * 10**6
    server.write_lines("\n".join(f"secret,k={n % 8} value={n} {base_ns + n * 10**6}" for n in range(POINTS)))
    return base_ns


def start(make_server, sinks):
    # Many sinks fail at once here, and each one's line is looked for.
    return make_server(sink=[sink(name, **of) for name, of in sinks.items()], logging={"lines_per_cause": 1000}).start()


def no_dead_letters(server):
    return server.cli("--config", str(server.config_path), "dead-letter", "list").stdout == ""


def test_a_real_influxdb_over_https_and_every_refusal(make_server, tmp_path, influxdb, authority, stranger):
    def file(name, text):
        path = tmp_path / name
        path.write_text(text)
        return str(path)
    ca, password = str(authority.certificate), file("password", PASSWORD)
    names = ["good", "password", "unknown-ca", "other-host", "plain-url"]
    for name in names:
        init = ["influx", "init", "--url", influxdb.url, "--database", name, "--username", USER, "--password-file", password]
        if name == "good":
            refused = loose(make_server, init)
            assert refused.returncode == 1 and "TLS with the server fails" in refused.stderr and "tls_ca" in refused.stderr
        done = loose(make_server, [*init, "--tls-ca", ca])
        assert done.returncode == 0, done
    common = {"url": influxdb.url, "tls_ca": ca, "username": USER, "password_file": password}
    sinks = {
        "good": {},
        "password": {"password_file": file("wrong-password", WRONG)},
        "unknown-ca": {"tls_ca": file("ca.pem", stranger.certificate.read_text())},
        # The certificate is for 127.0.0.1.
        "other-host": {"url": influxdb.url.replace("127.0.0.1", "localhost")},
        "plain-url": {"url": influxdb.url.replace("https", "http")},
    }
    sinks = {name: common | {"database": name} | of for name, of in sinks.items()}
    del sinks["plain-url"]["tls_ca"]
    server = start(make_server, sinks)
    base_ns = send(server)
    arrived(server, influxdb, "good")
    wait_held(server, "password", "401", "InfluxDB refuses until somebody acts")
    wait_held(server, "unknown-ca", "TLS with the server fails", "UnknownIssuer", "set tls_ca")
    wait_held(server, "other-host", "TLS with the server fails", "host name")
    wait_held(server, "plain-url", "HTTPS server", "Write https:// in the URL")
    file("wrong-password", PASSWORD)
    file("ca.pem", authority.certificate.read_text())
    for name in ("password", "unknown-ca"):
        arrived(server, influxdb, name)
    for name in ("other-host", "plain-url"):
        sinks[name] |= {"url": influxdb.url, "tls_ca": ca}
    server.settings["sink"] = [sink(name, **of) for name, of in sinks.items()]
    server.restart()
    for name in sinks:
        arrived(server, influxdb, name)
    assert no_dead_letters(server), "no point is to blame"
    influxdb.query("DROP MEASUREMENT server_metrics", db="good")
    replayed = server.cli("--config", str(server.config_path), "log", "replay", "--sink", "good", "--json",
                          "--from", str(base_ns), "--to", str(base_ns + 10**10))
    assert json.loads(replayed.stdout)["sent"] == POINTS, replayed
    arrived(server, influxdb, "good")


def loose(make_server, words):
    """A command of the binary that needs no server."""
    return make_server("commands").cli(*words, check=False)


def arrived(server, influxdb, name):
    def whole():
        found = influxdb.query('SELECT count(value) FROM "raw".server_metrics', db=name)
        return found and found[0]["values"][0][1] == POINTS and state(server, name) == "running" and waiting(server, name) == 0
    eventually(whole, 60, lambda: f"{name}: {waiting(server, name)} wait\n" + "\n".join(said(server, name)[-10:]), every_s=0.2)


def test_verify_reads_influxdb_over_https(make_server, tmp_path, influxdb, authority):
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    common = {"url": influxdb.url, "tls_ca": str(authority.certificate), "username": USER, "password_file": str(password)}
    done = loose(make_server, ["influx", "init", "--url", influxdb.url, "--username", USER, "--password-file", str(password),
                               "--tls-ca", str(authority.certificate)])
    assert done.returncode == 0, done
    server = start(make_server, {"good": common})
    ledger = tmp_path / "sent.ledger"
    sent = loadgen("run", "--quiet", "--target", f"http://127.0.0.1:{server.ingest_port}", "--ledger", ledger,
                   "--rate", "50", "--duration", "1s", "--batch", "20")
    assert sent.returncode == 0, sent
    eventually(lambda: waiting(server, "good") == 0, 60, lambda: server.log_tail())
    environment = server.environment | {"INFLUX_USERNAME": USER, "INFLUX_PASSWORD": PASSWORD}
    source = ["--influx", influxdb.url]
    refused = loadgen("verify", "--ledger", ledger, *source, env=environment)
    assert refused.returncode != 0 and "certificate" in refused.stderr, refused
    verdicts = verify(ledger, *source, "--influx-tls-ca", authority.certificate, env=environment)
    assert verdicts["points in InfluxDB"]["points found and sent"] == 1000


def test_a_server_that_asks_for_a_certificate(make_server, tmp_path, scripted, authority, stranger):
    """InfluxDB 1.x asks for none; a proxy before it may."""
    server_pair, client, self_made = authority.issue("server"), authority.issue("client"), stranger.issue("client")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server_pair.certificate, server_pair.key)
    context.load_verify_locations(authority.certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    peer = scripted(lambda request: 204, context)
    for pair, name in ((client, "first"), (self_made, "second")):
        (tmp_path / f"{name}.pem").write_text(pair.certificate.read_text())
        (tmp_path / f"{name}.key").write_text(pair.key.read_text())
    (tmp_path / "mixed.pem").write_text(client.certificate.read_text())
    (tmp_path / "mixed.key").write_text(self_made.key.read_text())

    def own(name):
        return {"tls_certificate": str(tmp_path / f"{name}.pem"), "tls_key": str(tmp_path / f"{name}.key")}
    common = {"url": peer.url, "tls_ca": str(authority.certificate)}
    sinks = {"own": own("first"), "strange": own("second"), "mixed": own("mixed"), "none": {}}
    server = start(make_server, {name: common | {"database": name} | of for name, of in sinks.items()})
    send(server)

    def lines(name):
        return sum(len(request.lines()) for request in peer.requests if request.query.get("db") == name)
    eventually(lambda: lines("own") == POINTS and waiting(server, "own") == 0, 60, lambda: server.log_tail())
    wait_held(server, "strange", "TLS with the server fails", "tls_certificate")
    wait_held(server, "mixed", "cannot be used together")
    wait_held(server, "none", "TLS with the server fails", "tls_certificate")
    (tmp_path / "mixed.key").write_text(client.key.read_text())
    (tmp_path / "second.pem").write_text(client.certificate.read_text())
    (tmp_path / "second.key").write_text(client.key.read_text())
    for name in ("mixed", "strange"):
        eventually(lambda name=name: lines(name) == POINTS and waiting(server, name) == 0, 60, lambda: server.log_tail())


def test_https_at_a_port_that_speaks_http(make_server, tmp_path):
    influxdb = InfluxDB(tmp_path / "influxdb").start()
    try:
        server = start(make_server, {"wrong": {"url": influxdb.url.replace("http", "https")}})
        send(server)
        wait_held(server, "wrong", "TLS with the server fails", "belongs to http://")
    finally:
        influxdb.close()
