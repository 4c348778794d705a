"""Puts each system in its place, by package name and once. A system that cannot be had is left out, with the reason."""

import os
import shutil
import subprocess

from . import CACHE, RELEASE, ROOT, Failure

TELEGRAF_VERSION = "1.37.2"
TELEGRAF_TAGS = ("custom,inputs.influxdb_listener,inputs.internal,aggregators.basicstats,aggregators.quantile,"
                 "outputs.discard,outputs.file,serializers.influx")
QUESTDB_VERSION = "9.3.4"
COPY_JAR = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"


def run(*command, **options):
    """A command that is silent unless it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode:
        raise Failure(f"`{' '.join(command)}` failed: {done.stdout.strip()[-400:] or 'no output'}")
    return done.stdout


def debian(command, package):
    """Makes sure that `command` is there; the package's version."""
    if not shutil.which(command):
        install_debian(package)
    done = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True)
    return done.stdout.strip() or "unknown version"


def install_debian(package):
    print(f"  installing {package}", flush=True)
    root = [] if os.geteuid() == 0 else ["sudo"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        run(*root, "apt-get", "install", "-y", "-qq", "--no-install-recommends", package, env=environment)
    except Failure:
        run(*root, "apt-get", "update", "-qq")
        run(*root, "apt-get", "install", "-y", "-qq", "--no-install-recommends", package, env=environment)
    # Where services start by themselves, one that nobody asked for would share the core.
    if os.path.isdir("/run/systemd/system"):
        subprocess.run([*root, "systemctl", "disable", "--now", package], capture_output=True)


def ours():
    """The release build of this tree, as tests/run makes it."""
    run("cargo", "build", "--release", "--quiet", "--workspace", "--bins", cwd=ROOT)
    for name in ("metricstream", "bench-noop"):
        if not os.path.exists(os.path.join(RELEASE, name)):
            raise Failure(f"the release build has no {name}")


def telegraf():
    """Its own build beside the one of the tests: other plugins."""
    where = os.path.join(CACHE, "bin", "compare")
    path, stamp = os.path.join(where, "telegraf"), os.path.join(where, "telegraf.stamp")
    content = f"{TELEGRAF_VERSION} {TELEGRAF_TAGS}"
    if os.path.exists(path) and os.path.exists(stamp) and open(stamp).read() == content:
        return path
    if not shutil.which("go"):
        raise Failure("Go is missing, which builds Telegraf; install Go and run again")
    print("  building Telegraf (some minutes when it is the first time)", flush=True)
    os.makedirs(where, exist_ok=True)
    flags = f"-s -w -X github.com/influxdata/telegraf/internal.Version={TELEGRAF_VERSION}"
    run("go", "install", "-tags", TELEGRAF_TAGS, "-ldflags", flags,
        f"github.com/influxdata/telegraf/cmd/telegraf@v{TELEGRAF_VERSION}", env={**os.environ, "GOBIN": where})
    with open(stamp, "w") as f:
        f.write(content)
    return path


def questdb():
    debian("java", "openjdk-17-jre-headless")
    jar = os.path.join(CACHE, "questdb", f"questdb-{QUESTDB_VERSION}.jar")
    if not os.path.exists(jar):
        debian("mvn", "maven")
        print("  fetching QuestDB", flush=True)
        run("mvn", "-B", "-q", COPY_JAR, f"-Dartifact=org.questdb:questdb:{QUESTDB_VERSION}",
            f"-DoutputDirectory={os.path.dirname(jar)}")
    return jar
