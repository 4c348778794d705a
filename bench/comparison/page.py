"""The results as a page, a document and plots. Everything on the page is computed from the document."""

import json
import os
import statistics

from . import plots


def median(runs, key):
    values = [run[key] for run in runs if run.get(key) is not None]
    return statistics.median(values) if values else None


def short(value):
    """Three digits that count, with k and M."""
    for bound, unit in ((1e6, " M"), (1e3, " k")):
        if value >= bound:
            return f"{value / bound:.3g}{unit}" if value / bound < 100 else f"{value / bound:.0f}{unit}"
    return f"{value:.3g}"


def write(document, where, name):
    written = []

    def put(suffix, text):
        path = os.path.join(where, name + suffix)
        with open(path, "w") as f:
            f.write(text)
        written.append(path)

    put(".json", json.dumps(document, indent=1) + "\n")
    drawn = []
    for suffix, heading, svg in figures(document):
        if svg:
            put(suffix, svg)
            drawn.append((heading, name + suffix))
    put(".md", markdown(document, name, drawn))
    return written


def measured(document):
    """(key, title, results) of the systems that have any."""
    for key, peer in document["peers"].items():
        results = document["results"].get(key)
        if results and results["closed"]:
            yield key, peer["title"], results


def figures(document):
    names = [f"{points} a request" for points in document["points"]]
    note = f"median of {document['rounds']} rounds; {document['series']:,} series, {document['connections']} connections, one core; logarithmic"
    for suffix, title, key in (("-rate.svg", "Points a second", "points_per_s"),
                               ("-cpu.svg", "Server CPU seconds for a million points (less is better)", "cpu_s_per_million")):
        rows = [(title_, [median(results["closed"].get(points, []), key) for points in document["points"]])
                for _, title_, results in measured(document)]
        yield suffix, title, plots.bars(title, note, rows, names, short)
    for points in document["latency_points"]:
        rows = [(title, [median(results["open"].get(points, []), key) for key in ("p50_ms", "p99_ms", "p999_ms")])
                for _, title, results in measured(document)]
        title = f"Latency at half of its own highest rate, {points} points a request, in ms"
        yield f"-latency-{points}.svg", title, plots.bars(title, note, rows, ["p50", "p99", "p99.9"], short)


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def ratios(document):
    """(sentence, value, wanted) of what issue and README claim, by server CPU."""
    cost = {key: {points: median(runs, "cpu_s_per_million") for points, runs in results["closed"].items()}
            for key, _, results in measured(document)}

    def of(dividend, divisor, points):
        above, below = cost.get(dividend, {}).get(points), cost.get(divisor, {}).get(points)
        return above / below if above and below else None

    asked = [("CPU of a request of one point over the no-op's, line", of("memory-line", "noop", 1), "at most 1.7"),
             ("CPU of a request of one point over the no-op's, JSON", of("memory-json", "noop", 1), "at most 1.7"),
             ("points per CPU second over VictoriaMetrics', line, 100 points", of("victoria", "memory-line", 100), "at least 2.5"),
             ("points per CPU second, disk over memory, line, 100 points", of("memory-line", "disk-line", 100), "at least 0.7"),
             ("points per CPU second, disk over memory, JSON, 100 points", of("memory-json", "disk-json", 100), "at least 0.7")]
    return [(text, value, wanted) for text, value, wanted in asked if value]


def met(value, wanted):
    bound = float(wanted.split()[-1])
    return value <= bound if wanted.startswith("at most") else value >= bound


def ratios_text(document):
    return "\n".join(f"{text:64} {value:6.2f}  ({wanted}: {'met' if met(value, wanted) else 'MISSED'})"
                     for text, value, wanted in ratios(document))


def closed_rows(document, points):
    for _, title, results in measured(document):
        runs = results["closed"].get(points)
        if not runs:
            continue
        rates = sorted(run["points_per_s"] for run in runs)
        failed = sum(run["failed"] for run in runs)
        yield [title, short(median(runs, "points_per_s")), f"{short(rates[0])} to {short(rates[-1])}",
               f"{median(runs, 'cpu_s_per_million'):.3g}", f"{median(runs, 'server_cpu_share'):.0%}",
               f"{failed:,}" if failed else "none"]


def latency_rows(document, points):
    for _, title, results in measured(document):
        runs = results["open"].get(points)
        if runs:
            yield [title, short(median(runs, "rate")), *(f"{median(runs, key):.2f}" for key in ("p50_ms", "p99_ms", "p999_ms")),
                   f"{sum(run['failed'] for run in runs):,}" if any(run["failed"] for run in runs) else "none"]


def count_rows(document):
    for key, title, results in measured(document):
        counts = [entry for entry in results["counts"] if entry["held"] is not None]
        memory = results["memory"]
        rss = [f"{median(memory, 'rss_mib'):.0f}", f"{max(entry['highest_mib'] for entry in memory):.0f}"] if memory else ["", ""]
        if not counts:
            yield [title, *rss, "not asked", "", ""]
            continue
        acknowledged, held = (sum(entry[name] for entry in counts) for name in ("acknowledged", "held"))
        missing = sum(max(0, entry["acknowledged"] - entry["held"]) for entry in counts)
        beyond = sum(max(0, entry["held"] - entry["acknowledged"]) for entry in counts)
        verdict = f"**{missing:,} missing**" if missing else "all there"
        yield [title, *rss, f"{acknowledged:,}", f"{held:,}", verdict + (f", {beyond:,} not waited for" if beyond else "")]


def markdown(document, name, drawn):
    m, peers = document["machine"], document["peers"]
    out = [f"# Comparison of {document['started'][:10]}, commit {document['commit']}", ""]
    if document["interrupted"]:
        out += ["**The run was stopped before its end.**", ""]
    out += [f"- Machine: {m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB; kernel {m['kernel']}; data on {m['disk']}. "
            f"Load before the start: {m['load_before']:.2f}.",
            f"- Command: `{document['command']}`, {document['minutes']} minutes, started {document['started']}.",
            f"- One server core (taskset, core {document['cores']['server']}), the generator on core {document['cores']['generator']}; "
            f"{document['connections']} connections, {document['series']:,} series, every point new.",
            f"- {document['rounds']} interleaved rounds of {document['seconds']} s a measurement; medians. Each round starts each system anew, without data.",
            "- CPU is user and system time of the server's process and what it started, over the points it acknowledged meanwhile.",
            ""]
    problems = [f"- **{peer['title']}** {peer['absent']}." for peer in peers.values() if peer["absent"]]
    problems += [f"- **{peers[key]['title']}** failed in {failure}." for key, results in document["results"].items() for failure in results["failures"]]
    if problems:
        out += ["## What did not work", "", *problems, ""]
    if claims := ratios(document):
        rows = [[text, f"{value:.2f}", wanted, "met" if met(value, wanted) else "**missed**"] for text, value, wanted in claims]
        out += ["## Ratios", "", table(["by server CPU", "ratio", "wanted", ""], rows), ""]
    out += ["## As fast as answers come", ""]
    for points in document["points"]:
        out += [f"### {points} point{'s' if points > 1 else ''} a request", "",
                table(["", "points/s", "over the rounds", "CPU s per million", "of its core", "refused"], closed_rows(document, points)), ""]
    if document["generator"] == "loadgen":
        out += ["## Latency at half of that rate", "",
                "From the moment a request was due (open loop), at half of the rate that each system reached itself, so at different rates.", ""]
        for points in document["latency_points"]:
            out += [f"### {points} point{'s' if points > 1 else ''} a request", "",
                    table(["", "requests/s", "p50 ms", "p99 ms", "p99.9 ms", "refused"], latency_rows(document, points)), ""]
    else:
        out += ["Latency was not taken: the generator `bench-load` is a closed loop.", ""]
    out += ["## Memory, and whether everything is there", "",
            "Resident at the end of a round (median), the most in any round, and points over all rounds. What a system holds beyond what it "
            "acknowledged was under way when a measurement ended.", "",
            table(["", "RSS MiB", "most MiB", "acknowledged", "held", ""], count_rows(document)), ""]
    out += ["## What each does and does not do", ""]
    for key, peer in peers.items():
        if peer["version"]:
            asked = f" Counted by {peer['asked']}." if peer["asked"] else ""
            out += [f"- **{peer['title']}** ({peer['version']}), `POST {peer['path']}`: {peer['does_not']}{asked}"]
    commands = {points: runs[0]["command"] for _, _, results in measured(document) for points, runs in results["closed"].items()}
    out += ["", "The generator's commands, with other ports and paths for other systems:", "", "```",
            *(commands[points] for points in sorted(commands)), "```", ""]
    for heading, path in drawn:
        out += [f"![{heading}]({path})", ""]
    out += [f"All runs: [{name}.json]({name}.json).", ""]
    return "\n".join(out)
