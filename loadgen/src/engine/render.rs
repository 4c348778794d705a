//! Requests as bytes: a prepared head, then the workload's body, compressed if so planned. Allocates nothing once its
//! buffers have grown.

use std::io::Write;
use std::net::SocketAddr;

use crate::plan::{Compression, Connection, Identity, Plan, Protocol};
use crate::workload::{Batch, Rendered, Workload};

pub struct Renderer {
    workload: Workload,
    /// Up to the client's number in its identity, or up to `Content-Length: ` when there is none.
    before: Vec<u8>,
    identity: Identity,
    /// Up to `Content-Length: `.
    after: Vec<u8>,
    /// Digits of the last body's length: the next one's most likely has as many.
    digits: usize,
    compression: Compressor,
    plain: Vec<u8>,
}

enum Compressor {
    None,
    Gzip(flate2::Compress),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Renderer {
    pub fn new(plan: &Plan, target: SocketAddr) -> Renderer {
        let transport = &plan.transport;
        let mut before = format!("POST {} HTTP/1.1\r\nHost: {target}\r\n", transport.path);
        let mut after = String::new();
        if transport.identity == Identity::Header {
            before.push_str("X-Client-ID: client-");
            after.push_str("\r\n");
        }
        if let Some(token) = &transport.token {
            after.push_str(&format!("Authorization: Token {token}\r\n"));
        }
        after.push_str(match plan.workload.protocol {
            Protocol::Line => "Content-Type: text/plain; charset=utf-8\r\n",
            Protocol::Json => "Content-Type: application/json\r\n",
        });
        after.push_str(match transport.compression {
            Compression::None => "",
            Compression::Gzip => "Content-Encoding: gzip\r\n",
            Compression::Zstd => "Content-Encoding: zstd\r\n",
        });
        if transport.connection == Connection::Reconnect {
            after.push_str("Connection: close\r\n");
        }
        after.push_str("Content-Length: ");
        let compression = match transport.compression {
            Compression::None => Compressor::None,
            Compression::Gzip => Compressor::Gzip(flate2::Compress::new_gzip(flate2::Compression::new(6), 15)),
            Compression::Zstd => Compressor::Zstd(zstd::bulk::Compressor::new(3).expect("level 3 exists")),
        };
        Renderer {
            workload: Workload::new(plan),
            before: before.into_bytes(),
            identity: transport.identity,
            after: after.into_bytes(),
            digits: 3,
            compression,
            plain: Vec::new(),
        }
    }

    /// Appends one whole request with these batches of one client.
    pub fn request(&mut self, out: &mut Vec<u8>, batches: &[Batch]) -> Rendered {
        out.extend_from_slice(&self.before);
        if self.identity == Identity::Header {
            write!(out, "{:06}", batches[0].client).expect("a Vec takes all");
        }
        out.extend_from_slice(&self.after);
        let length_at = out.len();
        out.resize(length_at + self.digits + 4, b'0');
        let body_at = out.len();
        let rendered = match &mut self.compression {
            Compressor::None => self.workload.body(out, batches),
            Compressor::Gzip(gzip) => {
                self.plain.clear();
                let rendered = self.workload.body(&mut self.plain, batches);
                gzip.reset();
                out.reserve(self.plain.len() + self.plain.len() / 1000 + 64);
                let status = gzip.compress_vec(&self.plain, out, flate2::FlushCompress::Finish);
                assert!(matches!(status, Ok(flate2::Status::StreamEnd)), "there was room for the worst case");
                rendered
            }
            Compressor::Zstd(zstd) => {
                self.plain.clear();
                let rendered = self.workload.body(&mut self.plain, batches);
                out.resize(body_at + zstd::zstd_safe::compress_bound(self.plain.len()), 0);
                let len = zstd.compress_to_buffer(&self.plain, &mut out[body_at..]).expect("the bound is room enough");
                out.truncate(body_at + len);
                rendered
            }
        };
        self.write_length(out, length_at, body_at);
        rendered
    }

    /// Puts the body's length and the head's end between `length_at` and `body_at`, and moves the body if its length
    /// has not as many digits as the last.
    fn write_length(&mut self, out: &mut Vec<u8>, length_at: usize, body_at: usize) {
        let mut text = itoa::Buffer::new();
        let digits = text.format(out.len() - body_at).as_bytes();
        if digits.len() != self.digits {
            let new_at = length_at + digits.len() + 4;
            let body_bytes = out.len() - body_at;
            out.resize(out.len().max(new_at + body_bytes), 0);
            out.copy_within(body_at..body_at + body_bytes, new_at);
            out.truncate(new_at + body_bytes);
            self.digits = digits.len();
        }
        let (length, end) = out[length_at..].split_at_mut(digits.len());
        length.copy_from_slice(digits);
        end[..4].copy_from_slice(b"\r\n\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing;
    use crate::plan::Shape;
    use std::io::Read;

    fn batch(number: u64) -> Batch {
        Batch { client: 3, number, stamp_ns: 1_700_000_000_000_000_000 + number as i64 }
    }

    fn plan(compression: Compression) -> Plan {
        let mut plan = testing::plan(Shape::Closed { duration_ms: 1 });
        plan.workload.clients = 4;
        plan.workload.series = 400;
        plan.transport.compression = compression;
        plan.transport.identity = Identity::Header;
        plan.transport.token = Some("secret".to_owned());
        plan
    }

    /// Head and body, the body's length checked.
    fn split(request: &[u8]) -> (String, Vec<u8>) {
        let at = request.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
        let head = String::from_utf8(request[..at].to_vec()).expect("text");
        let length: usize = head.rsplit("Content-Length: ").next().expect("a length").trim().parse().expect("a number");
        assert_eq!(request.len() - at, length, "{head}");
        (head, request[at..].to_vec())
    }

    #[test]
    fn a_request_s_length_is_right_however_its_digits_change() {
        let target = "127.0.0.1:8186".parse().expect("an address");
        for batch_points in [1, 2, 30, 100, 1, 5, 90] {
            let mut plan = plan(Compression::None);
            plan.workload.batch_points = batch_points;
            let mut renderer = Renderer::new(&plan, target);
            let mut out = Vec::new();
            for number in 0..3 {
                out.clear();
                let rendered = renderer.request(&mut out, &[batch(number)]);
                assert_eq!(rendered.points, batch_points);
                let (head, body) = split(&out);
                assert!(head.starts_with("POST /write?precision=ns HTTP/1.1\r\nHost: 127.0.0.1:8186\r\n"), "{head}");
                assert!(head.contains("\r\nX-Client-ID: client-000003\r\n"), "{head}");
                assert!(head.contains("\r\nAuthorization: Token secret\r\n"), "{head}");
                let mut expected = Vec::new();
                Workload::new(&plan).body(&mut expected, &[batch(number)]);
                assert_eq!(body, expected);
            }
        }
    }

    #[test]
    fn compressed_bodies_hold_the_same_bytes() {
        let target = "127.0.0.1:8186".parse().expect("an address");
        let mut plain = Vec::new();
        let mut uncompressed = plan(Compression::None);
        uncompressed.workload.batch_points = 50;
        Workload::new(&uncompressed).body(&mut plain, &[batch(1)]);
        for compression in [Compression::Gzip, Compression::Zstd] {
            let mut plan = plan(compression);
            plan.workload.batch_points = 50;
            let mut renderer = Renderer::new(&plan, target);
            for _ in 0..3 {
                let mut out = Vec::new();
                renderer.request(&mut out, &[batch(1)]);
                let (head, body) = split(&out);
                let mut back = Vec::new();
                if compression == Compression::Gzip {
                    assert!(head.contains("\r\nContent-Encoding: gzip\r\n"), "{head}");
                    flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut back).expect("gzip");
                } else {
                    assert!(head.contains("\r\nContent-Encoding: zstd\r\n"), "{head}");
                    back = zstd::decode_all(&body[..]).expect("zstd");
                }
                assert_eq!(back, plain);
            }
        }
    }
}
