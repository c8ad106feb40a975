//! Walks the pages of a column chunk: header, zstd, levels, values.
//!
//! A page is decoded straight into the column, and levels are read as runs, which is about twice as fast as building
//! lists value by value. All sizes are checked against a budget before anything is allocated.

use std::ops::Range;

use parquet::basic::Compression;
use zstd::bulk::Decompressor;

use super::list::List;
use super::page::{
    BYTE_STREAM_SPLIT, DATA_PAGE, DICTIONARY_PAGE, PLAIN, PLAIN_DICTIONARY, PageHeader, Word, all_defined,
    check_count, expect_encoding, levels, list_levels, next_page, sparse_starts, split_bytes, take_text,
    words,
};
use super::runs::{bad, check_count_at_most, runs, short};
use crate::values::{Error, SequenceKey};

/// Page buffers above this size are not kept from one row group to the next; ours have 512 KiB and their levels.
const KEPT_PAGE_BYTES: usize = 4 << 20;

/// What decoding needs again for each row group: fresh pages of memory cost as much as filling them.
#[derive(Default)]
pub(crate) struct Scratch {
    zstd: Option<Decompressor<'static>>,
    page: Vec<u8>,
}

/// Decodes the column chunks of one row group.
pub(crate) struct PageDecoder {
    zstd: Decompressor<'static>,
    /// The page in hand, without compression.
    page: Vec<u8>,
    /// Bytes that may still be decoded.
    budget: usize,
    rows: usize,
}

/// A column chunk as it stands in the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) compression: Compression,
}

impl PageDecoder {
    /// For a row group of `rows` rows; decodes at most `budget` bytes in all.
    pub(crate) fn new(rows: usize, budget: usize, scratch: Scratch) -> Result<Self, Error> {
        let zstd = scratch.zstd.map_or_else(Decompressor::new, Ok)?;
        Ok(Self { zstd, page: scratch.page, budget, rows })
    }

    /// What the next decoder can use again.
    pub(crate) fn into_scratch(self) -> Scratch {
        let page = if self.page.capacity() > KEPT_PAGE_BYTES { Vec::new() } else { self.page };
        Scratch { zstd: Some(self.zstd), page }
    }

    /// A required column of keys.
    pub(crate) fn keys(&mut self, chunk: Chunk<'_>) -> Result<Vec<SequenceKey>, Error> {
        let mut keys = Vec::new();
        self.data_pages(chunk, |header, page| {
            expect_encoding(header, &[PLAIN])?;
            let (page, []) = page.as_chunks::<16>() else { return Err(short()) };
            check_count(header.values, page.len())?;
            keys.extend(page.iter().map(|key| SequenceKey(*key)));
            Ok(())
        })?;
        check_count(self.rows, keys.len())?;
        Ok(keys)
    }

    /// An optional column of text.
    pub(crate) fn texts(&mut self, chunk: Chunk<'_>) -> Result<Vec<Option<String>>, Error> {
        let (mut texts, rows) = (Vec::new(), self.rows);
        self.data_pages(chunk, |header, page| {
            expect_encoding(header, &[PLAIN])?;
            let (defined, mut values) = levels(page)?;
            check_count_at_most(rows - texts.len(), header.values)?;
            runs(defined, 1, header.values, |is_some, count| {
                for _ in 0..count {
                    let text = if is_some == 1 { Some(take_text(&mut values)?) } else { None };
                    texts.push(text);
                }
                Ok(())
            })
        })?;
        check_count(rows, texts.len())?;
        Ok(texts)
    }

    /// A required column of lists of required values.
    pub(crate) fn list<T: Word>(&mut self, chunk: Chunk<'_>) -> Result<List<T>, Error> {
        let mut list = List::default();
        self.list_into(chunk, &mut list)?;
        Ok(list)
    }

    /// As [`PageDecoder::list`], into memory that is there already; what `list` held is lost.
    pub(crate) fn list_into<T: Word>(&mut self, chunk: Chunk<'_>, list: &mut List<T>) -> Result<(), Error> {
        let List { values, ends: starts } = list;
        values.clear();
        starts.clear();
        let mut dictionary = Vec::new();
        let rows = self.rows;
        self.pages(chunk, |header, page| {
            if header.kind == DICTIONARY_PAGE {
                expect_encoding(header, &[PLAIN, PLAIN_DICTIONARY])?;
                return words(PLAIN, page, header.values, &[], &mut dictionary);
            }
            let [repeated, defined, page] = list_levels(page)?;
            let mut at = values.len();
            if !all_defined(defined, header.values)? {
                let count = sparse_starts(header, [repeated, defined], at, rows, starts)?;
                return words(header.encoding, page, count, &dictionary, values);
            }
            runs(repeated, 1, header.values, |repeats, count| {
                if repeats == 0 {
                    check_count_at_most(rows - starts.len(), count)?;
                    starts.extend(at..at + count);
                }
                at += count;
                Ok(())
            })?;
            words(header.encoding, page, header.values, &dictionary, values)
        })?;
        check_count(rows, starts.len())?;
        match starts.first() {
            Some(0) => {}
            _ => return Err(bad("a column that starts with a row", "one that does not")),
        }
        // A row ends where the next one starts.
        starts.remove(0);
        starts.push(values.len());
        Ok(())
    }

    /// The values `wanted` of a list column of split bytes, which must be one row; pages without them stay compressed.
    pub(crate) fn list_row<T: Word>(
        &mut self,
        chunk: Chunk<'_>,
        wanted: &Range<usize>,
    ) -> Result<Vec<T>, Error> {
        let mut row = Vec::new();
        let (mut rest, mut end) = (chunk.bytes, 0usize);
        while end < wanted.end {
            let (header, body) = next_page(&mut rest)?;
            if header.kind != DATA_PAGE {
                return Err(bad("a data page", "a dictionary"));
            }
            let start = end;
            end = start.checked_add(header.values).ok_or_else(short)?;
            if end <= wanted.start {
                continue;
            }
            let page = self.decompress(chunk.compression, &header, body)?;
            expect_encoding(&header, &[BYTE_STREAM_SPLIT])?;
            let [repeated, defined, page] = list_levels(page)?;
            if !all_defined(defined, header.values)? {
                return Err(bad("lists of which none is empty", "an empty one"));
            }
            let mut run_start = start;
            runs(repeated, 1, header.values, |repeats, count| {
                let run = run_start..run_start + count;
                run_start = run.end;
                let is_inside = run.start.max(wanted.start + 1) < run.end.min(wanted.end);
                let is_bound = run.contains(&wanted.start) || run.contains(&wanted.end);
                match (repeats, is_inside, is_bound) {
                    (0, false, _) | (1, _, false) => Ok(()),
                    _ => Err(bad(format_args!("a row of the values {wanted:?}"), "another row")),
                }
            })?;
            let part = wanted.start.max(start) - start..wanted.end.min(end) - start;
            split_bytes(page, header.values, part, &mut row)?;
        }
        Ok(row)
    }

    /// The pages of a column without a dictionary.
    fn data_pages(
        &mut self,
        chunk: Chunk<'_>,
        mut visit: impl FnMut(&PageHeader, &[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.pages(chunk, |header, page| match header.kind {
            DATA_PAGE => visit(header, page),
            _ => Err(bad("a data page", "a dictionary")),
        })
    }

    /// Calls `visit` with the header and the decompressed bytes of each page.
    fn pages(
        &mut self,
        chunk: Chunk<'_>,
        mut visit: impl FnMut(&PageHeader, &[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut rest = chunk.bytes;
        while !rest.is_empty() {
            let (header, body) = next_page(&mut rest)?;
            visit(&header, self.decompress(chunk.compression, &header, body)?)?;
        }
        Ok(())
    }

    /// The bytes of a page, after a look at the budget.
    fn decompress<'a>(
        &'a mut self,
        compression: Compression,
        header: &PageHeader,
        body: &'a [u8],
    ) -> Result<&'a [u8], Error> {
        // A run of a dictionary column makes many values of few bytes, so values count as well.
        let cost = header.values.saturating_mul(4).saturating_add(header.uncompressed);
        if cost > self.budget {
            return Err(bad(format_args!("a page of at most {} decoded bytes", self.budget), cost));
        }
        self.budget -= cost;
        match compression {
            Compression::ZSTD(_) => {
                self.page.clear();
                self.page.reserve(header.uncompressed);
                let found = self.zstd.decompress_to_buffer(body, &mut self.page);
                let found = found.map_err(|error| bad("a zstd frame", error))?;
                check_count(header.uncompressed, found)?;
                Ok(&self.page)
            }
            Compression::UNCOMPRESSED => Ok(body),
            other => Err(bad("zstd or no compression", format_args!("{other:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(bytes: &[u8], compression: Compression) -> Chunk<'_> {
        Chunk { bytes, compression }
    }

    #[test]
    fn a_page_that_asks_for_gigabytes_is_refused() {
        // Type 0, 2^31 - 1 bytes, 4 bytes compressed, and 2^31 - 1 values of encoding 0 with levels of encoding 3.
        let size = [0xfe, 0xff, 0xff, 0xff, 0x0f];
        let header =
            [&[0x15, 0, 0x15], &size[..], &[0x15, 8, 0x2c, 0x15], &size, &[0x15, 0, 0x15, 6, 0x15, 6, 0, 0]]
                .concat();
        let bytes = [&header[..], &[0; 4]].concat();
        let chunk = Chunk { bytes: &bytes, compression: Compression::UNCOMPRESSED };
        let error = PageDecoder::new(1, 1 << 20, Scratch::default())
            .unwrap()
            .list::<i32>(chunk)
            .unwrap_err()
            .to_string();
        assert_eq!(error, "page: expected a page of at most 1048576 decoded bytes, found 10737418235");
    }

    /// A frame of 2 KB that holds 64 MB, behind a header that says 1,000 bytes.
    #[test]
    fn a_frame_that_holds_more_than_its_header_says_is_refused() {
        let body = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
        let mut number = body.len() * 2;
        let mut size = Vec::new();
        while number > 127 {
            size.push(u8::try_from(number & 127).unwrap() | 128);
            number >>= 7;
        }
        size.push(u8::try_from(number).unwrap());
        let header = [
            &[0x15, 0, 0x15, 0xd0, 0x0f, 0x15][..],
            &size,
            &[0x2c, 0x15, 20, 0x15, 0, 0x15, 6, 0x15, 6, 0, 0],
        ];
        let bytes = [&header.concat()[..], &body].concat();
        let zstd = Compression::ZSTD(parquet::basic::ZstdLevel::default());
        let mut decoder = PageDecoder::new(1, 1 << 20, Scratch::default()).unwrap();
        let error = decoder.list::<i32>(chunk(&bytes, zstd)).unwrap_err().to_string();
        assert!(error.starts_with("page: expected a zstd frame, found "), "{error}");
        assert!(decoder.into_scratch().page.capacity() < 1 << 16);
    }
}
