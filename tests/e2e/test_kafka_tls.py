"""TLS and SASL towards a real Kafka: a listener each, and every way in which an operator gets them wrong.

One server has a sink for each case, so that one send reaches them all, and one Kafka serves them.
"""

import json
import time

import pytest
from confluent_kafka.admin import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

from support.kafka import Kafka
from support.server import eventually

USER, PASSWORD, WRONG = "metricstream", "right-0123456789", "wrong-0123456789"
POINTS = 300
JAAS = "org.apache.kafka.common.security"


@pytest.fixture(scope="module")
def kafka(tmp_path_factory, authority):
    def keystore(pair, listener=""):
        prefix = f"listener.name.{listener}." if listener else ""
        return {f"{prefix}ssl.keystore.type": "PEM", f"{prefix}ssl.keystore.location": pair.both}

    settings = {
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": authority.certificate,
        **keystore(authority.issue("broker")),
        **keystore(authority.issue("elsewhere", "DNS:kafka.example"), "elsewhere"),
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.scram.sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.scram.scram-sha-512.sasl.jaas.config": f"{JAAS}.scram.ScramLoginModule required;",
        "listener.name.login.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.login.plain.sasl.jaas.config":
            f'{JAAS}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";',
    }
    listeners = {"SCRAM": "SASL_SSL", "LOGIN": "SASL_SSL", "MUTUAL": "SSL", "TLS": "SSL", "ELSEWHERE": "SSL"}
    with Kafka(tmp_path_factory.mktemp("kafka") / "k", listeners=listeners, **settings) as kafka:
        set_password(kafka, PASSWORD)
        yield kafka


def set_password(kafka, password):
    """Of the SCRAM user."""
    info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
    wanted = UserScramCredentialUpsertion(USER, info, password.encode())
    for done in kafka.admin().alter_user_scram_credentials([wanted]).values():
        done.result(15)


def state(server, sink):
    metrics = server.metrics()
    states = [state for state in ("running", "retrying", "held", "stopped")
              if metrics.sum("metricstream_sink_state", sink=sink, state=state) == 1]
    assert len(states) == 1, states
    return states[0]


def points(server, sink, what):
    name = "waiting" if what == "waiting" else f"{what}_total"
    return server.metrics().sum(f"metricstream_sink_points_{name}", sink=sink)


def said(server, sink):
    """The lines about a sink."""
    return [line for line in server.log_path.read_text().splitlines() if f'"{sink}"' in line or f"sink={sink}" in line]


def wait_said(server, sink, *words):
    def found():
        return [line for line in said(server, sink) if all(word in line for word in words)]
    return eventually(found, 60, lambda: f"{sink}: {words}\n" + "\n".join(said(server, sink)[-10:]))[0]


def send(server, base_ms, first, count=POINTS):
    metrics = [{"name": "secret", "value": n, "timestamp": base_ms + n} for n in range(first, first + count)]
    answer = server.post("/metrics", json.dumps({"metrics": metrics}))
    assert answer.json()["accepted"] == count, answer.text


def wait_delivered(server, kafka, sink, wanted):
    """Each of the points is there, and the sink shows that all is well."""
    def whole():
        if points(server, sink, "waiting") or state(server, sink) != "running":
            return False
        values = {record.value["value"] for record in kafka.read(f"raw-{sink}")}
        assert values <= set(range(wanted)), values
        return len(values) == wanted
    eventually(whole, 60, lambda: f"{sink} has {wanted} points\n" + "\n".join(said(server, sink)[-10:]), every_s=0.3)


def test_every_way_in_and_every_refusal(make_server, tmp_path, kafka, authority, stranger):
    client, self_made = authority.issue("client"), stranger.issue("client")
    files = {}

    def file(name, text):
        files[name] = tmp_path / name
        files[name].write_text(text)
        return str(files[name])

    ca = str(authority.certificate)
    tls = {"tls": True, "tls_ca": ca}
    scram = tls | {"sasl": "scram-sha-512", "username": USER}
    good = {
        "scram": scram | {"brokers": kafka.at("SCRAM"), "password_file": file("scram.password", f"{PASSWORD}\n")},
        "login": tls | {"brokers": kafka.at("LOGIN"), "sasl": "plain", "username": USER,
                        "password_file": file("login.password", PASSWORD)},
        "mutual": tls | {"brokers": kafka.at("MUTUAL"), "tls_certificate": str(client.certificate),
                         "tls_key": str(client.key)},
    }
    # What is wrong with each stands in a file: an operator corrects it while the server runs.
    mended_while_running = {
        "scram-password": (scram | {"brokers": kafka.at("SCRAM"), "password_file": file("wrong-scram", WRONG)},
                           ["refuses the sink's login", "password_file"], {"wrong-scram": PASSWORD}),
        "login-password": (tls | {"brokers": kafka.at("LOGIN"), "sasl": "plain", "username": USER,
                                  "password_file": file("wrong-login", WRONG)},
                           ["refuses the sink's login", "password_file"], {"wrong-login": PASSWORD}),
        "unknown-ca": ({"tls": True, "tls_ca": file("ca.pem", stranger.certificate.read_text()),
                        "brokers": kafka.at("TLS")},
                       ["certificate of Kafka's broker is not accepted", "tls_ca"],
                       {"ca.pem": authority.certificate.read_text()}),
        "unknown-client": (tls | {"brokers": kafka.at("MUTUAL"),
                                  "tls_certificate": file("client.pem", self_made.certificate.read_text()),
                                  "tls_key": file("client.key", self_made.key.read_text())},
                           ["refuses this client in the TLS handshake", "tls_certificate"],
                           {"client.pem": client.certificate.read_text(), "client.key": client.key.read_text()}),
        "no-ca-file": ({"tls": True, "tls_ca": str(tmp_path / "later.pem"), "brokers": kafka.at("TLS")},
                       ["the Kafka client cannot be made", "tls settings"],
                       {"later.pem": authority.certificate.read_text()}),
    }
    # What is wrong stands in the configuration: corrected with a restart.
    mended_by_restart = {
        "other-host": (tls | {"brokers": kafka.at("ELSEWHERE")}, "held",
                       ["certificate of Kafka's broker is not accepted", "host name"], {"brokers": kafka.at("TLS")}),
        "mechanism": (scram | {"brokers": kafka.at("SCRAM"), "sasl": "plain", "password_file": file("mechanism", PASSWORD)},
                      "held", ["refuses the sink's login", "sasl"], {"sasl": "scram-sha-512"}),
        "no-certificate": (tls | {"brokers": kafka.at("MUTUAL")}, "held",
                           ["refuses this client in the TLS handshake", "tls_certificate"],
                           {"tls_certificate": str(client.certificate), "tls_key": str(client.key)}),
        "plaintext-port": (tls | {"brokers": kafka.brokers}, "retrying", ["PLAINTEXT broker listener", "tls = false"],
                           {"brokers": kafka.at("TLS")}),
        "tls-port": ({"brokers": kafka.at("TLS")}, "retrying", ["Disconnected", "tls = true"], tls),
        "login-port": (tls | {"brokers": kafka.at("LOGIN")}, "retrying", ["Disconnected", "set the sink's sasl"],
                       {"sasl": "plain", "username": USER, "password_file": file("later.password", PASSWORD)}),
    }
    sinks = good | {name: case[0] for name, case in (mended_while_running | mended_by_restart).items()}
    for name in sinks:
        kafka.create_topic(f"raw-{name}", partitions=1)

    def tables():
        return [{"name": name, "type": "kafka", "topic": f"raw-{name}", "send": "raw", "retry_every_max": "1 s"} | of
                for name, of in sinks.items()]
    # Many sinks fail at once here, and each one's line is looked for.
    server = make_server(sink=tables(), logging={"lines_per_cause": 1000}).start()
    base_ms = int(time.time() * 1000) - 10_000
    send(server, base_ms, 0)
    for name in good:
        wait_delivered(server, kafka, name, POINTS)
    for name, (_, words, _) in mended_while_running.items():
        wait_said(server, name, *words, "nothing is lost")
        eventually(lambda name=name: state(server, name) == "held", 60, f"{name} is held")
    for name, (_, shown, words, _) in mended_by_restart.items():
        wait_said(server, name, *words)
        eventually(lambda name=name, shown=shown: state(server, name) == shown, 60, f"{name} is {shown}")
    bad = mended_while_running | mended_by_restart
    for name in bad:
        assert (points(server, name, "delivered"), points(server, name, "waiting")) == (0, POINTS), name
    for _, _, mending in mended_while_running.values():
        for wrong, text in mending.items():
            (tmp_path / wrong).write_text(text)
    for name in mended_while_running:
        wait_delivered(server, kafka, name, POINTS)
    assert not any("password" in line and (PASSWORD in line or WRONG in line)
                   for line in server.log_path.read_text().splitlines()), "no password in the log"
    for name, (_, _, _, mending) in mended_by_restart.items():
        sinks[name] = sinks[name] | mending
    server.settings["sink"] = tables()
    server.restart()
    for name in sinks:
        wait_delivered(server, kafka, name, POINTS)


def test_a_password_changed_in_kafka_is_taken_over_from_the_file(make_server, tmp_path, kafka, authority):
    kafka.create_topic("raw-moved", partitions=1)
    password_file = tmp_path / "password"
    password_file.write_text(PASSWORD)
    sink = {"name": "moved", "type": "kafka", "topic": "raw-moved", "send": "raw", "retry_every_max": "1 s",
            "brokers": kafka.at("SCRAM"), "tls": True, "tls_ca": str(authority.certificate), "sasl": "scram-sha-512",
            "username": USER, "password_file": str(password_file)}
    server = make_server(sink=[sink]).start()
    base_ms = int(time.time() * 1000) - 10_000
    send(server, base_ms, 0)
    wait_delivered(server, kafka, "moved", POINTS)
    try:
        set_password(kafka, "next-0123456789")
        # Only a new connection has to prove itself again.
        kafka.kill()
        kafka.start()
        send(server, base_ms, POINTS)
        eventually(lambda: state(server, "moved") == "held", 60, lambda: server.log_tail())
        assert points(server, "moved", "waiting") == POINTS
        password_file.write_text("next-0123456789")
        wait_delivered(server, kafka, "moved", 2 * POINTS)
    finally:
        set_password(kafka, PASSWORD)


def test_dead_letters_sent_again_say_what_kafka_has_against_the_client(make_server, tmp_path, kafka, authority):
    password_file = tmp_path / "password"
    password_file.write_text(WRONG)
    sink = {"name": "letters", "type": "kafka", "topic": "raw-letters", "brokers": kafka.at("LOGIN"), "tls": True,
            "tls_ca": str(authority.certificate), "sasl": "plain", "username": USER, "password_file": str(password_file)}
    server = make_server(sink=[sink])
    server.write_config()
    kafka.create_topic("raw-letters", partitions=1)
    directory = server.data_dir / "dead-letters" / "letters"
    directory.mkdir(parents=True)
    letter = {"id": "00000000000000ab-0-1-7", "time_ms": 1, "sink": "letters", "target": "raw-letters",
              "reason": "too large", "key": "k", "headers": {"point": "p"}, "body": "{}"}
    (directory / "00000001.ndjson").write_text(json.dumps(letter) + "\n")
    retry = ["--config", str(server.config_path), "dead-letter", "retry"]
    refused = server.cli(*retry, check=False)
    assert refused.returncode == 1 and "refuses the sink's login" in refused.stderr, refused
    password_file.write_text(PASSWORD)
    assert "1 of 1 sent" in server.cli(*retry).stdout
    assert [record.id for record in kafka.read("raw-letters")] == [letter["id"]]
