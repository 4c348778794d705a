//! `verify` against a small server that lies about one point in a million (`common/liar.rs`).
//!
//! What the liar has is read as a log dump, as windows and as newline JSON. Each lie must be caught in each of the three,
//! and an honest server found honest.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use common::liar::{Kind, Liar, Lie, Lines, POINTS, judge, options, plan, send};
use metricstream_loadgen::plan::Protocol;
use metricstream_loadgen::verify::expected::Expected;
use metricstream_loadgen::verify::lines;
use metricstream_loadgen::workload::client;

#[derive(Clone, Copy)]
enum Form {
    LogDump,
    Windows,
    Ndjson,
}

fn catch(protocol: Protocol, lie: Lie, forms: &[Form]) {
    let dir = tempfile::tempdir().expect("a directory");
    let ledger = dir.path().join("ledger");
    let mut liar = Liar::new(lie);
    send(&plan(protocol), &ledger, |client, body| liar.take(&client::name(client), body));
    assert_eq!(liar.came, POINTS as usize);
    let expected = Expected::load(&[&ledger]).expect("a ledger");
    for form in forms {
        let points = |name, kind| lines::compare_points(&expected, &options(), name, Lines::new(&liar, kind));
        let verdict = match form {
            Form::LogDump => points("log dump", Kind::LogDump),
            Form::Ndjson => points("newline JSON", Kind::Ndjson),
            Form::Windows => lines::compare_windows(&expected, &options(), &liar.windows()[..]),
        };
        judge(&verdict.unwrap_or_else(|error| panic!("{lie:?}: {error}")), lie);
    }
}

const ALL: [Form; 3] = [Form::LogDump, Form::Windows, Form::Ndjson];

#[test]
fn an_honest_server_is_found_honest() {
    catch(Protocol::Line, Lie::None, &ALL);
    catch(Protocol::Json, Lie::None, &ALL);
}

#[test]
fn one_point_in_a_million_dropped_is_caught() {
    catch(Protocol::Line, Lie::Drop, &ALL);
    catch(Protocol::Json, Lie::Drop, &[Form::Windows]);
}

#[test]
fn one_point_in_a_million_doubled_is_caught() {
    catch(Protocol::Line, Lie::Double, &ALL);
    catch(Protocol::Json, Lie::Double, &[Form::Windows]);
}

#[test]
fn one_point_in_a_million_reordered_is_caught() {
    catch(Protocol::Line, Lie::Reorder, &ALL);
    catch(Protocol::Json, Lie::Reorder, &[Form::Windows]);
}

#[test]
fn one_point_in_a_million_altered_by_a_millionth_is_caught() {
    catch(Protocol::Line, Lie::Alter, &ALL);
    catch(Protocol::Json, Lie::Alter, &[Form::Windows]);
}

/// One request after the other, until the client closes.
fn serve(stream: TcpStream, liar: &Mutex<Liar>) {
    let mut input = BufReader::new(stream);
    let mut body = Vec::new();
    loop {
        let (mut length, mut client) = (0, String::new());
        loop {
            let mut line = String::new();
            if input.read_line(&mut line).expect("a head") == 0 {
                return;
            }
            match line.trim_end().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse().expect("a length");
                }
                Some(("X-Client-ID", value)) => client = value.to_string(),
                None if line.trim_end().is_empty() => break,
                _ => {}
            }
        }
        body.resize(length, 0);
        input.read_exact(&mut body).expect("a body");
        liar.lock().expect("no panic").take(&client, &body);
        input.get_mut().write_all(b"HTTP/1.1 204 No Content\r\n\r\n").expect("answered");
    }
}

/// The same over a socket, and by the command itself.
#[test]
fn a_server_that_drops_one_is_caught_over_the_wire_by_the_command() {
    let dir = tempfile::tempdir().expect("a directory");
    let ledger = dir.path().join("ledger");
    let liar = Arc::new(Mutex::new(Liar::new(Lie::Drop)));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address: SocketAddr = listener.local_addr().expect("bound");
    let server = std::thread::spawn({
        let liar = liar.clone();
        move || serve(listener.accept().expect("a connection").0, &liar)
    });
    let mut stream = TcpStream::connect(address).expect("connected");
    send(&plan(Protocol::Line), &ledger, |client, body| {
        let name = client::name(client);
        let head =
            format!("POST /write HTTP/1.1\r\nHost: l\r\nX-Client-ID: {name}\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).expect("sent");
        stream.write_all(body).expect("sent");
        let mut answer = [0; 27];
        stream.read_exact(&mut answer).expect("answered");
        assert!(answer.starts_with(b"HTTP/1.1 204"));
    });
    drop(stream);
    server.join().expect("served");
    let liar = liar.lock().expect("no panic");
    let dump = dir.path().join("dump");
    let mut lines = Lines::new(&liar, Kind::LogDump);
    std::io::copy(&mut lines, &mut std::fs::File::create(&dump).expect("a file")).expect("written");
    let windows = dir.path().join("windows");
    std::fs::write(&windows, liar.windows()).expect("written");

    let verify = |source: &str, file: &PathBuf| {
        std::process::Command::new(env!("CARGO_BIN_EXE_metricstream-loadgen"))
            .args(["verify", "--horizon", "1000000000", "--json", "--ledger"])
            .arg(&ledger)
            .arg(source)
            .arg(file)
            .output()
            .expect("started")
    };
    for (source, file) in [("--log-dump", &dump), ("--windows", &windows)] {
        let output = verify(source, file);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{text} {}", String::from_utf8_lossy(&output.stderr));
        let verdict: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(verdict[0]["ok"], false);
        let sentence = verdict[0]["first"][0]["sentence"].as_str().expect("named");
        assert!(sentence.starts_with("missing: ") && sentence.contains(" of client-000001 at 17672256"), "{sentence}");
    }
    // A ledger is no dump.
    let output = verify("--log-dump", &ledger);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("line 1 is not a point as JSON"));
}
