"""The parts of bench/compare: what to install, the servers, the generator, the page. Only the standard library."""

import os

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CACHE = os.environ.get("METRICSTREAM_TEST_CACHE", os.path.join(ROOT, ".cache"))
RELEASE = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "release")
SERVER_CORE, GENERATOR_CORE = 0, 1


class Failure(Exception):
    """One sentence: what failed, and what to do."""
