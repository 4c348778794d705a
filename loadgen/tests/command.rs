//! The program from outside: exit codes, one sentence for what went wrong, and files that are whole.

mod common;

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::{OK, Play, Scripted};
use metricstream_loadgen::ledger;

const PROGRAM: &str = env!("CARGO_BIN_EXE_metricstream-loadgen");

fn run(target: &str, args: &[&str]) -> Output {
    Command::new(PROGRAM).args(["run", "--target", target]).args(args).output().expect("the program starts")
}

fn one_sentence(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).expect("text");
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn an_unreachable_server_is_exit_code_2() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().expect("an address").into()).expect("bound");
    let address = socket.local_addr().expect("bound").as_socket().expect("IPv4");
    let text = one_sentence(&run(&format!("http://{address}"), &["--rate", "10"]));
    assert!(text.contains("cannot connect") && text.contains("is the server running"), "{text}");
}

#[test]
fn nonsense_is_one_sentence() {
    for (args, reason) in [
        (&["--rate", "1", "--identity", "address", "--clients", "9", "-c", "3"][..], "told apart by address"),
        (&["--rate", "0"], "sends nothing"),
    ] {
        let text = one_sentence(&run("http://127.0.0.1:9", args));
        assert!(text.contains(reason), "{text}");
    }
}

/// A file size limit stands for a full disk: writes fail from then on.
#[test]
fn a_ledger_that_cannot_grow_ends_the_run_and_stays_whole() {
    let server = Scripted::start(|_, _| Play::Answer(OK));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("run.ledger");
    let script = format!(
        "trap '' XFSZ; ulimit -f 8; exec {PROGRAM} run --target http://{} --closed --duration 20s --quiet --ledger {}",
        server.address,
        path.display()
    );
    let output = Command::new("sh").args(["-c", &script]).output().expect("a shell");
    let text = one_sentence(&output);
    assert!(text.contains("ledger") && text.contains("cannot be written"), "{text}");
    let mut reader = ledger::Reader::open(&path).unwrap_or_else(|problem| panic!("{problem:?}"));
    let mut events = 0;
    while reader.event().unwrap_or_else(|problem| panic!("{problem:?}")).is_some() {
        events += 1;
    }
    assert!(events > 50, "only {events} events");
    // Nothing was sent that the ledger does not hold.
    let sent = server.seen().len();
    assert!(sent > 0 && sent <= events, "{sent} requests arrived and the ledger holds {events} events");
}

#[test]
fn an_interrupted_run_ends_early_with_a_full_result() {
    let server = Scripted::start(|_, _| Play::Answer(OK));
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("result.json");
    let child = Command::new(PROGRAM)
        .args(["run", "--target", &format!("http://{}", server.address), "--rate", "100", "--duration", "60s"])
        .arg("--json")
        .arg(&json)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    while server.seen().len() < 50 {
        std::thread::sleep(Duration::from_millis(10));
    }
    // SAFETY: a signal to a child of ours that has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let document: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&json).expect("written")).expect("a whole document");
    let totals = &document["totals"];
    assert!(totals["acknowledged"].as_u64() >= Some(50) && totals["acknowledged"] == totals["due"], "{totals}");
    assert!(document["notes"][0].as_str().is_some_and(|note| note.contains("interrupted")), "{}", document["notes"]);
}
