//! Shared by the targets that ask whether splitting changes what comes out.

use metricstream_shards::http::{Assembler, Bounds, Step};

/// Requests (target, body) and the refusal, if any, that `bytes` come to when they arrive `step` at a time.
pub fn outcome(bytes: &[u8], step: usize) -> (Vec<(String, Vec<u8>)>, Option<&'static str>) {
    let bounds = Bounds { body_bytes_max: 4096, ..Bounds::default() };
    let mut assembler = Assembler::new(0);
    let mut requests = Vec::new();
    for part in bytes.chunks(step.max(1)) {
        let mut rest = part;
        loop {
            match assembler.push(rest, 0, &bounds) {
                Step::NeedMore { consumed } => {
                    assert_eq!(consumed, rest.len());
                    break;
                }
                Step::Head { consumed, .. } => rest = &rest[consumed..],
                Step::Request { consumed, body } => {
                    let head = assembler.head();
                    let _ = (head.query("db"), head.request_id(), head.traceparent());
                    let _ = metricstream_shards::http::auth::credential(head);
                    let target = format!("{:?} {} {:?}", head.method(), head.path(), head.query_raw());
                    requests.push((target, assembler.body(&body, rest).to_vec()));
                    rest = &rest[consumed..];
                }
                Step::Refuse(refusal) => return (requests, Some(refusal.reason)),
                Step::Close => return (requests, None),
            }
        }
    }
    (requests, None)
}
