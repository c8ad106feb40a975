//! Compresses pages to one zstd frame each, with less work where work gains nothing.
//!
//! Of token ids and log-probabilities split into bytes, the two low planes hold no repetitions: searching them finds
//! matches by chance, which take longer to encode and to decode than the bytes themselves and, for rounded values, are larger
//! than plain Huffman codes. Their blocks are therefore made without a search, and the others behind them as usual.

use std::io;

use zstd::bulk::Compressor;
use zstd::zstd_safe::{CParameter, ParamSwitch, Strategy};

use crate::values::Error;

/// zstd 1 writes faster for 4 % more bytes, 9 and above are many times slower.
const ZSTD_LEVEL: i32 = 3;
/// For columns that are small: drawn entries take 4 % fewer bytes.
const THOROUGH_LEVEL: i32 = 9;
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Of a frame header: the window is the content, whose size has four bytes.
const SINGLE_SEGMENT: u8 = 0b1010_0000;

/// How long repetitions are searched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Search {
    Usual,
    Thorough,
}

/// The ways to compress, and memory for what they give.
pub(crate) struct FrameWriter {
    search: Compressor<'static>,
    thorough: Compressor<'static>,
    literals: Compressor<'static>,
}

impl FrameWriter {
    pub(crate) fn new() -> io::Result<Self> {
        let (search, thorough) = (Compressor::new(ZSTD_LEVEL)?, Compressor::new(THOROUGH_LEVEL)?);
        let mut literals = Compressor::new(1)?;
        literals.set_parameter(CParameter::Strategy(Strategy::ZSTD_fast))?;
        // The step of the search: as long as a block, so that nothing is found.
        literals.set_parameter(CParameter::TargetLength(zstd::zstd_safe::BLOCKSIZE_MAX))?;
        literals.set_parameter(CParameter::LiteralCompressionMode(ParamSwitch::Enable))?;
        Ok(Self { search, thorough, literals })
    }

    /// The frame of a page.
    pub(crate) fn compress(&mut self, page: &[u8], search: Search) -> io::Result<Vec<u8>> {
        match search {
            Search::Usual => self.search.compress(page),
            Search::Thorough => self.thorough.compress(page),
        }
    }

    /// The frame of a page of which all bytes before the last of `ends` are not searched. Blocks end at each of them:
    /// what has other statistics is another block, and one byte repeated is a block of a few bytes.
    pub(crate) fn compress_split(
        &mut self,
        page: &[u8],
        ends: &[usize],
        search: Search,
    ) -> Result<Vec<u8>, Error> {
        let size = u32::try_from(page.len()).map_err(|_| Error::bad("page", "at most 4 GiB", page.len()))?;
        let mut frame = Vec::with_capacity(page.len() / 2);
        frame.extend(MAGIC);
        frame.push(SINGLE_SEGMENT);
        frame.extend(size.to_le_bytes());
        let mut start = 0;
        for &end in ends {
            // Blocks without matches leave the decoder's memory of matches as it is.
            push_blocks(&mut frame, &self.literals.compress(&page[start..end])?);
            start = end;
        }
        let rest = self.compress(&page[start..], search)?;
        frame.extend_from_slice(&rest[header_size(&rest)..]);
        Ok(frame)
    }
}

/// Bytes before the first block of a frame that zstd made: RFC 8878, 3.1.1.1.
fn header_size(frame: &[u8]) -> usize {
    let descriptor = frame[4];
    let single_segment = usize::from((descriptor >> 5) & 1);
    let content_size = match descriptor >> 6 {
        0 => single_segment,
        code => 1 << code,
    };
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    5 + (1 - single_segment) + dictionary + content_size
}

/// Appends all blocks of a frame, none of which is then the last: RFC 8878, 3.1.1.2.
fn push_blocks(out: &mut Vec<u8>, frame: &[u8]) {
    const RUN: u32 = 1;
    let mut rest = &frame[header_size(frame)..];
    while let Some(([low, middle, high], body)) = rest.split_first_chunk::<3>() {
        let header = u32::from_le_bytes([*low, *middle, *high, 0]);
        let size = if (header >> 1) & 3 == RUN { 1 } else { header >> 3 };
        let (body, after) = body.split_at(usize::try_from(size).expect("21 bits"));
        out.extend([low & !1, *middle, *high]);
        out.extend_from_slice(body);
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pseudo-random bytes below `end`, with repetitions in the second half.
    fn page(size: usize, end: u8) -> Vec<u8> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            u8::try_from(state >> 24).unwrap() % end
        };
        let noise: Vec<u8> = (0..size / 2).map(|_| next()).collect();
        let words: Vec<u8> = (0..61).map(|_| next()).collect();
        noise.into_iter().chain(words.into_iter().cycle()).take(size).collect()
    }

    #[test]
    fn a_frame_of_two_parts_is_read_as_any_other() {
        let mut frames = FrameWriter::new().unwrap();
        for (size, end) in
            [(2, 255), (3, 1), (61, 4), (300, 255), (5000, 8), (70_000, 200), (524_288, 1), (524_399, 8)]
        {
            let page = page(size, end);
            for at in [1, size / 3, size / 2, size - 1].map(|at| at.max(1)) {
                for ends in [vec![at], vec![at.min(size / 2), size / 2, size - 1]] {
                    for search in [Search::Usual, Search::Thorough] {
                        let frame = frames.compress_split(&page, &ends, search).unwrap();
                        let place = format!("{size} bytes, {ends:?}, {search:?}");
                        assert_eq!(zstd::bulk::decompress(&frame, size).unwrap(), page, "{place}");
                        assert_eq!(zstd::decode_all(&frame[..]).unwrap(), page, "{place}");
                    }
                }
            }
        }
    }

    #[test]
    fn noise_of_few_values_is_smaller_without_a_search() {
        let mut frames = FrameWriter::new().unwrap();
        let noise = page(1 << 18, 8);
        let noise = &noise[..1 << 17];
        let twice = [noise, &[0; 1 << 17]].concat();
        let size = frames.compress_split(&twice, &[noise.len()], Search::Usual).unwrap().len();
        assert!(
            size < frames.compress(&twice, Search::Usual).unwrap().len() && size < noise.len() * 4 / 10,
            "{size}"
        );
    }
}
