"""Hostile and odd input over real sockets: the exact status, body and counted reason of every case; serving goes on."""

import gzip
import json
import re
import time

import pytest
import requests
import zstandard

from support import exposition
from support.rawhttp import chunked, exchange, request
from support.tables import body_cases, refused_http_cases

pytestmark = pytest.mark.usefixtures("real_server_only")
BOUNDS = {"points_max", "name_bytes_max", "tag_bytes_max", "tags_max", "series_bytes_max", "text_bytes_max",
          "json_depth_max", "series_max"}
PRECISION = {"ns": "ns", "us": "u", "ms": "ms", "s": "s"}


def serves_as_before(server):
    mark = time.time_ns()
    assert server.post("/write", f"alive value=1 {mark}".encode()).status_code == 204
    assert server.post("/metrics", b'{"name":"alive","value":2}').status_code == 200
    assert server.alive()


def rejected_by_reason(server):
    return server.metrics().by(exposition.REJECTED, "reason")


def check_case(server, case, send, expected_of):
    """None, or what is wrong with the answer to `case` or with how it was counted."""
    before = rejected_by_reason(server)
    answer = send(case)
    after = rejected_by_reason(server)
    counted = {r: int(n - before.get(r, 0)) for r, n in after.items() if n != before.get(r, 0)}
    wrong = expected_of(case, answer)
    if not wrong and case.error is None and counted != case.counts:
        wrong = f"counted {counted}, expected {case.counts}"
    return wrong and f"{case.name} ({case.body[:80]!r}): {wrong}"


def influx_expected(case, answer):
    rejected = sum(case.counts.values())
    if rejected == 0:
        return None if (answer.status_code, answer.content) == (204, b"") else f"{answer.status_code} {answer.text}"
    words = "partial write" if case.points else "unable to parse"
    index, text = case.refused[0]
    expected = f"{words}: line {index}: {text} dropped={rejected}"
    if answer.status_code != 400 or answer.json() != {"error": expected}:
        return f"{answer.status_code} {answer.text}, expected {expected}"
    return None if "X-InfluxDB-Error" in answer.headers else "no X-InfluxDB-Error"


def json_expected(case, answer):
    if case.error is not None:
        message, offset = re.fullmatch(r"(.*?)(?: \(at byte (\d+)\))?", case.error).groups()
        body = answer.json()
        if answer.status_code != 400 or message not in body["error"]:
            return f"{answer.status_code} {answer.text}, expected 400 {case.error}"
        if offset is not None and f"byte {offset}" not in body["error"] and body.get("byte_offset") != int(offset):
            return f"byte {offset} is not named: {answer.text}"
        return None
    expected = {"accepted": case.points, "rejected": sum(case.counts.values()),
                "errors": [{"index": index, "reason": text} for index, text in case.refused]}
    if answer.status_code != 200 or answer.json() != expected:
        return f"{answer.status_code} {answer.text}, expected {json.dumps(expected)}"
    return None


def test_line_protocol_bodies(server):
    cases = [c for c in body_cases("line")
             if not BOUNDS & c.options.keys() and c.options.get("unit", "ns") in PRECISION]
    assert len(cases) >= 80, len(cases)

    def send(case):
        return server.post("/write", case.body, precision=PRECISION[case.options.get("unit", "ns")])

    wrong = [w for w in (check_case(server, case, send, influx_expected) for case in cases) if w]
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong[:20])
    serves_as_before(server)


def test_json_bodies(make_server):
    """A server for each timestamp unit that the table asks for, since that is configuration."""
    cases = [c for c in body_cases("json") if not BOUNDS & c.options.keys()]
    assert len(cases) >= 60, len(cases)
    servers, wrong = {}, []
    for case in cases:
        unit = {"magnitude": "auto"}.get(case.options.get("unit", "ns"), case.options.get("unit", "ns"))
        if unit not in servers:
            servers[unit] = make_server(f"unit-{unit}", json={"timestamp_unit": unit}).start()
        wrong.append(check_case(servers[unit], case, lambda c: servers[unit].post("/metrics", c.body), json_expected))
    wrong = [w for w in wrong if w]
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong[:20])
    for server in servers.values():
        serves_as_before(server)


@pytest.mark.parametrize("pieces", [None, 1000, 3], ids=["at once", "in large pieces", "in small pieces"])
def test_http_requests_that_are_refused(make_server, pieces):
    server = make_server(http={"body_bytes_max": "1 KiB"}).start()
    cases = refused_http_cases()
    assert len(cases) >= 80, len(cases)
    wrong = []
    for case in cases:
        if pieces == 3 and len(case.sent) > 2000:
            continue
        answers = exchange(server.ingest_port, case.sent, pieces=pieces)
        if not answers:
            wrong.append(f"{case.name}: closed without an answer, expected {case.status}")
        elif answers[0].status != case.status:
            wrong.append(f"{case.name}: {answers[0].status} {answers[0].body[:100]!r}, expected {case.status}")
        elif not answers[0].closed:
            wrong.append(f"{case.name}: the connection stays open")
        elif case.reason not in answers[0].body.decode():
            wrong.append(f"{case.name}: {answers[0].body!r} does not say {case.reason}")
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong[:20])
    serves_as_before(server)


LINE = b"odd value=1"
GZ, ZST = gzip.compress(LINE), zstandard.compress(LINE)
BOMB = gzip.compress(b"#" + b"\0" * 40_000_000 + b"\n")
ENCODED = [
    # name, body, headers, status
    ("gzip", GZ, ["Content-Encoding: gzip"], 204),
    ("x-gzip in capitals", GZ, ["Content-Encoding: GZIP"], 204),
    ("several members", GZ + gzip.compress(b"\n" + LINE), ["Content-Encoding: gzip"], 204),
    ("an empty member", gzip.compress(b"") + GZ, ["Content-Encoding: gzip"], 204),
    ("zstd", ZST, ["Content-Encoding: zstd"], 204),
    ("several zstd frames", ZST + zstandard.compress(b"\n" + LINE), ["Content-Encoding: zstd"], 204),
    ("identity", LINE, ["Content-Encoding: identity"], 204),
    ("garbage after gzip", GZ + b"garbage", ["Content-Encoding: gzip"], 400),
    ("garbage after zstd", ZST + b"garbage", ["Content-Encoding: zstd"], 400),
    ("truncated gzip", GZ[:-5], ["Content-Encoding: gzip"], 400),
    ("truncated zstd", ZST[:-3], ["Content-Encoding: zstd"], 400),
    ("a wrong gzip checksum", GZ[:-8] + b"\0\0\0\0" + GZ[-4:], ["Content-Encoding: gzip"], 400),
    ("no gzip at all", LINE, ["Content-Encoding: gzip"], 400),
    ("no zstd at all", LINE, ["Content-Encoding: zstd"], 400),
    ("two codings", GZ, ["Content-Encoding: gzip, gzip"], 415),
    ("brotli", LINE, ["Content-Encoding: br"], 415),
    ("deflate", LINE, ["Content-Encoding: deflate"], 415),
    ("a bomb", BOMB, ["Content-Encoding: gzip"], 413),
    ("a zstd bomb", zstandard.compress(b"#" + b"\0" * 40_000_000 + b"\n"), ["Content-Encoding: zstd"], 413),
]


def test_encoded_bodies(server):
    wrong = []
    for framing in ("length", "chunked"):
        for name, body, headers, status in ENCODED:
            if framing == "chunked":
                raw = request("POST", "/write", b"", [*headers, "Transfer-Encoding: chunked"]) + chunked(body, 4096)
            else:
                raw = request("POST", "/write", body, headers)
            answers = exchange(server.ingest_port, raw)
            got = answers[0].status if answers else "closed"
            if got != status:
                wrong.append(f"{name}, {framing}: {got} {answers[0].body[:100] if answers else ''}, expected {status}")
    assert not wrong, "\n".join(wrong)
    serves_as_before(server)


ROUTES = [
    # method, target, body, status, part of the body
    ("GET", "/metrics", b"", 405, b""),
    ("PUT", "/write", b"m value=1", 405, b""),
    ("DELETE", "/api/v2/write", b"", 405, b""),
    ("GET", "/nothing", b"", 404, b"/metrics"),
    ("POST", "/metrics/", b"{}", 404, b""),
    ("POST", "/write?precision=fortnight", b"m value=1", 400, b'"error":"invalid precision'),
    ("POST", "/write?precision=", b"m value=1", 204, b""),
    ("POST", "/write?db=&rp=&consistency=", b"m value=1", 204, b""),
    ("POST", "/write?db=a&precision=%6e%73", b"m value=1 1", 204, b""),
    ("POST", "/api/v2/write?org=o&bucket=b&precision=ms", b"m value=1 1", 204, b""),
    ("POST", "/api/v2/write?precision=x", b"m value=1", 400, b'"code":"invalid"'),
    ("POST", "/api/v3/write_lp?db=x&precision=second", b"m value=1 1", 204, b""),
    ("POST", "/api/v2/write", b"", 204, b""),
    ("POST", "http://other.example/write", b"m value=1", 204, b""),
    ("POST", "/%77rite", b"m value=1", 204, b""),
    ("GET", "/ping", b"", 204, b""),
    ("GET", "/ping?verbose=true", b"", 200, b"version"),
    ("GET", "/health", b"", 200, b'"status"'),
    ("GET", "/ready", b"", 200, b'"status"'),
    ("GET", "/query?q=SHOW+DATABASES", b"", 200, b'"databases"'),
    ("POST", "/query?q=CREATE%20DATABASE%20%22x%22", b"", 200, b'{"results":[{"statement_id":0}]}'),
    ("GET", "/query?q=SELECT+1", b"", 200, b'"results"'),
    ("POST", "/api/v1/metrics", b'{"metrics":[]}', 200, b'{"accepted":0,"rejected":0,"errors":[]}'),
    ("POST", "/metrics", b"", 400, b'"error"'),
    ("POST", "/metrics", b"[" * 100_000, 400, b'"error"'),
    ("POST", "/metrics", b'{"a":' * 100_000, 400, b'"error"'),
    ("POST", "/metrics", b"\xff\xfe", 400, b'"error"'),
]


def test_routes_methods_and_parameters(server):
    wrong = []
    for method, target, body, status, part in ROUTES:
        answers = exchange(server.ingest_port, request(method, target, body))
        if not answers or answers[0].status != status or part not in answers[0].body:
            wrong.append(f"{method} {target} {body[:30]}: {answers[:1]}, expected {status} with {part}")
        elif status == 405 and "allow" not in answers[0].headers:
            wrong.append(f"{method} {target}: 405 without Allow")
    assert not wrong, "\n".join(wrong)
    serves_as_before(server)


def test_pipelined_requests_are_answered_in_order_and_head_has_no_body(server):
    raw = b"".join([request("POST", "/write", b"p value=1"), request("GET", "/ping"),
                    request("POST", "/metrics", b"no json"), request("POST", "/metrics", b'{"name":"p","value":1}')] * 25)
    answers = exchange(server.ingest_port, raw, answers=100)
    assert [a.status for a in answers] == [204, 204, 400, 200] * 25
    head = exchange(server.ingest_port, request("HEAD", "/health"), is_head=True)[0]
    assert head.status == 200 and not head.body and int(head.headers["content-length"]) > 0


def test_a_request_id_comes_back_and_wrong_tokens_are_refused(make_server):
    server = make_server(auth={"required": True}, client=[{"name": "payments", "token": "right-one"}]).start()
    answer = server.post("/write", b"m value=1", headers={"Authorization": "Token right-one", "X-Request-Id": "abc-1"})
    assert (answer.status_code, answer.headers.get("X-Request-Id")) == (204, "abc-1")
    for headers, params in (({}, {}), ({"Authorization": "Bearer wrong"}, {}), ({}, {"u": "x", "p": "wrong"}),
                            ({"Authorization": "Token"}, {})):
        assert server.post("/write", b"m value=1", headers=headers, **params).status_code == 401, (headers, params)
    for headers, params in (({"Authorization": "Bearer right-one"}, {}), ({}, {"u": "x", "p": "right-one"}),
                            ({"Authorization": requests.auth._basic_auth_str("x", "right-one")}, {}),
                            ({"Authorization": "Token x:right-one"}, {})):
        assert server.post("/write", b"m value=1", headers=headers, **params).status_code == 204, (headers, params)
    rows = server.wait_windows(lambda rows: rows, 25, name="m", window="10s")
    assert {r["client"] for r in rows} == {"payments"}


def test_a_path_prefix_and_static_and_client_tags(make_server):
    server = make_server(listen={"path_prefix": "/in"}, tags={"datacenter": "fra1", "team": "none"},
                         client=[{"name": "c", "token": "eight-is-least", "tags": {"team": "a"}}]).start()
    assert server.post("/write", b"m value=1").status_code == 404
    assert server.post("/in/write", b"m value=1\nm,datacenter=own value=1",
                       headers={"Authorization": "Token eight-is-least"}).status_code == 204
    rows = server.wait_windows(lambda rows: len(rows) == 2, 25, name="m", window="10s")
    assert sorted(json.dumps(r["tags"], sort_keys=True) for r in rows) == [
        '{"datacenter": "fra1", "team": "a"}', '{"datacenter": "own", "team": "a"}']
