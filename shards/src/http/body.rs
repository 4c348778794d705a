//! Content codings of request bodies: gzip (RFC 1952, several members) and zstd (RFC 8878, several frames).
//!
//! Promises: never writes more than the smaller of the bounds (a decompressed size, and a ratio to the compressed
//! one), refuses what follows the last member, and keeps its buffers from body to body. One [`Inflater`] a shard.

use super::{Bounds, Refusal};
use flate2::{Crc, Decompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

/// Windows above 8 MiB need not be supported (RFC 8878 3.1.1.1.2), and their memory is the sender's choice.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// An output buffer that grew beyond this is given back before the next body.
const KEEP_BYTES: usize = 8 << 20;

const UNKNOWN: Refusal =
    Refusal::with(415, "content_encoding", "the Content-Encoding is none of: identity, gzip, zstd (one of them, once)");
const BAD_GZIP: Refusal = Refusal::bad("bad_gzip", "the body is not valid gzip");
const GZIP_TRAILING: Refusal = Refusal::bad("bad_gzip", "the gzip body is followed by bytes that are no gzip member");
const GZIP_SHORT: Refusal = Refusal::bad("bad_gzip", "the gzip body ends before its data does");
const GZIP_SUM: Refusal = Refusal::bad("bad_gzip", "the gzip body does not match its checksum");
const BAD_ZSTD: Refusal = Refusal::bad("bad_zstd", "the body is not valid zstd, or its window is larger than 8 MiB");
const ZSTD_SHORT: Refusal = Refusal::bad("bad_zstd", "the zstd body ends before its data does");
const TOO_LARGE: Refusal =
    Refusal::with(413, "inflated_too_large", "the decompressed body is longer than this server takes");
const RATIO: Refusal =
    Refusal::with(413, "inflated_ratio", "the body decompresses to more than this server's ratio limit");

/// Decoder contexts and the output buffer of a shard.
pub struct Inflater {
    inflate: Decompress,
    zstd: Decoder<'static>,
    /// Initialised to its length
    out: Vec<u8>,
    filled: usize,
}

/// The most that this body may become, and which bound says so.
#[derive(Clone, Copy)]
struct Limit {
    bytes: usize,
    refusal: Refusal,
}

impl Inflater {
    /// Fails only when zstd has no memory for its context.
    pub fn new() -> std::io::Result<Inflater> {
        let mut zstd = Decoder::new()?;
        zstd.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))?;
        Ok(Inflater { inflate: Decompress::new(false), zstd, out: Vec::new(), filled: 0 })
    }

    /// `raw` itself when nothing is encoded (also an empty body that says it is: Telegraf sends those), else the
    /// decoded bytes, valid until the next call.
    pub fn decode<'a>(
        &'a mut self,
        content_encoding: Option<&[u8]>,
        raw: &'a [u8],
        bounds: &Bounds,
    ) -> Result<&'a [u8], Refusal> {
        let name = content_encoding.unwrap_or(b"identity").trim_ascii();
        let is = |other: &[u8]| name.eq_ignore_ascii_case(other);
        if is(b"identity") || name.is_empty() {
            return Ok(raw);
        }
        let gzip = is(b"gzip") || is(b"x-gzip");
        if !gzip && !is(b"zstd") {
            return Err(UNKNOWN);
        }
        if raw.is_empty() {
            return Ok(raw);
        }
        if self.out.len() > KEEP_BYTES {
            self.out = Vec::new();
        }
        self.filled = 0;
        let by_ratio = raw.len().saturating_mul(bounds.inflated_ratio_max).max(bounds.inflated_free_bytes);
        let limit = if by_ratio < bounds.inflated_bytes_max {
            Limit { bytes: by_ratio, refusal: RATIO }
        } else {
            Limit { bytes: bounds.inflated_bytes_max, refusal: TOO_LARGE }
        };
        if gzip {
            self.gunzip(raw, limit)?
        } else {
            self.unzstd(raw, limit)?
        }
        Ok(&self.out[..self.filled])
    }

    fn gunzip(&mut self, mut rest: &[u8], limit: Limit) -> Result<(), Refusal> {
        let mut first = true;
        while !rest.is_empty() {
            let header = gzip_header(rest).map_err(|refusal| if first { refusal } else { GZIP_TRAILING })?;
            rest = &rest[header..];
            let member_from = self.filled;
            rest = &rest[self.inflate_member(rest, limit)?..];
            let trailer = rest.get(..8).ok_or(GZIP_SHORT)?;
            rest = &rest[8..];
            let member = &self.out[member_from..self.filled];
            let mut crc = Crc::new();
            crc.update(member);
            let (sum, length) = trailer.split_at(4);
            if sum != crc.sum().to_le_bytes() || length != (member.len() as u32).to_le_bytes() {
                return Err(GZIP_SUM);
            }
            first = false;
        }
        Ok(())
    }

    /// One deflate stream at the start of `input`; returns its length.
    fn inflate_member(&mut self, input: &[u8], limit: Limit) -> Result<usize, Refusal> {
        self.inflate.reset(false);
        let mut consumed = 0;
        loop {
            let end = self.make_room(input.len(), limit);
            let (in_before, out_before) = (self.inflate.total_in(), self.inflate.total_out());
            let status = self
                .inflate
                .decompress(&input[consumed..], &mut self.out[self.filled..end], FlushDecompress::None)
                .map_err(|_| BAD_GZIP)?;
            let read = (self.inflate.total_in() - in_before) as usize;
            let written = (self.inflate.total_out() - out_before) as usize;
            consumed += read;
            self.filled += written;
            if self.filled > limit.bytes {
                return Err(limit.refusal);
            }
            match status {
                Status::StreamEnd => return Ok(consumed),
                _ if self.filled == end => {}
                _ if read == 0 && written == 0 || consumed == input.len() => return Err(GZIP_SHORT),
                _ => {}
            }
        }
    }

    fn unzstd(&mut self, raw: &[u8], limit: Limit) -> Result<(), Refusal> {
        self.zstd.reinit().map_err(|_| BAD_ZSTD)?;
        let mut input = InBuffer::around(raw);
        loop {
            let end = self.make_room(raw.len(), limit);
            let mut output = OutBuffer::around(&mut self.out[self.filled..end]);
            let hint = self.zstd.run(&mut input, &mut output).map_err(|_| BAD_ZSTD)?;
            let written = output.pos();
            self.filled += written;
            if self.filled > limit.bytes {
                return Err(limit.refusal);
            }
            if input.pos() == raw.len() {
                // 0 says that a frame is whole and flushed; asked once more, it would speak of the next frame.
                if hint == 0 {
                    return Ok(());
                }
                if self.filled < end {
                    return Err(ZSTD_SHORT);
                }
            }
        }
    }

    /// Makes room after `filled` and returns its end: at least one byte, and at most one beyond the limit, so that
    /// going past the limit is seen. `filled` is at most the limit.
    fn make_room(&mut self, input_bytes: usize, limit: Limit) -> usize {
        let most = limit.bytes.saturating_add(1);
        if self.filled == self.out.len() {
            let target = (self.out.len() * 2).max(input_bytes * 4).max(16 * 1024).min(most);
            self.out.resize(target.max(self.filled + 1), 0);
        }
        self.out.len().min(most)
    }
}

/// Length of a member's header (RFC 1952 2.3).
fn gzip_header(bytes: &[u8]) -> Result<usize, Refusal> {
    const HEADER_CRC: u8 = 2;
    const EXTRA: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    let fixed = bytes.get(..10).ok_or(BAD_GZIP)?;
    let flags = fixed[3];
    // Magic, deflate, no reserved flag.
    if fixed[..3] != [0x1f, 0x8b, 8] || flags & 0xe0 != 0 {
        return Err(BAD_GZIP);
    }
    let mut at = 10;
    if flags & EXTRA != 0 {
        let length = bytes.get(at..at + 2).ok_or(GZIP_SHORT)?;
        at += 2 + usize::from(u16::from_le_bytes([length[0], length[1]]));
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            let rest = bytes.get(at..).ok_or(GZIP_SHORT)?;
            at += memchr::memchr(0, rest).ok_or(GZIP_SHORT)? + 1;
        }
    }
    if flags & HEADER_CRC != 0 {
        let header = bytes.get(..at).ok_or(GZIP_SHORT)?;
        let mut crc = Crc::new();
        crc.update(header);
        if bytes.get(at..at + 2).ok_or(GZIP_SHORT)? != &crc.sum().to_le_bytes()[..2] {
            return Err(GZIP_SUM);
        }
        at += 2;
    }
    if at > bytes.len() { Err(GZIP_SHORT) } else { Ok(at) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(data).expect("to memory");
        encoder.finish().expect("to memory")
    }
    fn zst(data: &[u8]) -> Vec<u8> {
        zstd::encode_all(data, 3).expect("to memory")
    }
    fn text(bytes: usize) -> Vec<u8> {
        let mut n = 1u64;
        (0..bytes)
            .map(|_| {
                n = n.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                b'a' + (n >> 60) as u8
            })
            .collect()
    }

    #[test]
    fn bodies_come_out_as_they_went_in_whatever_their_size() {
        let mut inflater = Inflater::new().expect("memory");
        let bounds = Bounds::default();
        for bytes in [1, 100, 16 * 1024, 16 * 1024 + 1, 300_000, 3_000_000] {
            let data = text(bytes);
            for (name, packed) in [("gzip", gzip(&data)), ("zstd", zst(&data)), ("identity", data.clone())] {
                let out = inflater.decode(Some(name.as_bytes()), &packed, &bounds);
                assert!(out == Ok(&data[..]), "{name} {bytes}");
            }
        }
    }

    #[test]
    fn several_members_are_one_body_and_an_empty_body_is_empty() {
        let mut inflater = Inflater::new().expect("memory");
        let bounds = Bounds::default();
        for (name, two) in
            [("GZip", [gzip(b"one "), gzip(b""), gzip(b"two")]), ("zstd", [zst(b"one "), zst(b""), zst(b"two")])]
        {
            assert_eq!(inflater.decode(Some(name.as_bytes()), &two.concat(), &bounds), Ok(&b"one two"[..]), "{name}");
            assert_eq!(inflater.decode(Some(name.as_bytes()), b"", &bounds), Ok(&b""[..]));
        }
    }

    #[test]
    fn a_cut_or_prolonged_or_bent_body_is_refused_and_the_next_one_is_not() {
        let mut inflater = Inflater::new().expect("memory");
        let bounds = Bounds::default();
        let data = text(200);
        for (name, good) in [("gzip", gzip(&data)), ("zstd", zst(&data))] {
            let encoding = Some(name.as_bytes());
            for cut in 1..good.len() {
                let refusal = inflater.decode(encoding, &good[..cut], &bounds).expect_err("cut");
                assert_eq!(refusal.status, 400, "{name} cut at {cut}");
            }
            for tail in [&b"\0"[..], b"garbage", &good[..4]] {
                let longer = [&good[..], tail].concat();
                assert_eq!(inflater.decode(encoding, &longer, &bounds).expect_err("tail").status, 400, "{name}");
            }
            assert_eq!(inflater.decode(encoding, &good, &bounds), Ok(&data[..]));
        }
        let mut bent = gzip(&data);
        let at = bent.len() - 6;
        bent[at] ^= 1;
        assert_eq!(inflater.decode(Some(b"gzip"), &bent, &bounds), Err(GZIP_SUM));
    }

    #[test]
    fn a_header_with_every_optional_part_is_skipped() {
        let plain = gzip(b"data");
        let mut header = vec![0x1f, 0x8b, 8, 2 | 4 | 8 | 16, 0, 0, 0, 0, 0, 255, 3, 0, b'x', b'y', b'z'];
        header.extend_from_slice(b"name\0comment\0");
        let mut crc = Crc::new();
        crc.update(&header);
        header.extend_from_slice(&crc.sum().to_le_bytes()[..2]);
        let packed = [&header[..], &plain[10..]].concat();
        let mut inflater = Inflater::new().expect("memory");
        assert_eq!(inflater.decode(Some(b"gzip"), &packed, &Bounds::default()), Ok(&b"data"[..]));
    }

    #[test]
    fn bombs_stop_at_their_bound() {
        let mut inflater = Inflater::new().expect("memory");
        let zeros = vec![0u8; 4 << 20];
        for (name, bomb) in [("gzip", gzip(&zeros)), ("zstd", zst(&zeros))] {
            let encoding = Some(name.as_bytes());
            assert_eq!(inflater.decode(encoding, &bomb, &Bounds::default()), Err(RATIO), "{name}");
            assert_eq!(inflater.filled, (1 << 20) + 1, "{name}");
            let size = Bounds { inflated_ratio_max: usize::MAX, inflated_bytes_max: 3 << 20, ..Bounds::default() };
            assert_eq!(inflater.decode(encoding, &bomb, &size), Err(TOO_LARGE), "{name}");
            let exact = Bounds { inflated_bytes_max: 4 << 20, ..size };
            assert!(inflater.decode(encoding, &bomb, &exact) == Ok(&zeros[..]), "{name}");
        }
    }

    #[test]
    fn other_codings_are_named_unsupported() {
        let mut inflater = Inflater::new().expect("memory");
        for name in ["deflate", "br", "gzip, gzip", "gzip\r\nX: y", "compress", "snappy"] {
            let refusal = inflater.decode(Some(name.as_bytes()), b"x", &Bounds::default()).expect_err("unknown");
            assert_eq!(refusal.status, 415, "{name}");
        }
    }
}
