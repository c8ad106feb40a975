//! Encodes the columns of a row group: levels, values, zstd, page headers. The counterpart of `decoder.rs`.
//!
//! It is ours because lists without nulls need no levels value by value, and because of `frame.rs`: together they save
//! a quarter of the time (docs/log.md). It keeps nothing from one row group to the next, so row groups can be
//! encoded beside each other.

use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::column::writer::ColumnCloseResult;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::schema::types::{ColumnDescPtr, SchemaDescriptor};

use super::frame::{FrameWriter, Search};
use super::list::List;
use super::runs::{RunWriter, bits};
use crate::values::{Error, SequenceKey};

/// Values of a page: a plane of 4-byte values then fills one 128 KiB block of zstd.
const PAGE_VALUES: usize = 128 << 10;
/// A page of texts is closed when it has this many bytes.
const PAGE_BYTES: usize = 512 << 10;
// Codes of parquet.thrift.
const DATA_PAGE: u32 = 0;
const DICTIONARY_PAGE: u32 = 2;

/// One column of a row group, to be written.
pub(crate) enum Column<'a> {
    Keys(&'a [SequenceKey]),
    Texts(&'a [Option<String>]),
    /// Split into bytes.
    Ints(&'a List<i32>),
    /// Few values, most of them often: with a dictionary.
    Counts(&'a List<i32>),
    /// Split into bytes.
    Floats(&'a List<f32>),
    /// As [`Column::Ints`], where the low bytes may repeat nothing.
    NoisyInts(&'a List<i32>),
    /// As [`Column::NoisyInts`], of drawn entries: few, and searched for long.
    Drawn(&'a List<i32>),
    /// As [`Column::Floats`], where the low bytes may repeat nothing.
    NoisyFloats(&'a List<f32>),
}

/// A column chunk that is ready to be written, and what the footer says about it.
pub(crate) struct EncodedColumn {
    pub(crate) bytes: Vec<u8>,
    pub(crate) close: ColumnCloseResult,
}

/// Encodes the columns of a row group, in the order of the schema.
pub(crate) fn encode(schema: &SchemaDescriptor, columns: &[Column<'_>]) -> Result<Vec<EncodedColumn>, Error> {
    assert_eq!(columns.len(), schema.num_columns(), "as many columns as the schema has");
    let mut frames = FrameWriter::new()?;
    schema
        .columns()
        .iter()
        .zip(columns)
        .map(|(of, column)| ChunkWriter::new(&mut frames).column(of, column))
        .collect()
}

/// What is known of the planes of bytes of a list.
#[derive(Clone, Copy)]
enum Planes {
    Alike,
    /// The two low ones may repeat nothing.
    Noisy,
    /// The lowest may repeat nothing, the others are worth a long search.
    Drawn,
}

/// A column chunk in the making.
struct ChunkWriter<'a> {
    frames: &'a mut FrameWriter,
    bytes: Vec<u8>,
    /// The page in hand, without compression.
    page: Vec<u8>,
    uncompressed: usize,
    values: usize,
    /// Where the data pages begin.
    data: usize,
    encodings: Vec<Encoding>,
}

impl<'a> ChunkWriter<'a> {
    fn new(frames: &'a mut FrameWriter) -> Self {
        let (bytes, page, encodings) = (Vec::new(), Vec::new(), vec![Encoding::RLE]);
        Self { frames, bytes, page, uncompressed: 0, values: 0, data: 0, encodings }
    }

    fn column(mut self, of: &ColumnDescPtr, column: &Column<'_>) -> Result<EncodedColumn, Error> {
        let rows = match column {
            Column::Keys(keys) => {
                self.keys(keys)?;
                keys.len()
            }
            Column::Texts(texts) => {
                self.texts(texts)?;
                texts.len()
            }
            Column::Counts(list) => {
                self.dictionary_list(list)?;
                list.ends.len()
            }
            Column::Ints(list) => self.split_list(list, i32::to_le_bytes, Planes::Alike)?,
            Column::Floats(list) => self.split_list(list, f32::to_le_bytes, Planes::Alike)?,
            Column::NoisyInts(list) => self.split_list(list, i32::to_le_bytes, Planes::Noisy)?,
            Column::NoisyFloats(list) => self.split_list(list, f32::to_le_bytes, Planes::Noisy)?,
            Column::Drawn(list) => self.split_list(list, i32::to_le_bytes, Planes::Drawn)?,
        };
        let metadata = ColumnChunkMetaData::builder(of.clone())
            .set_encodings(self.encodings)
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_num_values(signed(self.values)?)
            .set_total_compressed_size(signed(self.bytes.len())?)
            .set_total_uncompressed_size(signed(self.uncompressed)?)
            .set_data_page_offset(signed(self.data)?)
            .set_dictionary_page_offset((self.data > 0).then_some(0))
            .build()
            .map_err(std::io::Error::other)?;
        let close = ColumnCloseResult {
            bytes_written: unsigned(self.bytes.len()),
            rows_written: unsigned(rows),
            metadata,
            bloom_filter: None,
            column_index: None,
            offset_index: None,
        };
        Ok(EncodedColumn { bytes: self.bytes, close })
    }

    fn keys(&mut self, keys: &[SequenceKey]) -> Result<(), Error> {
        self.encodings.push(Encoding::PLAIN);
        for keys in keys.chunks(PAGE_BYTES / 16) {
            keys.iter().for_each(|key| self.page.extend(key.0));
            self.data_page(keys.len(), Encoding::PLAIN, &[], Search::Usual)?;
        }
        Ok(())
    }

    fn texts(&mut self, texts: &[Option<String>]) -> Result<(), Error> {
        self.encodings.push(Encoding::PLAIN);
        let (mut start, mut bytes) = (0, 0);
        for (index, text) in texts.iter().enumerate() {
            bytes += text.as_ref().map_or(0, |text| 4 + text.len());
            if bytes < PAGE_BYTES && index + 1 < texts.len() {
                continue;
            }
            let of_page = &texts[start..=index];
            let mut defined = RunWriter::new(1);
            of_page
                .chunk_by(|a, b| a.is_some() == b.is_some())
                .for_each(|run| defined.push(u32::from(run[0].is_some()), run.len()));
            self.levels(defined)?;
            for text in of_page.iter().flatten() {
                self.page.extend(size(text.len())?.to_le_bytes());
                self.page.extend_from_slice(text.as_bytes());
            }
            self.data_page(of_page.len(), Encoding::PLAIN, &[], Search::Usual)?;
            (start, bytes) = (index + 1, 0);
        }
        Ok(())
    }

    /// Planes of bytes, low bytes first. Gives the number of rows.
    fn split_list<T: Copy>(
        &mut self,
        list: &List<T>,
        bytes: impl Fn(T) -> [u8; 4],
        planes: Planes,
    ) -> Result<usize, Error> {
        self.encodings.push(Encoding::BYTE_STREAM_SPLIT);
        for (values, levels) in Pages::of(list) {
            self.levels(levels.repeated)?;
            self.levels(levels.defined)?;
            let start = self.page.len();
            self.page.resize(start + 4 * values.len(), 0);
            let (low, high) = self.page[start..].split_at_mut(2 * values.len());
            let ((a, b), (c, d)) = (low.split_at_mut(values.len()), high.split_at_mut(values.len()));
            for ((((value, a), b), c), d) in values.iter().zip(a).zip(b).zip(c).zip(d) {
                [*a, *b, *c, *d] = bytes(*value);
            }
            let (low, high) = (start + values.len(), start + 2 * values.len());
            let ends = [start, low, high];
            let noise = [start..low, low..high].map(|plane| is_noise(&self.page[plane]));
            let (unsearched, search) = match (planes, noise) {
                (Planes::Alike, _) | (Planes::Noisy, [false, _]) => (&[][..], Search::Usual),
                (Planes::Noisy, [true, false]) => (&ends[..2], Search::Usual),
                (Planes::Noisy, [true, true]) => (&ends[..], Search::Usual),
                (Planes::Drawn, [false, _]) => (&[][..], Search::Thorough),
                (Planes::Drawn, [true, _]) => (&ends[..2], Search::Thorough),
            };
            self.data_page(levels.count, Encoding::BYTE_STREAM_SPLIT, unsearched, search)?;
        }
        Ok(list.ends.len())
    }

    /// A dictionary of the values, ascending, and indices into it.
    fn dictionary_list(&mut self, list: &List<i32>) -> Result<(), Error> {
        let mut dictionary = list.values.clone();
        dictionary.sort_unstable();
        dictionary.dedup();
        dictionary.iter().for_each(|value| self.page.extend(value.to_le_bytes()));
        self.dictionary_page(dictionary.len())?;
        self.encodings.extend([Encoding::PLAIN, Encoding::RLE_DICTIONARY]);
        let width = bits(size(dictionary.len().saturating_sub(1))?);
        for (values, levels) in Pages::of(list) {
            self.levels(levels.repeated)?;
            self.levels(levels.defined)?;
            let mut indices = RunWriter::new(width);
            for run in values.chunk_by(|a, b| a == b) {
                let entry = dictionary.binary_search(&run[0]).expect("made of these values");
                indices.push(size(entry)?, run.len());
            }
            self.page.push(width);
            self.page.extend(indices.finish());
            self.data_page(levels.count, Encoding::RLE_DICTIONARY, &[], Search::Usual)?;
        }
        Ok(())
    }

    fn levels(&mut self, levels: RunWriter) -> Result<(), Error> {
        let runs = levels.finish();
        self.page.extend(size(runs.len())?.to_le_bytes());
        self.page.extend(runs);
        Ok(())
    }

    /// Compresses the page in hand, whose parts that end at `unsearched` are not searched for repetitions.
    fn data_page(
        &mut self,
        values: usize,
        encoding: Encoding,
        unsearched: &[usize],
        search: Search,
    ) -> Result<(), Error> {
        let frame = match unsearched {
            [] => self.frames.compress(&self.page, search)?,
            ends => self.frames.compress_split(&self.page, ends, search)?,
        };
        self.values += values;
        let rle = code(Encoding::RLE);
        self.page(DATA_PAGE, 5, &[size(values)?, code(encoding), rle, rle], &frame)
    }

    fn dictionary_page(&mut self, values: usize) -> Result<(), Error> {
        let frame = self.frames.compress(&self.page, Search::Usual)?;
        self.page(DICTIONARY_PAGE, 7, &[size(values)?, code(Encoding::PLAIN)], &frame)?;
        self.data = self.bytes.len();
        Ok(())
    }

    /// Writes a page: its header is a struct of the compact protocol of thrift, whose field `field` is a struct of `details`.
    fn page(&mut self, kind: u32, field: u8, details: &[u32], frame: &[u8]) -> Result<(), Error> {
        const INTEGER: u8 = 5;
        const STRUCT: u8 = 12;
        const NEXT_FIELD: u8 = 1 << 4;
        let before = self.bytes.len();
        for value in [kind, size(self.page.len())?, size(frame.len())?] {
            self.bytes.push(NEXT_FIELD | INTEGER);
            push_integer(&mut self.bytes, value);
        }
        self.bytes.push(((field - 3) << 4) | STRUCT);
        for value in details {
            self.bytes.push(NEXT_FIELD | INTEGER);
            push_integer(&mut self.bytes, *value);
        }
        self.bytes.extend([0, 0]);
        self.uncompressed += self.bytes.len() - before + self.page.len();
        self.bytes.extend_from_slice(frame);
        self.page.clear();
        Ok(())
    }
}

/// Whether Huffman codes alone suit a plane: they need a bit for each byte, or nothing where all are the same.
fn is_noise(plane: &[u8]) -> bool {
    const STEP: usize = 16;
    if plane.iter().all(|byte| *byte == plane[0]) {
        return !plane.is_empty();
    }
    let mut counts = [0usize; 256];
    plane.iter().step_by(STEP).for_each(|byte| counts[usize::from(*byte)] += 1);
    counts.iter().all(|count| 2 * count < plane.len().div_ceil(STEP))
}

/// Cuts a list column into pages.
struct Pages<'a, T> {
    list: &'a List<T>,
    /// Rows that were begun, and values that were given.
    row: usize,
    at: usize,
}

/// Levels of a page: 0 where a row starts, and 0 where it is empty.
struct Levels {
    repeated: RunWriter,
    defined: RunWriter,
    /// Values, and an empty row counts as one.
    count: usize,
}

impl<'a, T> Pages<'a, T> {
    fn of(list: &'a List<T>) -> Self {
        Self { list, row: 0, at: 0 }
    }
}

impl<'a, T> Iterator for Pages<'a, T> {
    type Item = (&'a [T], Levels);

    fn next(&mut self) -> Option<Self::Item> {
        let List { values, ends } = self.list;
        let (start, end) = (self.at, values.len().min(self.at + PAGE_VALUES));
        let mut levels = Levels { repeated: RunWriter::new(1), defined: RunWriter::new(1), count: 0 };
        let mut push = |repeats: u32, is_some: u32, count: usize| {
            levels.repeated.push(repeats, count);
            levels.defined.push(is_some, count);
            levels.count += count;
        };
        loop {
            // The rest of the row that was begun last.
            let row_end = self.row.checked_sub(1).map_or(0, |row| ends[row]);
            push(1, 1, row_end.min(end) - self.at);
            self.at = row_end.min(end);
            match ends.get(self.row) {
                Some(next_end) if self.at == row_end && *next_end == self.at => push(0, 0, 1),
                Some(_) if self.at < end => {
                    push(0, 1, 1);
                    self.at += 1;
                }
                _ => break,
            }
            self.row += 1;
        }
        (levels.count > 0).then_some((&values[start..end], levels))
    }
}

/// A zigzag integer of thrift that is not negative.
fn push_integer(bytes: &mut Vec<u8>, value: u32) {
    super::runs::push_varint(bytes, u64::from(value) << 1);
}

/// Of parquet.thrift.
fn code(encoding: Encoding) -> u32 {
    match encoding {
        Encoding::PLAIN => 0,
        Encoding::RLE => 3,
        Encoding::RLE_DICTIONARY => 8,
        Encoding::BYTE_STREAM_SPLIT => 9,
        other => unreachable!("{other} is not written"),
    }
}

/// A number of a page header, below 2^31.
fn size(size: usize) -> Result<u32, Error> {
    let found = u32::try_from(size).ok().filter(|size| *size <= i32::MAX.cast_unsigned());
    found.ok_or_else(|| Error::bad("page", "at most 2 GiB", size))
}

fn signed(size: usize) -> Result<i64, Error> {
    i64::try_from(size).map_err(|_| Error::bad("column chunk", "at most 2^63 bytes", size))
}

fn unsigned(size: usize) -> u64 {
    u64::try_from(size).expect("a length fits 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_what_has_no_byte_in_most_places_or_one_in_all() {
        let plane = |of: fn(usize) -> usize| -> Vec<u8> {
            (0..10_000).map(|index| u8::try_from(of(index / 16) % 256).unwrap()).collect()
        };
        assert!(is_noise(&plane(|index| index)));
        assert!(is_noise(&plane(|_| 7)));
        assert!(!is_noise(&plane(|index| index / 600)));
        assert!(!is_noise(&plane(|index| usize::from(index % 3 == 0))));
        assert!(!is_noise(&[]));
    }

    #[test]
    fn pages_hold_all_values_and_all_rows() {
        let sizes = [0, 0, 3, PAGE_VALUES - 3, 0, 1, 0, 2 * PAGE_VALUES + 5, 7, 0, 0];
        for rows in 1..=sizes.len() {
            let ends: Vec<usize> = sizes[..rows]
                .iter()
                .scan(0, |end, size| {
                    *end += size;
                    Some(*end)
                })
                .collect();
            let list = List { values: (0..ends[rows - 1]).collect(), ends };
            let (mut values, mut counted) = (Vec::new(), 0);
            for (of_page, levels) in Pages::of(&list) {
                assert!(of_page.len() <= PAGE_VALUES);
                values.extend_from_slice(of_page);
                counted += levels.count;
            }
            assert_eq!(values, list.values);
            assert_eq!(counted, values.len() + sizes[..rows].iter().filter(|size| **size == 0).count());
        }
    }
}
