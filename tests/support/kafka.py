"""Runs Apache Kafka (KRaft, any number of nodes) on free loopback ports, to be killed and restarted, and reads it with
kcat: a consumer that is not ours.

`tests/run` puts the broker's jars in .cache/kafka. Topics are made and changed through Kafka's admin protocol, by
confluent-kafka.
"""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from support.server import ROOT, eventually, free_ports

CLUSTER_ID = "MkU3OEVBNTcwNTJENDM2Qk"
READY_WITHIN_S = float(os.environ.get("METRICSTREAM_TEST_KAFKA_READY_S", "90"))
LOG4J = """rootLogger.level=WARN
rootLogger.appenderRef.o.ref=O
logger.server.name=kafka.server
logger.server.level=INFO
appender.o.type=Console
appender.o.name=O
appender.o.layout.type=PatternLayout
appender.o.layout.pattern=%d %p %c{1} %m%n
"""


def jars():
    cache = Path(os.environ.get("METRICSTREAM_TEST_CACHE", ROOT / ".cache"))
    found = cache / "kafka" / "lib"
    assert found.is_dir(), f"{found} is missing: tests/run install"
    return found


@dataclass
class Record:
    """One record as kcat read it."""
    topic: str
    partition: int
    offset: int
    headers: dict
    key: str
    value: dict

    @property
    def id(self):
        return self.headers["id"]


class Node:
    def __init__(self, directory, number, ports, voters, nodes, listeners, settings):
        self.directory, self.number, self.port = directory, number, ports[0]
        self.ports = dict(zip(listeners, ports[2:]))
        self.process = None
        self.starts = 0
        directory.mkdir(parents=True)
        (directory / "log4j2.properties").write_text(LOG4J)
        replicas = min(nodes, 3)
        protocols = {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT"} | listeners
        reached = "".join(f",{name}://127.0.0.1:{port}" for name, port in self.ports.items())
        values = {
            "process.roles": "broker,controller",
            "node.id": number,
            "controller.quorum.voters": voters,
            "listeners": f"PLAINTEXT://127.0.0.1:{ports[0]},CONTROLLER://127.0.0.1:{ports[1]}{reached}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{ports[0]}{reached}",
            "listener.security.protocol.map": ",".join(":".join(pair) for pair in protocols.items()),
            "controller.listener.names": "CONTROLLER",
            "log.dirs": directory / "log",
            "offsets.topic.replication.factor": replicas,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": replicas,
            "transaction.state.log.num.partitions": 4,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.replication.factor": replicas,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            "auto.create.topics.enable": "false",
            # Small heaps die of the default.
            "log.cleaner.dedupe.buffer.size": 2097152,
            # Back sooner after a SIGKILL: its old registration has to time out first.
            "broker.session.timeout.ms": 3000,
            "broker.heartbeat.interval.ms": 500,
        } | (settings or {})
        text = "".join(f"{key}={value}\n" for key, value in values.items())
        (directory / "server.properties").write_text(text)

    def java(self, *words):
        heap = os.environ.get("METRICSTREAM_TEST_KAFKA_HEAP", "256m")
        return ["java", f"-Xms{heap}", f"-Xmx{heap}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
                f"-Dlog4j2.configurationFile={self.directory / 'log4j2.properties'}", "-cp", f"{jars()}/*", *words]

    def spawn(self):
        properties = str(self.directory / "server.properties")
        if not (self.directory / "log" / "meta.properties").exists():
            with open(self.directory / "format.out", "wb") as out:
                subprocess.run(self.java("kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", properties),
                               stdout=out, stderr=subprocess.STDOUT, check=True)
        self.starts += 1
        self.out = self.directory / f"server-{self.starts}.out"
        with open(self.out, "wb") as out:
            self.process = subprocess.Popen(self.java("kafka.Kafka", properties), stdin=subprocess.DEVNULL, stdout=out,
                                            stderr=subprocess.STDOUT)

    def wait_ready(self):
        def ready():
            assert self.process.poll() is None, f"Kafka ended:\n{self.out.read_text(errors='replace')[-3000:]}"
            return "Kafka Server started" in self.out.read_text(errors="replace")
        eventually(ready, READY_WITHIN_S, f"Kafka is ready\n{self.out.read_text(errors='replace')[-2000:]}")

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Kafka:
    def __init__(self, directory, nodes=1, listeners=None, **settings):
        """`listeners`: more of them, as {NAME: security protocol}; each is on a port of its own."""
        self.directory = Path(directory)
        listeners = listeners or {}
        ports = [free_ports(2 + len(listeners)) for _ in range(nodes)]
        voters = ",".join(f"{n + 1}@127.0.0.1:{ports[n][1]}" for n in range(nodes))
        self.nodes = [Node(self.directory / f"node-{n + 1}", n + 1, ports[n], voters, nodes, listeners, settings)
                      for n in range(nodes)]
        self._admin = None

    @property
    def brokers(self):
        return [f"127.0.0.1:{node.port}" for node in self.nodes]

    def at(self, listener):
        """The brokers of one of the further listeners."""
        return [f"127.0.0.1:{node.ports[listener]}" for node in self.nodes]

    def start(self):
        for node in self.nodes:
            if node.process is None or node.process.poll() is not None:
                node.spawn()
        for node in self.nodes:
            node.wait_ready()
        return self

    def kill(self):
        """SIGKILL to all nodes."""
        for node in self.nodes:
            node.kill()

    def close(self):
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.close()

    # Topics

    def admin(self):
        if self._admin is None:
            self._admin = AdminClient({"bootstrap.servers": ",".join(self.brokers), "log_level": 2})
        return self._admin

    def create_topic(self, name, partitions=4, replicas=1, **config):
        topic = NewTopic(name, partitions, replicas, config={key.replace("_", "."): str(v) for key, v in config.items()})

        def created():
            try:
                self.admin().create_topics([topic])[name].result(15)
                return True
            except KafkaException as error:
                # Still being deleted, or not all nodes are known yet.
                assert error.args[0].name() in ("TOPIC_ALREADY_EXISTS", "INVALID_REPLICATION_FACTOR", "_TIMED_OUT"), error
                return False
        eventually(created, 30, f"topic {name} is made", every_s=0.5)
        eventually(lambda: name in self.topics(), 15, f"topic {name} is seen")

    def delete_topic(self, name):
        self.admin().delete_topics([name])[name].result(15)
        eventually(lambda: name not in self.topics(), 15, f"topic {name} is gone")

    def topics(self):
        return self.admin().list_topics(timeout=15).topics

    def alter_topic(self, name, **config):
        entries = [ConfigEntry(key.replace("_", "."), str(value), incremental_operation=AlterConfigOpType.SET)
                   for key, value in config.items()]
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
        for done in self.admin().incremental_alter_configs([resource]).values():
            done.result(15)

    # Reading

    def read(self, topic, timeout_s=120):
        """All records of a topic, as kcat finds them: partition by partition, each in its order."""
        form = r"%p\t%o\t%h\t%k\t%s\n"
        # The end of a partition is an answer without records: while records come all the time there is none, unless the
        # wait for more is shorter than the time between them.
        done = subprocess.run(["kcat", "-C", "-q", "-e", "-b", ",".join(self.brokers), "-t", topic, "-o", "beginning",
                               "-X", "check.crcs=true", "-X", "fetch.wait.max.ms=5", "-f", form],
                              capture_output=True, timeout=timeout_s)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        records = []
        for line in done.stdout.split(b"\n")[:-1]:
            partition, offset, headers, key, value = line.decode().split("\t", 4)
            pairs = dict(pair.split("=", 1) for pair in headers.split(",") if pair)
            records.append(Record(topic, int(partition), int(offset), pairs, key, json.loads(value)))
        records.sort(key=lambda record: (record.partition, record.offset))
        return records

    def wait_ids(self, topic, wanted, timeout_s):
        """Reads until `wanted` different ids are there; returns the records."""
        last = []

        def enough():
            last[:] = self.read(topic)
            return len({record.id for record in last}) >= wanted
        eventually(enough, timeout_s, lambda: f"{wanted} ids in {topic}; {len({r.id for r in last})} are there",
                   every_s=1)
        return last


def first_of_each_id(records):
    """What a consumer sees that keeps the first record of each id."""
    seen, kept = set(), []
    for record in records:
        if record.id not in seen:
            seen.add(record.id)
            kept.append(record)
    return kept


