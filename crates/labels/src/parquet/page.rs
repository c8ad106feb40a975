//! One page of a column chunk, as Parquet lays it out: header, levels, values.

use std::ops::Range;

use super::runs::{bad, check_count_at_most, runs, short};
use super::thrift::Thrift;
use crate::values::Error;

// Codes of parquet.thrift.
pub(crate) const DATA_PAGE: usize = 0;
pub(crate) const DICTIONARY_PAGE: usize = 2;
pub(crate) const PLAIN: usize = 0;
pub(crate) const PLAIN_DICTIONARY: usize = 2;
pub(crate) const RLE: usize = 3;
pub(crate) const RLE_DICTIONARY: usize = 8;
pub(crate) const BYTE_STREAM_SPLIT: usize = 9;

/// A column value of four bytes.
pub(crate) trait Word: Copy {
    fn from_le(bytes: [u8; 4]) -> Self;
}

impl Word for i32 {
    fn from_le(bytes: [u8; 4]) -> Self {
        Self::from_le_bytes(bytes)
    }
}

impl Word for f32 {
    fn from_le(bytes: [u8; 4]) -> Self {
        Self::from_le_bytes(bytes)
    }
}

/// What a page says of itself.
#[derive(Debug, Default)]
pub(crate) struct PageHeader {
    pub(crate) kind: usize,
    pub(crate) uncompressed: usize,
    pub(crate) compressed: usize,
    pub(crate) values: usize,
    pub(crate) encoding: usize,
    pub(crate) level_encodings: Option<[usize; 2]>,
}

/// Takes a page off the front of a column chunk: its header, and its bytes as they are stored.
pub(crate) fn next_page<'a>(rest: &mut &'a [u8]) -> Result<(PageHeader, &'a [u8]), Error> {
    let mut thrift = Thrift::new(rest);
    let header = PageHeader::read(&mut thrift)?;
    let (body, after) = thrift.rest().split_at_checked(header.compressed).ok_or_else(short)?;
    *rest = after;
    Ok((header, body))
}

impl PageHeader {
    /// `PageHeader` of parquet.thrift: data pages of version 1 and dictionaries.
    fn read(thrift: &mut Thrift<'_>) -> Result<Self, Error> {
        let mut header = Self { kind: usize::MAX, ..Self::default() };
        let (mut data, mut dictionary) = (false, false);
        thrift.fields(|thrift, id, kind| match id {
            1 => thrift.size(kind).map(|size| header.kind = size),
            2 => thrift.size(kind).map(|size| header.uncompressed = size),
            3 => thrift.size(kind).map(|size| header.compressed = size),
            5 | 7 => {
                (data, dictionary) = (id == 5, id == 7);
                let mut encodings = [usize::MAX; 2];
                thrift.fields(|thrift, field, kind| match field {
                    1 => thrift.size(kind).map(|size| header.values = size),
                    2 => thrift.size(kind).map(|size| header.encoding = size),
                    3 | 4 if id == 5 => {
                        thrift.size(kind).map(|size| encodings[usize::from(field == 4)] = size)
                    }
                    _ => thrift.skip(kind),
                })?;
                header.level_encodings = (id == 5).then_some(encodings);
                Ok(())
            }
            _ => thrift.skip(kind),
        })?;
        match (header.kind, header.level_encodings) {
            (DATA_PAGE, Some([RLE, RLE])) if data => Ok(header),
            (DICTIONARY_PAGE, None) if dictionary => Ok(header),
            (kind, _) => {
                Err(bad("a data page of version 1 or a dictionary", format_args!("page type {kind}")))
            }
        }
    }
}

/// Appends `count` values of a page; a dictionary page fills the dictionary itself.
pub(crate) fn words<T: Word>(
    encoding: usize,
    page: &[u8],
    count: usize,
    dictionary: &[T],
    out: &mut Vec<T>,
) -> Result<(), Error> {
    match encoding {
        PLAIN => {
            let (words, []) = page.as_chunks::<4>() else { return Err(short()) };
            check_count(count, words.len())?;
            out.extend(words.iter().map(|bytes| T::from_le(*bytes)));
            Ok(())
        }
        BYTE_STREAM_SPLIT => split_bytes(page, count, 0..count, out),
        PLAIN_DICTIONARY | RLE_DICTIONARY => {
            let (width, indices) = page.split_first().ok_or_else(short)?;
            runs(indices, *width, count, |index, count| {
                let value = usize::try_from(index).ok().and_then(|index| dictionary.get(index));
                let value =
                    *value.ok_or_else(|| bad(format_args!("an entry below {}", dictionary.len()), index))?;
                out.extend(std::iter::repeat_n(value, count));
                Ok(())
            })
        }
        other => Err(bad("a plain, dictionary or byte stream split page", format_args!("encoding {other}"))),
    }
}

/// Appends the values `part` of a page of `count` values in four planes of bytes, low bytes first.
pub(crate) fn split_bytes<T: Word>(
    page: &[u8],
    count: usize,
    part: Range<usize>,
    out: &mut Vec<T>,
) -> Result<(), Error> {
    check_count(count.saturating_mul(4), page.len())?;
    let (low, high) = page.split_at(2 * count);
    let ((a, b), (c, d)) = (low.split_at(count), high.split_at(count));
    let [a, b, c, d] = [a, b, c, d].map(|plane| plane[part.clone()].iter());
    out.extend(a.zip(b).zip(c.zip(d)).map(|((a, b), (c, d))| T::from_le([*a, *b, *c, *d])));
    Ok(())
}

/// Repetition levels, definition levels and values of a page of lists.
pub(crate) fn list_levels(page: &[u8]) -> Result<[&[u8]; 3], Error> {
    let (repeated, page) = levels(page)?;
    let (defined, page) = levels(page)?;
    Ok([repeated, defined, page])
}

/// Whether a page of lists has no empty one: mostly a single run.
pub(crate) fn all_defined(defined: &[u8], count: usize) -> Result<bool, Error> {
    let mut all = true;
    runs(defined, 1, count, |is_some, _| {
        all &= is_some == 1;
        Ok(())
    })?;
    Ok(all)
}

/// Where rows start in a page with empty lists, of which only levels tell; gives the number of values.
pub(crate) fn sparse_starts(
    header: &PageHeader,
    levels: [&[u8]; 2],
    first: usize,
    rows: usize,
    starts: &mut Vec<usize>,
) -> Result<usize, Error> {
    let mut pairs = vec![[true; 2]; header.values];
    for (side, bytes) in levels.into_iter().enumerate() {
        let mut at = 0;
        runs(bytes, 1, header.values, |level, count| {
            pairs[at..at + count].iter_mut().for_each(|pair| pair[side] = level == 1);
            at += count;
            Ok(())
        })?;
    }
    let mut values = 0;
    for [repeats, is_some] in pairs {
        match (repeats, is_some) {
            (false, _) => {
                check_count_at_most(rows - starts.len(), 1)?;
                starts.push(first + values);
            }
            (true, true) => {}
            (true, false) => return Err(bad("lists without nulls", "a null")),
        }
        values += usize::from(is_some);
    }
    Ok(values)
}

/// Levels of a page of version 1: their size, then runs. Gives the runs and what follows.
pub(crate) fn levels(page: &[u8]) -> Result<(&[u8], &[u8]), Error> {
    let (size, rest) = page.split_first_chunk::<4>().ok_or_else(short)?;
    let size = usize::try_from(u32::from_le_bytes(*size)).map_err(|_| short())?;
    rest.split_at_checked(size).ok_or_else(short)
}

pub(crate) fn take_text(values: &mut &[u8]) -> Result<String, Error> {
    let (text, rest) = levels(values)?;
    *values = rest;
    Ok(std::str::from_utf8(text).map_err(|error| bad("UTF-8", error))?.to_owned())
}

pub(crate) fn expect_encoding(header: &PageHeader, encodings: &[usize]) -> Result<(), Error> {
    if encodings.contains(&header.encoding) {
        return Ok(());
    }
    Err(bad(format_args!("an encoding of {encodings:?}"), header.encoding))
}

pub(crate) fn check_count(expected: usize, found: usize) -> Result<(), Error> {
    if expected == found { Ok(()) } else { Err(bad(format_args!("{expected} values or bytes"), found)) }
}
