//! Reads one Parquet file of a dataset: hash, footer, limits, and then row groups.

use std::cell::RefCell;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, Bytes, buf::Reader};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::writer::SerializedRowGroupWriter;

use super::record::ShardRecord;
use super::schema::{ROW_GROUP_HASHES, ShardSchema};
use crate::host::{DataFile, Share};
use crate::parquet::{Chunk, PageDecoder, Scratch, failed, footer, guarded};
use crate::values::{Error, HINT_DAMAGED, ReadLimits};

thread_local! {
    /// A zstd context and a page for each thread that reads.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

const MAGIC: &[u8] = b"PAR1";
/// The size of the footer and the magic bytes.
const TAIL: usize = 8;

/// A shard whose whole-file hash was checked.
#[derive(Debug)]
pub(crate) struct ShardReader {
    /// As it stands in messages: ``shard `name` ``.
    place: String,
    file: DataFile,
    metadata: ParquetMetaData,
    groups: Vec<Group>,
    row_group_bytes: usize,
}

/// Where a row group lies, and what its bytes must be.
#[derive(Debug)]
struct Group {
    range: Range<usize>,
    rows: usize,
    blake3: String,
    verified: AtomicBool,
}

impl ShardReader {
    /// Checks size and hash, then opens the file and checks its footer against schema and limits.
    pub(crate) fn open(
        path: &Path,
        record: &ShardRecord,
        schema: &ShardSchema,
        limits: &ReadLimits,
    ) -> Result<Self, Error> {
        let place = format!("shard `{}`", record.file);
        let within = |error: Error| error.within(&place);
        let file = DataFile::open(path, limits.memory_map).map_err(within)?;
        if u64::try_from(file.len()) != Ok(record.bytes) {
            let expected = format!("{} bytes", record.bytes);
            return Err(Error::bad(place, expected, file.len()).hint(HINT_DAMAGED));
        }
        let hash = file.blake3().map_err(within)?;
        if hash != record.blake3 {
            return Err(Error::bad(place, format_args!("BLAKE3 {}", record.blake3), hash).hint(HINT_DAMAGED));
        }
        let mut reader = Self::from_file(file, record, schema, limits).map_err(within)?;
        // The footer is that of the file which was hashed; it says what the row groups must be.
        reader.file.release();
        Ok(reader)
    }

    /// Reads and checks the footer.
    pub(crate) fn from_file(
        file: DataFile,
        record: &ShardRecord,
        schema: &ShardSchema,
        limits: &ReadLimits,
    ) -> Result<Self, Error> {
        let metadata = guarded(|| read_footer(&file, limits.footer_bytes))?;
        if metadata.file_metadata().schema_descr().root_schema() != schema.message.as_ref() {
            let mut found = Vec::new();
            parquet::schema::printer::print_schema(&mut found, metadata.file_metadata().schema());
            let found = String::from_utf8_lossy(&found).split_whitespace().collect::<Vec<_>>().join(" ");
            return Err(Error::bad("schema", "the columns of the format", found));
        }
        for (key, value) in &schema.key_values {
            let found = key_value(&metadata, key)?;
            if found != value {
                return Err(Error::bad(format_args!("key-value {key}"), value, found));
            }
        }
        let groups = read_groups(&metadata, file.len(), limits)?;
        let rows: usize = groups.iter().map(|group| group.rows).sum();
        if u64::try_from(rows) != Ok(record.rows) {
            return Err(Error::bad("row groups", format_args!("{} rows", record.rows), rows));
        }
        let place = format!("shard `{}`", record.file);
        Ok(Self { place, file, metadata, groups, row_group_bytes: limits.row_group_bytes })
    }

    /// Name, size in the file and size without compression of each column, over all row groups.
    pub(crate) fn column_sizes(&self) -> Vec<(String, [u64; 2])> {
        let mut sizes: Vec<(String, [u64; 2])> = Vec::new();
        for group in self.metadata.row_groups() {
            for (index, column) in group.columns().iter().enumerate() {
                let [compressed, uncompressed] = [column.compressed_size(), column.uncompressed_size()]
                    .map(|size| u64::try_from(size).unwrap_or(0));
                if index == sizes.len() {
                    sizes.push((self.column_name(index), [0, 0]));
                }
                let [of_file, decoded] = &mut sizes[index].1;
                *of_file = of_file.saturating_add(compressed);
                *decoded = decoded.saturating_add(uncompressed);
            }
        }
        sizes
    }

    /// Name of a column, without the levels of its list.
    pub(crate) fn column_name(&self, index: usize) -> String {
        let path = self.metadata.file_metadata().schema_descr().column(index).path().string();
        path.split('.').next().unwrap_or_default().to_owned()
    }

    /// BLAKE3 that the footer gives for a row group, where its bytes have another: `[expected, found]`.
    pub(crate) fn wrong_hash(&self, group: usize) -> Result<Option<[String; 2]>, Error> {
        let group = &self.groups[group];
        let found = blake3::hash(&self.file.range(group.range.clone())?).to_hex().to_string();
        Ok((found != group.blake3).then(|| [group.blake3.clone(), found]))
    }

    /// Bytes of a row group's columns, neither compressed nor encoded.
    pub(crate) fn decoded_bytes(&self, group: usize) -> usize {
        usize::try_from(self.metadata.row_group(group).total_byte_size()).unwrap_or(0)
    }

    /// Bytes that decoding a row group may cost, as [`PageDecoder`] counts: what the footer says its columns have, twice as
    /// dictionaries count beside their values, and not more than the limit.
    fn budget(&self, group: usize) -> usize {
        let of_column = |column: &ColumnChunkMetaData| {
            let [bytes, values] = [column.uncompressed_size(), column.num_values()]
                .map(|size| usize::try_from(size).unwrap_or(0));
            bytes.saturating_mul(2).saturating_add(values.saturating_mul(4))
        };
        let columns = self.metadata.row_group(group).columns().iter().map(of_column);
        columns.fold(0, usize::saturating_add).min(self.row_group_bytes)
    }

    /// The memory that a row group is decoded in.
    pub(crate) fn share(&self, group: usize) -> Share {
        Share::of(self.budget(group))
    }

    /// The same for any of its row groups, one after the other.
    pub(crate) fn largest_share(&self) -> Share {
        Share::of((0..self.groups()).map(|group| self.budget(group)).max().unwrap_or(0))
    }

    /// Number of row groups.
    pub(crate) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Rows of a row group.
    pub(crate) fn group_rows(&self, group: usize) -> usize {
        self.groups[group].rows
    }

    /// Gives the column chunks of a row group to a writer, hashed before and not decoded.
    pub(crate) fn copy_chunks<W: Write + Send>(
        &self,
        group: usize,
        to: &mut SerializedRowGroupWriter<'_, W>,
    ) -> Result<(), Error> {
        let bytes = self.group_bytes(group).map_err(|error| self.within(group, error))?;
        let bytes = GroupBytes { start: self.groups[group].range.start, bytes };
        let metadata = self.metadata.row_group(group);
        for column in metadata.columns() {
            let close = ColumnCloseResult {
                bytes_written: column.compressed_size().cast_unsigned(),
                rows_written: metadata.num_rows().cast_unsigned(),
                metadata: column.clone(),
                bloom_filter: None,
                column_index: None,
                offset_index: None,
            };
            to.append_column(&bytes, close).map_err(failed)?;
        }
        Ok(())
    }

    /// Decodes a row group: `decode` gets a decoder and the column chunks. Its bytes are hashed before: once if they are
    /// mapped, otherwise each time that they are read. Mapped pages are given back.
    pub(crate) fn decode<T>(
        &self,
        index: usize,
        decode: impl FnOnce(&mut PageDecoder, &[Chunk<'_>]) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let decoded = self.group_bytes(index).and_then(|bytes| self.decode_bytes(index, &bytes, decode));
        self.file.forget(self.groups[index].range.clone());
        decoded.map_err(|error| self.within(index, error))
    }

    /// The bytes of a row group, whose hash is right.
    fn group_bytes(&self, index: usize) -> Result<Bytes, Error> {
        let group = &self.groups[index];
        let bytes = self.file.range(group.range.clone())?;
        if !(self.file.is_mapped() && group.verified.load(Ordering::Relaxed)) {
            let hash = blake3::hash(&bytes).to_hex();
            if hash.as_str() != group.blake3 {
                let expected = format!("BLAKE3 {}", group.blake3);
                return Err(Error::bad("bytes", expected, hash).hint(HINT_DAMAGED));
            }
            group.verified.store(true, Ordering::Relaxed);
        }
        Ok(bytes)
    }

    fn within(&self, group: usize, error: Error) -> Error {
        error.within(format_args!("{} row group {group}", self.place))
    }

    /// Decodes a row group whose bytes may be damaged, to say where; errors do not name the row group.
    pub(crate) fn decode_unverified<T>(
        &self,
        index: usize,
        decode: impl FnOnce(&mut PageDecoder, &[Chunk<'_>]) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let bytes = self.file.range(self.groups[index].range.clone())?;
        self.decode_bytes(index, &bytes, decode)
    }

    fn decode_bytes<T>(
        &self,
        index: usize,
        bytes: &[u8],
        decode: impl FnOnce(&mut PageDecoder, &[Chunk<'_>]) -> Result<T, Error>,
    ) -> Result<T, Error> {
        guarded(|| {
            let mut rest = bytes;
            let mut chunks = Vec::new();
            for column in self.metadata.row_group(index).columns() {
                let size = usize::try_from(column.compressed_size()).expect("checked at open");
                let (chunk, after) = rest.split_at(size);
                chunks.push(Chunk { bytes: chunk, compression: column.compression() });
                rest = after;
            }
            let rows = self.groups[index].rows;
            let _share = self.share(index);
            let mut pages = PageDecoder::new(rows, self.budget(index), SCRATCH.take())?;
            let decoded = decode(&mut pages, &chunks);
            SCRATCH.set(pages.into_scratch());
            decoded
        })
    }
}

/// A row group's bytes at their place in the file, as the Parquet crate asks for them.
struct GroupBytes {
    start: usize,
    bytes: Bytes,
}

impl Length for GroupBytes {
    fn len(&self) -> u64 {
        u64::try_from(self.start + self.bytes.len()).expect("a place in a file fits 64 bits")
    }
}

impl ChunkReader for GroupBytes {
    type T = Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        let length = usize::try_from(self.len().saturating_sub(start)).map_err(|_| outside())?;
        Ok(self.get_bytes(start, length)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let start = usize::try_from(start).ok().and_then(|start| start.checked_sub(self.start));
        let range = start.and_then(|start| Some(start..start.checked_add(length)?));
        let range = range.filter(|range| range.end <= self.bytes.len()).ok_or_else(outside)?;
        Ok(self.bytes.slice(range))
    }
}

fn outside() -> ParquetError {
    ParquetError::General("a place outside of the row group".to_owned())
}

/// Finds and parses the footer.
fn read_footer(file: &DataFile, max_bytes: usize) -> Result<ParquetMetaData, Error> {
    let not_parquet = || Error::bad("footer", "a Parquet file", "other bytes");
    let body = file.len().checked_sub(MAGIC.len() + TAIL).ok_or_else(not_parquet)?;
    let end = file.len() - TAIL;
    let tail = file.range(end..file.len())?;
    if file.range(0..MAGIC.len())? != *MAGIC || tail[4..] != *MAGIC {
        return Err(not_parquet());
    }
    let size = u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
    let size = usize::try_from(size).map_err(|_| not_parquet())?;
    if size > body.min(max_bytes) {
        return Err(Error::bad("footer", format_args!("at most {} bytes", body.min(max_bytes)), size));
    }
    footer::read(&file.range(end - size..end)?)
}

/// Checks limits, places and hashes of the row groups.
fn read_groups(
    metadata: &ParquetMetaData,
    file_bytes: usize,
    limits: &ReadLimits,
) -> Result<Vec<Group>, Error> {
    let hashes = key_value(metadata, ROW_GROUP_HASHES)?;
    let hashes: Vec<String> = serde_json::from_str(hashes).map_err(|error| {
        Error::bad(format_args!("key-value {ROW_GROUP_HASHES}"), "a list of hashes", error)
    })?;
    if hashes.len() != metadata.num_row_groups() {
        let expected = format!("{} hashes", metadata.num_row_groups());
        return Err(Error::bad(format_args!("key-value {ROW_GROUP_HASHES}"), expected, hashes.len()));
    }
    let mut end = MAGIC.len();
    let mut groups = Vec::with_capacity(hashes.len());
    for (index, (group, blake3)) in metadata.row_groups().iter().zip(hashes).enumerate() {
        let start = end;
        let within = |error: Error| error.within(format_args!("row group {index}"));
        end = group_end(group, start, file_bytes - TAIL).map_err(within)?;
        let rows =
            usize::try_from(group.num_rows()).ok().filter(|rows| (1..=limits.rows_per_group).contains(rows));
        let rows = rows.ok_or_else(|| {
            within(Error::bad("rows", format_args!("1..={}", limits.rows_per_group), group.num_rows()))
        })?;
        groups.push(Group { range: start..end, rows, blake3, verified: AtomicBool::new(false) });
    }
    Ok(groups)
}

/// Column chunks lie behind each other, from `start`; gives their end.
fn group_end(group: &RowGroupMetaData, start: usize, file_end: usize) -> Result<usize, Error> {
    let mut end = start;
    for column in group.columns() {
        let name = column.column_path().string();
        let offset = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
        if usize::try_from(offset) != Ok(end) {
            return Err(Error::bad(format_args!("column {name}"), format_args!("offset {end}"), offset));
        }
        end = usize::try_from(column.compressed_size())
            .ok()
            .and_then(|size| end.checked_add(size))
            .filter(|end| *end <= file_end)
            .ok_or_else(|| {
                let expected = format!("at most {} bytes", file_end - end);
                Error::bad(format_args!("column {name}"), expected, column.compressed_size())
            })?;
    }
    Ok(end)
}

fn key_value<'a>(metadata: &'a ParquetMetaData, key: &str) -> Result<&'a str, Error> {
    let pairs = metadata.file_metadata().key_value_metadata();
    let mut found = pairs.into_iter().flatten().filter(|pair| pair.key == key).map(|pair| &pair.value);
    match (found.next(), found.next()) {
        (Some(Some(value)), None) => Ok(value),
        (None, _) => Err(Error::bad(format_args!("key-value {key}"), "a value", "none")),
        _ => Err(Error::bad(format_args!("key-value {key}"), "one value", "another number")),
    }
}
