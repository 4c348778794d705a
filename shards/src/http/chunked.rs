//! The chunked transfer coding (RFC 9112 7.1), read as strictly as its grammar: sizes are 1 to 8 hex digits, lines end in
//! CRLF, extensions are skipped, trailer fields are checked and thrown away.
//!
//! Never panics, never takes more than it is offered, and its verdict depends only on the bytes so far, not on how
//! they were split.

use super::Refusal;
use super::target::hex;

/// Longest chunk-size line with its extensions, and longest trailer section.
const LINE_BYTES_MAX: usize = 256;
const TRAILER_BYTES_MAX: usize = 8 * 1024;
/// A body of many tiny chunks costs more to frame than to read; nobody sends one.
const OVERHEAD_FREE_BYTES: usize = 64 * 1024;
const OVERHEAD_RATIO_MAX: usize = 16;

/// Where in the coding the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    SizeStart,
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
}

/// Decoder state of one body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chunked {
    at: At,
    /// Of the chunk that is being read
    remaining: usize,
    digits: u8,
    line_bytes: usize,
    framing_bytes: usize,
}

/// What [`Chunked::next`] found at the start of its input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// `skip` bytes of framing, then `data` bytes of the body
    Data { skip: usize, data: usize },
    /// The body ended after this many bytes
    End { consumed: usize },
    /// All was framing, and there is more to come
    More,
}

const BAD_SIZE: Refusal = Refusal::bad("bad_chunk", "a chunk size is not 1 to 8 hex digits before CRLF or ;");
const BAD_LINE: Refusal = Refusal::bad("bad_chunk", "a chunk is not followed by CRLF, or its line is malformed");
const BAD_TRAILER: Refusal = Refusal::bad("bad_trailer", "a trailer field is malformed, or there are too many");
const OVERHEAD: Refusal = Refusal::bad("chunk_overhead", "the chunks are so small that framing outweighs data");

impl Chunked {
    pub(crate) fn new() -> Chunked {
        Chunked { at: At::SizeStart, remaining: 0, digits: 0, line_bytes: 0, framing_bytes: 0 }
    }

    /// Looks at the start of `input`. `body_bytes` were decoded before, and may become `body_bytes_max`.
    pub(crate) fn next(&mut self, input: &[u8], body_bytes: usize, body_bytes_max: usize) -> Result<Piece, Refusal> {
        for (index, &byte) in input.iter().enumerate() {
            if self.at == At::Data {
                let data = self.remaining.min(input.len() - index);
                self.remaining -= data;
                if self.remaining == 0 {
                    self.at = At::DataCr;
                }
                return Ok(Piece::Data { skip: index, data });
            }
            self.framing_bytes += 1;
            if self.framing_bytes > OVERHEAD_FREE_BYTES && self.framing_bytes / OVERHEAD_RATIO_MAX > body_bytes {
                return Err(OVERHEAD);
            }
            if self.step(byte, body_bytes, body_bytes_max)? {
                return Ok(Piece::End { consumed: index + 1 });
            }
        }
        Ok(Piece::More)
    }

    /// One byte of framing; `true` when it was the last of the body.
    fn step(&mut self, byte: u8, body_bytes: usize, body_bytes_max: usize) -> Result<bool, Refusal> {
        self.line_bytes += 1;
        self.at = match (self.at, byte) {
            (At::SizeStart | At::Size, _) if hex(byte).is_some() => {
                self.digits += 1;
                if self.digits > 8 {
                    return Err(BAD_SIZE);
                }
                self.remaining = self.remaining << 4 | usize::from(hex(byte).unwrap_or(0));
                At::Size
            }
            (At::Size, b'\r') => At::SizeLf,
            (At::Size, b';') => At::Extension,
            (At::SizeStart | At::Size, _) => return Err(BAD_SIZE),
            (At::Extension, b'\r') => At::SizeLf,
            (At::Extension, b'\t' | b' '..=0x7e | 0x80..) if self.line_bytes <= LINE_BYTES_MAX => At::Extension,
            (At::SizeLf, b'\n') => {
                self.line_bytes = 0;
                self.digits = 0;
                if self.remaining > body_bytes_max.saturating_sub(body_bytes) {
                    return Err(super::assembler::BODY_TOO_LARGE);
                }
                if self.remaining == 0 { At::TrailerStart } else { At::Data }
            }
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => {
                self.line_bytes = 0;
                At::SizeStart
            }
            (At::TrailerStart, b'\r') => At::EndLf,
            (At::EndLf, b'\n') => return Ok(true),
            (At::TrailerStart | At::TrailerName, b'!'..=b'~')
                if self.line_bytes <= TRAILER_BYTES_MAX && is_token(byte) =>
            {
                At::TrailerName
            }
            (At::TrailerName, b':') => At::TrailerValue,
            (At::TrailerValue, b'\r') => At::TrailerLf,
            (At::TrailerValue, b'\t' | b' '..=0x7e | 0x80..) if self.line_bytes <= TRAILER_BYTES_MAX => {
                At::TrailerValue
            }
            (At::TrailerLf, b'\n') => At::TrailerStart,
            (At::TrailerStart | At::TrailerName | At::TrailerValue | At::TrailerLf | At::EndLf, _) => {
                return Err(BAD_TRAILER);
            }
            (At::Extension | At::SizeLf | At::DataCr | At::DataLf | At::Data, _) => return Err(BAD_LINE),
        };
        Ok(false)
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The common body of one chunk without extensions or trailers, whole in `input`: the data's place, and the length of
/// all. `None` sends everything else, also what is malformed, through [`Chunked`].
pub(crate) fn single_chunk(input: &[u8]) -> Option<(std::ops::Range<usize>, usize)> {
    let line = memchr::memchr(b'\r', &input[..input.len().min(9)])?;
    let mut size = 0usize;
    for byte in &input[..line] {
        size = size << 4 | usize::from(hex(*byte)?);
    }
    let from = line + 2;
    let to = from + size;
    if line == 0 || size == 0 || input.len() < to + 7 {
        return None;
    }
    (input[line + 1] == b'\n' && &input[to..to + 7] == b"\r\n0\r\n\r\n").then_some((from..to, to + 7))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(input: &[u8], step: usize) -> Result<(Vec<u8>, usize), Refusal> {
        let mut chunked = Chunked::new();
        let (mut body, mut consumed) = (Vec::new(), 0);
        for part in input.chunks(step) {
            let mut rest = part;
            while !rest.is_empty() {
                match chunked.next(rest, body.len(), 1000)? {
                    Piece::Data { skip, data } => {
                        body.extend_from_slice(&rest[skip..skip + data]);
                        consumed += skip + data;
                        rest = &rest[skip + data..];
                    }
                    Piece::End { consumed: n } => return Ok((body, consumed + n)),
                    Piece::More => {
                        consumed += rest.len();
                        break;
                    }
                }
            }
        }
        Err(Refusal::bad("unfinished", ""))
    }

    #[test]
    fn chunks_come_together_however_they_are_split() {
        let input = b"4\r\nWiki\r\n5;a=\"b\"\r\npedia\r\n0\r\nX-T: 1\r\n\r\nnext";
        for step in 1..=input.len() {
            assert_eq!(decode(input, step), Ok((b"Wikipedia".to_vec(), input.len() - 4)), "by {step}");
        }
    }

    #[test]
    fn the_short_cut_for_one_chunk_agrees_with_the_decoder() {
        let input = b"5\r\nhello\r\n0\r\n\r\nnext";
        assert_eq!(single_chunk(input), Some((3..8, 15)));
        assert_eq!(decode(input, 7), Ok((b"hello".to_vec(), 15)));
        for odd in [&b"5\r\nhello\r\n0\r\nT: 1\r\n\r\n"[..], b"5;x\r\nhello\r\n0\r\n\r\n", b"0\r\n\r\n", b"\r\n", b"5"]
        {
            assert_eq!(single_chunk(odd), None);
        }
    }

    #[test]
    fn malformed_chunks_are_refused_however_they_are_split() {
        for input in [
            &b"5 \r\nhello\r\n0\r\n\r\n"[..],
            b"\r\nhello",
            b"-1\r\n",
            b"0x5\r\nhello",
            b"5\nhello\r\n0\r\n\r\n",
            b"5\r\nhelloX\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"000000005\r\nhello",
            b"3e9\r\n",
            b"0\r\n T: 1\r\n\r\n",
            b"0\r\nT\r\n\r\n",
            b"0\r\nT: 1\n\r\n",
            b"0\r\n\rX",
        ] {
            let whole = decode(input, input.len()).expect_err("malformed");
            assert_ne!(whole.reason, "unfinished", "{:?}", String::from_utf8_lossy(input));
            for step in 1..input.len() {
                assert_eq!(decode(input, step), Err(whole));
            }
        }
    }

    #[test]
    fn a_body_of_tiny_chunks_is_refused_at_a_bound() {
        let mut input = Vec::new();
        for _ in 0..3000 {
            input.extend_from_slice(b"1;");
            input.extend_from_slice(&[b'x'; 200]);
            input.extend_from_slice(b"\r\na\r\n");
        }
        assert_eq!(decode(&input, 4096).map_err(|r| r.reason).unwrap_err(), "chunk_overhead");
    }
}
