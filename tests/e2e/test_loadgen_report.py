"""The load generator's HTML page, in a browser: drawn, quiet, self-contained, and readable on a phone."""

import json
import re
import shutil
import subprocess

import pytest

from support import loadresult

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def browser():
    assert CHROMIUM, "chromium is missing: tests/run installs it"
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        # Chromium's sandbox refuses to run as root.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def loadgen(*arguments):
    binary = loadresult.loadgen_binary()
    assert binary.exists(), f"{binary} is missing: cargo build --release --workspace, or set METRICSTREAM_LOADGEN_BIN"
    return subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True, timeout=60)


def page_of(tmp_path, **results):
    arguments = []
    for label, result in results.items():
        path = tmp_path / f"{label}.json"
        path.write_text(json.dumps(result))
        arguments.append(f"{label}={path}")
    out = tmp_path / "out.html"
    done = loadgen("report", *arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


class Opened:
    """A page in a browser that may load nothing but the page itself, and what it complained of."""

    def __init__(self, browser, path, width, scheme="light"):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.complaints, self.requests = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

        def judge(route):
            if route.request.url == path.as_uri():
                route.continue_()
            else:
                self.requests.append(route.request.url)
                route.abort()

        self.page.route("**/*", judge)
        self.page.goto(path.as_uri())
        self.page.wait_for_load_state("networkidle")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def plots(self):
        """Title, size, and for each drawn series its size and number of points."""
        return self.page.evaluate("""() => [...document.querySelectorAll('svg.plot')].map(svg => ({
            title: svg.getAttribute('aria-label'),
            box: (({width, height}) => ({width, height}))(svg.getBoundingClientRect()),
            series: [...svg.querySelectorAll('path[data-name]')].map(path => ({
                name: path.dataset.name,
                points: (path.dataset.text ?? path.dataset.bars).split('|').length,
                drawn: path.getTotalLength(),
                box: (({width, height}) => ({width, height}))(path.getBBox()),
                stroke: getComputedStyle(path).stroke, fill: getComputedStyle(path).fill,
            })),
        }))""")

    def judge(self):
        assert self.complaints == []
        assert self.requests == []
        widths = self.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert widths[0] <= widths[1], f"scrolls sideways: {widths}"


TITLES = ["Latency by percentile", "Rate over time", "Latency over time", "The generator's own lateness",
          "The server's own histogram beside the client's"]


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_plots_of_a_run_are_drawn(tmp_path, browser, width, scheme):
    path = page_of(tmp_path, run=loadresult.steady(1))
    with Opened(browser, path, width, scheme) as opened:
        plots = {plot["title"]: plot for plot in opened.plots()}
        assert list(plots) == TITLES
        for title, plot in plots.items():
            assert plot["box"]["width"] > 280 and plot["box"]["height"] > 150, title
            for series in plot["series"]:
                assert series["drawn"] > 100, (title, series)
                assert series["box"]["width"] > 100, (title, series)
                assert "none" not in (series["stroke"] + series["fill"]).replace("none", "", 1), (title, series)
        count = {(title, series["name"]): series["points"] for title, plot in plots.items() for series in plot["series"]}
        assert count["Latency by percentile", "latency"] > 60
        assert count["Latency by percentile", "service time"] > 60
        assert count["Rate over time", "due"] == count["Rate over time", "acknowledged"] == 60
        assert count["Latency over time", "p99"] == count["Latency over time", "max"] == 60
        assert count["The generator's own lateness", "lateness"] > 60
        for side in ["client", "server"]:
            assert count["The server's own histogram beside the client's", side] >= 8
        # The stall stands out: its height in the plot of latencies is most of it.
        spike = next(s for s in plots["Latency over time"]["series"] if s["name"] == "p99")
        assert spike["box"]["height"] > 60, spike
        opened.judge()


def test_what_is_drawn_is_readable_on_a_phone(tmp_path, browser):
    path = page_of(tmp_path, run=loadresult.sweep(2))
    with Opened(browser, path, 360) as opened:
        # Text of the plots, as shown, in CSS px, and whether labels run into each other.
        texts = opened.page.evaluate("""() => [...document.querySelectorAll('svg.plot')].map(svg => ({
            title: svg.getAttribute('aria-label'),
            frame: svg.getBoundingClientRect().toJSON(),
            ticks: [...svg.querySelectorAll('.tick')].filter(t => getComputedStyle(t).display !== 'none')
                .map(t => ({text: t.textContent, ...t.getBoundingClientRect().toJSON()}))}))""")
        assert len(texts) == 6
        for plot in texts:
            assert len(plot["ticks"]) >= 6
            for tick in plot["ticks"]:
                assert tick["height"] >= 10, (plot["title"], tick)
                assert tick["left"] >= plot["frame"]["left"] - 1 and tick["right"] <= plot["frame"]["right"] + 8, (plot["title"], tick)
            for n, a in enumerate(plot["ticks"]):
                for b in plot["ticks"][n + 1:]:
                    apart = a["right"] <= b["left"] or b["right"] <= a["left"] or a["bottom"] <= b["top"] + 6 or b["bottom"] <= a["top"] + 6
                    assert apart, (plot["title"], a["text"], b["text"])
        assert opened.page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") >= 14
        opened.judge()


def test_a_sweep_shows_latency_against_throughput(tmp_path, browser):
    path = page_of(tmp_path, run=loadresult.sweep(3))
    with Opened(browser, path, 1280) as opened:
        plot = next(p for p in opened.plots() if p["title"] == "Latency against throughput")
        assert [(s["name"], s["points"]) for s in plot["series"]] == [("p50", 10), ("p99", 10), ("p99.9", 10)]
        # Those over the knee, at 45,300 and 64,000, are marked on each line.
        assert opened.page.locator("circle.bad").count() == 6
        assert opened.page.locator("tr.bad").count() == 2
        opened.judge()


@pytest.mark.parametrize("width", [1280, 360])
def test_several_results_stand_side_by_side(tmp_path, browser, width):
    path = page_of(tmp_path, before=loadresult.sweep(4), after=loadresult.sweep(5, capacity=60_000),
                   **{"a-third-one-with-a-rather-long-name-of-its-own": loadresult.steady(6, base_us=300)})
    with Opened(browser, path, width) as opened:
        plots = {plot["title"]: plot for plot in opened.plots()}
        names = {series["name"] for series in plots["Latency by percentile"]["series"]}
        assert names == {"before, latency", "after, latency", "a-third-one-with-a-rather-long-name-of-its-own, latency"}
        strokes = [series["stroke"] for series in plots["Latency by percentile"]["series"]]
        assert len(set(strokes)) == 3, "each has its own colour"
        assert {s["name"] for s in plots["Latency against throughput"]["series"]} == {"before, p99", "after, p99"}
        assert opened.page.locator("table").first.locator("thead th").count() == 4
        opened.judge()


def test_figures_are_read_out_under_the_pointer(tmp_path, browser):
    path = page_of(tmp_path, run=loadresult.steady(7))
    with Opened(browser, path, 1280) as opened:
        frame = opened.page.locator(".frame").nth(1)
        tip = frame.locator(".tip")
        assert not tip.is_visible()
        opened.page.evaluate("scrollTo(0, document.querySelectorAll('.frame')[1].getBoundingClientRect().top - 100)")
        box = frame.bounding_box()
        opened.page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.4)
        assert tip.is_visible()
        lines = tip.inner_text().splitlines()
        assert lines[0].startswith("due: 500/s at ") and lines[1].startswith("acknowledged: "), lines
        opened.page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] - 40)
        assert not tip.is_visible()
        opened.judge()


def test_what_results_bring_is_text_and_never_markup(tmp_path, browser):
    evil = "<img src=http://127.0.0.1:9/x onerror=document.title='caught'>\"'&|</script>"
    result = loadresult.sweep(8, command=evil, target=evil, tool=evil, notes=[evil])
    result["machine"]["host"] = evil
    result["plan"]["transport"]["path"] = evil
    result["totals"]["unknown"] = {evil: 3}
    path = tmp_path / "evil.json"
    path.write_text(json.dumps(result))
    out = tmp_path / "out.html"
    done = loadgen("report", path, f"{evil.replace('=', '')}={path}", "--out", out)
    assert done.returncode == 0, done.stderr
    with Opened(browser, out, 1280) as opened:
        assert opened.page.title() != "caught"
        assert opened.page.locator("img").count() == 0
        assert opened.page.locator("code").first.inner_text() == evil
        opened.judge()


def test_merged_results_are_judged_and_written(tmp_path):
    """Two processes beside each other: the sum of their rates, and files as asked."""
    for name, seed in [("a", 9), ("b", 10)]:
        (tmp_path / f"{name}.json").write_text(json.dumps(loadresult.steady(seed)))
    outputs = [tmp_path / f"both.{kind}" for kind in ["json", "hgrm", "csv", "html"]]
    done = loadgen("merge", tmp_path / "a.json", tmp_path / "b.json", "--json", outputs[0], "--hgrm", outputs[1],
                   "--csv", outputs[2], "--report", outputs[3], "--fail-if", "rate < 999", "errors > 14")
    assert done.returncode == 0, done.stderr
    assert "requests acknowledged            999.8" in done.stdout or "requests acknowledged            1,000" in done.stdout, done.stdout
    both = json.loads(outputs[0].read_text())
    assert both["totals"]["refused"] == {"503": 14} and both["totals"]["duration_s"] == 60.0
    values = outputs[1].read_text().splitlines()
    assert values[0].split() == ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
    assert values[-2].endswith("Total count    =        60000]")
    assert len(outputs[2].read_text().splitlines()) == 61
    assert outputs[3].read_text().startswith("<!doctype html>")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a.json", "b.json", *(p.name for p in outputs)])

    done = loadgen("merge", tmp_path / "a.json", "--fail-if", "p99 > 1 us", "errors > 0", "rate < 1")
    assert done.returncode == 1
    failed = [line for line in done.stderr.splitlines() if "failed: " in line]
    assert len(failed) == 2 and "p99 > 1 us: it was " in failed[0] and "errors > 0: it was 7" in failed[1]


@pytest.mark.parametrize("arguments, sentence", [
    (["report", "/nowhere/a.json", "--out", "OUT"], "cannot open the result /nowhere/a.json: No such file or directory"),
    (["report", "GOOD", "--out", "/nowhere/out.html"], "cannot write /nowhere/out.html: No such file or directory"),
    (["report", "BAD", "--out", "OUT"], "is no result of metricstream-loadgen"),
    (["merge", "GOOD", "--json", "/nowhere/a.json"], "cannot write /nowhere/a.json"),
    (["merge", "GOOD", "--json", "OUT", "--csv", "OUT"], "two outputs are to be written to"),
    (["merge", "GOOD", "--fail-if", "p9g > 5 ms"], "'p9g' is no percentile"),
    (["merge", "GOOD", "--fail-if", "erorrs > 0"], "did you mean 'errors'?"),
])
def test_what_cannot_be_done_is_said_in_one_sentence(tmp_path, arguments, sentence):
    (tmp_path / "good.json").write_text(json.dumps(loadresult.steady(11, seconds=3)))
    (tmp_path / "bad.json").write_text('{"points": 3}')
    names = {"GOOD": tmp_path / "good.json", "BAD": tmp_path / "bad.json", "OUT": tmp_path / "out.html"}
    done = loadgen(*[names.get(argument, argument) for argument in arguments])
    assert done.returncode == 2
    assert sentence in done.stderr, done.stderr
    assert "panicked" not in done.stderr
    assert not (tmp_path / "out.html").exists()


@pytest.fixture
def null_server():
    """Factory of null servers; gives their addresses."""
    running = []

    def start(*arguments):
        process = subprocess.Popen([loadresult.loadgen_binary(), "null-server", "--listen", "127.0.0.1:0", *arguments],
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        running.append(process)
        line = process.stdout.readline()
        found = re.search(r"127\.0\.0\.1:\d+", line)
        assert found, line
        return f"http://{found[0]}"

    yield start
    for process in running:
        process.terminate()
        process.wait(10)


def sweep_of(target, out, *arguments):
    return loadgen("sweep", "--target", target, "--from", "50", "--to", "200", "--step-duration", "1s", "--pause", "100ms",
                   "--batch", "1", "--quiet", "--json", out, *arguments)


def test_a_sweep_of_a_server_without_limits_reaches_its_end(tmp_path, null_server, browser):
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    done = sweep_of(null_server(), out, "--p99", "2s", "--report", page)
    assert done.returncode == 0, done.stderr
    assert "200 requests/s, the highest rate tried, meet a p99 of 2.00 s" in done.stdout
    result = json.loads(out.read_text())
    assert [step["rate"] for step in result["steps"]] == [50.0, 100.0, 200.0]
    assert result["plan"]["shape"]["constant"]["rate"] == 200.0
    with Opened(browser, page, 360) as opened:
        assert "Latency against throughput" in [plot["title"] for plot in opened.plots()]
        opened.judge()


def test_a_sweep_of_a_server_that_stalls_fails_at_the_lowest_rate(tmp_path, null_server):
    out = tmp_path / "out.json"
    done = sweep_of(null_server("--stall", "300ms", "--every", "600ms"), out, "--p99", "100ms")
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("fails: p99 ") == 2
    assert "even 50.0 requests/s did not meet a p99 of 100 ms; try a lower --from" in done.stdout
    assert len(json.loads(out.read_text())["steps"]) == 2
